"""Colours of class names, far from each other and the same in every image, and their shades for segments."""

from __future__ import annotations

import colorsys
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

BACKGROUND = (148, 148, 148)
# Colours that people expect. A class gets the colour of the last of its words that is listed here, so
# that "playing field" is a field and "sea water" water.
EXPECTED = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 170, 70),
    "blue": (50, 90, 220),
    "purple": (150, 60, 190),
    "pink": (245, 130, 190),
    "brown": (140, 90, 50),
    "white": (225, 225, 215),
    "bricks": (175, 80, 60),
    "gravel": (150, 140, 115),
    "sky": (110, 180, 240),
    "cloud": (190, 215, 240),
    "clouds": (190, 215, 240),
    "water": (40, 110, 200),
    "sea": (30, 90, 190),
    "river": (60, 130, 210),
    "grass": (120, 200, 60),
    "lawn": (120, 200, 60),
    "leaves": (60, 140, 60),
    "lava": (215, 75, 30),
    "marble": (205, 205, 225),
    "field": (150, 200, 80),
    "tree": (30, 130, 50),
    "plant": (60, 160, 90),
    "bush": (70, 140, 40),
    "sand": (230, 200, 130),
    "dirt": (150, 105, 60),
    "mountain": (135, 110, 120),
    "snow": (225, 235, 250),
    "road": (110, 80, 130),
    "person": (225, 40, 70),
    "wood": (170, 110, 50),
}
# Distances in CIELAB: nearer colours are hard to distinguish when they tint an image. Between classes lightness weighs
# more than hue, so that colours of like hues differ for eyes and printers that see lightness alone. Expected colours
# may be nearer, so that of many kinds of water all are blue, and give way in lightness rather than in hue.
LIGHTNESS = np.array([1.5, 1, 1], np.float32)
HUE = np.array([0.35, 1, 1], np.float32)
CLOSE = 75.0
STILL_DIFFERENT = 20.0
# Shades of the things of one class: (turn of the hue, fraction towards white or, below 0, black).
SHADES = ((0.0, 0.0), (0.03, 0.4), (-0.03, -0.35), (0.05, -0.15), (-0.05, 0.6), (0.02, -0.5))
BLACK_AND_WHITE = (0, 2**24 - 1)


def class_colours(names: Sequence[str]) -> np.ndarray:
    """Colours of classes, (K, 3) uint8 RGB; of some 4000 and fewer no two are alike, of more some are.

    They depend on the set of names, not on their order. In another set a name keeps its colour,
    unless a class there has one that is too close. Some names have the colour that people expect,
    "background" is grey.

    Args:
        names: K class names, upper and lower case alike.
    """
    keys = [name.strip().casefold() for name in names]
    rgb, lab = _candidates()
    # Weighted distance of each candidate from the nearest colour in use.
    away = np.full(len(lab), np.inf)
    colours: dict[str, np.ndarray] = {}
    expected = {key: _expected(key) for key in keys}
    # Background first, then names with an expected colour, then by hash.
    for key in sorted(expected, key=lambda k: (k != "background", expected[k] is None, _hash(k))):
        if not away.any():  # every candidate is in use: from here on colours come again
            away[:] = np.inf
        # With many names no candidate is far enough away: then the distance is reduced.
        own = expected[key]
        gap = CLOSE if own is None else STILL_DIFFERENT
        while not (away >= gap).any():
            gap *= 0.95
        if own is None:
            differences = lab - lab[_hash(key) % len(lab)]
        else:
            differences = (lab - _to_lab(np.array(own))) * HUE
        wanted = np.linalg.norm(differences, axis=1)
        best = int(np.where(away >= gap, wanted, np.inf).argmin())
        colours[key] = np.array(BACKGROUND, np.uint8) if key == "background" else rgb[best]
        apart = np.linalg.norm((lab - _to_lab(colours[key])) * LIGHTNESS, axis=1)
        away = np.minimum(away, apart)
    return np.stack([colours[key] for key in keys]) if keys else np.zeros((0, 3), np.uint8)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _expected(key: str) -> tuple[int, int, int] | None:
    expected = [EXPECTED[word] for word in re.split(r"[^\w]+", key) if word in EXPECTED]
    return expected[-1] if expected else None


@functools.cache
def _candidates() -> tuple[np.ndarray, np.ndarray]:
    """Candidate colours, RGB (N, 3) uint8 and CIELAB (N, 3): neither grey nor black nor white."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _to_lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    kept = (lab[:, 0] > 32) & (lab[:, 0] < 92) & (chroma > 34)
    return rgb[kept], lab[kept]


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in CIELAB, with lightness 0 ... 100, of RGB 0 ... 255."""
    flat = np.asarray(rgb, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(np.shape(rgb))


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
