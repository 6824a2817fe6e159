"""Label maps over images: tinted regions with names, and a legend with each class's percentage.

Shapes: H, W pixels of the image, K classes. A label outside 0 ... K - 1 has no class: its pixels are
darkened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipself_seg.files import atomic_path
from clipself_seg.visualization.names import place_names, write_names

OPACITY = 0.55
# Sides in pixels: an image whose shorter side is below the first is enlarged, unless its longer side
# would exceed the second.
SMALL = 240
LARGE = 1600
SMALLEST_TEXT = 14  # pixels
INK = (25, 25, 25)
FAINT = (110, 110, 110)
PAPER = (255, 255, 255)
MOST_ENTRIES = 40  # of a legend
UNLABELLED = "no label"


class Entry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: name of the class.
        colour: RGB.
        note: text behind the name, such as the percentage of the pixels.
    """

    name: str
    colour: tuple[int, int, int]
    note: str = ""


def paint(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = OPACITY
) -> np.ndarray:
    """Tint every pixel with the colour of its class, (H, W, 3) uint8.

    Boundaries are white between dark rims, so that they show on any ground.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        colours: colours of the classes, (K, 3) uint8.
        opacity: opacity of the tint, 0 to 1.
    """
    known = (labels >= 0) & (labels < len(colours))
    index = np.where(known, labels, len(colours))
    tints = np.concatenate([colours, np.zeros((1, 3), np.uint8)])[index]
    painted: np.ndarray = cv2.addWeighted(image, 1 - opacity, tints, opacity, 0)
    width = max(1, round(min(labels.shape) / 350))
    edge = borders(labels).astype(np.uint8)
    line, rim = (cv2.dilate(edge, np.ones((w, w), np.uint8)) > 0 for w in (width, width + 2))
    painted[rim] //= 2
    painted[line] = painted[line] // 4 + np.uint8(191)
    return painted


def overlay(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: np.ndarray
) -> Image.Image:
    """Tinted image with names in large regions, above a legend with each class's percentage.

    Text grows with the image; a small image is enlarged by a whole number.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
    """
    image, labels = readable(image, labels)
    unit = text_size(labels)
    painted = Image.fromarray(paint(image, labels, colours))
    write_names(painted, place_names(labels, names, unit))
    key = legend(entries(labels, names, colours), max(painted.width, 18 * unit), unit)
    canvas = Image.new("RGB", (key.width, painted.height + key.height), PAPER)
    canvas.paste(painted, ((canvas.width - painted.width) // 2, 0))
    canvas.paste(key, (0, painted.height))
    return canvas


def entries(
    labels: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    most: int = MOST_ENTRIES,
    percentages: bool = True,
) -> list[Entry]:
    """Legend entries of the classes of label maps, the largest class first.

    Args:
        labels: one map (H, W) or several (n, H, W).
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
        most: most entries; the last one then says how many classes are left.
        percentages: whether the entries note the percentages of the pixels.
    """
    known = (labels >= 0) & (labels < len(names))
    counts = np.bincount(labels[known].astype(np.int64), minlength=len(names))
    parts = [(int(n), names[i], colours[i]) for i, n in enumerate(counts) if n]
    parts.sort(key=lambda part: -part[0])
    missing = int(labels.size - known.sum())
    if missing:
        parts.append((missing, UNLABELLED, np.array(INK)))

    def note(count: int) -> str:
        return percent(count / labels.size) if percentages else ""

    lines = [Entry(name, (int(r), int(g), int(b)), note(n)) for n, name, (r, g, b) in parts]
    if len(lines) > most:
        rest = parts[most - 1 :]
        more = Entry(f"{len(rest)} more", PAPER, note(sum(part[0] for part in rest)))
        lines = [*lines[: most - 1], more]
    return lines


def percent(fraction: float) -> str:
    """Fraction of the pixels as text in percent; a positive one is never written as 0."""
    return f"{100 * fraction:.1f} %" if fraction >= 0.0005 else "< 0.1 %"


def legend(lines: Sequence[Entry], width: int, unit: int) -> Image.Image:
    """White strip of colours, names and notes, in as many columns as fit.

    Args:
        lines: entries to show, row by row.
        width: width of the strip in pixels; a name that is too long for it is cut, with dots.
        unit: height of the text in pixels.
    """
    font = ImageFont.load_default(size=unit)
    swatch = round(1.1 * unit)
    gap = unit // 2
    step = round(1.7 * unit)
    room = width - swatch - 4 * gap
    names = [shortened(line.name, font, room - font.getlength(line.note) - gap) for line in lines]
    notes = max((font.getlength(line.note) for line in lines), default=0)
    text = max((font.getlength(name) for name in names), default=0)
    column = min(width - gap, round(swatch + text + notes + 4 * gap))
    columns = max(1, (width - gap) // column)
    rows = -(-len(lines) // columns)
    strip = Image.new("RGB", (width, rows * step + gap), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (line, name) in enumerate(zip(lines, names)):
        left = gap + number % columns * column
        top = gap // 2 + number // columns * step
        middle = top + step / 2
        box = (left, middle - swatch / 2, left + swatch, middle + swatch / 2)
        draw.rounded_rectangle(box, radius=swatch / 4, fill=line.colour)
        draw.text((left + swatch + gap, middle), name, fill=INK, font=font, anchor="lm")
        place = (left + swatch + 2 * gap + font.getlength(name), middle)
        draw.text(place, line.note, fill=FAINT, font=font, anchor="lm")
    return strip


def text_size(image: np.ndarray) -> int:
    """Height in pixels of the text on and below an image (H, W, ...)."""
    return max(SMALLEST_TEXT, round(min(image.shape[:2]) / 30))


def readable(image: np.ndarray, *maps: np.ndarray, small: int = SMALL) -> tuple[np.ndarray, ...]:
    """Image and maps of labels, enlarged by a whole number if the image is small.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (H, W) each.
        small: shorter side in pixels from which an image stays as it is.
    """
    height, width = image.shape[:2]
    factor = min(-(-small // min(height, width)), max(1, LARGE // max(height, width)))
    if factor <= 1:
        return image, *maps
    size = (factor * width, factor * height)
    grown = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return grown, *(m.repeat(factor, axis=0).repeat(factor, axis=1) for m in maps)


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Text, or as much of it as fits into a width in pixels, with dots.

    Args:
        text: text of one line.
        font: font that it is written in.
        room: width in pixels.
    """
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def borders(labels: np.ndarray) -> np.ndarray:
    """Whether each pixel differs from the one to the right or below, (H, W) bool."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
