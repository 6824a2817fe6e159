"""Data loaders whose order is a function of seed and iteration alone.

A draw is one use of an image; draws are numbered from 0 over the whole run and all processes.
Image and augmentation follow from the draw's number, so a run reads the same data whatever the
number of processes and workers, and a resumed run continues as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import Queue
from traceback import print_exception
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from clipself_seg.data.annotations import Record
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError, in_short

# Torch's words for a worker that was ended from outside, and its number.
DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited unexp)"
)
MOST_REPLACEMENTS = 100
"""Most images that are tried in the place of one."""
MORE_THAN_ALL_DRAWS = 2**48
"""Number that is added to that of a draw for each replacement, so that it is no other draw's."""


class Draw(NamedTuple):
    """One use of an image.

    Attributes:
        iteration: training step that uses it.
        number: number of the draw in the run.
        image: index of the image in the data set.
    """

    iteration: int
    number: int
    image: int


class DrawOrder:
    """Order of the images: a permutation for each epoch, whose incomplete last batch is dropped."""

    def __init__(self, *, num_images: int, batch_size: int, seed: int) -> None:
        """
        Args:
            num_images: number of images of the data set.
            batch_size: number of images of a step, over all processes.
            seed: seed of the run.

        Raises:
            InputError: the data set has fewer images than a batch.
        """
        if num_images < batch_size:
            raise InputError(
                f"the training data has {num_images} images, fewer than SOLVER.IMS_PER_BATCH "
                f"{batch_size}: lower it or add data sets to DATASETS.TRAIN"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = num_images // batch_size
        self._permutation: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, iteration: int) -> list[Draw]:
        """Draws of a step, for all processes together."""
        epoch, step = divmod(iteration, self.steps_per_epoch)
        if self._permutation[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._permutation = epoch, rng.permutation(self.num_images)
        start = step * self.batch_size
        images = self._permutation[1][start : start + self.batch_size].tolist()
        first = iteration * self.batch_size
        return [Draw(iteration, first + i, image) for i, image in enumerate(images)]


def batch_of_process(batch_size: int, processes: int) -> int:
    """Number of images of a step in each process.

    Args:
        batch_size: number of images of a step, over all processes.
        processes: number of processes.

    Raises:
        InputError: the batch size is not a multiple of the number of processes.
    """
    if batch_size % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch_size} cannot be divided equally among {processes} "
            "processes: make it a multiple of --num-gpus"
        )
    return batch_size // processes


def draws_of_process(
    order: DrawOrder, steps: range, rank: int = 0, processes: int = 1
) -> Iterator[list[Draw]]:
    """The part of one process of the draws of each step: all have equal ones.

    Args:
        order: order of the images over all processes.
        steps: the steps.
        rank: number of the process.
        processes: number of processes.

    Raises:
        InputError: the batch size is not a multiple of the number of processes.
    """
    size = batch_of_process(order.batch_size, processes)
    return (order.batch(step)[rank * size : (rank + 1) * size] for step in steps)


class MappedDraws(Dataset):
    """Dataset of the samples of draws, with the number of the step as "iteration".

    Where the mapper gives None, which asks for another image, one is drawn at random in its place.

    An `InputError` is returned instead of raised, because a worker process would wrap it into its
    traceback; `Batches` raises it.
    """

    def __init__(
        self, records: Sequence[Record], mapper: Callable[[Record, int], Sample | None]
    ) -> None:
        # Detectron2's list keeps the records in one buffer that forked workers do not copy.
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper = mapper

    def __getitem__(self, draw: Draw) -> Sample | InputError:
        try:
            return self._sample(draw) | {"iteration": draw.iteration}
        except InputError as error:
            return error

    def _sample(self, draw: Draw) -> Sample:
        image, rng = draw.image, np.random.default_rng((draw.number, draw.image))
        for attempt in range(MOST_REPLACEMENTS + 1):
            number = draw.number + attempt * MORE_THAN_ALL_DRAWS
            if (sample := self.mapper(self.records[image], number)) is not None:
                return sample
            image = int(rng.integers(len(self.records)))
        raise InputError(
            f"none of {MOST_REPLACEMENTS} training images drawn at random has an object left after its "
            "augmentation: look at the boxes and masks of DATASETS.TRAIN"
        )


class MappedRecords(Dataset):
    """Dataset of the samples of records, for evaluation, with errors as in `MappedDraws`."""

    def __init__(self, records: Sequence[Record], mapper: Callable[[Record], Sample]) -> None:
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.mapper(self.records[index])
        except InputError as error:
            return error


class Batches:
    """Loader of lists of samples that raises the errors which its workers returned."""

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


@contextlib.contextmanager
def dead_workers_named() -> Iterator[None]:
    """Says in a sentence which worker process of a loader the system ended.

    Torch notices it by a signal, so that its error comes up wherever this process is at that time.

    Raises:
        InputError: a worker was ended from outside. Its own errors are passed on.
    """
    try:
        yield
    except RuntimeError as error:
        match = DEAD_WORKER.search(str(error))
        if match is None:
            raise
        raise InputError(
            f"process {match[1]}, which reads images for this one, was ended by the system, often for want "
            "of memory, or of room in /dev/shm: free some, or set DATALOADER.NUM_WORKERS 0, which needs neither"
        ) from None


def evaluation_batches(
    records: Sequence[Record], mapper: Callable[[Record], Sample], workers: int, size: int = 1
) -> Batches:
    """Loader of every image once over all processes, one at a time where their numbers of regions differ.

    Args:
        records: all images.
        mapper: record -> sample.
        workers: processes that make samples; 0 for this one.
        size: number of images of a batch.
    """
    sampler = InferenceSampler(len(records))
    return batches_of(MappedRecords(records, mapper), workers, sampler=sampler, batch_size=size)


def batches_of(dataset: Dataset, workers: int, **options: Any) -> Batches:
    """Loader of a dataset whose samples, or `InputError`s in their place, depend on nothing but their index.

    Where the process uses a GPU, tensors come in pinned memory, from which they are copied while Python goes on.

    Args:
        dataset: see `MappedDraws`.
        workers: processes that make samples; 0 for this one.
        options: of torch's `DataLoader`.
    """
    loader: DataLoader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=list,
        # Not where there is a GPU that this process does without: pinning would take some of its memory.
        pin_memory=torch.cuda.is_initialized(),
        # A generator of its own: by default the loader would draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_start_worker,
        **options,
    )
    return Batches(loader)


def _start_worker(worker: int) -> None:
    """Lets a worker end where it cannot hand over a sample, which would be awaited for ever.

    Where the process that it reads for was killed while it took a sample, it prints no traceback.
    """
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    lost = (ConnectionError, EOFError)
    sys.excepthook = lambda kind, *of: (
        None if issubclass(kind, lost) else print_exception(kind, *of)
    )


def _end_worker(error: Exception, samples: object) -> None:
    """Says why samples cannot be handed over, such as for a full /dev/shm, and ends this process."""
    sys.stderr.write(f"{in_short(error, 200)}\n")
    sys.stderr.flush()
    os._exit(1)
