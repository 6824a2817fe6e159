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
