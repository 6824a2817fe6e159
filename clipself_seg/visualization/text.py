"""Text of images, in whatever script, and names inside of the regions of a label map.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more; Chinese, Japanese, Korean,
Devanagari and others are the machine's. Characters are set one after the other from left to right, with
kerning: ligatures, joined letters and lines from right to left are not made.

Shapes: H, W pixels of the label map, K names.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import itertools
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipself_seg.errors import shown

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]
Window = tuple[slice, slice]  # rows and columns

MISSING = "\N{WHITE SQUARE}"  # in place of a character that no font has
PROBE = 20  # pixels, at which is seen whether a font draws a character
# Parts of the names of font files: one without any is taken before one with some, upright and of usual weight.
UNUSUAL = tuple("bold italic oblique black heavy light thin mono serif condensed".split())
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
    return sum(_font(path, size).getlength(part) for path, part in _runs(text))


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
    ascent, descent = _font(_dejavu(), size).getmetrics()
    # All fonts on one baseline.
    left = place[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * text_length(text, size)
    baseline = place[1] + {"a": float(ascent), "m": (ascent - descent) / 2, "s": 0.0}[anchor[1]]
    parts = []
    for path, part in _runs(text):
        font = _font(path, size)
        parts.append(((left, baseline), part, font))
        left += font.getlength(part)
    if rim is not None:
        width, dark = rim
        # Before every letter, so that no rim covers the letter beside it.
        for start, part, font in parts:
            draw.text(start, part, dark, font, "ls", stroke_width=width, stroke_fill=dark)
    for start, part, font in parts:
        draw.text(start, part, colour, font, "ls")


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


@functools.lru_cache(maxsize=4096)
def _runs(text: str) -> tuple[tuple[str, str], ...]:
    """Parts of a text, each after the file of the font that has its characters."""
    pairs = []
    for character in filter(_is_set, unicodedata.normalize("NFC", text)):
        character = " " if character.isspace() or character < " " else character
        path = _font_with(character)
        if path is None:
            _say_missing(text)
        pairs.append((path or _dejavu(), character if path else MISSING))
    return tuple(
        (path, "".join(character for _, character in run))
        for path, run in itertools.groupby(pairs, key=lambda pair: pair[0])
    )


def _is_set(character: str) -> bool:
    """Whether a character is one for itself, and does not say how its neighbours look."""
    return unicodedata.category(character) != "Cf" and not "\ufe00" <= character <= "\ufe0f"


@functools.cache
def _font_with(character: str) -> str | None:
    """File of the font that draws a character; None if there is none."""
    # Nearly always; matplotlib, which reads fonts, takes a while to import.
    if " " <= character <= "~":
        return _dejavu()
    if ord(character) in _characters(_dejavu()):
        return _dejavu()
    return next((path for path in machine_fonts() if _draws(path, character)), None)


def _draws(path: str, character: str) -> bool:
    """Whether a font has a character, and Pillow draws it: it leaves coloured ones and others blank."""
    if ord(character) not in _characters(path):
        return False
    try:
        return _font(path, PROBE).getmask(character).getbbox() is not None
    except OSError:  # of one size, which is another
        return False


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Numbers of the characters of a font; none of a file that is damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def machine_fonts() -> tuple[str, ...]:
    """Files of the fonts that are installed on this machine, those of a usual shape first."""
    from matplotlib.font_manager import findSystemFonts

    # Of macOS: it has a sign of the script for every character.
    files = [path for path in findSystemFonts() if "lastresort" not in Path(path).stem.lower()]
    return tuple(sorted(files, key=_unusual))


def _unusual(path: str) -> tuple[int, str]:
    name = Path(path).stem.lower().replace("sansserif", "sans")
    return sum(part in name for part in UNUSUAL), name


@functools.cache
def _dejavu() -> str:
    # Where `matplotlib.get_data_path` is, without importing it.
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    return str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    # Whether Pillow has a library that joins letters differs from machine to machine.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


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
        whole: whether names that would stick out are left out.
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
