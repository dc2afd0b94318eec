"""Do memory, descriptors, tasks and threads level off when the hostile mix goes on and on?

An endless stream of the hostile mix, over ever new hosts, through one fetcher under uvloop. Every few seconds the
process is looked at. At the end each series must be level: in the second half of the time (the first tenth of the whole
is warm-up) it may not go above its highest of the first half by more than a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.claims import lost
from benchmarks.dead_ends import dead_ends
from benchmarks.host_farm import HostFarm
from benchmarks.meter import MIB
from benchmarks.record import Record, Run, RunKind
from benchmarks.url_mix import Bodies, Web, behaviour_of, hostile_mix
from datafetch.engine.pipeline import WORKERS_PER_CONNECTION
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model.outcome import OK, Body

_WARM_UP_SHARE = 0.1
_MAX_GROWTH = 1.1
_SHOWN_SAMPLES = 20
_S_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class _Sample:
    """The process at one moment; the names carry the units."""

    at_s: float
    memory_mib: float
    descriptors: float
    tasks: float
    threads: float
    images_per_s: float
    open_requests: float


_LEVELLED = ("memory_mib", "descriptors", "tasks", "threads")


@dataclass(frozen=True, slots=True)
class _Level:
    """Whether a series levels off.

    Attributes:
        first: The highest of the first half after the warm-up.
        last: The highest of the second half.
        slope_per_h: Of the line through the second half.
    """

    first: float
    last: float
    slope_per_h: float

    @property
    def holds(self) -> bool:
        """The second half goes no higher than the first, or hardly."""
        return self.last <= self.first * _MAX_GROWTH


def main() -> int:
    """Soak, print, keep; 1 when a series goes on growing or an image that can be had did not arrive."""
    arguments = _arguments()
    with HostFarm(tuple(arguments.delay_ms)) as farm, dead_ends(refusing=4, silent=4) as dead:
        web = Web(farm, dead.hosts, arguments.good_hosts, arguments.bad_hosts)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            soak = _Soak(web, arguments)
            samples = runner.run(soak.run())
    levels = {name: _level(samples, name) for name in _LEVELLED}
    series = [asdict(sample) for sample in samples]
    most_mib = max(sample.memory_mib for sample in samples)
    run = Run("soak", RunKind.MEASURED, most_mib, outcomes=dict(soak.outcomes), series=series)
    _show_series(series)
    Record("soak", "most memory", "MiB", vars(arguments), [run]).show(
        remarks=[
            *(_remark(name, level) for name, level in levels.items()),
            f"images that could be had and were not: {lost([run])}",
        ]
    )
    return 0 if all(level.holds for level in levels.values()) and not lost([run]) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--interval-s", type=float, default=2.0, help="between two looks at the process")
    parser.add_argument("--seed", type=int, default=0, help="of the mix")
    parser.add_argument("--connections", type=int, default=0, help="requests open at once; 0 for auto")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="the deadline of an attempt")
    parser.add_argument("--connect-timeout-s", type=float, default=2.0, help="part of it for making the connection")
    parser.add_argument("--good-hosts", type=int, default=1_000_000, help="hosts with the good ones and what is gone")
    parser.add_argument("--bad-hosts", type=int, default=8, help="hosts of each bad behaviour; 0 for ever new ones")
    parser.add_argument(
        "--delay-ms", type=float, nargs=2, default=(50.0, 200.0), help="the server's shortest and longest latency"
    )
    return parser.parse_args()


class _Soak:
    """The workers of a pipeline without end, and a task that samples the process meanwhile."""

    def __init__(self, web: Web, arguments: argparse.Namespace) -> None:
        self.outcomes: Counter[str] = Counter()
        self._urls = hostile_mix(web, Bodies(10_000, 100_000), arguments.seed)
        self._interval_s = arguments.interval_s
        self._until_s = time.perf_counter() + arguments.minutes * 60
        self._policy = FetchPolicy(
            connections=arguments.connections or None,
            timeout_s=arguments.timeout_s,
            connect_timeout_s=arguments.connect_timeout_s,
            allow_net=("127.0.0.0/8",),
        )

    async def run(self) -> list[_Sample]:
        """Fetch until the time is up, and what the process looked like."""
        async with Fetcher(self._policy) as fetch, asyncio.TaskGroup() as group:
            urls = self._until_the_end()
            for _ in range(fetch.max_connections * WORKERS_PER_CONNECTION):
                group.create_task(self._work(fetch, urls))
            return await self._watch(fetch)

    def _until_the_end(self) -> Iterator[str]:
        for url in self._urls:
            if time.perf_counter() >= self._until_s:
                return
            yield url

    async def _work(self, fetch: Fetcher, urls: Iterator[str]) -> None:
        for url in urls:
            fetched = await fetch(url)
            outcome = OK if isinstance(fetched, Body) else fetched.kind.value
            self.outcomes[f"{behaviour_of(url)} {outcome}"] += 1

    async def _watch(self, fetch: Fetcher) -> list[_Sample]:
        process, started_s, samples = psutil.Process(), time.perf_counter(), list[_Sample]()
        ended_before = 0
        while time.perf_counter() < self._until_s:
            await asyncio.sleep(self._interval_s)
            at_s, ended = time.perf_counter() - started_s, self.outcomes.total()
            since_s = at_s - samples[-1].at_s if samples else at_s
            samples.append(
                _Sample(
                    at_s=round(at_s, 1),
                    memory_mib=round(process.memory_info().rss / MIB, 1),
                    descriptors=process.num_fds(),
                    tasks=len(asyncio.all_tasks()),
                    threads=process.num_threads(),
                    images_per_s=round((ended - ended_before) / since_s),
                    open_requests=fetch.statistics().open_requests,
                )
            )
            ended_before = ended
        return samples


def _level(samples: Sequence[_Sample], name: str) -> _Level:
    warm = samples[int(len(samples) * _WARM_UP_SHARE) :]
    middle = len(warm) // 2
    series: list[float] = [getattr(sample, name) for sample in warm]
    line = statistics.linear_regression([sample.at_s for sample in warm[middle:]], series[middle:])
    return _Level(max(series[:middle]), max(series[middle:]), line.slope * _S_PER_HOUR)


def _remark(name: str, level: _Level) -> str:
    return (
        f"{name.replace('_', ' ')}: at most {level.first:g} in the first half, {level.last:g} in the second, "
        f"{level.slope_per_h:+.1f} an hour there ({'level' if level.holds else 'GROWS'})"
    )


def _show_series(series: Sequence[Mapping[str, float]]) -> None:
    shown = series[:: max(1, len(series) // _SHOWN_SAMPLES)]
    table = Table(title=f"{len(shown)} of {len(series)} samples")
    for name in shown[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for sample in shown:
        table.add_row(*(f"{value:,g}" for value in sample.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
