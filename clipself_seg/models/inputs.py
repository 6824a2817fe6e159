"""Copies the tensors of samples to a model's device, without waiting for the copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipself_seg.data.mappers.samples import Sample


def on_device(samples: Sequence[Sample], key: str, device: torch.device) -> list[Tensor]:
    """The tensors under `key` of all samples, on a device.

    Each is copied by itself: memory of a loader is pinned for a GPU (`data.loader.batches_of`), and what is stacked of
    it on the CPU would not be.
    """
    return [sample[key].to(device, non_blocking=True) for sample in samples]


def send(made: Tensor, device: torch.device) -> Tensor:
    """What Python has just made on the CPU, on a device; pinned first where a GPU would else be waited for."""
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)
