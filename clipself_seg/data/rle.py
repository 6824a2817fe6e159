"""Checks of COCO's masks of instances, polygons and run lengths, before pycocotools gets them.

Its C code believes what a file says: runs that are longer than the image are written beyond its memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

# Characters of a compressed run: five bits each, for numbers below 2^35.
MOST_CHARACTERS = 7
LARGEST_IMAGE = 1 << 31
"""Pixels of an image whose runs pycocotools can count."""


def check_segmentation(value: Any, height: int, width: int) -> None:
    """Refuse what is no mask of an image.

    Args:
        value: "segmentation" of an annotation: polygons, or an RLE with "size" and "counts".
        height: rows of the image in pixels.
        width: columns of the image in pixels.

    Raises:
        ValueError: says what is wrong.
    """
    if min(height, width) < 1 or height * width >= LARGEST_IMAGE:
        raise ValueError(f"the image has {height} x {width} pixels")
    match value:
        case [_, *_]:
            for polygon in value:
                _check_polygon(polygon, height, width)
            # Where the first has four numbers, pycocotools takes all for boxes, and fails.
            if len(value[0]) <= 4 or min(map(len, value)) < 4:
                raise ValueError("a polygon has too few points")
        case {"counts": str() | list() as counts, "size": [int(), int()] as size}:
            if size != [height, width]:
                raise ValueError(f"its size {size} is not that of the image, {[height, width]}")
            runs = np.array(_whole(counts)) if isinstance(counts, list) else _decompress(counts)
            if (runs < 0).any() or runs.sum() != height * width:
                raise ValueError(f"its runs do not fill the image of {height * width} pixels")
        case _:
            raise ValueError("it is neither polygons nor an RLE")


def encode_segmentation(value: Any, height: int, width: int) -> dict[str, Any]:
    """The compressed RLE of a mask of an image, as pycocotools has it.

    Args:
        value: as of `check_segmentation`. Polygons of fewer than three points enclose nothing.
        height: rows of the image in pixels.
        width: columns of the image in pixels.

    Raises:
        ValueError: it is no mask of the image.
    """
    if isinstance(value, list) and value:
        # Pycocotools would read two points as a box.
        nothing = {"size": [height, width], "counts": [height * width]}
        value = [polygon for polygon in value if not _is_line(polygon)] or nothing
    check_segmentation(value, height, width)
    if isinstance(value, list):
        return mask_utils.merge(mask_utils.frPyObjects(value, height, width))
    if isinstance(value["counts"], list):
        return mask_utils.frPyObjects(value, height, width)
    return dict(value)


def _is_line(polygon: Any) -> bool:
    numbers = isinstance(polygon, list) and all(isinstance(x, int | float) for x in polygon)
    return numbers and len(polygon) in (2, 4)


def _whole(counts: list[Any]) -> list[int]:
    if not all(type(count) is int and abs(count) < LARGEST_IMAGE for count in counts):
        raise ValueError("a run is no whole number of pixels")
    return counts


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    """Points may lie beside the image, but not so far that filling the polygon takes long."""
    if not isinstance(polygon, list) or not all(isinstance(x, int | float) for x in polygon):
        raise ValueError("a polygon is no list of numbers")
    if len(polygon) % 2:
        raise ValueError("a polygon is x and y in turn")
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        if not all(-side <= number <= 2 * side for number in numbers):
            raise ValueError("a point of a polygon is far from the image, or nowhere")


def _decompress(text: str) -> np.ndarray:
    """Runs of COCO's compressed RLE, int64, as `rleFrString` of pycocotools reads them.

    A number is written in characters of five bits, the lowest first; from the third on it is the difference
    to the last but one.
    """
    values = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(values):
        return values
    ends = np.flatnonzero((values & 32) == 0)
    if (values < 0).any() or (values > 63).any() or not len(ends) or ends[-1] != len(values) - 1:
        raise ValueError("its runs are no text of an RLE")
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends + 1 - starts
    if lengths.max() > MOST_CHARACTERS:
        raise ValueError("a run is too long")
    places = np.arange(len(values)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((values & 31) << (5 * places), starts)
    runs -= np.where(values[ends] & 16, 1 << (5 * lengths), 0)  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
