"""An output belongs to one job, and to one run at a time.

Rules: nothing is deleted or begun before it is sure that datafetch made the output and no other run works on it. What
decides the rows is a job's identity, recorded in ``job.json``; a run with another identity is refused, and the
difference is named. What killed runs left complete is put in its place first; what they left incomplete is deleted.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from datafetch.errors import ConfigurationError, ResourceError, raise_want
from datafetch.model.kinds import Holds
from datafetch.model.untrusted import is_plain_name
from datafetch.output.commit import finish_commits
from datafetch.output.publish import shard_files
from datafetch.output.reshard.record import read_arrangement
from datafetch.output.reshard.swap import finish
from datafetch.store.atomic import make_folder, refuse_links, refuse_unpublishable, write_atomically
from datafetch.store.layout import State, not_a_job
from datafetch.store.lock import Lock

Identity: TypeAlias = dict[str, Any]
"""What decides the rows, as JSON: names to values; ``shards`` has the manifest files by shard."""

FORMAT = 1  # of job.json
_EQUAL_SHARD = re.compile(r"part-\d{5,}\.(pkl|count)")
_ASKED = "asked"  # in job.json beside the identity: what was asked for, for ``retry`` to ask the same way
# Also what was part of the identity in earlier versions, though it only permits what would not be taken otherwise.
_NO_IDENTITY = frozenset({_ASKED, "max_pixels", "insecure", "opt_out"})


@asynccontextmanager
async def claimed(
    state: State, prepare: Callable[[], None], *, goes_on: bool = True, is_alone: bool = False
) -> AsyncIterator[None]:
    """Hold an output for one run alone.

    Args:
        state: Of the output.
        prepare: Called with the lock held and everything that was complete in its place, before the run; it may refuse.
        goes_on: Whether what killed runs left complete is still wanted.
        is_alone: The operator knows that no other run works on it, so that it needs no lock where there are none.

    Raises:
        ConfigurationError: Another run holds it, or it was refused.
        ResourceError: It can't be written.
    """
    lock = await asyncio.to_thread(lambda: Lock(state.lock, state.out, state.real_lock))
    acquire = lock.acquire_where_possible if is_alone else lock.acquire
    try:
        await asyncio.to_thread(_claim, state, acquire, prepare, goes_on=goes_on)
        yield
    except OSError as error:
        raise_want(error)
        raise ResourceError.of_disk(error, f"write beside {state.out}") from error
    finally:
        await asyncio.to_thread(lock.release)


def _claim(state: State, acquire: Callable[[], None], prepare: Callable[[], None], *, goes_on: bool) -> None:
    if not state.folder.exists():
        refuse_foreign_files(state, {})  # before a trace is left
        make_folder(state.folder)
    acquire()
    for ours in (state.folder, state.all_spools):
        refuse_links(ours)
    refuse_unpublishable(state.folder, state.out)
    if goes_on:
        finish(state)
        finish_commits(state)
    prepare()
    shutil.rmtree(state.unpublished, ignore_errors=True)


def take_for_job(state: State, identity: Identity, asked: Mapping[str, object], *, fresh: bool) -> None:
    """Make an output that of a job, or make sure that it is.

    Raises:
        ConfigurationError: It is that of another job, or holds files that are not ours.
    """
    if state.equal.exists() and not state.job.exists():
        raise ConfigurationError(
            f"{state.folder} belongs to shards made by 'datafetch reshard'; choose another --root, or move it away"
        )
    if fresh:
        _start_over(state)
    if state.job.exists():  # first: otherwise shards of a missing manifest file would be taken for another program's
        _refuse_other_job(state, read_identity(state), identity)
        refuse_left_spools(state, _scratch_before(state), otherwise="start over with --fresh")
    refuse_foreign_files(state, identity)
    refuse_missing_files(state)
    if asked["world_size"] is None and state.equal.exists():
        raise ConfigurationError(
            f"{state.out} holds equal shards, and --no-reshard can't bring back those of the manifest; "
            "leave it out, or start over with --fresh"
        )
    write_atomically(state.job, orjson.dumps({**identity, _ASKED: asked}, option=orjson.OPT_INDENT_2))


def read_identity(state: State) -> Identity:
    """What the job of an output is.

    Raises:
        ConfigurationError: The file is not of this version; nothing beside it is touched.
    """
    return {name: value for name, value in _read(state).items() if name not in _NO_IDENTITY}


def read_asked(state: State) -> dict[str, Any]:
    """What the last run on an output was asked for.

    Raises:
        ConfigurationError: There has been none, or the file is not of this version.
    """
    asked = _read(state).get(_ASKED)
    if not isinstance(asked, dict):
        raise not_a_job(state)
    return asked


def write_asked(state: State, asked: Mapping[str, object]) -> None:
    """Remember that an output is asked for in another way from now on; its job stays what it is."""
    write_atomically(state.job, orjson.dumps({**_read(state), _ASKED: asked}, option=orjson.OPT_INDENT_2))


def refuse_left_spools(state: State, scratch: Path | None, *, otherwise: str) -> None:
    """See that what an earlier run kept is not fetched once more because this one looks for it elsewhere.

    Args:
        state: As it is for this run.
        scratch: Of the earlier run.
        otherwise: What else can be done than to give the same scratch again.

    Raises:
        ConfigurationError: There are spools of this very job in the earlier run's scratch, and this run has another.
    """
    before = replace(state, scratch=scratch)
    if before.all_spools.resolve() == state.all_spools.resolve() or not any(before.spool("").parent.glob("*.spool")):
        return
    again = "leave out --scratch" if scratch is None else f"give --scratch {scratch} again"
    raise ConfigurationError(f"images fetched for {state.out} lie in {before.all_spools}; {again}, or {otherwise}")


def _scratch_before(state: State) -> Path | None:
    """Where the last run had its spools; an older version did not say."""
    asked = _read(state).get(_ASKED)
    scratch = asked.get("scratch") if isinstance(asked, dict) else None
    return Path(scratch) if isinstance(scratch, str) else None


def _read(state: State) -> dict[str, Any]:
    try:
        job = orjson.loads(state.job.read_bytes())
    except (orjson.JSONDecodeError, IsADirectoryError):
        job = None
    if not isinstance(job, dict) or job.get("format") != FORMAT or not isinstance(job.get("shards"), dict):
        raise not_a_job(state)
    if not all(is_plain_name(shard) and isinstance(facts, list) for shard, facts in job["shards"].items()):
        raise not_a_job(state)
    return job


_ID_LISTS = {
    (True, True): "another id list",
    (True, False): "with an id list, now without",
    (False, True): "without an id list, now with one",
}
"""Whether there was a list before and is now → how to put the difference; hashes would tell a reader nothing."""


def _refuse_other_job(state: State, before: Identity, now: Identity) -> None:
    for name in now | before:
        if before.get(name) != now.get(name):
            difference = f"{name}: {before.get(name)}, now {now.get(name)}"
            if name == "ids":
                difference = _ID_LISTS[before.get(name) is not None, now.get(name) is not None]
            elif name == "shards":
                difference = f"other manifest files: {_first_difference(before[name], now[name])}"
            raise ConfigurationError(
                f"{state.out} was started with different settings ({difference}); "
                "use the same settings, choose another --root, or start over with --fresh"
            )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first manifest file that is not what it was, or not there any more."""
    changed = {source for shard, (source, *_) in now.items() if before.get(shard) != now[shard]}
    gone = {source for shard, (source, *_) in before.items() if shard not in now} - changed
    return str(min(changed)) if changed else f"{min(gone)} is missing"


def refuse_foreign_files(state: State, identity: Identity) -> None:
    """The trainer counts every file in a folder of shards, so nothing but this job's may lie there."""
    if state.out.exists() and not state.out.is_dir():
        raise ConfigurationError(f"{state.out} is not a folder; choose another --root")
    if state.out.is_symlink() and not state.out.exists():
        raise ConfigurationError(f"{state.out} is a broken link; create the folder that it points to")
    if state.holds is Holds.FILES:
        return
    ours = {path.name for path in _shard_files(state, identity)} if state.job.exists() else set()
    _refuse_others(state.out, ours)


def _refuse_others(folder: Path, ours: Collection[str]) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in ours:
            raise ConfigurationError(
                f"{path} was not written by this job, and the trainer would count it; "
                "move it away or choose another --root"
            )


def refuse_missing_files(state: State) -> None:
    """See that equal shards are all there.

    Raises:
        ConfigurationError: One is missing or not as it was made.
    """
    arrangement = read_arrangement(state)
    if arrangement is not None:
        arrangement.refuse_missing(state)


def _shard_files(state: State, identity: Identity) -> list[Path]:
    """The files that the output may have, counts first."""
    arrangement = read_arrangement(state)
    shards = {*identity.get("shards", ()), *(arrangement.files if arrangement else ())}
    return [state.out / f"{shard}{suffix}" for suffix in (".count", ".pkl") for shard in sorted(shards)]


def _files_to_delete(state: State) -> list[Path]:
    """All files of the output that datafetch wrote, also where it is no longer known which shards are equal ones.

    Raises:
        ConfigurationError: There is something else as well.
    """
    identity = read_identity(state)
    if state.saved_folder.exists():
        shards = [shard for shard in identity["shards"] if state.saved(shard).exists()]
        return [path for shard in shards for path in shard_files(state, shard)]
    try:
        ours = _shard_files(state, identity)
    except ConfigurationError:
        ours = [path for path in state.out.glob("part-*") if _EQUAL_SHARD.fullmatch(path.name)]
    names = {path.name for path in ours}
    for folder in (state.out, state.replaced):
        _refuse_others(folder, names)
    return ours


def _start_over(state: State) -> None:
    """Delete what an earlier run left; a folder without its job file is not datafetch's to delete."""
    if not state.job.exists():
        return
    for path in _files_to_delete(state):
        path.unlink(missing_ok=True)
    for folder in (
        state.ledgers,
        state.all_spools,
        replace(state, scratch=_scratch_before(state)).all_spools,
        state.unpublished,
        state.ready,
        state.failed("").parent,
        state.saved_folder,
        state.added,
        state.resharding,
        state.resharded,
        state.replaced,
        state.quarantine,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (state.retry, state.progress, state.report, state.equal, state.dropped, state.job):
        if file.is_dir():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
