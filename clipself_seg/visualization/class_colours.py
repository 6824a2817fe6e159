"""Colours of class names: far from each other, and the same in every image."""

from __future__ import annotations

import functools
import hashlib
import re
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
    for key in sorted(set(keys), key=_turn):
        if not away.any():  # every candidate is in use: from here on colours come again
            away[:] = np.inf
        # With many names no candidate is far enough away: then the distance is reduced.
        gap = CLOSE if _expected(key) is None else STILL_DIFFERENT
        while not (away >= gap).any():
            gap *= 0.95
        wanted = np.linalg.norm(
            (lab - _preferred(key)) * (1 if _expected(key) is None else HUE), axis=1
        )
        best = int(np.where(away >= gap, wanted, np.inf).argmin())
        colours[key] = np.array(BACKGROUND, np.uint8) if key == "background" else rgb[best]
        apart = np.linalg.norm((lab - _to_lab(colours[key])) * LIGHTNESS, axis=1)
        away = np.minimum(away, apart)
    return np.stack([colours[key] for key in keys]) if keys else np.zeros((0, 3), np.uint8)


def _turn(key: str) -> tuple[bool, bool, int]:
    """Place in the order of choosing: background, then names with an expected colour, then by hash."""
    return key != "background", _expected(key) is None, _hash(key)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _expected(key: str) -> tuple[int, int, int] | None:
    expected = [EXPECTED[word] for word in re.split(r"[^\w]+", key) if word in EXPECTED]
    return expected[-1] if expected else None


def _preferred(key: str) -> np.ndarray:
    rgb, lab = _candidates()
    expected = _expected(key)
    return lab[_hash(key) % len(rgb)] if expected is None else _to_lab(np.array(expected))


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
