"""A client for ``subprocess_client``: datafetch's fetcher, driven as the pipeline drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks.fetch.subprocess_client import Stopwatch, Tally, Workload
from benchmarks.fetch.uvloop_client import uvloop_main
from datafetch.engine.sample_tasks import TASKS_PER_CONNECTION
from datafetch.fetch import Fetcher, Limiter
from datafetch.model.outcome import OK, Body


def main() -> None:
    """Fetch the workload."""
    uvloop_main(_drive)


async def _drive(workload: Workload) -> Tally:
    async with Fetcher(workload.policy) as fetch:
        stopwatch = Stopwatch(len(workload.urls))
        urls = iter(enumerate(workload.urls))  # a free task takes the next: that is the whole look-ahead
        in_flight = fetch.call_limiter(TASKS_PER_CONNECTION)
        async with asyncio.TaskGroup() as group:
            for _ in range(fetch.max_connections * TASKS_PER_CONNECTION):
                group.create_task(_work(fetch, in_flight, urls, stopwatch))
        return stopwatch.tally(fetch.statistics().sent_requests)


async def _work(fetch: Fetcher, in_flight: Limiter, urls: Iterator[tuple[int, str]], stopwatch: Stopwatch) -> None:
    while True:
        async with in_flight:
            number, url = next(urls, (0, ""))
            if not url:
                return
            fetched = await fetch(url)
            stopwatch.record(number, OK if isinstance(fetched, Body) else fetched.kind.value)
