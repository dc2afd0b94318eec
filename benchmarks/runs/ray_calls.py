"""What does a call of the driver to a node cost through Ray: CPU time, bytes? And what does it cost to list the nodes?

The cluster is a real one, with raylets on this machine, in a network of its own, so that all bytes on its loopback
interface are the cluster's; those of an idle cluster are subtracted. The calls are those of ``exchange``, with orders
for one shard and a report as large as a node's; the node answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import Record, Run, RunKind, kinds
from benchmarks.simulated_cluster import report_of
from datafetch.engine.cluster.interface import ClusterNode
from datafetch.engine.cluster.messages import NodeReport, Orders
from datafetch.engine.cluster.ray_cluster import RayCluster, connected
from datafetch.engine.feed import SuppliedShard

_TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(_TESTS))

from ray_nodes import RayNodes  # noqa: E402 - found through the line above

_OWN_NETWORK = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_ORDERS = Orders((SuppliedShard("part-00000-17da4908-939c-46e5-91d0-15f256041956-c000"),))
_US_PER_S = 1e6
_POLL_S = 0.5


class _Node:
    """What runs on a node: it answers at once."""

    def __init__(self, report: NodeReport) -> None:
        self._report = report

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def exchange(self, _: Orders, __: float) -> NodeReport:
        """Report."""
        return self._report


@dataclass(frozen=True, slots=True)
class _Counters:
    """What has been spent up to a moment: seconds of CPU time, and bytes on the loopback interface."""

    at_s: float
    driver_s: float
    node_s: float
    cluster_s: float
    network_bytes: int


@dataclass(frozen=True, slots=True)
class _Parts:
    """The driver's connection, the cluster, and a node with its process."""

    ray: RayCluster
    cluster: RayNodes
    server: Any
    node: psutil.Process

    def counters(self) -> _Counters:
        """Read the counters."""
        network = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        others = [one for one in self.cluster.processes() if one.pid != self.node.pid]
        cluster_s = sum(map(_cpu_s, others))
        return _Counters(time.monotonic(), time.process_time(), _cpu_s(self.node), cluster_s, network)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8], help="numbers of nodes")
    parser.add_argument("--calls", type=int, default=3_000, help="calls of a run")
    parser.add_argument("--listings", type=int, default=300, help="how often the nodes are listed")
    parser.add_argument("--idle-s", type=float, default=10.0, help="for how long the idle cluster is watched")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--here", action="store_true", help="in this network, with the bytes of all others on it")
    arguments = parser.parse_args()
    if not arguments.here:
        raise SystemExit(subprocess.run([*_OWN_NETWORK, *_command(), "--here"], check=False).returncode)
    runs = asyncio.run(_measure_all(arguments))
    parameters = {name: value for name, value in vars(arguments).items() if name != "here"}
    record = Record("ray_calls", "CPU of the driver, a call", "µs", parameters, runs)
    record.show(("node_us", "cluster_us", "bytes", "elapsed_us"), [])


def _command() -> Sequence[str]:
    return (sys.executable, "-m", "benchmarks.runs.ray_calls", *sys.argv[1:])


async def _measure_all(arguments: argparse.Namespace) -> list[Run]:
    with ExitStack() as stack:
        cluster = stack.enter_context(RayNodes())
        os.environ.update(cluster.environment)
        ray = stack.enter_context(connected(cluster.address))
        runs: list[Run] = []
        there = 0
        for nodes in sorted(arguments.nodes):
            cluster.add(*(f"node-{number}" for number in range(there, nodes)))
            there = nodes
            while len(found := ray.nodes()) < nodes:  # noqa: ASYNC110 - nobody says when
                await asyncio.sleep(_POLL_S)
            server = _start(found[0])
            node = psutil.Process(await asyncio.wrap_future(server.pid.remote().future()))
            await _call(ray, server, arguments.calls // 10)
            for kind in kinds(0, arguments.runs):
                suffix = f"{nodes} node{'s' if nodes > 1 else ''}"
                runs += [run async for run in _measure(suffix, kind, _Parts(ray, cluster, server, node), arguments)]
            ray.kill(server)
        return runs


async def _measure(suffix: str, kind: RunKind, parts: _Parts, arguments: argparse.Namespace) -> AsyncIterator[Run]:
    idle_before = parts.counters()
    await asyncio.sleep(arguments.idle_s)
    idle = (idle_before, parts.counters())
    await _call(parts.ray, parts.server, arguments.calls)
    called = parts.counters()
    for _ in range(arguments.listings):
        parts.ray.nodes()
    yield _run(f"exchange, {suffix}", kind, (idle[1], called), idle, arguments.calls)
    yield _run(f"list of nodes, {suffix}", kind, (called, parts.counters()), idle, arguments.listings)


def _start(node: ClusterNode) -> Any:
    import ray  # noqa: PLC0415 - after its environment is set
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(_Node).options(num_cpus=1, scheduling_strategy=strategy).remote(report_of(10, 2_000))


async def _call(ray: RayCluster, server: Any, calls: int) -> None:
    for _ in range(calls):
        await ray.exchange(server, _ORDERS, 1.0)


def _run(
    case: str, kind: RunKind, work: tuple[_Counters, _Counters], idle: tuple[_Counters, _Counters], calls: int
) -> Run:
    """What one call costs beyond what an idle cluster spends in the same time."""
    share = (work[1].at_s - work[0].at_s) / (idle[1].at_s - idle[0].at_s)

    def each(name: str) -> float:
        spent, idly = (getattr(after, name) - getattr(before, name) for before, after in (work, idle))
        return float(spent - share * idly) / calls

    return Run(
        case,
        kind,
        each("driver_s") * _US_PER_S,
        {
            "node_us": each("node_s") * _US_PER_S,
            "cluster_us": each("cluster_s") * _US_PER_S,
            "bytes": each("network_bytes"),
            "elapsed_us": (work[1].at_s - work[0].at_s) / calls * _US_PER_S,
        },
    )


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
