"""Shapes of the things: outlines, antialiased masks, and the marks on their surfaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from lab.mini.textures import pixel_grid

SUPERSAMPLING = 4
"""Number of samples per pixel and axis when a mask is drawn."""

MAX_TILT = dict(circle=180, ring=180, star=36, square=20, triangle=25, cross=20, heart=30, moon=40)
"""Largest rotation in degrees: beyond it one shape would begin to look like another."""


def _arc(radius: float, start: float, stop: float, *, centre: float = 0.0) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, 48))
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    angles = np.radians(-90 + 36 * np.arange(10))
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross() -> np.ndarray:
    a = 0.30  # half the width of an arm
    b = 0.98  # half its length
    x = [-a, a, a, b, b, a, a, -a, -a, -b, -b, -a]
    y = [-b, -b, -a, -a, a, a, b, b, a, a, -a, -a]
    return np.stack([x, y], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y + 2], axis=1) / 16.5


def _moon() -> np.ndarray:
    # The inner arc meets the outer one at x = 0.32, which leaves a sickle open to the right.
    outer = _arc(0.98, 70, 290)
    inner = _arc(0.92, 270, 90, centre=0.335)
    return np.concatenate([outer, inner])


def outline(shape: str) -> list[np.ndarray]:
    """Closed contours of a shape, each (n, 2) XY in [-1, 1] with y down; filled by the even-odd rule."""
    if shape == "circle":
        return [_arc(0.95, 0, 360)]
    if shape == "ring":
        return [_arc(0.98, 0, 360), _arc(0.56, 0, 360)]
    if shape == "square":
        return [0.86 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])]
    if shape == "triangle":
        return [np.array([(0.0, -0.98), (0.98, 0.80), (-0.98, 0.80)])]
    return [{"star": _star, "cross": _cross, "heart": _heart, "moon": _moon}[shape]()]


@dataclasses.dataclass(frozen=True)
class Pose:
    """Place, size and rotation of a thing.

    Attributes:
        centre: (x, y) in pixels.
        radius: half the side of the shape's square frame, in pixels.
        angle: clockwise rotation in degrees.
        stretch: width over height; it does not change the area.
    """

    centre: tuple[float, float]
    radius: float
    angle: float
    stretch: float

    @property
    def rotation(self) -> np.ndarray:
        """Matrix (2, 2) that turns rows of the thing's own XY into rows of the image's."""
        turn = np.radians(self.angle)
        return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def shape_alpha(shape: str, pose: Pose, size: tuple[int, int]) -> np.ndarray:
    """Coverage of every pixel of an image by a shape, float32 (height, width) in [0, 1].

    Args:
        shape: name of the shape.
        pose: place, size and rotation.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    scale = pose.radius * np.array([np.sqrt(pose.stretch), 1 / np.sqrt(pose.stretch)])
    fraction_bits = 4  # OpenCV takes corners as integers in sixteenths of a sample
    contours = []
    for contour in outline(shape):
        points = (contour * scale) @ pose.rotation + np.array(pose.centre)
        points = (points * SUPERSAMPLING - 0.5) * 2**fraction_bits
        contours.append(np.round(points).astype(np.int32))
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(canvas, contours, 255, shift=fraction_bits)
    return (
        cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )


def _stripes(across: np.ndarray) -> np.ndarray:
    return np.tanh(2 * np.sin(across))


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.tanh(3 * (np.cos(u) + np.cos(v) - 0.6))


MARKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.ones_like(u),
    "ring": lambda u, v: _stripes(8 * np.arctan2(v, u)),
    "star": _dots,
    "square": lambda u, v: np.tanh(4 * np.sin(u) * np.sin(v)),
    "triangle": lambda u, v: _stripes(v),
    "cross": lambda u, v: _stripes(0.75 * (u + v)),
    "heart": lambda u, v: _stripes(u),
    "moon": lambda u, v: -_dots(u, v),
}
"""Brightness from -1 to 1 of the surface of each shape, as a function of its own coordinates.

Marks have a period of 2 pi. They cover a thing, as fur covers a cat, so that a thing can be named if a
part of it is hidden or cut off by the edge of an image patch.
"""

MARK_PERIOD = (6.0, 12.0)
"""Smallest and largest distance of marks in pixels; between them it is a fifth of the frame's side."""


def surface(shape: str, pose: Pose, size: tuple[int, int]) -> np.ndarray:
    """Marks of a shape over a whole image, float32 (height, width) in [-1, 1].

    Args:
        shape: name of the shape.
        pose: place, size and rotation.
        size: (height, width) of the image in pixels.
    """
    y, x = pixel_grid(*size)
    own = np.stack([x - pose.centre[0], y - pose.centre[1]], axis=-1) @ pose.rotation.T
    period = np.clip(0.4 * pose.radius, *MARK_PERIOD)
    u, v = np.moveaxis(own * (2 * np.pi / period), -1, 0)
    return MARKS[shape](u, v).astype(np.float32)
