"""What the mappers of all tasks share."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipself_seg.data.records import Record
from clipself_seg.data.regions import (
    relative_boxes,
)
from clipself_seg.errors import InputError

Sample = dict[str, Any]

PADDING = 128  # grey


@contextlib.contextmanager
def seeded(seed: int, draw: int) -> Iterator[None]:
    """Let `random` and `numpy.random` follow from seed and draw, and put them back afterwards."""
    before = random.getstate(), np.random.get_state()
    numbers = np.random.SeedSequence((seed, draw)).generate_state(8)
    random.seed(numbers[:4].tobytes())
    np.random.seed(numbers[4:])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def require_rgb(channels: str) -> None:
    """Refuse another INPUT.FORMAT.

    Raises:
        InputError: it is not RGB.
    """
    if channels != "RGB":
        raise InputError(f'INPUT.FORMAT is "{channels}": segmentation reads pictures as RGB')


def stated_size(record: Record) -> tuple[int, int] | None:
    """(width, height) of a record, in pixels, if its annotation file states them."""
    return (record["width"], record["height"]) if "width" in record else None


def chw(image: np.ndarray) -> Tensor:
    """(..., H, W, 3) -> (..., 3, H, W)."""
    channels = np.ascontiguousarray(np.moveaxis(image, -1, -3))
    # Pillow's own memory, which a picture of one pixel still is, may not be written.
    return torch.from_numpy(channels if channels.flags.writeable else channels.copy())


def box_tensor(boxes: np.ndarray, width: int, height: int) -> Tensor:
    """Boxes (n, 4) XYXY in pixels -> float32, relative to the longer side of the picture, see `relative_boxes`."""
    return torch.from_numpy(relative_boxes(boxes, width, height).astype(np.float32))
