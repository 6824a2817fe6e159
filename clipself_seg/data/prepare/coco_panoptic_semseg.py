"""COCO panoptic: label maps with indices of the 133 classes from panoptic PNGs and their JSON."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.masks import read_panoptic_ids
from clipself_seg.data.prepare.common import (
    Options,
    Prepared,
    convert_files,
    require,
    save_png,
)
from clipself_seg.data.records import Record, category_labels, panoptic_records
from clipself_seg.data.vocabulary import load_vocabulary

SPLITS = ("train2017", "val2017")
IGNORED = 255


class _Job(NamedTuple):
    record: Record
    target: Path

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self.target,)


def prepare_coco_panoptic_semseg(
    options: Options, splits: Sequence[str] = SPLITS
) -> list[Prepared]:
    """Write coco/panoptic_semseg_{split} from coco/panoptic_{split} and its JSON.

    Crowds have their class. Void is 255.

    Args:
        options: root folder, number of processes, and whether files are written again.
        splits: splits of `SPLITS`.

    Raises:
        InputError: the archive is not there, or PNGs and JSON of it are broken or disagree.
    """
    return [_prepare_split(options, split) for split in splits]


def _prepare_split(options: Options, split: str) -> Prepared:
    folder = options.root / "coco"
    json_file = require(folder / f"annotations/panoptic_{split}.json", COCO)
    pngs = require(folder / f"panoptic_{split}", COCO)
    target = folder / f"panoptic_semseg_{split}"
    jobs = [
        _Job(record, target / f"{Path(record['pan_seg_file_name']).stem}.png")
        for record in panoptic_records(json_file, folder / split, pngs)
    ]
    return convert_files(_convert, jobs, options)


def _convert(job: _Job) -> bool:
    ids = read_panoptic_ids(job.record)
    infos = job.record["segments_info"]
    categories = np.array([info["category_id"] for info in infos], dtype=np.int64)
    labels = category_labels(categories, _index_of(), job.record["pan_seg_file_name"])
    # Segment ids sorted, with void, so that a binary search leads from a pixel to its label.
    segment_ids = np.array([0] + [info["id"] for info in infos], dtype=np.int64)
    order = np.argsort(segment_ids)
    positions = np.searchsorted(segment_ids[order], ids)
    save_png(job.target, np.append(IGNORED, labels).astype(np.uint8)[order][positions])
    return True


@functools.cache
def _index_of() -> dict[int, int]:
    return load_vocabulary("coco_panoptic_133").dataset_id_to_index
