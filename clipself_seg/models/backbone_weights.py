"""Weights of a Detectron2 backbone that a classifier or a detector was trained with."""

from __future__ import annotations

import os
import re

from torch import nn

from clipself_seg.checkpoints.locate import locate
from clipself_seg.checkpoints.pickles import read_numpy_pickle
from clipself_seg.checkpoints.read import name_problem, read_checkpoint
from clipself_seg.errors import InputError, last_line

# A Swin for classification has no norms between its stages; they start as what changes nothing.
OUTPUT_NORM = re.compile(r"norm\d\.(weight|bias)")


def load_backbone(backbone: nn.Module, path: str | os.PathLike[str], key: str) -> None:
    """Loads tensors of a classifier or a detector; those that the backbone does not have are left out.

    Args:
        backbone: module under Detectron2's names.
        path: a .pth, .safetensors or .pkl file, or a name of the zoo.
        key: configuration key that names the file, for messages.

    Raises:
        InputError: the file lacks tensors of the backbone, or they have other shapes.
    """
    path = locate(path)
    origin = f"{key} {path}"
    tensors = read_numpy_pickle(path) if path.suffix == ".pkl" else read_checkpoint(path).tensors
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    try:
        names = backbone.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # of torch, several lines long
        raise InputError(
            f"{origin} does not fit {type(backbone).__name__}: {last_line(error)}"
        ) from None
    missing = [missed for missed in names.missing_keys if not OUTPUT_NORM.fullmatch(missed)]
    if problem := name_problem(missing, ()):
        raise InputError(f"{origin} {problem.what} of {type(backbone).__name__} ({problem.names})")
