"""Regions of an image: grid cells and proposals, which are distilled, and panoptic segments, which are recognised.

Legend: n regions, H W pixels of the image, h w tokens of the padded square. Boxes are float64 XYXY in pixels of the
original image (no padding), unless a name says "relative". The rules are those of the CLIPSelf code; where the paper
differs there is a switch, named D1 or D2 (docs/distillation.md). Which segments count, and which box belongs to each,
are rules of the reference evaluation.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.data.annotations import JsonObject, Record
from clipself_seg.data.images import MAX_PIXELS
from clipself_seg.data.masks import disagreement, read_panoptic_ids, tight_box
from clipself_seg.errors import InputError

GridRule = Literal["aspect", "all"]

MAX_SEGMENTS = 100
MIN_BOX_AREA = 8**2  # square pixels of the original image
MAX_BOX_AREA = 1024**2


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
    splits = range(1, max_split + 1)
    if rule == "all":
        return [(rows, columns) for rows in splits for columns in splits]
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
    """Scales boxes about their centres and clips them to the image, (n, 4)."""
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
    """Draws a grid and some of its cells, which are the image patches of the CLIPSelf paper.

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
    crop_scale: float = 1.5,
) -> Regions:
    """Draws some of the proposals of an image, in the reference's order of steps.

    Shuffle, keep the first `max_regions`, and only then drop boxes by area, see `of_usable_area` (those are not
    replaced). If none is left, the one region is the top left quarter by quarter of the image,
    not enlarged.

    Args:
        rng: generator that decides the order.
        boxes: proposals of the image, (N, 4) XYXY pixels, N may be 0.
        width: width of the image in pixels.
        height: height of the image in pixels.
        areas: areas of the boxes as their file states them, (N,); None takes those of the corners.
        max_regions: most regions of an image; 0 keeps all.
        crop_scale: enlargement of the teacher's crop; the student's box stays as it is.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas = box_areas(boxes) if areas is None else np.asarray(areas)
    chosen = rng.permutation(len(boxes))[: max_regions or None]
    boxes = boxes[chosen][of_usable_area(areas[chosen])]
    if len(boxes) == 0:
        quarter = np.array([[0.0, 0.0, width / 4, height / 4]])
        return Regions(quarter, quarter)
    return Regions(boxes, enlarge_boxes(boxes, crop_scale, width, height))


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (n,) of boxes (n, 4) XYXY."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def of_usable_area(areas: np.ndarray) -> np.ndarray:
    """True for each area from `MIN_BOX_AREA` to `MAX_BOX_AREA` inclusive, (n,) bool."""
    return (areas >= MIN_BOX_AREA) & (areas <= MAX_BOX_AREA)


class Segments(NamedTuple):
    """Segments of one image.

    Attributes:
        ids: (H, W) int32, the panoptic PNG; 0 is void.
        segment_ids: (n,) int64, the value of each segment in `ids`.
        category_ids: (n,) int64, category ids of the data set's file.
        boxes: (n, 4) float64 XYXY pixels. Things: the annotation's box. Stuff: from the smallest to the largest index.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """Masks of the segments, (n, H, W) bool."""
        return self.ids[None] == self.segment_ids[:, None, None]


def read_segments(
    record: Record, thing_ids: frozenset[int], max_pixels: int = MAX_PIXELS
) -> Segments:
    """Reads and checks the segments of one record of `annotations.panoptic_records`.

    The first `MAX_SEGMENTS` in file order count, crowds included; a segment is dropped if its box
    has less than `MIN_BOX_AREA` or more than `MAX_BOX_AREA` square pixels.

    Args:
        record: record with "file_name", "pan_seg_file_name", "segments_info" and, if known,
            "height" and "width". If "covered_stuff" is true, segments without a pixel are left out.
        thing_ids: category ids of the things; all others are stuff.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the PNG and the JSON disagree about the size or the segments.
    """
    ids = read_panoptic_ids(record, max_pixels)
    listed, all_shown = record["segments_info"][:MAX_SEGMENTS], not record.get("covered_stuff")
    infos = [info for info in listed if all_shown or (ids == info["id"]).any()]
    segments = Segments(
        ids=ids,
        segment_ids=np.array([info["id"] for info in infos], dtype=np.int64),
        category_ids=np.array([info["category_id"] for info in infos], dtype=np.int64),
        boxes=np.array([_box(info, ids, thing_ids) for info in infos]).reshape(-1, 4),
    )
    _check_boxes(segments, record)
    keep = of_usable_area(box_areas(segments.boxes))
    return Segments(ids, *(values[keep] for values in segments[1:]))


def _check_boxes(segments: Segments, record: Record) -> None:
    """Refuses boxes that reach more than a pixel, for rounding, beyond the image."""
    height, width = segments.ids.shape
    outside = (segments.boxes < -1) | (segments.boxes > np.array([width, height] * 2) + 1)
    for index in np.flatnonzero(outside.any(axis=1))[:1]:
        raise InputError(
            f"{disagreement(record)}: the box of segment {segments.segment_ids[index]}, "
            f"{segments.boxes[index].tolist()}, is not in the image of {width} x {height} pixels; "
            "take both from one release"
        )


def _box(info: JsonObject, ids: np.ndarray, thing_ids: frozenset[int]) -> np.ndarray:
    if info["category_id"] in thing_ids:
        x, y, width, height = info["bbox"]
        return np.array([x, y, x + width, y + height], dtype=np.float64)
    # To the largest index inclusive, so that the box is one pixel short: the reference's stuff boxes are.
    return np.array(tight_box(ids == info["id"]), dtype=np.float64) - [0, 0, 1, 1]


def segment_regions(segments: Segments, isthing: np.ndarray, crop_scale: float) -> Regions:
    """Boxes of segments to pool over, and crops: things enlarged and clipped, stuff as it is.

    Args:
        segments: n segments of an image.
        isthing: True for each segment that is a thing, (n,) bool.
        crop_scale: enlargement of the things' crops about their centres; 1.5 in the reference.
    """
    height, width = segments.ids.shape
    enlarged = enlarge_boxes(segments.boxes, crop_scale, width, height)
    return Regions(segments.boxes, np.where(isthing[:, None], enlarged, segments.boxes))


def token_masks(masks: np.ndarray, side: int) -> Tensor:
    """Masks at token resolution, as in the reference: bicubic without antialiasing, longest side = `side`, padded, > 0.

    Args:
        masks: masks at the resolution of the image, (n, H, W) bool.
        side: number of tokens along a side of the square.

    Returns:
        Masks in the frame of the padded square, (n, side, side) bool.

    Since bicubic samples only four pixels an axis, a thin mask can fall between the samples and
    come out empty. Resizing with antialiasing instead, as newer libraries do by default, would
    dilate every mask (a cell counts as soon as any of its pixels does).
    """
    if len(masks) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool)
    height, width = masks.shape[-2:]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = torch.from_numpy(masks)[None].float()
    resized = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=False)[0]
    return F.pad(resized > 0, (0, side - size[1], 0, side - size[0]))
