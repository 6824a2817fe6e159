"""Checksums of weights: whether a bit of them changed since what was made of them was kept.

Of bit patterns: pointers and version counters miss what fused optimisers write, and what is written
to ``.data``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Weights whose checksum is made at once: what stays in a CPU's cache, what fills a GPU.
CHUNK = {"cpu": 2**16, "cuda": 2**20}


def checksums(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """One number a tensor; on a GPU they are waited for once."""
    return tuple(torch.stack([_checksum(tensor.detach()) for tensor in tensors]).tolist())


def _checksum(tensor: Tensor) -> Tensor:
    """An int64 scalar made of the bits of a tensor and, by a factor for each, of their places."""
    bits = tensor.flatten().view(_BITS[tensor.element_size()])
    factors = _factors(tensor.device)
    total = factors.new_zeros(())
    for part in bits.split(len(factors)):
        total = 31 * total + (factors[: len(part)] * part).sum()
    return total


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """The odd numbers, which lose no bit of what they multiply."""
    count = CHUNK.get(device.type, max(CHUNK.values()))
    return 2 * torch.arange(count, device=device) + 1


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits of names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
