"""Reading a file of weights of any supported format without executing anything that is in it.

`read_checkpoint` gives a `Checkpoint`: the tensors, and what the file says about itself. `fit` takes from it what a
module needs, or says what does not fit; `is_finite` looks for NaN, `nearly_equal` compares weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import check_tensor, open_safetensors, refusing
from clipself_seg.checkpoints.dense_feature import ANY, KIND_ENTRY, DenseFeature, stated_feature
from clipself_seg.checkpoints.file_kinds import is_safetensors, require_readable
from clipself_seg.checkpoints.locate import no_checkpoint
from clipself_seg.checkpoints.pickles import read_torch
from clipself_seg.checkpoints.zoo import MINI_CLIPS, SHIPPED_TAGS, zoo
from clipself_seg.errors import InputError, shown
from clipself_seg.files import parse_json
from clipself_seg.schema import NUMBER, OBJECT, TEXT, Kind, check, one_of

# In the order in which the official loaders look.
WRAPPERS = ("model", "module", "state_dict", "weights")
STORED_METADATA = "facts"  # key of the JSON that `save_clip` puts into a safetensors file
ACTIVATIONS = ("gelu", "quick_gelu")
VARIANT = "variant"
OF_OPENAI = "input_resolution"  # in OpenAI's own state dicts, and in no others
MEAN, STD = "pixel_mean", "pixel_std"


def _three_numbers(text: object) -> tuple[float, ...]:
    """The numbers of red, green and blue from the text of their JSON; () from anything else."""
    try:
        numbers = parse_json(text, "", [NUMBER])
    except InputError:
        return ()
    return tuple(map(float, numbers)) if len(numbers) == 3 else ()


# What `save_clip` writes beside the tensors, with `dense_feature.entries`.
ENTRIES = {
    "activation?": one_of(*ACTIVATIONS),
    "resize_mode?": one_of("shortest", "squash"),
    f"{VARIANT}?": TEXT,
    f"{MEAN}?": Kind("the JSON of three numbers", lambda text: bool(_three_numbers(text))),
    f"{STD}?": Kind(
        "the JSON of three positive numbers", lambda text: min(_three_numbers(text), default=0) > 0
    ),
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file as they are there, with what the file says about itself.

    Attributes:
        tensors: name -> tensor, wrappers and ``module.`` prefixes removed.
        format: name of the format, for the report: "safetensors", "state dict".
        activation: "gelu" or "quick_gelu" where the file records it, else None.
        mean, std: RGB normalisation of pixels in [0, 1] where the file records it, else None.
        resize_mode: "squash" or "shortest" where the file records how images become squares, else None.
        dense: dense feature that the weights were distilled for, "token" where the file says nothing.
        variant: build of the model that the weights are of, where the file names one, else "".
        model: name of the model, of open_clip's or of an entry of BACKBONE_REGISTRY, where the file names one, else "".
        start: of an entry, the weights that it was built with before those of the file were loaded, else "".
    """

    path: Path
    tensors: dict[str, Tensor]
    format: str
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize_mode: str | None = None
    dense: DenseFeature = DenseFeature()
    variant: str = ""
    model: str = ""
    start: str = ""


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a .pt, .pth, .bin or .safetensors file; what is in it decides which, not its name.

    Raises:
        InputError: missing, unreadable, truncated, holding code, or without tensors; the file is named.
    """
    given, path = os.fspath(path), Path(path)
    if not path.is_file():
        raise no_checkpoint(given)
    require_readable(path)
    if is_safetensors(path):
        return _read_safetensors(path)
    with refusing(path, "PyTorch file"):
        content = read_torch(path)
        # In here as well: a file may give a dict attributes that hide its methods.
        checkpoint = Checkpoint(path, unwrap(content, path), "state dict")
        checkpoint = _with_metadata(checkpoint, content if isinstance(content, Mapping) else {})
    if checkpoint.activation is None and OF_OPENAI in checkpoint.tensors:
        return dataclasses.replace(checkpoint, activation="quick_gelu", dense=ANY)
    return checkpoint


def _with_metadata(checkpoint: Checkpoint, stored: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint with the activation, normalisation and dense feature that `save_clip` wrote beside its tensors."""
    check(dict(stored), ENTRIES, checkpoint.path, "fetch it again")
    return dataclasses.replace(
        checkpoint,
        activation=stored.get("activation"),
        resize_mode=stored.get("resize_mode"),
        mean=_three_numbers(stored[MEAN]) if MEAN in stored else None,
        std=_three_numbers(stored[STD]) if STD in stored else None,
        dense=stated_feature(stored, checkpoint.path),
        variant=stored.get(VARIANT, ""),
        model=str(stored.get("name", "")),
        start=str(stored.get("start", "")),
    )


def feature_of_weights(weights: str) -> DenseFeature:
    """The dense feature that weights say they were distilled for, `ANY` where they say nothing; reads no tensors.

    Args:
        weights: a name of the zoo or of shipped weights, or a path; of other files than safetensors nothing is read,
            and what is damaged says nothing here.
    """
    if weights in SHIPPED_TAGS:
        return ANY if weights in MINI_CLIPS else DenseFeature()
    if weights in zoo():
        return DenseFeature() if zoo()[weights].distilled else ANY
    path = Path(weights)
    if path.suffix == ".safetensors" and path.is_file():
        with contextlib.suppress(InputError):
            stored = _stored(path)
            return stated_feature(stored, path) if KIND_ENTRY in stored else ANY
    return ANY


def _stored(path: Path) -> dict[str, object]:
    """The entries that `save_clip` wrote into a safetensors file beside its tensors."""
    with refusing(path, "safetensors file"), open_safetensors(path) as file:
        stored: dict[str, object] = dict(file.metadata() or {})
    if STORED_METADATA in stored:  # two of the shipped files have the entries beside each other
        return parse_metadata(stored[STORED_METADATA], path)
    return stored


def _read_safetensors(path: Path) -> Checkpoint:
    import safetensors.torch

    stored = _stored(path)
    with refusing(path, "safetensors file"):
        tensors = safetensors.torch.load_file(path)
    return _with_metadata(Checkpoint(path, unwrap(tensors, path), "safetensors"), stored)


def parse_metadata(text: object, path: Path) -> dict[str, object]:
    """The object whose JSON a file has as its metadata.

    Raises:
        InputError: it is no JSON of an object.
    """
    return parse_json(text, f"the metadata of {path}", OBJECT)


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside `content`: wrapper entries opened, ``module.`` prefixes dropped.

    Raises:
        InputError: it is none, or without tensors.
        OutOfBounds: a tensor has more elements than its storage.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            if not isinstance(name, str):
                raise InputError(f"{path}: the name of a tensor is {shown(name)}, not text")
            check_tensor(name, value)
            tensors[name] = value.detach()
    if not tensors:
        raise InputError(f"{path} holds no tensors; is it a checkpoint?")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


LONGEST = 200
"""Characters of a name that a message repeats."""


def fit(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    origin: str,
    *,
    remedy: str,
    sizes: str = "",
) -> dict[str, Tensor]:
    """The tensors that a module needs, out of a checkpoint's, in the order and of the types of the module's own.

    A single number may have any number of dimensions, and floating-point numbers any precision.

    Args:
        tensors: name -> tensor of the checkpoint.
        wanted: name -> tensor of the module, which may be on "meta"; the checkpoint has to have these and no others.
        origin: name of the tensors, which begins the message: "the file x.pth".
        remedy: the way out where a name is missing or unexpected, such as another file or key.
        sizes: the way out where a shape differs, such as the keys that give sizes; "" is `remedy`.

    Raises:
        InputError: missing, unexpected or misshapen tensors, integers in place of floating-point numbers, NaN or
            infinite numbers; names the first ones.
    """
    for what, names in (
        ("lacks {} {}", [name for name in wanted if name not in tensors]),
        ("has {} unexpected {}", [name for name in tensors if name not in wanted]),
    ):
        if names:
            counted = what.format(len(names), "tensor" if len(names) == 1 else "tensors")
            first = [n if len(n) <= LONGEST else f"{n[:LONGEST]}..." for n in names[:3]]
            more = ", ..." if len(names) > 3 else ""
            raise InputError(f"{origin} {counted}: {', '.join(first)}{more}; {remedy}")
    return {
        name: _fitted(name, tensors[name], target, origin, sizes or remedy)
        for name, target in wanted.items()
    }


def _fitted(name: str, tensor: Tensor, target: Tensor, origin: str, sizes: str) -> Tensor:
    """A tensor with the shape and the type of another, see `fit`."""
    if target.is_floating_point() and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        wrong = f"{name} as {kind}, not floating point: take the original, not quantised weights"
    elif tensor.shape != target.shape and not tensor.numel() == target.numel() == 1:
        shapes = f"{tuple(tensor.shape)}, the model needs {tuple(target.shape)}"
        wrong = f"{name} of shape {shapes}: {sizes}"
    elif not is_finite(fitted := tensor.reshape(target.shape).to(target.dtype)):
        remedy = "take weights from before training failed, or fetch them again"
        wrong = f"NaN or infinite numbers in {name}: {remedy}"
    else:
        return fitted
    raise InputError(f"{origin} has {wrong}")


def is_finite(tensor: Tensor) -> bool:
    """Returns False for a tensor that holds NaN or an infinite number.

    Of real numbers the smallest and the largest say so in a thirtieth of the time of a look at each.
    """
    ends = tensor.aminmax() if tensor.numel() and tensor.is_floating_point() else [tensor]
    return all(bool(end.isfinite().all()) for end in ends)


def nearly_equal(tensor: Tensor, other: Tensor) -> bool:
    """Compares two tensors up to the rounding of half precision; most are equal, which takes less to see."""
    return torch.equal(tensor, other) or torch.allclose(tensor, other, atol=2e-3, rtol=2e-3)
