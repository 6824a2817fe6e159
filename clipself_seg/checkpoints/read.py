"""Reading a checkpoint file of any supported format without executing anything that is in it."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clipself_seg.errors import InputError, in_short

WRAPPERS = ("model", "module", "state_dict")  # in the order in which the official loaders look
STORED_METADATA = "facts"  # key of the JSON that `save_clip` puts into a safetensors file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file as they are there, with what the file says about itself.

    Attributes:
        tensors: name -> tensor, wrappers and ``module.`` prefixes removed.
        format: name of the format, for the report: "safetensors", "TorchScript archive", "state dict".
        activation: "gelu" or "quick_gelu" where the file records it, else None.
        mean, std: RGB normalisation of pixels in [0, 1] where the file records it, else None.
    """

    path: Path
    tensors: dict[str, Tensor]
    format: str
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a .pt, .pth, .bin or .safetensors file; what is in it decides which, not its name.

    Raises:
        InputError: missing, unreadable, truncated, holding code, or without tensors; the file is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the path of a .pt or .safetensors file")
    if _is_safetensors(path):
        return _read_safetensors(path)
    if _is_torchscript(path):
        tensors = read_torchscript(path)
        return Checkpoint(path, tensors, "TorchScript archive", "quick_gelu")
    content = safe_torch_load(path)
    tensors = unwrap(content, path)
    metadata = _metadata(content if isinstance(content, Mapping) else {}, path)
    if metadata["activation"] is None and "input_resolution" in tensors:
        metadata["activation"] = "quick_gelu"  # only OpenAI's own state dicts carry this entry
    return Checkpoint(path, tensors, "state dict", **metadata)


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
    """Activation and normalisation, which `save_clip` wrote beside the tensors."""
    metadata: dict[str, Any] = {"activation": stored.get("activation")}
    for name in ("mean", "std"):
        if (text := stored.get(f"pixel_{name}")) is None:
            continue
        try:
            red, green, blue = json.loads(text)
            metadata[name] = float(red), float(green), float(blue)
        except (TypeError, ValueError):
            raise InputError(
                f"{path}: pixel_{name} is {text!r}, not three numbers; fetch it again"
            ) from None
    return metadata


def _read_safetensors(path: Path) -> Checkpoint:
    import safetensors
    import safetensors.torch

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
        if STORED_METADATA in stored:  # files of older versions have the entries beside each other
            stored = dict(json.loads(stored[STORED_METADATA]))
        tensors = safetensors.torch.load_file(path)
    except Exception as error:  # as in `safe_torch_load`
        raise InputError(
            f"{path} is truncated or no safetensors file ({in_short(error)}); fetch it again"
        ) from None
    return Checkpoint(path, unwrap(tensors, path), "safetensors", **_metadata(stored, path))


def safe_torch_load(path: str | os.PathLike[str]) -> Any:
    """`torch.load` of plain data only, on the CPU.

    Raises:
        InputError: the file is damaged, or unpickling it would run code.
    """
    try:
        with open(path, "rb") as file:  # given a path, torch goes by its suffix
            _check_sums(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL" in str(error) else ""
        named = f" (it names {reason})" if reason else ""
        raise InputError(
            f"{path} is refused: it is damaged or holds Python objects that would run code when "
            f"loaded{named}; use a file that holds tensors only"
        ) from None
    except Exception as error:  # about damaged bytes torch, zipfile and pickle raise all there is
        raise InputError(
            f"{path} is truncated or no PyTorch file ({in_short(error)}); fetch it again"
        ) from None


def _check_sums(file: BinaryIO) -> None:
    """Compare the bytes of a zip archive with its checksums, which torch does not look at."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    file.seek(0)


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside `content`: wrapper entries opened, ``module.`` prefixes dropped."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; is it a checkpoint?")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _is_torchscript(path: Path) -> bool:
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:  # as in `safe_torch_load`
        raise InputError(
            f"{path} is a damaged archive ({in_short(error)}); fetch it again"
        ) from None


class _ScriptObject:
    """Stands for any module class of the archive; its attributes are read, its code is not."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles data.pkl of a TorchScript archive with a closed list of names, none of which runs code."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _ScriptObject
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle":
            return _first_argument
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, saved_id: Any) -> Tensor:
        _, dtype, key, _, count = saved_id
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0)
            )
        return self._storages[key]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _first_argument(value: Any, *_: Any) -> Any:
    return value


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive (OpenAI's published form), read as data.

    `torch.jit.load` would hand the archive's code to an interpreter; here only its pickle of
    attributes is walked, with a closed list of names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            module = _TensorUnpickler(archive, data.rsplit("/", 1)[0]).load()
        return dict(_walk(module, ""))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is damaged or names {error}, which could run code"
        ) from None
    except Exception as error:  # as in `safe_torch_load`
        raise InputError(
            f"{path} is a truncated or foreign TorchScript archive ({in_short(error)}); "
            "fetch it again"
        ) from None


def _walk(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    tensors: list[tuple[str, Tensor]] = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors.append((prefix + name, value))
        elif isinstance(value, _ScriptObject):
            tensors += _walk(value, f"{prefix}{name}.")
    return tensors
