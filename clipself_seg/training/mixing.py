"""Weights between the start and the end of a training: start + f * (end - start), with f in [0, 1].

All tensors that the training changed are mixed: parameters, and the statistics of batch norms. Integers, such as the
counters of batch norms, are not: they are those of the start for f = 0, and those of the end for all other f.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.zoo import SCHEME
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from clipself_seg.models.protocol import Model
from clipself_seg.yaml_files import leaves, merge_layers, read_layers

KEY = "SOLVER.MIX_WITH_START"
CONFIG = "config.yaml"  # of the run, beside its weights
Tensors = dict[str, Tensor]


def fractions_of(cfg: CfgNode, trains: bool = False) -> list[float]:
    """The fractions that are evaluated, 1 first, then 0; [] where nothing asks for mixtures.

    Args:
        cfg: configuration. A training on ``DATASETS.DATA`` that has a start is evaluated before and after.
        trains: whether it is a training.

    Raises:
        InputError: the configuration asks for mixtures of a training that has no start.
    """
    given = cfg.SOLVER.MIX_WITH_START
    if given and not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"{KEY} {tuple(given)} needs a model to start from, and MODEL.WEIGHTS is empty, so that the head begins "
            "random: name the weights that the training goes on from, or leave the key out"
        )
    if not given and not (trains and cfg.DATASETS.DATA and cfg.MODEL.WEIGHTS):
        return []
    return list(dict.fromkeys((1.0, 0.0, *map(float, given))))


def start_of_run(cfg: CfgNode) -> str:
    """The weights that a finished run started from, as the config.yaml beside the file of ``MODEL.WEIGHTS`` has them.

    Raises:
        InputError: nothing says what the start was.
    """
    path = locate(cfg.MODEL.WEIGHTS.removeprefix(SCHEME))
    config = path.parent / CONFIG
    start = ""
    if config.is_file():
        start = str(dict(leaves(merge_layers(read_layers(config)))).get("MODEL.WEIGHTS") or "")
    if not start:
        raise InputError(
            f"{KEY} mixes the weights of a run with those that it started from, and nothing says what those of {path} "
            f"are: keep the {CONFIG} of the training, with its MODEL.WEIGHTS, beside the file, or leave the key out"
        )
    return start


def changed_tensors(cfg: CfgNode, model: Model, start: str) -> Tensors:
    """The tensors that a training changed, by name, as they were before it, on the CPU.

    Args:
        cfg: configuration of the training or of the evaluation.
        model: has the weights after the training, low-rank updates merged.
        start: weights before it, as ``MODEL.WEIGHTS``.

    Raises:
        InputError: as `build_model`, or the weights are the same before and after the training.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = start
    cfg.MODEL.DEVICE = "cpu"
    end = cast(nn.Module, model).state_dict()
    before = cast(nn.Module, build_model(cfg)).state_dict()
    changed = {name: t for name, t in before.items() if not t.equal(end[name].cpu())}
    if not changed:
        raise InputError(
            f"{KEY} mixes the weights after a training with those before it, and {start} has the same as those after "
            f"it: name the weights of the start in MODEL.WEIGHTS of its {CONFIG}, or leave the key out"
        )
    return changed


@contextlib.contextmanager
def mixed(model: Model, start: Mapping[str, Tensor], fraction: float) -> Iterator[None]:
    """Put start + fraction * (end - start) into a model meanwhile, and then the end back; 0 and 1 are exact.

    Args:
        model: has the weights of the end, of which copies of the tensors in `start` are kept in memory of the CPU.
        start: tensors of the start by their names in the model.
        fraction: in [0, 1].
    """
    state = cast(nn.Module, model).state_dict()
    end = {name: state[name].to("cpu", copy=True) for name in start}
    whole = fraction in (0, 1)
    for name, tensor in start.items():
        if whole or not tensor.is_floating_point():
            state[name].copy_(end[name] if fraction else tensor)
        else:
            state[name].copy_(tensor.lerp(end[name], fraction))
    try:
        yield
    finally:
        for name, tensor in end.items():
            state[name].copy_(tensor)
