"""An output belongs to one job, and to one run at a time, or to several processes that each fetch shards of it.

Rules: nothing is deleted or begun before it is sure that datafetch made the output and no other run works on it. What
decides the rows is a job's identity, recorded in ``job.json``; a run with another identity is refused, and the
difference is named. What killed runs left complete is put in its place first; what they left incomplete is deleted.
Processes that hold an output together prepare it in turn, and of its shards each touches its own alone.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from datafetch.errors import ConfigurationError, ResourceError, raise_if_exhausted
from datafetch.output.commit import complete_commits
from datafetch.output.formats import format_of
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.reshard.swap import complete_swap
from datafetch.store.atomic import make_folder, refuse_links, refuse_unpublishable, write_atomically
from datafetch.store.job_file import not_a_job, read_job_fields, read_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock, ShardLocks, locks_where_possible

Identity: TypeAlias = dict[str, Any]
"""What decides the rows, as JSON: names to values; ``shards`` has the manifest files by shard."""

_TURN_INTERVAL_S = 0.05  # another process takes milliseconds, or as long as the list of a dataset takes to be copied
_RESHARDED_FILE = re.compile(r"part-\d{5,}\.(pkl|count)")
_ASKED = "asked"  # in job.json beside the identity: what was asked for, for ``retry`` to ask the same way
# Also what was part of the identity in earlier versions, though it only permits what would not be taken otherwise.
_NO_IDENTITY = frozenset({_ASKED, "max_pixels", "insecure", "opt_out"})


@asynccontextmanager
async def locked_output(
    layout: OutputLayout, prepare: Callable[[], None], *, goes_on: bool = True, is_alone: bool = False
) -> AsyncIterator[None]:
    """Hold an output for one run alone.

    Args:
        layout: Of the output.
        prepare: Called with the lock held and everything that was complete in its place, before the run; it may refuse.
        goes_on: Whether what killed runs left complete is still wanted.
        is_alone: The operator knows that no other run works on it, so that it needs no lock where there are none.

    Raises:
        ConfigurationError: Another run holds it, or it was refused.
        ResourceError: It can't be written.
    """
    lock = await asyncio.to_thread(lambda: Lock(layout.lock, layout.out, layout.real_lock))
    try:
        with _disk_errors(layout):
            await asyncio.to_thread(_lock_output, layout, lock, is_alone=is_alone)
            await asyncio.to_thread(_prepare_output, layout, prepare, goes_on=goes_on)
            yield
    finally:
        await asyncio.to_thread(lock.release)


@asynccontextmanager
async def locked_shards(
    layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None], *, is_alone: bool = False
) -> AsyncIterator[None]:
    """Hold some shards of an output, while other processes may hold others of them.

    Args:
        layout: Of the output.
        shards: Names of the shards.
        prepare: Called with the locks held, with everything that was complete of these shards in its place, and by one
            process at a time; it may refuse.
        is_alone: The operator knows that no other process works on the output.

    Raises:
        ConfigurationError: A run holds the output, or another process one of the shards, or it was refused.
        ResourceError: It can't be written.
    """
    async with AsyncExitStack() as held:
        held.enter_context(_disk_errors(layout))
        lock = await asyncio.to_thread(lambda: Lock(layout.lock, layout.out, layout.real_lock))
        held.push_async_callback(asyncio.to_thread, lock.release)
        await asyncio.to_thread(_lock_output_shared, layout, lock, is_alone=is_alone)
        locks = await asyncio.to_thread(ShardLocks, layout.shard_locks, layout.out)
        held.push_async_callback(asyncio.to_thread, locks.release)
        with locks_where_possible(is_alone=is_alone):
            while not await asyncio.to_thread(locks.acquire_preparation):  # noqa: ASYNC110 - another process has it
                await asyncio.sleep(_TURN_INTERVAL_S)
            await asyncio.to_thread(locks.acquire, shards)
        await asyncio.to_thread(_prepare_shards, layout, shards, prepare)
        with locks_where_possible(is_alone=is_alone):
            await asyncio.to_thread(locks.release_preparation)
        yield


@contextmanager
def _disk_errors(layout: OutputLayout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_exhausted(error)
        raise ResourceError.from_disk_error(error, f"write beside {layout.out}") from error


def _lock_output(layout: OutputLayout, lock: Lock, *, is_alone: bool) -> None:
    _make_state_folder(layout)
    with locks_where_possible(is_alone=is_alone):
        lock.acquire()


def _lock_output_shared(layout: OutputLayout, lock: Lock, *, is_alone: bool) -> None:
    _make_state_folder(layout)
    with locks_where_possible(is_alone=is_alone):
        lock.acquire_shared()


def _make_state_folder(layout: OutputLayout) -> None:
    if not layout.folder.exists():
        refuse_foreign_files(layout, {})  # before a trace is left
        make_folder(layout.folder)


def _prepare_output(layout: OutputLayout, prepare: Callable[[], None], *, goes_on: bool) -> None:
    _refuse_unwritable(layout)
    if goes_on:
        complete_swap(layout)
        complete_commits(layout)
    prepare()
    for left in (layout.unpublished, layout.shard_progress_folder):
        shutil.rmtree(left, ignore_errors=True)


def _prepare_shards(layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None]) -> None:
    _refuse_unwritable(layout)
    complete_swap(layout)  # which no process has begun to work beside: each of them has been here first
    complete_commits(layout, frozenset(shards))
    prepare()


def _refuse_unwritable(layout: OutputLayout) -> None:
    for ours in (layout.folder, layout.all_spools):
        refuse_links(ours)
    refuse_unpublishable(layout.folder, layout.out)


def take_for_job(
    layout: OutputLayout, identity: Identity, asked: Mapping[str, object], shards: Collection[str], *, fresh: bool
) -> None:
    """Make an output that of a job, or make sure that it is.

    Args:
        layout: Of the output.
        identity: Of the job.
        asked: How the job was asked for.
        shards: Names of the shards that are to be fetched.
        fresh: Delete what an earlier run left.

    Raises:
        ConfigurationError: It is that of another job, or holds files that are not ours.
    """
    if layout.reshard_record.exists() and not layout.job.exists():
        raise ConfigurationError(
            f"{layout.folder} belongs to shards made by 'datafetch reshard'; choose another --root, or move it away"
        )
    if fresh:
        _start_over(layout)
    if layout.job.exists():  # first: otherwise shards of a missing manifest file would be taken for another program's
        _refuse_other_job(layout, read_identity(layout), identity)
        refuse_left_spools(layout, _scratch_before(layout), shards, otherwise="start over with --fresh")
    refuse_foreign_files(layout, identity)
    refuse_missing_files(layout)
    if asked["world_size"] is None and layout.reshard_record.exists():
        raise ConfigurationError(
            f"{layout.out} is resharded, and --no-reshard can't bring back those of the manifest; "
            "leave it out, or start over with --fresh"
        )
    write_atomically(layout.job, orjson.dumps({**identity, _ASKED: asked}, option=orjson.OPT_INDENT_2))


def read_identity(layout: OutputLayout) -> Identity:
    """What the job of an output is.

    Raises:
        ConfigurationError: The file is not of this version; nothing beside it is touched.
    """
    return {name: value for name, value in read_job_fields(layout).items() if name not in _NO_IDENTITY}


def read_settings(layout: OutputLayout) -> dict[str, Any]:
    """What the last run on an output was asked for.

    Raises:
        ConfigurationError: There has been none, or the file is not of this version.
    """
    asked: dict[str, Any] | None = read_job_fields(layout).get(_ASKED)
    if asked is None:
        raise not_a_job(layout)
    return asked


def write_settings(layout: OutputLayout, asked: Mapping[str, object]) -> None:
    """Remember that an output is asked for in another way from now on; its job stays what it is."""
    write_atomically(layout.job, orjson.dumps({**read_job_fields(layout), _ASKED: asked}, option=orjson.OPT_INDENT_2))


def refuse_left_spools(layout: OutputLayout, scratch: Path | None, shards: Collection[str], *, otherwise: str) -> None:
    """See that what an earlier run kept is not fetched once more because this one looks for it elsewhere.

    Args:
        layout: As it is for this run.
        scratch: Of the earlier run.
        shards: Names of the shards that this run fetches.
        otherwise: What else can be done than to give the same scratch again.

    Raises:
        ConfigurationError: There are spools of this very job in the earlier run's scratch, and this run has another.
    """
    before = replace(layout, scratch=scratch)
    if before.all_spools.resolve() == layout.all_spools.resolve():
        return
    if not any(before.spool(shard).exists() for shard in shards):
        return
    again = "leave out --scratch" if scratch is None else f"give --scratch {scratch} again"
    raise ConfigurationError(f"images fetched for {layout.out} lie in {before.all_spools}; {again}, or {otherwise}")


def _scratch_before(layout: OutputLayout) -> Path | None:
    """Where the last run had its spools; an older version did not say."""
    job = read_job_file(layout)
    return Path(job.asked.scratch) if job and job.asked and job.asked.scratch else None


_ID_LISTS = {
    (True, True): "another id list",
    (True, False): "with an id list, now without",
    (False, True): "without an id list, now with one",
}
"""Whether there was a list before and is now → how to put the difference; hashes would tell a reader nothing."""


def _refuse_other_job(layout: OutputLayout, before: Identity, now: Identity) -> None:
    for name in now | before:
        if before.get(name) != now.get(name):
            difference = f"{name}: {before.get(name)}, now {now.get(name)}"
            if name == "ids":
                difference = _ID_LISTS[before.get(name) is not None, now.get(name) is not None]
            elif name == "shards":
                difference = f"other manifest files: {_first_difference(before[name], now[name])}"
            raise ConfigurationError(
                f"{layout.out} was started with different settings ({difference}); "
                "use the same settings, choose another --root, or start over with --fresh"
            )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first manifest file that is not what it was, or not there any more."""
    changed = {source for shard, (source, *_) in now.items() if before.get(shard) != now[shard]}
    gone = {source for shard, (source, *_) in before.items() if shard not in now} - changed
    return str(min(changed)) if changed else f"{min(gone)} is missing"


def refuse_foreign_files(layout: OutputLayout, identity: Identity) -> None:
    """The trainer counts every file in a folder of shards, so nothing but this job's may lie there."""
    if layout.out.exists() and not layout.out.is_dir():
        raise ConfigurationError(f"{layout.out} is not a folder; choose another --root")
    if layout.out.is_symlink() and not layout.out.exists():
        raise ConfigurationError(f"{layout.out} is a broken link; create the folder that it points to")
    if format_of(layout).allows_other_files:
        return
    ours = {path.name for path in _shard_files(layout, identity)} if layout.job.exists() else set()
    _refuse_others(layout.out, ours)


def _refuse_others(folder: Path, ours: Collection[str]) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in ours:
            raise ConfigurationError(
                f"{path} was not written by this job, and the trainer would count it; "
                "move it away or choose another --root"
            )


def refuse_missing_files(layout: OutputLayout) -> None:
    """See that a resharded output has all of its shards.

    Raises:
        ConfigurationError: One is missing or not as it was made.
    """
    arrangement = read_reshard_record(layout)
    if arrangement is not None:
        arrangement.refuse_missing(layout)


def _shard_files(layout: OutputLayout, identity: Identity) -> list[Path]:
    """The files that the output may have, counts first."""
    arrangement = read_reshard_record(layout)
    shards = {*identity.get("shards", ()), *(arrangement.files if arrangement else ())}
    return [path for shard in sorted(shards) for path in format_of(layout).files_of(layout, shard)]


def _files_to_delete(layout: OutputLayout) -> list[Path]:
    """All files of the output that datafetch wrote, also where its record of resharding is damaged.

    Raises:
        ConfigurationError: There is something else as well.
    """
    identity = read_identity(layout)
    written = format_of(layout)
    if written.allows_other_files:
        return [path for shard in identity["shards"] for path in written.files_of(layout, shard)]
    try:
        ours = _shard_files(layout, identity)
    except ConfigurationError:
        ours = [path for path in layout.out.glob("part-*") if _RESHARDED_FILE.fullmatch(path.name)]
    names = {path.name for path in ours}
    for folder in (layout.out, layout.replaced):
        _refuse_others(folder, names)
    return ours


def _start_over(layout: OutputLayout) -> None:
    """Delete what an earlier run left; a folder without its job file is not datafetch's to delete."""
    if not layout.job.exists():
        return
    for path in _files_to_delete(layout):
        path.unlink(missing_ok=True)
    for folder in (
        layout.ledgers,
        layout.all_spools,
        replace(layout, scratch=_scratch_before(layout)).all_spools,
        layout.unpublished,
        layout.ready,
        layout.failed("").parent,
        layout.image_index_folder,
        layout.added,
        layout.resharding,
        layout.resharded,
        layout.replaced,
        layout.quarantine,
        layout.shard_progress_folder,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (layout.retry, layout.progress, layout.report, layout.reshard_record, layout.dropped, layout.job):
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
