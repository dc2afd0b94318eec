"""A client for ``subprocess_client``: ``fetch_images``, which checks each body at its header and its end."""

from __future__ import annotations

from benchmarks.fetch.subprocess_client import Stopwatch, Tally, Workload
from benchmarks.fetch.uvloop_client import uvloop_main
from datafetch import BodyCheck, Encoding, ImageSpec, fetch_images
from datafetch.model.outcome import OK


def main() -> None:
    """Iterate over the images of the workload."""
    uvloop_main(_iterate)


async def _iterate(workload: Workload) -> Tally:
    stopwatch = Stopwatch(len(workload.urls))
    kept = ImageSpec(encode=Encoding.RECEIVED, check=BodyCheck.HEADER)
    async for image in fetch_images(workload.urls, fetch=workload.policy, image=kept):
        stopwatch.record(image.index, OK if image.failure is None else image.failure.kind.value)
    return stopwatch.tally(len(workload.urls))  # at least; it does not say how many were repeated
