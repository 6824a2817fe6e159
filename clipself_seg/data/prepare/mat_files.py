"""Reads one array of a MATLAB 5 file, as PASCAL Context has them, without believing what the file says.

SciPy's reader, in C, crashes on damaged files. Format: "MAT-File Format" of MathWorks: a header of 128
bytes, then elements, each a tag (type, bytes) and its data, padded to 8 bytes; data of at most 4 bytes may be in
the tag.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MATRIX = 14
COMPRESSED = 15
# Type of data -> NumPy's.
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
HEADER = 128
LARGEST = 8 * 8192**2 + 1024  # bytes of an unpacked array, far above any image of the archive


def read_mat_array(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """A numeric array of a file.

    Args:
        path: the file.
        name: name of the array.

    Raises:
        ValueError: it is no MATLAB 5 file, is damaged, or has no numeric array of this name.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if not content.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise ValueError("it is no MATLAB 5 file")
    try:
        for kind, data in _elements(content[HEADER:], order):
            if kind == COMPRESSED:
                kind, data = next(_elements(_unpack(data), order))
            if kind == MATRIX:
                _, shape, title, numbers, *_ = _elements(data, order)
                if title[1] == name.encode():
                    return _array(shape, numbers, order)
    except (zlib.error, struct.error, StopIteration) as error:
        raise ValueError(f"it is damaged ({error})") from None
    raise ValueError(f"it has no array {name}")


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Types and data of the elements one after the other."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        start = position + 8
        if kind >> 16:  # small: two bytes of size, two of type, and the data in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        data = content[start : start + size]
        if len(data) < size or (start == position + 4 and size > 4):
            raise ValueError("an element is longer than the file")
        yield kind, data
        # Compressed elements are not padded.
        end = start + size
        position = end if kind == COMPRESSED else max(position + 8, end + -end % 8)


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, LARGEST)
    if unpacker.unconsumed_tail:
        raise ValueError("it unpacks to more than an image has")
    return unpacked


def _array(shape: tuple[int, bytes], numbers: tuple[int, bytes], order: str) -> np.ndarray:
    sides = np.frombuffer(shape[1], f"{order}i4").tolist()
    if numbers[0] not in NUMBERS or min(sides, default=0) < 1:
        raise ValueError("its array is not of numbers, or empty")
    values = np.frombuffer(numbers[1], order + NUMBERS[numbers[0]])
    if math.prod(sides) != len(values):
        raise ValueError(f"it has {len(values)} numbers for an array of {sides}")
    return values.reshape(sides, order="F").astype(values.dtype.newbyteorder("="))
