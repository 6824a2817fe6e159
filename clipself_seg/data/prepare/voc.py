"""PASCAL VOC 2012: 20 classes, without background (VOC-20) and with it (VOC-20b)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipself_seg.data.label_maps import read_indices
from clipself_seg.data.prepare.common import (
    Options,
    Prepared,
    convert_files,
    lookup_table,
    require,
    save_png,
)
from clipself_seg.data.prepare.lists import read_stems
from clipself_seg.data.roots import VOC_2012
from clipself_seg.errors import InputError

CLASSES, VOID = 20, 255
FOLDERS = {"annotations_detectron2": VOID, "annotations_detectron2_bg": CLASSES}
"""Folder of the label maps -> what background becomes."""


class _Job(NamedTuple):
    source: Path
    target: Path
    background: int

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self.target,)


def prepare_voc20(options: Options) -> list[Prepared]:
    """Write VOC2012/annotations_detectron2{,_bg}/val from VOC2012/SegmentationClassAug.

    A picture in which nothing but background would be left has no map of VOC-20.

    Raises:
        InputError: the archive is not there, or a map of it is broken or missing.
    """
    folder = options.root / "VOCdevkit/VOC2012"
    stems = read_stems(require(folder / "ImageSets/Segmentation/val.txt", VOC_2012))
    source = require(folder / "SegmentationClassAug", VOC_2012)
    prepared = []
    for name, background in FOLDERS.items():
        target = folder / name / "val"
        jobs = [_Job(source / f"{s}.png", target / f"{s}.png", background) for s in stems]
        prepared.append(convert_files(_convert, jobs, target, options))
    return prepared


def _convert(job: _Job) -> bool:
    values = read_indices(job.source, archive=True)
    strange = np.unique(values[(values > CLASSES) & (values != VOID)])
    if values.dtype != np.uint8 or len(strange):
        raise InputError(
            f"{job.source} is not a map of VOC, whose values are 0 to {CLASSES} and {VOID} "
            f"(found {strange[:5].tolist()} in {values.dtype}): unpack it again"
        )
    index_of = {0: job.background} | {number + 1: number for number in range(CLASSES)}
    labels = lookup_table(index_of, 256, VOID, np.uint8)[values]
    if job.background == VOID and (labels == VOID).all():
        return False
    save_png(job.target, labels)
    return True
