"""How does the number of images a second grow with the number of nodes of a Ray cluster, where no machine is the limit?

The cluster is a real one: a head, and for each node a raylet with processes and ports of its own, all on this machine.
So are the command, its driver, the nodes, and their requests to a server that answers each after a fixed time. A node
can't have more images a second than its connections divided by that time; all nodes together have to take less than
half of the machine, or else it is the limit.

Measured is the steady state: from the moment at which images have arrived on all nodes, as the driver's list of nodes
says, until a share of all images has been requested, when each node still has some. The pace is that of the requests,
which the server counts. In the last case a node with all of its processes is killed in the middle; the pace is that
from then on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.cpu_clock import CpuClock
from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch import RunState, read_status
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.pictures import KINDS, encode, paint
from datafetch.monitor.cluster_snapshot import NodeState, read_cluster
from datafetch.store.layout import OutputLayout

_TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(_TESTS))

from ray_nodes import RayNodes  # noqa: E402 - found through the line above

_HOSTS = 4_999
_PICTURES = 20
_SIDE_PX = 64
_SETTLED_S = 2.0  # after the first images of the last node
_WATCHED_SHARE = 0.8  # of all images, when each node still has enough
_KILLED_SHARE = 0.4
_INTERVAL_S = 0.1
_PERCENT = 100.0
_NAMES = "abcdefghijklmnopqrstuvwxyz"
_DETAILS = ("linear_percent", "cpu_percent", "cpu_ms_per_image", "driver_percent", "requested_again", OTHERS_SHARE)


@dataclass(frozen=True, slots=True)
class _Case:
    """A case: how many nodes there are, and how many of them are killed."""

    nodes: int
    killed: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        name = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        return f"{name}, {self.killed} killed" if self.killed else name


@dataclass(frozen=True, slots=True)
class _Window:
    """What was measured between two moments.

    Attributes:
        pace: Requests a second.
        cpu_s: The CPU time of everything: cluster, driver, nodes and server.
        driver_s: That of the driver's process.
        elapsed_s: How long it was.
        others_percent: The share of the machine's CPU time that other processes took.
    """

    pace: float
    cpu_s: float
    driver_s: float
    elapsed_s: float
    others_percent: float


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    cases = [*map(_Case, arguments.nodes), _Case(max(arguments.nodes), 1)]
    with TemporaryDirectory(prefix="datafetch-benchmark-", dir=arguments.folder) as name:
        folders = (Path(name) / str(number) for number in count())
        pictures = _paint(next(folders))
        runs = [
            _run(case, kind, pictures, next(folders), arguments)
            for kind in kinds(arguments.warm_ups, arguments.runs)
            for case in cases
        ]
    parameters = {**vars(arguments), "folder": None, "nodes": list(arguments.nodes)}
    record = Record("ray_scaling", "pace", "images/s", parameters, runs)
    fewest = cases[0]
    base = record.median(fewest.name) / fewest.nodes
    record.show(
        _DETAILS,
        [
            f"{case.name}: {record.median(case.name) / base / (case.nodes - case.killed):.3f} × linear from "
            f"{fewest.name}"
            for case in cases
        ],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4], help="numbers of nodes")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--connections", type=int, default=16, help="requests that a node has open at once")
    parser.add_argument("--service-s", type=float, default=0.5, help="seconds after which the server answers")
    parser.add_argument("--shard", type=int, default=60, help="images of a shard")
    parser.add_argument("--run-s", type=float, default=45.0, help="how long a run takes, about")
    parser.add_argument("--folder", type=Path, help="where to work, instead of the system's temporary folder")
    return parser.parse_args()


def _paint(folder: Path) -> Path:
    folder.mkdir()
    for number in range(_PICTURES):
        picture = paint((_SIDE_PX, _SIDE_PX), number)
        (folder / f"{number:05d}.jpg").write_bytes(encode(picture, KINDS[0]))
    return folder


def _run(case: _Case, kind: RunKind, pictures: Path, folder: Path, arguments: argparse.Namespace) -> Run:
    delay_ms = 1000 * arguments.service_s
    node_pace = arguments.connections / arguments.service_s
    shards = round(case.nodes * node_pace * arguments.run_s / arguments.shard)
    with (
        HostFarm((delay_ms, delay_ms), pictures=pictures, counts_targets=True) as farm,
        RayNodes() as cluster,
    ):
        cluster.add(*_NAMES[: case.nodes])
        images = shards * arguments.shard
        urls = [
            farm.url(Behaviour.GOOD, host=number % _HOSTS, body=number % _PICTURES, number=number)
            for number in range(images)
        ]
        source = write_coyo_source(folder / "source", urls, files=shards)
        layout = OutputLayout(folder / "root" / "coyo-700m" / "pkl03-split")
        with _command(source, folder / "root", cluster, arguments) as driver:
            _wait(driver, lambda: _is_everybody_at_work(layout, case.nodes))
            time.sleep(_SETTLED_S)
            if case.killed:
                _wait(driver, lambda: farm.requests() >= _KILLED_SHARE * images)
                for name in _NAMES[: case.killed]:
                    cluster.kill(name)
            window = _measure(driver, farm, _WATCHED_SHARE * images)
            if driver.wait():
                raise RuntimeError(f"the command ended with {driver.returncode}")
        repeated = farm.repeated()
    status = read_status(layout.out)
    assert status.state is RunState.COMPLETE
    cores = os.cpu_count() or 1
    at_work = case.nodes - case.killed
    cpu = {
        "cpu_percent": window.cpu_s / window.elapsed_s / cores * _PERCENT,
        "cpu_ms_per_image": window.cpu_s / window.pace / window.elapsed_s * 1000,
    }
    return Run(
        case.name,
        kind,
        window.pace,
        {
            "linear_percent": window.pace / at_work / node_pace * _PERCENT,
            **({} if case.killed else cpu),  # the kernel forgets the time of killed processes
            "driver_percent": window.driver_s / window.elapsed_s * _PERCENT,
            "requested_again": sum(requests - 1 for requests in repeated.values()),
            "window_s": window.elapsed_s,
            OTHERS_SHARE: window.others_percent,
        },
        outcomes={"ok": status.ok, "failed": status.failed},
    )


@contextmanager
def _command(
    source: CoyoSource, root: Path, cluster: RayNodes, arguments: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    words: Sequence[str] = (
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--root", str(root), "--quiet", "--no-reshard"),
        *("--source", str(source.folder), "--ids", str(source.ids), "--allow-net", "127.0.0.0/8"),
        *("--connections", str(arguments.connections), "--processes", "1", "--workers", "1", "--retries", "0"),
        *("--engine", "ray", "--ray-address", cluster.address),
    )
    environment: Mapping[str, str] = {**os.environ, **cluster.environment}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _measure(driver: subprocess.Popen[bytes], farm: HostFarm, until_requests: float) -> _Window:
    """Measure until the server has received some number of requests."""
    clock, driver_s = CpuClock(), _cpu_s(driver)
    requests, started_s = farm.requests(), time.perf_counter()
    while (now := farm.requests()) < until_requests:
        if driver.poll() is not None:
            raise RuntimeError(f"the command ended with {driver.returncode}")
        time.sleep(_INTERVAL_S)
    pace = (now - requests) / (time.perf_counter() - started_s)
    driver_s = _cpu_s(driver) - driver_s
    spent = clock.stop()
    cpu_s = spent.own_s + spent.children_s
    return _Window(pace, cpu_s, driver_s, spent.elapsed_s, spent.others_share * _PERCENT)


def _is_everybody_at_work(layout: OutputLayout, nodes: int) -> bool:
    snapshot = read_cluster(layout)
    working = (
        [] if snapshot is None else [node for node in snapshot.nodes if node.state is NodeState.AT_WORK and node.ok]
    )
    return len(working) == nodes


def _wait(driver: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        if driver.poll() is not None:
            raise RuntimeError(f"the command ended with {driver.returncode}")
        time.sleep(_INTERVAL_S)


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
