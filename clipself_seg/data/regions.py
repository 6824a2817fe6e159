"""Regions of an image that are distilled, grid cells or proposals, and arithmetic of their boxes.

Legend: n regions. Boxes are float64 XYXY in pixels of the original image (no padding), unless a name
says "relative". The rules are those of the CLIPSelf code; where the paper differs there is a switch,
named D1 or D2 (docs/distillation.md).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

GridRule = Literal["aspect", "all"]


class Regions(NamedTuple):
    """Regions of one image, in pixels.

    Attributes:
        boxes: (n, 4) XYXY, boxes that the student pools over.
        crops: (n, 4) XYXY, boxes that are cut out for the teacher; the same, or enlarged and clipped.
    """

    boxes: np.ndarray
    crops: np.ndarray


def grid_pairs(max_split: int, rule: GridRule = "aspect") -> list[tuple[int, int]]:
    """Pairs (rows, columns) that a grid may have.

    Args:
        max_split: largest number of rows or columns, M.
        rule: "aspect" keeps the two within a factor of two: columns from ceil(rows / 2) to
            min(2 rows, M), 24 pairs for M = 6. "all" is the paper's text (D1): all M^2 pairs.
    """
    if max_split < 1:
        raise ValueError(f"max_split must be at least 1, got {max_split}")
    splits = range(1, max_split + 1)
    if rule == "all":
        return [(rows, columns) for rows in splits for columns in splits]
    if rule != "aspect":
        raise ValueError(f'the grid rule is "aspect" or "all", got "{rule}"')
    return [
        (rows, columns)
        for rows in splits
        for columns in range(math.ceil(rows / 2), min(2 * rows, max_split) + 1)
    ]


def grid_boxes(rows: int, columns: int, width: int, height: int) -> np.ndarray:
    """Cells of the exact rows x columns partition of an image, row by row, (rows * columns, 4)."""
    x = np.arange(columns + 1) * width / columns
    y = np.arange(rows + 1) * height / rows
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def enlarge_boxes(boxes: np.ndarray, scale: float, width: int, height: int) -> np.ndarray:
    """Scale boxes about their centres and clip them to the image, (n, 4)."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * scale
    limit = np.array([width, height, width, height])
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, limit)


def relative_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes in the frame of the padded square, [0, 1] on both axes, (n, 4).

    The image fills the square from the top left corner with its longest side
    (`images.letterbox_image`), so the side of the square cancels out.
    """
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4) / max(width, height)


def sample_grid_regions(
    rng: np.random.Generator,
    *,
    width: int,
    height: int,
    max_split: int = 6,
    max_regions: int = 20,
    rule: GridRule = "aspect",
    crop_scale: float = 1.0,
) -> Regions:
    """Draw a grid and some of its cells, which are the image patches of the CLIPSelf paper.

    One pair of `grid_pairs` is drawn uniformly, the cells are shuffled, the first `max_regions`
    are kept.

    Args:
        rng: generator that decides the pair, then the order.
        width: width of the image in pixels.
        height: height of the image in pixels.
        max_split: largest number of rows or columns, M.
        max_regions: most regions of an image; 0 keeps every cell, as the paper's text does (D2).
        rule: rule for the pairs that are allowed (D1).
        crop_scale: enlargement of the teacher's crop about the cell's centre.
    """
    pairs = grid_pairs(max_split, rule)
    boxes = grid_boxes(*pairs[rng.integers(len(pairs))], width, height)
    boxes = boxes[rng.permutation(len(boxes))][: max_regions or None]
    return Regions(boxes, enlarge_boxes(boxes, crop_scale, width, height))


def sample_proposal_regions(
    rng: np.random.Generator,
    boxes: np.ndarray,
    *,
    width: int,
    height: int,
    areas: np.ndarray | None = None,
    max_regions: int = 20,
    min_area: float = 8**2,
    max_area: float = 1024**2,
    crop_scale: float = 1.5,
) -> Regions:
    """Draw some of the proposals of an image, in the reference's order of steps.

    Shuffle, keep the first `max_regions`, and only then drop boxes by area (those are not
    replaced). If none is left, the one region is the top left quarter by quarter of the image,
    not enlarged.

    Args:
        rng: generator that decides the order.
        boxes: proposals of the image, (N, 4) XYXY pixels, N may be 0.
        width: width of the image in pixels.
        height: height of the image in pixels.
        areas: areas of the boxes as their file states them, (N,); None takes those of the corners.
        max_regions: most regions of an image; 0 keeps all.
        min_area: smallest box area that is kept, in square pixels of the original image.
        max_area: largest box area that is kept, in square pixels of the original image.
        crop_scale: enlargement of the teacher's crop; the student's box stays as it is.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = box_areas(boxes) if areas is None else np.asarray(areas)
    chosen = rng.permutation(len(boxes))[: max_regions or None]
    boxes = boxes[chosen][within(areas[chosen], min_area, max_area)]
    if len(boxes) == 0:
        quarter = np.array([[0.0, 0.0, width / 4, height / 4]])
        return Regions(quarter, quarter)
    return Regions(boxes, enlarge_boxes(boxes, crop_scale, width, height))


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) of boxes (n, 4) XYXY."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def within(areas: np.ndarray, min_area: float, max_area: float) -> np.ndarray:
    """Whether each area is from `min_area` to `max_area` inclusive, (n,) bool."""
    return (areas >= min_area) & (areas <= max_area)
