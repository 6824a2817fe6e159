"""Uniform numbers of the cases pmt_*: each tensor from its name and shape alone, in place of what a model draws."""

import itertools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch


def uniform(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Float32 numbers in [0, 1)."""
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"uniform:{name}".encode())))
    return torch.from_numpy(generator.random(tuple(shape), dtype=np.float32))


def draw(
    monkeypatch: pytest.MonkeyPatch, name: str, numbers: Iterable[int] = ()
) -> dict[int, tuple[int, ...]]:
    """`torch.rand` draws `uniform` of "NAME:n", with the n of `numbers` or 0, 1, ...; what shapes it drew, by n."""
    shapes: dict[int, tuple[int, ...]] = {}
    left = iter(numbers or itertools.count())

    def rand(*size, device=None):
        shape = size if isinstance(size[0], int) else tuple(size[0])
        number = next(left)
        shapes[number] = shape
        return uniform(f"{name}:{number}", shape)

    monkeypatch.setattr(torch, "rand", rand)
    return shapes
