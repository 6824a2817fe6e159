"""Drawing scenes in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def draw_in_parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, processes: int, label: str
) -> list[Result]:
    """``[function(job) for job in jobs]``, in order.

    Workers are started afresh, not forked: the threads of OpenCV and torch do not survive a fork.

    Args:
        function: of a module, so that a worker can import it.
        jobs: small, picklable.
        processes: 1 works in this process.
        label: of the progress bar.
    """

    def collect(results: Iterable[Result]) -> list[Result]:
        return list(tqdm(results, label, len(jobs), unit="job"))

    if processes == 1:
        return collect(map(function, jobs))
    with multiprocessing.get_context("spawn").Pool(processes, _one_thread) as pool:
        return collect(pool.imap(function, jobs, chunksize=max(1, len(jobs) // (16 * processes))))


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)
