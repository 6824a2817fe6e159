"""Arithmetic that autocast must not touch."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No autocast inside, on any device: "meta", on which operations are counted, has none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def autocast(
    device: torch.device, precision: torch.dtype | None
) -> contextlib.AbstractContextManager:
    """Mixed precision with `precision` as the lower one; None computes in the weights' own
    precision."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)
