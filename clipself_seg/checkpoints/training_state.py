"""Training checkpoints: safetensors files with a checksum, of which a folder keeps the newest few.

A file holds what the run changes and nothing else: the trained tensors, the optimiser's moments,
the iteration, the loss scale, and the metadata of the run that a resumed one must share. It needs no
state of random generators: everything random in a step follows from seed and iteration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from clipself_seg.checkpoints.bounds import open_safetensors
from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import fit, is_finite, parse_metadata
from clipself_seg.errors import InputError, in_short
from clipself_seg.files import atomic_path
from clipself_seg.schema import COUNT, NUMBER, OBJECT, TEXT, Each, Schema, check

Metadata = dict[str, Any]
NAME = re.compile(r"iteration_(\d+)\.safetensors")
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter beside "step"
REMEDY = "resume with the configuration that it was written under"
# What a run writes beside its tensors. "unlogged" are numbers of the last step, where an evaluation follows.
OPTIONAL = dict.fromkeys(("hooks?", "unlogged?"), OBJECT)
OF_RUN: Schema = {"iteration": COUNT, "scaler": Each(TEXT, NUMBER), "run": OBJECT, **OPTIONAL}
METADATA = "checkpoint"  # the only key: safetensors writes several in random order


class CheckpointFolder:
    """The checkpoints of one run, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = max(keep, 1)

    def paths(self) -> list[Path]:
        """Paths of the checkpoints, the oldest first."""
        paths = [path for path in self.folder.glob("*") if NAME.fullmatch(path.name)]
        return sorted(paths, key=iteration_of)

    def path(self, iteration: int) -> Path:
        """Path of the state after so many steps."""
        return self.folder / f"iteration_{iteration:07d}.safetensors"

    def save(self, iteration: int, tensors: Mapping[str, Tensor], metadata: Metadata) -> Path:
        """Writes a checkpoint atomically and removes the oldest beyond `keep`."""
        path = self.path(iteration)
        write_state(path, tensors, metadata)
        self.remove_oldest()
        return path

    def remove_oldest(self) -> None:
        """Removes the oldest checkpoints beyond `keep`."""
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def newest(self) -> tuple[dict[str, Tensor], Metadata] | None:
        """Content of the newest checkpoint, None if there is none; a run writes its metadata, see `OF_RUN`.

        Raises:
            InputError: it is damaged, or has other metadata than a run writes; names the one before it.
        """
        paths = self.paths()
        if not paths:
            return None
        older = f"go on from {paths[-2].name}" if len(paths) > 1 else "start again"
        try:
            tensors, metadata = read_state(paths[-1])
        except InputError as error:
            raise InputError(f"{error}; delete it to {older}") from None
        check(metadata, OF_RUN, f"training checkpoint {paths[-1]}", f"delete it to {older}")
        return tensors, metadata


def iteration_of(path: Path) -> int:
    """Number of steps behind a checkpoint, from its name."""
    match = NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Writes tensors and JSON-serialisable metadata with a digest of both, atomically.

    Equal content gives equal bytes.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata, sort_keys=True)
    about = json.dumps({"digest": _digest(stored, text), "facts": text})
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(stored, temporary, metadata={METADATA: about})


def read_state(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Reads what `write_state` wrote.

    Raises:
        InputError: truncated, altered, or not a training checkpoint.
    """
    try:
        with open_safetensors(path) as file:
            about = parse_metadata((file.metadata() or {}).get(METADATA, "{}"), path)
        tensors = safetensors.torch.load_file(path)
        stored = about.get("facts")
        if isinstance(stored, str) and _digest(tensors, stored) == about.get("digest"):
            return tensors, parse_metadata(stored, path)
        reason = "its digest does not match"
    except (SafetensorError, OSError, ValueError) as error:
        reason = in_short(error)
    raise InputError(f"training checkpoint {path} is damaged ({reason})")


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hash_tensors({**tensors, text: torch.empty(0)})


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """True if no tensor holds NaN or an infinite number."""
    return all(map(is_finite, tensors.values()))


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors that training changes, by name: ``model/<parameter or statistic>`` and
    ``optimizer/<parameter>/<moment>``."""
    packed = {f"model/{name}": tensor for name, tensor in trained_tensors(model).items()}
    for name, parameter in trained_parameters(model).items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            packed[f"optimizer/{name}/{moment}"] = value
    return packed


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Puts back what `pack` took.

    Raises:
        InputError: other parameters, moments or shapes than the model trains with.
    """
    trained = trained_parameters(model)
    moments = {key: value for key, value in tensors.items() if key.startswith("optimizer/")}
    wanted: dict[str, Tensor] = {}
    for name in {key.split("/", 1)[1].rpartition("/")[0] for key in moments} & trained.keys():
        wanted |= {f"optimizer/{name}/{moment}": trained[name] for moment in MOMENTS}
        wanted[f"optimizer/{name}/step"] = torch.zeros(())
    moments = fit(moments, wanted, "the optimiser's state of the checkpoint", remedy=REMEDY)
    unpack_model(tensors, model)
    index = {parameter: i for i, parameter in enumerate(_in_order(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.removeprefix("optimizer/").rpartition("/")
        # A copy: what safetensors returns may still be the file, mapped into memory.
        state.setdefault(index[trained[name]], {})[moment] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    # The optimiser's own loading knows on which device each of its tensors has to be.
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@torch.no_grad()
def unpack_model(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Puts back the trained tensors only, as evaluation needs them.

    Raises:
        InputError: other parameters or shapes than the model trains.
    """
    trained = trained_tensors(model)
    stored = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    for name, tensor in fit(stored, trained, "the checkpoint", remedy=REMEDY).items():
        trained[name].copy_(tensor)


def is_training_state(tensors: Mapping[str, Tensor]) -> bool:
    """True if names are those of `pack`."""
    return all(name.startswith(("model/", "optimizer/")) for name in tensors)


def load_training_state(
    path: Path,
    model: nn.Module,
    original_hash: Callable[[], str],
    check: Callable[[Mapping[str, Any]], None] = lambda run: None,
) -> None:
    """Loads the trained parameters of a checkpoint into a model that has the others already.

    Args:
        path: written by `CheckpointFolder.save`.
        model: its parameters that train are replaced.
        original_hash: gives the identity of what does not train.
        check: refuses a run by what it had to share with one that goes on with it.

    Raises:
        InputError: the file is damaged, or of a run with another model or other initial weights; as `check`.
    """
    tensors, metadata = read_state(path)
    run = metadata.get("run")
    if isinstance(run, dict):
        check(run)
    unpack_model(tensors, model)
    if not isinstance(run, dict) or run.get("original weights") != original_hash():
        raise InputError(
            f"{path} is a training checkpoint of a run with other original weights: give the "
            "configuration and the MODEL.CLIP.WEIGHTS of that run"
        )


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that requires a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of everything that training changes: parameters, and statistics of norms that do not stay."""
    tensors: dict[str, Tensor] = dict(trained_parameters(model))
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase) and (module.weight is None or module.weight.requires_grad):
            tensors |= {f"{prefix}.{name}": b for name, b in module.named_buffers()}
    return tensors


def _in_order(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
