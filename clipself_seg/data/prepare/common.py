"""What all preparations share: which files are still to do, doing them, and writing them whole."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from clipself_seg.data.datasets.roots import DataRoot
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_path


class Options(NamedTuple):
    """How to prepare.

    Attributes:
        root: the folder that $DETECTRON2_DATASETS names.
        processes: to work in.
        overwrite: write what is there already again.
    """

    root: Path
    processes: int = 1
    overwrite: bool = False


class Prepared(NamedTuple):
    """What was done for one folder of label maps."""

    folder: Path
    written: int
    kept: int
    left_out: int

    def __str__(self) -> str:
        """One line for the terminal."""
        left_out = f", {self.left_out} without ground truth left out" if self.left_out else ""
        return f"{self.folder}: {self.written} written, {self.kept} there already{left_out}"


class FileJob(Protocol):
    """One label map to write."""

    @property
    def target(self) -> Path:
        """The label map."""

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files that it writes, the last one last."""


class SourcedJob(FileJob, Protocol):
    """One label map to write, of which it can be asked whether all is there for it."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files that it reads."""


class MapJob(NamedTuple):
    """One label map to write from one file of an archive."""

    source: Path
    target: Path

    @property
    def sources(self) -> tuple[Path, ...]:
        """The archive's file."""
        return (self.source,)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The label map."""
        return (self.target,)


Job = TypeVar("Job", bound=FileJob)


def require(path: Path, archive: DataRoot, hint: str = "") -> Path:
    """`path`, if it is there.

    Raises:
        InputError: it is missing; says what to get.
    """
    if not path.exists():
        advice = hint or f"To get it: {archive.advice}"
        raise InputError(
            f"{path} is missing, give its folder by --root or {archive.variable}\n{advice}"
        )
    return path


def files_in(folder: Path, pattern: str, archive: DataRoot) -> list[Path]:
    """Files of an archive's folder that match, sorted; hidden ones do not count.

    Raises:
        InputError: there is no such folder or file.
    """
    require(folder, archive)
    paths = sorted(path for path in folder.rglob(pattern) if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder} has no {pattern}\nTo get them: {archive.advice}")
    return paths


def convert_files(
    convert: Callable[[Job], bool], jobs: Sequence[Job], options: Options
) -> Prepared:
    """Convert what is still to do, in parallel, with a progress bar.

    Args:
        convert: a function of a module; False says that there was nothing to write.
        jobs: at least one; their label maps lie in one folder. Files are whole or not there, so
            those that are there need no work.

    Raises:
        InputError: what `convert` raises about its files; what is done stays. Another process is at
            work on the same folder.
    """
    with alone_in(jobs[0].target.parent):
        return _convert_files(convert, jobs, options)


def _convert_files(
    convert: Callable[[Job], bool], jobs: Sequence[Job], options: Options
) -> Prepared:
    from clipself_seg.data.parallel import run_in_parallel

    for place in {output.parent for job in jobs for output in job.outputs}:
        for left_over in place.glob(".*.part"):  # of a run that was killed
            left_over.unlink(missing_ok=True)
    todo = [
        job for job in jobs if options.overwrite or not all(path.exists() for path in job.outputs)
    ]
    folder = jobs[0].target.parent
    label = "/".join(folder.parts[-2:])
    done = run_in_parallel(convert, todo, processes=options.processes, label=label)
    return Prepared(folder, sum(done), len(jobs) - len(todo), len(done) - sum(done))


def lookup_table(index_of: Mapping[int, int], size: int, other: int, dtype: Any) -> np.ndarray:
    """(size,) of `dtype`: index by value, `other` for values without one."""
    table = np.full(size, other, dtype)
    table[list(index_of)] = list(index_of.values())
    return table


def save_png(path: Path, values: np.ndarray) -> None:
    """Write uint8 (H, W) as grey PNG, atomically."""
    _save(path, values, format="PNG")


def save_tiff(path: Path, values: np.ndarray) -> None:
    """Write uint16 (H, W) as TIFF with lossless compression, atomically."""
    _save(path, values, format="TIFF", compression="tiff_adobe_deflate")


def _save(path: Path, values: np.ndarray, **how: str) -> None:
    from PIL import Image

    with written_whole(path) as temporary:
        Image.fromarray(values).save(temporary, **how)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """`files.atomic_path` whose trouble with the disk is an error that says what to do.

    Raises:
        InputError: no space, no permission, or another failure of the file system.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room" if full else "correct that"
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): {remedy} and run this again; "
            "what is finished stays"
        ) from None


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
