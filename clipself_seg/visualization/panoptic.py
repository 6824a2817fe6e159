"""Panoptic segments over an image, each with an outline, a name and a colour of its own.

Shapes: H, W pixels of the image, n segments, K classes.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clipself_seg.visualization.overlays import named_regions, overlay

# Shades of the things of one class: (turn of the hue, fraction towards white or, below 0, black).
SHADES = ((0.0, 0.0), (0.03, 0.4), (-0.03, -0.35), (0.05, -0.15), (-0.05, 0.6), (0.02, -0.5))
BLACK_AND_WHITE = (0, 2**24 - 1)


def panoptic_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[int],
    names: Sequence[str],
    colours: np.ndarray,
    sheet: bool = True,
) -> Image.Image:
    """Tinted image with outlines and names, above a legend with each segment's percentage.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, positions in `classes`; -1 where no segment is.
        classes: position in `names` of the class of each of the n segments.
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
        sheet: whether there is a legend, and a small image is enlarged.
    """
    titles = segment_names([names[index] for index in classes])
    draw = overlay if sheet else named_regions
    return draw(image, labels, titles, segment_colours(colours[list(classes)]))


def segment_names(names: Sequence[str]) -> list[str]:
    """Names of n segments, with those of one class counted: "dog 1", "sky", "dog 2".

    Args:
        names: name of the class of each segment.
    """
    total = Counter(names)
    so_far = Counter[str]()
    numbered = []
    for name in names:
        so_far[name] += 1
        numbered.append(name if total[name] == 1 else f"{name} {so_far[name]}")
    return numbered


def segment_colours(colours: np.ndarray) -> np.ndarray:
    """Colours of n segments, (n, 3) uint8, no two alike, neither black nor white.

    The first segment of a class has its colour, others have shades of it. `colour_ids` of them are
    the ids of a panoptic PNG.

    Args:
        colours: colour of the class of each segment, (n, 3) uint8.
    """
    chosen = []
    taken = set(BLACK_AND_WHITE)
    so_far = Counter[tuple[int, ...]]()
    for colour in map(tuple, colours.reshape(-1, 3).tolist()):
        shade = _shade(colour, so_far[colour])
        so_far[colour] += 1
        (number,) = colour_ids(np.array([shade])).tolist()
        while number in taken:
            number = (number + 1) % 2**24
        taken.add(number)
        chosen.append([number % 256, number // 256 % 256, number // 65536])
    return np.array(chosen, np.uint8).reshape(-1, 3)


def colour_ids(colours: np.ndarray) -> np.ndarray:
    """Integers R + 256 G + 65536 B of colours (..., 3), (...) int64."""
    numbers: np.ndarray = colours.astype(np.int64) @ np.array([1, 256, 65536])
    return numbers


def _shade(colour: Sequence[int], count: int) -> tuple[int, ...]:
    """Shade of the segment of a class with a number: one of `SHADES`, then again with turned hues."""
    turn, light = SHADES[count % len(SHADES)]
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    rgb = colorsys.hsv_to_rgb((hue + turn + 0.015 * (count // len(SHADES))) % 1, saturation, value)
    end = 1.0 if light > 0 else 0.0
    return tuple(round(255 * (part + abs(light) * (end - part))) for part in rgb)
