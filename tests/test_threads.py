"""Work in threads that a cancellation does not abandon."""

import asyncio
import threading
from pathlib import Path

import pytest
from conftest import until

from datafetch.engine.ownership import locked_output, locked_shards
from datafetch.errors import ConfigurationError
from datafetch.process.threads import run_in_thread
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock

_PATIENCE_S = 60.0  # a thread that waits for longer would keep a failed test from ending


async def test_a_cancellation_waits_for_the_thread() -> None:
    """It is told to end sooner, and further cancellations wait as well."""
    begun, may_end, told = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(_PATIENCE_S)
        raise OSError("it failed meanwhile")

    task = asyncio.create_task(run_in_thread(work, on_cancel=told.set))
    await until(begun.is_set)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    await until(told.is_set)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("shards", [None, ["part-00000"]])
async def test_a_lock_is_held_until_the_preparation_has_ended(tmp_path: Path, shards: list[str] | None) -> None:
    """Another run could use the output while this one still deletes what an earlier one left."""
    layout = OutputLayout(tmp_path / "out", job_hash="0123456789abcdef")
    begun, may_end = threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        may_end.wait(_PATIENCE_S)

    async def hold() -> None:
        locked = locked_output(layout, prepare) if shards is None else locked_shards(layout, shards, prepare)
        async with locked:
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(hold())
    await until(begun.is_set)
    task.cancel()
    lock = await asyncio.to_thread(lambda: Lock(layout.lock, layout.out, layout.real_lock))
    with pytest.raises(ConfigurationError, match="another"):
        await asyncio.to_thread(lock.acquire)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(lock.acquire)
    await asyncio.to_thread(lock.release)
