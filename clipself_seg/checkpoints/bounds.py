"""Limits on files of weights (sizes, numbers of tensors), checked before anything is allocated for their contents.

Memory grows with the size of a file, never with a number that stands in it: a tensor has at most as many
elements as its storage, a storage at most as many bytes as the file, and an archive stores what is in it as it is.
Published weights keep all of it, tied and sliced tensors, views and tensors without elements included. A tensor that
repeats its storage (`Tensor.expand`: stride 0) does not: whoever wrote it can store it whole.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import require_regular_file

if TYPE_CHECKING:
    from torch import Tensor, nn

# Published files have a few thousand tensors, a state of their training three times as many.
MOST_TENSORS = 20_000
# The longest of those headers have 1 MB.
MOST_HEADER_BYTES = 8 << 20
# A tower is built, and its parameters are replaced by those of the file; tables follow from sizes.
MOST_BUILT_TIMES = 4
MOST_BUILT_ANYWAY = 16 << 20
MOST_LAYERS_ANYWAY = 1000
ALONE = "save the weights alone, by torch.save(model.state_dict(), FILE) or as safetensors"


class OutOfBounds(ValueError):
    """A size in a file that does not fit the file; the message goes behind the file's name."""


class ForeignName(pickle.UnpicklingError):
    """A name in a pickle that is not on the list, and could be anything that runs."""


@contextmanager
def refusing(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a reader of a file raises into one sentence that names the file.

    Args:
        path: of the file.
        kind: expected kind of file, such as "PyTorch file".

    Raises:
        InputError: it is damaged, names code, or claims more than it holds.
    """
    try:
        yield
    except InputError:
        raise
    except OutOfBounds as error:
        reason = f"is refused: {error}; fetch it again, or save it anew"
    except ForeignName as error:
        reason = (
            f"is refused: it names {in_short(error)}, which is no dense tensor, number or plain data and could run "
            f"code when loaded; {ALONE}"
        )
    except pickle.UnpicklingError as error:
        reason = f"is refused: it is damaged or holds other things than weights ({in_short(error)}); {ALONE}"
    except Exception as error:  # about damaged bytes torch, zipfile and pickle raise all there is
        reason = f"is truncated or no {kind} ({in_short(error)}); fetch it again"
    else:
        return
    raise InputError(f"{path} {reason}")


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Checks that an archive stores each of its files once and as it is, as torch does.

    Raises:
        OutOfBounds: it does not, or the files are longer than the archive.
    """
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise OutOfBounds("it is packed otherwise than by torch.save, which compresses nothing")
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise OutOfBounds("two files in it have one name")
    unpacked = sum(entry.file_size for entry in entries)
    size = os.path.getsize(path)
    if unpacked > size:
        raise OutOfBounds(f"its {size} bytes claim to unpack to {unpacked}")


def check_tensor(name: str, tensor: Tensor) -> None:
    """Checks that a tensor has no more elements than its storage.

    Raises:
        OutOfBounds: it repeats them.
    """
    if (claimed := tensor.numel() * tensor.itemsize) > (there := tensor.untyped_storage().nbytes()):
        raise OutOfBounds(
            f"the tensor {shown(name)} of {claimed} bytes lies in a storage of {there}"
        )


@contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Opens a safetensors file whose header is that of a checkpoint, as `safetensors.safe_open` does.

    Safetensors itself checks that the tensors fill the file, and nothing twice.

    Raises:
        OutOfBounds: the header is too long or names too many tensors.
        InputError: no regular file.
        SafetensorError, OSError: it is damaged, or cannot be read.
    """
    from safetensors import safe_open

    require_regular_file(path)
    with open(path, "rb") as start:
        length = int.from_bytes(start.read(8), "little")
    if MOST_HEADER_BYTES < length < os.path.getsize(path):
        raise OutOfBounds(f"its header has {length} bytes, {MOST_HEADER_BYTES} at most are read")
    with safe_open(path, framework="pt") as file:
        if (count := len(file.keys())) > MOST_TENSORS:
            raise OutOfBounds(f"it holds {count} tensors, {MOST_TENSORS} at most are read")
        yield file


@contextmanager
def building_within(paths: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Lets this thread build modules of no more parameters and buffers than files of weights hold, a few times over.

    For sizes that somebody else wrote beside the weights: what is too large is refused while it is built.

    Args:
        paths: safetensors files.

    Raises:
        OutOfBounds: the modules are larger.
        InputError: a file is damaged.
    """
    import torch
    import torch.nn.modules.module as hooks
    from torch.overrides import TorchFunctionMode

    tensors = elements = 0
    for path in paths:
        with refusing(Path(path), "safetensors file"), open_safetensors(path) as file:
            for name in file.keys():
                tensors += 1
                elements += math.prod(file.get_slice(name).get_shape())
    most = max(MOST_BUILT_TIMES * elements, MOST_BUILT_ANYWAY)
    most_tensors = MOST_BUILT_TIMES * tensors + MOST_LAYERS_ANYWAY
    built = Counter[str]()
    own = threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None and threading.get_ident() == own:
            built["elements"] += tensor.numel()
            built["tensors"] += 1
            require(built["elements"] <= most and built["tensors"] <= most_tensors)

    def require(holds: bool) -> None:
        if not holds:
            raise OutOfBounds(
                f"its sizes ask for more than the {elements} numbers in {tensors} tensors that the weights hold"
            )

    names = ("empty", "zeros", "ones", "full", "rand", "randn", "arange")
    makers = [getattr(torch, name) for name in names]
    elsewhere = ("device", "generator", "out")

    class MetaFirst(TorchFunctionMode):
        """Makes each tensor on "meta" first, where it takes no memory."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in makers:
                sizes = {k: v for k, v in kwargs.items() if k not in elsewhere}
                require(func(*args, **sizes, device="meta").numel() <= most)
            return func(*args, **kwargs)

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        with MetaFirst():
            yield
    finally:
        for handle in handles:
            handle.remove()
