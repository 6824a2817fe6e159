"""Rewriting of annotation files in COCO's format: what the preparations for detection have in common."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from clipself_seg.data.datasets.table import DataRoot
from clipself_seg.data.prepare.common import Options, Prepared, require, written_whole
from clipself_seg.data.records import coco_list, read_coco_json
from clipself_seg.files import alone_in, remove_leftovers

logger = logging.getLogger(__name__)

Content = dict[str, Any]
AT_ONCE = 10_000
"""Number of entries of a list that are written together."""


class Count(NamedTuple):
    """Something counted in a file that was written, beside the published number.

    Attributes:
        of: what is counted, in the plural.
        number: how many there are.
        published: how many there are according to others.
    """

    of: str
    number: int
    published: int

    def __str__(self) -> str:
        """Line for the terminal."""
        return f"{self.of}: {self.number} (published: {self.published})"


class Rewriting(NamedTuple):
    """The conversion of one annotation file.

    Attributes:
        source: official file.
        target: file that is written.
        archive: root of the official file, with advice how to get it.
        change: changes the content in place, and counts what is left.
    """

    source: Path
    target: Path
    archive: DataRoot
    change: Callable[[Content, Path], list[Count]]


def rewrite(job: Rewriting, options: Options) -> Prepared:
    """Write an annotation file of another one, unless it is there already.

    A count that differs from the published one is a warning: official files have been corrected before.

    Raises:
        InputError: the official file is missing or broken, or another process is at work in the folder.
    """
    if job.target.exists() and not options.overwrite:
        return Prepared(job.target, 0, 1, 0)
    require(job.source, job.archive)
    with alone_in(job.target.parent):
        remove_leftovers(job.target.parent)
        with tqdm(total=1, desc=f"read {job.source.name}", unit="file") as progress:
            content = read_coco_json(job.source)
            progress.update()
        before = len(coco_list(content, "images", job.source))
        counts = job.change(content, job.source)
        _write(job.target, content)
    for count in counts:
        if count.number != count.published:
            logger.warning("%s: another number of %s than published", job.target, count.of)
    left_out = before - len(content["images"])
    return Prepared(job.target, 1, 0, left_out, tuple(map(str, counts)))


def _write(path: Path, content: Content) -> None:
    total = sum(len(value) for value in content.values() if isinstance(value, list))
    with (
        tqdm(total=total, desc=path.name, unit="entry") as progress,
        written_whole(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for number, (key, value) in enumerate(content.items()):
            file.write(f"{', ' if number else '{'}{json.dumps(key)}: ")
            if isinstance(value, list):
                _write_list(file, value, progress)
            else:
                file.write(json.dumps(value))
        file.write("}")


def _write_list(file: TextIO, values: list[Any], progress: tqdm) -> None:
    # In pieces: the text of the whole list would take as much memory again as the list.
    file.write("[")
    for start in range(0, len(values), AT_ONCE):
        piece = values[start : start + AT_ONCE]
        file.write(", " * bool(start) + json.dumps(piece)[1:-1])
        progress.update(len(piece))
    file.write("]")
