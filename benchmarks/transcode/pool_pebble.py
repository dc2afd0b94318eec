"""A pool for ``subprocess_pool``: pebble's ProcessPool, with its time limit for each task."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import BrokenExecutor
from contextlib import asynccontextmanager

from pebble import ProcessExpired, ProcessPool

from benchmarks.transcode.subprocess_pool import PoolWorkload, Transcode, pool_main
from datafetch.model.outcome import Failure, FailureKind, Outcome


def main() -> None:
    """Transcode the workload."""
    pool_main({"pebble": _open})


@asynccontextmanager
async def _open(workload: PoolWorkload) -> AsyncIterator[Transcode]:
    pool = ProcessPool(workload.processes, context=multiprocessing.get_context("spawn"))

    async def transcode(body: bytes) -> Outcome:
        task = pool.schedule(workload.codec, args=(body, workload.spec), timeout=workload.spec.decode_timeout_s)
        try:
            return await asyncio.wrap_future(task)
        except (ProcessExpired, BrokenExecutor, TimeoutError) as error:
            return Failure(FailureKind.WORKER_CRASHED, str(error))

    try:
        yield transcode
    finally:
        pool.stop()
        pool.join()
