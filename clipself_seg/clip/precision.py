"""Context managers of mixed precision: one that turns it on, one that keeps arithmetic out of it."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turns autocast off inside the context, on any device.

    On devices without autocast, such as "meta" (where operations are counted), it does nothing.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The lower precision that autocast computes in at the moment, None where it is off or does not exist."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast(
    device: torch.device, precision: torch.dtype | None
) -> contextlib.AbstractContextManager:
    """Turns mixed precision on inside the context.

    Args:
        device: device of the computation.
        precision: lower precision, torch.float16 or torch.bfloat16; None computes in the precision of
            the weights.
    """
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)
