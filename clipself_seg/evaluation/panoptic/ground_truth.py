"""Ground truth of a data set for panoptic models: what its evaluation reads and checks before the first image.

Panoptic data sets come first. Data sets with label maps alone (A-847, PC-59, PC-459, PAS-20, PAS-21) follow, by
FC-CLIP's rules: only mean IoU is measured, every class has all its names, a class is seen if COCO spells one of them
so, and Pascal VOC's classes are all seen. The lists of names are this project's, unless a label file is given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.annotations import Record, coco_info, read_coco_json, require_files
from clipself_seg.data.datasets.records import find_dataset, panoptic_set_records, sem_seg_records
from clipself_seg.data.datasets.table import DATASETS, IGNORE_LABEL, PanopticSet, SemSegSet
from clipself_seg.data.vocabulary import (
    NamedVocabulary,
    Vocabulary,
    VocabularyClass,
    read_label_file,
)
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import TrueObjects, read_true_instances
from clipself_seg.evaluation.evaluator import ImageId

BACKGROUND = "background"
# COCO has each of VOC's classes, but not always under the same string ("aeroplane", "airplane"): FC-CLIP counts all.
ALL_SEEN = ("voc_2012_test_sem_seg", "voc_2012_test_background_sem_seg")
COCO_LISTS = ("openseg_coco_panoptic_133", "coco_panoptic_133")

logger = logging.getLogger(__name__)


class PanopticGroundTruth(NamedTuple):
    """A data set as its evaluation needs it: classes, images, and what outputs are compared with.

    Attributes:
        files: paths of the data set; None for one with label maps alone.
        vocabulary: its K classes.
        records: a record for each image, with the files of its ground truth.
        seen: (K,) bool, classes of the training vocabulary; None if that is not known.
        tasks: measured tasks, out of "panoptic", "instances" and "semantic".
        instances: instances of all images; None if they are not measured.
        areas: kind of the areas of stuff that the panoptic JSON states: "published", also where
            ADE20K's file names none, or "clean"; "" for a data set that has only one kind.
        ignore_label: label of pixels of the label maps that do not count.
    """

    files: PanopticSet | None
    vocabulary: Vocabulary
    records: list[Record]
    seen: np.ndarray | None
    tasks: tuple[str, ...]
    instances: TrueObjects | None
    areas: str = ""
    ignore_label: int = IGNORE_LABEL

    @property
    def image_ids(self) -> list[ImageId]:
        """Id of each image, in the order of the file."""
        return [record["image_id"] for record in self.records]


def read_panoptic_ground_truth(
    name: str, tasks: Sequence[str], train_vocabulary: NamedVocabulary, label_file: str = ""
) -> PanopticGroundTruth:
    """Reads all of a data set but its images and PNGs, and checks that those are there.

    Args:
        name: name of the data set, see `data.datasets.table`.
        tasks: tasks to measure; a task for which the data set never has files is left out,
            with a logged reason.
        train_vocabulary: class list that was trained on, or its name, whose classes count as seen; ""
            splits nothing.
        label_file: file of other names for the classes, see `read_label_file`; "" for the data set's own.

    Raises:
        InputError: an unknown data set or class list; a label file of other classes; files that are missing
            (names the command that makes them), broken or of other images or classes; nothing to measure.
    """
    files = find_dataset(name, PanopticSet)
    vocabulary = Vocabulary.load(files.vocabulary)
    if label_file:
        vocabulary = read_label_file(label_file, vocabulary)
    measured = _tasks_with_files(name, files, tasks)
    records = panoptic_set_records(name, measured)
    _check_images(name, files, records, measured)
    seen = None
    instances = None
    if train_vocabulary:
        seen = _seen(vocabulary, train_vocabulary)
    if "instances" in measured:
        instances = read_true_instances(
            files.path(files.instances_json), vocabulary, [record["image_id"] for record in records]
        )
    info = coco_info(read_coco_json(files.path(files.annotations)))
    areas = str(info.get("areas", "published" if files.covered_stuff else ""))
    return PanopticGroundTruth(files, vocabulary, records, seen, measured, instances, areas)


def _seen(vocabulary: Vocabulary, trained: NamedVocabulary) -> np.ndarray:
    """Bool (K,): classes that training shows, by the published rule; of somebody's own classes case does not matter."""
    return vocabulary.seen_in(Vocabulary.load(trained), exact=not isinstance(trained, Vocabulary))


def _tasks_with_files(name: str, files: PanopticSet, tasks: Sequence[str]) -> tuple[str, ...]:
    """Tasks for which the data set names files, whether or not those exist."""
    lacking = {"instances": not files.instances_json, "semantic": not files.sem_seg_root}
    for task in tasks:
        if lacking.get(task):
            logger.warning('"%s" has no files for "%s", which is left out', name, task)
    measured = tuple(task for task in tasks if not lacking.get(task))
    if not measured:
        raise InputError(
            f'"{name}" has no files for any of {", ".join(tasks)}: add "panoptic" to '
            "TEST.PANOPTIC.TASKS, or register the data set with json_file and sem_seg_root"
        )
    return measured


def _check_images(
    name: str, files: PanopticSet, records: Sequence[Record], tasks: Sequence[str]
) -> None:
    """Refuses a data set without all images and PNGs: a run of hours should not end at the last one."""
    wanted = [("file_name", ""), ("pan_seg_file_name", files.prepare)]
    if "semantic" in tasks:
        wanted.append(("sem_seg_file_name", files.prepare_sem_seg))
    if files.instance_map_name and "instances" in tasks:
        wanted.append(("instance_map_file_name", ""))
    for key, command in wanted:
        require_files(name, records, f"run `{command}`" if command else files.root.advice, key)


def is_semantic_only(name: str) -> bool:
    """True for a data set with label maps and no panoptic files; False for an unknown one."""
    if name in DATASETS or name not in DatasetCatalog.list():
        return isinstance(DATASETS.get(name), SemSegSet)
    metadata = MetadataCatalog.get(name).as_dict()
    maps = metadata.get("sem_seg_root") or metadata.get("evaluator_type") == "sem_seg"
    return bool(maps) and not metadata.get("panoptic_json")


def read_semantic_only(
    name: str, tasks: Sequence[str], train_vocabulary: NamedVocabulary, label_file: str = ""
) -> PanopticGroundTruth:
    """Classes and records of a data set with label maps alone.

    Args:
        name: name of the data set, see `data.datasets.table`.
        tasks: tasks to measure; "semantic" has to be among it, and the others are left out.
        train_vocabulary: class list that was trained on, or its name, whose classes count as seen; "" splits nothing.
        label_file: file of other names for the classes, see `read_label_file`; "" for the data set's own.

    Raises:
        InputError: "semantic" is not asked for; an unknown class list; a label file of other classes; files are
            missing (names the command that makes them).
    """
    if "semantic" not in tasks:
        raise InputError(
            f'"{name}" has label maps alone, and TEST.PANOPTIC.TASKS is {", ".join(tasks)}: add "semantic", or leave '
            "the data set out of DATASETS.TEST"
        )
    files = find_dataset(name, SemSegSet)
    vocabulary = _one_background(Vocabulary.load(files.vocabulary), files.background)
    if label_file:
        vocabulary = _named_by(label_file, vocabulary, files)
    seen = None
    if train_vocabulary:
        seen = _seen(vocabulary, train_vocabulary)
        if counts_all(name, train_vocabulary):
            seen = np.ones(len(vocabulary), dtype=bool)
    return PanopticGroundTruth(
        files=None,
        vocabulary=vocabulary,
        records=sem_seg_records(name),
        seen=seen,
        tasks=("semantic",),
        instances=None,
        ignore_label=files.ignore_label,
    )


def counts_all(name: str, train_vocabulary: NamedVocabulary) -> bool:
    """True where all classes of a data set count as seen, whatever their names are."""
    return name in ALL_SEEN and train_vocabulary in COCO_LISTS


def _one_background(vocabulary: Vocabulary, background: int | None) -> Vocabulary:
    """The vocabulary with one class, the last, in place of all those that are names for background.

    A panoptic model tells classes apart by the best of their names, so that they need not compete with each other.
    """
    # All names of a class, in place of CAT-Seg's own entry.
    classes = tuple(replace(entry, catseg_name=None) for entry in vocabulary.classes)
    if background is None:
        return replace(vocabulary, classes=classes)
    names = [name for entry in classes[background:] for name in entry.names]
    last = VocabularyClass((BACKGROUND, *names), classes[background].dataset_id)
    name = f"{vocabulary.name}, {BACKGROUND} as one class"
    return Vocabulary(name, (*classes[:background], last), vocabulary.about)


def _named_by(path: str, vocabulary: Vocabulary, files: SemSegSet) -> Vocabulary:
    """The vocabulary with the names of a label file, whose background may be any of its rows."""
    named = read_label_file(path, vocabulary)
    if files.background is None:
        return named
    rows = [entry.names for entry in named.classes]
    of_background = [index for index, names in enumerate(rows) if BACKGROUND in names]
    if len(of_background) != 1:
        raise InputError(
            f'label file {path} has {len(of_background)} classes with the name "{BACKGROUND}", the data set has one: '
            "give the list of the same data set"
        )
    rows.append(rows.pop(of_background[0]))
    classes = zip(named.classes, rows, strict=True)
    return replace(named, classes=tuple(replace(entry, names=names) for entry, names in classes))
