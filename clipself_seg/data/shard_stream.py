"""An endless stream of training images from WebDataset shards, in an order that depends on the seed alone.

A step's batch is read from several **lanes**, as many as the batch has images (or the largest part of that for which
there are shards). For each epoch the shards are permuted and dealt to the lanes. A lane reads its shards one after
the other, and permutes the images of a shard in blocks. So it is the same data whatever the number of processes, each
of which has some of the lanes, and of workers, which decode what the process has listed. Nothing is listed beyond a
block of each lane, so the number of shards and images does not matter. A lane that is through with its part of an
epoch begins with the next; within an epoch each image is used once.

Where a run is, is a number for each of the three: epoch, shard and image. A checkpoint has them, so a resumed run
reads a shard for each lane up to there, and no other.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from clipself_seg.data.loader import MORE_THAN_ALL_DRAWS, batches_of
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.records import Record
from clipself_seg.data.shards import ShardImage, require_shards, shard_images
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)

Mapper = Callable[[Record, int], Sample | None]

# Least number of images of a shard that are permuted together; the last block has up to twice as many.
BLOCK = 512
# Images that are tried in the place of one that cannot be used.
SPARES = 8
MOST_NAMED = 20
"""Number of images that cannot be used which a process names in its log; all are counted."""


class Position(NamedTuple):
    """The position of a lane in its sequence of images.

    Attributes:
        epoch: its epoch.
        shard: number of the shard among those of the lane in this epoch.
        image: number of images of the shard that are behind it.
    """

    epoch: int = 0
    shard: int = 0
    image: int = 0


class Drawn(NamedTuple):
    """The next image of a lane.

    Attributes:
        image: where it is.
        spares: others of its block, which take its place in turn if it cannot be read.
        unusable: what is wrong with those that were passed over before it.
        after: position of the lane behind it.
    """

    image: ShardImage
    spares: tuple[ShardImage, ...]
    unusable: tuple[str, ...]
    after: Position


class LaneDraw(NamedTuple):
    """One use of an image.

    Attributes:
        iteration: training step that uses it.
        number: number of the draw in the run, over all processes.
        lane: number of its lane.
        drawn: the image.
    """

    iteration: int
    number: int
    lane: int
    drawn: Drawn


class ShardStream:
    """Batches of the images of shards, and how far they have come.

    Attributes:
        unusable: number of images that could not be used in the steps of this process, and, in the first
            process, in those before a resumption.
    """

    def __init__(self, shards: Sequence[str], *, batch_size: int, seed: int) -> None:
        """
        Args:
            shards: paths and pipes, see `config.shards`.
            batch_size: number of images of a step, over all processes.
            seed: seed of the run.

        Raises:
            InputError: a file is not there.
        """
        require_shards(list(shards))
        self.shards = shards
        self.batch_size = batch_size
        self.seed = seed
        most = min(len(shards), batch_size)
        self.lanes = max(n for n in range(1, most + 1) if batch_size % n == 0)
        self.unusable = 0
        self._positions: dict[int, Position] = {}
        # Number of steps done -> state, of the latest step and in front of it.
        self._states: dict[int, dict[str, Any]] = {}

    def batches(
        self, mapper: Mapper, steps: range, *, rank: int, processes: int, workers: int
    ) -> Iterator[list[Sample]]:
        """This process's part of the batch of each step, from where the stream is.

        Args:
            mapper: (record, number of the draw) -> sample; an `InputError` or None asks for another image.
            steps: training steps.
            rank: number of this process.
            processes: number of processes.
            workers: processes that read and map images for this one; 0 for itself.

        Raises:
            InputError: there are not enough lanes for the processes; nothing in a block can be used.
        """
        lanes = self._lanes_of(rank, processes)
        draws = _LaneSampler(self, steps, lanes)
        earlier = before = self._state(lanes)
        for step, samples in zip(
            steps, batches_of(StreamedDraws(mapper), workers, batch_sampler=draws)
        ):
            for sample in samples:
                lane, position = sample.pop("position")
                self._positions[lane] = position
                self._name(sample.pop("unusable"))
            after = self._state(lanes)
            self._states = {step - 1: earlier, step: before, step + 1: after}
            earlier, before = before, after
            yield samples

    def _lanes_of(self, rank: int, processes: int) -> range:
        if self.lanes % processes:
            raise InputError(
                f"{len(self.shards)} shards are read side by side in {self.lanes} lanes, which {processes} processes "
                f"cannot share equally: give SOLVER.IMS_PER_BATCH (now {self.batch_size}) a multiple of them, and "
                "at least so many shards"
            )
        each = self.lanes // processes
        return range(rank * each, (rank + 1) * each)

    def lane(self, number: int) -> Iterator[Drawn]:
        """The images of a lane from its position on, without end.

        Args:
            number: number of the lane.

        Raises:
            InputError: there is no image in any of its shards.
        """
        epoch, first, behind = self._positions.get(number, Position())
        unusable: list[str] = []
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
            usable = False
            for place, shard in list(enumerate(order[number :: self.lanes].tolist()))[first:]:
                rng = np.random.default_rng((self.seed, epoch, shard))
                for count, image, spares in _shuffled(shard_images(self.shards[shard]), rng):
                    usable = usable or not image.trouble
                    if count <= behind:
                        continue
                    if image.trouble:
                        unusable.append(f"{image.place}: {image.trouble}")
                        continue
                    yield Drawn(image, spares, tuple(unusable), Position(epoch, place, count))
                    unusable = []
                behind = 0
            if not usable and not first:
                raise InputError(
                    f"no image in the {len(order[number :: self.lanes])} shards of a lane, such as "
                    f"{self.shards[order[number]]}: {unusable[-1]}"
                )
            epoch, first = epoch + 1, 0

    def _name(self, unusable: Sequence[str]) -> None:
        for text in unusable:
            self.unusable += 1
            if self.unusable <= MOST_NAMED:
                logger.warning("left out: %s", text[:400])
            if self.unusable == MOST_NAMED:
                logger.warning("further images that cannot be used are counted, and not named")

    def state(self, done: int) -> dict[str, Any]:
        """How far the lanes of this process have come, for `load_states`, as JSON has it.

        Args:
            done: number of steps that are done: the latest that `batches` gave, all in front of it, or all in front
                of the one before.
        """
        return self._states[done]

    def _state(self, lanes: range) -> dict[str, Any]:
        positions = {str(n): list(self._positions[n]) for n in lanes if n in self._positions}
        return {"positions": positions, "unusable": self.unusable}

    def load_states(self, states: Any, rank: int) -> None:
        """Go on from where all processes were.

        Args:
            states: the `state` of each process, as they came back from JSON.
            rank: number of this process; the first one goes on counting what cannot be used.

        Raises:
            InputError: this is no such list.
        """
        try:
            positions = {
                int(lane): Position(*place)
                for state in states
                for lane, place in state["positions"].items()
            }
            unusable = sum(state["unusable"] for state in states)
            numbers = [unusable, *(n for place in positions.values() for n in place)]
            whole = not positions or positions.keys() == set(range(self.lanes))
            if not whole or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
                raise ValueError
        except (TypeError, ValueError, KeyError, AttributeError):
            raise InputError(
                "the checkpoint does not say how far the shards were read: delete it to go on from the one before it"
            ) from None
        self._positions = positions
        self.unusable = unusable if rank == 0 else 0


class _LaneSampler:
    """Batch sampler of a process: equally many images of each of its lanes for every step."""

    def __init__(self, stream: ShardStream, steps: range, lanes: range) -> None:
        self.stream = stream
        self.steps = steps
        self.lanes = lanes

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[LaneDraw]]:
        each = self.stream.batch_size // self.stream.lanes
        with contextlib.ExitStack() as open_lanes:
            lanes = {n: open_lanes.enter_context(_closing(self.stream, n)) for n in self.lanes}
            for iteration in self.steps:
                first = iteration * self.stream.batch_size
                yield [
                    LaneDraw(iteration, first + lane * each + i, lane, next(drawn))
                    for lane, drawn in lanes.items()
                    for i in range(each)
                ]


def _closing(stream: ShardStream, lane: int) -> Any:
    """A lane that is closed with its file or command."""
    return contextlib.closing(stream.lane(lane))


class StreamedDraws(Dataset):
    """Dataset of the samples of draws; beside what the mapper gives, "iteration", "position" and "unusable".

    Errors are returned, as by `loader.MappedDraws`.
    """

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __getitem__(self, draw: LaneDraw) -> Sample | InputError:
        unusable = list(draw.drawn.unusable)
        for attempt, image in enumerate((draw.drawn.image, *draw.drawn.spares)):
            try:
                sample = self.mapper(image.record(), draw.number + attempt * MORE_THAN_ALL_DRAWS)
            except InputError as error:
                unusable.append(str(error))
                continue
            if sample is not None:
                about = {"position": (draw.lane, draw.drawn.after), "unusable": unusable}
                return sample | about | {"iteration": draw.iteration}
        last = unusable[-1] if unusable else "nothing is left of them"
        return InputError(
            f"{len(draw.drawn.spares) + 1} images of the shard {draw.drawn.image.shard} in a row cannot be used, "
            f"the last because {last}: leave that shard out, in a new OUTPUT_DIR"
        )


def _shuffled(
    images: Iterable[ShardImage], rng: np.random.Generator
) -> Iterator[tuple[int, ShardImage, tuple[ShardImage, ...]]]:
    """Images of a shard with their number from 1 on, permuted in blocks, and some others of the block."""
    count = 0
    for block in _blocks(images):
        permuted = [block[i] for i in rng.permutation(len(block)).tolist()]
        usable = [image for image in permuted if not image.trouble]
        place = 0
        for image in permuted:
            count += 1
            place += not image.trouble
            spares = usable[place : place + SPARES]
            missing = min(SPARES - len(spares), place - 1)
            yield count, image, tuple(spares + usable[: max(0, missing)])


def _blocks(images: Iterable[ShardImage]) -> Iterator[list[ShardImage]]:
    """Lists of `BLOCK` images; what is left of the last one goes to the one before it."""
    block: list[ShardImage] = []
    for image in images:
        block.append(image)
        if len(block) == 2 * BLOCK:
            yield block[:BLOCK]
            block = block[BLOCK:]
    if block:
        yield block
