"""Detectron2's ``.pkl`` weights: a pickle of numpy arrays, read without running what is in it."""

from __future__ import annotations

import collections
import mmap
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import (
    MOST_STEPS,
    ForeignName,
    OutOfBounds,
    check_bytes,
    count_elements,
    refusing,
)
from clipself_seg.errors import InputError, shown

# What may be a key of a dict: hashing tuples of tuples can take forever.
KEYS = (str, bytes, int, float, type(None))


class Stream:
    """Reads the bytes of a pickle, and never gives more than there are.

    Attributes:
        place: of the next byte.
    """

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self.content = content
        self.place = 0
        self._steps = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            EOFError: there are fewer.
            OutOfBounds: this has been asked too often.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise OutOfBounds(f"it takes more than {MOST_STEPS} steps to unpickle")
        end = self.place + size
        if size < 0 or end > len(self.content):
            raise EOFError(f"{len(self.content) - self.place} bytes are left of {size}")
        piece = self.content[self.place : end]
        self.place = end
        return piece

    def readline(self) -> bytes:
        """The rest of the line."""
        end = self.content.find(b"\n", self.place)
        return self.read((end + 1 if end >= 0 else len(self.content) + 1) - self.place)


_PYTHONS: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)


class PlainUnpickler(pickle._Unpickler):
    """Unpickler of dicts, lists, strings and numbers; subclasses add names, each with a harmless stand-in for it.

    It is Python's own unpickler in Python, whose memo is a dict: in that of C, nine bytes make an
    array of gigabytes. Sets become lists, other mappings dicts.

    Attributes:
        BUILT: classes of a subclass whose ``__setstate__`` may be called.
    """

    BUILT: ClassVar[tuple[type, ...]] = ()
    # What typeshed does not know of.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, encoding="latin1")
        self._copied = 0
        self._most_copied = len(stream.content)

    def load(self) -> Any:
        """Unpickle the next object.

        Raises:
            pickle.UnpicklingError: the bytes are no pickle, or name what is not known.
            Exception: of any other kind, about damaged bytes.
        """
        try:
            return super().load()
        except (KeyError, IndexError) as error:
            raise pickle.UnpicklingError(f"no pickle: {error!r}") from None

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a name."""
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered
        if (module, name) == ("_codecs", "encode"):
            return self.latin1  # how protocol 2 writes bytes
        if module in ("builtins", "__builtin__") and name == "bytes":
            return lambda: b""  # and those that are none
        raise ForeignName(f"{module}.{name}")

    def latin1(self, text: str | bytes, encoding: str = "latin1") -> bytes:
        """Bytes that are written as text.

        Raises:
            OutOfBounds: the same text again and again.
        """
        if encoding != "latin1":
            raise ForeignName(f"the encoding {encoding}")
        if isinstance(text, bytes):
            return text
        self._charge(len(text))
        return text.encode("latin1")

    def _ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        self._charge(8 * len(pairs))
        self._check_keys([key for key, _ in pairs])
        return collections.OrderedDict(pairs)

    def _charge(self, size: int) -> None:
        """Whatever is copied, all copies together are no longer than the pickle."""
        self._copied += size
        if self._copied > self._most_copied:
            raise OutOfBounds("it copies its contents again and again")

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, KEYS) for key in keys):
            raise pickle.UnpicklingError("a key of a dict is neither text nor number")

    def _setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        _PYTHONS[pickle.SETITEM[0]](self)

    def _setitems(self) -> None:
        self._check_keys(self.stack[::2])
        _PYTHONS[pickle.SETITEMS[0]](self)

    def _dict(self) -> None:
        self._check_keys(self.stack[::2])
        _PYTHONS[pickle.DICT[0]](self)

    def _frame(self) -> None:
        self.read(8)  # what is in it is read as what is not

    def _bytearray(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))

    def _build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, self.BUILT):
            cast(Any, built).__setstate__(state)
        elif not isinstance(built, collections.OrderedDict):  # torch's has attributes, no data
            raise pickle.UnpicklingError(f"{type(built).__name__} has no state")

    dispatch = {
        **_PYTHONS,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_SET[0]: _PYTHONS[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: _PYTHONS[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: _PYTHONS[pickle.LIST[0]],
        pickle.FRAME[0]: _frame,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.BUILD[0]: _build,
    }


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
