"""Textures of the stuff: each is a function of a random generator, a height and a width.

Every function returns (height, width, 3) float32 RGB around 0..255, in muted colours, so that the
saturated things stand out.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Texture = Callable[[np.random.Generator, int, int], np.ndarray]


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Value noise with features of about `cell` pixels, (height, width) float32, deviation near 1."""
    rows = int(np.ceil(height / cell)) + 2
    columns = int(np.ceil(width / cell)) + 2
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    big = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return big[:height, :width]


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates y and x of every pixel, each (height, width) float32."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return y, x


def _paint(colour: tuple[float, float, float], light: np.ndarray) -> np.ndarray:
    return np.asarray(colour, np.float32) + light[..., None]


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: np.ndarray) -> np.ndarray:
    amount = np.clip(amount, 0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - amount) + np.asarray(high, np.float32) * amount


def grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Short upright blades."""
    blades = cv2.blur(rng.standard_normal((height, width), dtype=np.float32), (1, 7)) * 2.6
    light = 0.45 + 0.22 * blades + 0.1 * smooth_noise(rng, height, width, 24)
    return _mix((48, 78, 34), (120, 150, 66), light)


def water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Flat waves."""
    y, _ = pixel_grid(height, width)
    wave = np.sin(2 * np.pi * y / rng.uniform(7, 10) + 1.3 * smooth_noise(rng, height, width, 14))
    return _mix((34, 84, 112), (112, 164, 182), 0.4 + 0.33 * wave)


def sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Fine grains and soft dunes."""
    grains = rng.standard_normal((height, width), dtype=np.float32)
    return _paint((206, 180, 132), 9 * grains + 9 * smooth_noise(rng, height, width, 30))


def _cells(
    y: np.ndarray, x: np.ndarray, rng: np.random.Generator, step: tuple[int, int], shift: float
) -> tuple:
    """Cells of a wall: a random tone for each pixel's cell, and the mask of the joints."""
    row = np.floor(y / step[0]).astype(int)
    moved = x + shift * step[1] * (row % 2)
    column = np.floor(moved / step[1]).astype(int)
    tones = rng.standard_normal((row.max() + 1, column.max() + 1), dtype=np.float32)
    joints = ((y % step[0]) < 1.6) | ((moved % step[1]) < 1.6)
    return tones[row, column], joints


def bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall of bricks in running bond."""
    y, x = pixel_grid(height, width)
    step = int(rng.integers(9, 12))
    tone, joints = _cells(y, x, rng, (step, 2 * step + 2), 0.5)
    grain = 4 * rng.standard_normal((height, width), dtype=np.float32)
    image = _paint((142, 78, 62), 11 * tone + grain)
    image[joints] = (196, 186, 172)
    return image


def tiles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Square bluish tiles with dark joints."""
    y, x = pixel_grid(height, width)
    step = int(rng.integers(13, 18))
    tone, joints = _cells(y, x, rng, (step, step), 0.0)
    image = _paint((156, 180, 192), 9 * tone)
    image[joints] = (78, 92, 104)
    return image


def wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Upright planks with grain."""
    y, x = pixel_grid(height, width)
    step = int(rng.integers(16, 24))
    grain = np.sin(2 * np.pi * (x / 5 + 0.7 * smooth_noise(rng, height, width, 22)))
    plank = rng.standard_normal(width // step + 1).astype(np.float32)[(x / step).astype(int)]
    image = _paint((128, 88, 50), 11 * grain + 8 * plank)
    image[(x % step) < 1.5] = (62, 40, 22)
    return image


def gravel(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grey pebbles."""
    light = 0.5 + 0.42 * np.tanh(1.6 * smooth_noise(rng, height, width, 4.6))
    return _mix((74, 72, 70), (176, 172, 166), light)


def cloth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Diagonal stripes in two muted tones."""
    y, x = pixel_grid(height, width)
    sign = 1 if rng.random() < 0.5 else -1
    stripe = np.sin(2 * np.pi * (x + sign * y) / rng.uniform(13, 17))
    return _mix((96, 62, 84), (202, 178, 176), 0.5 + 2.0 * stripe)


def marble(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Pale stone with thin veins."""
    veins = smooth_noise(rng, height, width, 26) + 0.35 * smooth_noise(rng, height, width, 8)
    return _mix((112, 116, 128), (214, 212, 208), 0.25 + 2.2 * np.abs(veins))


def wallpaper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dots in staggered rows."""
    y, x = pixel_grid(height, width)
    step = rng.uniform(12, 15)
    moved = x + 0.5 * step * (np.floor(y / step) % 2)
    distance = np.hypot(y % step - step / 2, moved % step - step / 2)
    return _mix((196, 160, 150), (92, 104, 92), 0.5 + (3.6 - distance))


def foliage(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark leaves."""
    leaves = np.maximum(smooth_noise(rng, height, width, 7), smooth_noise(rng, height, width, 7))
    return _mix((18, 44, 26), (84, 128, 64), 0.1 + 0.5 * np.abs(leaves) % 1.0)


def lava(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Black crust with glowing cracks."""
    cracks = np.abs(smooth_noise(rng, height, width, 15))
    return _mix((236, 120, 40), (44, 34, 36), 0.1 + 3.5 * cracks)


def asphalt(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark grey with fine grit."""
    return _paint((72, 74, 80), 13 * rng.standard_normal((height, width), dtype=np.float32))


TEXTURES: dict[str, Texture] = {
    function.__name__: function
    for function in (
        *(grass, water, sand, bricks, wood, gravel, tiles, cloth),
        *(marble, wallpaper, foliage, lava, asphalt),
    )
}
