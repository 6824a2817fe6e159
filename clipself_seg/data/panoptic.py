"""COCO panoptic PNG + JSON -> the regions that recognition is measured on.

Legend: n segments, H W pixels of the picture, h w tokens of the padded square. The rules of which
segments count and which box belongs to each are those of the reference evaluation.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.data.regions import Regions, area_within, enlarge_boxes
from clipself_seg.errors import InputError

MaskResize = Literal["reference", "exact"]

MAX_SEGMENTS = 100
MIN_BOX_AREA = 8**2
MAX_BOX_AREA = 1024**2


class Segments(NamedTuple):
    """The regions of one picture.

    Attributes:
        ids: (H, W) int32, the panoptic PNG; 0 is void.
        segment_ids: (n,) int64, the value of each region in `ids`.
        category_ids: (n,) int64, as in the data set's file.
        boxes: (n, 4) float64 XYXY pixels. Things: the annotation's box. Stuff: `mask_box`.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool."""
        return self.ids[None] == self.segment_ids[:, None, None]


def read_panoptic_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Segment ids R + 256 G + 65536 B of a panoptic PNG, (H, W) int32.

    Raises:
        InputError: the file is missing, cannot be decoded or is not an RGB picture.
    """
    ids = _decode_quickly(path)
    return _decode_by_pillow(path) if ids is None else ids


def _decode_quickly(path: str | os.PathLike[str]) -> np.ndarray | None:
    """By way of OpenCV, which is faster than Pillow; None for all but a sound RGB PNG."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
        # Bits of a sample and kind of pixel: OpenCV would turn palettes into colours.
        if content[12:16].tobytes() != b"IHDR" or content[24:26].tolist() != [8, 2]:
            return None
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        return None
    if pixels is None or pixels.shape[2:] != (3,):
        return None
    # Four bytes a pixel, so R + 256 G + 65536 B is there but for the fourth.
    numbers = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGBA).view("<u4")[..., 0]
    numbers &= 0xFFFFFF
    return numbers.view(np.int32)


def _decode_by_pillow(path: str | os.PathLike[str]) -> np.ndarray:
    """As OpenCV does it, for files that are somehow different, and with reasons for errors."""
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise InputError(
                    f"{path}: a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B), "
                    f"this one is {image.mode}"
                )
            # Pixels are four bytes apart in memory, so R + 256 G + 65536 B is there already.
            numbers = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4")
            return (numbers & 0xFFFFFF).view(np.int32).reshape(image.size[::-1])
    except FileNotFoundError:
        raise InputError(
            f"panoptic PNG {path} is missing: unpack the PNGs beside their JSON"
        ) from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"panoptic PNG {path} cannot be decoded ({error}): fetch it again"
        ) from None


def read_panoptic_ids(record: dict[str, Any]) -> np.ndarray:
    """Segment ids of a record's PNG, (H, W) int32, 0 is void; its list of segments agrees.

    Args:
        record: "pan_seg_file_name", "segments_info" and "image_id"; if known, "height", "width" and
            "panoptic_json". With "covered_stuff", segments may be listed that have no pixel.

    Raises:
        InputError: the PNG cannot be read, or it and the JSON disagree about size or segments.
    """
    ids = read_panoptic_png(record["pan_seg_file_name"])
    _check_agreement(ids, record)
    return ids


def read_segments(record: dict[str, Any], thing_ids: frozenset[int]) -> Segments:
    """Read and check the regions of one record of `records.panoptic_records`.

    The first `MAX_SEGMENTS` in file order count, crowds included; a region is dropped if its box
    has less than `MIN_BOX_AREA` or more than `MAX_BOX_AREA` square pixels.

    Args:
        record: "file_name", "pan_seg_file_name", "segments_info" and, if known, "height" and
            "width".
        thing_ids: category ids of the things; all others are stuff.

    Raises:
        InputError: the PNG and the JSON disagree about the size or the segments.
    """
    ids = read_panoptic_ids(record)
    infos = record["segments_info"][:MAX_SEGMENTS]
    segments = Segments(
        ids=ids,
        segment_ids=np.array([info["id"] for info in infos], dtype=np.int64),
        category_ids=np.array([info["category_id"] for info in infos], dtype=np.int64),
        boxes=np.array([_box(info, ids, thing_ids) for info in infos]).reshape(-1, 4),
    )
    _check_boxes(segments, record)
    keep = area_within(segments.boxes, MIN_BOX_AREA, MAX_BOX_AREA)
    return Segments(ids, *(values[keep] for values in segments[1:]))


def _check_agreement(ids: np.ndarray, record: dict[str, Any]) -> None:
    stated = [info["id"] for info in record["segments_info"]]
    where = _disagreement(record)
    size = (record.get("height", ids.shape[0]), record.get("width", ids.shape[1]))
    if ids.shape != size:
        raise InputError(
            f"{where}: {ids.shape[1]} x {ids.shape[0]} pixels, {size[1]} x {size[0]} in the JSON; "
            "take both from one release"
        )
    painted = set(np.unique(ids).tolist()) - {0}
    hidden = set(stated) - painted if record.get("covered_stuff") else set()
    if painted | hidden != set(stated) or len(stated) != len(set(stated)):
        raise InputError(
            f"{where}: segments {sorted(painted - set(stated))[:5]} only in the PNG, "
            f"{sorted(set(stated) - painted)[:5]} only in the JSON; take both from one release"
        )


def _check_boxes(segments: Segments, record: dict[str, Any]) -> None:
    """Boxes lie in their pictures, but for a pixel of rounding."""
    height, width = segments.ids.shape
    outside = (segments.boxes < -1) | (segments.boxes > np.array([width, height] * 2) + 1)
    for index in np.flatnonzero(outside.any(axis=1))[:1]:
        raise InputError(
            f"{_disagreement(record)}: the box of segment {segments.segment_ids[index]}, "
            f"{segments.boxes[index].tolist()}, is not in the picture of {width} x {height} pixels; "
            "take both from one release"
        )


def _disagreement(record: dict[str, Any]) -> str:
    entry = f"entry of image {record['image_id']} in {record.get('panoptic_json', 'the JSON')}"
    return f"panoptic PNG {record['pan_seg_file_name']} and the {entry} disagree"


def _box(info: dict[str, Any], ids: np.ndarray, thing_ids: frozenset[int]) -> np.ndarray:
    if info["category_id"] in thing_ids:
        x, y, width, height = info["bbox"]
        return np.array([x, y, x + width, y + height], dtype=np.float64)
    return mask_box(ids == info["id"])


def category_labels(
    category_ids: np.ndarray, index_of: dict[int, int], source: str | os.PathLike[str]
) -> np.ndarray:
    """Class indices of category ids, (n,) int64.

    Args:
        category_ids: (n,) as in the data set's file.
        index_of: category id -> index in the vocabulary.
        source: the file, for the error.

    Raises:
        InputError: an id that the vocabulary does not have.
    """
    unknown = sorted(set(category_ids.tolist()) - index_of.keys())
    if unknown:
        raise InputError(
            f"{source}: category ids {unknown[:5]} are not in the vocabulary: "
            "give the data set's own"
        )
    return np.array([index_of[category] for category in category_ids.tolist()], dtype=np.int64)


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Box (4,) from the smallest to the largest pixel INDEX of a mask that is not empty.

    The largest index is inclusive, so the box is one pixel short on both axes: the reference's
    stuff boxes are.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def segment_regions(segments: Segments, isthing: np.ndarray, crop_scale: float) -> Regions:
    """Boxes to pool over, and crops: things enlarged about the centre and clipped, stuff as it is.

    Args:
        segments: n regions.
        isthing: (n,) bool.
        crop_scale: enlargement of the things' crops; 1.5 in the reference.
    """
    height, width = segments.ids.shape
    enlarged = enlarge_boxes(segments.boxes, crop_scale, width, height)
    return Regions(segments.boxes, np.where(isthing[:, None], enlarged, segments.boxes))


def token_masks(masks: np.ndarray, side: int, rule: MaskResize = "reference") -> Tensor:
    """Masks at token resolution, in the frame of the padded square, (n, side, side) bool.

    Args:
        masks: (n, H, W) bool.
        side: tokens along a side of the square.
        rule: "reference" as `resized_masks`, "exact" as `covered_masks`.
    """
    if rule not in ("reference", "exact"):
        raise ValueError(f'the mask rule is "reference" or "exact", got "{rule}"')
    if len(masks) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool)
    return resized_masks(masks, side) if rule == "reference" else covered_masks(masks, side)


def resized_masks(masks: np.ndarray, side: int) -> Tensor:
    """The reference's masks: bicubic without antialiasing, longest side = `side`, padded, > 0.

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
    """Area-true masks: a token belongs to a mask that covers at least half of its cell.

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
