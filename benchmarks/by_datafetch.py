"""An errand done by datafetch's fetcher, driven as the pipeline drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import uvloop
from errand import Deadline, Errand, Tally, run

from datafetch.engine.pipeline import WORKERS_PER_CONNECTION
from datafetch.fetch import Fetcher, Limiter
from datafetch.model.outcome import OK, Body


def main() -> None:
    """Do the errand under uvloop, as a job would."""
    run(_fetch_all)


def _fetch_all(errand: Errand) -> Tally:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(errand))


async def _drive(errand: Errand) -> Tally:
    async with Fetcher(errand.policy) as fetch:
        stopwatch = Deadline(len(errand.urls))
        urls = iter(enumerate(errand.urls))  # whoever is free takes the next: that is the whole look-ahead
        in_flight = fetch.look_ahead(WORKERS_PER_CONNECTION)
        async with asyncio.TaskGroup() as group:
            for _ in range(fetch.most_connections * WORKERS_PER_CONNECTION):
                group.create_task(_work(fetch, in_flight, urls, stopwatch))
        return stopwatch.tally(fetch.statistics().requests)


async def _work(fetch: Fetcher, in_flight: Limiter, urls: Iterator[tuple[int, str]], stopwatch: Deadline) -> None:
    while True:
        async with in_flight:
            number, url = next(urls, (0, ""))
            if not url:
                return
            fetched = await fetch(url)
            stopwatch.note(number, OK if isinstance(fetched, Body) else fetched.kind.value)
