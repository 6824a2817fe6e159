"""The precision of matrix products: autocast on and off, TF32, and layers that keep that of their weights."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turns autocast off inside the context, on any device.

    On devices without autocast, such as "meta" (where operations are counted), it does nothing.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _tf32() -> tuple[str, bool | str]:
    """Name and value of torch's setting; it refuses the older name, which compilers read, once the newer is used."""
    try:
        return "allow_tf32", torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return "fp32_precision", torch.backends.cuda.matmul.fp32_precision


class SharedSetting:
    """A setting of torch's that all threads share, with values inside of contexts that may overlap in any order.

    The newest context that is still open decides; the last one to close restores what was there before the first.
    """

    def __init__(self, owner: object) -> None:
        """
        Args:
            owner: has the setting as an attribute.
        """
        self._owner = owner
        self._lock = threading.Lock()
        self._before: tuple[str, Any] = ("", None)
        self._open: dict[object, tuple[str, Any]] = {}

    @contextlib.contextmanager
    def set_to(self, name: str, value: Any) -> Iterator[None]:
        """Sets the value inside the context, under the attribute's name."""
        own = object()
        with self._lock:
            if not self._open:
                self._before = name, getattr(self._owner, name)
            self._open[own] = name, value
            setattr(self._owner, name, value)
        try:
            yield
        finally:
            with self._lock:
                del self._open[own]
                setattr(self._owner, *next(reversed(self._open.values()), self._before))


_TF32 = SharedSetting(torch.backends.cuda.matmul)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows a GPU to round the factors of matrix products to TF32, or forbids it; no effect on the CPU."""
    name, _ = _tf32()
    wanted = allowed if name == "allow_tf32" else "tf32" if allowed else "ieee"
    with _TF32.set_to(name, wanted):
        yield


def lower_precision(device: torch.device) -> tuple[torch.dtype | None, bool | str]:
    """The present precision of products: autocast's type, None where it is off, and torch's TF32 setting."""
    kind = device.type
    rounded = kind == "cuda" and _tf32()[1]
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None, rounded
    return torch.get_autocast_dtype(kind), rounded


def in_own_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Output of a layer in the precision of its weights, autocast or not; with gradients in the run's precision.

    It is for values for which the 8 bits of bfloat16 are too coarse in evaluation: the sum of all blocks, scores, whose
    differences decide, and coordinates.
    """
    if torch.is_grad_enabled():
        return layer(x)
    with full_precision(x.device):
        return layer(x.to(next(layer.parameters()).dtype))


def autocast(
    device: torch.device, precision: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """Turns mixed precision on inside the context.

    Args:
        device: device of the computation.
        precision: lower precision, torch.float16 or torch.bfloat16; None computes in the precision of
            the weights.
    """
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)
