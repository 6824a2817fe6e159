"""Boxes over an image with names and scores, of seen and of unseen classes: blue and solid, red and dashed.

Shapes: H, W pixels of the image, n boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.visualization.overlays import (
    PAPER,
    Entry,
    above_legend,
    borders,
    readable,
    text_size,
)
from clipself_seg.visualization.text import place_names, shortened, text_length, write_text

SEEN = (0, 84, 214)
UNSEEN = (208, 20, 30)
MARK = "*"  # behind the name of an unseen class
OPACITY = 0.4  # of masks
SMALL = 480  # pixels; names beside boxes need more room than those inside of segments
DASH, GAP = 5, 3  # lengths in widths of the line
COVERED = 0.15  # fraction of a label that may lie on better ones


class _Label(NamedTuple):
    """A label with its place, left, top, right and bottom in pixels of the image, and the height of its text."""

    text: str
    place: tuple[int, int, int, int]
    size: int


def box_overlay(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
    seen: np.ndarray,
    masks: np.ndarray | None = None,
    sheet: bool = True,
) -> Image.Image:
    """Image with boxes, each with its name and score, above a legend that counts seen and unseen ones.

    A box of a seen class is a solid blue line; one of an unseen class is red and dashed, and its name has an
    asterisk. The best lie on top. A name stands in its mask if there is room, else beside its box; where it would
    hide those of better boxes it is left out. A small image is enlarged by a whole number.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) XYXY in pixels, the best first.
        scores: (n,); None for boxes without, such as true ones.
        names: names of the class of each box.
        seen: (n,) bool, true of boxes of a class that training has shown.
        masks: (n, H, W) bool, which are tinted; None for boxes alone.
        sheet: there is a legend, and a small image is enlarged.
    """
    small = SMALL if sheet else 0
    large, *large_masks = readable(image, *(() if masks is None else masks), small=small)
    unit = text_size(large)
    colours = [SEEN if known else UNSEEN for known in seen]
    canvas = Image.fromarray(_tinted(large, large_masks, colours))
    draw = ImageDraw.Draw(canvas)
    factor = large.shape[0] // image.shape[0]
    corners = _whole(boxes * factor, canvas.size)
    endings = [""] * len(names) if scores is None else [f" {score:.2f}" for score in scores]
    titles = [
        f"{name}{'' if known else MARK}{ending}"
        for name, known, ending in zip(names, seen, endings)
    ]
    inside = _in_masks(large_masks, titles, large.shape[:2], unit)
    labels = _place(titles, corners, inside, canvas.size, unit)
    for corner, colour, known in zip(corners[::-1], colours[::-1], seen[::-1]):
        _outline(draw, corner, colour, max(3, unit // 6), dashed=not known)
    for label, colour in zip(labels[::-1], colours[::-1]):
        if label is not None:
            _write(draw, label, colour)
    return above_legend(canvas, _entries(seen), unit) if sheet else canvas


def _entries(seen: np.ndarray) -> list[Entry]:
    known, unknown = int(np.sum(seen)), int(np.sum(~seen))
    return [
        Entry("seen classes (solid)", SEEN, str(known)),
        Entry(f"unseen classes{MARK} (dashed)", UNSEEN, str(unknown)),
    ]


def _tinted(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """The image with every mask in its colour and a line around it, the first one on top."""
    painted = image.copy()
    for mask, colour in zip(masks[::-1], colours[::-1]):
        inside = painted[mask] * (1 - OPACITY) + np.array(colour) * OPACITY
        painted[mask] = inside.round().astype(np.uint8)
        painted[borders(mask)] = colour
    return painted


def _in_masks(
    masks: Sequence[np.ndarray], titles: Sequence[str], size: tuple[int, int], unit: int
) -> dict[int, _Label]:
    """Number of a box -> its label, if that fits into the visible part of its mask; the first lies on top.

    Args:
        masks: (H, W) bool each, of all or of none of the boxes.
        titles: names with scores.
        size: H and W.
        unit: height of the text in pixels.
    """
    regions = np.full(size, -1, np.int32)
    for number, mask in reversed(list(enumerate(masks))):
        regions[mask] = number
    labels = dict[int, _Label]()
    for name in place_names(regions, titles, unit, whole=True):
        x, y = name.centre
        width, height = _plate(name.text, name.size)
        left = max(0, min(x - width // 2, size[1] - width))
        top = max(0, min(y - height // 2, size[0] - height))
        place = (left, top, left + width - 1, top + height - 1)
        labels.setdefault(name.label, _Label(name.text, place, name.size))
    return labels


def _whole(boxes: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes in whole pixels, from their first to their last one, within an image (width, height)."""
    limits = np.array([*size, *size]) - 1
    rounded = np.round(boxes).astype(int)
    rounded[:, 2:] = np.maximum(rounded[:, 2:] - 1, rounded[:, :2])
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in np.clip(rounded, 0, limits)]


def _outline(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int, int, int],
    colour: tuple[int, int, int],
    width: int,
    dashed: bool,
) -> None:
    """A line on a white rim along the inside of a box: the rim shows between dashes."""
    draw.rectangle(corner, outline=PAPER, width=width + 2)
    if not dashed:
        draw.rectangle(corner, outline=colour, width=width)
        return
    left, top, right, bottom = corner
    inner = width - 1
    for a, b in _dashes(left, right, width):
        draw.rectangle((a, top, b, min(top + inner, bottom)), fill=colour)
        draw.rectangle((a, max(bottom - inner, top), b, bottom), fill=colour)
    for a, b in _dashes(top, bottom, width):
        draw.rectangle((left, a, min(left + inner, right), b), fill=colour)
        draw.rectangle((max(right - inner, left), a, right, b), fill=colour)


def _dashes(start: int, end: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last pixel of each dash of a line; the line begins with one."""
    for first in range(start, end + 1, (DASH + GAP) * width):
        yield first, min(first + DASH * width - 1, end)


def _place(
    titles: Sequence[str],
    corners: Sequence[tuple[int, int, int, int]],
    inside: Mapping[int, _Label],
    size: tuple[int, int],
    unit: int,
) -> list[_Label | None]:
    """Labels of all boxes: those inside of masks, and others beside their boxes, within the image, where they
    cover least of the earlier ones; none where that is more than `COVERED`.
    """
    placed = dict(inside)
    for number, (title, (left, top, right, bottom)) in enumerate(zip(titles, corners)):
        if number in inside:
            continue
        text = shortened(title, unit, size[0] - 2 * _pad(unit))
        width, height = _plate(text, unit)
        candidates = []
        for y in (top - height, bottom + 1, top, bottom - height + 1):
            for x in (left, right - width + 1):
                x = max(0, min(x, size[0] - width))
                y = max(0, min(y, size[1] - height))
                candidates.append((x, y, x + width - 1, y + height - 1))
        covered = [
            sum(_common(place, other.place) for other in placed.values()) for place in candidates
        ]
        least = int(np.argmin(covered))
        if covered[least] <= COVERED * width * height:
            placed[number] = _Label(text, candidates[least], unit)
    return [placed.get(number) for number in range(len(titles))]


def _pad(unit: int) -> int:
    return max(2, unit // 5)


def _plate(text: str, unit: int) -> tuple[int, int]:
    """Width and height in pixels of the ground of a text."""
    return round(text_length(text, unit)) + 2 * _pad(unit), unit + 2 * _pad(unit)


def _common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Number of pixels that two places have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(0, width) * max(0, height)


def _write(draw: ImageDraw.ImageDraw, label: _Label, colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = label.place
    draw.rectangle(label.place, fill=colour, outline=PAPER)
    middle = ((left + right) / 2, (top + bottom) / 2)
    write_text(draw, middle, label.text, label.size, PAPER, "mm")
