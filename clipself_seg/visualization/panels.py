"""Panels: images beside their ground truth and predictions, in rows under titles."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.visualization.text import write_text

MARGIN = 8  # pixels around the images of a sheet
SHEET_TEXT = 13  # height of the text of a sheet in pixels
BLACK = (0, 0, 0)
LEADING = 5  # pixels between the lines of a sheet


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    text: int = SHEET_TEXT,
    note: str = "",
) -> Image.Image:
    """Rows of images under column titles.

    Args:
        rows: images (H, W, 3) uint8; each column is as wide as its widest image.
        titles: title of each column, or none at all.
        captions: line below each image.
        text: height of the text in pixels.
        note: text below all of them, in lines as wide as the sheet.
    """
    line = text + LEADING
    foot = line if captions else 0
    columns = max(len(row) for row in rows)
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    head = line + MARGIN if titles else 0
    width = sum(widths) + MARGIN * (columns + 1)
    lines = textwrap.wrap(note, max(1, int((width - 2 * MARGIN) / (0.62 * text))))
    size = (
        width,
        head + sum(heights) + (MARGIN + foot) * len(rows) + MARGIN + line * len(lines),
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [MARGIN + sum(widths[:c]) + MARGIN * c for c in range(columns)]
    for left, title in zip(lefts, titles):
        write_text(draw, (left, MARGIN), title, text, BLACK, "la")
    top = head + MARGIN
    for number, (row, height) in enumerate(zip(rows, heights)):
        for column, image in enumerate(row):
            canvas.paste(Image.fromarray(image), (lefts[column], top))
            if captions:
                place = (lefts[column], top + image.shape[0] + 1)
                write_text(draw, place, captions[number][column], text, BLACK, "la")
        top += height + MARGIN + foot
    for number, said in enumerate(lines):
        write_text(draw, (MARGIN, top + line * number), said, text, BLACK, "la")
    return canvas
