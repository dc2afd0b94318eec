"""What a driver and its nodes share: an output in a folder that all of them see, or in a bucket.

Theory of operation. In a folder everything is where all nodes see it: a node publishes a shard by itself, and what a
lost node had fetched lies in spools. Locks on shards decide who works on one.

In a bucket the driver alone has the lease and the commit log. A node uploads a shard and reports what it has uploaded;
the driver records that, those of all nodes that are waiting by one entry, and tells the node, which only then deletes
its spools. There are no locks on shards. So the shards of a node that may be alive wait until it has ended itself; and
if it has not, it can record nothing, since the driver does not listen to it any more: the first one that is recorded
counts.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from datafetch.engine.cluster.messages import NodeOutput, OutputInFolder
from datafetch.engine.ownership import locked_shards
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.observers import Observer
from datafetch.model.statistics import Statistics
from datafetch.model.wording import counted
from datafetch.monitor.heartbeat import write_heartbeats
from datafetch.process.threads import run_in_thread
from datafetch.store.buckets.commit_log import LoggedFile
from datafetch.store.buckets.stored_output import spool_name
from datafetch.store.buckets.working_copy import WorkingCopy
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import ShardLocks
from datafetch.store.spool_writer import drop_failures

_LOCK_INTERVAL_S = 0.1
_TOKEN_BYTES = 16
_THREADS = 16  # each waits for the store most of the time

_log = logging.getLogger(__name__)


class SharedOutput(Protocol):
    """An output that a driver and its nodes share.

    Attributes:
        for_nodes: What nodes are told of it.
        token: What the list of nodes has in it (``monitor.cluster_snapshot``).
        observers: Who else is to watch the run.
        at_hand: Has the content of a file of published rows on this machine while they are read.
    """

    for_nodes: NodeOutput
    token: str
    observers: tuple[Observer[Statistics], ...]
    at_hand: AtHand

    def open(self) -> AbstractAsyncContextManager[None]:
        """Keep other runs off while nodes are at work."""
        ...

    async def record(self, shard: str, files: Mapping[str, LoggedFile]) -> None:
        """Record a shard that a node has uploaded."""
        ...

    def free_at_s(self, gone_by_s: float) -> float:
        """When others may continue with the shards of a node that may be alive.

        Args:
            gone_by_s: When it has ended itself.
        """
        ...

    async def drop_failures(self, shards: Sequence[str], node: int, kinds: Collection[str], timeout_s: float) -> None:
        """Let others request the images that failed in one of these ways on a node that has ended.

        Args:
            shards: The shards that it had in progress.
            node: Its number.
            kinds: Failure kinds.
            timeout_s: How long its locks may outlive it.
        """
        ...


class FolderOutput:
    """An output in a folder that all nodes see.

    Args:
        layout: Its paths.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self.token = secrets.token_hex(_TOKEN_BYTES)
        self.for_nodes: NodeOutput = OutputInFolder(str(layout.out), self.token)
        self.observers: tuple[Observer[Statistics], ...] = ()  # nodes write heartbeats of their own
        self.at_hand: AtHand = is_at_hand
        self._layout = layout
        self._locks: ShardLocks | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Share the output's lock with the nodes."""
        async with locked_shards(self._layout, (), lambda: None) as self._locks:
            yield

    async def record(self, shard: str, files: Mapping[str, LoggedFile]) -> None:
        """Never called, since nodes publish shards by themselves."""
        raise AssertionError(f"{shard} was uploaded, but there is no bucket: {files}")

    def free_at_s(self, _: float) -> float:
        """At once: locks decide."""
        return 0.0

    async def drop_failures(self, shards: Sequence[str], _: int, kinds: Collection[str], timeout_s: float) -> None:
        """Drop them from spools, whose locks die with the node."""
        dropped = 0
        until_s = time.monotonic() + timeout_s
        for shard in shards:
            if not await self._lock_in_time(shard, until_s):
                _log.warning(
                    "%s is still locked by the node that can't work: images that failed on it are recorded as failed; "
                    "retry them when the run has ended",
                    shard,
                )
                continue
            try:
                for path in await run_in_thread(self._layout.spools, shard):
                    dropped += await run_in_thread(drop_failures, path, kinds)
            finally:
                await run_in_thread(self._opened().release_shard, shard)
        if dropped:
            _log.info("%s will be requested by other nodes", counted(dropped, "failed image"))

    async def _lock_in_time(self, shard: str, until_s: float) -> bool:
        """Lock a shard once the process that had it has ended; return whether it did in time."""
        while not await run_in_thread(self._opened().try_acquire, shard):
            if time.monotonic() > until_s:
                return False
            await asyncio.sleep(_LOCK_INTERVAL_S)
        return True

    def _opened(self) -> ShardLocks:
        assert self._locks is not None, "it was opened"
        return self._locks


class BucketOutput:
    """An output in a bucket, whose lease is held here.

    Args:
        layout: The paths of the working copy.
        copy: The working copy, in which the run has begun.
        scratch: The folder for shards in progress on a node; None is the user's cache folder.
    """

    def __init__(self, layout: OutputLayout, copy: WorkingCopy, scratch: Path | None) -> None:
        self.token = secrets.token_hex(_TOKEN_BYTES)
        self.for_nodes: NodeOutput = copy.stored(scratch)
        self.observers: tuple[Observer[Statistics], ...] = (
            partial(write_heartbeats, layout=layout, path=layout.progress),
        )
        self.at_hand: AtHand = copy.at_hand
        self._layout = layout
        self._copy = copy
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bucket")
        self._recording = asyncio.Lock()
        self._waiting: dict[str, Mapping[str, LoggedFile]] = {}
        self._recorded: set[str] = set()
        self._failure: Exception | None = None
        self._bringing: list[Future[None]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Lock the working copy; at the end, it has what was recorded."""
        try:
            async with locked_shards(self._layout, (), lambda: None):
                yield
                for one in self._bringing:
                    await asyncio.wrap_future(one)
        finally:
            end = partial(self._threads.shutdown, cancel_futures=True)
            await run_in_thread(end, on_cancel=self._copy.stop)

    async def record(self, shard: str, files: Mapping[str, LoggedFile]) -> None:
        """Record a shard, with all that wait for it.

        Raises:
            ResourceError: The store can't be reached, or another run has taken over.
        """
        assert shard not in self._recorded, "its recording is waited for before it is handed to another node"
        self._waiting[shard] = files
        async with self._recording:
            if self._failure is not None:
                raise self._failure
            if shard not in self._recorded:
                batch, self._waiting = self._waiting, {}
                await self._record(batch)

    def free_at_s(self, gone_by_s: float) -> float:
        """Then: there are no locks."""
        return gone_by_s

    async def drop_failures(self, shards: Sequence[str], node: int, kinds: Collection[str], _: float) -> None:
        """Record which writer's failures don't count, for the process that puts its spools together."""
        spools = [spool_name(self._layout.job_hash, shard) for shard in shards]
        await self._in_thread(self._copy.drop_failures, spools, node, kinds)

    async def _record(self, batch: Mapping[str, Mapping[str, LoggedFile]]) -> None:
        try:
            self._raise_failed()
            await self._in_thread(self._copy.record, batch)
        except Exception as error:  # for all that wait for it
            self._failure = error
            raise
        self._recorded.update(batch)
        self._bringing += [self._threads.submit(self._copy.bring_recorded, files) for files in batch.values()]

    def _raise_failed(self) -> None:
        """Raise what kept a recorded shard from being brought, such as a full disk, and not only at the end."""
        ended = [one for one in self._bringing if one.done()]
        self._bringing = [one for one in self._bringing if one not in ended]
        for one in ended:
            one.result()

    async def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        await run_in_thread(work, *arguments, on_cancel=self._copy.stop, threads=self._threads)
