"""Timers fire when they should, however far ahead, and cost no timer of the event loop until then."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial

import pytest

from datafetch.fetch.timers import TimeLimit, Timer, Timers


async def _fires_at(delay_s: float) -> tuple[float, float]:
    """When a timer should fire, and when it does."""
    loop, fired = asyncio.get_running_loop(), asyncio.Event()
    timer, when_s = Timer(Timers()), loop.time() + delay_s
    timer.start(when_s, fired.set)
    await fired.wait()
    return when_s, loop.time()


async def test_a_timer_fires_at_its_time_however_far_ahead_that_is() -> None:
    """No timer fires early. The event loops' own are exact to a millisecond."""
    for delay_s in (-1.0, 0.0, 0.01, 0.3, 1.1, 2.05):
        when_s, fired_at_s = await _fires_at(delay_s)
        assert fired_at_s >= when_s - 0.002


async def test_timers_fire_in_the_order_of_their_times() -> None:
    """Those that are the loop's from the start, and others; what is overdue after the loop was held up has no order."""
    loop, timers = asyncio.get_running_loop(), Timers()
    fired: list[float] = []
    now_s, over = loop.time(), asyncio.Event()
    ticks_s = [now_s]

    def tick() -> None:
        ticks_s.append(loop.time())
        loop.call_later(0.01, tick)

    tick()
    delays_s = [0.9, 0.1, 1.8, 1.3, 0.5, 1.0]
    for delay_s in delays_s:
        Timer(timers).start(now_s + delay_s, partial(fired.append, delay_s))
    Timer(timers).start(now_s + 1.9, over.set)
    await over.wait()
    held_up_s = max(later_s - earlier_s for earlier_s, later_s in itertools.pairwise(ticks_s))
    assert sorted(fired) == sorted(delays_s)
    assert all(later_s > earlier_s - held_up_s for earlier_s, later_s in itertools.combinations(fired, 2))


async def test_a_cancelled_timer_does_not_fire_and_one_that_is_started_again_fires_once() -> None:
    """Whether the event loop has it already or not."""
    loop, timers = asyncio.get_running_loop(), Timers()
    fired: list[str] = []
    over = asyncio.Event()
    now_s = loop.time()
    for first_s, second_s in itertools.product((0.05, 1.5), repeat=2):
        cancelled, restarted = Timer(timers), Timer(timers)
        cancelled.start(now_s + first_s, partial(fired.append, "cancelled"))
        cancelled.cancel()
        cancelled.cancel()
        restarted.start(now_s + first_s, partial(fired.append, "first"))
        restarted.start(now_s + second_s, partial(fired.append, "once"))
    Timer(timers).start(now_s + 1.7, over.set)
    await over.wait()
    assert fired == ["once"] * 4


async def test_timers_that_lie_ahead_are_one_timer_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand limits that are set and cancelled again cost the loop nothing, and nothing is left of them."""
    loop = asyncio.get_running_loop()
    call_at, handles = loop.call_at, []

    def counted(when_s: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        handles.append(call_at(when_s, callback))
        return handles[-1]

    monkeypatch.setattr(loop, "call_at", counted)
    timers = Timers()
    started = [Timer(timers) for _ in range(1000)]
    for number, timer in enumerate(started):
        timer.start(loop.time() + 10 + number / 100, timers.close)
    for timer in started:
        timer.cancel()
    assert len(handles) == 1
    assert not timers.ahead
    timers.close()
    assert handles[0].cancelled()


async def test_timers_fire_after_they_are_closed() -> None:
    """Those that lie ahead, and those that are started later."""
    loop, timers = asyncio.get_running_loop(), Timers()
    fired = [asyncio.Event(), asyncio.Event()]
    Timer(timers).start(loop.time() + 1.5, fired[0].set)
    timers.close()
    Timer(timers).start(loop.time() + 1.6, fired[1].set)
    for event in fired:
        await event.wait()


async def test_a_time_limit_raises_only_where_its_time_is_up() -> None:
    """What is cancelled by others stays cancelled, and what ends in time is left alone."""
    loop, timers = asyncio.get_running_loop(), Timers()
    with pytest.raises(TimeoutError), TimeLimit(timers, loop.time() + 0.01):
        await loop.create_future()
    with TimeLimit(timers, loop.time() + 30):
        await asyncio.sleep(0)

    async def limited(limit_s: float) -> None:
        with TimeLimit(timers, loop.time() + limit_s):
            await loop.create_future()

    cancelled = asyncio.create_task(limited(30))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    timers.close()


async def test_a_time_limit_within_another_that_ends_earlier_leaves_that_to_it() -> None:
    """The outer limit raises, as with asyncio.timeout."""
    loop, timers = asyncio.get_running_loop(), Timers()

    async def nested() -> None:
        with TimeLimit(timers, loop.time() + 0.01):
            with pytest.raises(asyncio.CancelledError), TimeLimit(timers, loop.time() + 30):
                await loop.create_future()
            raise asyncio.CancelledError

    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError):
        await nested()
    assert not task.cancelling()
    timers.close()


async def test_a_cancelled_time_limit_is_not_up_until_it_is_extended() -> None:
    """While it is paused, no time passes for it."""
    loop, timers = asyncio.get_running_loop(), Timers()
    with TimeLimit(timers, loop.time() + 0.02) as limit:
        limit.cancel()
        waited = asyncio.Event()
        loop.call_later(0.05, waited.set)
        await waited.wait()

    async def resumed() -> None:
        with TimeLimit(timers, loop.time() + 30) as limit:
            limit.cancel()
            limit.extend(loop.time() + 0.01)
            await loop.create_future()

    with pytest.raises(TimeoutError):
        await resumed()
    timers.close()
