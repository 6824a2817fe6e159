"""What an evaluation of panoptic segmentation knows of a data set before it begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from clipself_seg.data.datasets.panoptic import (
    PanopticFiles,
    panoptic_dataset,
    panoptic_set_records,
)
from clipself_seg.data.overlap import seen_by_synonym
from clipself_seg.data.records import Record, read_coco_json
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.instances.truth import InstanceTruth, read_instance_truth

logger = logging.getLogger(__name__)


class PanopticTruth(NamedTuple):
    """A data set: what the model is told, what it is shown, and what it is compared with.

    Attributes:
        files: of the data set.
        vocabulary: K classes.
        records: of the pictures.
        seen: (K,) bool, classes of the training vocabulary; None if nothing is known of it.
        tasks: of "panoptic", "instances", "semantic", what is measured.
        instances: if they are measured.
        areas: what the file says its areas of stuff are: "published", which ADE20K's are if it does
            not say, or "clean"; "" where there is no such question.
    """

    files: PanopticFiles
    vocabulary: Vocabulary
    records: list[Record]
    seen: np.ndarray | None
    tasks: tuple[str, ...]
    instances: InstanceTruth | None
    areas: str = ""

    @property
    def image_ids(self) -> list[Any]:
        """In the order of the file."""
        return [record["image_id"] for record in self.records]


def read_panoptic_truth(name: str, tasks: Sequence[str], train_vocabulary: str) -> PanopticTruth:
    """Read everything but the pictures and their PNGs, which have to be there.

    Args:
        name: of the data set, see `data.datasets.panoptic`.
        tasks: what shall be measured; that for which the data set never has files is left out,
            with a logged reason.
        train_vocabulary: name of the class list whose words count as seen; "" splits nothing.

    Raises:
        InputError: an unknown data set or class list; files that are missing (names the command that
            makes them), broken or of other pictures or classes; nothing to measure.
    """
    files = panoptic_dataset(name)
    vocabulary = load_vocabulary(files.vocabulary)
    theirs = _tasks_of(name, files, tasks)
    records = panoptic_set_records(name, theirs)
    _check_pictures(name, files, records, theirs)
    seen, instances = None, None
    if train_vocabulary:
        seen = seen_by_synonym(vocabulary, load_vocabulary(train_vocabulary))
    if "instances" in theirs:
        image_ids = [record["image_id"] for record in records]
        instances = read_instance_truth(files.path(files.instances_json), vocabulary, image_ids)
    info = read_coco_json(files.path(files.panoptic_json)).get("info") or {}
    areas = info.get("areas", "published" if files.covered_stuff else "")
    return PanopticTruth(files, vocabulary, records, seen, theirs, instances, areas)


def _tasks_of(name: str, files: PanopticFiles, tasks: Sequence[str]) -> tuple[str, ...]:
    """Those that a data set has files for; whether they are there is another question."""
    lacking = {"instances": not files.instances_json, "semantic": not files.sem_seg_root}
    for task in tasks:
        if lacking.get(task):
            logger.warning('"%s" has no files for "%s", which is left out', name, task)
    theirs = tuple(task for task in tasks if not lacking.get(task))
    if not theirs:
        raise InputError(
            f'"{name}" has no files for any of {", ".join(tasks)}: add "panoptic" to '
            "TEST.PANOPTIC.TASKS, or register the data set with json_file and sem_seg_root"
        )
    return theirs


def _check_pictures(
    name: str, files: PanopticFiles, records: Sequence[Record], tasks: Sequence[str]
) -> None:
    """Every picture and PNG has to be there: a run of hours should not end at the last one."""
    wanted = [("file_name", ""), ("pan_seg_file_name", files.prepare)]
    if "semantic" in tasks:
        wanted.append(("sem_seg_file_name", files.prepare_sem_seg))
    for key, command in wanted:
        missing = [record[key] for record in records if not Path(record[key]).exists()]
        if missing:
            advice = f"run `{command}`" if command else files.root.advice
            raise InputError(
                f'data set "{name}": {len(missing)} of {len(records)} files are missing, such as '
                f"{missing[0]}; {advice}"
            )


def trained_words(cfg: CfgNode) -> str:
    """The class list that counts as seen: TEST.TRAIN_VOCABULARY, else the first training data set's; or ""."""
    if cfg.TEST.TRAIN_VOCABULARY or not cfg.DATASETS.TRAIN:
        given: str = cfg.TEST.TRAIN_VOCABULARY
        return given
    return panoptic_dataset(cfg.DATASETS.TRAIN[0]).vocabulary
