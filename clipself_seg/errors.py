"""Errors about input from outside: one or two lines that name the value and how to correct it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import re
import reprlib
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, ParamSpec

P = ParamSpec("P")
INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell
NO_READER = 141  # that of a program whose output nobody reads any more, as of a shell
GOES_ON = "the same command goes on"
# NumPy's, OpenCV's and torch's words for memory that there is not, with the size, and oneDNN's, without.
NO_MEMORY = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGTPE]iB))|could not create a primitive$")
# Packages that are not on PyPI under their own names.
PINNED = ("detectron2", "panopticapi")


class InputError(ValueError):
    """Error for bad input: a file, key, name or value cannot be used, and the message says what to do."""


class MissingPackage(InputError, ModuleNotFoundError):
    """A package that not every use needs is not installed."""


def of_extra(module: str, user: str, extra: str) -> Any:
    """A module of a package that an extra of the wheel brings.

    Args:
        module: its name.
        user: the feature that needs it, for the message.
        extra: such as "demo".

    Raises:
        MissingPackage: it is not installed, or does not go with another package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        lacks = isinstance(error, ModuleNotFoundError)
        why = (
            f"{error.name} is not installed" if lacks else f"{module} cannot be imported ({error})"
        )
        raise _missing(why, user, extra) from None


def _missing(why: str, user: str, extra: str) -> MissingPackage:
    return MissingPackage(f'{why}, and {user} needs it: pip install "clipself_seg[{extra}]"')


def require_installed(module: str, user: str, extra: str) -> None:
    """Refuses what needs a package that is not installed, without importing it, which may take seconds.

    Args:
        module, user, extra: as for `of_extra`.

    Raises:
        MissingPackage: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(f"{module} is not installed", user, extra)


class MissingFiles(InputError):
    """Data that are known here, whose files are not on this disk."""


def not_installed(module: str | None) -> str:
    """The message where one of `PINNED` is missing, by the name of the module that was imported."""
    package = (module or "").partition(".")[0]
    return f"{package} is not installed, and this needs it: clipself-seg install-detectron2"


def in_short(error: BaseException, letters: int = 80) -> str:
    """The beginning of the first line of what a library says, which may be pages long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:letters]


def out_of_memory(error: BaseException) -> str:
    """The sentence about an error for want of memory: the size asked for, and what makes it less; else ""."""
    match = NO_MEMORY.search(str(error))
    if not (match or isinstance(error, MemoryError)):
        return ""
    size = (match and match[1]) or "more than there is"
    return (
        f"out of memory, {size} asked for at once: give smaller images or fewer at a time (predict --batch-size), or "
        "lower INPUT.MIN_SIZE_TEST, in a training SOLVER.IMS_PER_BATCH"
    )


class _Short(reprlib.Repr):
    """Values of a file, whoever wrote it: nothing of them is called but what Python itself has."""

    def repr_str(self, x: str, level: int) -> str:
        """A text, whose end is cut off."""
        return repr(x if len(x) <= 60 else f"{x[:60]}...")

    def repr_int(self, x: int, level: int) -> str:
        """A whole number; one that may not even be printable is not printed."""
        return repr(x) if abs(x) < 1 << 64 else "of type int"

    def repr_instance(self, x: object, level: int) -> str:
        """Shows None, a bool or a float as it is, and of any other object its type."""
        return (
            repr(x) if x is None or isinstance(x, bool | float) else f"of type {type(x).__name__}"
        )


def shown(value: object) -> str:
    """A value out of a file for a message: plain data shortened, of everything else its type."""
    text = _Short().repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def ended_by(status: int) -> str:
    """The end of a process that could not report it itself, as the rest of a sentence.

    Args:
        status: its exit status, the negative number of a signal.
    """
    name = signal.Signals(-status).name
    return f"was ended by {name}" + (
        ", often for want of memory: free some, or ask for less" if name == "SIGKILL" else ""
    )


def nearest(name: str, choices: Iterable[str], first: Iterable[str] = ()) -> str:
    """A hint such as ``did you mean "ViT-B-16"?``, or a list of `first`, else of choices, when nothing is close."""
    names = sorted(set(choices))
    lowered = {candidate.lower(): candidate for candidate in names}
    if close := difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5):
        return f'did you mean "{lowered[close[0]]}"?'
    shown = [*first] or names[:8]
    return f"choose from: {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}"


def known(
    name: object, choices: Iterable[str], what: str, *, origin: object = "", hint: str = ""
) -> str:
    """A name that a user gave, which is one of those that there are.

    Args:
        name: the name.
        choices: the names that there are.
        what: kind of the name, such as "task".
        origin: the file, or the part of it, where the name stands; "" where somebody typed it.
        hint: end of the message, behind the nearest of the choices.

    Raises:
        InputError: it is none of them.
    """
    names = list(choices)
    if isinstance(name, str) and name in names:
        return name
    given = f'"{name[:200]}"' if isinstance(name, str) else shown(name)
    place = f"{origin}: " if origin else ""
    raise InputError(f"{place}unknown {what} {given}: {nearest(str(given), names)}{hint}")


def check_keys(content: Iterable[object], choices: Iterable[str], origin: object) -> None:
    """Refuses a key of a file that nothing reads.

    Args:
        content: the keys of the file.
        choices: the keys that there are.
        origin: the file, or the part of it.

    Raises:
        InputError: names the first such key, and the nearest of the choices.
    """
    choices = list(choices)
    for key in content:
        known(key, choices, "key", origin=origin)


def require_unique(values: Iterable[Hashable], what: str, origin: object) -> None:
    """Refuses a value of a file that is there twice.

    Args:
        values: the values, in the order of the file.
        what: kind of the values, such as "category id".
        origin: the file, or the part of it.

    Raises:
        InputError: names the first value that is there again.
    """
    earlier = set[Hashable]()
    for value in values:
        if value in earlier:
            raise InputError(f"{origin}: the {what} {shown(value)} is there twice: leave one")
        earlier.add(value)


@contextlib.contextmanager
def after_interrupt(again: str) -> Iterator[None]:
    """Lets Ctrl-C end a command with what the same command does the next time.

    So does an error after it: while they are imported, libraries turn Ctrl-C into errors of their own.

    Args:
        again: such as `GOES_ON`; without this context it is said to begin anew.
    """
    heard = threading.Event()

    def hear(*_: object) -> None:
        heard.set()
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, hear)
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if heard.is_set() or isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(again) from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is hear:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def report_input_errors(main: Callable[P, int | None]) -> Callable[P, int]:
    """Turns an `InputError` that escapes a command into one line on stderr and exit status 2.

    So with trouble of the file system: a full disk, a folder that may not be written; and of memory. Ctrl-C is one
    line and status 130; an output that nobody reads any more, as before ``| head``, is status 141 without a word.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            status = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            return _without_reader()
        except InputError as error:
            said = str(error)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in PINNED:
                raise
            said = not_installed(error.name)
        except KeyboardInterrupt as error:
            again = str(error) or "the same command begins anew"
            sys.stderr.write(f"interrupted; what is complete stays: {again}\n")
            return INTERRUPTED
        except OSError as error:
            if error.strerror is None:
                raise
            place = "" if error.filename is None else f"{error.filename}: "
            said = f"{place}{error.strerror}: make room, or give another path; files that are complete stay as they are"
        except Exception as error:
            if not (said := out_of_memory(error)):
                raise
        sys.stderr.write(f"error: {said}\n")
        return 2

    return wrapped


def _without_reader() -> int:
    """Ends a command whose standard output nobody reads; another broken pipe goes on as the error that it is."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    raise
