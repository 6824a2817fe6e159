"""FC-CLIP's and OpenSeg's lists of class names, which take the place of a data set's own.

A line is `ID:NAME,NAME,...`. Rows whose name is `invalid_class_id` are none. The classes are the data set's in number,
order and kind; only their names are read, letter by letter.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import read_text

NO_CLASS = "invalid_class_id"


def read_label_file(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary with the names of a label file, called after the file.

    With as many rows as classes they are in order. With more, as in COCO's file, the row of a class is that of its
    number in the data set.

    Args:
        path: file.
        vocabulary: the data set's own.

    Raises:
        InputError: the file cannot be read; a line of another form, or a number twice; classes without a row.
    """
    rows = _rows(path)
    numbers = list(rows)
    if len(rows) != len(vocabulary):
        numbers = [entry.dataset_id for entry in vocabulary.classes]
        lacking = [number for number in numbers if number not in rows]
        if len(rows) < len(vocabulary) or lacking:
            raise InputError(
                f"label file {path} has {len(rows)} classes, which are not the {len(vocabulary)} of "
                f"{vocabulary.name}"
                + (f" (there is none of number {lacking[0]})" if lacking else "")
                + ": give the list of the same data set"
            )
    classes = tuple(
        replace(entry, names=rows[number], catseg_name=None)
        for entry, number in zip(vocabulary.classes, numbers, strict=True)
    )
    return Vocabulary(Path(path).stem, classes, f"names of {path}")


def _rows(path: str | os.PathLike[str]) -> dict[int, tuple[str, ...]]:
    """The names of each number, in the order of the file."""
    rows: dict[int, tuple[str, ...]] = {}
    text = read_text(Path(path), "label file", "utf-8-sig")
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        number, colon, names = line.strip().partition(":")
        # Blanks after a comma are no part of a name; all else is.
        synonyms = tuple(name.strip() for name in names.split(","))
        if not (re.fullmatch("[0-9]{1,9}", number) and colon and all(synonyms)):
            raise InputError(
                f'label file {path}, line {line_number}: "{line[:60]}" is not of the form "7:dog,puppy": correct it'
            )
        if synonyms == (NO_CLASS,):
            continue
        key = int(number)
        if key in rows:
            raise InputError(
                f"label file {path}, line {line_number}: the number {key} is there already: remove one"
            )
        rows[key] = synonyms
    if not rows:
        raise InputError(f"label file {path} has no class")
    return rows
