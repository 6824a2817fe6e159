"""Lists of pictures, one a line, as VOC's archives have them."""

from __future__ import annotations

from pathlib import Path

from clipself_seg.errors import InputError


def read_stems(path: Path) -> list[str]:
    """First word of every line, without the suffix of a picture.

    Raises:
        InputError: the file cannot be read, or names no picture.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"list {path} cannot be read: {error}") from None
    stems = [line.split()[0].removesuffix(".jpg") for line in lines if line.strip()]
    if not stems:
        raise InputError(f"list {path} names no picture")
    return list(dict.fromkeys(stems))
