"""Turns: one at a time, in order, up to a number; what nobody waits for any more is left out."""

from __future__ import annotations

import asyncio
import threading

import pytest

from clipself_seg.explore.server import Busy, TooSlow, Turns


def test_work_is_done_one_at_a_time_in_the_order_of_coming():
    done, at_once = [], []

    def work(number: int) -> int:
        at_once.append(number)
        assert len(at_once) == 1
        at_once.pop()
        done.append(number)
        return number

    async def ask() -> list[int]:
        turns = Turns(9, 30)
        return await asyncio.gather(*(turns.run(lambda n=n: work(n)) for n in range(8)))

    assert asyncio.run(ask()) == done == list(range(8))


def test_more_than_may_wait_are_refused_and_room_comes_again():
    go = threading.Event()

    async def ask() -> None:
        turns = Turns(1, 30)
        first = [asyncio.create_task(turns.run(go.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await turns.run(go.wait)
        go.set()
        assert await asyncio.gather(*first) == [True, True]
        await asyncio.sleep(0)
        assert await turns.run(lambda: 3) == 3

    asyncio.run(ask())


def test_what_is_given_up_is_not_begun_and_what_has_begun_keeps_its_turn():
    go, begun = threading.Event(), []

    async def ask() -> None:
        turns = Turns(5, 0.02)
        with pytest.raises(TooSlow):
            await turns.run(go.wait)
        with pytest.raises(TooSlow):
            await turns.run(lambda: begun.append("late"))
        turns.seconds = 30
        go.set()
        assert await turns.run(lambda: 4) == 4

    asyncio.run(ask())
    assert begun == []


def test_an_error_of_the_work_is_the_caller_s():
    async def ask() -> None:
        turns = Turns(0, 30)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await turns.run(lambda: 1 / 0)

    asyncio.run(ask())
