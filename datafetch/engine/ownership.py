"""Who may write to an output: one job, and of it one run at a time, or several processes with shards of their own.

An output is in one of five states, which its state folder shows:

* unused: it has no ``job.json``. A run may claim it if its folder is empty, or its format allows files of others there.
* of a job: ``job.json`` holds the job's identity, that is, everything that decides the rows. Only a run with the same
  identity may claim it; any other is refused, with the difference named. The settings recorded next to the identity may
  differ from run to run.
* of a job that starts over (``fresh``): everything that datafetch has written is deleted, ``job.json`` last, so that an
  interrupted deletion is continued by the next such run, and then the output is unused.
* of a job that takes files that are there, and now wants other images: its state is deleted as if it started over, and
  the files of its output stay, to be taken.
* of ``datafetch reshard``: it has an ``equal.json`` without a ``job.json``. No run may claim it.

Everything happens under a lock that dies with its holder, in this order: killed runs are recovered from (what they left
complete is put in its place), the caller's ``prepare`` claims the output or refuses, and then what was left incomplete
is deleted. A run holds the lock exclusively. Processes that fetch shards hold it shared, together with a lock on each
of their shards, and so at most one of them writes anything of a shard. What they share, ``job.json`` among it, they
prepare one after the other; none of them deletes what is incomplete, since another one may be writing it.

Rules: nothing is deleted or created before it is certain that datafetch made the output and no other run works on it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datafetch.errors import ConfigurationError, ResourceError, raise_if_exhausted
from datafetch.output.commit import complete_commits
from datafetch.output.formats import PickleFormat, format_of
from datafetch.output.reshard.record import read_reshard_record
from datafetch.output.reshard.swap import complete_swap
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import make_folder, refuse_links, refuse_links_above, refuse_unpublishable
from datafetch.store.job_file import Identity, read_job_file, write_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock, ShardLocks, locks_where_possible

_log = logging.getLogger(__name__)
_LOCK_INTERVAL_S = 0.05  # preparing takes milliseconds, or as long as it takes to copy the published list of a dataset
_RESHARDED_FILE = re.compile(rf"part-\d{{5,}}({'|'.join(map(re.escape, PickleFormat.suffixes))})")
_NO_OPTIONS = frozenset({"dataset", "format", "keys", "least_pixels"})  # parts of the identity that no option sets


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
            yield
    finally:
        await run_in_thread(lock.release)


@asynccontextmanager
async def locked_shards(
    layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None], *, is_alone: bool = False
) -> AsyncIterator[None]:
    """Hold the locks of some shards, while other processes may hold those of others, and prepare the output for them.

    Args:
        layout: The paths of the output.
        shards: Names of the shards.
        prepare: Called once the locks are held and processes that were killed with these shards are recovered from, by
            one process at a time; it may refuse the output.
        is_alone: The operator knows that no other process works on the output.

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
            while not await run_in_thread(locks.acquire_preparation):  # noqa: ASYNC110 - no event crosses processes
                await asyncio.sleep(_LOCK_INTERVAL_S)
            await run_in_thread(locks.acquire, shards)
        await run_in_thread(_recover_shards, layout, shards, prepare)
        with locks_where_possible(is_alone=is_alone):
            await run_in_thread(locks.release_preparation)
        yield


@contextmanager
def _disk_errors(layout: OutputLayout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_exhausted(error)
        raise ResourceError.from_disk_error(error, f"write next to {layout.out}") from error


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
    if not fresh:
        complete_swap(layout)
        complete_commits(layout)
    prepare()
    for folder in (layout.unpublished, layout.shard_progress_folder):
        shutil.rmtree(folder, ignore_errors=True)


def _recover_shards(layout: OutputLayout, shards: Collection[str], prepare: Callable[[], None]) -> None:
    """Put in its place what a killed process left complete of these shards, and prepare the output."""
    _refuse_unwritable(layout)
    # No other process is fetching shards while there is still something to swap: each completes the swap first.
    complete_swap(layout)
    complete_commits(layout, frozenset(shards))
    prepare()


def _refuse_unwritable(layout: OutputLayout) -> None:
    for folder in (layout.state_folder, layout.all_spools):
        refuse_links(folder)
    refuse_unpublishable(layout.state_folder, layout.out)


def claim_for_job(
    layout: OutputLayout,
    identity: Identity,
    settings: Mapping[str, object],
    shards: Collection[str],
    *,
    fresh: bool,
    takes_files: bool = False,
) -> None:
    """Claim an unused output for a job, or check that it is the job's already. Its lock is held.

    Args:
        layout: The paths of the output.
        identity: The job's identity.
        settings: The job as JSON (``job.settings_of``).
        shards: Names of the shards that are to be fetched.
        fresh: Delete what an earlier run has written.
        takes_files: The job takes files that are there. So if it only wants other images than the job before, it starts
            over without deleting their files.

    Raises:
        ConfigurationError: The output belongs to another job, or holds files that datafetch has not written.
    """
    if layout.reshard_record.exists() and not layout.job.exists():
        raise ConfigurationError(
            f"{layout.state_folder} belongs to shards made by 'datafetch reshard'; choose another --root, "
            "or move it away"
        )
    if fresh:
        _start_over(layout)
    before = read_job_file(layout)
    if before is not None and takes_files and _wants_other_images(before.identity, identity):
        _log.info("%s: other images are wanted than before; those that are there are taken", layout.out)
        _start_over(layout, keeps_files=True)
        before = None
    if before is not None:  # checked first, or shards of a missing manifest file would be taken for foreign files
        _refuse_other_job(layout, before.identity, identity)
        refuse_left_spools(layout, before.scratch, shards, otherwise="start over with --fresh")
    refuse_foreign_files(layout, identity)
    refuse_missing_files(layout)
    if settings["world_size"] is None and layout.reshard_record.exists():
        raise ConfigurationError(
            f"{layout.out} is resharded, and --no-reshard can't bring back the shards of the manifest; "
            "leave out --no-reshard, or start over with --fresh"
        )
    write_job_file(layout, identity, settings)


def refuse_left_spools(layout: OutputLayout, scratch: Path | None, shards: Collection[str], *, otherwise: str) -> None:
    """Check that no images would be fetched again because this run has another scratch folder than the one before.

    Args:
        layout: The paths for this run.
        scratch: The scratch folder of the earlier run.
        shards: Names of the shards that this run fetches.
        otherwise: What the operator can do instead of giving the same scratch folder again.

    Raises:
        ConfigurationError: The earlier run left spools of these shards in another folder.
    """
    before = replace(layout, scratch=scratch)
    if before.all_spools.resolve() == layout.all_spools.resolve():
        return
    if not any(before.spool(shard).exists() for shard in shards):
        return
    again = "leave out --scratch" if scratch is None else f"give --scratch {scratch} again"
    raise ConfigurationError(f"images fetched for {layout.out} lie in {before.all_spools}; {again}, or {otherwise}")


def _wants_other_images(before: Identity, now: Identity) -> bool:
    """Whether two jobs differ in nothing but which images of the same archives are wanted."""
    names = {name for name in now | before if before.get(name) != now.get(name)}
    if "images" not in names or names - {"images", "shards"}:
        return False
    contents = [{str([source, fingerprint]) for source, _, fingerprint in _parts_of(one)} for one in (before, now)]
    return contents[0] == contents[1]


def _parts_of(identity: Identity) -> Iterator[tuple[object, object, object]]:
    """Source, size and fingerprint of each shard of an identity; none of a shard that a damaged file describes."""
    shards = identity.get("shards")
    for part in shards.values() if isinstance(shards, dict) else ():
        match part:
            case [source, size, fingerprint]:
                yield source, size, fingerprint


_HASHES = {
    "images": "other images are wanted",
    "fallback": "with another list of URLs next to the published one, or without one",
}
"""The difference, by the part of the identity; the hashes would tell nothing."""

_ID_LISTS = {
    (True, True): "another id list",
    (True, False): "with an id list, now without",
    (False, True): "without an id list, now with one",
}
"""The difference, by whether there was a list before and whether there is one now; a hash would tell nothing."""


def _refuse_other_job(layout: OutputLayout, before: Identity, now: Identity) -> None:
    for name in sorted(now | before, key=lambda name: name == "shards"):  # last, for an option may decide the files
        if before.get(name) != now.get(name):
            if name in _HASHES:
                difference = _HASHES[name]
            elif name == "ids":
                difference = _ID_LISTS[before.get(name) is not None, now.get(name) is not None]
            elif name == "shards":
                difference = f"other manifest files: {_first_difference(before[name], now[name])}"
            else:
                setting = name if name in _NO_OPTIONS else f"--{name.replace('_', '-')}"
                values = ("not set" if one.get(name) is None else one[name] for one in (before, now))
                difference = f"{setting}: {', now '.join(map(str, values))}"
            raise ConfigurationError(
                f"{layout.out} was started with different settings ({difference}); "
                "use the same settings, choose another --root, or start over with --fresh"
            )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first manifest file that has changed, has another name or is missing now."""
    changed = {source: before.get(shard) for shard, (source, *_) in now.items() if before.get(shard) != now[shard]}
    gone = {source for shard, (source, *_) in before.items() if shard not in now} - changed.keys()
    if not changed:
        return f"{min(gone)} is missing"
    source = min(changed)
    earlier = changed[source]
    return source if earlier is None or earlier[0] == source else f"{source}, before {earlier[0]}"


def refuse_foreign_files(layout: OutputLayout, identity: Identity) -> None:
    """Check that a folder of shards holds only files of this job, because the trainer counts every file in it.

    Raises:
        ConfigurationError: It holds another file, or is not a folder.
    """
    if layout.out.exists() and not layout.out.is_dir():
        raise ConfigurationError(f"{layout.out} is not a folder; choose another --root")
    if layout.out.is_symlink() and not layout.out.exists():
        raise ConfigurationError(f"{layout.out} is a broken link; create the folder that it points to")
    if format_of(layout).allows_other_files:
        return
    own_names = {path.name for path in _shard_files(layout, identity)} if layout.job.exists() else set()
    _refuse_other_names(layout.out, own_names)


def _refuse_other_names(folder: Path, own_names: Collection[str]) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in own_names:
            raise ConfigurationError(
                f"{path} was not written by this job, and the trainer would count it; "
                "move it away or choose another --root"
            )


def refuse_missing_files(layout: OutputLayout) -> None:
    """Check that a resharded output has all of its shards.

    Raises:
        ConfigurationError: One is missing, or has another size than when it was made.
    """
    record = read_reshard_record(layout)
    if record is not None:
        record.refuse_missing(layout)


def _shard_files(layout: OutputLayout, identity: Identity) -> list[Path]:
    """The files that the output may have; of each shard the count first."""
    record = read_reshard_record(layout)
    shards = {*identity.get("shards", ()), *(record.files if record else ())}
    return [path for shard in sorted(shards) for path in format_of(layout).files_of(layout, shard)]


def _files_to_delete(layout: OutputLayout, identity: Identity) -> list[Path]:
    """All files of the output that datafetch wrote, even if its record of resharding is damaged.

    Raises:
        ConfigurationError: There are other files too.
    """
    output_format = format_of(layout)
    if output_format.allows_other_files:
        return [path for shard in identity["shards"] for path in output_format.files_of(layout, shard)]
    try:
        files = _shard_files(layout, identity)
    except ConfigurationError:
        files = [path for path in layout.out.glob("part-*") if _RESHARDED_FILE.fullmatch(path.name)]
    own_names = {path.name for path in files}
    for folder in (layout.out, layout.replaced):
        _refuse_other_names(folder, own_names)
    return files


def _start_over(layout: OutputLayout, *, keeps_files: bool = False) -> None:
    """Delete what earlier runs have written; without a job file, nothing is known to be datafetch's.

    Args:
        layout: The paths of the output.
        keeps_files: Whether the files of the output stay, and the directories of the archives that they came from.
    """
    job = read_job_file(layout)
    if job is None:
        return
    files = [] if keeps_files else _files_to_delete(layout, job.identity)
    if format_of(layout).allows_other_files:
        refuse_links_above(files, layout.out)  # what is behind a link may belong to others
    for path in files:
        path.unlink(missing_ok=True)
    for folder in (
        layout.ledgers,
        layout.all_spools,
        replace(layout, scratch=job.scratch).all_spools,
        layout.unpublished,
        layout.ready,
        layout.kept_for_retry("").parent,
        layout.image_index_folder,
        *(() if keeps_files else (layout.archives,)),
        layout.scans,
        layout.added,
        layout.resharding,
        layout.resharded,
        layout.replaced,
        layout.quarantine,
        layout.shard_progress_folder,
        layout.reports,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (layout.retry, layout.progress, layout.report, layout.reshard_record, layout.dropped, layout.job):
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
