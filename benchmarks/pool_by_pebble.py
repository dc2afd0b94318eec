"""An errand done by pebble's ProcessPool, with its time limit for each task; a crash fails the task alone."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import BrokenExecutor
from contextlib import asynccontextmanager

from pebble import ProcessExpired, ProcessPool
from pool_errand import PoolErrand, Transcode, run

from datafetch.model.outcome import Failure, FailureKind, Outcome


def main() -> None:
    """Do the errand."""
    run({"pebble": _open})


@asynccontextmanager
async def _open(errand: PoolErrand) -> AsyncIterator[Transcode]:
    pool = ProcessPool(errand.processes, context=multiprocessing.get_context("spawn"))

    async def transcode(body: bytes) -> Outcome:
        task = pool.schedule(errand.codec, args=(body, errand.spec), timeout=errand.spec.decode_timeout_s)
        try:
            return await asyncio.wrap_future(task)
        except (ProcessExpired, BrokenExecutor, TimeoutError) as error:
            return Failure(FailureKind.WORKER_CRASHED, str(error))

    try:
        yield transcode
    finally:
        pool.stop()
        pool.join()
