"""Rows of images of the page: an image beside its ground truth and what models say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import (
    Entry,
    entries,
    named_regions,
    readable,
    save_png,
)
from clipself_seg.visualization.panels import sheet

OPACITY = 0.75  # of label maps, which are shown beside the image
TEXT = 22  # height in pixels of the names in regions: tiles are shown smaller than they are
MOST_NAMES = 14  # of a legend


class Row(NamedTuple):
    """A row of the page: one image and its tiles.

    Attributes:
        tiles: title -> (H, W, 3) uint8 RGB.
        legend: colours of the classes in the tiles.
    """

    tiles: Mapping[str, np.ndarray]
    legend: Sequence[Entry] = ()


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
        large, *large_maps = readable(image, *maps)
        drawn = (named_regions(large, m, names, colours, OPACITY, TEXT) for m in large_maps)
        legend = entries(np.stack(maps), names, colours, most=MOST_NAMES, percentages=False)
        rows.append(Row({"image": large} | dict(zip(columns, map(np.asarray, drawn))), legend))
    return rows


def write_tiles(rows: Sequence[Row], path: Path) -> None:
    """Write the tiles of rows as one PNG, without the legends."""
    tiles = [list(row.tiles.values()) for row in rows]
    save_png(sheet(tiles, list(rows[0].tiles), text=TEXT), path)
