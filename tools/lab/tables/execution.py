"""Starts unfinished runs or resumes them, several side by side on a CPU."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from clipself_seg.checkpoints import locate
from clipself_seg.data.datasets.table import COCO, MINI
from clipself_seg.errors import InputError, ended_by
from clipself_seg.files import FolderInUse, alone_in
from clipself_seg.imports import VARIABLE
from lab import ROOT
from lab.tables.runs import Run
from lab.tables.store import Store

CONSOLE = "console.txt"
AT_ONCE = 2  # runs on a CPU: neither starting up nor a small model fills several cores
POLL = 2  # seconds between looks at a folder where another process is at work


def plan(runs: Iterable[Run], store: Store) -> list[Run]:
    """Runs that have to be made, each after those that it needs.

    Args:
        runs: runs whose numbers are wanted.
        store: which of them are finished.
    """
    wanted: dict[str, Run] = {}

    def visit(run: Run, is_finished: bool) -> None:
        if is_finished or run.name in wanted:
            return
        for need in run.needs.values():
            visit(need, store.has_weights(need))
        wanted[run.name] = run

    for run in runs:
        visit(run, store.record(run) is not None)
    return list(wanted.values())


def affordable(
    runs: Sequence[Run], cells: Mapping[str, int], seeds: Sequence[int], hours: float
) -> list[Run]:
    """Runs that a budget pays for, in the order of most cells an hour, and those of a seed before the next seed's.

    Args:
        runs: as `plan` gives them.
        cells: name of a run -> numbers of tables that it fills.
        seeds: seeds in their order.
        hours: of GPUs, or of cores.
    """
    left, minutes, chosen = {run.name for run in runs}, 60 * hours, list[Run]()
    while True:
        candidates: list[tuple[int, float, float, list[Run]]] = []
        for run in (run for run in runs if run.name in left):
            group = [one for one in run.with_needs() if one.name in left]
            group = list({one.name: one for one in group}.values())
            cost = sum(one.minutes for one in group)
            if (gain := sum(cells.get(one.name, 0) for one in group)) and cost <= minutes:
                place = 0 if run.seed is None else seeds.index(run.seed)
                candidates.append((-place, gain / (cost or 1), cost, group))
        if not candidates:
            return chosen
        *_, cost, group = max(candidates, key=lambda one: one[:2])
        chosen += group
        minutes -= cost
        left -= {one.name for one in group}


def make_all(runs: Sequence[Run], store: Store, *, at_once: int = AT_ONCE) -> None:
    """Make the runs that are not finished, and those that they need, on a GPU if there is one.

    Args:
        runs: runs whose numbers are wanted.
        store: where they go.
        at_once: runs side by side on a CPU.

    Raises:
        InputError: runs failed; the others came to their end.
    """
    gpus = int(torch.cuda.is_available())
    failed = run_all(plan(runs, store), store, gpus=gpus, at_once=at_once)
    if failed:
        problems = (f"the run {store.folder / name} failed: {why}" for name, why in failed.items())
        raise InputError("; ".join(problems))


def run_all(
    runs: Sequence[Run],
    store: Store,
    *,
    gpus: int = 0,
    hours: float = math.inf,
    at_once: int = AT_ONCE,
) -> dict[str, str]:
    """Make runs, and say on the terminal how far that is; those whose needs failed are left out.

    Args:
        runs: as `plan` gives them.
        store: where they go.
        gpus: GPUs of each run, one run after the other; 0 for a CPU.
        hours: of GPUs, or of cores; once they are spent, no further run begins.
        at_once: runs side by side on a CPU, each with one thread.

    Returns:
        Name of a run that failed -> what happened.
    """
    at_once = 1 if gpus else at_once
    # Runs work in the project's folder, and read the data that are read here.
    folders = {MINI.variable: MINI.drawn, COCO.variable: COCO.path}
    folders[locate.VARIABLE] = locate.weights_folder()
    roots = {variable: str(folder.absolute()) for variable, folder in folders.items()}
    variables = {**os.environ, **roots}
    if not gpus:
        variables |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    failed = _prepare(runs, store, variables)
    waiting = [run for run in runs if run.name not in failed]
    running: dict[Future[str], Run] = {}
    progress = _Progress(waiting, at_once)
    pool, stopped = ThreadPoolExecutor(at_once), threading.Event()
    end = progress.begin + 3600 * hours / (gpus or at_once)
    try:
        while waiting or running:
            if waiting and time.monotonic() > end:
                say(f"the hours are spent: {len(waiting)} runs are left; the same command goes on")
                waiting.clear()
            for run in _drop_hopeless(waiting, failed):
                progress.dropped(run, failed[run.name])
            for run in _ready(waiting, running.values())[: at_once - len(running)]:
                waiting.remove(run)
                say(f"$ clipself-seg {shlex.join(run.command(store.folder, gpus))}")
                running[pool.submit(_make, run, store, gpus, variables, stopped)] = run
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                if problem := future.result():
                    failed[run.name] = problem
                progress.ended(run, problem)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return failed


def _prepare(runs: Sequence[Run], store: Store, variables: Mapping[str, str]) -> dict[str, str]:
    """Write the data that runs need of their own, each once; the runs for which that failed."""
    failed: dict[str, str] = {}
    for prepare in dict.fromkeys(run.prepare for run in runs if run.prepare):
        words = [word.format(mini=MINI.drawn.absolute()) for word in prepare]
        say(f"$ python {shlex.join(words)}")
        store.folder.mkdir(parents=True, exist_ok=True)
        log = store.folder / CONSOLE
        with open(log, "ab") as console:
            code = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env=dict(variables),
                stdout=console,
                stderr=console,
            ).returncode
        if code:
            reason = f"its data could not be prepared: {_last_line(log)} (all of it: {log})"
            failed |= {run.name: reason for run in runs if run.prepare == prepare}
    return failed


def _ready(waiting: Sequence[Run], running: Iterable[Run]) -> list[Run]:
    """Runs whose needs are no longer ahead of them."""
    ahead = {run.name for run in (*waiting, *running)}
    return [run for run in waiting if not any(need.name in ahead for need in run.needs.values())]


def _drop_hopeless(waiting: list[Run], failed: dict[str, str]) -> list[Run]:
    """Take out of `waiting` what needs a run that failed."""
    dropped = []
    for run in list(waiting):
        lost = [need.name for need in run.needs.values() if need.name in failed]
        if lost:
            waiting.remove(run)
            failed[run.name] = f"needs {lost[0]}, which failed"
            dropped.append(run)
    return dropped


def _make(
    run: Run, store: Store, gpus: int, variables: Mapping[str, str], stopped: threading.Event
) -> str:
    """Start a run or go on with it; what went wrong, or ""."""
    if not _wait_for_others(store.folder / run.name, stopped):
        return "not started"
    if store.record(run) is not None and (run.evaluate or store.has_weights(run)):
        return ""  # another process just made it
    folder = store.begin(run)
    words = ["-m", "clipself_seg", *run.command(store.folder, gpus)]
    if not run.imports:
        variables = {key: value for key, value in variables.items() if key != VARIABLE}
    with open(folder / CONSOLE, "ab") as console:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=dict(variables), stdout=console, stderr=console
        )
        code, seconds = _wait(process)
    store.end(run, seconds)
    if code:
        reason = ended_by(code) if code < 0 else _last_line(folder / CONSOLE)
        return f"{reason} (all of it: {folder / CONSOLE})"
    if run.has_numbers and store.record(run) is None:
        return f"left no complete, finite numbers in {folder}"
    return ""


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit status of a process, and its processor time in seconds, or how long it took where there is no wait4."""
    begin = time.monotonic()
    if not hasattr(os, "wait4"):  # Windows
        return process.wait(), time.monotonic() - begin
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _wait_for_others(folder: Path, stopped: threading.Event) -> bool:
    """Wait until no other process is at work in a folder, such as one that outlived a killed call; False if stopped."""
    said = False
    while not stopped.is_set():
        try:
            with alone_in(folder):
                return True
        except FolderInUse as error:
            if not said:
                say(f"waiting: {error}")
            said = True
        stopped.wait(POLL)
    return False


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["failed"])[-1]
    return "failed"


def say(text: str) -> None:
    """A line on the terminal, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Progress:
    """The number of runs that came to their end, and the time that the others will take."""

    def __init__(self, runs: Sequence[Run], at_once: int) -> None:
        self.left = {run.name: run.minutes for run in runs}
        self.count = len(runs)
        self.at_once = at_once
        self.expected = 0.0  # minutes of what has ended
        self.begin = time.monotonic()

    def dropped(self, run: Run, problem: str) -> None:
        del self.left[run.name]
        self._say(run, f"left out: {problem}")

    def ended(self, run: Run, problem: str) -> None:
        self.expected += self.left.pop(run.name)
        self._say(run, f"failed: {problem}" if problem else "finished")

    def _say(self, run: Run, what: str) -> None:
        minutes = (time.monotonic() - self.begin) / 60
        pace = minutes / self.expected if self.expected else 1 / self.at_once
        waiting = sum(self.left.values())
        left = f", about {pace * waiting:.0f} minutes left" if waiting else ""
        number = self.count - len(self.left)
        say(f"[{number}/{self.count}] {run.name} {what} ({minutes:.1f} minutes so far{left})")
