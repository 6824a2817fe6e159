"""Tensors of a device: how many at once, copied or made without waiting, and modules without values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Nested = float | Sequence["Nested"]

QUEUES = not torch.backends.mps.is_available()
"""Whether a copy to a device may wait in its queue; mps may read the memory when it has other numbers already."""

CHUNK_ELEMENTS = 2**28  # that a chunk makes on a GPU, 1 GiB in float32


def widest(device: torch.device) -> torch.dtype:
    """Type of the most exact numbers of a device: float64, but for mps, which has none wider than float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_cpu(tensor: Tensor) -> bool:
    """True if a CPU computes with the tensor, where values may decide what is worth computing.

    It is False while a graph is traced, whose sizes must not depend on values.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def chunk_size(device: torch.device, in_cache: int, elements_per_item: int) -> int:
    """Number of equal items that are processed together, at least 1.

    A CPU gains from small chunks, whose elements it need not fetch from memory again. A GPU does not: it waits for
    Python between small operations, and gets as many items as memory allows. Nothing but the device decides.

    Args:
        device: that computes.
        in_cache: items whose elements stay in a CPU's cache.
        elements_per_item: elements that are in memory for one item, all that is made of it included.
    """
    if device.type == "cpu":
        return max(1, in_cache)
    return max(1, CHUNK_ELEMENTS // max(1, elements_per_item))


def on_device(
    samples: Sequence[Mapping[str, Tensor]], key: str, device: torch.device
) -> list[Tensor]:
    """The tensors under `key` of all samples, on a device, without waiting for the copies.

    Each is copied by itself: memory of a loader is pinned for a GPU (`data.loader.batches_of`), and what is stacked of
    it on the CPU would not be.
    """
    return [sample[key].to(device, non_blocking=QUEUES) for sample in samples]


def send(made: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor that was just made on the CPU to a device, without waiting for a GPU: from pinned memory."""
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=QUEUES)


def constant(values: Nested, like: Tensor) -> Tensor:
    """A tensor of the type and on the device of another, equal to ``like.new_tensor(values)``.

    `Tensor.new_tensor` waits until all that the GPU was given before is done; here the copy queues behind it.

    Args:
        values: numbers, nested as they shall lie; a few, for memory that is not pinned is copied twice.
        like: has the type and the device.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=QUEUES)


def normal_parameter(*size: int, std: float) -> nn.Parameter:
    """A parameter of normal numbers with mean 0."""
    return nn.Parameter(nn.init.normal_(torch.empty(size), std=std))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Makes modules whose tensors have shapes alone, on "meta": no memory is taken and no random number drawn."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves out `normal_`, which on "meta" runs in Python and imports a compiler: a second of every command."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
