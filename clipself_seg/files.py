"""Reads regular files only, and writes files atomically, so that an interrupted run leaves no partial file."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipself_seg.errors import InputError, in_short
from clipself_seg.memory import no_collection
from clipself_seg.schema import ANYTHING, Schema, check

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Errors of `flock` on a file system that has no locks, such as some of clusters.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
NOT_LOCKED = "%s cannot be locked: let one process at a time write there"
LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes
NAME_PART = 40  # characters, of 4 bytes at most, in a temporary name, which has 255 bytes at most
WHOLE = "whole"  # file beside a temporary folder that is complete
# A letter above the first 65,536 is two of these, and one alone is none.
HALF_LETTER = re.compile(r"\\u[dD][89a-fA-F]")
# Open folders that `alone_in` of this process has locked.
_locked: set[int] = set()
logger = logging.getLogger(__name__)


class FolderInUse(InputError):
    """Another process is at work in a folder, see `alone_in`."""


def require_regular_file(path: str | os.PathLike[str]) -> None:
    """Refuses what is no regular file before it is opened: a pipe may be waited for without end.

    Raises:
        InputError: a folder, a pipe, a device or a socket.
        OSError: there is nothing of this name, or it cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a NUL, or what the file system cannot encode
        raise InputError(f"{str(path)[:200]!r} is no name of a file: correct it") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path} is {kind}: give a file")


def home_expanded(path: str | os.PathLike[str], instead: str) -> Path:
    """A path that somebody gave, with the user's folder for "~" at its beginning.

    Args:
        path: path that somebody gave.
        instead: the way out where nobody knows the user's folder, for the error.

    Raises:
        InputError: it is longer than file systems take; there is no HOME, and the system knows of none.
    """
    given = os.fsencode(path)
    if len(given) > LONGEST_PATH or len(max(given.split(b"/"), key=len)) > LONGEST_NAME:
        raise InputError(f"{os.fspath(path)[:80]}... is too long for a path: correct it")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: the user has no folder, HOME is not set: {instead}") from None


@contextlib.contextmanager
def naming_path(
    path: str | os.PathLike[str], temporary: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Lets errors of writing a file or a folder name it; a full disk is reported without the name.

    Args:
        path: file or folder that is written.
        temporary: folder of what stands in for it meanwhile.

    Raises:
        OSError: as what is raised inside, but of `path`, unless it names another file.
    """
    try:
        yield
    except shutil.Error as error:  # of `copytree`: all files that fail
        reason = error.args[0][0][2].partition(":")[0]
        raise OSError(errno.EIO, reason, os.fspath(path)) from error
    except OSError as error:
        own = error.filename is None or temporary and str(error.filename).startswith(f"{temporary}")
        if error.errno is None or not own:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    Whatever happens inside (an exception, SIGKILL, a full disk), `path` holds either its old
    content or the complete new one.

    Raises:
        OSError: `path` is no regular file (a device, a folder), or cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "is no file that could be replaced", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own: safetensors writes to a temporary file beside the one that it is given.
    # Not with the whole name, which may be as long as the file system allows.
    prefix = f".{target.name[:NAME_PART]}."
    with naming_path(target, target.parent / prefix):
        around = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix, suffix=".part"))
    temporary = around / "part"
    try:
        temporary.touch()
        with naming_path(target, around):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, target)
    except Exception as error:
        # Safetensors, torch and Pillow report a full disk by exceptions of their own; torch raises its in handling
        # Python's, and Pillow's of a TIFF does not say the system's number.
        number = re.search(r"\(os error (\d+)\)", str(error))
        cause = error.__context__ if isinstance(error, RuntimeError) else None
        code = int(number[1]) if number else getattr(cause, "errno", None)
        if str(error).startswith("encoder error"):
            code = errno.EIO
        if code:
            raise OSError(code, os.strerror(code), str(target)) from error
        raise
    finally:
        shutil.rmtree(around, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder, which on success takes the place of `path`, and goes if anything fails.

    What killed calls for the same folder have left is removed.

    Raises:
        OSError: `path` is no folder, or a file cannot be written; names `path` if it is of the temporary folder.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise OSError(errno.ENOTDIR, "is no folder that could be replaced", str(target))
    with _folder_beside(target) as made:
        yield made
        if target.exists():
            os.replace(target, made.with_name("earlier"))
        os.replace(made, target)


@contextlib.contextmanager
def atomic_files(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files on success take their places beside `path`, that of its name last.

    What killed calls for the same path have left is removed.

    Raises:
        OSError: a file cannot be written; names `path` if it is of the temporary folder.
    """
    with _folder_beside(path) as made:
        yield made
        made.with_name(WHOLE).touch()
        _take_places(made, path)


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(target)
    around = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    made, earlier = around / "folder", around / "earlier"
    try:
        with naming_path(target, around), alone_in(made):
            yield made
    finally:
        _put_back(earlier, target)
        shutil.rmtree(around, ignore_errors=True)


def clear_killed(target: Path) -> None:
    """Finishes what killed calls of `atomic_folder` or `atomic_files` for `target` had whole, and removes the rest."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????.part"):
        with contextlib.suppress(FolderInUse):
            with alone_in(left / "folder"):
                _put_back(left / "earlier", target)
                if (left / WHOLE).exists():
                    _take_places(left / "folder", target)
            shutil.rmtree(left, ignore_errors=True)


def _take_places(made: Path, path: Path) -> None:
    for file in sorted(made.iterdir(), key=lambda file: file.name == path.name):
        os.replace(file, path.with_name(file.name))


def _put_back(earlier: Path, target: Path) -> None:
    if earlier.exists() and not target.exists():
        os.replace(earlier, target)


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder, which is made if need be.

    However this process ends, the folder is free again, also where processes that it forked live
    on. A system without locks, as Windows and the file systems of some clusters are, gets a warning.

    Raises:
        FolderInUse: one is at work there.
        InputError: a file is in the way of the folder.
        OSError: the folder cannot be made or opened.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is a file or below one: give another folder") from None
    if fcntl is None:
        logger.warning(NOT_LOCKED, folder)
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _locked.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{folder}: another process is at work there: wait for it, or give another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(NOT_LOCKED, folder)
        yield
    finally:
        if handle in _locked:  # not in a child that was forked inside
            _locked.remove(handle)
            os.close(handle)


def _close_locked() -> None:
    """Lets go of the parent's locks in a child that was just forked.

    A lock belongs to the open folder, which a child shares: it would outlive the parent.
    """
    for handle in _locked:
        os.close(handle)
    _locked.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_locked)


def remove_leftovers(folder: str | os.PathLike[str], age: float = 0) -> None:
    """Removes what `atomic_path` in a killed process left directly in `folder`.

    Args:
        folder: locked by the caller (`alone_in`), or one whose old files nobody is writing.
        age: seconds since the last write to a file that is removed.
    """
    newest = time.time() - age if age else math.inf
    for path in Path(folder).glob(".*.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and path.stat().st_mtime <= newest:
                shutil.rmtree(path)


def read_text(
    path: str | os.PathLike[str], what: str = "file", most_bytes: int | None = None
) -> str:
    """Content of a text file in UTF-8, without the mark that some editors put in front.

    Args:
        path: file.
        what: kind of file, for messages, such as "vocabulary file".
        most_bytes: size of a file that is read at most; None for any.

    Raises:
        InputError: it is missing, no regular file, larger, or no text.
    """
    try:
        require_regular_file(path)
        size = os.path.getsize(path)
        if most_bytes is None or size <= most_bytes:
            return Path(path).read_text(encoding="utf-8-sig")
        reason = f"has {size} bytes, and {most_bytes} at most are read: give a smaller one"
    except FileNotFoundError:
        reason = "is missing: restore it, or correct its name"
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = f"cannot be read as text in UTF-8 ({in_short(error)}): give a whole one"
    raise InputError(f"{what} {path} {reason}")


def read_json(
    path: str | os.PathLike[str],
    what: str = "file",
    schema: Schema = ANYTHING,
    most_bytes: int | None = None,
) -> Any:
    """Content of a JSON file.

    Args:
        path: file, in UTF-8.
        what: kind of file, for messages, such as "annotation file".
        schema: schema of the content, see `clipself_seg.schema`.
        most_bytes: as for `read_text`.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, most_bytes), f"{what} {path}", schema)


def parse_json(text: object, origin: object, schema: Schema = ANYTHING) -> Any:
    """The value that a text of JSON stands for.

    Args:
        text: as somebody gave it; what is no text is refused.
        origin: the file, for messages.
        schema: schema of the value.

    Raises:
        InputError: it is no JSON, nested too deeply, has half a letter, or does not fit the schema.
    """
    try:
        with no_collection():
            value = json.loads(text if isinstance(text, str) else "")
    except RecursionError:
        reason = "its brackets are nested too deeply"
    except ValueError as error:  # no JSON, or a number of thousands of digits
        reason = in_short(error)
    else:
        require_letters(str(text), value, origin)
        check(value, schema, origin)
        return value
    raise InputError(f"{origin} cannot be read as JSON ({reason}): give a whole one")


def require_letters(text: str, content: object, origin: object) -> None:
    """Refuses half of a letter, which no file in UTF-8 and no tokenizer takes.

    Args:
        text: JSON or YAML.
        content: plain data that the text stands for.
        origin: the file, for the message.

    Raises:
        InputError: a name or value has one, such as "\\ud800" alone.
    """
    try:
        if HALF_LETTER.search(text):
            json.dumps(content, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin} has half of a letter ({in_short(error)}): correct it") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")
