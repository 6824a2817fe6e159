"""Names inside of the regions of a label map: their places and sizes, and how they are written.

Shapes: H, W pixels of the label map, K names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.visualization.fonts import text_length, write_text

CELLS = 400  # most cells along the shorter side of the grid on which places are searched
SMALLER = 0.75  # size of the text as a fraction of the usual one, where that does not fit
LEAST_TEXT = 11  # pixels
FURTHER = 0.02  # fraction of the image from which a further part of a region has its own name
INSIDE = 0.6  # fraction of a name's box that has to lie in its region
WHITE = (255, 255, 255)
DARK = (20, 20, 20)


Window = tuple[slice, slice]


class Name(NamedTuple):
    """A name with its place on an image.

    Attributes:
        label: label of the region.
        text: name to write.
        centre: x and y of the centre in pixels.
        size: height of the text in pixels.
    """

    label: int
    text: str
    centre: tuple[int, int]
    size: int


def place_names(
    labels: np.ndarray, names: Sequence[str], size: int, whole: bool = False
) -> list[Name]:
    """Names of all regions with room for one, each at the deepest place where it fits.

    Where it does not fit, smaller text is tried; then a name may stick out a little if it overlaps no
    other. Regions that are too small for that get no name. Of a region in several parts every large one
    in which the name fits has it.

    Args:
        labels: (H, W) integers; those outside of 0 ... K - 1 have no name.
        names: names of the K labels.
        size: height of the text in pixels.
        whole: whether names that would stick out are left out.
    """
    step = max(1, min(labels.shape) // CELLS)
    grid = labels[::step, ::step]
    sizes = tuple(dict.fromkeys((size, max(min(size, LEAST_TEXT), round(SMALLER * size)))))
    placed = list[Name]()
    waiting = []
    taken = np.zeros(grid.shape, bool)
    numbers, areas = np.unique(grid, return_counts=True)
    for label in numbers[np.argsort(-areas, kind="stable")].tolist():
        if not 0 <= label < len(names):
            continue
        region = grid == label
        inside, name, window = _fit(region, label, names[label], sizes, step)
        if inside == 1:
            fitting = [(name, window), *_in_further_parts(region, window, name, sizes, step)]
            for name, window in fitting:
                placed.append(name)
                taken[window] = True
        elif inside >= INSIDE and not whole:
            waiting.append((name, window))
    # Names inside of their regions cannot meet; the others come after them.
    for name, window in waiting:
        if not taken[window].any():
            taken[window] = True
            placed.append(name)
    return placed


def write_names(image: Image.Image, placed: Sequence[Name]) -> None:
    """Write names white with a dark rim, which can be read on any ground.

    Args:
        image: RGB image, which is drawn on.
        placed: names and places from `place_names`.
    """
    draw = ImageDraw.Draw(image)
    for name in placed:
        rim = (max(1, round(name.size / 8)), DARK)
        write_text(draw, name.centre, name.text, name.size, WHITE, "mm", rim)


def _fit(
    region: np.ndarray, label: int, text: str, sizes: Sequence[int], step: int
) -> tuple[float, Name, Window]:
    """Name of a region in the first size that fits, or else the last; its fraction inside, and its cells."""
    for size in sizes:
        box = _box(text_length(text, size), size, step)
        inside, (x, y) = _best(region, box)
        if inside == 1:
            break
    return inside, Name(label, text, (step * x, step * y), size), _window((x, y), box)


def _in_further_parts(
    region: np.ndarray, window: Window, name: Name, sizes: Sequence[int], step: int
) -> Iterator[tuple[Name, Window]]:
    """The name of a region again in each of its large parts, but for the one where it stands already."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    for part in range(1, count):
        large = stats[part, cv2.CC_STAT_AREA] >= FURTHER * region.size
        if large and not (parts[window] == part).any():
            inside, further, cells = _fit(parts == part, name.label, name.text, sizes, step)
            if inside == 1:
                yield further, cells


def _box(length: float, size: int, step: int) -> tuple[int, int]:
    """Number of columns and rows of cells that a text takes, both odd, so that there is a middle."""
    columns, rows = (int(pixels / step) // 2 * 2 + 1 for pixels in (length + size / 4, size))
    return columns, rows


def _best(region: np.ndarray, box: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Largest fraction of a box that lies in a region, and x and y of the deepest such place."""
    columns, rows = box
    if columns > region.shape[1] or rows > region.shape[0]:
        return 0.0, (0, 0)
    covered = cv2.boxFilter(
        region.astype(np.float32), -1, box, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    # A frame of zeros: the border of the image is a boundary too.
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    # Boxes that reach beyond the image do not count.
    y_margin = rows // 2
    x_margin = columns // 2
    inner = (
        slice(y_margin, region.shape[0] - y_margin),
        slice(x_margin, region.shape[1] - x_margin),
    )
    most = covered[inner].round().max()
    deepest = np.where(covered[inner].round() == most, depth[inner], -1)
    y, x = np.unravel_index(int(deepest.argmax()), deepest.shape)
    return float(most) / (columns * rows), (int(x) + x_margin, int(y) + y_margin)


def _window(cell: tuple[int, int], box: tuple[int, int]) -> Window:
    """Rows and columns of a box around a cell."""
    x, y = cell
    columns, rows = box
    return (
        slice(y - rows // 2, y + rows // 2 + 1),
        slice(x - columns // 2, x + columns // 2 + 1),
    )
