"""Segments of COCO panoptic annotations as regions: their boxes, crops and token masks.

Region recognition is measured on them. Legend: n segments, H W pixels of the image, h w tokens of the
padded square. The rules of which segments count and which box belongs to each are those of the
reference evaluation.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.data.images import MAX_PIXELS
from clipself_seg.data.panoptic_png import disagreement, read_panoptic_ids
from clipself_seg.data.regions import Regions, box_areas, enlarge_boxes, within
from clipself_seg.errors import InputError

MaskResize = Literal["reference", "exact"]

MAX_SEGMENTS = 100
MIN_BOX_AREA = 8**2
MAX_BOX_AREA = 1024**2


class Segments(NamedTuple):
    """Segments of one image.

    Attributes:
        ids: (H, W) int32, the panoptic PNG; 0 is void.
        segment_ids: (n,) int64, the value of each segment in `ids`.
        category_ids: (n,) int64, category ids of the data set's file.
        boxes: (n, 4) float64 XYXY pixels. Things: the annotation's box. Stuff: `mask_box`.
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
    record: dict[str, Any], thing_ids: frozenset[int], max_pixels: int = MAX_PIXELS
) -> Segments:
    """Read and check the segments of one record of `records.panoptic_records`.

    The first `MAX_SEGMENTS` in file order count, crowds included; a segment is dropped if its box
    has less than `MIN_BOX_AREA` or more than `MAX_BOX_AREA` square pixels.

    Args:
        record: record with "file_name", "pan_seg_file_name", "segments_info" and, if known,
            "height" and "width".
        thing_ids: category ids of the things; all others are stuff.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the PNG and the JSON disagree about the size or the segments.
    """
    ids = read_panoptic_ids(record, max_pixels)
    infos = record["segments_info"][:MAX_SEGMENTS]
    segments = Segments(
        ids=ids,
        segment_ids=np.array([info["id"] for info in infos], dtype=np.int64),
        category_ids=np.array([info["category_id"] for info in infos], dtype=np.int64),
        boxes=np.array([_box(info, ids, thing_ids) for info in infos]).reshape(-1, 4),
    )
    _check_boxes(segments, record)
    keep = within(box_areas(segments.boxes), MIN_BOX_AREA, MAX_BOX_AREA)
    return Segments(ids, *(values[keep] for values in segments[1:]))


def _check_boxes(segments: Segments, record: dict[str, Any]) -> None:
    """Refuse boxes that reach more than a pixel, for rounding, beyond the image."""
    height, width = segments.ids.shape
    outside = (segments.boxes < -1) | (segments.boxes > np.array([width, height] * 2) + 1)
    for index in np.flatnonzero(outside.any(axis=1))[:1]:
        raise InputError(
            f"{disagreement(record)}: the box of segment {segments.segment_ids[index]}, "
            f"{segments.boxes[index].tolist()}, is not in the image of {width} x {height} pixels; "
            "take both from one release"
        )


def _box(info: dict[str, Any], ids: np.ndarray, thing_ids: frozenset[int]) -> np.ndarray:
    if info["category_id"] in thing_ids:
        x, y, width, height = info["bbox"]
        return np.array([x, y, x + width, y + height], dtype=np.float64)
    return mask_box(ids == info["id"])


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Box (4,) from the smallest to the largest pixel INDEX of a mask that is not empty.

    The largest index is inclusive, so the box is one pixel short on both axes: the reference's
    stuff boxes are.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def segment_regions(segments: Segments, isthing: np.ndarray, crop_scale: float) -> Regions:
    """Boxes of segments to pool over, and crops: things enlarged and clipped, stuff as it is.

    Args:
        segments: n segments of an image.
        isthing: whether each segment is a thing, (n,) bool.
        crop_scale: enlargement of the things' crops about their centres; 1.5 in the reference.
    """
    height, width = segments.ids.shape
    enlarged = enlarge_boxes(segments.boxes, crop_scale, width, height)
    return Regions(segments.boxes, np.where(isthing[:, None], enlarged, segments.boxes))


def token_masks(masks: np.ndarray, side: int, rule: MaskResize = "reference") -> Tensor:
    """Masks at token resolution, in the frame of the padded square, (n, side, side) bool.

    Args:
        masks: masks at the resolution of the image, (n, H, W) bool.
        side: number of tokens along a side of the square.
        rule: "reference" for `resized_masks`, "exact" for `covered_masks`.
    """
    if rule not in ("reference", "exact"):
        raise ValueError(f'the mask rule is "reference" or "exact", got "{rule}"')
    if len(masks) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool)
    return resized_masks(masks, side) if rule == "reference" else covered_masks(masks, side)


def resized_masks(masks: np.ndarray, side: int) -> Tensor:
    """Token masks as in the reference: bicubic without antialiasing, longest side = `side`, padded, > 0.

    Since bicubic samples only four pixels an axis, a thin mask can fall between the samples and
    come out empty. Resizing with antialiasing instead, as newer libraries do by default, would
    dilate every mask (a cell counts as soon as any of its pixels does).
    """
    height, width = masks.shape[-2:]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = torch.from_numpy(masks)[None].float()
    resized = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=False)[0]
    return F.pad(resized > 0, (0, side - size[1], 0, side - size[0]))


def covered_masks(masks: np.ndarray, side: int) -> Tensor:
    """Token masks true to area: a token belongs to a mask that covers at least half of its cell.

    Padding counts as not covered. A mask that reaches half of no cell keeps the cells that it
    covers most, so none comes out empty (unless it was).
    """
    height, width = masks.shape[-2:]
    cell = max(height, width) / side
    pixels = torch.from_numpy(masks).double()
    covered = _overlaps(height, side, cell) @ pixels @ _overlaps(width, side, cell).T
    # A cell's borders are fractions: without the slack one that is half covered may miss it.
    threshold = covered.amax((1, 2), keepdim=True).clamp(max=cell**2 / 2) - 1e-9 * cell**2
    return (covered >= threshold) & (covered > 0)


def _overlaps(pixels: int, side: int, cell: float) -> Tensor:
    """Length of pixel j inside token cell i along one axis, in pixels, (side, pixels) float64."""
    pixel = torch.arange(pixels, dtype=torch.float64)
    start = torch.arange(side, dtype=torch.float64)[:, None] * cell
    return (torch.minimum(pixel + 1, start + cell) - torch.maximum(pixel, start)).clamp(min=0)
