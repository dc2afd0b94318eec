"""Decodes images in the codec's processes, a bounded number of bytes of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from datafetch.model.outcome import Failure, Outcome
from datafetch.verify.findings import SAMPLE_BYTES, Findings, FoundImage, Problem

# Enough for two batches in each process's hands, and as much again that waits while the next rows are read.
PROCESS_BYTES = 8 * 1024 * 1024


class Decoding:
    """Decodes images beside whoever brings them.

    Args:
        transcode: What decodes them; a ``Transcoder``.
        findings: Where they are entered.
        group: Where the tasks live.
        processes: How many processes there are.
    """

    def __init__(
        self,
        transcode: Callable[[bytes], Awaitable[Outcome]],
        findings: Findings,
        group: asyncio.TaskGroup,
        processes: int,
    ) -> None:
        self._transcode = transcode
        self._findings = findings
        self._group = group
        self._most_bytes = processes * PROCESS_BYTES
        self._held_bytes = 0
        self._freed = asyncio.Event()

    async def take(self, image: FoundImage) -> None:
        """Have an image decoded; waits while there are too many, but any image is taken when it is the only one."""
        image_bytes = len(image.body) + SAMPLE_BYTES
        while self._held_bytes and self._held_bytes + image_bytes > self._most_bytes:
            self._freed.clear()
            await self._freed.wait()
        self._held_bytes += image_bytes
        self._group.create_task(self._decode(image, image_bytes))

    async def _decode(self, image: FoundImage, image_bytes: int) -> None:
        outcome = await self._transcode(image.body)
        self._findings.images += 1
        if isinstance(outcome, Failure):
            reason = f"{outcome.kind.value}: {outcome.detail}" if outcome.detail else outcome.kind.value
            self._findings.add_problem(Problem(image.place, f"the image does not decode ({reason})"))
        self._held_bytes -= image_bytes
        self._freed.set()
