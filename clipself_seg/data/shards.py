"""Training images out of WebDataset shards, in an order that follows from the seed and the number of readers.

The readers are the workers of all processes. For each epoch the shards are permuted and dealt to them; a reader takes
its shards one after the other and permutes the images of each. Its position is three numbers: epoch, shard and image.
A checkpoint has those of all readers, so a run that is resumed with as many readers goes on exactly, and opens no shard
that is behind it.

Python's tarfile lists what a shard contains, and the webdataset package groups it into samples. The package's own
reader is not used: it would start a command that a name contains, and take members of any size into memory. Here a
shard is a file, only images are read from it, and nothing is unpacked to the disk.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from clipself_seg.data.annotations import Record
from clipself_seg.data.loader import batch_of_process, batches_of
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.errors import InputError, in_short, of_extra, shown
from clipself_seg.files import require_regular_file
from clipself_seg.schema import OBJECT, Each, Kind, Schema, check

logger = logging.getLogger(__name__)

Mapper = Callable[[Record, int], Sample | None]

MARK = "wds:"
USER = 'DATASETS.TRAIN "wds:..."'
MOST_SHARDS = 2_000_000

# Where a sample has several, the first of them counts, as in open_clip.
ENDINGS = ("jpg", "png", "jpeg", "webp")
MAX_BYTES = 256 * 2**20
MAX_HEADER = 64 * 2**10
MAX_NAME = 1000
MOST_MEMBERS = 500_000
MOST_IN_A_ROW = 1000
"""Number of images in a row that cannot be used, after which a run ends."""
MOST_NAMED = 20
"""Number of images that cannot be used which a process names in its log; all are counted."""
# Readers' positions, and the number of images that could not be used, of each process.
NUMBER = Kind("a whole number from 0 on", lambda value: type(value) is int and 0 <= value < 2**48)
PLACE = Kind(
    "three whole numbers: epoch, shard and image",
    lambda value: isinstance(value, list) and len(value) == 3 and all(map(NUMBER.test, value)),
)
READER = Kind(
    "the number of a reader",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9]{1,9}", value)),
)
STATES: Schema = [{"positions": Each(READER, PLACE), "unusable": NUMBER}]
# What tarfile raises for damaged archives.
DAMAGES = (tarfile.TarError, ValueError, OverflowError, RecursionError)


def is_shards(name: object) -> bool:
    """True for a name of DATASETS.TRAIN that stands for shards."""
    return isinstance(name, str) and name.startswith(MARK)


def shards_of(names: Iterable[str]) -> list[str]:
    """Paths that names of DATASETS.TRAIN stand for, in their order; {000..099} counts, as in webdataset.

    Args:
        names: each with "wds:" in front.

    Raises:
        InputError: a name that stands for nothing or for too many, an address or a command.
    """
    expand = of_extra("braceexpand", USER, "webdataset").braceexpand
    shards = list[str]()
    for name in names:
        text = name.removeprefix(MARK)
        elsewhere = re.match("[a-z0-9]+:", text)  # an address or a command
        room = MOST_SHARDS + 1 - len(shards)
        wrong = elsewhere or not text.strip() or text.count("{") != text.count("}")
        paths = [] if wrong else list(itertools.islice(expand(text), room))
        shards += paths
        if not paths or len(shards) > MOST_SHARDS:
            raise InputError(
                f"DATASETS.TRAIN has {shown(name)}: give 1 to {MOST_SHARDS} files on this machine, such as "
                '"wds:/data/{00000..00099}.tar", no address and no command'
            )
    return shards


class ShardImage(NamedTuple):
    """Place of an image in a shard.

    Attributes:
        shard: path.
        name: name of the image in the shard.
        start: offset of its content in bytes.
        size: length of its content in bytes.
        trouble: reason why it cannot be used; empty if nothing is known against it.
    """

    shard: str
    name: str
    start: int = 0
    size: int = 0
    trouble: str = ""

    def record(self) -> Record:
        """Record for a mapper: "file_name" for messages, "image_id", and "content", the bytes.

        Raises:
            InputError: the image cannot be used.
        """
        place = f"{self.shard}/{self.name}" if self.name else self.shard
        if self.trouble:
            raise InputError(f"{place}: {self.trouble}")
        with _opened(self.shard) as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) < self.size:
            raise InputError(f"image {place} ends too early: its shard is damaged")
        return {"file_name": place, "image_id": self.name, "content": content}


def shard_images(shard: str) -> list[ShardImage]:
    """The images of a shard in the order of the file, those that cannot be used too.

    Args:
        shard: path.

    Raises:
        InputError: the file cannot be opened; webdataset is not installed.
    """
    images = []
    damages: list[ShardImage] = []
    # Of two files of one name in a sample the first counts.
    for sample in _webdataset().group_by_keys(
        _members(shard, damages), suffixes=set(ENDINGS), handler=lambda error: True
    ):
        files = [sample[ending] for ending in ENDINGS if ending in sample]
        if not files:
            trouble = f"it has no image ({', '.join(ENDINGS)})"
            images.append(ShardImage(shard, sample["__key__"], trouble=trouble))
            continue
        name, start, size = _printable(files[0].name), files[0].offset_data, files[0].size
        trouble = f"it has {size} bytes, more than {MAX_BYTES}" if size > MAX_BYTES else ""
        images.append(ShardImage(shard, name, start, size, trouble))
    if not images and not damages:
        return [ShardImage(shard, "", trouble="it has no samples")]
    return images + damages


class _Headers(io.BufferedReader):
    """File of which tarfile reads headers alone, whose length the file states itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"it has a header of {size} bytes")
        return super().read(size)


def _members(shard: str, damages: list[ShardImage]) -> Iterator[dict[str, Any]]:
    """Regular files of a shard, as webdataset groups them.

    Args:
        shard: path.
        damages: where a shard that is damaged is entered after what is whole in front of the damage.
    """
    with _opened(shard) as raw, _Headers(raw) as file:
        try:
            archive: Any  # its list of members, which is emptied, is in no stub
            with tarfile.open(fileobj=file, mode="r:", errors="replace") as archive:
                for count, member in enumerate(archive):
                    if member.size < 0 or count == MOST_MEMBERS:
                        raise tarfile.ReadError(
                            f"it has a negative size, or more than {count} files"
                        )
                    # It would keep all of them.
                    archive.members = []
                    archive.pax_headers = {}
                    if member.isreg() and not member.issparse() and len(member.name) <= MAX_NAME:
                        yield {"fname": member.name, "data": member, "__url__": shard}
                # tarfile takes a damaged header behind the first one for the end.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError("a header is cut off or damaged")
        except DAMAGES as error:
            trouble = f"{in_short(error)}; what follows in it is left out"
            damages.append(ShardImage(shard, "", trouble=trouble))


def _opened(shard: str) -> io.FileIO:
    try:
        require_regular_file(shard)
        return io.FileIO(shard)
    except OSError as error:
        raise InputError(f"shard {shard} cannot be read ({error.strerror})") from None


def _printable(name: str) -> str:
    """A name for logs too: what cannot be printed is replaced."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def _webdataset() -> Any:
    return of_extra("webdataset.tariterators", USER, "webdataset")


class Position(NamedTuple):
    """Position of a reader in its sequence of images.

    Attributes:
        epoch: its epoch.
        shard: number of the shard among those of the reader in this epoch.
        image: number of images of the shard that are behind it.
    """

    epoch: int = 0
    shard: int = 0
    image: int = 0


class ShardStream:
    """Batches of the images of shards, and how far they have come.

    Attributes:
        unusable: number of images that could not be used in the steps of this process, and, in the first
            process, in those before a resumption.
    """

    def __init__(self, shards: Sequence[str], *, batch_size: int, seed: int) -> None:
        """
        Args:
            shards: paths.
            batch_size: number of images of a step, over all processes.
            seed: seed of the run.

        Raises:
            InputError: a file is not there; webdataset is not installed.
        """
        _webdataset()
        missing = [shard for shard in shards if not os.path.exists(shard)]
        if missing:
            raise InputError(
                f"DATASETS.TRAIN: {len(missing)} of {len(shards)} shards are missing, such as {missing[0][:300]}: "
                "restore them, or correct the path and its braces"
            )
        self.shards = shards
        self.batch_size = batch_size
        self.seed = seed
        self.unusable = 0
        self._positions: dict[int, Position] = {}
        # Number of steps done -> state, of the latest step and in front of it.
        self._states: dict[int, dict[str, object]] = {}

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
            InputError: the batch cannot be divided among the processes; there are fewer shards than readers; too many
                images in a row cannot be used.
        """
        size = batch_of_process(self.batch_size, processes)
        readers = processes * max(1, workers)
        if len(self.shards) < readers:
            raise InputError(
                f"{len(self.shards)} shards are too few for {readers} readers ({processes} processes with "
                f"DATALOADER.NUM_WORKERS {workers}): lower it, or add shards to DATASETS.TRAIN"
            )
        samples = ShardSamples(
            self.shards, mapper, self.seed, steps, size, rank, processes, self._positions.copy()
        )
        self._states = {steps.start: self._state()}
        for step, batch in zip(steps, batches_of(samples, workers, batch_size=size)):
            for sample in batch:
                reader, position = sample.pop("position")
                self._positions[reader] = position
                self._name(sample.pop("unusable"))
            self._states[step + 1] = self._state()
            self._states.pop(step - 2, None)
            yield batch

    def _name(self, unusable: Sequence[str]) -> None:
        for text in unusable:
            self.unusable += 1
            if self.unusable <= MOST_NAMED:
                logger.warning("left out: %s", text[:400])
            if self.unusable == MOST_NAMED:
                logger.warning("further images that cannot be used are counted, and not named")

    def state(self, done: int) -> dict[str, object]:
        """The position of this process in its shards, for `load_states`, as JSON has it.

        Args:
            done: number of steps that are done: the latest that `batches` gave, all in front of it, or all in front
                of the one before.
        """
        return self._states[done] if self._states else self._state()

    def _state(self) -> dict[str, object]:
        positions = {str(reader): list(place) for reader, place in self._positions.items()}
        return {"positions": positions, "unusable": self.unusable}

    def load_states(self, states: Any, rank: int) -> None:
        """Goes on from where as many processes with as many workers were.

        Args:
            states: the `state` of each process, as they came back from JSON.
            rank: number of this process; the first one goes on counting what cannot be used.

        Raises:
            InputError: this is no such list.
        """
        origin = "the readers of shards in the checkpoint"
        advice = "delete it to go on from the one before it"
        check(states, STATES, origin, advice)
        own: Any = states[rank] if rank < len(states) else None
        check(own, OBJECT, f"{origin}, of process {rank},", advice)
        positions = {int(n): Position(*place) for n, place in own["positions"].items()}
        unusable = sum(state["unusable"] for state in states)
        self._positions = positions
        self.unusable = unusable if rank == 0 else 0


@dataclass(frozen=True)
class ShardSamples(IterableDataset):
    """Samples of the images that a process reads, each worker those of its own steps.

    A sample has "iteration", "position" (the reader and its position behind the image) and "unusable" (what was wrong
    with images that were passed over) beside what the mapper gives. An error is given in the place of a sample, as by
    `loader.MappedDraws`, and ends the worker.

    Args:
        shards: paths.
        mapper: (record, number of the draw) -> sample; an `InputError` or None asks for another image.
        seed: seed of the run.
        steps: training steps.
        size: number of images of a step of this process.
        rank: number of this process.
        processes: number of processes.
        positions: reader -> where it goes on; others begin.
    """

    shards: Sequence[str]
    mapper: Mapper
    seed: int
    steps: range
    size: int
    rank: int
    processes: int
    positions: Mapping[int, Position]

    def __iter__(self) -> Iterator[Sample | InputError]:
        """Samples of the steps of this worker; the loader takes a batch of each worker in turn."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = self.rank * workers + (self.steps.start + worker) % workers
        images = self._images(reader, self.processes * workers)
        for step in self.steps[worker::workers]:
            first = (step * self.processes + self.rank) * self.size
            for number in range(first, first + self.size):
                try:
                    sample, position = self._sample(images, number)
                except InputError as error:
                    yield error
                    return
                yield sample | {"iteration": step, "position": (reader, position)}

    def _sample(
        self, images: Iterator[tuple[ShardImage, Position]], number: int
    ) -> tuple[Sample, Position]:
        """Sample of the next image that can be used, and the position behind it."""
        unusable = []
        for _ in range(MOST_IN_A_ROW):
            image, position = next(images)
            try:
                sample = self.mapper(image.record(), number)
            except InputError as error:
                unusable.append(str(error))
                continue
            if sample is not None:
                return sample | {"unusable": unusable}, position
        last = unusable[-1] if unusable else "nothing is left of them"
        raise InputError(
            f"{MOST_IN_A_ROW} images of shards in a row cannot be used, the last because {last}: leave "
            f"{image.shard} out, in a new OUTPUT_DIR"
        )

    def _images(self, reader: int, readers: int) -> Iterator[tuple[ShardImage, Position]]:
        """Images of a reader from its position on, without end, each with the position behind it."""
        epoch, first, behind = self.positions.get(reader, Position())
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
            for place, shard in list(enumerate(order[reader::readers].tolist()))[first:]:
                images = shard_images(self.shards[shard])
                rng = np.random.default_rng((self.seed, epoch, shard))
                permuted = rng.permutation(len(images)).tolist()
                for count, index in enumerate(permuted[behind:], start=behind + 1):
                    yield images[index], Position(epoch, place, count)
                behind = 0
            epoch, first = epoch + 1, 0
