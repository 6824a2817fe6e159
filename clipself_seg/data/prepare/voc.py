"""PASCAL VOC 2012: 20 classes, without background (VOC-20) and with it (VOC-20b)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from clipself_seg.data.datasets.table import VOC_2012
from clipself_seg.data.masks import read_indices
from clipself_seg.data.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    lookup_table,
    read_stems,
    require,
    save_png,
)
from clipself_seg.errors import InputError

CLASSES = 20
VOID = 255
FOLDERS = {"annotations_detectron2": VOID, "annotations_detectron2_bg": CLASSES}
"""Label of background by folder of the label maps."""


@dataclasses.dataclass(frozen=True)
class VocJob(MapJob):
    """One label map to write, and the label of background in it."""

    background: int


def prepare_voc20(options: Options) -> list[Prepared]:
    """Write VOC2012/annotations_detectron2{,_bg}/val from VOC2012/SegmentationClassAug.

    An image that shows nothing but background gets no map of VOC-20.

    Raises:
        InputError: the archive is not there, or a map of it is broken or missing.
    """
    return [convert_files(_convert, voc20_jobs(options.root, name), options) for name in FOLDERS]


def voc20_jobs(root: Path, name: str) -> list[VocJob]:
    """Jobs of `prepare_voc20` for one of `FOLDERS`.

    Raises:
        InputError: the archive is not there, or its list names no image.
    """
    folder = root / "VOCdevkit/VOC2012"
    stems = read_stems(require(folder / "ImageSets/Segmentation/val.txt", VOC_2012))
    source = require(folder / "SegmentationClassAug", VOC_2012)
    target = folder / name / "val"
    return [VocJob(source / f"{s}.png", target / f"{s}.png", FOLDERS[name]) for s in stems]


def nothing_left(job: VocJob) -> bool:
    """Whether the preparation leaves an image out, because it shows nothing but background.

    Raises:
        InputError: the archive's map is broken or missing.
    """
    return job.background == VOID and bool((_labels(job) == VOID).all())


def _convert(job: VocJob) -> bool:
    labels = _labels(job)
    if job.background == VOID and (labels == VOID).all():
        return False
    save_png(job.target, labels)
    return True


def _labels(job: VocJob) -> np.ndarray:
    """Labels that are written for an image, (H, W) uint8."""
    values = read_indices(job.source, archive=True)
    strange = np.unique(values[(values > CLASSES) & (values != VOID)])
    if values.dtype != np.uint8 or len(strange):
        raise InputError(
            f"{job.source} is not a map of VOC, whose values are 0 to {CLASSES} and {VOID} "
            f"(found {strange[:5].tolist()} in {values.dtype}): unpack it again"
        )
    index_of = {0: job.background} | {number + 1: number for number in range(CLASSES)}
    return lookup_table(index_of, 256, VOID, np.uint8)[values]
