"""What do 10,000 shards on 100 and on 1,000 nodes cost the driver of a cluster: CPU a shard, and memory?

The driver is the real one; its nodes are simulated in the same process, and take a fixed time for a shard. So what is
measured is the bookkeeping, the calls and the files that observers read, without Ray and without images. The CPU of the
simulated nodes is included, so the figures are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.meter import MIB
from benchmarks.record import Record, Run, RunKind
from datafetch import Job
from datafetch.engine.cluster.driver import Driver, Patience
from datafetch.engine.cluster.messages import EndKind, NodeEnd, NodeOutput, NodeReport, NodeTask, Orders
from datafetch.engine.cluster.node_facts import NodeFacts, find_facts
from datafetch.engine.cluster.ray_cluster import ClusterNode
from datafetch.engine.cluster.shared_output import FolderOutput
from datafetch.engine.feed import SuppliedShard
from datafetch.engine.share import BegunRun
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics
from datafetch.store.layout import OutputLayout

_AT_ONCE = 2  # shards that a node has in progress
_KIB = 1024
_US_PER_S = 1e6
_DETAILS = ("cpu_us_per_image", "elapsed_s", "linear_percent", "peak_mib")


class _Server:
    """A simulated node: it has two shards in progress, each of which takes a fixed time."""

    def __init__(self, shard_s: float, images: int) -> None:
        self._shard_s = shard_s
        self._images = images
        self._in_progress: deque[tuple[float, str]] = deque()
        self._published = 0
        self._started_s = time.monotonic()

    async def exchange(self, orders: Orders, wait_s: float) -> NodeReport:
        """Take shards, and report once one is published."""
        now_s = time.monotonic()
        self._in_progress.extend((now_s + self._shard_s, shard.name) for shard in orders.shards)
        wanted = _AT_ONCE - len(self._in_progress)
        if orders.is_over and not self._in_progress:
            return self._report(end=NodeEnd(EndKind.DONE))
        if not (wanted and not orders.shards):
            until_s = self._in_progress[0][0] if self._in_progress else now_s + wait_s
            await asyncio.sleep(max(0.0, min(until_s - now_s, wait_s)))
        elif not self._in_progress:
            await asyncio.sleep(0.01 if not self._published else wait_s)
        done = []
        while self._in_progress and self._in_progress[0][0] <= time.monotonic():
            done.append(self._in_progress.popleft()[1])
        self._published += len(done)
        return self._report(published=tuple(done))

    def _report(self, *, published: tuple[str, ...] = (), end: NodeEnd | None = None) -> NodeReport:
        images = self._published * self._images
        totals = ShardCounts(samples=images, rows=images, outcomes={"ok": images})
        statistics = Statistics(
            expected_images=images + self._images,
            ok=images,
            failed=0,
            earlier=0,
            shards=self._published + _AT_ONCE,
            shards_published=self._published,
            fetched_bytes=images * 100_000,
            connections=256,
            open_requests=256,
            elapsed_s=time.monotonic() - self._started_s,
        )
        done = FetchedShards(totals, arrived=images, requests=images)
        wanted = max(0, _AT_ONCE - len(self._in_progress))
        return NodeReport(wanted=wanted, published=published, statistics=statistics, done=done, end=end)


class _Cluster:
    """A cluster of simulated nodes, with the interface of ``RayCluster``."""

    is_checked = False

    def __init__(self, nodes: int, shard_s: float, images: int) -> None:
        self._nodes = [ClusterNode(f"{number:05d}", f"node-{number:05d}", 16.0) for number in range(nodes)]
        self._shard_s = shard_s
        self._images = images
        self._facts: NodeFacts | None = None

    def nodes(self) -> list[ClusterNode]:
        return self._nodes

    async def facts(self, _: _Server, output: NodeOutput) -> NodeFacts:
        if self._facts is None:
            self._facts = find_facts(output)
        return self._facts

    async def begin(self, _: _Server, __: NodeTask) -> None:
        pass

    def start(self, _: ClusterNode) -> _Server:
        return _Server(self._shard_s, self._images)

    async def exchange(self, server: _Server, orders: Orders, wait_s: float) -> NodeReport:
        return await server.exchange(orders, wait_s)

    def kill(self, _: _Server) -> None:
        pass


@contextmanager
def _output() -> Iterator[OutputLayout]:
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        layout = OutputLayout(Path(name) / "out")
        layout.state_folder.mkdir()
        yield layout


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=10_000, help="number of shards")
    parser.add_argument("--images", type=int, default=2_000, help="images of a shard, which only divide the cost")
    parser.add_argument("--shard-s", type=float, default=1.0, help="seconds that a node takes for a shard")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000], help="numbers of nodes")
    arguments = parser.parse_args()
    runs = [_measure(nodes, arguments) for nodes in arguments.nodes]
    Record("cluster_driver", "CPU a shard", "µs", vars(arguments), runs).show(_DETAILS, [])


def _measure(nodes: int, arguments: argparse.Namespace) -> Run:
    shards = tuple(SuppliedShard(f"part-{number:05d}") for number in range(arguments.shards))
    with _output() as layout:
        begun = BegunRun(layout, shards, {shard.name: 1 for shard in shards}, ShardCounts(), None)
        job = Job("coyo", "source", str(layout.out))
        cluster = _Cluster(nodes, arguments.shard_s, arguments.images)

        async def drive() -> FetchedShards:
            return await Driver(job, begun, FolderOutput(layout), Patience()).run(cluster, ())  # type: ignore[arg-type]

        cpu_before_s, before_s = time.process_time(), time.monotonic()
        done = asyncio.run(drive())
        cpu_s, elapsed_s = time.process_time() - cpu_before_s, time.monotonic() - before_s
    assert done.arrived == arguments.shards * arguments.images, "every shard was published once"
    ideal_s = arguments.shards * arguments.shard_s / (nodes * _AT_ONCE)
    return Run(
        f"{nodes:,} nodes",
        RunKind.MEASURED,
        cpu_s * _US_PER_S / arguments.shards,
        {
            "cpu_us_per_image": cpu_s * _US_PER_S / done.arrived,
            "elapsed_s": elapsed_s,
            "linear_percent": 100 * ideal_s / elapsed_s,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / MIB,
        },
    )


if __name__ == "__main__":
    main()
