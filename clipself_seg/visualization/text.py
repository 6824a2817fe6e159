"""Text of images, in whatever script, and names inside of the regions of a label map.

matplotlib draws lines of text and falls back from font to font. Its DejaVu Sans has Latin, Greek, Cyrillic, Arabic and
more; Chinese, Japanese, Korean, Devanagari and others are the machine's.

Shapes: H, W pixels of the label map, K names.
"""

from __future__ import annotations

import bisect
import functools
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.errors import shown

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]
Window = tuple[slice, slice]  # rows and columns

FONT = "DejaVu Sans"  # which is asked first
LAST_RESORT = (
    "Last Resort"  # begins the names of fonts that have a sign of the script for every character
)
MISSING = "\N{WHITE SQUARE}"  # in place of a character that no font has
ASCENT, DESCENT = 0.93, 0.24  # of FONT, as fractions of the height of the text
CELLS = 400  # most cells along the shorter side of the grid on which places are searched
SMALLER = 0.75  # size of the text as a fraction of the usual one, where that does not fit
LEAST_TEXT = 11  # pixels
FURTHER = 0.02  # fraction of the image from which a further part of a region has its own name
INSIDE = 0.6  # fraction of a name's box that has to lie in its region
WHITE = (255, 255, 255)
DARK = (20, 20, 20)


def text_length(text: str, size: int) -> float:
    """Width of a text of one line in pixels.

    Args:
        text: any characters; those that are no glyphs, such as a line's end, count as a space.
        size: height of the text in pixels.
    """
    return _line(text, size).length


def write_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    colour: Colour,
    anchor: str = "lm",
    rim: tuple[int, Colour] | None = None,
) -> None:
    """Write a text of one line.

    Args:
        draw: of the image, which is drawn on.
        place: x and y in pixels of the point that `anchor` says.
        text: as for `text_length`.
        size: height of the text in pixels.
        colour: RGB.
        anchor: Pillow's, of l, m or r across and a, m or s down: "lm" is the middle of the left side.
        rim: width in pixels and RGB of a line around each letter.
    """
    line = _line(text, size)
    if not line.mask.size:
        return
    left = place[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * line.length + line.left
    above = {"a": ASCENT, "m": (ASCENT - DESCENT) / 2, "s": 0.0}[anchor[1]]
    top = place[1] + above * size - line.top
    if rim is not None:
        width, dark = rim
        letters = np.pad(line.mask, width)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        around = Image.fromarray(cv2.dilate(letters, disc))
        draw.bitmap((round(left) - width, round(top) - width), around, dark)
    draw.bitmap((round(left), round(top)), Image.fromarray(line.mask), colour)


def shortened(text: str, size: int, room: float) -> str:
    """Text, or as much of it as fits into a width in pixels, with dots.

    Args:
        text: text of one line.
        size: height of the text in pixels.
        room: width in pixels.
    """
    if text_length(text, size) <= room:
        return text
    lengths = range(1, len(text))
    kept = bisect.bisect_right(
        lengths, room, key=lambda count: text_length(text[:count] + "...", size)
    )
    return text[:kept] + "..."


class _Line(NamedTuple):
    """A line of text as it is drawn.

    Attributes:
        mask: uint8, how far each pixel is covered.
        left: pixels from the beginning of the line to the first column.
        top: pixels from the first row down to the baseline.
        length: width in pixels.
    """

    mask: np.ndarray
    left: float
    top: float
    length: float


@functools.lru_cache(maxsize=1024)
def _line(text: str, size: int) -> _Line:
    from matplotlib.font_manager import get_font

    characters = filter(_is_set, unicodedata.normalize("NFC", text))
    line, files = "", [_fonts()[0]]
    for character in characters:
        character = " " if character.isspace() or character < " " else character
        file = _font_with(character)
        if file is None:
            _say_missing(text)
            character = MISSING
        elif file not in files:
            files.append(file)
        line += character
    font = get_font(files)
    font.set_size(size, 72)
    font.set_text(line)
    font.draw_glyphs_to_bitmap()
    mask = np.array(font.get_image(), np.uint8)
    (left, _), (length, _) = font.get_bitmap_offset(), font.get_width_height()
    top = len(mask) - 1 - font.get_descent() / 64  # below is an empty row
    return _Line(mask, left / 64, top, length / 64)


def _is_set(character: str) -> bool:
    """True of a character for itself, which does not say how its neighbours look."""
    return unicodedata.category(character) != "Cf" and not "\ufe00" <= character <= "\ufe0f"


@functools.cache
def _font_with(character: str) -> str | None:
    """File of the first font that has a character; None if there is none."""
    return next((file for file in _fonts() if ord(character) in _characters(file)), None)


@functools.cache
def _characters(file: str) -> frozenset[int]:
    """Numbers of the characters of a font; none of a file that is gone or damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _fonts() -> tuple[str, ...]:
    """Files of the fonts of this machine: upright ones of usual weight first, of these `FONT`, then sans serif."""
    from matplotlib.font_manager import FontEntry, fontManager

    def unusual(font: FontEntry) -> tuple[object, ...]:
        shape = (font.style, font.stretch, font.weight) != ("normal", "normal", 400)
        return shape, font.name != FONT, "Sans" not in font.name, font.name

    fonts = [font for font in fontManager.ttflist if not font.name.startswith(LAST_RESORT)]
    return tuple(dict.fromkeys(font.fname for font in sorted(fonts, key=unusual)))


_warned = list[str]()  # at most one text: one warning a process is enough


def _say_missing(text: str) -> None:
    if not _warned:
        _warned.append(text)
        logger.warning(
            f"no font of this machine has all characters of {shown(text)}: what is missing is drawn as {MISSING}. "
            "Install a font of the script, such as the package fonts-noto-cjk for Chinese, Japanese and Korean"
        )


class Name(NamedTuple):
    """A name with its place on an image.

    Attributes:
        label: label of the region.
        text: name to write.
        centre: x and y of the centre in pixels.
        size: height of the text in pixels.
    """

    label: int
    text: str
    centre: tuple[int, int]
    size: int


def place_names(
    labels: np.ndarray, names: Sequence[str], size: int, whole: bool = False
) -> list[Name]:
    """Names of all regions with room for one, each at the deepest place where it fits.

    Where it does not fit, smaller text is tried; then a name may stick out a little if it overlaps no
    other. Regions that are too small for that get no name. Of a region in several parts every large one
    in which the name fits has it.

    Args:
        labels: (H, W) integers; those outside of 0 ... K - 1 have no name.
        names: names of the K labels.
        size: height of the text in pixels.
        whole: leave out names that would stick out.
    """
    step = max(1, min(labels.shape) // CELLS)
    grid = labels[::step, ::step]
    sizes = tuple(dict.fromkeys((size, max(min(size, LEAST_TEXT), round(SMALLER * size)))))
    placed = list[Name]()
    waiting = []
    taken = np.zeros(grid.shape, bool)
    numbers, areas = np.unique(grid, return_counts=True)
    for label in numbers[np.argsort(-areas, kind="stable")].tolist():
        if not 0 <= label < len(names):
            continue
        region = grid == label
        inside, name, window = _fit(region, label, names[label], sizes, step)
        if inside == 1:
            fitting = [(name, window), *_in_further_parts(region, window, name, sizes, step)]
            for name, window in fitting:
                placed.append(name)
                taken[window] = True
        elif inside >= INSIDE and not whole:
            waiting.append((name, window))
    # Names inside of their regions cannot meet; the others come after them.
    for name, window in waiting:
        if not taken[window].any():
            taken[window] = True
            placed.append(name)
    return placed


def write_names(image: Image.Image, placed: Sequence[Name]) -> None:
    """Write names white with a dark rim, which can be read on any ground.

    Args:
        image: RGB image, which is drawn on.
        placed: names and places from `place_names`.
    """
    draw = ImageDraw.Draw(image)
    for name in placed:
        rim = (max(1, round(name.size / 8)), DARK)
        write_text(draw, name.centre, name.text, name.size, WHITE, "mm", rim)


def _fit(
    region: np.ndarray, label: int, text: str, sizes: Sequence[int], step: int
) -> tuple[float, Name, Window]:
    """Name of a region in the first size that fits, or else the last; its fraction inside, and its cells."""
    for size in sizes:
        box = _box(text_length(text, size), size, step)
        inside, (x, y) = _best(region, box)
        if inside == 1:
            break
    return inside, Name(label, text, (step * x, step * y), size), _window((x, y), box)


def _in_further_parts(
    region: np.ndarray, window: Window, name: Name, sizes: Sequence[int], step: int
) -> Iterator[tuple[Name, Window]]:
    """The name of a region again in each of its large parts, but for the one where it stands already."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    for part in range(1, count):
        large = stats[part, cv2.CC_STAT_AREA] >= FURTHER * region.size
        if large and not (parts[window] == part).any():
            inside, further, cells = _fit(parts == part, name.label, name.text, sizes, step)
            if inside == 1:
                yield further, cells


def _box(length: float, size: int, step: int) -> tuple[int, int]:
    """Number of columns and rows of cells that a text takes, both odd, so that there is a middle."""
    columns, rows = (int(pixels / step) // 2 * 2 + 1 for pixels in (length + size / 4, size))
    return columns, rows


def _best(region: np.ndarray, box: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Largest fraction of a box that lies in a region, and x and y of the deepest such place."""
    columns, rows = box
    if columns > region.shape[1] or rows > region.shape[0]:
        return 0.0, (0, 0)
    covered = cv2.boxFilter(
        region.astype(np.float32), -1, box, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    # A frame of zeros: the border of the image is a boundary too.
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    # Boxes that reach beyond the image do not count.
    y_margin = rows // 2
    x_margin = columns // 2
    inner = (
        slice(y_margin, region.shape[0] - y_margin),
        slice(x_margin, region.shape[1] - x_margin),
    )
    most = covered[inner].round().max()
    deepest = np.where(covered[inner].round() == most, depth[inner], -1)
    y, x = np.unravel_index(int(deepest.argmax()), deepest.shape)
    return float(most) / (columns * rows), (int(x) + x_margin, int(y) + y_margin)


def _window(cell: tuple[int, int], box: tuple[int, int]) -> Window:
    """Rows and columns of a box around a cell."""
    x, y = cell
    columns, rows = box
    return (
        slice(y - rows // 2, y + rows // 2 + 1),
        slice(x - columns // 2, x + columns // 2 + 1),
    )
