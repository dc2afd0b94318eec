"""The memory budget for bodies."""

import asyncio

import pytest
from conftest import until
from hypothesis import given
from hypothesis import strategies as st

from datafetch.fetch.memory import BodyBudget


async def test_a_reservation_returns_its_bytes_at_the_end() -> None:
    """Bytes count from when they are reserved until their reservation ends."""
    budget = BodyBudget(100)
    with budget.reservation() as memory:
        await memory.grow(60)
        await memory.grow(40)  # has more already
        assert (memory.held_bytes, budget.held_bytes) == (60, 60)
        memory.shrink(10)
        assert budget.held_bytes == 10
        memory.shrink(50)
        assert budget.held_bytes == 10
    assert budget.held_bytes == 0


async def test_a_body_waits_for_memory() -> None:
    """A body over the budget is read once others have ended, except for the one that may go over it."""
    budget = BodyBudget(100)
    with budget.reservation() as first, budget.reservation() as second, budget.reservation() as third:
        await first.grow(90)
        over_budget = asyncio.create_task(second.grow(50))
        waiting = asyncio.create_task(third.grow(50))
        await over_budget
        await until(lambda: budget.waiting == 1)
        assert budget.held_bytes == 140
        second.shrink(0)
        assert not waiting.done()
        first.shrink(0)
        await waiting
        assert budget.held_bytes == 50


async def test_half_bodies_do_not_block_one_another() -> None:
    """If half-read bodies hold the whole budget, one may go over it and be completed; then the next one."""
    budget = BodyBudget(100)
    ended: list[int] = []
    peak_bytes = 0

    async def receive(number: int) -> None:
        nonlocal peak_bytes
        with budget.reservation() as memory:
            for size_bytes in (10, 20, 40, 80):
                await memory.grow(size_bytes)
                peak_bytes = max(peak_bytes, budget.held_bytes)
                await asyncio.sleep(0)
            ended.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(receive(number))
    assert sorted(ended) == list(range(20))
    assert peak_bytes <= 180
    assert budget.held_bytes == 0


async def test_no_request_is_sent_while_bytes_are_short() -> None:
    """A new request waits until a body has ended."""
    budget = BodyBudget(100)
    with budget.reservation() as other:
        with budget.reservation() as memory:
            await memory.grow(100)
            asking = asyncio.create_task(other.wait_for_room())
            await asyncio.sleep(0)
            assert not asking.done()
        await asking


async def test_a_cancelled_reservation_holds_nothing() -> None:
    """This holds while it waits, and at the moment when its bytes are granted."""
    budget = BodyBudget(100)
    with budget.reservation() as first, budget.reservation() as second, budget.reservation() as third:
        await first.grow(100)
        await second.grow(10)  # the over-budget holder
        waiting = asyncio.create_task(third.grow(10))
        await until(lambda: budget.waiting == 1)
        waiting.cancel()
        first.shrink(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (budget.held_bytes, budget.waiting) == (10, 0)
        await first.grow(90)
        granted = asyncio.create_task(third.grow(10))
        await until(lambda: budget.waiting == 1)
        first.shrink(0)
        granted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await granted
        assert (budget.held_bytes, third.held_bytes) == (10, 0)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=30), budget_bytes=st.integers(1, 300))
def test_at_most_the_budget_and_one_body_are_held(sizes: list[int], budget_bytes: int) -> None:
    """Every body is completed, whatever the sizes are."""

    async def receive(budget: BodyBudget, size_bytes: int) -> None:
        with budget.reservation() as memory:
            await memory.wait_for_room()
            for part_bytes in range(0, size_bytes + 1, max(1, size_bytes // 3)):
                await memory.grow(part_bytes)
                assert budget.held_bytes <= budget_bytes + max(sizes)
                await asyncio.sleep(0)
            await memory.grow(size_bytes)
            assert budget.held_bytes <= budget_bytes + max(sizes)

    async def receive_all() -> None:
        budget = BodyBudget(budget_bytes)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for size_bytes in sizes:
                group.create_task(receive(budget, size_bytes))
        assert budget.held_bytes == 0

    asyncio.run(receive_all())
