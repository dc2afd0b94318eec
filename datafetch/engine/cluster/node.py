"""NodeServer: what runs on a node. It fetches the shards that the driver hands it, and reports when it is asked.

Theory of operation. The work runs in a thread with an event loop of its own, as a run does. The driver calls
``exchange`` all the time, one call after the other: it brings orders, waits until there is news or a moment has passed,
and takes the report with it. So a call that does not return is the only sign of a node that hangs, and a node that is
not called any more knows that it has lost its driver, and ends itself.

An output in a bucket is worked on in a local folder (``store.buckets.node_copy``). A shard that was published there is
uploaded and reported, and its commit ends when the driver says that it is recorded; before a shard is opened, what
others have fetched of it is brought.

Rules: nothing here knows Ray. The job is read from the state folder, where the driver has claimed the output for it;
so it has no secrets, and is refused where the manifest, the ids or the archive that this node sees are others. The
login of a bucket is that of the node's own environment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from datafetch.engine.cluster.messages import (
    WATCH_INTERVAL_S,
    EndKind,
    NodeEnd,
    NodeMessage,
    NodeOutput,
    NodeReport,
    NodeTask,
    Orders,
    OutputInFolder,
    TriedUrls,
    UploadedShard,
    last_upload_s,
)
from datafetch.engine.cluster.node_facts import NodeFacts, find_facts
from datafetch.engine.cluster.suspicion import Suspicion
from datafetch.engine.feed import MAX_OPEN_SHARDS, SuppliedShard
from datafetch.engine.job import hash_of, read_job
from datafetch.engine.reach import Steered
from datafetch.engine.runner import run_alone
from datafetch.engine.session import Backends
from datafetch.engine.share import fetch_share
from datafetch.errors import ConfigurationError, DatafetchError, ManifestError, ResourceError
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import FetchedShards
from datafetch.model.untrusted import one_line
from datafetch.output.commit import Commit, CommitShard
from datafetch.output.commit_process import CommitProcesses
from datafetch.process.threads import run_in_thread
from datafetch.store.buckets.node_copy import NodeCopy
from datafetch.store.layout import OutputLayout

_SNAPSHOT_INTERVAL_S = 1.0
_MAX_MESSAGES = 200  # of a second or so
_ABANDONED_EXIT = 3

_Result = TypeVar("_Result")


class NodeServer:
    """Fetches shards on one node: is asked for facts, then given its task, and then called again and again."""

    def __init__(self) -> None:
        self._work: _Work | None = None

    def facts(self, output: NodeOutput) -> NodeFacts:
        """What this node has in common with the driver; the argument is that of ``find_facts``."""
        return find_facts(output)

    def begin(self, task: NodeTask) -> None:
        """Begin to work.

        Args:
            task: What to do.
        """
        self._work = _Work(task)

    def exchange(self, orders: Orders, wait_s: float) -> NodeReport:
        """Obey orders, and report once there is news, or after some seconds.

        Args:
            orders: What the driver orders.
            wait_s: The maximum number of seconds to wait for news.
        """
        assert self._work is not None, "it was begun"
        return self._work.exchange(orders, wait_s)


class _Work:
    """What a server does once it has a task.

    Args:
        task: What to do.
    """

    def __init__(self, task: NodeTask) -> None:
        self._task = task
        self._changed = threading.Condition()
        self._heard_s = time.monotonic()
        self._has_news = False
        self._wanted = 0
        self._published: list[str] = []
        self._uploaded: list[UploadedShard] = []
        self._unrecorded: dict[str, asyncio.Event] = {}
        self._in_use: list[str] = []
        self._tried: TriedUrls | None = None
        self._messages: deque[NodeMessage] = deque(maxlen=_MAX_MESSAGES)
        self._limits = task.limits
        self._snapshot = NodeReport()
        self._end: NodeEnd | None = None
        self._is_over = False
        self._session: Steered | None = None
        self._copy: NodeCopy | None = None
        self._copy_threads = ThreadPoolExecutor(MAX_OPEN_SHARDS, thread_name_prefix="bucket")
        self._job_hash = ""
        self._suspicion = Suspicion()
        self._cleared = asyncio.Event()
        self._trying: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: asyncio.Queue[SuppliedShard | None] = asyncio.Queue()
        threading.Thread(target=self._do, name="datafetch", daemon=True).start()
        threading.Thread(target=self._end_when_abandoned, name="driver's absence", daemon=True).start()

    def exchange(self, orders: Orders, wait_s: float) -> NodeReport:
        """Obey orders, and report once there is news, or after some seconds."""
        self._heard_s = time.monotonic()
        with self._changed:
            self._obey(orders)
            self._changed.wait_for(lambda: self._has_news, wait_s)
            report = self._report()
        self._heard_s = time.monotonic()
        return report

    # --- the supply of shards, in the thread of the work

    async def next_shard(self) -> SuppliedShard | None:
        """Wait for the next shard from the driver."""
        with self._changed:
            if self._is_over:
                return None
            self._wanted += 1
            self._tell()
        shard = await self._inbox.get()
        if shard is None:
            self._inbox.put_nowait(None)  # for the next call
        elif self._copy is not None:
            await self._in_thread(self._copy, self._copy.bring_spools, shard.name, self._job_hash)
        return shard

    async def published(self, shard: str) -> None:
        """Report that a shard is published, unless the driver has recorded it itself."""
        if self._copy is None:
            with self._changed:
                self._published.append(shard)
                self._tell()

    async def in_use(self, shard: str) -> None:
        """Report that a shard is locked by another process."""
        with self._changed:
            self._in_use.append(shard)
            self._tell()

    # --- in the thread of ``exchange``, with the condition held

    def _obey(self, orders: Orders) -> None:
        for shard in orders.shards:
            self._wanted -= 1
            self._call_in_loop(self._inbox.put_nowait, shard)
        if orders.limits is not None:
            self._limits = orders.limits
            self._snapshot = replace(self._snapshot, is_within_limits=False)  # until that has been looked at
            self._call_in_loop(self._apply_limits)
        if orders.is_over and not self._is_over:
            self._is_over = True
            self._call_in_loop(self._inbox.put_nowait, None)
        if orders.clears:
            self._snapshot = replace(self._snapshot, is_in_doubt=False)
            self._call_in_loop(self._clear)
        for recorded in orders.recorded:
            self._call_in_loop(self._unrecorded.pop(recorded).set)
        if orders.urls:
            self._call_in_loop(self._begin_to_try, orders.urls)

    def _report(self) -> NodeReport:
        report = replace(
            self._snapshot,
            wanted=max(0, self._wanted),
            published=tuple(self._published),
            uploaded=tuple(self._uploaded),
            in_use=tuple(self._in_use),
            tried=self._tried,
            messages=tuple(self._messages.popleft() for _ in range(len(self._messages))),
            end=self._end,
        )
        self._published.clear()
        self._uploaded.clear()
        self._in_use.clear()
        self._tried = None
        self._has_news = False
        return report

    def _tell(self) -> None:
        self._has_news = True
        self._changed.notify_all()

    def _call_in_loop(self, function: object, *arguments: object) -> None:
        if self._loop is not None and self._end is None:
            with suppress(RuntimeError):  # the loop has closed, and the end says why
                self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]

    # --- the work

    def _do(self) -> None:
        with _forwarding(self._messages):
            end = self._run()
        with self._changed:
            self._end = end
            self._tell()

    def _run(self) -> NodeEnd:
        try:
            run_alone(self._fetch(), instead="a thread without a loop")
        except ResourceError as error:
            return NodeEnd(EndKind.RESOURCES, self._message_of(error))
        except (ConfigurationError, ManifestError) as error:
            return NodeEnd(EndKind.REFUSED, self._message_of(error))
        except BaseException:  # noqa: BLE001 - whatever it is, the driver raises it
            return NodeEnd(EndKind.BUG, traceback.format_exc())
        return NodeEnd(EndKind.DONE)

    def _message_of(self, error: DatafetchError) -> str:
        """What an error says, of the output and not of the folder on which this node works in its place."""
        output, message = self._task.output, one_line(str(error))
        if self._copy is None or isinstance(output, OutputInFolder):
            return message
        return message.replace(str(self._copy.layout.out), output.location)

    async def _fetch(self) -> None:
        output = self._task.output
        if isinstance(output, OutputInFolder):
            await self._fetch_into(OutputLayout(Path(output.out)))
            return
        self._copy = copy = await run_in_thread(NodeCopy, output, self._task.number)
        try:
            await self._in_thread(copy, copy.open)
            await self._fetch_into(copy.layout, stored_at=output.location)
        finally:
            await self._in_thread(copy, copy.close)
            self._copy_threads.shutdown(wait=False)

    async def _fetch_into(self, layout: OutputLayout, *, stored_at: str = "") -> None:
        job, identity = await asyncio.to_thread(read_job, layout)
        job = replace(job, out=str(layout.out), stored_at=stored_at, finish_by=self._task.finish_by)
        self._job_hash = hash_of(identity)
        self._loop = asyncio.get_running_loop()
        snapshots = asyncio.create_task(self._take_snapshots())
        try:
            backends = Backends(open_commit=self._open_commit)
            policy = self._limits.apply_to(job.fetch)
            done = await fetch_share(job, self, self._task.heartbeat, self._begin, policy=policy, backends=backends)
        finally:
            snapshots.cancel()
        self._end_snapshot(done)

    async def _in_thread(self, copy: NodeCopy, work: Callable[..., _Result], *arguments: object) -> _Result:
        return await run_in_thread(work, *arguments, on_cancel=copy.stop, threads=self._copy_threads)

    def _begin(self, session: Steered) -> None:
        self._session = session
        self._apply_limits()

    @asynccontextmanager
    async def _open_commit(self) -> AsyncIterator[CommitShard]:
        """Open what commits shards, but only while this node is not in doubt."""
        async with CommitProcesses() as commit:

            async def commit_when_sure(work: Commit) -> ShardCounts:
                while self._is_in_doubt():
                    self._cleared.clear()
                    self._take_snapshot()
                    with self._changed:
                        self._tell()
                    await self._cleared.wait()
                counts = await commit(work)
                if self._copy is not None:
                    await self._have_recorded(self._copy, work.shard)
                return counts

            yield commit_when_sure

    async def _have_recorded(self, copy: NodeCopy, shard: str) -> None:
        """Upload a shard, and wait until the driver has recorded it."""
        files = await self._in_thread(copy, copy.upload, shard)
        recorded = asyncio.Event()
        with self._changed:
            self._unrecorded[shard] = recorded
            self._uploaded.append(UploadedShard(shard, files))
            self._tell()
        await recorded.wait()
        await self._in_thread(copy, copy.forget, shard, self._job_hash)

    def _is_in_doubt(self) -> bool:
        return self._session is not None and self._suspicion.look(*_count_images(self._session))

    def _clear(self) -> None:
        if self._session is not None:
            self._suspicion.clear(*_count_images(self._session))
        self._cleared.set()

    def _apply_limits(self) -> None:
        if self._session is not None:
            with suppress(RuntimeError):  # the fetcher has closed
                self._session.limit_to(self._limits.per_host, self._limits.max_rate_bytes_per_s)
        self._take_snapshot()

    async def _take_snapshots(self) -> None:
        while True:
            self._take_snapshot()
            await asyncio.sleep(_SNAPSHOT_INTERVAL_S)

    def _take_snapshot(self) -> None:
        session = self._session
        if session is None:
            with self._changed:
                self._snapshot = replace(self._snapshot, is_within_limits=True)
            return
        try:
            reach = session.reach()
            snapshot = NodeReport(
                statistics=session.statistics(),
                done=session.fetched(),
                is_in_doubt=self._is_in_doubt(),
                unreached=reach.urls,
                is_within_limits=reach.is_within_limits,
            )
        except RuntimeError:  # the fetcher has closed, and the end says the rest
            return
        with self._changed:
            self._snapshot = snapshot

    def _end_snapshot(self, done: FetchedShards) -> None:
        session = self._session
        statistics = self._snapshot.statistics
        if statistics is not None and session is not None:
            totals = done.totals
            statistics = replace(
                statistics, ok=totals.ok, failed=totals.failed, open_requests=0, shards_published=statistics.shards
            )
        with self._changed:
            self._snapshot = NodeReport(done=done, statistics=statistics)

    def _begin_to_try(self, urls: Sequence[str]) -> None:
        task = asyncio.get_running_loop().create_task(self._try(urls))
        self._trying.add(task)
        task.add_done_callback(self._trying.discard)

    async def _try(self, urls: Sequence[str]) -> None:
        """Request URLs that another node could not reach, and count those that are answered here."""
        answers = None if self._session is None else await self._session.count_answered(urls)
        with self._changed:
            self._tried = TriedUrls(answers)
            self._tell()

    def _end_when_abandoned(self) -> None:
        """End this process once the driver has not called for too long; what was fetched is in the spools.

        Once the work has ended, there is nothing to end it for.
        """
        while time.monotonic() - self._heard_s < self._task.abandoned_after_s:
            if self._end is not None:
                return
            time.sleep(WATCH_INTERVAL_S)
        if self._copy is not None:
            rest = threading.Thread(target=self._copy.upload_spools, name="last upload", daemon=True)
            rest.start()
            rest.join(last_upload_s(self._task.abandoned_after_s))
        os._exit(_ABANDONED_EXIT)


def _count_images(session: Steered) -> tuple[int, int]:
    """How many images of a session were requested and have ended, and of them those that no server answered."""
    reach = session.reach()
    return reach.images, reach.unreached


@contextmanager
def _forwarding(messages: deque[NodeMessage]) -> Iterator[None]:
    """Keep the library's messages for the driver, from level INFO, until the context is left."""
    library, handler = logging.getLogger("datafetch"), _Forwarding(messages)
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.setLevel(level)
        library.removeHandler(handler)


class _Forwarding(logging.Handler):
    """Keeps messages for the driver, the latest ones if there are too many."""

    def __init__(self, messages: deque[NodeMessage]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(NodeMessage(record.levelno, one_line(record.getMessage())))
