"""Dry runs of preparations for semantic segmentation, with which data sets are checked.

A check asks here which images an archive names, and whether all files for a label map are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from clipself_seg.data.prepare.ade import ade150_jobs, ade847_jobs
from clipself_seg.data.prepare.coco_stuff import coco_stuff_jobs
from clipself_seg.data.prepare.common import SourcedJob
from clipself_seg.data.prepare.pascal_context import context_59_jobs, context_459_jobs
from clipself_seg.data.prepare.voc import VocJob, nothing_left, voc20_jobs
from clipself_seg.errors import InputError

_JOBS: dict[str, Callable[[Path], Sequence[SourcedJob]]] = {
    "coco_2017_train_stuff_all_sem_seg": functools.partial(coco_stuff_jobs, split="train2017"),
    "coco_2017_test_stuff_all_sem_seg": functools.partial(coco_stuff_jobs, split="val2017"),
    "ade20k_150_test_sem_seg": functools.partial(ade150_jobs, split="validation"),
    "ade20k_full_sem_seg_freq_val_all": functools.partial(ade847_jobs, split="validation"),
    "context_59_test_sem_seg": context_59_jobs,
    "context_459_test_sem_seg": lambda root: context_459_jobs(root)[0],
    "voc_2012_test_sem_seg": functools.partial(voc20_jobs, name="annotations_detectron2"),
    "voc_2012_test_background_sem_seg": functools.partial(
        voc20_jobs, name="annotations_detectron2_bg"
    ),
}


class Plan:
    """Jobs of the preparation of a data set, listed at the first question about them."""

    def __init__(self, name: str, root: Path) -> None:
        """
        Args:
            name: name of the data set; there are no jobs for one that has no preparation.
            root: folder of the data sets, which $DETECTRON2_DATASETS names.
        """
        self._name = name
        self._root = root

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, SourcedJob], str]:
        """Jobs by stem, and a message if the archive cannot be listed."""
        try:
            jobs = _JOBS[self._name](self._root) if self._name in _JOBS else ()
        except InputError as error:
            return {}, str(error)
        return {job.outputs[-1].stem: job for job in jobs}, ""

    @property
    def problem(self) -> str:
        """Message about a part of the archive without which nothing can be prepared; "" if none."""
        return self._listed[1]

    @property
    def stems(self) -> set[str]:
        """Stems of the images that the archive names as those of the data set."""
        return set(self._listed[0])

    def possible(self, stem: str) -> bool:
        """Whether all files are there from which the label map of an image is made."""
        job = self._listed[0].get(stem)
        return job is not None and all(path.exists() for path in job.sources)

    def left_out(self, stem: str) -> bool:
        """Whether the preparation writes no label map for an image that would have no label."""
        job = self._listed[0].get(stem)
        try:
            return isinstance(job, VocJob) and nothing_left(job)
        except InputError:  # a broken map, which the preparation refuses
            return False
