"""Reads the images of a WebDataset shard: a tar file, or the output of a command of the user's own.

Files that follow each other with one name up to the first dot are a sample, as in webdataset and open_clip; of a
sample the image is read and nothing else. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import IO, NamedTuple

from clipself_seg.config.shards import PIPE
from clipself_seg.data.records import Record
from clipself_seg.data.tar_stream import Bytes, DamagedTar, Member, members
from clipself_seg.errors import InputError, shown
from clipself_seg.files import require_regular_file

# Where a sample has several, the first of them counts, as in open_clip.
ENDINGS = ("jpg", "png", "jpeg", "webp")
MAX_BYTES = 256 * 2**20
MOST_FILES = 1000  # of a sample: all are kept in mind up to its end


class ShardImage(NamedTuple):
    """Where an image of a shard is, or why there is none.

    Attributes:
        shard: path or pipe.
        name: of the image in the shard.
        start: offset of its content in bytes.
        size: length of its content in bytes.
        content: its bytes, of a pipe, which is read once.
        trouble: why it cannot be used; empty if nothing is known against it.
    """

    shard: str
    name: str
    start: int = 0
    size: int = 0
    content: bytes | None = None
    trouble: str = ""

    def record(self) -> Record:
        """Record for a mapper: "file_name" for messages, "image_id", and "content", the bytes.

        Raises:
            InputError: the shard is no longer what it was.
        """
        content = self.content
        if content is None:
            with open_shard(self.shard) as file:
                file.seek(self.start)
                content = file.read(self.size)
        if len(content) != self.size:
            raise InputError(f"image {self.place} ends too early: has its shard been replaced?")
        return {"file_name": self.place, "image_id": self.name, "content": content}

    @property
    def place(self) -> str:
        """Shard and name, for messages."""
        return f"{self.shard}/{self.name}"


def require_shards(shards: list[str]) -> None:
    """Refuse files that are not there: a run of days should not end at the last one.

    Raises:
        InputError: names the first one.
    """
    missing = [
        shard for shard in shards if not shard.startswith(PIPE) and not os.path.exists(shard)
    ]
    if missing:
        raise InputError(
            f"DATASETS.TRAIN: {len(missing)} of {len(shards)} shards are missing, such as {missing[0][:300]}: "
            "restore them, or correct the path and its braces"
        )


def shard_images(shard: str) -> Iterator[ShardImage]:
    """The images of a shard in the order of the file, those that cannot be used too.

    Args:
        shard: path or pipe, see `config.shards`.

    Raises:
        InputError: the file is not there, or the command fails.
    """
    count = 0
    with open_shard(shard) as file:
        try:
            for image in _images(shard, Bytes(file)):
                count += 1
                yield image
        except DamagedTar as error:
            _to_end(file)
            yield ShardImage(shard, "", trouble=f"{error}; what follows in it is left out")
            return
        _to_end(file)
    if not count:
        yield ShardImage(shard, "", trouble="it has no samples")


@contextlib.contextmanager
def open_shard(shard: str) -> Iterator[IO[bytes]]:
    """Open a file, or start a command.

    Raises:
        InputError: the file cannot be opened; the command ends with another status than 0, when this
            context ends after all of its output was read.
    """
    if not shard.startswith(PIPE):
        try:
            require_regular_file(shard)
            file = open(shard, "rb")
        except OSError as error:
            raise InputError(f"shard {shard} cannot be read ({error.strerror})") from None
        with file:
            yield file
        return
    command = shard.removeprefix(PIPE)
    # A shell, as webdataset has it: the user typed the command.
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        status = process.wait()
    if status:
        raise InputError(
            f"the command of the shard {shown(shard)} ended with status {status}: see what it said, and --resume"
        )


def _to_end(file: IO[bytes]) -> None:
    """Read what a pipe has left, so that its command can end."""
    while not file.seekable() and file.read(1 << 20):
        pass


def _images(shard: str, source: Bytes) -> Iterator[ShardImage]:
    """The image of each sample."""
    key: str | None = None
    group: dict[str, ShardImage] = {}
    for member in members(source):
        folder, _, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if not stem or not dot:
            continue  # no sample, as in webdataset
        own, ending = f"{folder}/{stem}", ending.lower()
        if key is not None and (own != key or ending in group):
            yield _chosen(shard, key, group)
            group = {}
        key = own
        group[ending] = _image(shard, member, source if ending in ENDINGS else None)
        if len(group) > MOST_FILES:
            raise DamagedTar(f"its sample {shown(key)} has more than {MOST_FILES} files")
    if key is not None:
        yield _chosen(shard, key, group)


def _chosen(shard: str, key: str, group: dict[str, ShardImage]) -> ShardImage:
    for ending in ENDINGS:
        if ending in group:
            return group[ending]
    trouble = f"it has no image ({', '.join(ENDINGS)})"
    return ShardImage(shard, key.removeprefix("/"), trouble=trouble)


def _image(shard: str, member: Member, source: Bytes | None) -> ShardImage:
    """Place of a file, and its content if the source can be read but once.

    Args:
        shard: path or pipe.
        member: the file.
        source: the shard, in front of its content; None if that does not matter.
    """
    name, start, size = member
    if size > MAX_BYTES:
        return ShardImage(shard, name, trouble=f"it has {size} bytes, more than {MAX_BYTES}")
    content = None
    if source is not None and not source.seekable:
        content = source.read(size)
        if len(content) < size:
            raise DamagedTar(f"it ends after {source.place} bytes, in the middle of a file")
    return ShardImage(shard, name, start, size, content)
