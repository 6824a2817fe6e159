"""Queues requests for a model: one at a time, in the order of arrival, with a limit on how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """The queue is full."""


class TooSlow(Exception):
    """A request was not answered within its time."""


class Turns:
    """The queue of one model."""

    def __init__(self, most_waiting: int, seconds: float) -> None:
        """
        Args:
            most_waiting: number of pieces of work that may wait while one is done.
            seconds: time from when work comes until it is given up.
        """
        self.most_waiting = most_waiting
        self.seconds = seconds
        self._lock = asyncio.Lock()  # lets in who waits longest
        self._inside = 0

    async def run(self, work: Callable[[], T]) -> T:
        """The result of work that is done in a thread, in its turn.

        A thread cannot be stopped: work that has begun is done to its end before the next turn, whether
        somebody still waits for it or not. Work that has not begun is then left out.

        Raises:
            Busy: too many wait.
            TooSlow: it was not done in its time.
        """
        if self._inside > self.most_waiting:
            raise Busy
        self._inside += 1
        wanted = asyncio.Event()
        wanted.set()
        task = asyncio.create_task(self._in_turn(work, wanted))
        task.add_done_callback(self._leave)
        try:
            return await asyncio.wait_for(asyncio.shield(task), self.seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            if task.done():
                raise  # the work's own
            raise TooSlow from None
        finally:
            wanted.clear()

    async def _in_turn(self, work: Callable[[], T], wanted: asyncio.Event) -> T:
        async with self._lock:
            if not wanted.is_set():
                raise TooSlow
            return await asyncio.to_thread(work)

    def _leave(self, task: asyncio.Task[T]) -> None:
        self._inside -= 1
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more
