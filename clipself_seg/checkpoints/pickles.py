"""Reads pickled weights without running code of the file: torch's files, and Detectron2's ``.pkl`` of NumPy arrays.

torch reads its own, tensors and plain data alone (``weights_only``), after `check_pickle` has looked at what the pickle
names and claims: some of what torch would make for it takes as much memory as a number in the file says.
"""

from __future__ import annotations

import collections
import io
import mmap
import os
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import ForeignName, OutOfBounds, check_archive, refusing
from clipself_seg.checkpoints.file_kinds import ARCHIVE
from clipself_seg.errors import InputError, shown
from clipself_seg.schema import ANYTHING, OBJECT, TEXT, Each, check

# How files begin that `torch.save` wrote before version 1.6: with a pickled number.
OLD_FILE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What numbers and arrays are rebuilt with, by NumPy 1 and NumPy 2; without numbers their bytes are `bytes()`.
OF_NUMPY = {
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "builtins.bytes",
}
# What a pickle of weights may name, beside types and storages. torch knows more, some of which makes as much room as a
# file says: tensors of a shape alone, bytes without content, tensors that are of another class or changed on the way.
NAMES = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.set",
    "builtins.complex",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    *OF_NUMPY,
}
STORAGE = re.compile(r"torch(\.cuda)?\.[A-Za-z0-9]+Storage")
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")


def read_torch(path: Path) -> object:
    """Content of a file that `torch.save` wrote.

    Raises:
        OutOfBounds: it claims more than it holds.
        ForeignName: it names anything but tensors, numbers and plain data.
        Exception: of any other kind, about damaged bytes.
    """
    with path.open("rb") as file:
        start = file.read(len(OLD_FILE))
    if start.startswith(ARCHIVE):
        return _read_archive(path)
    if start == OLD_FILE:
        return _read_old_file(path)
    raise ValueError("it begins otherwise than what torch.save writes")


def _read_archive(path: Path) -> object:
    """Content of an archive, whose tensors are the file, mapped into memory."""
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path)
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    # By torch's own reader: two readers need not agree on what is an archive's pickle.
    content = torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl")
    check_pickle(io.BytesIO(content), path.stat().st_size)
    return _load(path, mapped=True)


def _read_old_file(path: Path) -> object:
    """Content of a file of before version 1.6: pickles, and the bytes of storages behind them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        for _ in range(5):  # a number, the version, the machine, the content, the keys of storages
            check_pickle(cast(IO[bytes], bytes_), len(bytes_))
    return _load(path, mapped=False)


_LOCK = threading.Lock()  # what torch allows for a while it allows to all threads


class _Unread:
    """Stands for a NumPy number or array beside weights, which nothing here reads."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _load(path: Path, mapped: bool) -> object:
    names: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
    names = [(_Unread, name) for name in OF_NUMPY]
    # A path with this ending torch takes for a file of safetensors, whatever is in it, and only a path is mapped.
    mapped = mapped and path.suffix != ".safetensors"
    try:
        with _LOCK, torch.serialization.safe_globals(names), path.open("rb") as file:
            return torch.load(
                path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except pickle.UnpicklingError as error:  # of torch, several lines with advice
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        raise pickle.UnpicklingError(reason) from None


def check_pickle(file: IO[bytes], size: int) -> None:
    """Checks what the next pickle of a file names, and how long it says that its tensors are.

    Args:
        file: stands behind the pickle afterwards.
        size: bytes of the whole file of weights.

    Raises:
        ForeignName: it names something else than `NAMES`, types and storages.
        OutOfBounds: a storage or a side of a tensor is longer than the file.
        ValueError: the bytes are no pickle.
    """
    largest, of_tensor = 0, False
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            _check_name(str(argument).replace(" ", ".", 1))
        elif opcode.name == "PROTO" and argument != 2:
            raise OutOfBounds(
                f"it is pickled by protocol {argument}, and torch.save's own is 2, which torch reads"
            )
        elif opcode.name in INTEGERS:
            largest = max(largest, cast(int, argument))
        elif opcode.name == "BINPERSID":
            of_tensor = True  # a storage: from here to the call, integers are of its tensor
        elif opcode.name == "REDUCE" or opcode.name == "MARK" and not of_tensor:
            largest, of_tensor = 0, False
        if of_tensor and largest > size:
            raise OutOfBounds(
                f"a tensor claims {shown(largest)} numbers, and the file has {size} bytes"
            )


def _check_name(name: str) -> None:
    name = re.sub(r"^__builtin__\.", "builtins.", name)  # as protocol 2 has it from Python 2
    module, _, last = name.rpartition(".")
    is_type = module == "torch" and isinstance(getattr(torch, last, None), torch.dtype)
    if not (name in NAMES or is_type or STORAGE.fullmatch(name)):
        raise ForeignName(name)


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
        with path.open("rb") as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        ) as bytes_:
            content = _ArrayUnpickler(bytes_, encoding="latin1").load()
        if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
            content = content["model"]
        check(content, OBJECT, path, "give arrays by their names")
        arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray | np.generic)}
        check(arrays, Each(TEXT, ANYTHING), path, "give arrays by their names")
        # Several may be of the same bytes, which each tensor has for itself.
        if (whole := sum(array.nbytes for array in arrays.values())) > path.stat().st_size:
            raise OutOfBounds(f"its arrays claim {whole} bytes, more than the file has")
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    if not tensors:
        raise InputError(f"{path} holds no arrays; is it a checkpoint?")
    return tensors


def _dtype(code: str, *_: object) -> np.dtype:
    if not NUMBERS.fullmatch(code):
        raise pickle.UnpicklingError(f"an array of {code[:20]}, not of numbers")
    return np.dtype(code)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    (number,) = np.frombuffer(content, dtype)
    return number


def _from_buffer(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


# What stands for the names in a pickle of arrays: no call of it makes more than the file holds.
ARRAY_NAMES: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # how protocol 2 writes bytes
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,  # only ever named to `_reconstruct`
}
for _core in ("numpy.core", "numpy._core"):
    ARRAY_NAMES |= {
        f"{_core}.multiarray._reconstruct": lambda *_: np.empty(0),  # its state is the array
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": _from_buffer,
    }


class _ArrayUnpickler(pickle._Unpickler):
    """Knows arrays and scalars of numbers beside plain data.

    It is Python's own unpickler in Python, whose memo is a dict: in that of C, nine bytes make an array of gigabytes.
    """

    # What typeshed does not know of.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a name."""
        if (full := f"{module}.{name}") not in ARRAY_NAMES:
            raise ForeignName(full)
        return ARRAY_NAMES[full]

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(built := self.stack[-1], np.ndarray):
            built.__setstate__(state)
        elif isinstance(built, np.dtype) and state[1] == ">":
            raise pickle.UnpicklingError("its numbers are big-endian")
        elif not isinstance(built, np.dtype | collections.OrderedDict):  # theirs is no data
            raise pickle.UnpicklingError(f"{type(built).__name__} has no state")

    def _bytearray(self) -> None:  # Python's own makes room before it reads
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch = {
        **cast(Any, pickle)._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
    }
