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
FORM = '"screw=ref.jpg#120,40,80,80"'


@dataclass(frozen=True)
class Example:
    """A region of an image with its surroundings.

    Attributes:
        digest: of pixels and region, by which examples are equal.
        pixels: (H, W, 4) uint8, RGB of the image or of the part of it around the region, and the region: 255 inside, at
            least in part of a pixel, and 0 outside.
    """

    digest: str
    pixels: np.ndarray = field(compare=False, repr=False)


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
            and a region. A region is "x,y,w,h" (a box in pixels), or a sequence of these numbers; a file of masks (see
            `data.given_masks`), of which all count; a mask (H, W); or None for all.

    Raises:
        InputError: the image or the masks cannot be read, or the region has no pixel of the image.
    """
    match given:
        case Example():
            return given
        case str() | os.PathLike():
            path, mark, of_path = os.fspath(given).rpartition("#")
            whole = not mark or Path(given).exists()
            image, region = (given, None) if whole else (path, of_path)
        case (image, region):
            pass
        case _:
            raise InputError(
                f"an example is a path, or a pair of an image and a region, got {shown(given)}"
            )
    rgb = _rgb(image)
    height, width = rgb.shape[:2]
    mask = _mask(region, (height, width))
    if not mask.any():
        where = "the region" if isinstance(region, np.ndarray) else f"the region {region}"
        raise InputError(f"an image of {width} x {height} has no pixel in {where}")
    # A copy: the whole image is not kept, and what a caller does to it stays with the caller.
    pixels = np.dstack([rgb, 255 * mask.astype(np.uint8)])[_window(mask)].copy()
    if max(pixels.shape) > LARGEST_SIDE:
        size = fit_size(pixels.shape[1], pixels.shape[0], LARGEST_SIDE)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    content = f"{pixels.shape}".encode() + pixels.tobytes()
    return Example(hashlib.blake2b(content, digest_size=16).hexdigest(), pixels)


def _rgb(image: Any) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    rgb = pil_pixels(image, max_pixels=MAX_PIXELS) if isinstance(image, Image.Image) else image
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.shape[2:] != (3,):
        raise InputError(
            f"the image of an example is a path, a PIL image or uint8 of shape (height, width, 3), got {shown(image)}"
        )
    return rgb


def _mask(region: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) of a region."""
    if region is None:
        return np.ones(size, bool)
    from clipself_seg.data.given_masks import given_masks

    if isinstance(region, np.ndarray) and region.ndim > 1:
        return np.asarray(given_masks(region[None], size).masks[0])
    if isinstance(region, str | os.PathLike) and region and Path(region).exists():
        return np.asarray(given_masks(region, size).masks.any(axis=0))
    try:
        parts = region.split(",") if isinstance(region, str) else region
        x, y, width, height = map(float, parts)
        inside = _pixels_of(y, height), _pixels_of(x, width)
    except (TypeError, ValueError, OverflowError):
        width = height = 0.0
    if not (width > 0 and height > 0):
        raise InputError(
            f'the region "{region}" is no file of masks, and no box x,y,w,h with sides above 0'
        )
    mask = np.zeros(size, bool)
    mask[inside] = True
    return mask


def _pixels_of(start: float, length: float) -> slice:
    return slice(max(0, round(start)), max(0, round(start + length)))


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
