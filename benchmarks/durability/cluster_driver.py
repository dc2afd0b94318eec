"""What do 10,000 shards on 10, 100 and 1,000 nodes cost the driver of a cluster: CPU a shard and an exchange, memory?

The driver is the real one; its nodes are simulated in the same process (``simulated_cluster.py``), and take a fixed
time for a shard. So what is measured is the bookkeeping, the calls and the files that observers read, without Ray and
without images. The CPU of the simulated nodes is included, so the figures are upper bounds. In the last case nodes are
lost after a few shards, and others join in their place, as on machines that are lent. Each case has a process of its
own, and its memory is compared after a tenth of the shards and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import psutil

from benchmarks.meter import MIB
from benchmarks.record import Record, Run, RunKind
from benchmarks.simulated_cluster import AT_ONCE, SimulatedCluster, Simulation, begun_run
from datafetch import Job
from datafetch.engine.cluster.driver import Driver, Timeouts
from datafetch.engine.cluster.shared_output import FolderOutput
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics
from datafetch.store.layout import OutputLayout

_US_PER_S = 1e6
_KIB = 1024
_FIRST_SHARE = 0.1  # of the shards, after which memory is looked at first
_INTERVAL_S = 0.1
_DETAILS = ("us_per_exchange", "exchanges", "nodes_ever", "elapsed_s", "linear_percent", "peak_mib", "grown_mib")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=10_000, help="number of shards")
    parser.add_argument("--shard-s", type=float, default=1.0, help="seconds that a node takes for a shard")
    parser.add_argument("--join-s", type=float, default=5.0, help="seconds that a node takes to start, at most")
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1_000], help="numbers of nodes")
    parser.add_argument("--lives-shards", type=int, default=5, help="shards until a node is lost, in the last case")
    parser.add_argument("--case", nargs=2, type=int, metavar=("NODES", "LIVES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        nodes, lives = arguments.case
        sys.stdout.write(orjson.dumps(asdict(_measure(nodes, lives, arguments))).decode())
        return
    cases = [
        *((nodes, 0) for nodes in arguments.nodes),
        (arguments.nodes[len(arguments.nodes) // 2], arguments.lives_shards),
    ]
    runs = [_run_alone(nodes, lives, arguments) for nodes, lives in cases]
    parameters = {name: value for name, value in vars(arguments).items() if name != "case"}
    Record("cluster_driver", "CPU a shard", "µs", parameters, runs).show(_DETAILS)


def _run_alone(nodes: int, lives: int, arguments: argparse.Namespace) -> Run:
    options = {"--shards": arguments.shards, "--shard-s": arguments.shard_s, "--join-s": arguments.join_s}
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "benchmarks.durability.cluster_driver", *words, "--case", str(nodes), str(lives)]
    read = orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Run(**{**read, "kind": RunKind(read["kind"])})


def _measure(nodes: int, lives: int, arguments: argparse.Namespace) -> Run:
    memory_mib: dict[int, float] = {}

    async def watch(take: Callable[[], Statistics]) -> None:
        while True:
            memory_mib[take().shards_published] = psutil.Process().memory_info().rss / MIB
            await asyncio.sleep(_INTERVAL_S)

    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        layout = OutputLayout(Path(name) / "out")
        begun = begun_run(layout, arguments.shards)
        job = Job("coyo", "source", str(layout.out))
        simulation = Simulation(arguments.shard_s, join_s=arguments.join_s, lives_shards=lives or None)
        cluster = SimulatedCluster(nodes, simulation)

        async def drive() -> FetchedShards:
            driver = Driver(job, begun, FolderOutput(layout), Timeouts(first_retry_s=_INTERVAL_S))
            return await driver.run(cluster, [watch])

        cpu_before_s, before_s = time.process_time(), time.monotonic()
        done = asyncio.run(drive())
        cpu_s, elapsed_s = time.process_time() - cpu_before_s, time.monotonic() - before_s
    assert lives or done.arrived == arguments.shards, "every shard was published once"
    early_mib = next(mib for shards, mib in sorted(memory_mib.items()) if shards >= arguments.shards * _FIRST_SHARE)
    return Run(
        f"{nodes:,} nodes" + (f", of {lives} shards each" if lives else ""),
        RunKind.MEASURED,
        cpu_s * _US_PER_S / arguments.shards,
        {
            "us_per_exchange": cpu_s * _US_PER_S / cluster.exchanges,
            "exchanges": cluster.exchanges,
            "nodes_ever": cluster.nodes_ever,
            "elapsed_s": elapsed_s,
            "linear_percent": 100 * arguments.shards * arguments.shard_s / (nodes * AT_ONCE) / elapsed_s,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / MIB,
            "grown_mib": memory_mib[max(memory_mib)] - early_mib,
        },
    )


if __name__ == "__main__":
    main()
