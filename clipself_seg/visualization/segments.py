"""Segments as colours over a picture, and sheets of pictures with titles."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipself_seg.files import atomic_path

GOLDEN = 0.618033988749895
MARGIN, TITLE = 8, 18  # pixels around the pictures of a sheet


def palette(count: int) -> np.ndarray:
    """Colours that stay far apart however many there are, (count, 3) uint8 RGB."""
    colours = [
        colorsys.hsv_to_rgb((0.02 + i * GOLDEN) % 1, (0.85, 0.55, 0.7)[i % 3], (0.95, 0.8)[i % 2])
        for i in range(count)
    ]
    return (255 * np.array(colours).reshape(-1, 3)).round().astype(np.uint8)


def colour_segments(labels: np.ndarray) -> np.ndarray:
    """One colour for each number, with dark borders, (H, W, 3) uint8.

    Args:
        labels: (H, W) integers from 0.
    """
    painted = palette(int(labels.max()) + 1)[labels]
    painted[borders(labels)] //= 3
    return painted


def borders(labels: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right or below, (H, W) bool."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Rows of pictures under column titles.

    Args:
        rows: pictures (H, W, 3) uint8; each column is as wide as its widest picture.
        titles: one for each column, or none.
        captions: a line below each picture.
        scale: whole-number enlargement, pixels stay sharp.
    """
    font = ImageFont.load_default(size=13)
    grown = [[np.kron(p, np.ones((scale, scale, 1), np.uint8)) for p in row] for row in rows]
    foot = TITLE if captions else 0
    columns = max(len(row) for row in grown)
    widths = [max(row[c].shape[1] for row in grown if c < len(row)) for c in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in grown]
    head = TITLE + MARGIN if titles else 0
    size = (
        sum(widths) + MARGIN * (columns + 1),
        head + sum(heights) + (MARGIN + foot) * len(rows) + MARGIN,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [MARGIN + sum(widths[:c]) + MARGIN * c for c in range(columns)]
    for left, title in zip(lefts, titles):
        draw.text((left, MARGIN), title, fill="black", font=font)
    top = head + MARGIN
    for number, (row, height) in enumerate(zip(grown, heights)):
        for column, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (lefts[column], top))
            if captions:
                place = (lefts[column], top + picture.shape[0] + 1)
                draw.text(place, captions[number][column], fill="black", font=font)
        top += height + MARGIN + foot
    return canvas


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
