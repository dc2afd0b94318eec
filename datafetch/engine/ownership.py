"""Who may write to an output at a time: one run, or several processes with shards of their own.

Everything happens under a lock that dies with its holder, in this order: killed runs are recovered from (what they left
complete is put in its place), the caller's ``prepare`` claims the output or refuses (``claim``), and then what was left
incomplete is deleted. A run holds the lock exclusively. Processes that fetch shards hold it shared, together with a
lock on each of their shards, and so at most one of them writes anything of a shard. What they share, ``job.json`` among
it, they prepare one after the other; none of them deletes what is incomplete, since another one may be writing it.

Rules: nothing is deleted or created before it is certain that datafetch made the output and no other run works on it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial

from datafetch.engine.claim import refuse_foreign_files
from datafetch.engine.own_files import in_own_format
from datafetch.engine.set_aside import complete_set_aside, delete_earlier
from datafetch.errors import ResourceError, raise_if_exhausted
from datafetch.output.commit import complete_commits
from datafetch.output.reshard.before_repair import undo_needless
from datafetch.output.reshard.swap import complete_swap
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import make_folder, refuse_links, refuse_unpublishable
from datafetch.store.job_file import read_job_file
from datafetch.store.last_stop import forget_stop, record_stop
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock, ShardLocks, locks_where_possible

_log = logging.getLogger(__name__)
_LOCK_INTERVAL_S = 0.05  # preparing takes milliseconds, or as long as it takes to copy the published list of a dataset


@asynccontextmanager
async def locked_output(
    layout: OutputLayout, prepare: Callable[[], None], *, fresh: bool = False, is_alone: bool = False
) -> AsyncIterator[None]:
    """Hold the lock of an output for one run, and prepare the output.

    Args:
        layout: The paths of the output.
        prepare: Called once the lock is held and killed runs are recovered from; it may refuse the output.
        fresh: Whether the run starts over, so that what killed runs left need not be put in its place.
        is_alone: The operator knows that no other run works on the output, so it needs no lock on a filesystem that has
            none.

    Raises:
        ConfigurationError: Another run holds the lock, or the output was refused.
        ResourceError: The output can't be written.
    """
    lock = await asyncio.to_thread(lambda: Lock(layout.lock, layout.out, layout.real_lock))
    try:
        with _disk_errors(layout):
            await run_in_thread(partial(_lock_output, layout, lock, is_alone=is_alone))
            await run_in_thread(partial(_recover_output, layout, prepare, fresh=fresh))
        async with _recorded_stop(layout, was_fresh=fresh):
            yield
    finally:
        await run_in_thread(lock.release)


@asynccontextmanager
async def locked_shards(
    layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None], *, is_alone: bool = False
) -> AsyncIterator[ShardLocks]:
    """Hold the locks of some shards, while other processes may hold those of others, and prepare the output for them.

    Args:
        layout: The paths of the output.
        shards: Names of the shards.
        prepare: Called once the locks are held and processes that were killed with these shards are recovered from, by
            one process at a time; it may refuse the output.
        is_alone: The operator knows that no other process works on the output.

    Yields:
        The locks, to which ``lock_another_shard`` adds others.

    Raises:
        ConfigurationError: A run holds the lock of the output, another process that of one of the shards, or the output
            was refused.
        ResourceError: The output can't be written.
    """
    async with AsyncExitStack() as held:
        held.enter_context(_disk_errors(layout))
        lock = await asyncio.to_thread(lambda: Lock(layout.lock, layout.out, layout.real_lock))
        held.push_async_callback(run_in_thread, lock.release)
        await run_in_thread(partial(_lock_output_shared, layout, lock, is_alone=is_alone))
        locks = await asyncio.to_thread(ShardLocks, layout.shard_locks, layout.out)
        held.push_async_callback(run_in_thread, locks.release)
        with locks_where_possible(is_alone=is_alone):
            await _lock_preparation(locks)
            await run_in_thread(locks.acquire, shards)
        await run_in_thread(_recover_shards, layout, shards, prepare)
        with locks_where_possible(is_alone=is_alone):
            await run_in_thread(locks.release_preparation)
        async with _recorded_stop(layout, was_fresh=False):
            yield locks


async def lock_another_shard(layout: OutputLayout, locks: ShardLocks, shard: str) -> bool:
    """Lock one more shard, and put in its place what a killed process left complete of it.

    Args:
        layout: The paths of the output.
        locks: The locks that ``locked_shards`` yields.
        shard: The name of the shard.

    Returns:
        Whether it is locked now; False while another process holds it.

    Raises:
        ResourceError: The output can't be written.
    """
    if not await run_in_thread(locks.try_acquire, shard):
        return False
    await _lock_preparation(locks)
    try:
        await run_in_thread(complete_commits, layout, frozenset({shard}))
    finally:
        await run_in_thread(locks.release_preparation)
    return True


async def _lock_preparation(locks: ShardLocks) -> None:
    while not await run_in_thread(locks.acquire_preparation):  # noqa: ASYNC110 - no event crosses processes
        await asyncio.sleep(_LOCK_INTERVAL_S)


@asynccontextmanager
async def _recorded_stop(layout: OutputLayout, *, was_fresh: bool) -> AsyncIterator[None]:
    """Let the status of the output say what has stopped the work."""
    try:
        with _disk_errors(layout):
            yield
    except Exception as error:
        with suppress(RuntimeError):  # no thread can be started
            await run_in_thread(partial(record_stop, layout, error, was_fresh=was_fresh))
        raise


@contextmanager
def _disk_errors(layout: OutputLayout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_exhausted(error)
        raise ResourceError.from_disk_error(error, f"write to {layout.state_folder}") from error


def _lock_output(layout: OutputLayout, lock: Lock, *, is_alone: bool) -> None:
    _make_state_folder(layout)
    with locks_where_possible(is_alone=is_alone):
        lock.acquire()


def _lock_output_shared(layout: OutputLayout, lock: Lock, *, is_alone: bool) -> None:
    _make_state_folder(layout)
    with locks_where_possible(is_alone=is_alone):
        lock.acquire_shared()


def _make_state_folder(layout: OutputLayout) -> None:
    if not layout.state_folder.exists():
        refuse_foreign_files(layout, {})  # before anything is created
        make_folder(layout.state_folder)


def _recover_output(layout: OutputLayout, prepare: Callable[[], None], *, fresh: bool) -> None:
    """Put in its place what killed runs left complete, prepare the output, and delete what they left incomplete."""
    _refuse_unwritable(layout)
    complete_set_aside(layout)
    if layout.report.exists():
        delete_earlier(layout)  # left by a process that was killed when it had everything
    if not fresh:
        complete_swap(layout)
        complete_commits(in_own_format(layout, read_job_file(layout)))
        undo_needless(layout)
    prepare()
    forget_stop(layout)
    for folder in (layout.unpublished, layout.shard_progress_folder):
        shutil.rmtree(folder, ignore_errors=True)


def _recover_shards(layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None]) -> None:
    """Put in its place what a killed process left complete of these shards, and prepare the output."""
    _refuse_unwritable(layout)
    complete_set_aside(layout)
    # No other process is fetching shards while there is still something to swap: each completes the swap first.
    complete_swap(layout)
    complete_commits(in_own_format(layout, read_job_file(layout)), frozenset(shards))
    undo_needless(layout)
    prepare()
    forget_stop(layout)


def _refuse_unwritable(layout: OutputLayout) -> None:
    for folder in (layout.state_folder, layout.all_spools):
        refuse_links(folder)
    refuse_unpublishable(layout.state_folder, layout.out)
