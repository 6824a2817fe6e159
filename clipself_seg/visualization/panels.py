"""Pictures beside their ground truth and predictions, each row with a legend of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipself_seg.visualization.overlays import INK, PAPER, SMALLEST_TEXT, entries, legend, paint

OPACITY = 0.75  # of label maps, which stand beside the picture
LEGEND = 23  # width in heights of the text: two columns


def panel(
    rows: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    names: Sequence[str],
    colours: np.ndarray,
    width: int = 360,
) -> Image.Image:
    """Rows of "picture | ground truth | prediction ... | legend" under titles.

    Args:
        rows: of each a picture (H, W, 3) uint8 and its label maps (H, W) by title; the same titles
            in every row.
        names: K.
        colours: (K, 3) uint8.
        width: of every picture on the panel, in pixels.
    """
    unit = max(SMALLEST_TEXT, round(width / 26))
    strips = [_strip(image, maps, names, colours, width, unit) for image, maps in rows]
    gap, head = unit // 2, 2 * unit
    size = (
        max(strip.width for strip in strips) + 2 * gap,
        head + sum(strip.height + gap for strip in strips),
    )
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=unit)
    for column, title in enumerate(["picture", *rows[0][1]]):
        place = (gap + column * (width + gap), head / 2)
        draw.text(place, title, fill=INK, font=font, anchor="lm")
    top = head
    for strip in strips:
        canvas.paste(strip, (gap, top))
        top += strip.height + gap
    return canvas


def _strip(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    colours: np.ndarray,
    width: int,
    unit: int,
) -> Image.Image:
    """A row of a panel: pictures of one width and, beside them, the classes of all maps."""
    height = max(1, round(width * image.shape[0] / image.shape[1]))
    shrink = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC
    small = cv2.resize(image, (width, height), interpolation=shrink)
    y, x = (np.arange(n) * m // n for n, m in zip((height, width), image.shape[:2]))
    tiles = [small]
    for labels in maps.values():
        tiles.append(paint(small, labels[np.ix_(y, x)], colours, OPACITY))
    room = max(2, 2 * (height // round(1.7 * unit)))
    lines = entries(np.stack(list(maps.values())), names, colours, most=room, shares=False)
    key = legend(lines, LEGEND * unit, unit)
    gap = unit // 2
    size = (len(tiles) * (width + gap) + key.width, max(height, key.height))
    strip = Image.new("RGB", size, PAPER)
    for column, tile in enumerate(tiles):
        strip.paste(Image.fromarray(tile), (column * (width + gap), 0))
    strip.paste(key, (len(tiles) * (width + gap), 0))
    return strip
