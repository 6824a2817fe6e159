"""Sheets: images in rows under titles, and text in whatever script, by matplotlib.

matplotlib's DejaVu Sans has Latin, Greek, Cyrillic, Arabic and more; Chinese, Japanese, Korean, Devanagari and others
are the machine's.
"""

from __future__ import annotations

import functools
import os
import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image

from clipself_seg.files import atomic_path

DPI = 100
FONT = "DejaVu Sans"
LONGEST = 40  # characters of a name
MARGIN = 8  # pixels around the images of a sheet
SHEET_TEXT = 13  # height of the text of a sheet in pixels
LEADING = 5  # pixels between the lines of a sheet
CHARACTER = 0.62  # width of a character, as a fraction of the height of the text


def one_line(text: str) -> str:
    """A text as it can be drawn in one line, with dots where it has more than `LONGEST` characters."""
    kinds = [unicodedata.category(character) for character in text]
    drawn = [" " if kind in ("Cc", "Cs") else c for c, kind in zip(text, kinds)]
    line = " ".join("".join(drawn).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def families(text: str) -> list[str]:
    """`FONT`, and of the machine's other fonts those that have what it lacks of a text, for matplotlib's fallback."""
    return list(dict.fromkeys([FONT, *(_family_with(c) for c in sorted(set(text)))]))


@functools.cache
def _family_with(character: str) -> str:
    """The first font with a character: `FONT` if it can be, then sans serif; `FONT` if there is none."""

    def unusual(font: FontEntry) -> tuple[object, ...]:
        shape = (font.style, font.stretch, font.weight) != ("normal", "normal", 400)
        return font.name != FONT, shape, "Sans" not in font.name, font.name

    # A font of that name has a sign of the script for every character.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    ordered = sorted(fonts, key=unusual)
    return next((f.name for f in ordered if ord(character) in _characters(f.fname)), FONT)


@functools.cache
def _characters(file: str) -> frozenset[int]:
    """Numbers of the characters of a font; none of a file that is gone or damaged."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    text: int = SHEET_TEXT,
    note: str = "",
) -> Image.Image:
    """Rows of images under column titles.

    Args:
        rows: images (H, W, 3) uint8; each column is as wide as its widest image, and no row longer than the first.
        titles: title of each column.
        captions: line below each image.
        text: height of the text in pixels.
        note: text below all of them, in lines as wide as the sheet.
    """
    line = text + LEADING
    foot = line if captions else 0
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    heights = [max(image.shape[0] for image in row) for row in rows]
    lefts = [MARGIN + sum(widths[:c]) + MARGIN * c for c in range(len(titles))]
    width = sum(widths) + MARGIN * (len(titles) + 1)
    wrapped = textwrap.wrap(note, max(1, int((width - 2 * MARGIN) / (CHARACTER * text))))
    rest = line * (1 + len(wrapped)) + 2 * MARGIN
    height = rest + sum(heights) + (MARGIN + foot) * len(rows)
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)

    def write(left: int, top: int, said: str, room: int) -> None:
        place, size = (left / width, 1 - top / height), 72 * text / DPI
        font = families(said)
        drawn = figure.text(*place, said, va="top", size=size, family=font, parse_math=False)
        while drawn.get_window_extent(canvas.get_renderer()).width > room and len(said) > 3:
            said = said[:-4] + "..."
            drawn.set_text(said)

    for left, title, room in zip(lefts, titles, widths):
        write(left, MARGIN, one_line(title), room)
    top = line + 2 * MARGIN
    for number, (row, high) in enumerate(zip(rows, heights)):
        for column, image in enumerate(row):
            figure.figimage(image, lefts[column], height - top - image.shape[0])
            if captions:
                said = one_line(captions[number][column])
                write(lefts[column], top + image.shape[0] + 3, said, widths[column])
        top += high + MARGIN + foot
    for number, said in enumerate(wrapped):
        write(MARGIN, top + line * number, said, width)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
