"""Text of images, in whatever script: DejaVu Sans, and fonts of the machine for what that lacks.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more; Chinese, Japanese, Korean,
Devanagari and others are the machine's. Characters are set one after the other from left to right, with
kerning: ligatures, joined letters and lines from right to left are not made.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import itertools
import logging
import unicodedata
from pathlib import Path

from PIL import ImageDraw, ImageFont

from clipself_seg.errors import shown

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]

MISSING = "\N{WHITE SQUARE}"  # in place of a character that no font has
PROBE = 20  # pixels, at which is seen whether a font draws a character
# Parts of the names of font files: one without any is taken before one with some, upright and of usual weight.
UNUSUAL = (
    "bold",
    "italic",
    "oblique",
    "black",
    "heavy",
    "light",
    "thin",
    "mono",
    "serif",
    "condensed",
)


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
