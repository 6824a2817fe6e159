"""Ground truth of a panoptic data set: what its evaluation reads and checks before the first image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.datasets.records import find_dataset, panoptic_set_records
from clipself_seg.data.datasets.table import IGNORE_LABEL, PanopticSet
from clipself_seg.data.records import Record, coco_info, read_coco_json
from clipself_seg.data.vocabulary import (
    Vocabulary,
    load_vocabulary,
    read_label_file,
    seen_by_synonym,
)
from clipself_seg.errors import InputError
from clipself_seg.evaluation.instances.ground_truth import (
    InstanceGroundTruth,
    read_instance_ground_truth,
)

logger = logging.getLogger(__name__)


class PanopticGroundTruth(NamedTuple):
    """A data set as its evaluation needs it: classes, images, and what outputs are compared with.

    Attributes:
        files: paths of the data set; None for one with label maps alone.
        vocabulary: its K classes.
        records: a record for each image, with the files of its ground truth.
        seen: (K,) bool, classes of the training vocabulary; None if that is not known.
        tasks: what is measured, out of "panoptic", "instances" and "semantic".
        instances: instances of all images; None if they are not measured.
        areas: kind of the areas of stuff that the panoptic JSON states: "published", also where
            ADE20K's file names none, or "clean"; "" for a data set that has only one kind.
        ignore_label: label of pixels of the label maps that do not count.
        images: how the preparation wrote the images, where it did; else "".
    """

    files: PanopticSet | None
    vocabulary: Vocabulary
    records: list[Record]
    seen: np.ndarray | None
    tasks: tuple[str, ...]
    instances: InstanceGroundTruth | None
    areas: str = ""
    ignore_label: int = IGNORE_LABEL
    images: str = ""

    @property
    def image_ids(self) -> list[Any]:
        """Id of each image, in the order of the file."""
        return [record["image_id"] for record in self.records]


def read_panoptic_ground_truth(
    name: str, tasks: Sequence[str], train_vocabulary: str, label_file: str = ""
) -> PanopticGroundTruth:
    """Reads all of a data set but its images and PNGs, and checks that those are there.

    Args:
        name: name of the data set, see `data.datasets.table`.
        tasks: what shall be measured; a task for which the data set never has files is left out,
            with a logged reason.
        train_vocabulary: name of the class list that was trained on, whose classes count as seen; ""
            splits nothing.
        label_file: file of other names for the classes, see `data.label_files`; "" for the data set's own.

    Raises:
        InputError: an unknown data set or class list; a label file of other classes; files that are missing
            (names the command that makes them), broken or of other images or classes; nothing to measure.
    """
    files = find_dataset(name, PanopticSet)
    vocabulary = load_vocabulary(files.vocabulary)
    if label_file:
        vocabulary = read_label_file(label_file, vocabulary)
    measured = _tasks_with_files(name, files, tasks)
    records = panoptic_set_records(name, measured)
    _check_images(name, files, records, measured)
    seen = None
    instances = None
    if train_vocabulary:
        seen = seen_by_synonym(vocabulary, load_vocabulary(train_vocabulary))
    if "instances" in measured:
        instances = read_instance_ground_truth(
            files.path(files.instances_json),
            vocabulary,
            [record["image_id"] for record in records],
        )
    info = coco_info(read_coco_json(files.path(files.annotations)))
    areas = str(info.get("areas", "published" if files.covered_stuff else ""))
    return PanopticGroundTruth(files, vocabulary, records, seen, measured, instances, areas)


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
        missing = [record[key] for record in records if not Path(record[key]).exists()]
        if missing:
            advice = f"run `{command}`" if command else files.root.advice
            raise InputError(
                f'data set "{name}": {len(missing)} of {len(records)} files are missing, such as '
                f"{missing[0]}; {advice}"
            )
