"""Cityscapes: panoptic PNGs and JSON, instances, and label maps of the 19 classes that are evaluated.

An instance map has 16 bits a pixel: 1000 * label id + number for an instance, the label id alone for stuff and for
a group of things that nobody told apart. Files have the names and the content that cityscapesscripts gives them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.datasets.table import CITYSCAPES
from clipself_seg.data.masks import read_indices
from clipself_seg.data.prepare.common import (
    Options,
    Prepared,
    files_in,
    lookup_table,
    preparation,
)
from clipself_seg.data.prepare.panoptic_files import (
    WAITING,
    ImageTruth,
    PanopticJob,
    Segment,
    SplitFiles,
    listed_categories,
    prepare_panoptic_split,
)
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError

SPLITS = ("train", "val")
INSTANCES = "_gtFine_instanceIds.png"
# From this number on, a value of an instance map is an instance.
FIRST_INSTANCE = 1000
LABEL_IDS = 34
IGNORED = 255


@preparation("cityscapes_panoptic", SPLITS)
def prepare_cityscapes(options: Options, splits: Sequence[str] = SPLITS) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Cityscapes' 19 classes.

        clipself-seg data prepare cityscapes_panoptic
        clipself-seg data prepare cityscapes_panoptic --root /data/datasets --processes 8 --splits val

    Reads cityscapes/leftImg8bit and cityscapes/gtFine ({instanceIds,labelIds}.png) and writes
    cityscapes/gtFine/cityscapes_panoptic_{train,val}, its JSON and cityscapes_instances_{train,val}.json, and
    labelTrainIds.png beside the archive's. Panoptic files that cityscapesscripts wrote are kept.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [_prepare_split(options, split) for split in splits]


def _prepare_split(options: Options, split: str) -> Prepared:
    truth = options.root / "cityscapes/gtFine"
    pngs = truth / f"cityscapes_panoptic_{split}"
    jobs = []
    for source in files_in(truth / split, f"*{INSTANCES}", CITYSCAPES):
        stem = source.name.removesuffix(INSTANCES)
        city = options.root / "cityscapes/leftImg8bit" / split / source.parent.name
        jobs.append(
            PanopticJob(
                stem,
                city / f"{stem}_leftImg8bit.png",
                # The name that cityscapesscripts writes, which no file has.
                f"{stem}_gtFine_leftImg8bit.png",
                (source, source.with_name(f"{stem}_gtFine_labelIds.png")),
                read_truth,
                pngs / f"{stem}_gtFine_panoptic.png",
                source.with_name(f"{stem}_gtFine_labelTrainIds.png"),
                pngs / WAITING / f"{stem}.json",
                options.overwrite,
            )
        )
    files = SplitFiles(
        pngs, pngs.with_suffix(".json"), truth / f"cityscapes_instances_{split}.json"
    )
    return prepare_panoptic_split(files, jobs, listed_categories(_vocabulary()), options)


def read_truth(instances: Path, labels: Path) -> ImageTruth:
    """Ground truth of an image.

    Args:
        instances: map of instance ids.
        labels: map of label ids.

    Raises:
        InputError: a file is missing or broken, or has values that no map of Cityscapes has.
    """
    index_of = _vocabulary().dataset_id_to_index
    thing = _vocabulary().thing
    values = read_indices(instances, archive=True).astype(np.int32)
    segments = []
    for value in np.unique(values).tolist():
        label = value // FIRST_INSTANCE if value >= FIRST_INSTANCE else value
        _check_label(label, instances)
        if label in index_of:
            isthing = bool(thing[index_of[label]])
            segments.append(Segment(value, label, isthing, isthing and value < FIRST_INSTANCE))
    ids = np.where(np.isin(values, [segment.id for segment in segments]), values, 0)
    return ImageTruth(ids.astype(np.int32), segments, _train_ids(labels))


def _train_ids(path: Path) -> np.ndarray:
    values = read_indices(path, archive=True)
    _check_label(int(values.max()), path)
    index_of = _vocabulary().dataset_id_to_index
    return lookup_table(index_of, LABEL_IDS, IGNORED, np.uint8)[values]


def _check_label(label: int, path: Path) -> None:
    if not 0 <= label < LABEL_IDS:
        raise InputError(
            f"{path} has the label id {label}, Cityscapes has 0 to {LABEL_IDS - 1}: unpack "
            "gtFine_trainvaltest.zip again"
        )


@functools.cache
def _vocabulary() -> Vocabulary:
    return load_vocabulary("openseg_cityscapes_19")
