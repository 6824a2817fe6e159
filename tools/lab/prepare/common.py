"""Parts that all preparations share: their declaration and options, files still to do, and writing them whole.

A preparation is a function of `Options`, declared by `preparation` under the name of its data set. Its docstring is the
help text of `python tools/prepare.py NAME`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from clipself_seg.data.datasets.table import DataRoot, DataSet
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_path, read_text, remove_leftovers

LONGEST_NAME = 200
"""Characters of a file's name; file systems have room for 255 bytes, and endings are added."""
CORRECTED = 0.99
"""Share of the published number of annotations with which a file is whole: official files have been corrected since."""
CHUNK = 1 << 22  # bytes


def too_few_annotations(entry: DataSet) -> str:
    """A note about an annotation file with fewer annotations than the official one; "" of any other.

    An annotation has one "image_id", so bytes are counted: a file of a gigabyte takes a second.
    """
    if entry.official_annotations is None:
        return ""
    count, word, seen = 0, b'"image_id"', b""
    with open(entry.path(entry.annotations), "rb") as file:
        while chunk := file.read(CHUNK):
            seen = seen[1 - len(word) :] + chunk  # a word may begin in the chunk before
            count += seen.count(word)
    if count >= CORRECTED * entry.official_annotations:
        return ""
    return f"{count} of {entry.official_annotations} annotations in {entry.path(entry.annotations)}"


class Options(NamedTuple):
    """Options that all preparations have.

    Attributes:
        root: folder of the data sets, which $DETECTRON2_DATASETS names.
        processes: number of processes to work in.
        overwrite: whether files that are there already are written again.
    """

    root: Path
    processes: int = 1
    overwrite: bool = False


class Prepared(NamedTuple):
    """Result of the preparation of one folder of label maps, or of one file.

    Attributes:
        folder: folder or file that is complete now.
        written: number of maps that were written.
        kept: number of maps that were there already.
        left_out: number of images without ground truth.
        notes: more lines for the terminal.
    """

    folder: Path
    written: int
    kept: int
    left_out: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Lines for the terminal."""
        left_out = f", {self.left_out} without ground truth left out" if self.left_out else ""
        line = f"{self.folder}: {self.written} written, {self.kept} there already{left_out}"
        return "\n    ".join((line, *self.notes))


class Preparation(NamedTuple):
    """A declared preparation.

    Attributes:
        prepare: is given the options, and by name "splits".
        splits: splits that there are; without any the function has no such parameter. Its default are those that are
            prepared unless others are named.
    """

    prepare: Callable[..., list[Prepared]]
    splits: tuple[str, ...]


PREPARATIONS: dict[str, Preparation] = {}
"""Preparations by the name of their data set, of the modules that have been imported."""
Prepare = TypeVar("Prepare", bound=Callable[..., list[Prepared]])


def preparation(name: str, splits: tuple[str, ...] = ()) -> Callable[[Prepare], Prepare]:
    """Decorator that declares a preparation, see `Preparation`."""

    def declare(prepare: Prepare) -> Prepare:
        PREPARATIONS[name] = Preparation(prepare, splits)
        return prepare

    return declare


class FileJob(Protocol):
    """One label map to write."""

    @property
    def target(self) -> Path:
        """Path of the label map."""

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Paths of all files that it writes, in the order of writing."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Paths of all files that it reads."""


@dataclasses.dataclass(frozen=True)
class MapJob:
    """One label map to write from one file of an archive; subclasses say more about it."""

    source: Path
    target: Path

    @property
    def sources(self) -> tuple[Path, ...]:
        """Path of the archive's file."""
        return (self.source,)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Path of the label map."""
        return (self.target,)


Job = TypeVar("Job", bound=FileJob)


def require(path: Path, archive: DataRoot, hint: str = "") -> Path:
    """Return `path` if it exists.

    Args:
        path: file or folder of an archive.
        archive: root of the archive, with advice how to get it.
        hint: advice for this path, in place of the archive's.

    Raises:
        InputError: it is missing; the message says how to get it.
    """
    if not path.exists():
        advice = hint or f"To get it: {archive.advice}"
        raise InputError(
            f"{path} is missing, give its folder by --root or {archive.variable}\n{advice}"
        )
    return path


def files_in(folder: Path, pattern: str, archive: DataRoot) -> list[Path]:
    """Sorted files below a folder of an archive that match a pattern, without hidden ones.

    Args:
        folder: folder of the archive.
        pattern: pattern of file names, such as "*.png".
        archive: root of the archive, with advice how to get it.

    Raises:
        InputError: there is no such folder or file.
    """
    require(folder, archive)
    paths = sorted(path for path in folder.rglob(pattern) if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder} has no {pattern}\nTo get them: {archive.advice}")
    return paths


def split_jobs(folder: Path, split: str, archive: DataRoot) -> list[MapJob]:
    """A job for each PNG of annotations/{split}, to be written under its name in annotations_detectron2/{split}.

    Args:
        folder: folder of the archive.
        split: name of the split's folders.
        archive: root of the archive, with advice how to get it.

    Raises:
        InputError: there is no such folder, or no PNG in it.
    """
    target = folder / "annotations_detectron2" / split
    sources = files_in(folder / "annotations" / split, "*.png", archive)
    return [MapJob(path, target / path.name) for path in sources]


def convert_files(
    convert: Callable[[Job], bool], jobs: Sequence[Job], options: Options
) -> Prepared:
    """Convert the files that are still to do, in parallel, with a progress bar.

    Args:
        convert: function of a module that writes one job; False says that there was nothing to write.
        jobs: at least one job; their label maps are in one folder. Files are written whole or not at
            all, so those that exist need no work.
        options: whether existing files are written again, and number of processes.

    Raises:
        InputError: an error of `convert`; files that are finished stay. Or another process is at work
            on the same folder.
    """
    from lab.parallel import run_in_parallel

    folder = jobs[0].target.parent
    with alone_in(folder):
        for parent in {output.parent for job in jobs for output in job.outputs}:
            remove_leftovers(parent)
        there = [all(path.exists() for path in job.outputs) for job in jobs]
        todo = [job for job, kept in zip(jobs, there) if options.overwrite or not kept]
        label = "/".join(folder.parts[-2:])
        done = run_in_parallel(convert, todo, processes=options.processes, label=label)
    return Prepared(folder, sum(done), len(jobs) - len(todo), len(done) - sum(done))


def lookup_table(
    index_of: Mapping[int, int], size: int, other: int, dtype: type[np.integer]
) -> np.ndarray:
    """Array (size,) of `dtype` with the index of each value, and `other` for values without one."""
    table = np.full(size, other, dtype)
    table[list(index_of)] = list(index_of.values())
    return table


def save_png(path: Path, values: np.ndarray) -> None:
    """Write uint8 (H, W) as a grey PNG, atomically."""
    _save(path, values, format="PNG")


def save_tiff(path: Path, values: np.ndarray) -> None:
    """Write uint16 (H, W) as a TIFF with lossless compression, atomically."""
    _save(path, values, format="TIFF", compression="tiff_adobe_deflate")


def _save(path: Path, values: np.ndarray, **options: str) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary, **options)


def read_stems(path: Path) -> list[str]:
    """Stems of a list of images as VOC's archives have it: the first word of every line.

    Raises:
        InputError: the file cannot be read, or names no image.
    """
    lines = read_text(path, "list").splitlines()
    stems = [line.split()[0].removesuffix(".jpg") for line in lines if line.strip()]
    if not stems:
        raise InputError(f"list {path} names no image")
    if len(long := max(stems, key=len)) > LONGEST_NAME:
        raise InputError(
            f"list {path} names {long[:40]}..., which is too long for a file: correct it"
        )
    return list(dict.fromkeys(stems))
