"""What the preparations of the data sets for semantic segmentation would write, and from which files."""

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
    """The preparation of a data set, looked at without doing it, and only once it is asked for."""

    def __init__(self, name: str, root: Path) -> None:
        """
        Args:
            name: of the data set; there is nothing to prepare for one that is not known here.
            root: the folder that $DETECTRON2_DATASETS names.
        """
        self._name, self._root = name, root

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, SourcedJob], str]:
        try:
            jobs = _JOBS[self._name](self._root) if self._name in _JOBS else ()
        except InputError as error:
            return {}, str(error)
        return {job.outputs[-1].stem: job for job in jobs}, ""

    @property
    def problem(self) -> str:
        """What the archive lacks as a whole, so that nothing can be prepared; "" if nothing."""
        return self._listed[1]

    @property
    def stems(self) -> set[str]:
        """Pictures that the archive names as those of the data set."""
        return set(self._listed[0])

    def possible(self, stem: str) -> bool:
        """Whether all is there that the label map of a picture is made of."""
        job = self._listed[0].get(stem)
        return job is not None and all(path.exists() for path in job.sources)

    def left_out(self, stem: str) -> bool:
        """Whether the preparation rightly writes nothing for a picture."""
        job = self._listed[0].get(stem)
        try:
            return isinstance(job, VocJob) and nothing_left(job)
        except InputError:  # a broken map, of which the preparation tells
            return False
