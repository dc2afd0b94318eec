"""ImageDecoder: decodes images in the codec processes, with a bounded number of bytes in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from datafetch.model.outcome import Failure, Outcome
from datafetch.verify.findings import SAMPLE_BYTES, Findings, ImageToDecode, Problem

# Enough for the two batches of each process, and as much again that waits while the next rows are read.
MAX_BYTES_PER_PROCESS = 8 * 1024 * 1024


class ImageDecoder:
    """Decodes images concurrently with the task that submits them.

    Args:
        transcode: Decodes one image; a ``Transcoder``.
        findings: Receives the counts and problems.
        group: Owns the tasks.
        processes: The number of codec processes.
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
        self._max_bytes = processes * MAX_BYTES_PER_PROCESS
        self._held_bytes = 0
        self._freed = asyncio.Event()

    async def submit(self, image: ImageToDecode) -> None:
        """Start decoding an image. Waits while too many bytes are in flight; an image of any size may go alone."""
        image_bytes = len(image.body) + SAMPLE_BYTES
        while self._held_bytes and self._held_bytes + image_bytes > self._max_bytes:
            self._freed.clear()
            await self._freed.wait()
        self._held_bytes += image_bytes
        self._group.create_task(self._decode(image, image_bytes))

    async def _decode(self, image: ImageToDecode, image_bytes: int) -> None:
        outcome = await self._transcode(image.body)
        self._findings.images += 1
        if isinstance(outcome, Failure):
            reason = f"{outcome.kind.value}: {outcome.detail}" if outcome.detail else outcome.kind.value
            self._findings.add_problem(Problem(image.location, f"the image can't be decoded ({reason})"))
        elif (said := image.size_px) is not None and said != (found := (outcome.width_px, outcome.height_px)):
            message = f"the image has {found[0]}x{found[1]} pixels, and its row says {said[0]}x{said[1]}"
            self._findings.add_problem(Problem(image.location, message))
        self._held_bytes -= image_bytes
        self._freed.set()
