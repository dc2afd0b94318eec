"""A cluster whose nodes are simulated in this process: what its driver costs, and how it behaves with many of them.

Rules: it has the interface of ``Cluster``. A node has two shards in progress, each of which takes some time; it
fetches nothing and writes nothing. What it reports is as large as what a real node reports.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import insort
from dataclasses import dataclass, field, replace

from datafetch.engine.cluster.interface import ClusterNode, NodeLostError
from datafetch.engine.cluster.messages import EndKind, NodeEnd, NodeOutput, NodeReport, NodeTask, Orders
from datafetch.engine.cluster.node_facts import NodeFacts, find_facts
from datafetch.engine.feed import SuppliedShard
from datafetch.engine.share import BegunRun
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics
from datafetch.store.layout import OutputLayout

AT_ONCE = 2
"""How many shards a node has in progress."""
_FIRST_POLL_S = 0.01  # until its first shard is there
_BODY_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Simulation:
    """What all nodes of a cluster do.

    Attributes:
        shard_s: How many seconds a shard takes in the mean, between half and one and a half of that.
        images: The number of images of a shard.
        join_s: How many seconds a node takes to start, at most.
        lives_shards: After how many shards it is lost, and another one joins in its place; None for never.
    """

    shard_s: float
    images: int = 1
    join_s: float = 0.0
    lives_shards: int | None = None


class SimulatedNode:
    """The server of a simulated node."""

    def __init__(self, node: ClusterNode, simulation: Simulation) -> None:
        self.node = node
        self._simulation = simulation
        self._in_progress: list[tuple[float, str]] = []  # by the time at which they are done
        self._random = random.Random(node.id)
        self._published = 0
        self._started_s = time.monotonic()
        self._report = NodeReport()

    @property
    def is_lost(self) -> bool:
        """Whether its time has come."""
        return self._simulation.lives_shards is not None and self._published >= self._simulation.lives_shards

    async def exchange(self, orders: Orders, wait_s: float) -> NodeReport:
        """Take shards, and report once one is published or there is room for another one."""
        now_s = time.monotonic()
        for shard in orders.shards:
            insort(self._in_progress, (now_s + self._simulation.shard_s * self._random.uniform(0.5, 1.5), shard.name))
        wanted = AT_ONCE - len(self._in_progress)
        if orders.is_over and not self._in_progress:
            return replace(self._report, end=NodeEnd(EndKind.DONE))
        if not (wanted and orders.shards):
            until_s = self._in_progress[0][0] if self._in_progress else now_s + wait_s
            if not self._in_progress and not self._published:
                until_s = now_s + _FIRST_POLL_S
            await asyncio.sleep(max(0.0, min(until_s - now_s, wait_s)))
        done = []
        while self._in_progress and self._in_progress[0][0] <= time.monotonic():
            done.append(self._in_progress.pop(0)[1])
        if done:
            self._published += len(done)
            elapsed_s = time.monotonic() - self._started_s
            self._report = report_of(self._published, self._simulation.images, elapsed_s=elapsed_s)
        return replace(self._report, wanted=max(0, AT_ONCE - len(self._in_progress)), published=tuple(done))


def report_of(published: int, images: int, *, elapsed_s: float = 1.0) -> NodeReport:
    """What a node reports that has published some shards with some images each."""
    arrived = published * images
    statistics = Statistics(
        expected_images=arrived + images,
        ok=arrived,
        failed=0,
        earlier=0,
        shards=published + AT_ONCE,
        shards_published=published,
        fetched_bytes=arrived * _BODY_BYTES,
        connections=256,
        open_requests=256,
        elapsed_s=elapsed_s,
    )
    totals = ShardCounts(samples=arrived, rows=arrived, outcomes={"ok": arrived})
    return NodeReport(statistics=statistics, done=FetchedShards(totals, arrived=arrived, requests=arrived))


@dataclass(slots=True)
class SimulatedCluster:
    """A cluster of simulated nodes, with the interface of ``Cluster``.

    Attributes:
        size: The number of nodes at each time.
        simulation: What they do.
        exchanges: How many calls of ``exchange`` there were.
        looks: How many calls of ``nodes``.
        longest_wait_s: The longest time for which a node was allowed to wait for news.
    """

    size: int
    simulation: Simulation
    exchanges: int = 0
    looks: int = 0
    longest_wait_s: float = 0.0
    _nodes: dict[str, ClusterNode] = field(default_factory=dict)
    _ever: int = 0
    _facts: NodeFacts | None = None
    _finding: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def nodes_ever(self) -> int:
        """The number of nodes that there were."""
        return self._ever

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive."""
        self.looks += 1
        while len(self._nodes) < self.size:
            node = ClusterNode(f"{self._ever:08d}", f"node-{self._ever:05d}", 16.0)
            self._nodes[node.id] = node
            self._ever += 1
        return list(self._nodes.values())

    async def refuse_open_head(self) -> None:
        """It has none."""

    def start(self, node: ClusterNode) -> SimulatedNode:
        """Start a server."""
        return SimulatedNode(node, self.simulation)

    async def facts(self, server: SimulatedNode, output: NodeOutput) -> NodeFacts:
        """What a node has in common with the driver: everything."""
        await asyncio.sleep(random.Random(server.node.id).uniform(0.0, self.simulation.join_s))
        async with self._finding:
            if self._facts is None:
                self._facts = await asyncio.to_thread(find_facts, output)
        return self._facts

    async def begin(self, _: SimulatedNode, __: NodeTask) -> None:
        """Begin to work."""

    async def exchange(self, server: SimulatedNode, orders: Orders, wait_s: float) -> NodeReport:
        """Call a node.

        Raises:
            NodeLostError: It is lost.
        """
        self.exchanges += 1
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        if server.is_lost and not orders.is_over:
            self._nodes.pop(server.node.id, None)
            raise NodeLostError("has ended", is_certain=True)
        return await server.exchange(orders, wait_s)

    def kill(self, _: SimulatedNode) -> None:
        """End a server."""


def begun_run(layout: OutputLayout, shards: int) -> BegunRun:
    """A run with so many open shards, whose output is claimed; its state folder is made."""
    layout.state_folder.mkdir()
    supplied = tuple(SuppliedShard(f"part-{number:05d}") for number in range(shards))
    return BegunRun(layout, supplied, {shard.name: 1 for shard in supplied}, ShardCounts())
