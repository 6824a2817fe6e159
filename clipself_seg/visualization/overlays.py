"""Label maps over images: tinted regions with names, and a legend with each class's percentage.

Panoptic segments are drawn in the same manner, each with a name and a shade of its own.

Shapes: H, W pixels of the image, K classes, n segments. A label outside 0 ... K - 1 has no class: its pixels are
darkened and hatched.
"""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.files import atomic_path
from clipself_seg.visualization.text import (
    place_names,
    shortened,
    text_length,
    write_names,
    write_text,
)

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
DIMMED = 0.5  # brightness of pixels without a label, as a fraction
HATCH = 190  # grey of the lines over them
HATCH_OPACITY = 0.55
JPEG_QUALITY = 86
# Shades of the things of one class: (turn of the hue, fraction towards white or, below 0, black).
SHADES = ((0.0, 0.0), (0.03, 0.4), (-0.03, -0.35), (0.05, -0.15), (-0.05, 0.6), (0.02, -0.5))
BLACK_AND_WHITE = (0, 2**24 - 1)


class Entry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: name of the class.
        colour: RGB.
        note: text behind the name, such as the percentage of the pixels.
        hatched: lines are drawn over the colour.
    """

    name: str
    colour: tuple[int, int, int]
    note: str = ""
    hatched: bool = False


def paint(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = OPACITY
) -> np.ndarray:
    """Tint every pixel with the colour of its class, (H, W, 3) uint8; hatch those without one.

    Boundaries are white between dark rims, so that they show on any ground.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        colours: colours of the classes, (K, 3) uint8.
        opacity: opacity of the tint, 0 to 1.
    """
    known = (labels >= 0) & (labels < len(colours))
    table = np.concatenate([colours, np.zeros((1, 3), np.uint8)])
    tints = table[np.where(known, labels, len(colours))]
    painted: np.ndarray = cv2.addWeighted(image, 1 - opacity, tints, opacity, 0)
    if not known.all():
        _hatch(painted, image, ~known)
    width = max(1, round(min(labels.shape) / 350))
    edge = borders(labels).astype(np.uint8)
    line, rim = (cv2.dilate(edge, np.ones((w, w), np.uint8)) > 0 for w in (width, width + 2))
    painted[rim] //= 2
    painted[line] = painted[line] // 4 + np.uint8(191)
    return painted


def _hatch(painted: np.ndarray, image: np.ndarray, where: np.ndarray) -> None:
    """Write the darkened image under diagonal lines.

    Args:
        painted: (H, W, 3) uint8, which is written to.
        image: (H, W, 3) uint8.
        where: (H, W) bool, pixels to write to.
    """
    period = max(10, round(min(where.shape) / 32))
    y, x = (np.arange(n, dtype=np.uint16) % period for n in where.shape)
    line = (y[:, None] + x) % period < period // 5
    # New values of all values; no array of floats as large as the image.
    dark = DIMMED * np.arange(256)
    lines = dark + HATCH_OPACITY * (HATCH - dark)
    for table, part in ((dark, where), (lines, where & line)):
        values = cv2.LUT(image, table.round().astype(np.uint8))
        np.copyto(painted, values, where=part[..., None])


def overlay(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: np.ndarray
) -> Image.Image:
    """Tinted image with names in its regions, above a legend with each class's percentage.

    Text grows with the image; a small image is enlarged by a whole number.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
    """
    image, labels = readable(image, labels)
    unit = text_size(labels)
    painted = named_regions(image, labels, names, colours)
    return above_legend(painted, entries(labels, names, colours), unit)


def named_regions(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    opacity: float = OPACITY,
    unit: int | None = None,
) -> Image.Image:
    """Tinted image with names in its regions, of the image's own size.

    Args:
        image, labels, names, colours: as for `overlay`.
        opacity: of the tint, 0 to 1.
        unit: height of the text in pixels; None for `text_size`.
    """
    painted = Image.fromarray(paint(image, labels, colours, opacity))
    write_names(painted, place_names(labels, names, unit or text_size(labels)))
    return painted


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
        percentages: the entries note the percentages of the pixels.
    """
    known = (labels >= 0) & (labels < len(names))
    counts = np.bincount(labels[known].astype(np.int64), minlength=len(names))

    def note(count: int) -> str:
        return percent(count / labels.size) if percentages else ""

    parts = [
        (int(counts[i]), Entry(names[i], _rgb(colours[i]), note(int(counts[i]))))
        for i in np.argsort(-counts, kind="stable")
        if counts[i]
    ]
    if missing := int(labels.size - known.sum()):
        parts.append((missing, Entry(UNLABELLED, INK, note(missing), hatched=True)))
    if len(parts) > most:
        rest = parts[most - 1 :]
        count = sum(number for number, _ in rest)
        parts[most - 1 :] = [(count, Entry(f"{len(rest)} more", PAPER, note(count)))]
    return [line for _, line in parts]


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = colour.tolist()
    return red, green, blue


def percent(fraction: float) -> str:
    """Fraction of the pixels as text in percent; a positive one is never written as 0."""
    return f"{100 * fraction:.1f} %" if fraction >= 0.0005 else "< 0.1 %"


def above_legend(image: Image.Image, lines: Sequence[Entry], unit: int) -> Image.Image:
    """An image in the middle above a legend, whose text has a height of so many pixels."""
    key = legend(lines, max(image.width, 18 * unit), unit)
    canvas = Image.new("RGB", (key.width, image.height + key.height), PAPER)
    canvas.paste(image, ((canvas.width - image.width) // 2, 0))
    canvas.paste(key, (0, image.height))
    return canvas


def legend(lines: Sequence[Entry], width: int, unit: int) -> Image.Image:
    """White strip of colours, names and notes, in as many columns as fit.

    Args:
        lines: entries to show, row by row.
        width: width of the strip in pixels; a name that is too long for it is cut, with dots.
        unit: height of the text in pixels.
    """
    swatch = round(1.1 * unit)
    gap = unit // 2
    step = round(1.7 * unit)
    room = width - swatch - 4 * gap
    names = [
        shortened(line.name, unit, room - text_length(line.note, unit) - gap) for line in lines
    ]
    notes = max((text_length(line.note, unit) for line in lines), default=0)
    text = max((text_length(name, unit) for name in names), default=0)
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
        if line.hatched:
            _hatch_swatch(draw, box)
        write_text(draw, (left + swatch + gap, middle), name, unit, INK)
        place = (left + swatch + 2 * gap + text_length(name, unit), middle)
        write_text(draw, place, line.note, unit, FAINT)
    return strip


def _hatch_swatch(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
    """Three diagonal lines within a square: left, top, right and bottom in pixels."""
    left, top, right, bottom = box
    side = right - left
    width = max(1, round(side / 9))
    for part in (0.6, 1.0, 1.4):  # x + y of the line, in sides
        low, high = max(0.12, part - 0.88) * side, min(0.88, part - 0.12) * side
        draw.line(
            (left + low, top + part * side - low, left + high, top + part * side - high),
            (HATCH,) * 3,
            width,
        )


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


def borders(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool, true of pixels that differ from the one to the right or below."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def save_jpeg(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a JPEG that keeps the colours of small text and thin lines, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)


def panoptic_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[int],
    names: Sequence[str],
    colours: np.ndarray,
    sheet: bool = True,
) -> Image.Image:
    """Tinted image with outlines and names, above a legend with each segment's percentage.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, positions in `classes`; -1 where no segment is.
        classes: position in `names` of the class of each of the n segments.
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
        sheet: there is a legend, and a small image is enlarged.
    """
    titles = segment_names([names[index] for index in classes])
    draw = overlay if sheet else named_regions
    return draw(image, labels, titles, segment_colours(colours[list(classes)]))


def segment_names(names: Sequence[str]) -> list[str]:
    """Names of n segments, with those of one class counted: "dog 1", "sky", "dog 2".

    Args:
        names: name of the class of each segment.
    """
    total = Counter(names)
    so_far = Counter[str]()
    numbered = []
    for name in names:
        so_far[name] += 1
        numbered.append(name if total[name] == 1 else f"{name} {so_far[name]}")
    return numbered


def segment_colours(colours: np.ndarray) -> np.ndarray:
    """Colours of n segments, (n, 3) uint8, no two alike, neither black nor white.

    The first segment of a class has its colour, others have shades of it. `colour_ids` of them are
    the ids of a panoptic PNG.

    Args:
        colours: colour of the class of each segment, (n, 3) uint8.
    """
    chosen = []
    taken = set(BLACK_AND_WHITE)
    so_far = Counter[tuple[int, ...]]()
    for colour in map(tuple, colours.reshape(-1, 3).tolist()):
        shade = _shade(colour, so_far[colour])
        so_far[colour] += 1
        (number,) = colour_ids(np.array([shade])).tolist()
        while number in taken:
            number = (number + 1) % 2**24
        taken.add(number)
        chosen.append([number % 256, number // 256 % 256, number // 65536])
    return np.array(chosen, np.uint8).reshape(-1, 3)


def colour_ids(colours: np.ndarray) -> np.ndarray:
    """Integers R + 256 G + 65536 B of colours (..., 3), (...) int64."""
    numbers: np.ndarray = colours.astype(np.int64) @ np.array([1, 256, 65536])
    return numbers


def _shade(colour: Sequence[int], count: int) -> tuple[int, ...]:
    """Shade of the segment of a class with a number: one of `SHADES`, then again with turned hues."""
    turn, light = SHADES[count % len(SHADES)]
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    rgb = colorsys.hsv_to_rgb((hue + turn + 0.015 * (count // len(SHADES))) % 1, saturation, value)
    end = 1.0 if light > 0 else 0.0
    return tuple(round(255 * (part + abs(light) * (end - part))) for part in rgb)
