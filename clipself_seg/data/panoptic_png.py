"""Panoptic PNGs in COCO's format: the segment ids of an image, checked against its JSON entry.

H, W are the pixels of the image. The id of a pixel's segment is R + 256 G + 65536 B; 0 is void.
"""

from __future__ import annotations

import io
import os
from typing import Any

import cv2
import numpy as np

from clipself_seg.data.images import (
    DECODING_ERRORS,
    MAX_PIXELS,
    check_chunks,
    check_pixels,
    open_image,
)
from clipself_seg.errors import InputError
from clipself_seg.files import require_regular_file

# Samples in the order and the place that the file has them in: OpenCV's own order, BGR, takes a tenth more.
AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def read_panoptic_png(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Segment ids of a panoptic PNG, (H, W) int32.

    Args:
        path: file.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the file is missing, cannot be decoded, or has no RGB pixels or too many.
    """
    ids = _decode_quickly(path, max_pixels)
    return _decode_by_pillow(path, max_pixels) if ids is None else ids


def _decode_quickly(path: str | os.PathLike[str], max_pixels: int) -> np.ndarray | None:
    """Segment ids decoded by OpenCV, which is faster than Pillow; None for all but a sound RGB PNG."""
    try:
        require_regular_file(path)
        content = np.fromfile(path, dtype=np.uint8)
        # Bytes 24 and 25 of the header: 8 bits a sample, pixels of type RGB. OpenCV would turn palettes
        # into colours.
        if content[12:16].tobytes() != b"IHDR" or content[24:26].tolist() != [8, 2]:
            return None
        width, height = content[16:24].view(">u4").tolist()
        check_pixels(path, width, height, max_pixels)
        check_chunks(io.BytesIO(content.tobytes()))
        pixels = cv2.imdecode(content, AS_STORED)
    except (OSError, SyntaxError, cv2.error):
        return None
    if pixels is None or pixels.shape[2:] != (3,):
        return None
    # RGBA bytes read as one little-endian integer are R + 256 G + 65536 B + 2^24 A; the mask drops A.
    numbers = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    numbers &= 0xFFFFFF
    return numbers.view(np.int32)


def _decode_by_pillow(path: str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    """Segment ids decoded by Pillow, for unusual files, and for errors that say what is wrong."""
    try:
        with open_image(path, max_pixels) as image:
            if image.mode != "RGB":
                raise InputError(
                    f"{path}: a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B), "
                    f"this one is {image.mode}"
                )
            # Four bytes a pixel, read as one little-endian integer; the mask drops the unused fourth.
            numbers = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4")
            return (numbers & 0xFFFFFF).view(np.int32).reshape(image.size[::-1])
    except FileNotFoundError:
        raise InputError(
            f"panoptic PNG {path} is missing: unpack the PNGs beside their JSON"
        ) from None
    except InputError:
        raise
    except DECODING_ERRORS as error:
        raise InputError(
            f"panoptic PNG {path} cannot be decoded ({error}): fetch it again"
        ) from None


def read_panoptic_ids(record: dict[str, Any], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Segment ids of a record's PNG, (H, W) int32, after checking that its JSON entry agrees.

    Args:
        record: record with "pan_seg_file_name", "segments_info" and "image_id"; if known, "height",
            "width" and "panoptic_json". If "covered_stuff" is true, segments without a pixel may be
            listed.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the PNG cannot be read, or it and the JSON disagree about size or segments.
    """
    ids = read_panoptic_png(record["pan_seg_file_name"], max_pixels)
    _check_agreement(ids, record)
    return ids


def _check_agreement(ids: np.ndarray, record: dict[str, Any]) -> None:
    stated = [info["id"] for info in record["segments_info"]]
    where = disagreement(record)
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


def disagreement(record: dict[str, Any]) -> str:
    """Start of a message that a record's PNG and JSON entry disagree, which names both."""
    entry = f"entry of image {record['image_id']} in {record.get('panoptic_json', 'the JSON')}"
    return f"panoptic PNG {record['pan_seg_file_name']} and the {entry} disagree"
