"""Overlays by Detectron2's Visualizer: label maps, segments and boxes over an image, with names and a legend.

The Visualizer writes names and draws boxes. Tints are mixed here: as its polygons they take half a minute for a noisy
label map, and gigabytes for a large one. Places of names are found here: the median of a region may lie outside of it.

Shapes: H, W pixels of the image, K classes, n boxes. A label outside 0 ... K - 1 has no class: its pixels are darkened
and hatched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization.colours import class_colours
from clipself_seg.visualization.dense_maps import borders
from clipself_seg.visualization.sheets import DPI, families, one_line, save_png, sheet

SEEN = (0, 84, 214)
UNSEEN = (208, 20, 30)
MARK = "*"  # behind the name of an unseen class
OPACITY = 0.55
INK = (25, 25, 25)
WHITE = (255, 255, 255)
UNLABELLED = "no label"
HATCH = 150  # grey of the lines over pixels without a label
SMALL = 400  # pixels, shorter side below which an image is enlarged
LARGE = 2048  # pixels of the longer side, at most
MOST_ENTRIES = 40  # of a legend
MOST_COLUMNS = 6
CELLS = 400  # most cells along the shorter side of the grid on which places of names are searched
FURTHER = 0.02  # fraction of the image from which a further part of a region has its own name
INSIDE = 0.6  # fraction of a name's box that has to lie in its region
# Of tiles of a page, which are shown smaller than they are, and beside the image.
TILE_OPACITY = 0.75
TILE_SMALL = 240  # as SMALL
TILE_TEXT = 22  # pixels
MOST_NAMES = 14  # of the legend of a row of tiles


class Entry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: name of the class.
        colour: RGB.
        note: text before the name, such as the percentage of the pixels.
        hatched: lines are drawn over the colour.
    """

    name: str
    colour: tuple[int, int, int]
    note: str = ""
    hatched: bool = False


class Row(NamedTuple):
    """Images beside each other: a scene, its ground truth and what models say of it.

    Attributes:
        tiles: title -> (H, W, 3) uint8 RGB.
        legend: colours of the classes in the tiles.
    """

    tiles: Mapping[str, np.ndarray]
    legend: Sequence[Entry] = ()


class NameVisualizer(Visualizer):
    """Detectron2's Visualizer with names in any script, which stay in the image and cover none before them."""

    def __init__(self, image: np.ndarray, larger: float = 1.0) -> None:
        """
        Args:
            image: (H, W, 3) uint8 RGB.
            larger: size of the text, as a multiple of the usual one.
        """
        super().__init__(image, font_size_scale=larger)
        self.points = float(self._default_font_size)
        self._taken = list[Bbox]()

    def write_names(
        self, labels: np.ndarray, names: Sequence[str], grounds: np.ndarray | None = None
    ) -> set[int]:
        """Writes names into their regions, that of the largest first.

        Each stands at the deepest place where it fits best, and may stick out a little. Of a region in several parts
        every large one has the name; a part that is too small for it has none.

        Args:
            labels: (H, W) integers; those outside of 0 ... K - 1 have no name.
            names: of the K labels.
            grounds: (K, 3), RGB behind each name; None for black.

        Returns:
            The labels whose names are written.
        """
        step = max(1, min(labels.shape) // CELLS)
        grid = labels[::step, ::step]
        written = set[int]()
        numbers, areas = np.unique(grid, return_counts=True)
        for number in numbers[np.argsort(-areas, kind="stable")].tolist():
            if not 0 <= number < len(names):
                continue
            ground = INK if grounds is None else grounds[number]
            _, parts, stats, _ = cv2.connectedComponentsWithStats((grid == number).astype(np.uint8))
            sizes = stats[1:, cv2.CC_STAT_AREA]
            for part in {int(sizes.argmax()), *np.flatnonzero(sizes >= FURTHER * grid.size)}:
                left, top, width, height, _ = stats[part + 1]
                inside = parts[top : top + height, left : left + width] == part + 1
                text, size = self._text(names[number], ground)
                centres = step * (_centres(inside, size // step) + (left, top))
                if self._put(text, size, centres):
                    written.add(number)
        return written

    def write_boxes(
        self,
        boxes: np.ndarray,
        titles: Sequence[str],
        colours: np.ndarray,
        dashed: np.ndarray,
        titled: set[int],
    ) -> None:
        """Draws boxes, the first on top, with titles above, below or in them.

        Args:
            boxes: (n, 4) XYXY in pixels.
            titles: n texts.
            colours: (n, 3) uint8.
            dashed: (n,) bool.
            titled: numbers of boxes whose titles stand elsewhere.
        """
        for number in reversed(range(len(boxes))):
            self.draw_box(boxes[number], 1, _hex(colours[number]), "--" if dashed[number] else "-")
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            if number not in titled:
                text, size = self._text(titles[number], colours[number])
                width, height = size / 2
                places = [(left + width, y) for y in (top - height, bottom + height, top + height)]
                places.append((right - width, top - height))
                self._put(text, size, np.array(places))

    def _text(self, text: str, ground: Iterable[int]) -> tuple[Text, np.ndarray]:
        """A white text without a place, and its width and height in pixels."""
        text = one_line(text)
        self.draw_text(text, (0, 0), color="white")
        drawn = self.output.ax.texts[-1]
        drawn.set(family=families(text), parse_math=False, va="center")
        drawn.get_bbox_patch().set(facecolor=_hex(ground))
        extent = drawn.get_window_extent(self.output.canvas.get_renderer())
        return drawn, np.array([extent.width, extent.height]) + 2

    def _put(self, text: Text, size: np.ndarray, centres: Iterable[np.ndarray]) -> bool:
        """Moves a text to the first of some places where it covers none before it, or removes it.

        A place is x and y of the centre, or the nearest to it in the image.
        """
        limit = np.array([self.output.width, self.output.height])
        for centre in centres:
            middle = np.maximum(np.minimum(centre, limit - size / 2), size / 2)
            place = Bbox([middle - size / 2, middle + size / 2])
            if not place.count_overlaps(self._taken):
                text.set_position(middle)
                self._taken.append(place)
                return True
        text.remove()
        return False

    def image(self) -> Image.Image:
        """The image with all that is drawn."""
        return Image.fromarray(self.output.get_image())


def _hex(colour: Iterable[int]) -> str:
    """An RGB colour as matplotlib reads it."""
    return f"#{bytes(colour).hex()}"


def _centres(part: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Centre for a text in a part of a region: x and y of the deepest cell of those around which it fits best,
    (1, 2), or (0, 2) where it sticks out too far.

    Args:
        part: (h, w) bool, the part within its box.
        size: width and height of the text in cells.
    """
    width, height = size.astype(int) + 1
    mask = part.astype(np.uint8)
    fit = cv2.boxFilter(mask, cv2.CV_32F, (width, height), borderType=cv2.BORDER_CONSTANT)
    # In a frame of zeros, for the border of the box is a boundary, too.
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    deepest = int((fit.round(2) + depth / (100 * depth.max())).argmax())
    y, x = np.unravel_index(deepest, part.shape)
    return np.array([[x, y]] if fit[y, x] >= INSIDE else np.zeros((0, 2)), int)


def label_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    legend: bool = True,
    enlarge: bool = True,
) -> Image.Image:
    """Image tinted by labels, with names in their regions, above a legend with the percentages of the pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        names: of the K classes, or of n segments.
        colours: (K, 3) uint8.
        legend: draw the legend.
        enlarge: enlarge a small image by a whole number.
    """
    image, labels = readable(image, labels, small=SMALL if enlarge else 0)
    drawn = _labelled(image, labels, names, colours, OPACITY)
    return above_legend(drawn, entries(labels, names, colours)) if legend else drawn.image()


def _labelled(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    opacity: float,
    larger: float = 1.0,
) -> NameVisualizer:
    drawn = NameVisualizer(
        tinted(hatched(image, labels, len(names)), labels, colours, opacity), larger
    )
    drawn.write_names(labels, names)
    return drawn


def box_overlay(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
    seen: np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    legend: bool = True,
    enlarge: bool = True,
    colours: np.ndarray | None = None,
) -> Image.Image:
    """Image with boxes, each with its name and score, above a legend that counts seen and unseen ones.

    A box of a seen class is a solid blue line; one of an unseen class is red and dashed, and its name has an asterisk.
    The best lie on top. A name stands in its mask if there is room, else beside its box, or it is left out.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) XYXY in pixels, the best first.
        scores: (n,); None for boxes without, such as true ones.
        names: n names of classes.
        seen: (n,) bool, True where training has shown the class.
        masks: (n, H, W) bool, which are tinted; None for boxes alone.
        legend: draw the legend.
        enlarge: enlarge a small image by a whole number.
        colours: (n, 3) uint8 in place of blue and red.
    """
    labels = np.full(image.shape[:2], -1, np.int32)
    given = [] if masks is None else masks
    for number in reversed(range(len(given))):
        labels[given[number]] = number
    height, width = image.shape[:2]
    image, labels = readable(image, labels, small=SMALL if enlarge else 0)
    scale = image.shape[1] / width, image.shape[0] / height
    boxes = boxes * (*scale, *scale)
    titles = [name if known else name + MARK for name, known in zip(names, seen)]
    if scores is not None:
        titles = [f"{title} {score:.2f}" for title, score in zip(titles, scores)]
    if colours is None:
        colours = np.where(seen[:, None], SEEN, UNSEEN).astype(np.uint8)
    drawn = NameVisualizer(tinted(image, labels, colours, OPACITY))
    titled = drawn.write_names(labels, titles, colours)
    drawn.write_boxes(boxes, titles, colours, ~seen, titled)
    lines = [
        Entry("of seen classes (solid)", SEEN, str(np.sum(seen))),
        Entry(f"of unseen classes{MARK} (dashed)", UNSEEN, str(np.sum(~seen))),
    ]
    return above_legend(drawn, lines) if legend else drawn.image()


def label_rows(
    vocabulary: Vocabulary,
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
) -> list[Row]:
    """Images beside label maps, with names in the regions.

    Args:
        vocabulary: of the labels.
        images: (H, W, 3) uint8 RGB each.
        columns: title -> label map (H, W) of every image.
    """
    names, colours = vocabulary.first_names, class_colours(vocabulary.first_names)
    rows = []
    for number, image in enumerate(images):
        maps = [labels[number] for labels in columns.values()]
        large, *large_maps = readable(image, *maps, small=TILE_SMALL)
        tiles = {"image": large}
        for title, labels in zip(columns, large_maps):
            drawn = _labelled(large, labels, names, colours, TILE_OPACITY, TILE_TEXT / 14)
            tiles[title] = np.asarray(drawn.image())
        rows.append(Row(tiles, entries(np.stack(maps), names, colours, MOST_NAMES)))
    return rows


def write_tiles(rows: Sequence[Row], path: Path) -> None:
    """Writes the tiles of rows as one PNG, without the legends."""
    tiles = [list(row.tiles.values()) for row in rows]
    save_png(sheet(tiles, list(rows[0].tiles), text=TILE_TEXT), path)


def readable(image: np.ndarray, *maps: np.ndarray, small: int = SMALL) -> tuple[np.ndarray, ...]:
    """Image and maps of labels at a size to look at: a small image is larger, a large one smaller, by a whole number.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (H, W) each.
        small: shorter side in pixels below which an image is enlarged; 0 for never.
    """
    height, width = image.shape[:2]
    step = -(-max(height, width) // LARGE)  # more pixels take the Visualizer seconds, and gigabytes
    if step > 1:
        size = (-(-width // step), -(-height // step))
        reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return reduced, *(labels[::step, ::step] for labels in maps)
    factor = min(-(-small // min(height, width)), LARGE // max(height, width))
    if factor <= 1:
        return image, *maps
    grown = cv2.resize(image, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)
    return grown, *(labels.repeat(factor, axis=0).repeat(factor, axis=1) for labels in maps)


def hatched(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """A copy of an image with its pixels darkened under diagonal lines where no label of 0 ... count - 1 is."""
    missing = (labels < 0) | (labels >= count)
    period = max(10, min(labels.shape) // 32)
    y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
    changed = image.copy()
    changed[missing] //= 2
    changed[missing & ((y + x) % period < period // 5)] = HATCH
    return changed


def tinted(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float
) -> np.ndarray:
    """A copy of an image in which every pixel with a label has its tint, and boundaries are white on dark rims.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        colours: (K, 3) uint8.
        opacity: of the tint, 0 to 1.
    """
    known = (labels >= 0) & (labels < len(colours))
    table = np.concatenate([colours, np.zeros((1, 3), np.uint8)])
    tints = table[np.where(known, labels, len(colours))]
    painted = np.where(
        known[..., None], cv2.addWeighted(image, 1 - opacity, tints, opacity, 0), image
    )
    width = max(1, round(min(labels.shape) / 350))
    edge = borders(labels).astype(np.uint8)
    line, rim = (cv2.dilate(edge, np.ones((w, w), np.uint8)) > 0 for w in (width, width + 2))
    painted[rim] //= 2
    painted[line] = painted[line] // 4 + np.uint8(191)
    return painted


def entries(
    labels: np.ndarray, names: Sequence[str], colours: np.ndarray, most: int = MOST_ENTRIES
) -> list[Entry]:
    """Legend entries of the classes of label maps, the largest class first.

    Args:
        labels: one map (H, W) or several (n, H, W).
        names: names of the K classes.
        colours: colours of the classes, (K, 3) uint8.
        most: most entries; the last one then says how many classes are left.
    """
    known = (labels >= 0) & (labels < len(names))
    counts = np.bincount(labels[known].astype(np.int64), minlength=len(names))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    fractions = [counts[i] / labels.size for i in order]
    lines = [Entry(names[i], tuple(colours[i].tolist())) for i in order]
    if not known.all():
        fractions.append(1 - known.mean())
        lines.append(Entry(UNLABELLED, INK, hatched=True))
    if len(lines) > most:
        lines[most - 1 :] = [Entry(f"{len(lines) - most + 1} more", WHITE)]
        fractions[most - 1 :] = [sum(fractions[most - 1 :])]
    return [
        line._replace(note=f"{100 * part:.1f} %" if part >= 0.0005 else "< 0.1 %")
        for line, part in zip(lines, fractions)
    ]


def above_legend(drawn: NameVisualizer, lines: Sequence[Entry]) -> Image.Image:
    """A drawn image in the middle above a legend, in as many columns as fit into its width."""
    image = drawn.image()
    figure = Figure(dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    boxes = [
        Patch(
            facecolor=_hex(line.colour),
            edgecolor=_hex([HATCH] * 3),
            hatch="////" if line.hatched else None,
        )
        for line in lines
    ]
    texts = [one_line(f"{line.note}  {line.name}") for line in lines]
    font = {"family": families(" ".join(texts)), "size": drawn.points}
    for columns in range(min(MOST_COLUMNS, len(lines)), 0, -1):
        figure.legends.clear()
        legend = figure.legend(
            boxes,
            texts,
            loc="lower left",
            ncols=columns,
            prop=font,
            frameon=False,
            handlelength=1.3,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        extent = legend.get_window_extent(canvas.get_renderer())
        if extent.x0 + extent.x1 <= image.width:
            break
    width = max(image.width, round(extent.x0 + extent.x1))
    height = image.height + round(extent.y0 + extent.y1)
    figure.set_size_inches(width / DPI, height / DPI)
    figure.figimage(np.asarray(image), (width - image.width) // 2, height - image.height)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
