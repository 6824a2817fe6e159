"""JPEG quality of images that a preparation writes, and of images that somebody has written."""

from __future__ import annotations

import functools
import io
import os
from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from clipself_seg.data.images import DECODING_ERRORS, open_image
from clipself_seg.errors import InputError

PUBLISHED = 75
"""Pillow's default, with which the images of the published numbers on ADE20K-847 were written."""


def encode_jpeg(image: np.ndarray, quality: int = PUBLISHED) -> bytes:
    """The bytes of a JPEG as Pillow writes it.

    Args:
        image: uint8 (H, W, 3) RGB.
        quality: from 1 to 100.

    Raises:
        InputError: another quality.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"JPEG quality {quality}: give a number from 1 to 100")
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="JPEG", quality=quality)
    return content.getvalue()


def jpeg_quality(path: str | os.PathLike[str]) -> int | None:
    """Quality from 1 to 100 by the quantisation tables in a JPEG's header.

    None if they are not those of libjpeg, or the file cannot be read as JPEG.
    """
    try:
        with open_image(path) as file:
            return _quality_of_tables().get(_tables(file))
    except DECODING_ERRORS:
        return None


def describe_jpegs(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Qualities of some JPEGs, such as "JPEG quality 75" or "JPEG quality 75 (1999 images), 95 (1 images)"."""
    counts = Counter("unknown" if (q := jpeg_quality(p)) is None else str(q) for p in paths)
    if len(counts) < 2:
        return f"JPEG quality {next(iter(counts), 'unknown')}"
    listed = ", ".join(f"{quality} ({n} images)" for quality, n in sorted(counts.items()))
    return f"JPEG quality {listed}"


def _tables(file: Image.Image) -> tuple[tuple[int, ...], ...]:
    tables: dict[int, list[int]] = getattr(file, "quantization", {})
    return tuple(tuple(tables[key]) for key in sorted(tables))


@functools.cache
def _quality_of_tables() -> dict[tuple[tuple[int, ...], ...], int]:
    """Tables that libjpeg writes, which do not depend on the image -> quality."""
    grey = np.zeros((8, 8, 3), np.uint8)
    qualities = {}
    for quality in range(100, 0, -1):
        file = JpegImageFile(io.BytesIO(encode_jpeg(grey, quality)))
        qualities[_tables(file)] = quality
    return qualities
