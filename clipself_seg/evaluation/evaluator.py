"""Parts of several evaluators: the base of those that keep something of every image until all processes are done, and
counting of pairs of labels.

Detectron2's `DatasetEvaluator` is their base as well; evaluators that only add up counts need no more than that.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

Output = Mapping[str, Any]  # of a model for an image: tensors, instances and lists by name
Outputs = Iterable[Output]
Samples = Iterable[Mapping[str, Any]]  # of a batch, as a mapper of evaluation makes them
ImageId = int | str
Kept = TypeVar("Kept")


@dataclass(kw_only=True, eq=False)
class ImageEvaluator(DatasetEvaluator, Generic[Kept]):
    """Keeps what it needs of each image by the image's id, and merges all processes before anything is averaged.

    An image that several processes evaluated (a sampler's padding) counts once, and images are
    compared in a fixed order, so the result does not depend on the number of processes.
    Subclasses implement `process`, which fills ``_images``, and `_numbers`.

    Attributes:
        dataset_name: name of the data set for messages and files.
        vocabulary: K classes of the data set; it says which are things.
        image_ids: ids of the data set's images, in the order in which they are compared: each has to be
            evaluated. None takes the images that come, sorted by id.
        seen: (K,) bool, classes of the training vocabulary; None splits nothing.
        output_dir: folder where the main process writes files; None writes nothing.
    """

    dataset_name: str
    vocabulary: Vocabulary
    image_ids: Sequence[ImageId] | None = None
    seen: np.ndarray | None = None
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._images: dict[ImageId, Kept] = {}

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The numbers of the images of all processes, the same in every process.

        They are made in the main process for all, since it takes minutes for a large data set; an error goes to
        every process, so that none waits.

        Raises:
            InputError: images are missing, or as `_numbers`; in every process.
        """
        parts = comm.gather(self._images)
        outcome: dict[str, dict[str, float]] | InputError = {}
        if comm.is_main_process():
            try:
                outcome = self._numbers(self._in_order(parts))
            except InputError as error:
                outcome = error
        outcome = comm.all_gather(outcome)[0]
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    @abc.abstractmethod
    def _numbers(self, images: dict[ImageId, Kept]) -> dict[str, dict[str, float]]:
        """Compares all images, each once and in the order of the data set, and writes tables and files."""

    def _in_order(self, parts: Iterable[Mapping[ImageId, Kept]]) -> dict[ImageId, Kept]:
        """Images of all processes in the order of the data set, each of which has to be there."""
        merged = {image: kept for part in parts for image, kept in part.items()}
        order = sorted(merged, key=str) if self.image_ids is None else self.image_ids
        missing = [image for image in order if image not in merged]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(order)} images of "{self.dataset_name}" have no '
                f"prediction, such as {missing[:3]}: evaluate the whole data set"
            )
        return {image: merged[image] for image in order}


def equal_runs(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the runs of equal pairs of labels, int64 (n,) each.

    Along the rows of an image runs are far fewer than pixels.

    Args:
        rows: labels (N,).
        columns: labels (N,) of the same places.
    """
    changes = np.ones(len(rows) + 1, dtype=bool)  # both ends are bounds of runs
    np.not_equal(rows[1:], rows[:-1], out=changes[1:-1])
    changes[1:-1] |= columns[1:] != columns[:-1]
    bounds = np.flatnonzero(changes) if len(rows) else np.zeros(1, dtype=np.int64)
    return bounds[:-1], np.diff(bounds)
