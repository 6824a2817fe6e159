"""Masks as files have them: label maps, panoptic PNGs, and COCO's run lengths and polygons.

A label map has one integer per pixel, in an 8- or 16-bit PNG or TIFF. In a panoptic PNG of COCO's the id of a pixel's
segment is R + 256 G + 65536 B; 0 is void. Run lengths and polygons are checked before pycocotools gets them, for its C
code believes what a file says: runs that are longer than the image are written beyond its memory.

H, W are the pixels of the image.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle
from torch import Tensor

from clipself_seg.data import images
from clipself_seg.data.annotations import Record
from clipself_seg.errors import InputError, in_short

Rle = dict[str, Any]
"""COCO's run-length encoding as pycocotools has it: "size" [H, W] and "counts"."""
ONE_RELEASE = "take both from one release"
INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Types of pixels, in Pillow's words, that are one integer each."""
# Characters of a compressed run: five bits each, for numbers below 2^35.
MOST_CHARACTERS = 7
LARGEST_VALUE = 65535  # of a label map
CAUSES = (
    'Prepare an archive\'s map (see `python tools/prepare.py`); for a registered data set set "label_values" in its '
    'metadata, such as {1: 0, 2: 1} for labels that count from 1, or "ignore_label".'
)
LARGEST_IMAGE = 1 << 31
"""Pixels of an image whose runs pycocotools can count."""
MASK_BYTES = 2**31  # of all masks of an image, above which a model gives them as `EncodedMasks`


def read_label_map(
    path: str | os.PathLike[str],
    *,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int] | None = None,
    image: str | os.PathLike[str] | None = None,
    label_values: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Reads and checks the label map of an image, (H, W) int64.

    Args:
        path: PNG or TIFF with one channel of 8 or 16 bits, or a palette PNG, whose indices count.
        num_classes: number of classes; labels are 0 ... num_classes - 1.
        ignore_label: value of pixels without ground truth, the only other one allowed.
        size: (width, height) of the image in pixels, to compare with.
        image: file of the image, for the message.
        label_values: label by value in the file; pixels of all other values get `ignore_label`. None takes
            the values themselves as labels, and refuses others.

    Raises:
        InputError: the file is missing or corrupt, or has several channels, another size than the
            image, or a label outside the vocabulary.
    """
    # As large as its image it may be.
    limit = images.MAX_PIXELS if size is None else max(images.MAX_PIXELS, size[0] * size[1])
    labels = read_indices(path, max_pixels=limit)
    if size is not None:
        advice = "prepare the label maps again, or restore the image"
        images.require_size(
            f"label map {path}", labels.shape[::-1], f"its image {image or ''}", size, advice
        )
    if label_values is None:
        _check_labels(labels, path, num_classes, ignore_label)
        return labels.astype(np.int64)
    table = np.full(LARGEST_VALUE + 2, ignore_label, dtype=np.int64)
    for value, label in label_values.items():
        if not (
            0 <= value <= LARGEST_VALUE and (0 <= label < num_classes or label == ignore_label)
        ):
            limits = f"values are 0 to {LARGEST_VALUE}, labels 0 to {num_classes - 1}: correct them"
            raise InputError(f"{path}: its value {value} stands for label {label}, but {limits}")
        table[value] = label
    # uint8 has no room for LARGEST_VALUE + 1, and NumPy 2.5 refuses it there.
    labels = labels.astype(np.int64)
    return table[np.where((labels >= 0) & (labels <= LARGEST_VALUE), labels, LARGEST_VALUE + 1)]


def read_labels_of(
    record: Mapping[str, Any],
    *,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads and checks the label map of a record or sample with `read_label_map`, (H, W) int64.

    Args:
        record: has "sem_seg_file_name" and "file_name", without `size` "width" and "height" in pixels, and
            "label_values" where the data set has them; or "painted", pairs of a segmentation or the id of a panoptic
            segment and its label.
        num_classes, ignore_label: as in `read_label_map`.
        size: (width, height) of the image in pixels; None takes the record's.

    Raises:
        InputError: as `read_label_map`.
    """
    size = size or (int(record["width"]), int(record["height"]))
    if "painted" in record:
        return _painted(record, size, ignore_label)
    return read_label_map(
        record["sem_seg_file_name"],
        num_classes=num_classes,
        ignore_label=ignore_label,
        size=size,
        image=record["file_name"],
        label_values=record.get("label_values"),
    )


def _painted(record: Mapping[str, Any], size: tuple[int, int], ignore_label: int) -> np.ndarray:
    """A label map that is painted of masks one after the other, or of the segments of a panoptic PNG."""
    width, height = size
    labels = np.full((height, width), ignore_label, dtype=np.int64)
    if str(record["sem_seg_file_name"]).lower().endswith(".png"):
        path = record["sem_seg_file_name"]
        ids = read_panoptic_png(path, max(images.MAX_PIXELS, width * height))
        image = f"its image {record['file_name']}"
        images.require_size(f"panoptic PNG {path}", ids.shape[::-1], image, size, ONE_RELEASE)
        for segment, label in record["painted"]:
            labels[ids == segment] = label
        return labels
    for segmentation, label in record["painted"]:
        labels[object_mask(segmentation, height, width, record["file_name"]) > 0] = label
    return labels


def read_indices(path: str | os.PathLike[str], max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """Values of a file with one integer per pixel, (H, W) uint8, uint16 or int32.

    Args:
        path: file as for `read_label_map`.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the file is missing or corrupt, or has several channels or more pixels.
    """
    missing = "unpack its archive, prepare the label maps, or restore it"
    # The advice is not to delete it: a map of a user's own cannot be prepared again.
    damaged = "unpack its archive again, prepare it again with --overwrite, or restore it"
    with images.decoding_errors(f"label map {path}", missing, damaged):
        with images.open_image(path, max_pixels) as file:
            advice = "give class indices, not colours; of equal channels one: Image.open(p).getchannel(0).save(p)"
            images.require_mode(f"label map {path}", file.mode, INDEX_MODES, advice)
            values = np.asarray(file)
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
            f"{ignore_label} for ignored pixels\n{CAUSES}"
        )


def read_panoptic_png(
    path: str | os.PathLike[str], max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
    """Segment ids of a panoptic PNG, (H, W) int32.

    Args:
        path: file.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the file is missing, cannot be decoded, or has no RGB pixels or too many.
    """
    beside = "unpack the PNGs beside their JSON"
    with images.decoding_errors(f"panoptic PNG {path}", beside, "fetch it again"):
        with images.open_image(path, max_pixels) as image:
            advice = "a panoptic PNG has RGB pixels (id = R + 256 G + 65536 B)"
            images.require_mode(f"panoptic PNG {path}", image.mode, ("RGB",), advice)
            # Four bytes a pixel, read as one little-endian integer; the mask drops the unused fourth.
            numbers = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4")
            return (numbers & 0xFFFFFF).view(np.int32).reshape(image.size[::-1])


def read_panoptic_ids(record: Record, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """Segment ids of a record's PNG, (H, W) int32, after checking that its JSON entry agrees.

    Args:
        record: record with "pan_seg_file_name", "segments_info" and "image_id"; if known, "height",
            "width" and "panoptic_json". If "covered_stuff" is true, segments without a pixel may be
            listed.
        max_pixels: largest number of pixels that is decoded.

    Raises:
        InputError: the PNG cannot be read, or it and the JSON disagree about size or segments.
    """
    ids = read_segments(record, max_pixels)
    _check_agreement(ids, record)
    return ids


def read_segments(record: Mapping[str, Any], max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """Segment ids of a record's PNG, (H, W) int32, its "void_segments" as void.

    Args:
        record: record or sample with "pan_seg_file_name".
        max_pixels: as for `read_panoptic_png`.

    Raises:
        InputError: as `read_panoptic_png`.
    """
    ids = read_panoptic_png(record["pan_seg_file_name"], max_pixels)
    if void := record.get("void_segments"):
        ids = np.where(np.isin(ids, void), np.int32(0), ids)
    return ids


def _check_agreement(ids: np.ndarray, record: Record) -> None:
    stated = [info["id"] for info in record["segments_info"]]
    where = disagreement(record)
    size: list[Any] = [record.get("width", ids.shape[1]), record.get("height", ids.shape[0])]
    images.require_size(f"{where}: the PNG", ids.shape[::-1], "by the JSON it", size, ONE_RELEASE)
    painted = set(np.unique(ids).tolist()) - {0}
    hidden = set(stated) - painted if record.get("covered_stuff") else set()
    if painted | hidden != set(stated) or len(stated) != len(set(stated)):
        raise InputError(
            f"{where}: segments {sorted(painted - set(stated))[:5]} only in the PNG, "
            f"{sorted(set(stated) - painted)[:5]} only in the JSON; {ONE_RELEASE}"
        )


def disagreement(record: Record) -> str:
    """Start of a message that a record's PNG and JSON entry disagree, which names both."""
    entry = f"entry of image {record['image_id']} in {record.get('panoptic_json', 'the JSON')}"
    return f"panoptic PNG {record['pan_seg_file_name']} and the {entry} disagree"


def check_segmentation(value: Any, height: int, width: int) -> None:
    """Refuses what is no mask of an image.

    Args:
        value: "segmentation" of an annotation: polygons, or an RLE with "size" and "counts".
        height: rows of the image in pixels.
        width: columns of the image in pixels.

    Raises:
        ValueError: says what is wrong.
    """
    if min(height, width) < 1 or height * width >= LARGEST_IMAGE:
        raise ValueError(f"the image has {height} x {width} pixels")
    match value:
        case [_, *_]:
            for polygon in value:
                _check_polygon(polygon, height, width)
            # Where the first has four numbers, pycocotools takes all for boxes, and fails.
            if len(value[0]) <= 4 or min(map(len, value)) < 4:
                raise ValueError("a polygon has too few points")
        case {"counts": str() | list() as counts, "size": [int(), int()] as size}:
            if size != [height, width]:
                raise ValueError(
                    f"its size {reprlib.repr(size)} is not that of the image, {[height, width]}"
                )
            if isinstance(counts, str):
                runs = _decompress(counts)
            elif all(type(count) is int and abs(count) < LARGEST_IMAGE for count in counts):
                runs = np.array(counts)
            else:
                raise ValueError("a run is no whole number of pixels")
            if (runs < 0).any() or runs.sum() != height * width:
                raise ValueError(f"its runs do not fill the image of {height * width} pixels")
        case _:
            raise ValueError("it is neither polygons nor an RLE")


def run_lengths(value: Any, height: int, width: int, source: str) -> Rle:
    """The compressed RLE of a mask of an image, as pycocotools has it.

    Args:
        value: as of `check_segmentation`. Polygons of fewer than three points enclose nothing.
        height: rows of the image in pixels.
        width: columns of the image in pixels.
        source: name of the mask, with its file, for messages.

    Raises:
        InputError: it is no mask of the image.
    """
    mask = value
    if isinstance(value, list) and value:
        # Pycocotools would read two points as a box.
        nothing = {"size": [height, width], "counts": [height * width]}
        mask = [polygon for polygon in value if not _is_line(polygon)] or nothing
    try:
        check_segmentation(mask, height, width)
    except ValueError as error:
        raise InputError(
            f"{source} is no mask of an image of {height} x {width} (height x width): {in_short(error)}, in "
            f"{reprlib.repr(value)}; correct it, or leave it out"
        ) from None
    if isinstance(mask, list):
        return rle.merge(rle.frPyObjects(mask, height, width))
    if isinstance(mask["counts"], list):
        return rle.frPyObjects(mask, height, width)
    return dict(mask)


def object_mask(
    segmentation: object, height: int, width: int, image: str | os.PathLike[str]
) -> np.ndarray:
    """Pixels of an object, (H, W) uint8 of 0 and 1.

    Args:
        segmentation: polygons, or an RLE whose counts are a list or compressed, as COCO's files have them.
        height: H, height of the image in pixels.
        width: W, width of the image in pixels.
        image: path of the image, for the error.

    Raises:
        InputError: it is none of these, or an RLE of another size.
    """
    source = f"the segmentation of an object of image {image}"
    mask: np.ndarray = rle.decode(run_lengths(segmentation, height, width, source))
    return mask


def _is_line(polygon: object) -> bool:
    if not isinstance(polygon, list) or len(polygon) not in (2, 4):
        return False
    return all(isinstance(x, int | float) for x in polygon)


def _check_polygon(polygon: object, height: int, width: int) -> None:
    """Points may lie beside the image, but not so far that filling the polygon takes long."""
    if not isinstance(polygon, list) or not all(isinstance(x, int | float) for x in polygon):
        raise ValueError("a polygon is no list of numbers")
    if len(polygon) % 2:
        raise ValueError("a polygon is x and y in turn")
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        if not all(-side <= number <= 2 * side for number in numbers):
            raise ValueError("a point of a polygon is far from the image, or nowhere")


def _decompress(text: str) -> np.ndarray:
    """Runs of COCO's compressed RLE, int64, as `rleFrString` of pycocotools reads them.

    A number is written in characters of five bits, the lowest first; from the third on it is the difference
    to the last but one.
    """
    values = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(values):
        return values
    ends = np.flatnonzero((values & 32) == 0)
    if (values < 0).any() or (values > 63).any() or not len(ends) or ends[-1] != len(values) - 1:
        raise ValueError("its runs are no text of an RLE")
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends + 1 - starts
    if lengths.max() > MOST_CHARACTERS:
        raise ValueError("a run is too long")
    places = np.arange(len(values)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((values & 31) << (5 * places), starts)
    runs -= np.where(values[ends] & 16, 1 << (5 * lengths), 0)  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around a mask (H, W) bool that is not empty: its first column and row, and those behind its last."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_as_json(mask: np.ndarray) -> Rle:
    """COCO's run-length encoding of a mask (H, W) bool with "counts" as text, which JSON takes."""
    code = encode_masks([mask])[0]
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def encode_masks(masks: Iterable[np.ndarray]) -> list[Rle]:
    """COCO's run-length encoding of each mask: "size" [H, W] and "counts" (bytes).

    Args:
        masks: (n, H, W) bool.
    """
    if isinstance(masks, EncodedMasks):
        return masks.codes
    return [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


class EncodedMasks(Sequence[np.ndarray]):
    """Masks of a large image as run lengths; `Instances` takes them in place of a tensor (n, H, W)."""

    def __init__(self, codes: list[Rle]) -> None:
        """
        Args:
            codes: COCO's run-length encoding of each, as `encode_masks` gives it.
        """
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        """A mask (H, W) bool, or of a slice or indices those masks, still encoded."""
        places = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        if places.ndim:
            return EncodedMasks([self.codes[place] for place in places])
        return rle.decode(self.codes[places]).view(bool)

    def all(self) -> np.ndarray:
        """(n, H, W) bool."""
        return np.stack([*self]) if self.codes else np.zeros((0, 0, 0), bool)


def mask_arrays(masks: Tensor | EncodedMasks) -> Any:
    """Masks of `Instances` as an array (n, H, W); encoded ones as they are."""
    return masks if isinstance(masks, EncodedMasks) else masks.cpu().numpy()
