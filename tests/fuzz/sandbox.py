"""Runs readers on mutants in forked children, where whatever goes wrong is seen and does no harm.

A child has a folder of its own, a limit of memory, and an audit hook that lets nothing start, connect or
be written outside of the folder. How it ends is the verdict about the mutant that it was reading.
"""

from __future__ import annotations

import dataclasses
import errno
import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipself_seg.errors import report_input_errors

READ, REFUSED, BAD = "read", "refused", "bad"
GIB = 1 << 30
LONGEST_SENTENCE = 2000  # characters
# Events that start programs, and that reach for other machines.
FORBIDDEN = {
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"),
    *("os.spawn", "os.startfile", "pty.spawn", "socket.connect", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.sendto", "socket.bind", "os.kill", "os.killpg"),
}
# Events whose first argument is a path that changes.
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate"}
CHANGES |= {"os.chmod", "os.chown", "shutil.rmtree", "shutil.move"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NO_MEMORY = re.compile(r"(can't|unable to|failed to) allocate|insufficient memory", re.IGNORECASE)


class Forbidden(BaseException):
    """A reader did what no file may make it do; no broad ``except Exception`` takes it for an error."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a reader may take for one file.

    Attributes:
        seconds: more is a hang.
        memory: bytes by which the resident memory may grow. What may be asked for is three times that.
    """

    seconds: float = 30
    memory: int = GIB


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one mutant.

    Attributes:
        index: its number.
        verdict: `READ`, `REFUSED` or `BAD`.
        kind: of what is bad: name of an exception, "hang", "memory", "signal 11", "long sentence" or an event.
        place: last line of the project that was at work, such as "clipself_seg/files.py:20".
        text: message of the error.
    """

    index: int
    verdict: str
    kind: str = ""
    place: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done with each mutant of a file.

    Attributes:
        read: the reader; gets the path of a mutant.
        folder: folder of the valid file with all that belongs to it.
        name: path of the file in the folder.
        make: number -> content of the mutant.
        limits: what reading one may take.
    """

    read: Callable[[Path], Any]
    folder: Path
    name: Path
    make: Callable[[int], bytes]
    limits: Limits


def outcomes(task: Task, mutants: Sequence[int], batch: int = 64) -> Iterator[Outcome]:
    """Read mutants of a file one after the other and say what came of each.

    Args:
        task: what is done.
        mutants: numbers of the mutants.
        batch: mutants of a child, if nothing ends it earlier.
    """
    waiting = list(mutants)
    while waiting:
        done = 0
        for outcome in _child_outcomes(task, waiting[:batch]):
            yield outcome
            done += 1
        waiting = waiting[done:]


def _child_outcomes(task: Task, mutants: Sequence[int]) -> Iterator[Outcome]:
    """The outcomes of one child; the last one may be how it died."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        copy = Path(place) / "files"
        shutil.copytree(task.folder, copy)
        trace = Path(place) / "trace"
        trace.touch()
        incoming, outgoing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(incoming)
            _in_child(dataclasses.replace(task, folder=copy), mutants, outgoing, trace)
        os.close(outgoing)
        reported = 0
        hung = False
        for line in _lines(incoming, 2 * task.limits.seconds + 10):
            hung = line is None
            if line is None:
                os.killpg(child, signal.SIGKILL)
                break
            yield Outcome(**json.loads(line))
            reported += 1
        os.close(incoming)
        status = os.waitpid(child, 0)[1]
        if reported < len(mutants):
            yield _of_death(mutants[reported], status, trace.read_text(errors="replace"), hung)


def _lines(handle: int, seconds: float) -> Iterator[bytes | None]:
    """Lines of a pipe as they come; None if none came for so long."""
    rest = b""
    while True:
        if not select.select([handle], [], [], seconds)[0]:
            yield None
            return
        if not (chunk := os.read(handle, 1 << 16)):
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _of_death(index: int, status: int, trace: str, hung: bool) -> Outcome:
    if hung or "Timeout (" in trace:
        kind = "hang"
    elif os.WIFSIGNALED(status):
        kind = f"signal {os.WTERMSIG(status)}"
    else:
        kind = f"exit {os.WEXITSTATUS(status)}"
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return Outcome(index, BAD, kind, _project_line(reversed(frames)), trace[:200])


def _project_line(frames: Any) -> str:
    """The last of some frames (file, line) that is of the package, else the last one."""
    named = [f"{Path(file).as_posix()}:{line}" for file, line in frames]
    own = [name for name in named if "/clipself_seg/" in name]
    last = (own or named or [""])[-1]
    return f"clipself_seg/{last.rpartition('/clipself_seg/')[2]}" if own else last


def _in_child(task: Task, mutants: Sequence[int], outgoing: int, trace: Path) -> None:
    """Read all mutants and report each; does not return."""
    status = 1
    try:
        os.setpgid(0, 0)
        path = task.folder / task.name
        os.chdir(task.folder)
        os.environ["HOME"] = tempfile.tempdir = str(task.folder)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        traces = trace.open("w")
        faulthandler.enable(traces)
        memory = _Memory(task.limits.memory)
        watch = _Watch(task.folder)
        for index in mutants:
            content = task.make(index)
            watch.events.clear()
            path.unlink(missing_ok=True)  # what is mapped into memory must not change
            path.write_bytes(content)
            memory.start()
            faulthandler.dump_traceback_later(task.limits.seconds, exit=True, file=traces)
            outcome = _judge(index, task.read, path, watch, memory)
            faulthandler.cancel_dump_traceback_later()
            os.write(outgoing, json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")
        status = 0
    except BaseException:  # noqa: B036  the process ends below
        traceback.print_exc(file=traces)
        traces.flush()
    finally:
        os._exit(status)


def _judge(
    index: int, read: Callable[[Path], Any], path: Path, watch: _Watch, memory: _Memory
) -> Outcome:
    raised: list[BaseException] = []
    verdict, kind = REFUSED, ""

    def remember() -> int:
        try:
            read(path)
            return 0
        except BaseException as error:
            raised.append(error)
            raise

    try:
        verdict = REFUSED if report_input_errors(remember)() else READ
    except BaseException as error:  # noqa: B036  every kind is a verdict
        verdict, kind = BAD, type(error).__name__
    error = raised[0] if raised else None
    text = "" if error is None else str(error)
    if verdict == REFUSED and len(text) > LONGEST_SENTENCE:
        verdict, kind = BAD, "long sentence"
    if memory.exceeded() or any(_is_out_of_memory(one) for one in _chain(error)):
        verdict, kind = BAD, "memory"
    if watch.events:
        verdict, kind = BAD, watch.events[0]
    place = "" if verdict != BAD else _place_of(error)
    return Outcome(index, verdict, kind, place, text[:200].encode("utf-8", "replace").decode())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised for, also where it hides them."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM  # of mmap
    return refused or isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def _place_of(error: BaseException | None) -> str:
    """Where the error was raised that others were raised for, in the project if it was there."""
    traces = [traceback.extract_tb(one.__traceback__) for one in _chain(error)]
    places = [_project_line((f.filename, f.lineno) for f in trace[3:]) for trace in traces[:1]]
    places += [_project_line((f.filename, f.lineno) for f in trace) for trace in traces[1:]]
    own = [place for place in places if place.startswith("clipself_seg/")]
    return (own or places or [""])[-1]


class _Memory:
    """Resident memory of this process, and a limit of what it may ask for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (self._of("VmSize") + 3 * limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def start(self) -> None:
        """Count from here."""
        os.write(self._reset, b"5")
        self._before = self._of("VmRSS")

    def exceeded(self) -> bool:
        """Whether the peak since `start` is above the limit."""
        return self._of("VmHWM") - self._before > self.limit

    @staticmethod
    def _of(name: str) -> int:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(name))
        return 1024 * int(line.split()[1])


class _Watch:
    """Remembers and stops what may not happen; a hook cannot be taken away, so this is for children."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self._folder = os.path.realpath(folder)
        sys.dont_write_bytecode = True
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = (mode and set(mode) & set("wax+")) or (flags and flags & WRITING)
            wrong = writes and self._is_outside(path)
        elif event in CHANGES:
            wrong = self._is_outside(args[0])
        else:
            wrong = event in FORBIDDEN
        if wrong:
            self.events.append(f"{event} {args[0]!r:.80}" if args else event)
            raise Forbidden(event)

    def _is_outside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a file that is open already
        real = os.path.realpath(os.fsdecode(path))
        return real != os.devnull and not f"{real}/".startswith(f"{self._folder}/")
