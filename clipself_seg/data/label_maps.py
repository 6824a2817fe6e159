"""Reading label maps, which have one integer per pixel, from 8- and 16-bit PNG and TIFF files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipself_seg.data.images import DECODING_ERRORS, MAX_PIXELS, open_image
from clipself_seg.errors import InputError

_UNPACK = "unpack its archive again"


def read_label_map(
    path: str | os.PathLike[str],
    *,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int] | None = None,
    image: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Read and check the label map of an image, (H, W) int64.

    Args:
        path: PNG or TIFF with one channel of 8 or 16 bits, or a palette PNG, whose indices count.
        num_classes: number of classes; labels are 0 ... num_classes - 1.
        ignore_label: value of pixels without ground truth, the only other one allowed.
        size: (width, height) of the image in pixels, to compare with.
        image: file of the image, for the message.

    Raises:
        InputError: the file is missing or corrupt, or has several channels, another size than the
            image, a label outside the vocabulary, or labels above 255 cut to 8 bits.
    """
    # As large as its image it may be.
    limit = MAX_PIXELS if size is None else max(MAX_PIXELS, size[0] * size[1])
    labels = read_indices(path, max_pixels=limit)
    height, width = labels.shape
    if size is not None and (width, height) != tuple(size):
        raise InputError(
            f"label map {path} is {width} x {height}, its image {image or ''} is "
            f"{size[0]} x {size[1]}: prepare the label maps again, or restore the image"
        )
    _check_labels(labels, path, num_classes, ignore_label)
    return labels.astype(np.int64)


def read_labels_of(
    record: Mapping[str, Any],
    *,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read and check the label map of a record or sample with `read_label_map`, (H, W) int64.

    Args:
        record: has "sem_seg_file_name" and "file_name", and without `size` "width" and "height" in pixels.
        num_classes, ignore_label: as in `read_label_map`.
        size: (width, height) of the image in pixels; None takes the record's.

    Raises:
        InputError: as `read_label_map`.
    """
    return read_label_map(
        record["sem_seg_file_name"],
        num_classes=num_classes,
        ignore_label=ignore_label,
        size=size or (int(record["width"]), int(record["height"])),
        image=record["file_name"],
    )


def read_indices(
    path: str | os.PathLike[str], archive: bool = False, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Unchecked values of a file with one integer per pixel, (H, W) uint8, uint16 or int32.

    Args:
        path: file as for `read_label_map`.
        archive: whether the file was unpacked and not prepared, which decides the advice of errors.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the file is missing or corrupt, or has several channels or more pixels.
    """
    try:
        with open_image(path, max_pixels) as file:
            if file.mode not in ("L", "P", "1") and not file.mode.startswith("I"):
                raise InputError(
                    f"label map {path} has pixels of type {file.mode}, not one integer each: "
                    "give a map of class indices, not a coloured or blended one"
                )
            values = np.asarray(file)
    except FileNotFoundError:
        remedy = _UNPACK if archive else "prepare the label maps, or restore it"
        raise InputError(f"label map {path} is missing: {remedy}") from None
    except InputError:
        raise
    except DECODING_ERRORS as error:
        # The advice is not to delete it: a map of a user's own cannot be prepared again.
        remedy = _UNPACK if archive else "prepare it again with --overwrite, or restore it"
        raise InputError(f"label map {path} cannot be decoded ({error}): {remedy}") from None
    return values.astype(np.uint8) if values.dtype == bool else values


def _check_labels(
    labels: np.ndarray, path: str | os.PathLike[str], num_classes: int, ignore_label: int
) -> None:
    known = (labels >= 0) & (labels < num_classes) | (labels == ignore_label)
    if not known.all():
        outside = np.unique(labels[~known])
        shown = ", ".join(map(str, outside[:5])) + (", ..." if len(outside) > 5 else "")
        raise InputError(
            f"label map {path} has the value {shown}: expected 0 to {num_classes - 1}, or "
            f"{ignore_label} for ignored pixels\n{_likely_cause(outside, num_classes, ignore_label)}"
        )
    # A reader or writer of 8 bits cuts larger labels to 255, which is a valid class where there are
    # more than 255; a map whose labels happen to be smaller is in order.
    if labels.dtype == np.uint8 and num_classes > 255 != ignore_label and (labels == 255).any():
        raise InputError(
            f"label map {path} has 8 bits and the value 255, with {num_classes} classes: labels "
            "above 254 were cut; prepare it again as 16-bit TIFF"
        )


def _likely_cause(outside: np.ndarray, num_classes: int, ignore_label: int) -> str:
    if outside.tolist() == [num_classes]:
        return "Labels that count from 1? `clipself-seg data prepare` renumbers the archives' maps from 0."
    if outside.tolist() in ([255], [65535]):
        return f"Is {outside[0]} the ignore label here? Set it in the data set's metadata."
    return (
        "An archive's map that was not prepared (see `clipself-seg data prepare`), another data set's "
        "numbering, or another vocabulary."
    )
