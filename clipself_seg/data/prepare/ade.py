"""ADE20K: label maps of the scene parsing challenge's 150 classes, and of the full data set's 847."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from clipself_seg.data.datasets.table import ADE_150, ADE_847, ade_parent
from clipself_seg.data.images import (
    PUBLISHED_QUALITY,
    decoding_errors,
    encode_jpeg,
    open_image,
    read_image,
)
from clipself_seg.data.masks import read_indices
from clipself_seg.data.prepare.common import (
    Flag,
    MapJob,
    Options,
    Prepared,
    convert_files,
    files_in,
    lookup_table,
    preparation,
    save_png,
    save_tiff,
    split_jobs,
    written_whole,
)
from clipself_seg.data.vocabulary import class_entries
from clipself_seg.errors import InputError

SPLITS = ("training", "validation")
LARGEST_SHORT_SIDE = 512
IGNORED = 65535
QUALITY = Flag(
    "quality",
    "--jpeg-quality",
    "of the images, 1 to 100 (75, as published; the results.json of an evaluation names it)",
    int,
)
OBJECT_IDS = 26 * 256  # number of object ids, R // 10 * 256 + G


class FullJob(NamedTuple):
    """One image of the full data set and its label map, both to write from the archive's files."""

    image: Path
    source: Path
    image_target: Path
    target: Path
    quality: int = PUBLISHED_QUALITY

    @property
    def sources(self) -> tuple[Path, ...]:
        """Paths of the archive's image and map of objects."""
        return (self.image, self.source)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Paths of the image, then of its label map."""
        return (self.image_target, self.target)


@preparation("ade150", SPLITS)
def prepare_ade150(options: Options, splits: Sequence[str] = ("validation",)) -> list[Prepared]:
    """Label maps of ADE20K's 150 classes.

        clipself-seg data prepare ade150
        clipself-seg data prepare ade150 --root /data/datasets --processes 8

    Reads ADEChallengeData2016/annotations and writes ADEChallengeData2016/annotations_detectron2.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [convert_files(_convert, ade150_jobs(options.root, s), options) for s in splits]


def ade150_jobs(root: Path, split: str) -> list[MapJob]:
    """Jobs of `prepare_ade150` for a split.

    Raises:
        InputError: the archive is not there.
    """
    folder = ade_parent(root) / "ADEChallengeData2016"
    return split_jobs(folder, split, ADE_150)


def _convert(job: MapJob) -> bool:
    save_png(job.target, read_scene_map(job.source))
    return True


def read_scene_map(path: Path) -> np.ndarray:
    """Class indices of a label map of the challenge, (H, W) uint8, 255 for "other".

    Raises:
        InputError: the map cannot be read, or is not one of the challenge's.
    """
    values = read_indices(path, archive=True)
    if values.dtype != np.uint8 or values.max() > 150:
        raise InputError(
            f"{path} is not one of the challenge's maps, which have 8 bits and the values "
            f"0 to 150 (largest value {values.max()}): unpack ADEChallengeData2016 again"
        )
    return values - np.uint8(1)  # 0, "other", becomes 255


@preparation("ade847", SPLITS, (QUALITY,))
def prepare_ade847(
    options: Options, splits: Sequence[str] = ("validation",), quality: int = PUBLISHED_QUALITY
) -> list[Prepared]:
    """Images and label maps of ADE20K's 847 classes.

        clipself-seg data prepare ade847
        clipself-seg data prepare ade847 --root /data/datasets --processes 8

    Reads ADE20K_2021_17_01/images/ADE (its index_ade20k.pkl is not needed) and writes
    images_detectron2 and annotations_detectron2 beside it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    jobs = [ade847_jobs(options.root, split, quality) for split in splits]
    return [convert_files(_convert_full, of_split, options) for of_split in jobs]


def ade847_jobs(root: Path, split: str, quality: int = PUBLISHED_QUALITY) -> list[FullJob]:
    """Jobs of `prepare_ade847` for a split.

    Raises:
        InputError: the archive is not there.
    """
    folder = root / "ADE20K_2021_17_01"
    sources = files_in(folder / "images/ADE" / split, "ADE_*_seg.png", ADE_847)
    return [_full_job(folder, split, path)._replace(quality=quality) for path in sources]


def _full_job(folder: Path, split: str, source: Path) -> FullJob:
    stem = source.name.removesuffix("_seg.png")
    return FullJob(
        source.with_name(f"{stem}.jpg"),
        source,
        folder / "images_detectron2" / split / f"{stem}.jpg",
        folder / "annotations_detectron2" / split / f"{stem}.tif",
    )


def _convert_full(job: FullJob) -> bool:
    image = read_image(job.image)
    labels = _full_table()[_object_ids(job.source)]
    height, width = labels.shape
    if image.shape[:2] != (height, width):
        raise InputError(
            f"{job.image} is {image.shape[1]} x {image.shape[0]}, {job.source} is "
            f"{width} x {height}: unpack both again"
        )
    if min(height, width) > LARGEST_SHORT_SIDE:
        scale = LARGEST_SHORT_SIDE / min(height, width)
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    with written_whole(job.image_target) as temporary:
        temporary.write_bytes(encode_jpeg(image, job.quality))
    save_tiff(job.target, labels)
    return True


def _object_ids(path: Path) -> np.ndarray:
    """Object ids of the pixels of a `_seg.png`, (H, W) int32."""
    rgb = read_rgb(path)
    return (rgb[..., 0] // 10).astype(np.int32) * 256 + rgb[..., 1]


def read_rgb(path: str | os.PathLike[str], archive: str = "") -> np.ndarray:
    """Pixels of an archive's map whose colours are numbers, (H, W, 3) uint8.

    Args:
        path: file.
        archive: how to get the archive, for errors.

    Raises:
        InputError: the file is missing, corrupt or not RGB.
    """
    again = f"unpack it again\n{archive}".rstrip()
    with decoding_errors(f"map {path}", again, again):
        with open_image(path) as file:
            if file.mode != "RGB":
                raise InputError(f"{path} has pixels of type {file.mode}, not RGB: {again}")
            return np.asarray(file)


@functools.cache
def _full_table() -> np.ndarray:
    # Not `load_vocabulary`, which would warn in every process that some names occur twice.
    index_of = {entry["dataset_id"]: i for i, entry in enumerate(class_entries("ade20k_847"))}
    return lookup_table(index_of, OBJECT_IDS, IGNORED, np.uint16)
