"""Examples of a class: regions of images that stand for it, beside its word or in place of it.

Only what somebody types or passes makes one. No vocabulary file can, so that nothing in a file opens another file.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from clipself_seg.data.images import MAX_PIXELS, fit_size, pil_pixels, read_image
from clipself_seg.errors import InputError, shown

SURROUNDINGS = 4  # side of what is kept of an image, as a multiple of the longer side of the region
LARGEST_SIDE = 1024  # pixels of what is kept
WEIGHT = 0.75  # of the examples of a class that has a word too, see `clip.examples`
FORM = '"screw=ref.jpg#120,40,80,80"'


@dataclass(frozen=True)
class Example:
    """A region of an image with its surroundings.

    Attributes:
        digest: of pixels and region, by which examples are equal.
        image: (H, W, 3) uint8 RGB, the image or the part of it around the region.
        mask: (H, W) bool, the region, at least one pixel.
    """

    digest: str
    image: np.ndarray = field(compare=False, repr=False)
    mask: np.ndarray = field(compare=False, repr=False)


class ClassExamples(NamedTuple):
    """The examples of a class.

    Attributes:
        names: all names of the class.
        examples: at least one.
        weight: weight of the examples in its embedding, above 0; the word has the rest, and 1 leaves it out.
    """

    names: tuple[str, ...]
    examples: tuple[Example, ...]
    weight: float


def read_example(text: str) -> tuple[str, str]:
    """The name and the rest of "NAME=IMAGE#REGION", which `as_example` reads.

    Raises:
        InputError: it is not of that form.
    """
    name, equals, rest = text.partition("=")
    if not (name.strip() and equals and rest.strip()):
        raise InputError(f'the example "{text}" is not of the form NAME=IMAGE#REGION, as in {FORM}')
    return name.strip(), rest.strip()


def as_example(given: Any) -> Example:
    """An example as somebody gives it; one that is made already stays.

    Args:
        given: "IMAGE#REGION" or "IMAGE", a path; or a pair of an image (path, PIL image, or array (H, W, 3) uint8 RGB)
            and a region. A region is "x,y,w,h" (a box in pixels), "x,y,x,y,x,y" (a polygon) or a file of masks (see
            `data.given_masks`), of which all count; a sequence of such numbers; a mask (H, W); or None for all.

    Raises:
        InputError: the image or the masks cannot be read, or the region has no pixel of the image.
    """
    if isinstance(given, Example):
        return given
    image, region = given if isinstance(given, tuple) else _split(given)
    pixels = _pixels(image)
    origin = f"the example {image}" if isinstance(image, str | os.PathLike) else "the example"
    mask = _mask(region, (pixels.shape[0], pixels.shape[1]), origin)
    if not mask.any():
        raise InputError(
            f"{origin} has no pixel in the region {region}, of an image of {pixels.shape[1]} x {pixels.shape[0]}"
        )
    window = _window(mask)
    return _made(pixels[window], mask[window])


def _split(given: Any) -> tuple[str, str | None]:
    if not isinstance(given, str | os.PathLike):
        raise InputError(
            f"an example is a path, or a pair of an image and a region, got {shown(given)}"
        )
    text = os.fspath(given)
    image, mark, region = text.rpartition("#")
    return (image, region) if mark and not Path(text).exists() else (text, None)


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    pixels = pil_pixels(image, max_pixels=MAX_PIXELS) if isinstance(image, Image.Image) else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
        raise InputError(
            f"the image of an example is a path, a PIL image or uint8 of shape (height, width, 3), got {shown(image)}"
        )
    return pixels


def _mask(region: Any, size: tuple[int, int], origin: str) -> np.ndarray:
    """The pixels (H, W) of a region."""
    if region is None:
        return np.ones(size, bool)
    if isinstance(region, np.ndarray) and region.ndim == 2:
        region = region[None]
    elif (numbers := _numbers(region)) is not None:
        if len(numbers) == 4:
            return _box(numbers, size)
        if len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise InputError(
                f"the region {region} of {origin} is no box x,y,w,h and no polygon x,y,x,y,x,y"
            )
        region = [[numbers]]
    from clipself_seg.data.given_masks import given_masks

    masks: np.ndarray = given_masks(region, size).masks.any(axis=0)
    return masks


def _numbers(region: Any) -> list[float] | None:
    """The numbers of a box or a polygon; None if it is neither."""
    try:
        parts = region.split(",") if isinstance(region, str) else region
        return [float(part) for part in parts]
    except (TypeError, ValueError, OverflowError):
        return None


def _box(numbers: list[float], size: tuple[int, int]) -> np.ndarray:
    x, y, width, height = np.clip(np.nan_to_num(numbers), -1e6, 1e6)
    mask = np.zeros(size, bool)
    rows = slice(max(0, int(np.floor(y))), max(0, int(np.ceil(y + height))))
    columns = slice(max(0, int(np.floor(x))), max(0, int(np.ceil(x + width))))
    if min(width, height) > 0:
        mask[rows, columns] = True
    return mask


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around a region."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    side = SURROUNDINGS * max(int(span[-1] - span[0]) + 1 for span in spans)
    window = []
    for span, length in zip(spans, mask.shape, strict=True):
        start = (int(span[0]) + int(span[-1]) + 1 - side) // 2
        start = min(max(start, 0), max(length - side, 0))
        window.append(slice(start, start + side))
    return window[0], window[1]


def _made(image: np.ndarray, mask: np.ndarray) -> Example:
    height, width = mask.shape
    if max(height, width) > LARGEST_SIDE:
        size = fit_size(width, height, LARGEST_SIDE)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    content = hashlib.blake2b(f"{mask.shape}".encode(), digest_size=16)
    content.update(np.ascontiguousarray(image).tobytes())
    content.update(np.packbits(mask).tobytes())
    return Example(content.hexdigest(), np.array(image), np.array(mask))
