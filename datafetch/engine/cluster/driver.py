"""The driver: hands the shards of a job to the nodes of a cluster.

Theory of operation. The driver holds the lock of the output, which was claimed before, together with the nodes. Each
node of the cluster, also one that joins later, goes through these states:

* it is asked for its versions and for what it sees of the output, and refused, by name, where they differ;
* it gets its part of the limits, once all others keep within theirs, and those that were lost have ended;
* it is at work: the driver calls it all the time (``NodeServer.exchange``), gives it a shard when it has room for one,
  and hears what it has published, or uploaded to a bucket, which is then recorded here (``shared_output``);
* it has ended: because nothing is left; because its process or its machine has ended, or because it has not answered
  for ``SILENCE_S``, whereupon its shards wait for other nodes; or because it lacks something that others have. In the
  last two cases it is tried again after a while.

Shards are handed out a second time only in that case, never because one takes long. What a lost node had fetched lies
in spools on the shared filesystem or in the bucket, and the node that gets the shard continues from there. A lost node
that is not dead but cut off ends itself after ``ABANDONED_S`` without a call, and a little later has ended for certain
(``messages.max_absence_s``). Until then it keeps its part of the limits, and, with the output in a bucket, its shards;
on a shared filesystem these are handed out at once, since the lock of each shard decides who works on it.

A driver that dies takes its nodes with it: Ray ends them, or they end themselves. The next one finds in the output what
is published and in the spools what was fetched, and waits until the locks of the old nodes are gone. Living nodes are
not taken over: they may have other versions or another job, and what they would save is the requests that were open.

Rules: nothing here knows Ray. Everything is decided by one loop; what blocks runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from datafetch.engine.cluster.interface import Cluster, ClusterNode, NodeLostError, UnfitNodeError
from datafetch.engine.cluster.limits import divide_limits
from datafetch.engine.cluster.member import Member
from datafetch.engine.cluster.messages import EndKind, NodeEnd, NodeReport, NodeTask, Orders, max_absence_s
from datafetch.engine.cluster.network_check import ask_another, stop_asking, take_answers
from datafetch.engine.cluster.node_facts import NodeFacts, find_facts
from datafetch.engine.cluster.shard_queue import ShardQueue
from datafetch.engine.cluster.shared_output import SharedOutput
from datafetch.engine.job import Job
from datafetch.engine.share import BegunRun
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.fetch.fetcher import UNREACHED
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.observers import Observer, SafeObserver, observed_by
from datafetch.model.outcome import FailureKind
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics
from datafetch.model.wording import counted
from datafetch.monitor.cluster_snapshot import ClusterSnapshot, NodeState, write_cluster
from datafetch.monitor.throughput import Throughput
from datafetch.process.threads import run_in_thread

ABANDONED_S = 60.0
"""After how many seconds without a call a node ends itself."""
SILENCE_S = 90.0
"""After how many seconds without an answer a node is given up; so long that it has ended itself by then."""
_POLL_INTERVAL_S = 1.0  # a call returns after so long even without news
_NODES_PER_EXCHANGE_S = 100  # of very many nodes each is called less often, so that a driver bears a thousand
_MAX_EXCHANGE_SHARE = 4  # a node is called so often in the time after which it would end itself
_MAX_GONE = 100  # nodes that have left the cluster and are still listed; machines that are lent come and go
_WATCH_INTERVAL_S = 2.0
_WAKE_DELAY_S = 0.05
_FACTS_TIMEOUT_S = 120.0  # a node loads Pillow and the package from a shared filesystem, which may be slow
_FIRST_NODES_WAIT_S = 20.0  # so long the first nodes wait for each other, so that limits are divided once
_IDLE_WARNING_INTERVAL_S = 30.0  # without any node at work, a line says what is waited for
_FIRST_RETRY_S = 10.0
_MAX_RETRY_PAUSE_S = 300.0
_MAX_FAILURES = 5  # without a published shard in between
_FORGOTTEN = frozenset({*UNREACHED, FailureKind.NOT_REQUESTED, FailureKind.DISCONNECTED})
_ID_CHARS = 16

_log = logging.getLogger(__name__)


class _SickNodeError(Exception):
    """A node lacks something that others have, or a part of its network does not work."""


class _RefusedNodeError(Exception):
    """A node would make other bytes, or does not see the same files."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a driver waits for what; shorter in tests.

    Attributes:
        abandoned_s: After how many seconds without a call a node ends itself.
        silence_s: After how many seconds without an answer a node is given up.
        first_retry_s: After how many seconds a node that was lost or sick is tried again, at first.
    """

    abandoned_s: float = ABANDONED_S
    silence_s: float = SILENCE_S
    first_retry_s: float = _FIRST_RETRY_S

    @property
    def max_wait_s(self) -> float:
        """For how many seconds a call may wait for news, so that a node is called often before it ends itself."""
        return max(_POLL_INTERVAL_S, self.abandoned_s / _MAX_EXCHANGE_SHARE)


class Driver:
    """Steers the nodes of a cluster until all shards are published.

    Args:
        job: What to do.
        begun: The claimed output.
        output: What it shares with the nodes.
        timeouts: How long it waits for what.
    """

    def __init__(self, job: Job, begun: BegunRun, output: SharedOutput, timeouts: Timeouts) -> None:
        self._job = job
        self._begun = begun
        self._output = output
        self._timeouts = timeouts
        self._queue = ShardQueue(begun.open_shards)
        self._members: dict[str, Member] = {}
        self._taking: set[str] = set()  # the nodes that take shards, or soon will
        self._open_size = sum(begun.sizes[shard.name] for shard in begun.open_shards)
        self._ended: FetchedShards | None = None  # what all nodes did that have ended, and may have been started again
        self._numbers = count(1)
        self._held: dict[str, Member] = {}
        self._changed = asyncio.Event()
        self._will_wake = False
        self._started_s = time.monotonic()
        self._expected_first: set[str] = set()
        self._facts: NodeFacts | None = None
        self._lacks_resources = False
        self._is_over = False
        self._group = asyncio.TaskGroup()

    async def run(self, cluster: Cluster, observers: Iterable[Observer[Statistics]]) -> FetchedShards:
        """Work until all shards are published.

        Returns:
            What all nodes have done.

        Raises:
            DatafetchError: What stopped the run.
        """
        async with self._output.open():
            await self._write_snapshot()
            self._facts = await asyncio.to_thread(find_facts, self._output.for_nodes)
            async with (
                observed_by((self._write_snapshots, *self._output.observers, *observers), self.statistics),
                self._group as group,
            ):
                await self._watch(cluster, group)
        return replace(self._ended or FetchedShards(ShardCounts()), elapsed_s=time.monotonic() - self._started_s)

    def statistics(self) -> Statistics:
        """How the run stands: what was published before, and what the nodes have done."""
        published = self._begun.published
        now = [one.report.statistics for one in self._members.values() if one.is_at_work and one.report.statistics]
        gone = self._ended or FetchedShards(ShardCounts())
        waiting = [one.waiting for one in now if one.waiting is not None]
        return Statistics(
            expected_images=self._expected_images(),
            ok=published.ok + sum(one.ok for one in now) + gone.totals.ok,
            failed=published.failed + sum(one.failed for one in now) + gone.totals.failed,
            earlier=published.images + sum(one.earlier for one in now),
            shards=len(self._begun.open_shards),
            shards_published=self._queue.published,
            fetched_bytes=gone.fetched_bytes + sum(one.fetched_bytes for one in now),
            connections=sum(one.connections for one in now),
            open_requests=sum(one.open_requests for one in now),
            elapsed_s=time.monotonic() - self._started_s,
            waiting=max(waiting, key=lambda one: one.images) if waiting and len(waiting) == len(now) else None,
            transcoding=sum(one.transcoding for one in now),
        )

    # --- nodes

    async def _watch(self, cluster: Cluster, group: asyncio.TaskGroup) -> None:
        """Take in nodes as they join, until all shards are published.

        Raises:
            ConfigurationError: Everyone can run code on the cluster, or no node can do the job.
            ResourceError: All nodes lack something.
        """
        await cluster.refuse_open_head()
        idle_since_s = time.monotonic()
        while not self._queue.is_complete:
            nodes = await asyncio.to_thread(cluster.nodes)
            if not self._members:
                self._expected_first = {node.id for node in nodes}
            for node in nodes:
                if node.id not in self._members:
                    member = self._members[node.id] = Member(node)
                    group.create_task(self._keep_at_work(cluster, member))
            self._forget_gone({node.id for node in nodes})
            self._refuse_without_nodes(nodes)
            if any(one.is_at_work for one in self._members.values()):
                idle_since_s = time.monotonic()
            elif time.monotonic() - idle_since_s > _IDLE_WARNING_INTERVAL_S:
                idle_since_s = time.monotonic()
                _log.warning("no node is working: %s; the run continues when one is available", self._why_idle())
            if not self._queue.is_complete:  # which it may have become meanwhile
                await self._wait_for_change(_WATCH_INTERVAL_S)
        self._is_over = True
        self._wake_soon()

    async def _keep_at_work(self, cluster: Cluster, member: Member) -> None:
        try:
            await self._work_again_and_again(cluster, member)
        finally:
            member.is_over = True

    async def _work_again_and_again(self, cluster: Cluster, member: Member) -> None:
        """Let a node work until nothing is left, and again after a while if it was lost."""
        while not self._is_over:
            try:
                await self._work_on(cluster, member)
            except _RefusedNodeError as error:
                self._set_state(member, NodeState.REFUSED, str(error))
                _log.warning("node %s is refused: %s; the run continues without it", member.name, error)
                return
            except NodeLostError as error:
                self._set_state(member, NodeState.LOST, str(error))
                _log.warning("node %s was lost: it %s; its shards go to other nodes", member.name, error)
            except _SickNodeError as error:
                self._set_state(member, NodeState.SICK, str(error))
                _log.warning("node %s can't work: %s; its shards go to other nodes", member.name, error)
            else:
                self._set_state(member, NodeState.ENDED, "")
                return
            if not await self._wait_before_retry(cluster, member):
                return

    async def _wait_before_retry(self, cluster: Cluster, member: Member) -> bool:
        """Wait for a while after a node was lost or sick; return whether it is to be tried again."""
        member.failures += 1
        if member.failures > _MAX_FAILURES:
            member.reason = f"{member.reason} (it was tried {_MAX_FAILURES} times)"
            return False
        until_s = time.monotonic() + min(self._timeouts.first_retry_s * 2 ** (member.failures - 1), _MAX_RETRY_PAUSE_S)
        while (left_s := until_s - time.monotonic()) > 0 and not self._is_over:
            await self._wait_for_change(left_s)
        return not self._is_over and any(node.id == member.node.id for node in await asyncio.to_thread(cluster.nodes))

    async def _work_on(self, cluster: Cluster, member: Member) -> None:
        self._set_state(member, NodeState.STARTING, "")
        member.given, member.is_sick, member.report = 0, False, NodeReport()
        member.is_asked_about, member.is_cleared, member.throughput = False, False, Throughput()
        member.number, member.recorded, member.could_not_check = next(self._numbers), [], []
        server = await run_in_thread(cluster.start, member.node)
        is_certain = True
        try:
            await self._check(cluster, server)
            await self._admit(member)
            if not self._is_over:
                await self._begin(cluster, member, server)
                await self._steer(cluster, member, server)
        except NodeLostError as error:
            is_certain = error.is_certain
            raise
        finally:
            await run_in_thread(cluster.kill, server)
            await self._release(member, is_certain=is_certain)

    async def _begin(self, cluster: Cluster, member: Member, server: Any) -> None:
        assert member.limits is not None, "it was admitted"
        member.confirmed = member.limits
        task = NodeTask(
            self._output.for_nodes,
            member.number,
            f"node-{member.node.id[:_ID_CHARS]}",
            member.limits,
            self._job.finish_by,
            self._timeouts.abandoned_s,
        )
        member.is_at_work = True
        try:
            async with asyncio.timeout(self._timeouts.silence_s):
                await cluster.begin(server, task)
        except TimeoutError as error:
            raise NodeLostError("has not answered", is_certain=False) from error
        except UnfitNodeError as error:
            raise NodeLostError(f"could not be started: {error}", is_certain=True) from error
        finally:
            member.gone_by_s = time.monotonic() + max_absence_s(0.0, self._timeouts.abandoned_s)
        self._set_state(member, NodeState.AT_WORK, "")
        working = sum(one.state is NodeState.AT_WORK for one in self._members.values())
        _log.info(
            "node %s has begun to work (%g CPUs); %s at work", member.name, member.node.cpus, counted(working, "node")
        )

    async def _check(self, cluster: Cluster, server: Any) -> None:
        """Find out whether a node makes the same bytes from the same files.

        Raises:
            NodeLostError: It has ended, or does not answer.
            _RefusedNodeError: It does not.
        """
        try:
            async with asyncio.timeout(_FACTS_TIMEOUT_S):
                facts = await cluster.facts(server, self._output.for_nodes)
        except TimeoutError as error:
            reason = f"has not started in {_FACTS_TIMEOUT_S:.0f} s; another job of the cluster may have its CPUs"
            raise NodeLostError(reason, is_certain=True) from error
        except UnfitNodeError as error:
            raise _RefusedNodeError(str(error)) from error
        assert self._facts is not None, "found before"
        if differences := facts.differences_from(self._facts):
            raise _RefusedNodeError(f"it would make other bytes: {differences}; install the same versions")
        if facts.unseen:
            raise _RefusedNodeError(facts.unseen)

    async def _admit(self, member: Member) -> None:
        """Give a node its part of the limits, once no other one has more than its own."""
        first_until_s = self._started_s + _FIRST_NODES_WAIT_S
        self._expected_first.discard(member.node.id)
        self._divide(joining=member)
        while self._expected_first and not self._is_over and (left_s := first_until_s - time.monotonic()) > 0:
            await self._wait_for_change(left_s)
        while not self._is_over and not all(one.is_settled for one in self._members.values()):
            await self._wait_for_change(_WATCH_INTERVAL_S)

    def _divide(self, *, joining: Member | None = None, leaving: Member | None = None) -> None:
        """Divide the limits among the nodes that have a part of them."""
        if leaving is not None:
            leaving.limits = leaving.confirmed = None
        if self._is_over:  # no node requests anything any more
            return
        sharing = [one for one in self._members.values() if one.limits is not None or one is joining]
        if sharing:
            for one, limits in zip(sharing, divide_limits(self._job.fetch, len(sharing)), strict=True):
                one.limits = limits
        self._wake_soon()

    async def _release(self, member: Member, *, is_certain: bool) -> None:
        """Let the shards of a node that has ended wait for others, and divide its part of the limits."""
        had_begun, member.is_at_work = member.is_at_work, False
        if is_certain and had_begun:
            member.gone_by_s = 0.0
        if member.report.done is not None:
            self._ended = FetchedShards.sum(one for one in (self._ended, member.report.done) if one is not None)
        stop_asking(member, self._members.values())
        await self._take_recorded(member, None)
        if member.is_sick:
            shards = self._queue.shards_of(member.holder)
            await self._output.drop_failures(shards, member.number, _FORGOTTEN, self._timeouts.abandoned_s)
        now_s, loop = time.monotonic(), asyncio.get_running_loop()
        free_in_s = self._output.free_at_s(member.gone_by_s) - now_s
        if is_certain or free_in_s <= 0:
            self._lose(member.name, member.holder)
        else:
            self._held[member.holder] = member
            loop.call_later(free_in_s, self._free, member.holder)
        if member.gone_by_s <= now_s:
            self._divide(leaving=member)
        else:  # it may be cut off and continue for a while
            loop.call_later(member.gone_by_s - now_s, self._leave, member, member.number)
        self._wake_soon()

    def _free(self, holder: str) -> None:
        """Let others have the shards of a process that may have been alive, once it is known to have ended."""
        member = self._held.pop(holder, None)
        if member is not None:
            self._lose(member.name, holder)

    def _lose(self, name: str, holder: str) -> None:
        shards = self._queue.lose(holder)
        if shards:
            _log.info(
                "node %s had %s in progress, with which other nodes continue", name, counted(len(shards), "shard")
            )
        self._wake_soon()

    def _leave(self, member: Member, number: int) -> None:
        """Divide the part of a process that may have been alive, once it is known to have ended."""
        if member.number == number and not member.is_at_work:
            self._divide(leaving=member)

    def _forget_gone(self, alive: set[str]) -> None:
        """Give others what nodes had that have ended for certain, and keep only the latest of such nodes."""
        for holder, member in list(self._held.items()):
            if member.node.id not in alive:
                self._free(holder)
        gone = [member for member in self._members.values() if member.node.id not in alive]
        for member in gone:
            is_idle = member.state in {NodeState.LOST, NodeState.SICK} and not member.is_at_work
            if is_idle and member.limits is not None:
                member.gone_by_s = 0.0
                self._divide(leaving=member)
        over = [member for member in gone if member.is_over and member.limits is None]
        for member in over[: max(0, len(over) - _MAX_GONE)]:
            del self._members[member.node.id]

    # --- a node at work

    async def _steer(self, cluster: Cluster, member: Member, server: Any) -> None:
        """Call a node until it ends.

        Raises:
            NodeLostError: It has ended without a word, or does not answer.
            _RefusedNodeError: It can't do this job.
            _SickNodeError: It lacks something.
            DatafetchError: There is a bug, which stops the run.
        """
        orders = Orders()
        while True:
            wait_s = max(_POLL_INTERVAL_S, len(self._taking) / _NODES_PER_EXCHANGE_S)
            wait_s = min(wait_s, self._timeouts.max_wait_s)
            member.gone_by_s = time.monotonic() + max_absence_s(wait_s, self._timeouts.abandoned_s)
            try:
                async with asyncio.timeout(wait_s + self._timeouts.silence_s):
                    report = await cluster.exchange(server, orders, wait_s)
            except TimeoutError as error:
                reason = f"has not answered for {self._timeouts.silence_s:.0f} s, and is given up"
                raise NodeLostError(reason, is_certain=False) from error
            except UnfitNodeError as error:
                raise NodeLostError(f"could not be called: {error}", is_certain=True) from error
            self._take_report(member, report, orders)
            await self._take_recorded(member, _POLL_INTERVAL_S)
            if report.end is not None:
                self._judge_end(member, report.end)
                return
            if member.is_sick:
                raise _SickNodeError(
                    "it can't reach hosts that other nodes reach; look at its name servers and its network"
                )
            orders = self._orders_for(member, report)

    def _take_report(self, member: Member, report: NodeReport, orders: Orders) -> None:
        now_s = time.monotonic()
        before = member.report
        member.report = (
            report if report.statistics is not None else replace(report, statistics=before.statistics, done=before.done)
        )
        if orders.limits is not None:
            member.confirmed = orders.limits
        for message in report.messages:
            _log.log(message.level, "node %s: %s", member.name, message.text)
        for shard in report.published:
            self._mark_published(member, shard)
        for uploaded in report.uploaded:
            recording = self._group.create_task(self._output.record(uploaded.name, uploaded.files))
            member.recording[uploaded.name] = recording
        for shard in report.in_use:
            self._queue.give_back(member.holder, shard, now_s)
        if report.tried is not None:
            take_answers(member, report.tried)
        if report.is_in_doubt and not (member.is_asked_about or member.is_cleared or member.is_sick):
            ask_another(member, report.unreached, self._members.values())
        if not (report.is_within_limits and before.is_within_limits):
            self._wake_soon()

    def _mark_published(self, member: Member, shard: str) -> None:
        self._queue.mark_published(member.holder, shard)
        member.published += 1
        member.failures = 0
        if self._queue.is_complete:
            self._wake_soon()

    async def _take_recorded(self, member: Member, timeout_s: float | None) -> None:
        """Wait for some seconds, or as long as it takes, until something is recorded that a node has uploaded.

        Raises:
            DatafetchError: It can't be recorded, which stops the run.
        """
        if not member.recording:
            return
        wait = asyncio.FIRST_COMPLETED if timeout_s is not None else asyncio.ALL_COMPLETED
        await asyncio.wait(member.recording.values(), timeout=timeout_s, return_when=wait)
        for shard in [shard for shard, recording in member.recording.items() if recording.done()]:
            member.recording.pop(shard).result()
            member.recorded.append(shard)
            self._mark_published(member, shard)

    def _orders_for(self, member: Member, report: NodeReport) -> Orders:
        shards = []
        for _ in range(report.wanted):
            shard = self._queue.take(member.holder, time.monotonic(), max(1, len(self._taking)))
            if shard is None:
                break
            shards.append(shard)
            member.given += self._begun.sizes[shard.name]
        urls, member.urls = member.urls, ()
        clears, member.is_cleared = member.is_cleared, False
        recorded, member.recorded = tuple(member.recorded), []
        return Orders(
            tuple(shards),
            member.limits if member.limits != member.confirmed else None,
            is_over=self._is_over or self._queue.is_complete,
            clears=clears,
            urls=urls,
            recorded=recorded,
        )

    def _judge_end(self, member: Member, end: NodeEnd) -> None:
        match end.kind:
            case EndKind.DONE:
                return
            case EndKind.RESOURCES:
                self._lacks_resources = True
                raise _SickNodeError(end.message)
            case EndKind.REFUSED:
                raise _RefusedNodeError(end.message)
            case EndKind.BUG:
                raise RuntimeError(f"node {member.name} stopped by a bug:\n{end.message}")

    # --- what is known

    def _refuse_without_nodes(self, nodes: list[ClusterNode]) -> None:
        """Stop where no node can do the job, and waiting changes nothing.

        Raises:
            DatafetchError: What the nodes said.
        """
        ids = {node.id for node in nodes}
        here = [one for one in self._members.values() if one.node.id in ids]
        useless = {NodeState.REFUSED, NodeState.SICK, NodeState.LOST}
        if not here or any(one.state not in useless for one in here):
            return
        if all(one.state is NodeState.REFUSED or one.failures > _MAX_FAILURES for one in here) or (
            all(one.state is NodeState.SICK for one in here) and self._lacks_resources
        ):
            reasons = "; ".join(f"{one.name}: {one.reason}" for one in here[:3])
            kind = ConfigurationError if all(one.state is NodeState.REFUSED for one in here) else ResourceError
            raise kind(f"no node of the cluster can do this job ({reasons})")

    def _why_idle(self) -> str:
        reasons = [
            f"{one.name} {'waits until its CPUs are free' if one.state is NodeState.STARTING else one.state}"
            for one in list(self._members.values())[:3]
        ]
        return ", ".join(reasons) or "there is none that offers CPUs"

    def _expected_images(self) -> int | None:
        """The number of images, extrapolated from what the nodes expect of the shards that they were given."""
        pairs = [
            (one.report.statistics.expected_images, one.given)
            for one in self._members.values()
            if one.is_at_work and one.report.statistics is not None
        ]
        known = [(images, size) for images, size in pairs if images is not None and size]
        if not known:
            return None
        images_per_size = sum(images for images, _ in known) / sum(size for _, size in known)
        return self._begun.published.images + round(images_per_size * self._open_size)

    def _set_state(self, member: Member, state: NodeState, reason: str) -> None:
        member.state, member.reason = state, reason
        if state in {NodeState.STARTING, NodeState.AT_WORK}:
            self._taking.add(member.node.id)
        else:
            self._taking.discard(member.node.id)
        if state is not NodeState.STARTING:
            self._expected_first.discard(member.node.id)
        self._wake_soon()

    def _wake_soon(self) -> None:
        """Wake those that wait for a change, a moment later: a thousand nodes that join change a thousand things."""
        if not self._will_wake:
            self._will_wake = True
            asyncio.get_running_loop().call_later(_WAKE_DELAY_S, self._wake)

    def _wake(self) -> None:
        self._will_wake = False
        self._changed.set()

    async def _wait_for_change(self, timeout_s: float) -> None:
        """Wait until something has changed, or some seconds have passed."""
        changed = self._changed
        if changed.is_set():
            changed = self._changed = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass

    async def _write_snapshots(self, _: Callable[[], Statistics]) -> None:
        guard = SafeObserver("the list of nodes")
        while True:
            with guard:
                await self._write_snapshot()
            await asyncio.sleep(_WATCH_INTERVAL_S)

    async def _write_snapshot(self) -> None:
        snapshot = ClusterSnapshot(
            self._output.token,
            os.getpid(),
            socket.gethostname(),
            time.time(),
            self._expected_images(),
            tuple(one.snapshot() for one in self._members.values()),
        )
        await asyncio.to_thread(write_cluster, self._begun.layout, snapshot)
