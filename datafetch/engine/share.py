"""A share of a job: a process fetches shards that it is handed while it is at work. Besides: what comes before all.

Theory of operation. Whoever steers several such processes calls ``begin_dataset`` once, which claims the output as a
run does and says which shards are open. Then each process calls ``fetch_share``, and asks for a shard whenever it has
room for another, so that a slow process takes fewer. It locks each shard before it reads it, and unlocks it once it is
published. A shard that another process holds is given back. At the end, ``finish_dataset`` does what depends on all
shards.

Rules: the lock of a shard decides who works on it, and the existence of its ledger whether it is done; whoever hands
out shards may be wrong about both, and nothing is lost by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from datafetch.engine.bound_job import BoundJob, bind
from datafetch.engine.completeness import refuse_missing_files, unpublished_shards
from datafetch.engine.feed import Feed, ShardSupply, SuppliedShard
from datafetch.engine.job import Job
from datafetch.engine.ownership import lock_another_shard, locked_output, locked_shards
from datafetch.engine.permissions import read_last_job
from datafetch.engine.reach import Steered
from datafetch.engine.repeated_job import RepeatedJob
from datafetch.engine.runner import begin_run, log_no_longer_permitted, refuse_starting_over, try_to_start
from datafetch.engine.session import CHILD_PROCESSES, Backends, Session
from datafetch.fetch import FetchPolicy
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import FetchedShards
from datafetch.process.threads import run_in_thread
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import ShardLocks
from datafetch.store.shard_summary import read_shard_counts


@dataclass(frozen=True, slots=True)
class BegunRun:
    """A run whose output is claimed, and whose shards can be fetched.

    Attributes:
        layout: The paths of the output.
        open_shards: The shards that are not published, in order, as far as the job's limit reaches.
        sizes: The sizes of these shards, in their manifest's unit.
        published: The counts of all other shards.
    """

    layout: OutputLayout
    open_shards: tuple[SuppliedShard, ...]
    sizes: Mapping[str, int]
    published: ShardCounts


class Supply(ShardSupply, Protocol):
    """Where a share's shards come from, and what becomes of them."""

    async def in_use(self, shard: str) -> None:
        """Called when another process holds a shard, which is not fetched here then."""


async def begin_dataset(job: Job, repeated: RepeatedJob | None = None) -> BegunRun:
    """Do what a run does before its first shard: claim the output, or start it over, and find what is to be fetched.

    Args:
        job: What to do.
        repeated: The job of another output, whose rows this one is to make; None for any rows.

    Raises:
        DatafetchError: As for ``fetch_dataset``. A resharded output that lacks files is refused.
    """
    async with bind(job) as bound:
        layout = bound.layout
        if repeated is not None:
            await run_in_thread(repeated.refuse_other_rows, bound.identity, job, bound.spec)
        if job.fresh or job.reuse:
            await try_to_start(bound)
        before = None if job.fresh else await asyncio.to_thread(read_last_job, layout)
        prepare = partial(bound.claim_output, bound.shards, is_whole=True)
        async with locked_output(layout, prepare, fresh=job.fresh):
            log_no_longer_permitted(before, job)
            await run_in_thread(refuse_missing_files, layout)
            await run_in_thread(begin_run, bound)
            return await run_in_thread(_find_open_shards, bound)


async def fetch_share(
    job: Job,
    supply: Supply,
    name: str,
    on_start: Callable[[Steered], None],
    *,
    policy: FetchPolicy | None = None,
    backends: Backends = CHILD_PROCESSES,
) -> FetchedShards:
    """Fetch shards as they are handed out, until there are no more.

    Args:
        job: What to do, the same in every process; ``begin_dataset`` has claimed its output.
        supply: Hands out the shards.
        name: What names this process's heartbeat, among those of all that work on the output.
        on_start: Called when everything is open and no image has been requested yet.
        policy: The job's, with this process's part of the limits of all; None if that is the whole.
        backends: What transcodes images and commits shards.

    Returns:
        What was done.

    Raises:
        DatafetchError: The job or its manifest is not the one that the output was claimed for, or this machine ran out
            of something.
    """
    refuse_starting_over(job)
    async with bind(job, policy) as bound:
        layout = bound.layout
        async with locked_shards(layout, (), partial(_prepare_for_share, bound)) as locks:
            session = Session(
                replace(job, fetch=policy or job.fetch), bound.output, (), (), layout.shard_progress(name), on_start
            )
            feed = Feed(
                bound.manifest, layout, image_root=bound.image_root, supply=_LockedSupply(layout, locks, supply)
            )
            async with session.fetched(
                feed, bound.spec, backends, bound.archives, bound.identity, rate=bound.rate
            ) as fetched:
                return fetched


class _LockedSupply:
    """A supply whose shards are locked while they are in progress."""

    def __init__(self, layout: OutputLayout, locks: ShardLocks, supply: Supply) -> None:
        self._layout = layout
        self._locks = locks
        self._supply = supply

    async def next_shard(self) -> SuppliedShard | None:
        while (supplied := await self._supply.next_shard()) is not None:
            if await lock_another_shard(self._layout, self._locks, supplied.name):
                return supplied
            await self._supply.in_use(supplied.name)
        return None

    async def published(self, shard: str) -> None:
        await run_in_thread(self._locks.release_shard, shard)
        await self._supply.published(shard)


def _prepare_for_share(bound: BoundJob) -> None:
    bound.claim_output(())
    bound.keep_manifest()


def _find_open_shards(bound: BoundJob) -> BegunRun:
    layout, limit = bound.layout, bound.job.limit
    missing = frozenset(unpublished_shards(layout, bound.shards, None))
    shards = bound.manifest.shards()
    published = {
        shard.name: read_shard_counts(layout.ledger(shard.name)) for shard in shards if shard.name not in missing
    }
    found, left = [], limit
    for shard in shards:
        if left is not None and left <= 0:
            break
        if shard.name in missing:
            found.append(SuppliedShard(shard.name, left))
        if left is not None:
            counts = published.get(shard.name)
            left -= len(bound.manifest.samples(shard)) if counts is None else counts.samples
    return BegunRun(
        layout=layout,
        open_shards=tuple(found),
        sizes={shard.name: shard.size for shard in shards if shard.name in missing},
        published=ShardCounts.sum(published.values()),
    )
