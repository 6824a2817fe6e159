"""Unpickles weights without running code of the file, and within memory bounded by the size of the file.

In this order: `PlainUnpickler` of dicts, lists, strings and numbers; torch's archives and old files (`read_archive`,
`read_pickles`, `script_tensors`); Detectron2's ``.pkl``, a pickle of numpy arrays (`read_numpy_pickle`).
"""

from __future__ import annotations

import abc
import collections
import io
import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import (
    MOST_STEPS,
    MOST_TENSORS,
    ForeignName,
    OutOfBounds,
    check_archive,
    check_bytes,
    check_view,
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


# How the pickles of old versions begin.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
CHUNK = 1 << 20
STORAGES = {
    "UntypedStorage": torch.uint8,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}


class Unusable(NamedTuple):
    """Stands for a tensor that no model here takes; it is refused where it is one of the weights."""

    reason: str


class Storage(NamedTuple):
    """A part of an untyped storage.

    Attributes:
        memory: of the whole storage.
        dtype: of its elements.
        start: of the part, in elements.
        number: number of elements of the part.
    """

    memory: torch.UntypedStorage
    dtype: torch.dtype
    start: int
    number: int


class ScriptObject:
    """Stands for any module class of a TorchScript archive; its attributes are read, its code is not."""

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)


def read_archive(path: Path) -> object:
    """Content of an archive of `torch.save` or `torch.jit.save`, the latter's modules as `ScriptObject`.

    Raises:
        InputError: it is one of numpy's.
        OutOfBounds: it claims more than it holds.
        pickle.UnpicklingError: it names what could run code.
        Exception: of any other kind, about damaged bytes.
    """
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path)
        names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            raise InputError(
                f"{path} has numpy's arrays (.npz), one tower of TIPSv2 for example, under names that are not read "
                "here: give a file of torch or safetensors; TIPSv2's authors publish both towers as such, by the names "
                "tipsv2-b14, tipsv2-l14, tipsv2-so400m14 and tipsv2-g14"
            )
        if not (data := next((n for n in names if n.endswith("/data.pkl")), None)):
            raise pickle.UnpicklingError("no archive of torch")
        root = data.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        return _ArchiveUnpickler(archive, root, archive.read(data)).load()


def read_pickles(path: Path) -> object:
    """Content of a file that `torch.save` wrote before version 1.6: pickles, and storages behind them.

    Raises:
        as `read_archive`.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:2] == b"PK":
            raise EOFError("the end of the archive is missing")
        stream = Stream(content)
        if PlainUnpickler(stream).load() != MAGIC or PlainUnpickler(stream).load() != PROTOCOL:
            raise pickle.UnpicklingError("no file of torch")
        if not PlainUnpickler(stream).load()["little_endian"]:
            raise ValueError("its numbers are big-endian")
        unpickler = _PicklesUnpickler(stream)
        result = unpickler.load()
        unpickler.fill_storages(PlainUnpickler(stream).load())
        return result


def script_tensors(module: ScriptObject) -> dict[str, Tensor]:
    """Tensors of a TorchScript module and the modules inside it, by dotted names.

    Raises:
        OutOfBounds: there are too many.
    """
    tensors: dict[str, Tensor] = {}
    for number, (name, value) in enumerate(_attributes(module, "")):
        if number >= 10 * MOST_TENSORS:
            raise OutOfBounds("its modules hold one another again and again")
        if isinstance(value, Tensor):
            tensors[name] = value
    return tensors


def _attributes(module: ScriptObject, prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        yield prefix + name, value
        if isinstance(value, ScriptObject):
            yield from _attributes(value, f"{prefix}{name}.")


class _TorchUnpickler(PlainUnpickler, abc.ABC):
    """Knows storages and tensors; a subclass knows where the storages are."""

    BUILT = (ScriptObject,)

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._memory: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("__torch__"):
            return ScriptObject
        if module == "torch.jit._pickle":
            return _first_argument
        return super().find_class(module, name)

    def _storage(self, key: object, dtype: object, count: object) -> Storage:
        """A storage of the file, whose memory is made where it is named first."""
        if type(key) is not str or not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise pickle.UnpicklingError("a storage without key, type and size")
        size = count * dtype.itemsize
        if key not in self._memory:
            self._memory[key] = self._read(key, size)
        check_bytes(size, self._memory[key].nbytes())
        return Storage(self._memory[key], dtype, 0, count)

    @abc.abstractmethod
    def _read(self, key: str, size: int) -> torch.UntypedStorage:
        """The storage of a name, of so many bytes."""


class _ArchiveUnpickler(_TorchUnpickler):
    """Unpickles data.pkl of an archive, whose storages are files beside it."""

    def __init__(self, archive: zipfile.ZipFile, root: str, content: bytes) -> None:
        super().__init__(Stream(content))
        self._archive = archive
        self._root = root

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a name."""
        _, dtype, key, _, count = pid
        return self._storage(key, dtype, count)

    def _read(self, key: str, size: int) -> torch.UntypedStorage:
        entry = self._archive.getinfo(f"{self._root}data/{key}")
        check_bytes(size, entry.file_size)
        memory, bytes_ = _empty(entry.file_size)
        with self._archive.open(entry) as file:
            try:
                for place in range(0, len(bytes_), CHUNK):
                    piece = bytes_[place : place + CHUNK]
                    if cast(io.BufferedIOBase, file).readinto(piece) != len(piece):
                        raise EOFError(f"{entry.filename} is cut off")
                file.read(1)  # behind the end, where the checksum is compared
            except zipfile.BadZipFile:
                raise zipfile.BadZipFile(
                    f"the checksum of {entry.filename} does not match"
                ) from None
        return memory


class _PicklesUnpickler(_TorchUnpickler):
    """Unpickles the tensors of an old file, whose storages are filled afterwards."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._stream = stream
        self._bytes: dict[str, memoryview] = {}
        self._itemsize: dict[str, int] = {}
        self._left = len(stream.content)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a name, or the part of it that is a storage in the file."""
        _, dtype, key, _, count, part = pid
        storage = self._storage(key, dtype, count)
        self._itemsize.setdefault(key, dtype.itemsize)
        if part is None:
            return storage
        _, start, count = part
        check_view((count,), (1,), start, storage.number)
        return storage._replace(start=start, number=count)

    def _read(self, key: str, size: int) -> torch.UntypedStorage:
        check_bytes(size, self._left)
        self._left -= size
        memory, self._bytes[key] = _empty(size)
        return memory

    def fill_storages(self, keys: object) -> None:
        """Read the storages, which stand behind one another in the order of the keys.

        Raises:
            ValueError: others than the tensors need, or of other sizes.
        """
        if type(keys) is not list or sorted(map(str, keys)) != sorted(self._bytes):
            raise ValueError("it lacks storages of its tensors")
        for key in keys:
            count = int.from_bytes(self._stream.read(8), "little")
            if count * self._itemsize[key] != len(self._bytes[key]):
                raise ValueError(f"the storage {key} has another size than its tensors")
            self._bytes[key][:] = self._stream.read(len(self._bytes[key]))


def _empty(size: int) -> tuple[torch.UntypedStorage, memoryview]:
    """New memory of so many bytes, and its bytes."""
    tensor = torch.empty(size, dtype=torch.uint8, device="cpu")
    return tensor.untyped_storage(), tensor.numpy().data


def _rebuild(
    storage: Storage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> Tensor:
    """What torch calls _rebuild_tensor, and _v2."""
    if metadata:
        raise ValueError("a tensor is to be conjugated or negated where it is read")
    check_view(size, stride, offset, storage.number)
    tensor = torch.empty(0, dtype=storage.dtype, device="cpu")
    return tensor.set_(storage.memory, storage.start + offset, tuple(size), tuple(stride))


def _rebuild_v3(
    storage: Storage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: object,
    hooks: object,
    dtype: torch.dtype,
    metadata: object = None,
) -> Tensor:
    """A tensor that gives its type to a storage of bytes."""
    whole = Storage(storage.memory, dtype, 0, storage.memory.nbytes() // dtype.itemsize)
    return _rebuild(whole, offset, size, stride, requires_grad, hooks, metadata)


def _rebuild_from_type(
    rebuild: Callable[..., object], _: object, arguments: Iterable[object], *__: object
) -> object:
    """A tensor with attributes of its own, which nothing here reads."""
    return rebuild(*arguments)


def _first_argument(value: object = None, *_: object) -> object:
    return value


def _unusable(reason: str) -> Callable[..., Unusable]:
    return lambda *_: Unusable(reason)


_SPARSE = _unusable("is sparse")
_NESTED = _unusable("is a nested tensor")
_QUANTISED = _unusable("is quantised")
_VALUELESS = _unusable("has no values")
_FOREIGN = _unusable("is of a class of its own")
_KNOWN: dict[tuple[str, str], Callable[..., object] | None] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _first_argument,
    ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch._utils", "_rebuild_sparse_tensor"): _SPARSE,
    ("torch._utils", "_rebuild_nested_tensor"): _NESTED,
    ("torch._utils", "_rebuild_qtensor"): _QUANTISED,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _VALUELESS,
    ("torch._utils", "_rebuild_wrapper_subclass"): _FOREIGN,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _FOREIGN,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _FOREIGN,
    # Plain data beside tensors: what they were made from is enough.
    ("torch", "Size"): _first_argument,
    ("torch", "device"): _first_argument,
    ("torch.serialization", "_get_layout"): _first_argument,
    ("collections", "Counter"): _first_argument,
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch", "per_tensor_affine"): None,
    ("torch", "per_tensor_symmetric"): None,
    ("torch", "per_channel_affine"): None,
    ("torch", "per_channel_symmetric"): None,
    ("torch", "per_channel_affine_float_qparams"): None,
}
for _builtins in ("builtins", "__builtin__"):
    _KNOWN |= {(_builtins, name): _first_argument for name in ("set", "bytearray", "complex")}


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
        with path.open("rb") as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        ) as bytes_:
            content = _ArrayUnpickler(Stream(bytes_)).load()
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


class _Number:
    """The type of an array's numbers."""

    def __init__(self, code: str, *_: object) -> None:
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

    def fill(
        self, content: str | bytes, number: _Number, shape: Sequence[int], order: Any
    ) -> _Array:
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
