"""Mixtures of the weights before and after a training, and the numbers that say what the training forgets.

A mixture is start + f * (end - start), with f in [0, 1]. All tensors that the training changed are mixed: parameters,
and the statistics of batch norms. Integers, such as the counters of batch norms, are not: they are those of the start
for f = 0, and those of the end for all other f. Tables and JSON have a row for each f: the numbers of the classes that
were trained and of all others, as means that evaluators take over seen and unseen classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.zoo import SCHEME
from clipself_seg.errors import InputError
from clipself_seg.evaluation.report import TITLES, cell_text, format_table
from clipself_seg.models.build import build_model
from clipself_seg.models.model_protocols import Model
from clipself_seg.yaml_files import leaves, merge_layers, read_layers

KEY = "SOLVER.MIX_WITH_START"
CONFIG = "config.yaml"  # of the run, beside its weights
Tensors = dict[str, Tensor]

TRAINED, OTHERS = "trained", "not trained"
BALANCE = "harmonic mean"
# Number that stands for a line of results, the first that it has -> what is between its name and "seen" or "unseen".
NUMBERS = {"PQ": "_", "mIoU": "-", "AP": "-"}
Split = dict[str, Any]
Row = Mapping[str, Split]  # data set -> its numbers, as of `split_of`
Rows = Mapping[float, Row]  # fraction -> its row


def fractions_of(cfg: CfgNode, trains: bool = False) -> list[float]:
    """The fractions that are evaluated, 1 first, then 0; [] where nothing asks for mixtures.

    Args:
        cfg: configuration. A training on ``DATASETS.DATA`` that has a start is evaluated before and after.
        trains: True if it is a training.
    """
    given = cfg.SOLVER.MIX_WITH_START
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
    values = dict(leaves(merge_layers(read_layers(config)))) if config.is_file() else {}
    start = str(values.get("MODEL.WEIGHTS") or "")
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
    """Puts start + fraction * (end - start) into a model meanwhile, and then the end back; 0 and 1 are exact.

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


def split_of(numbers: Mapping[str, Any]) -> Split:
    """The numbers of trained and of other classes of a data set.

    Args:
        numbers: what an evaluation has of the data set: of panoptic segmentation "fused" counts, or the first fusion;
            of detection boxes, or masks alone.

    Returns:
        "number" (PQ, mIoU or AP), `TRAINED` and `OTHERS` in percent, and "classes trained" and "classes not trained",
        how many have such a number; each only where it is known.
    """
    lines = {key: line for key, line in numbers.items() if isinstance(line, Mapping)}
    line = lines.get("fused", lines.get("bbox", next(iter(lines.values()), numbers)))
    number = next((number for number in NUMBERS if number in line), "")
    sign = NUMBERS.get(number, "")
    keys = {
        TRAINED: f"{number}{sign}seen",
        OTHERS: f"{number}{sign}unseen",
        f"classes {TRAINED}": f"classes{sign}seen",
        f"classes {OTHERS}": f"classes{sign}unseen",
    }
    return {"number": number} | {key: line[own] for key, own in keys.items() if own in line}


def means_of(row: Row) -> dict[str, float]:
    """Means over the data sets that have such classes, and the harmonic mean of both groups if there are both."""
    means = {}
    for group in (TRAINED, OTHERS):
        if values := [split[group] for split in row.values() if group in split]:
            means[group] = sum(values) / len(values)
    if len(means) == 2:
        total = sum(means.values())
        means[BALANCE] = 2 * means[TRAINED] * means[OTHERS] / total if total else 0.0
    return means


def knee_of(rows: Rows) -> float | None:
    """The fraction with the best harmonic mean, of equal ones the smallest; None without other classes."""
    means = {fraction: means_of(rows[fraction]).get(BALANCE) for fraction in sorted(rows)}
    known = {fraction: mean for fraction, mean in means.items() if mean is not None}
    return max(known, key=lambda fraction: known[fraction]) if known else None


def as_json(rows: Rows) -> dict[str, Any]:
    """The content of "mixing" in `results.json`, see docs/numbers.md."""
    lines = [{"fraction": f, **means_of(rows[f]), "data sets": rows[f]} for f in sorted(rows)]
    return {"knee": knee_of(rows), "rows": lines}


def forgetting_table(rows: Rows) -> str:
    """A line for each mixture: the number of trained and of other classes of each data set, and the means.

    Args:
        rows: the numbers of each mixture.
    """
    knee, last = knee_of(rows), rows[max(rows)]
    groups = [(name, group) for name in last for group in (TRAINED, OTHERS) if group in last[name]]
    headings = ["weights"]
    for name, group in groups:
        classes = cell_text(last[name].get(f"classes {group}"), ".0f")
        headings.append(f"{TITLES.get(name, name)} {last[name]['number']}, {classes} {group}")
    # Of one data set the means are its own numbers.
    means = [key for key in means_of(last) if key == BALANCE or len(last) > 1]
    headings += [key if key == BALANCE else f"mean, {key}" for key in means]
    body = []
    for fraction in sorted(rows):
        row, mean = rows[fraction], means_of(rows[fraction])
        word = {0.0: " before", 1.0: " after"}.get(fraction, "")
        word += " *" if fraction == knee else ""
        cells = [row[name].get(group) for name, group in groups] + [mean.get(key) for key in means]
        body.append([f"{fraction:g}{word}", *map(cell_text, cells)])
    return format_table(headings, body)
