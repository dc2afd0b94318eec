"""A client for ``subprocess_client``: ``fetch_images``, which checks each body at its header and its end."""

from __future__ import annotations

import asyncio

import uvloop

from benchmarks.fetch.subprocess_client import Stopwatch, Tally, Workload, client_main
from datafetch import BodyCheck, Encoding, ImageSpec, fetch_images
from datafetch.model.outcome import OK
from datafetch.process.allocator import collect_garbage_rarely, return_freed_memory


def main() -> None:
    """Fetch the workload under uvloop, with the settings of the command."""
    return_freed_memory()
    collect_garbage_rarely()
    client_main(_fetch_all)


def _fetch_all(workload: Workload) -> Tally:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_iterate(workload))


async def _iterate(workload: Workload) -> Tally:
    stopwatch = Stopwatch(len(workload.urls))
    kept = ImageSpec(encode=Encoding.RECEIVED, check=BodyCheck.HEADER)
    async for image in fetch_images(workload.urls, fetch=workload.policy, image=kept):
        stopwatch.record(image.index, OK if image.failure is None else image.failure.kind.value)
    return stopwatch.tally(len(workload.urls))  # at least; it does not say how many were repeated
