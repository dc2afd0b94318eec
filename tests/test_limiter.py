"""The limiter, whose capacity may change."""

import asyncio

import pytest
from conftest import until

from datafetch.fetch.limiter import Limiter


async def test_no_more_tasks_are_admitted_than_there_are_slots() -> None:
    """All are admitted in the end, first come, first served."""
    limiter = Limiter(lambda: 3)
    peak, order = 0, []

    async def work(number: int) -> None:
        nonlocal peak
        async with limiter:
            order.append(number)
            peak = max(peak, limiter.open)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(work(number))
    assert peak == 3
    assert order == list(range(20))
    assert (limiter.open, limiter.waiting) == (0, 0)


async def test_the_capacity_may_change() -> None:
    """More tasks are admitted when it grows, and none loses its slot when it falls."""
    capacity, leave = 1, asyncio.Event()
    limiter = Limiter(lambda: capacity)

    async def work() -> None:
        async with limiter:
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(work())
        await until(lambda: limiter.waiting == 2)
        capacity = 3
        group.create_task(work())
        await until(lambda: limiter.open == 3)
        capacity = 1
        assert (limiter.open, limiter.waiting) == (3, 1)
        leave.set()
    assert limiter.open == 0


async def test_a_cancelled_task_takes_no_slot() -> None:
    """This holds while it waits, and at the moment when the slot is granted."""
    limiter = Limiter(lambda: 1)

    async def work() -> None:
        async with limiter:
            pytest.fail("was cancelled before")

    async with limiter:
        waiting = asyncio.create_task(work())
        await until(lambda: limiter.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        instant = asyncio.create_task(work())
        await until(lambda: limiter.waiting == 1)
    instant.cancel()
    with pytest.raises(asyncio.CancelledError):
        await instant
    assert (limiter.open, limiter.waiting) == (0, 0)
