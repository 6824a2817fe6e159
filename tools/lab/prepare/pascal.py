"""PASCAL VOC 2012 with and without background, and PASCAL Context: 59 classes of its JSON, all 459 of .mat files."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from clipself_seg.data.annotations import JsonObject
from clipself_seg.data.datasets.table import ROOTS
from clipself_seg.data.masks import read_indices, run_lengths
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, in_short
from clipself_seg.files import read_json
from lab.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    lookup_table,
    preparation,
    read_stems,
    require,
    save_png,
    save_tiff,
)

VOC_CLASSES = 20
VOID = 255
FOLDERS = {"annotations_detectron2": VOID, "annotations_detectron2_bg": VOC_CLASSES}
"""Label of background by folder of the label maps."""
CONTEXT_CLASSES = 459
MAX_SIDE = 2048  # pixels, far above the archive's 500
# Of the .mat files of MATLAB's version 5: bytes of the header, types of elements, and those that are numbers.
MAT_HEADER, MATRIX, COMPRESSED = 128, 14, 15
MAT_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 9: "<f8"}
# What is read of one, and unpacked, at most: the largest image in the largest type, and what stands before its numbers.
MAT_BYTES = 8 * MAX_SIDE**2 + 1024
JSON_HINT = (
    "trainval_merged.json is the annotation file of the PASCAL in Detail challenge, "
    "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
)
MAT_HINT = (
    "The folder trainval with one .mat an image is in the archive of PASCAL Context's 459 classes, "
    "https://roozbehm.info/pascal-context/trainval.tar.gz"
)
LIST_HINT = (
    "It is the list of the 5104 validation images, one name a line, that CAT-Seg's repository has "
    "in its folder datasets; another list, such as ImageSets/Main/val.txt, may be put in its place"
)


@dataclasses.dataclass(frozen=True)
class VocJob(MapJob):
    """One label map to write, and the label of background in it."""

    background: int


@preparation("voc20")
def prepare_voc20(options: Options) -> list[Prepared]:
    """Label maps of PASCAL VOC 2012: VOC-20 without background, and VOC-20b with it.

        python tools/prepare.py voc20
        python tools/prepare.py voc20 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2012/SegmentationClassAug for the names in ImageSets/Segmentation/val.txt and
    writes annotations_detectron2/val and annotations_detectron2_bg/val.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [
        convert_files(_convert_voc, voc20_jobs(options.root, name), options) for name in FOLDERS
    ]


def voc20_jobs(root: Path, name: str) -> list[VocJob]:
    """Jobs of `prepare_voc20` for one of `FOLDERS`.

    Raises:
        InputError: the archive is not there, or its list names no image.
    """
    folder = root / "VOCdevkit/VOC2012"
    stems = read_stems(require(folder / "ImageSets/Segmentation/val.txt", ROOTS["VOC_2012"]))
    source = require(folder / "SegmentationClassAug", ROOTS["VOC_2012"])
    target = folder / name / "val"
    return [VocJob(source / f"{s}.png", target / f"{s}.png", FOLDERS[name]) for s in stems]


def nothing_left(job: VocJob) -> bool:
    """True if the preparation leaves an image out, because it shows nothing but background.

    Raises:
        InputError: the archive's map is broken or missing.
    """
    return job.background == VOID and bool((_labels(job) == VOID).all())


def _convert_voc(job: VocJob) -> bool:
    labels = _labels(job)
    if job.background == VOID and (labels == VOID).all():
        return False
    save_png(job.target, labels)
    return True


def _labels(job: VocJob) -> np.ndarray:
    """Labels that are written for an image, (H, W) uint8."""
    values = read_indices(job.source)
    strange = np.unique(values[(values > VOC_CLASSES) & (values != VOID)])
    if values.dtype != np.uint8 or len(strange):
        raise InputError(
            f"{job.source} is not a map of VOC, whose values are 0 to {VOC_CLASSES} and {VOID} "
            f"(found {strange[:5].tolist()} in {values.dtype}): unpack it again"
        )
    index_of = {0: job.background} | {number + 1: number for number in range(VOC_CLASSES)}
    return lookup_table(index_of, 256, VOID, np.uint8)[values]


@dataclasses.dataclass(frozen=True)
class JsonJob(MapJob):
    """One label map to paint from segments of the JSON, its source.

    Attributes:
        size: (height, width) in pixels.
        segments: (category id, RLE) of each segment.
    """

    size: tuple[int, int]
    segments: list[tuple[int, JsonObject]]


@preparation("pascal_context_59")
def prepare_pascal_context_59(options: Options) -> list[Prepared]:
    """Label maps of PASCAL Context's 59 frequent classes.

        python tools/prepare.py pascal_context_59
        python tools/prepare.py pascal_context_59 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2010/trainval_merged.json and writes annotations_detectron2/pc59_val beside it.
    The JSON is read whole, which takes some gigabytes of memory.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [convert_files(_convert_segments, context_59_jobs(options.root), options)]


def context_59_jobs(root: Path) -> list[JsonJob]:
    """Jobs of `prepare_pascal_context_59`.

    Raises:
        InputError: the JSON is missing or has another format.
    """
    folder = root / "VOCdevkit/VOC2010"
    path = require(folder / "trainval_merged.json", ROOTS["PASCAL_CONTEXT"], JSON_HINT)
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


def _below(limit: int, value: object) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{reprlib.repr(value)} is no whole number below {limit}")
    return value


def _convert_segments(job: JsonJob) -> bool:
    painted = np.zeros(job.size, np.uint16)
    for category, segment in job.segments:
        source = f"{job.source}: a segment of {job.target.stem}"
        painted[rle.decode(run_lengths(segment, *job.size, source)) > 0] = category
    save_png(job.target, _context_table()[painted])
    return True


@functools.cache
def _context_table() -> np.ndarray:
    # Values of the map are numbers among the 459 classes; background, 0, and the others are ignored.
    index_of = Vocabulary.load("pascal_context_59").dataset_id_to_index
    return lookup_table(index_of, 1 << 16, 255, np.uint8)


@preparation("pascal_context_459")
def prepare_pascal_context_459(options: Options) -> list[Prepared]:
    """Label maps of all 459 classes of PASCAL Context.

        python tools/prepare.py pascal_context_459
        python tools/prepare.py pascal_context_459 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2010/trainval/*.mat for the names in VOCdevkit/VOC2010/pascalcontext_val.txt
    and writes annotations_detectron2/pc459_val beside them.
    What is there already is kept; an interrupted run is completed by the next.
    """
    jobs, left_out = context_459_jobs(options.root)
    done = convert_files(_convert_mat, jobs, options)
    return [done._replace(left_out=done.left_out + left_out)]


def context_459_jobs(root: Path) -> tuple[list[MapJob], int]:
    """Jobs of `prepare_pascal_context_459`, and the number of images that it leaves out.

    Raises:
        InputError: list or archive are missing.
    """
    folder = root / "VOCdevkit/VOC2010"
    target = folder / "annotations_detectron2/pc459_val"
    path = folder / "pascalcontext_val.txt"
    stems = read_stems(require(path, ROOTS["PASCAL_CONTEXT"], LIST_HINT))
    source = require(folder / "trainval", ROOTS["PASCAL_CONTEXT"], MAT_HINT)
    labelled = [stem for stem in stems if (source / f"{stem}.mat").exists()]
    if not labelled:
        raise InputError(f"{source} has no .mat file of an image in {path}\n{MAT_HINT}")
    jobs = [MapJob(source / f"{stem}.mat", target / f"{stem}.tif") for stem in labelled]
    return jobs, len(stems) - len(labelled)


def _convert_mat(job: MapJob) -> bool:
    values = _read_mat(job.source)
    if not (1 <= values.min() and values.max() <= CONTEXT_CLASSES):
        raise InputError(
            f"{job.source}: LabelMap has the shape {values.shape} and values from {values.min()} "
            f"to {values.max()}, where 1 to {CONTEXT_CLASSES} are expected\n{MAT_HINT}"
        )
    save_tiff(job.target, (values.astype(np.int64) - 1).astype(np.uint16))
    return True


def _read_mat(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return _label_map(file.read(MAT_BYTES)[MAT_HEADER:])
    except (ValueError, IndexError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as a .mat file with a LabelMap ({in_short(error)}): unpack it again\n{MAT_HINT}"
        ) from None


def _label_map(content: bytes) -> np.ndarray:
    """The matrix LabelMap (H, W) of what follows the header of a file of MATLAB's version 5.

    Scipy's reader ends the process at some that are damaged.

    Raises:
        ValueError, IndexError, zlib.error: there is none, or the file is damaged.
    """
    for kind, element in _elements(content):
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(element, MAT_BYTES)
            ((kind, element),) = _elements(unpacked)
        if kind != MATRIX:
            continue
        _, (_, sides), (_, name), (kind, numbers), *_ = _elements(element)
        if name == b"LabelMap" and kind in MAT_NUMBERS:
            height, width = np.frombuffer(sides, "<i4").tolist()
            values = np.frombuffer(numbers, MAT_NUMBERS[kind])
            if not 0 < height * width == len(values):
                raise ValueError(f"{height} x {width} values, of which the file has {len(values)}")
            return values.reshape(width, height).T
    raise ValueError("it has none of numbers")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element of a file of MATLAB's version 5."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, place)
        start = place + 8
        if kind >> 16:  # a short one, in the room of its size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(content):
            raise ValueError("it is cut off")
        yield kind, content[start : start + size]
        place = start + size
        if kind != COMPRESSED:
            place += -place % 8
