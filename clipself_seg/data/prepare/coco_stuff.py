"""COCO-Stuff: label maps with indices of the 171 classes from the archive's stuffthingmaps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.datasets.table import COCO_STUFF
from clipself_seg.data.masks import read_indices
from clipself_seg.data.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    lookup_table,
    save_png,
    split_jobs,
)
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

SPLITS = ("train2017", "val2017")


def prepare_coco_stuff(options: Options, splits: Sequence[str] = SPLITS) -> list[Prepared]:
    """Write coco-stuff/annotations_detectron2/{split} from coco-stuff/annotations/{split}.

    Args:
        options: root folder, number of processes, and whether files are written again.
        splits: splits of `SPLITS`.

    Raises:
        InputError: the archive is not there, or a map of it is broken.
    """
    return [convert_files(_convert, coco_stuff_jobs(options.root, s), options) for s in splits]


def coco_stuff_jobs(root: Path, split: str) -> list[MapJob]:
    """Jobs of `prepare_coco_stuff` for a split.

    Raises:
        InputError: the archive is not there.
    """
    return split_jobs(root / "coco-stuff", split, COCO_STUFF)


def _convert(job: MapJob) -> bool:
    values = read_indices(job.source, archive=True)
    if values.dtype != np.uint8:
        raise InputError(f"{job.source} is not one of the archive's 8-bit maps: unpack it again")
    save_png(job.target, _table()[values])
    return True


@functools.cache
def _table() -> np.ndarray:
    # A pixel is the official category id less 1; ids that no class has, and 255, are ignored.
    index_of = load_vocabulary("coco_stuff_171").dataset_id_to_index
    return lookup_table({number - 1: i for number, i in index_of.items()}, 256, 255, np.uint8)
