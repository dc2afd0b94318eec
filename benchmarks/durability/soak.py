"""Do memory, descriptors, tasks and threads level off when the hostile mix never ends?

An endless stream of the hostile mix, on ever new hosts, goes through one fetcher under uvloop, and the process is
sampled every few seconds. At the end each series must be level. The first tenth of the samples is warm-up; in the
second half of the others, a series may exceed its maximum in the first half by a tenth at most.
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

from benchmarks.bad_hosts import lost
from benchmarks.dead_ends import dead_ends
from benchmarks.host_farm import HostFarm
from benchmarks.meter import MIB
from benchmarks.record import Record, Run, RunKind
from benchmarks.url_mix import Bodies, Web, add_options, behaviour_of, hostile_mix, policy_of
from datafetch.engine.sample_tasks import TASKS_PER_CONNECTION
from datafetch.fetch import Fetcher
from datafetch.model.outcome import OK, Body

_WARM_UP_SHARE = 0.1
_MAX_GROWTH = 1.1
_SHOWN_SAMPLES = 20
_S_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class _Sample:
    """The state of the process at one moment; the names carry the units."""

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
        first_max: The maximum of the first half after the warm-up.
        second_max: The maximum of the second half.
        slope_per_h: The slope of the regression line through the second half.
    """

    first_max: float
    second_max: float
    slope_per_h: float

    @property
    def holds(self) -> bool:
        """Whether the second half exceeds the first by no more than is accepted."""
        return self.second_max <= self.first_max * _MAX_GROWTH


def main() -> int:
    """Soak, print and save; return 1 if a series keeps growing, or an image that can be had did not arrive."""
    arguments = _arguments()
    with HostFarm(tuple(arguments.delay_ms)) as farm, dead_ends(refusing=4, silent=4) as dead:
        web = Web(farm, dead.hosts, arguments.good_hosts, arguments.bad_hosts)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            soak = _Soak(web, arguments)
            samples = runner.run(soak.run())
    levels = {name: _level(samples, name) for name in _LEVELLED}
    series = [asdict(sample) for sample in samples]
    peak_mib = max(sample.memory_mib for sample in samples)
    run = Run("soak", RunKind.MEASURED, peak_mib, outcomes=dict(soak.outcomes), series=series)
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
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to fetch")
    parser.add_argument("--interval-s", type=float, default=2.0, help="time between two samples of the process")
    add_options(parser, good_hosts=1_000_000)
    return parser.parse_args()


class _Soak:
    """The workers of a pipeline without end, and a task that samples the process meanwhile."""

    def __init__(self, web: Web, arguments: argparse.Namespace) -> None:
        self.outcomes: Counter[str] = Counter()
        self._urls = hostile_mix(web, Bodies(10_000, 100_000), arguments.seed)
        self._interval_s = arguments.interval_s
        self._until_s = time.perf_counter() + arguments.minutes * 60
        self._policy = policy_of(arguments)

    async def run(self) -> list[_Sample]:
        """Fetch until the time is up, and return the samples of the process."""
        async with Fetcher(self._policy) as fetch, asyncio.TaskGroup() as group:
            urls = self._until_the_end()
            for _ in range(fetch.max_connections * TASKS_PER_CONNECTION):
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
        f"{name.replace('_', ' ')}: at most {level.first_max:g} in the first half, {level.second_max:g} in the second, "
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
