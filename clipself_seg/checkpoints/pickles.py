"""Detectron2's ``.pkl`` weights: a pickle of numpy arrays, read without running what is in it."""

from __future__ import annotations

import mmap
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import (
    OutOfBounds,
    check_bytes,
    count_elements,
    refusing,
)
from clipself_seg.checkpoints.unpickler import PlainUnpickler, Stream
from clipself_seg.errors import InputError, shown

# What rebuilds an array, under the modules of numpy 1 and numpy 2.
MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
ARRAYS = ("numpy.core.numeric", "numpy._core.numeric")
# Codes of the types that numbers have; objects and records are refused.
NUMBERS = re.compile(r"[<>=|]?([?bBhHiIlLqQefdFD]|[biufc]\d{1,2})")


def read_numpy_pickle(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name -> tensor of a pickled dict of arrays, or of the one that is its "model".

    Raises:
        InputError: missing, damaged, without arrays, naming anything that could run code, or of arrays
            that are larger than the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}; give the path of a .pkl file")
    with refusing(path, "pickle of arrays"):
        content = _load(path)
        if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
            content = content["model"]
        if not isinstance(content, Mapping):
            raise InputError(f"{path} holds a {type(content).__name__}, not arrays by their names")
        arrays = {k: v.whole() for k, v in content.items() if isinstance(v, _Array)}
        if odd := [name for name in arrays if not isinstance(name, str)]:
            raise InputError(f"{path}: the name of an array is {shown(odd[0])}, not text")
        # Several may be of the same bytes, which each tensor has for itself.
        check_bytes(sum(array.nbytes for array in arrays.values()), path.stat().st_size)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    if not tensors:
        raise InputError(f"{path} holds no arrays; is it a checkpoint?")
    return tensors


def _load(path: Path) -> Any:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _ArrayUnpickler(Stream(content)).load()


class _Number:
    """The type of an array's numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if not NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code[:20]}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array of bytes that are there."""

    def __init__(self, latin1: Callable[[str | bytes], bytes]) -> None:
        self._latin1 = latin1
        self._array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, number, fortran, content = state
        self.fill(content, number, shape, "F" if fortran else "C")

    def fill(self, content: Any, number: _Number, shape: Any, order: Any) -> _Array:
        """Lay the bytes out as numbers."""
        if isinstance(content, str):  # of Python 2
            content = self._latin1(content)
        if (wanted := count_elements(shape) * number.dtype.itemsize) != len(content):
            raise OutOfBounds(f"an array of {wanted} bytes has {len(content)} of them")
        self._array = np.ndarray(tuple(shape), number.dtype, content, order=order)
        return self

    def whole(self) -> np.ndarray:
        """The array.

        Raises:
            OutOfBounds: no bytes were given for it.
        """
        if self._array is None:
            raise OutOfBounds("an array has no bytes")
        return self._array


class _ArrayUnpickler(PlainUnpickler):
    """Knows arrays and scalars of numbers beside plain data."""

    BUILT = (_Number, _Array)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Number
        if (module, name) == ("numpy", "ndarray"):
            return None  # only ever named to `_reconstruct`
        if module in MODULES and name == "_reconstruct":
            return lambda *_: _Array(self.latin1)
        if module in MODULES and name == "scalar":
            return lambda number, content: _Array(self.latin1).fill(content, number, (), "C")
        if module in ARRAYS and name == "_frombuffer":
            return lambda *arguments: _Array(self.latin1).fill(*arguments)
        return super().find_class(module, name)
