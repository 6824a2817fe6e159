"""The order of the data, as a function of seed and iteration alone, and the loaders that keep it.

A draw is one use of an image; draws are numbered from 0 over the whole run and all processes.
Image and augmentation follow from the draw's number, so a run sees the same data whatever the
number of processes and workers, and a resumed one goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record
from clipself_seg.errors import InputError


class Draw(NamedTuple):
    """One use of an image: its step, its number in the run, and the index of the image."""

    iteration: int
    number: int
    image: int


class DrawOrder:
    """Which images make up a step: a permutation for each epoch, its incomplete last batch
    dropped."""

    def __init__(self, *, num_images: int, batch_size: int, seed: int) -> None:
        """
        Args:
            num_images: of the data set.
            batch_size: images of a step, over all processes.
            seed: of the run.

        Raises:
            InputError: fewer images than a batch has.
        """
        if num_images < batch_size:
            raise InputError(
                f"the training data has {num_images} images, fewer than SOLVER.IMS_PER_BATCH "
                f"{batch_size}: lower it or add data sets to DATASETS.TRAIN"
            )
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.steps_per_epoch = num_images // batch_size
        self._permutation: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, iteration: int) -> list[Draw]:
        """The draws of a step, for all processes together."""
        epoch, step = divmod(iteration, self.steps_per_epoch)
        if self._permutation[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._permutation = epoch, rng.permutation(self.num_images)
        start = step * self.batch_size
        images = self._permutation[1][start : start + self.batch_size].tolist()
        first = iteration * self.batch_size
        return [Draw(iteration, first + i, image) for i, image in enumerate(images)]


class ShareOfBatches:
    """Batch sampler: this process's equal share of the draws of the steps `start` to `stop` - 1."""

    def __init__(
        self, *, order: DrawOrder, start: int, stop: int, rank: int = 0, processes: int = 1
    ) -> None:
        if order.batch_size % processes:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {order.batch_size} cannot be shared equally by {processes} "
                "processes: make it a multiple of --num-gpus"
            )
        self.order, self.steps, self.rank = order, range(start, stop), rank
        self.share = order.batch_size // processes

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        for iteration in self.steps:
            begin = self.rank * self.share
            yield self.order.batch(iteration)[begin : begin + self.share]


class MappedDraws(Dataset):
    """Draw -> sample, with the step's number as "iteration".

    An `InputError` is returned instead of raised: a worker process would wrap it into its
    traceback.
    """

    def __init__(self, records: Sequence[Record], mapper: Callable[[Record, int], Sample]) -> None:
        # Detectron2's list keeps the records in one buffer that forked workers share.
        self.records, self.mapper = DatasetFromList(list(records), copy=False), mapper

    def __getitem__(self, draw: Draw) -> Sample | InputError:
        try:
            sample = self.mapper(self.records[draw.image], draw.number)
        except InputError as error:
            return error
        return sample | {"iteration": draw.iteration}


class MappedRecords(Dataset):
    """Index -> sample, for evaluation; errors as in `MappedDraws`."""

    def __init__(self, records: Sequence[Record], mapper: Callable[[Record], Sample]) -> None:
        self.records, self.mapper = DatasetFromList(list(records), copy=False), mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.mapper(self.records[index])
        except InputError as error:
            return error


class Batches:
    """A loader of sample lists that raises the errors which its workers met."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, InputError):
                    raise sample
            yield batch


def train_batches(
    records: Sequence[Record],
    mapper: Callable[[Record, int], Sample],
    share: ShareOfBatches,
    workers: int,
) -> Batches:
    """The batches of this process, from the sampler's first step on."""
    return _batches(MappedDraws(records, mapper), workers, batch_sampler=share)


def evaluation_batches(
    records: Sequence[Record], mapper: Callable[[Record], Sample], workers: int
) -> Batches:
    """Every image once over all processes, one at a time (their numbers of regions differ)."""
    sampler = InferenceSampler(len(records))
    return _batches(MappedRecords(records, mapper), workers, sampler=sampler, batch_size=1)


def _batches(dataset: Dataset, workers: int, **how: Any) -> Batches:
    loader: DataLoader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=_as_list,
        # A generator of its own: by default the loader would draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
        **how,
    )
    return Batches(loader)


def _as_list(samples: Iterable[Sample]) -> list[Sample]:
    return list(samples)
