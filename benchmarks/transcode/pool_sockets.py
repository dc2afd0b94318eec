"""Pools for ``subprocess_pool``: batches over a socket pair to each process, and no recovery from a crash.

In one variant, bodies and JPEGs go through the sockets. In the other, they are copied into shared memory, and only
their lengths go through the sockets. Nothing else differs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from benchmarks.transcode.pool_coalescer import BATCHES_IN_HAND, Coalescer
from benchmarks.transcode.pool_sockets_worker import SLOT_BYTES, U32, Slots
from benchmarks.transcode.subprocess_pool import PoolWorkload, Transcode, pool_main
from datafetch.model.outcome import Encoded, Outcome
from datafetch.process.child import child_command

_BUFFER_BYTES = 1024 * 1024  # for replies; with the usual 64 KiB, the reader would pause several times a JPEG


def main() -> None:
    """Transcode the workload."""
    pool_main(
        {"minimal, sockets": partial(_open, is_shared=False), "minimal, shared memory": partial(_open, is_shared=True)}
    )


@asynccontextmanager
async def _open(workload: PoolWorkload, *, is_shared: bool) -> AsyncIterator[Transcode]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_start(workload, is_shared)) for _ in range(workload.processes)]
        yield Coalescer([worker.hand_over for worker in workers])


class _Worker:
    """One process, which answers its batches in the order in which it received them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slots: Slots | None) -> None:
        self._reader = reader
        self._writer = writer
        self._slots = slots
        self._waiters: deque[asyncio.Future[Sequence[Outcome]]] = deque()

    async def hand_over(self, bodies: Sequence[bytes]) -> Sequence[Outcome]:
        head = pickle.dumps([len(body) for body in bodies])
        if self._slots:
            self._slots.write(bodies)
            bodies = ()
        self._writer.writelines([U32.pack(len(head)), head, *bodies])
        waiter: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter

    async def read_replies(self) -> None:
        while True:
            (length,) = U32.unpack(await self._reader.readexactly(U32.size))
            outcomes, lengths = pickle.loads(await self._reader.readexactly(length))
            if self._slots:
                jpegs = iter(self._slots.read(lengths))
            else:
                jpegs = iter([await self._reader.readexactly(length) for length in lengths])
            self._waiters.popleft().set_result(
                [
                    replace(outcome, jpeg=next(jpegs)) if isinstance(outcome, Encoded) else outcome
                    for outcome in outcomes
                ]
            )


@asynccontextmanager
async def _start(workload: PoolWorkload, is_shared: bool) -> AsyncIterator[_Worker]:
    memory = os.memfd_create("bodies")
    os.ftruncate(memory, SLOT_BYTES * BATCHES_IN_HAND)
    parent_end, child_end = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=parent_end, limit=_BUFFER_BYTES)
    with child_end:
        command = [*child_command("benchmarks.transcode.pool_sockets_worker"), str(memory if is_shared else -1)]
        process = await asyncio.create_subprocess_exec(*command, stdin=child_end.fileno(), pass_fds=(memory,))
    startup = pickle.dumps((workload.codec, workload.spec))
    writer.writelines([U32.pack(len(startup)), startup])
    worker = _Worker(reader, writer, Slots(mmap.mmap(memory, 0)) if is_shared else None)
    replies = asyncio.create_task(worker.read_replies())
    try:
        yield worker
    finally:
        replies.cancel()
        writer.transport.abort()
        await process.wait()
        os.close(memory)
