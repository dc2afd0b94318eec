"""Pools for ``subprocess_pool``: the standard library's ProcessPoolExecutor, and loky's, which shares its interface.

Rules: if a process dies, an executor breaks, and everything in flight fails. The executor is then reopened, and what
failed is tried again: three times at most, as most programs do it, or, to find out which image is to blame, one at a
time in a process of its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from loky import get_reusable_executor

from benchmarks.transcode.pool_coalescer import Coalescer
from benchmarks.transcode.subprocess_pool import Codec, PoolWorkload, Transcode, pool_main
from datafetch.model.outcome import Failure, FailureKind, Outcome
from datafetch.transcode import ImageSpec

_TRIES = 3


def main() -> None:
    """Transcode the workload."""
    pool_main(
        {
            "executor": partial(_open, open_executor=_open_standard),
            "executor, retried alone": _open_with_isolation,
            "executor, 16 a task": _open_coalesced,
            "loky": partial(_open, open_executor=_open_loky),
        }
    )


@asynccontextmanager
async def _open(workload: PoolWorkload, open_executor: Callable[[int], Executor]) -> AsyncIterator[Transcode]:
    executor = _Reopening(workload, open_executor, workload.processes)
    try:
        yield partial(executor.transcode, tries=_TRIES)
    finally:
        executor.close()


@asynccontextmanager
async def _open_with_isolation(workload: PoolWorkload) -> AsyncIterator[Transcode]:
    together, alone = _Reopening(workload, _open_standard, workload.processes), _Reopening(workload, _open_standard, 1)
    isolation = asyncio.Lock()

    async def transcode(body: bytes) -> Outcome:
        outcome = await together.transcode(body, tries=1)
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.WORKER_CRASHED:
            async with isolation:
                return await alone.transcode(body, tries=1)
        return outcome

    try:
        yield transcode
    finally:
        together.close()
        alone.close()


@asynccontextmanager
async def _open_coalesced(workload: PoolWorkload) -> AsyncIterator[Transcode]:
    loop = asyncio.get_running_loop()
    transcode_batch = partial(_transcode_batch, workload.codec, workload.spec)
    with _open_standard(workload.processes) as executor:

        async def hand_over(bodies: Sequence[bytes]) -> Sequence[Outcome]:
            return await loop.run_in_executor(executor, transcode_batch, bodies)

        yield Coalescer([hand_over] * workload.processes)


class _Reopening:
    """An executor that is replaced by a new one when it breaks."""

    def __init__(self, workload: PoolWorkload, open_executor: Callable[[int], Executor], processes: int) -> None:
        self._workload = workload
        self._open = partial(open_executor, processes)
        self._executor = self._open()

    async def transcode(self, body: bytes, tries: int) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(tries):
            executor = self._executor
            try:
                return await loop.run_in_executor(executor, self._workload.codec, body, self._workload.spec)
            except BrokenExecutor:
                if executor is self._executor:  # the first task that learns of it
                    self.close()
                    self._executor = self._open()
        return Failure(FailureKind.WORKER_CRASHED, "the executor broke")

    def close(self) -> None:
        self._executor.shutdown()


def _open_standard(processes: int) -> Executor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


def _open_loky(processes: int) -> Executor:
    executor: Executor = get_reusable_executor(max_workers=processes, timeout=None)
    return executor


def _transcode_batch(codec: Codec, spec: ImageSpec, bodies: Sequence[bytes]) -> Sequence[Outcome]:
    return [codec(body, spec) for body in bodies]
