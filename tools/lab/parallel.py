"""Calls a function for many jobs in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from clipself_seg.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST_JOBS_AT_ONCE = 32
"""Most jobs that a worker gets at once: more would make the progress bar jump, and an interruption
would lose more work."""


def run_in_parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, processes: int, label: str
) -> list[Result]:
    """Results ``[function(job) for job in jobs]``, in order.

    Workers are spawned, not forked: the threads of OpenCV and torch do not survive a fork. They end
    with this process, however it ends.

    Args:
        function: function of a module, so that a worker can import it.
        jobs: its arguments, small and picklable.
        processes: number of workers; 1 works in this process.
        label: title of the progress bar.

    Raises:
        InputError: the system ended a worker. Errors of `function` are passed on.
    """

    def collect(results: Iterable[Result]) -> list[Result]:
        return list(tqdm(results, label, len(jobs), unit="job"))

    if processes == 1 or len(jobs) < 2:
        return collect(map(function, jobs))
    piece = min(MOST_JOBS_AT_ONCE, max(1, len(jobs) // (16 * processes)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), context, _start_worker) as pool:
        try:
            return collect(pool.map(function, jobs, chunksize=piece))
        except BrokenProcessPool:
            raise InputError(
                f"{label}: the system ended a worker, often for want of memory: "
                "free some, or ask for fewer processes"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C, which reaches all processes of a terminal, to the first one."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
