"""PASCAL Context: label maps of 59 frequent classes from its JSON, of all 459 from its .mat files."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from clipself_seg.data.datasets.table import PASCAL_CONTEXT
from clipself_seg.data.masks import check_segmentation
from clipself_seg.data.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    lookup_table,
    read_stems,
    require,
    save_png,
    save_tiff,
)
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import read_json

MATRIX = 14
COMPRESSED = 15
# Type of data -> NumPy's.
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
HEADER = 128
LARGEST = 8 * 8192**2 + 1024  # bytes of an unpacked array, far above any image of the archive


def read_mat_array(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """A numeric array of a file.

    Args:
        path: the file.
        name: name of the array.

    Raises:
        ValueError: it is no MATLAB 5 file, is damaged, or has no numeric array of this name.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if not content.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise ValueError("it is no MATLAB 5 file")
    try:
        for kind, data in _elements(content[HEADER:], order):
            if kind == COMPRESSED:
                kind, data = next(_elements(_unpack(data), order))
            if kind == MATRIX:
                _, shape, title, numbers, *_ = _elements(data, order)
                if title[1] == name.encode():
                    return _array(shape, numbers, order)
    except (zlib.error, struct.error, StopIteration) as error:
        raise ValueError(f"it is damaged ({error})") from None
    raise ValueError(f"it has no array {name}")


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Types and data of the elements one after the other."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start = position + 8
        if kind >> 16:  # small: two bytes of size, two of type, and the data in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        data = content[start : start + size]
        if len(data) < size or (start == position + 4 and size > 4):
            raise ValueError("an element is longer than the file")
        yield kind, data
        # Compressed elements are not padded.
        end = start + size
        position = end if kind == COMPRESSED else max(position + 8, end + -end % 8)


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, LARGEST)
    if unpacker.unconsumed_tail:
        raise ValueError("it unpacks to more than an image has")
    return unpacked


def _array(shape: tuple[int, bytes], numbers: tuple[int, bytes], order: str) -> np.ndarray:
    sides = np.frombuffer(shape[1], f"{order}i4").tolist()
    if numbers[0] not in NUMBERS or min(sides, default=0) < 1:
        raise ValueError("its array is not of numbers, or empty")
    values = np.frombuffer(numbers[1], order + NUMBERS[numbers[0]])
    if math.prod(sides) != len(values):
        raise ValueError(f"it has {len(values)} numbers for an array of {sides}")
    return values.reshape(sides, order="F").astype(values.dtype.newbyteorder("="))


CLASSES = 459
MAX_SIDE = 8192  # pixels, far above the archive's 500
JSON_HINT = (
    "trainval_merged.json is the annotation file of the PASCAL in Detail challenge, "
    "https://sites.google.com/view/pasd"
)
MAT_HINT = (
    "The folder trainval with one .mat an image is in the archive of PASCAL Context's 459 classes, "
    "https://www.cs.stanford.edu/~roozbeh/pascal-context"
)
LIST_HINT = (
    "It is the list of the 5104 validation images, one name a line, that CAT-Seg's repository has "
    "in its folder datasets; another list, such as ImageSets/Main/val.txt, is given by --list"
)


@dataclasses.dataclass(frozen=True)
class JsonJob(MapJob):
    """One label map to paint from segments of the JSON, its source.

    Attributes:
        size: (height, width) in pixels.
        segments: (category id, RLE) of each segment.
    """

    size: tuple[int, int]
    segments: list[tuple[int, dict[str, Any]]]


def prepare_pascal_context_59(options: Options) -> list[Prepared]:
    """Write VOC2010/annotations_detectron2/pc59_val from VOC2010/trainval_merged.json.

    Every image of its phase "val" gets a map, in which later segments cover earlier ones.

    Raises:
        InputError: the JSON is missing or has another format.
    """
    return [convert_files(_convert_segments, context_59_jobs(options.root), options)]


def context_59_jobs(root: Path) -> list[JsonJob]:
    """Jobs of `prepare_pascal_context_59`.

    Raises:
        InputError: the JSON is missing or has another format.
    """
    folder = root / "VOCdevkit/VOC2010"
    path = require(folder / "trainval_merged.json", PASCAL_CONTEXT, JSON_HINT)
    return _json_jobs(path, folder / "annotations_detectron2/pc59_val")


def _json_jobs(path: Path, target: Path) -> list[JsonJob]:
    try:
        content = read_json(path, "annotation file")
        images = [image for image in content["images"] if image["phase"] == "val"]
        wanted = {image["image_id"] for image in images}
        segments = defaultdict(list)
        for entry in content["annos_segmentation"]:
            if entry["image_id"] in wanted:
                category = _below(1 << 16, entry["category_id"])
                segments[entry["image_id"]].append((category, entry["segmentation"]))
        jobs = [
            JsonJob(
                path,
                target / f"{Path(image['file_name']).stem}.png",
                (_below(MAX_SIDE, image["height"]), _below(MAX_SIDE, image["width"])),
                segments[image["image_id"]],
            )
            for image in images
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not the file it should be ({type(error).__name__}: {error})\n{JSON_HINT}"
        ) from None
    if not jobs:
        raise InputError(f'{path} has no image of phase "val"\n{JSON_HINT}')
    return jobs


def _below(limit: int, value: Any) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{reprlib.repr(value)} is no whole number below {limit}")
    return value


def _convert_segments(job: JsonJob) -> bool:
    painted = np.zeros(job.size, np.uint16)
    for category, segment in job.segments:
        painted[_mask(job, segment)] = category
    save_png(job.target, _table()[painted])
    return True


def _mask(job: JsonJob, segment: Any) -> np.ndarray:
    """Mask of a segment, (H, W) bool."""
    stem = job.target.stem
    try:
        if not isinstance(segment, dict):
            raise ValueError("it has no runs")
        check_segmentation(segment, *job.size)
    except ValueError as error:
        raise InputError(
            f"{job.source}: a segment of {stem} is not an RLE of the image ({error})\n{JSON_HINT}"
        ) from None
    if isinstance(segment["counts"], list):
        segment = rle.frPyObjects(segment, *segment["size"])
    return rle.decode(segment).astype(bool)


@functools.cache
def _table() -> np.ndarray:
    # Values of the map are numbers among the 459 classes; background, 0, and the others are ignored.
    index_of = load_vocabulary("pascal_context_59").dataset_id_to_index
    return lookup_table(index_of, 1 << 16, 255, np.uint8)


def prepare_pascal_context_459(options: Options, list_file: Path | None = None) -> list[Prepared]:
    """Write VOC2010/annotations_detectron2/pc459_val from VOC2010/trainval/*.mat.

    Images of the list without a .mat file have no ground truth and are left out.

    Args:
        options: root folder, number of processes, and whether files are written again.
        list_file: list of the images; None is VOC2010/pascalcontext_val.txt.

    Raises:
        InputError: list or archive are missing, or a file of the archive is broken.
    """
    jobs, left_out = context_459_jobs(options.root, list_file)
    done = convert_files(_convert_mat, jobs, options)
    return [done._replace(left_out=done.left_out + left_out)]


def context_459_jobs(root: Path, list_file: Path | None = None) -> tuple[list[MapJob], int]:
    """Jobs of `prepare_pascal_context_459`, and the number of images that it leaves out.

    Raises:
        InputError: list or archive are missing.
    """
    folder = root / "VOCdevkit/VOC2010"
    target = folder / "annotations_detectron2/pc459_val"
    path = list_file or folder / "pascalcontext_val.txt"
    stems = read_stems(require(path, PASCAL_CONTEXT, LIST_HINT))
    source = require(folder / "trainval", PASCAL_CONTEXT, MAT_HINT)
    labelled = [stem for stem in stems if (source / f"{stem}.mat").exists()]
    if not labelled:
        raise InputError(f"{source} has no .mat file of an image in {path}\n{MAT_HINT}")
    jobs = [MapJob(source / f"{stem}.mat", target / f"{stem}.tif") for stem in labelled]
    return jobs, len(stems) - len(labelled)


def _convert_mat(job: MapJob) -> bool:
    values = _read_mat(job.source)
    if values.ndim != 2 or values.min() < 1 or values.max() > CLASSES:
        raise InputError(
            f"{job.source}: LabelMap has the shape {values.shape} and values from {values.min()} "
            f"to {values.max()}, where 1 to {CLASSES} are expected\n{MAT_HINT}"
        )
    save_tiff(job.target, (values.astype(np.int64) - 1).astype(np.uint16))
    return True


def _read_mat(path: Path) -> np.ndarray:
    try:
        return read_mat_array(path, "LabelMap")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a .mat file with a LabelMap ({error}): unpack it again"
        ) from None
