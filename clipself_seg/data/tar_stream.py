"""Reads the members of a tar file in order from any stream of bytes, without writing to disk.

Python's tarfile follows what a file says further than is wanted here (links, headers without end, sparse
files) and takes longer. Formats: POSIX ustar and pax, GNU's long names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
# Longest header that is read for a name, and most of them in a row.
MAX_HEADER = 64 * 1024
MOST_HEADERS = 8
REGULAR = (b"0", b"\0", b"7")
PAX, PAX_FOR_ALL, LONG_NAME, LONG_LINK = b"x", b"g", b"L", b"K"


class DamagedTar(Exception):
    """What is read is no tar file from here on, or ends too early."""


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
        name: its path there.
        start: offset of its content in bytes.
        size: length of its content in bytes.
    """

    name: str
    start: int
    size: int


class Bytes:
    """Sequential reader of a file or a pipe that counts what it has read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.place = 0
        self.seekable = file.seekable()
        self.length = file.seek(0, 2) if self.seekable else None
        if self.seekable:
            file.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the end.

        Args:
            size: their number, which the caller has bounded.
        """
        content = self.file.read(size)
        self.place += len(content)
        return content

    def skip_to(self, place: int) -> None:
        """Go on to an offset.

        Raises:
            DamagedTar: what is read ends before it.
        """
        if self.length is not None:
            if place > self.length:
                raise DamagedTar(f"it ends after {self.length} bytes, in the middle of a file")
            if place != self.place:
                self.file.seek(place)
                self.place = place
            return
        while self.place < place:
            if not self.read(min(place - self.place, 1 << 20)):
                raise DamagedTar(f"it ends after {self.place} bytes, in the middle of a file")


def members(source: Bytes) -> Iterator[Member]:
    """Regular files of a tar file; links, folders and devices are passed over.

    The content of the latest may be read from the source before the next one is asked for.

    Raises:
        DamagedTar: as its text says.
    """
    name: str | None = None
    size: int | None = None
    headers = 0
    while True:
        header = source.read(BLOCK)
        if not header.strip(b"\0"):
            return  # the end mark, or the end
        own_name, own_size, kind = _parse(header)
        start = source.place
        if kind in (PAX, PAX_FOR_ALL, LONG_NAME, LONG_LINK):
            headers += 1
            if own_size > MAX_HEADER or headers > MOST_HEADERS:
                raise DamagedTar(f"it has a header of {own_size} bytes, or too many in a row")
            content = source.read(own_size)
            if kind == LONG_NAME:
                name = _text(content.rstrip(b"\0"))
            elif kind == PAX:
                name, size = _of_pax(content, name, size)
            source.skip_to(_rounded(start + own_size))
            continue
        size = own_size if size is None else size
        if kind in REGULAR:
            yield Member(own_name if name is None else name, start, size)
        # Only regular files have content; others state a size at times, and it counts for nothing.
        source.skip_to(_rounded(start + size) if kind in REGULAR else start)
        name, size, headers = None, None, 0


def _parse(header: bytes) -> tuple[str, int, bytes]:
    """Name, size and kind of what follows a header."""
    if len(header) < BLOCK:
        raise DamagedTar("it ends in the middle of a header")
    unsigned = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    if _number(header[148:156]) != unsigned:
        raise DamagedTar("a header has the wrong checksum: it is no tar file, or a compressed one")
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (
        _text(prefix + b"/" + name if prefix else name),
        _number(header[124:136]),
        header[156:157],
    )


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or GNU's bytes for large ones."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", text):
        raise DamagedTar("a header has no number where one should be")
    return int(text or b"0", 8)


def _of_pax(content: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Name and size of the next member by a pax header, lines such as "27 path=folder/image.jpg"."""
    place = 0
    while place < len(content):
        match = re.compile(rb"([0-9]{1,6}) ([^=\n]+)=").match(content, place)
        if match is None or int(match[1]) < match.end() - place:
            raise DamagedTar("a pax header cannot be read")
        value = content[match.end() : place + int(match[1]) - 1]
        if match[2] == b"path":
            name = _text(value)
        elif match[2] == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise DamagedTar("a pax header has no number where one should be")
            size = int(value)
        place += int(match[1])
    return name, size


def _text(name: bytes) -> str:
    """A name for logs too: what cannot be printed is replaced."""
    text = name.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _rounded(place: int) -> int:
    return -(-place // BLOCK) * BLOCK
