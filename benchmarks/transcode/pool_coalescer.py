"""Coalescer: hands over images in batches although they are awaited one by one, as datafetch's Transcoder does.

Rules: a batch is an even share of the waiting images, at most 16 images or 4 MiB. No image waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from datafetch.model.outcome import Outcome

BATCHES_IN_HAND = 2
"""How many batches a process has: it works on the second while the parent reads the outcomes of the first."""

MAX_BATCH_BYTES = 4 * 1024 * 1024
_MAX_BATCH_IMAGES = 16

HandOver: TypeAlias = Callable[[Sequence[bytes]], Awaitable[Sequence[Outcome]]]
"""Hands a batch of bodies to a process, and returns their outcomes."""


class Coalescer:
    """Turns one body at a time into its outcome, by way of batches.

    Args:
        processes: For each process, a function that hands it a batch; each may have two at a time.
    """

    def __init__(self, processes: Sequence[HandOver]) -> None:
        self._processes = len(processes)
        self._idle = deque([*processes] * BATCHES_IN_HAND)
        self._waiting: deque[tuple[bytes, asyncio.Future[Outcome]]] = deque()
        self._busy: set[asyncio.Task[None]] = set()

    async def __call__(self, body: bytes) -> Outcome:
        """Wait for one image's outcome."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, outcome))
        self._dispatch()
        return await outcome

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            task = asyncio.create_task(self._hand_over(self._idle.popleft(), self._next_batch()))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)

    def _next_batch(self) -> list[tuple[bytes, asyncio.Future[Outcome]]]:
        share = -(-len(self._waiting) // self._processes)
        batch = [self._waiting.popleft()]
        batch_bytes = len(batch[0][0])
        while self._waiting and len(batch) < min(share, _MAX_BATCH_IMAGES):
            batch_bytes += len(self._waiting[0][0])
            if batch_bytes > MAX_BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _hand_over(self, process: HandOver, batch: Sequence[tuple[bytes, asyncio.Future[Outcome]]]) -> None:
        outcomes = await process([body for body, _ in batch])
        for (_, waiter), outcome in zip(batch, outcomes, strict=True):
            if not waiter.done():  # its task may have been cancelled meanwhile
                waiter.set_result(outcome)
        self._idle.append(process)
        self._dispatch()
