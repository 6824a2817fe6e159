"""Helpers that the mappers of all tasks use: seeding, sizes, and arrays as tensors."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.config import configurable
from torch import Tensor

from clipself_seg.data.annotations import Record
from clipself_seg.data.regions import relative_boxes

Sample = dict[str, Any]

PADDING = 128  # value of the pixels around an image: grey


class Configurable:
    """Base of dataclasses of keywords that a configuration makes, too, as Detectron2's mappers: `Mapper(cfg, ...)`.

    A class has `from_config`, which reads the configuration and gives the keywords.
    """

    if TYPE_CHECKING:

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(kw_only=True)(cls)
        cls.__init__ = configurable(cls.__init__)  # type: ignore[method-assign]


@contextlib.contextmanager
def seeded(seed: int, draw: int) -> Iterator[None]:
    """Seeds `random` and `numpy.random` from seed and draw, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state()
    numbers = np.random.SeedSequence((seed, draw)).generate_state(8)
    random.seed(numbers[:4].tobytes())
    np.random.seed(numbers[4:])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def image_sample(record: Record, image: np.ndarray) -> Sample:
    """Entries of every sample: which image it is, and its pixels (H, W, 3) as "image" (3, H, W)."""
    return {"file_name": record["file_name"], "image_id": record["image_id"], "image": chw(image)}


def stated_size(record: Record) -> tuple[int, int] | None:
    """Size (width, height) of a record's image in pixels, if its annotation file states it."""
    return (record["width"], record["height"]) if "width" in record else None


def chw(image: np.ndarray) -> Tensor:
    """Array of images (..., H, W, 3) as a tensor (..., 3, H, W)."""
    channels = np.ascontiguousarray(np.moveaxis(image, -1, -3))
    # An image of one pixel is not copied above: it is Pillow's own memory, which is read-only.
    return torch.from_numpy(channels if channels.flags.writeable else channels.copy())


def box_tensor(boxes: np.ndarray, width: int, height: int) -> Tensor:
    """Boxes (n, 4) XYXY in pixels as a float32 tensor in the frame of `relative_boxes`."""
    return torch.from_numpy(relative_boxes(boxes, width, height).astype(np.float32))
