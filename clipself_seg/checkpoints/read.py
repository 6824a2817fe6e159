"""Reading a checkpoint file of any supported format without executing anything that is in it."""

from __future__ import annotations

import abc
import dataclasses
import io
import json
import math
import mmap
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import (
    MOST_TENSORS,
    OutOfBounds,
    check_archive,
    check_bytes,
    check_view,
    open_safetensors,
    refusing,
)
from clipself_seg.checkpoints.dense_feature import DenseFeature, stated_feature
from clipself_seg.checkpoints.locate import HUB
from clipself_seg.checkpoints.pickles import PlainUnpickler, Stream
from clipself_seg.checkpoints.zoo import suggestion
from clipself_seg.errors import InputError, shown

LONGEST = 200
"""Characters of a name that a message repeats."""


class NameProblem(NamedTuple):
    """What is wrong with the names of a checkpoint: "lacks 2 tensors", and the first of them."""

    what: str
    names: str


def name_problem(wanted: Iterable[str], given: Iterable[str]) -> NameProblem | None:
    """First difference between a checkpoint's names and a model's; None if there is none.

    Args:
        wanted: names of the model's tensors.
        given: names of the checkpoint's tensors.
    """
    needed, there = dict.fromkeys(wanted), dict.fromkeys(given)
    for verb, kind, names in (
        ("lacks", "", [name for name in needed if name not in there]),
        ("has", "unexpected ", [name for name in there if name not in needed]),
    ):
        if names:
            first = [n if len(n) <= LONGEST else f"{n[:LONGEST]}..." for n in names[:3]]
            shown = ", ".join(first) + (", ..." if len(names) > 3 else "")
            noun = "tensor" if len(names) == 1 else "tensors"
            return NameProblem(f"{verb} {len(names)} {kind}{noun}", shown)
    return None


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

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def read_archive(path: Path) -> Any:
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


def read_pickles(path: Path) -> Any:
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


def _attributes(module: ScriptObject, prefix: str) -> Iterator[tuple[str, Any]]:
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

    def _storage(self, key: Any, dtype: Any, count: Any) -> Storage:
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

    def fill_storages(self, keys: Any) -> None:
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
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """What torch calls _rebuild_tensor, and _v2."""
    return _view(storage, offset, size, stride, metadata)


def _rebuild_v3(
    storage: Storage,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    """A tensor that gives its type to a storage of bytes."""
    whole = Storage(storage.memory, dtype, 0, storage.memory.nbytes() // dtype.itemsize)
    return _view(whole, offset, size, stride, metadata)


def _view(storage: Storage, offset: int, size: Any, stride: Any, metadata: Any) -> Tensor:
    if metadata:
        raise ValueError("a tensor is to be conjugated or negated where it is read")
    check_view(size, stride, offset, storage.number)
    tensor = torch.empty(0, dtype=storage.dtype, device="cpu")
    place = storage.start + offset
    return tensor.set_(storage.memory, place, tuple(size), tuple(stride))


def _rebuild_from_type(rebuild: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor with attributes of its own, which nothing here reads."""
    return rebuild(*arguments)


def _first_argument(value: Any = None, *_: Any) -> Any:
    return value


def _unusable(reason: str) -> Any:
    return lambda *_: Unusable(reason)


_SPARSE = _unusable("is sparse")
_NESTED = _unusable("is a nested tensor")
_QUANTISED = _unusable("is quantised")
_VALUELESS = _unusable("has no values")
_FOREIGN = _unusable("is of a class of its own")
_KNOWN = {
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


WRAPPERS = ("model", "module", "state_dict")  # in the order in which the official loaders look
STORED_METADATA = "facts"  # key of the JSON that `save_clip` puts into a safetensors file
ACTIVATIONS = ("gelu", "quick_gelu")
VARIANT = "variant"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file as they are there, with what the file says about itself.

    Attributes:
        tensors: name -> tensor, wrappers and ``module.`` prefixes removed.
        format: name of the format, for the report: "safetensors", "TorchScript archive", "state dict".
        activation: "gelu" or "quick_gelu" where the file records it, else None.
        mean, std: RGB normalisation of pixels in [0, 1] where the file records it, else None.
        dense: dense feature that the weights were distilled for, "token" where the file says nothing.
        variant: build of the model that the weights are of, where the file names one, else "".
    """

    path: Path
    tensors: dict[str, Tensor]
    format: str
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dense: DenseFeature = DenseFeature()
    variant: str = ""


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a .pt, .pth, .bin or .safetensors file; what is in it decides which, not its name.

    Raises:
        InputError: missing, unreadable, truncated, holding code, or without tensors; the file is named.
    """
    given, path = os.fspath(path), Path(path)
    if not path.is_file():
        raise no_checkpoint(given)
    if _is_safetensors(path):
        return _read_safetensors(path)
    with refusing(path, "PyTorch file"):
        content = read_archive(path) if zipfile.is_zipfile(path) else read_pickles(path)
        if isinstance(content, ScriptObject):
            tensors = script_tensors(content)
            return Checkpoint(path, tensors, "TorchScript archive", "quick_gelu")
    tensors = unwrap(content, path)
    metadata = _metadata(content if isinstance(content, Mapping) else {}, path)
    if metadata["activation"] is None and "input_resolution" in tensors:
        metadata["activation"] = "quick_gelu"  # only OpenAI's own state dicts carry this entry
    return Checkpoint(path, tensors, "state dict", **metadata)


def no_checkpoint(given: str) -> InputError:
    """The error about a path where no checkpoint is, with the official one that may be meant."""
    remedy = f"give the path of a .pt or .safetensors file; {suggestion(given)}"
    if given.startswith(HUB):
        remedy = (
            "a name of the Hugging Face hub is fetched only where it is typed as weights: give it there, or "
            "download the file, and give its path"
        )
    return InputError(f"no checkpoint at {given}; {remedy}")


def _is_safetensors(path: Path) -> bool:
    """Whether a file is one, by its beginning; by its suffix if the beginning is of no known kind."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); make it readable, or give another"
        ) from None
    # The length of a JSON object, which safetensors limits to 100 MB, and the object. Its first byte
    # may be any: that of a pickle, too.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000:
        return True
    known = start.startswith((b"PK", b"\x80"))  # torch's archives, and the pickles of old versions
    return not known and path.suffix.lower() == ".safetensors"


def _metadata(stored: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Activation, normalisation and dense feature, which `save_clip` wrote beside the tensors."""
    activation = stored.get("activation")
    if not (activation is None or isinstance(activation, str) and activation in ACTIVATIONS):
        raise InputError(
            f"{path}: activation is {shown(activation)}, neither gelu nor quick_gelu; fetch it again"
        )
    metadata: dict[str, Any] = {"activation": activation, "dense": stated_feature(stored, path)}
    metadata["variant"] = stored.get(VARIANT, "")
    if not isinstance(metadata["variant"], str):
        raise InputError(
            f"{path}: variant is {shown(metadata['variant'])}, no name; fetch it again"
        )
    for name in ("mean", "std"):
        if (text := stored.get(f"pixel_{name}")) is None:
            continue
        try:
            red, green, blue = json.loads(text)
            metadata[name] = float(red), float(green), float(blue)
            usable = all(math.isfinite(number) for number in metadata[name])
        except (TypeError, ValueError, OverflowError, RecursionError):
            usable = False
        if not usable or (name == "std" and min(metadata[name]) <= 0):
            raise InputError(
                f"{path}: pixel_{name} is {shown(text)}, not three numbers; fetch it again"
            )
    return metadata


def _read_safetensors(path: Path) -> Checkpoint:
    import safetensors.torch

    with refusing(path, "safetensors file"):
        with open_safetensors(path) as file:
            stored = file.metadata() or {}
        if STORED_METADATA in stored:  # files of older versions have the entries beside each other
            stored = parse_metadata(stored[STORED_METADATA], path)
        tensors = safetensors.torch.load_file(path)
    return Checkpoint(path, unwrap(tensors, path), "safetensors", **_metadata(stored, path))


def parse_metadata(text: Any, path: Path) -> dict[str, Any]:
    """The object whose JSON a file has as its metadata.

    Raises:
        InputError: it is no JSON of an object.
    """
    try:
        metadata = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(
            f"{path}: its metadata is {shown(text)}, not the JSON of an object; fetch it again"
        )
    return metadata


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside `content`: wrapper entries opened, ``module.`` prefixes dropped.

    Raises:
        InputError: it is none, or a tensor of it is sparse, nested, quantised or has no values.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Unusable):
            raise InputError(
                f"{path}: {shown(name)} {value.reason}; save the weights as dense tensors of the CPU"
            )
        if isinstance(value, Tensor):
            if not isinstance(name, str):
                raise InputError(f"{path}: the name of a tensor is {shown(name)}, not text")
            tensors[name] = value
    if not tensors:
        raise InputError(f"{path} holds no tensors; is it a checkpoint?")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors
