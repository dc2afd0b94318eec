"""A pool for ``subprocess_pool``: datafetch's own pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.transcode.subprocess_pool import PoolWorkload, Transcode, pool_main
from datafetch.transcode import Transcoder


def main() -> None:
    """Transcode the workload."""
    pool_main({"datafetch": _open})


@asynccontextmanager
async def _open(workload: PoolWorkload) -> AsyncIterator[Transcode]:
    async with Transcoder(workload.spec, processes=workload.processes, codec=workload.codec) as transcode:
        yield transcode
