"""Transcoder: a pool of codec processes that survives its processes.

Rules: images are handed over several at a time, but nobody waits for a batch to fill, nor for long behind a slow image.
When a process dies, the image that it was working on is tried again alone in a fresh one, for somebody may have killed
it; if that one dies as well, the image is to blame. All others go to whoever is free. A process that can't even start
is our fault, and stops the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from datafetch.errors import ResourceError
from datafetch.model import Body, Failure, FailureKind, Fetched, Outcome
from datafetch.transcode.codec import transcode
from datafetch.transcode.hands import Cause, Hands, Image
from datafetch.transcode.launcher import Launcher
from datafetch.transcode.quarantine import Quarantine
from datafetch.transcode.spec import ImageSpec
from datafetch.transcode.tray import ORDINARY_BYTES
from datafetch.transcode.wire import Codec
from datafetch.transcode.worker import OUT_OF_MEMORY_STATUS, WALL_CLOCK_FACTOR

# A batch costs the parent a message there and a few back, whatever its size (docs/design.md, decision 7).
_MAX_BATCH_IMAGES = 16
_MAX_BATCH_BYTES = ORDINARY_BYTES // 2  # the other half is for what is made of them
# An image that is in hand for one to two of these is slow; what lies behind it goes to another process.
_WATCH_INTERVAL_S = 0.1
_IDLE_DEATH_PAUSE_S = 0.1  # a process that ends though it has nothing in hand may do so again at once

_log = logging.getLogger(__name__)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


class Transcoder:
    """body → Encoded or Failure, in processes of its own, from any number of tasks of one event loop.

    Use it as ``async with Transcoder(spec, processes=8) as transcode: outcome = await transcode(body)``.

    Args:
        spec: What comes out.
        processes: How many; None takes one for each CPU this process may use.
        codec: What to do with a body; a module-level function, for it travels to the processes.
        quarantine: Folder for bodies that ended a process, at most 100 of 256 MiB in all; None keeps none.
    """

    def __init__(
        self,
        spec: ImageSpec | None = None,
        *,
        processes: int | None = None,
        codec: Codec = transcode,
        quarantine: Path | None = None,
    ) -> None:
        self._spec = spec or ImageSpec()
        self._launcher = Launcher(codec, self._spec)
        self._processes = processes or available_cpus()
        self._quarantine = Quarantine(quarantine) if quarantine else None
        self._owed: set[Image] = set()
        self._waiting: deque[Image] = deque()
        self._crew: list[Hands] = []
        self._keepers: set[asyncio.Task[None]] = set()
        self._next_dispatch: asyncio.Handle | None = None
        self._next_watch: asyncio.Handle | None = None
        self._broken: BaseException | None = None

    async def __aenter__(self) -> Self:
        try:
            for _ in range(self._processes):
                hands = Hands(await self._launcher.launch())
                self._crew.append(hands)
                keeper = asyncio.create_task(self._keep(hands))
                self._keepers.add(keeper)
                keeper.add_done_callback(self._end_of_keeper)
        except BaseException:
            await self._close()
            raise
        self._watch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def waiting(self) -> int:
        """Images that no process has yet."""
        return len(self._waiting)

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it as JPEG.

        Args:
            body: What the fetcher brought, or plain bytes. A failure comes straight back.

        Returns:
            ``Encoded`` or ``Failure``; WORKER_CRASHED when this image, alone in a process, ended it.

        Raises:
            ResourceError: No codec process can be started.
        """
        match body:
            case Failure():
                return body
            case Body():
                content = body.content
            case _:
                content = body
        if self._broken is not None:
            raise self._broken
        image = Image(content, asyncio.get_running_loop().create_future())
        self._owed.add(image)
        self._waiting.append(image)
        self._dispatch_soon()
        try:
            return await image.outcome
        finally:
            self._owed.discard(image)

    def _dispatch_soon(self) -> None:
        """Hand out what is waiting when this round of the loop is over, so that what comes in it goes together."""
        if self._next_dispatch is None:
            self._next_dispatch = asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Hand out what is waiting to whoever has room, the least busy first."""
        self._next_dispatch = None
        while self._waiting:
            hands = min((one for one in self._crew if one.has_room), key=lambda one: one.batches, default=None)
            if hands is None:
                return
            if batch := self._take_batch():
                try:
                    hands.give(batch)
                except OSError as error:
                    self._break(ResourceError(f"no memory to hand images to a codec process: {error.strerror}"))

    def _take_batch(self) -> list[Image]:
        """The next images: an even share of what waits, within the bounds."""
        share = -(-len(self._waiting) // len(self._crew))
        batch: list[Image] = []
        batch_bytes = 0
        while self._waiting and len(batch) < min(share, _MAX_BATCH_IMAGES):
            batch_bytes += len(self._waiting[0].body)
            if batch and batch_bytes > _MAX_BATCH_BYTES:
                break
            image = self._waiting.popleft()
            if not image.is_settled:
                batch.append(image)
        return batch

    def _watch(self) -> None:
        """See to it that nobody waits for long behind a slow image."""
        slow = [hands for hands in self._crew if hands.look()]
        if len(slow) < len(self._crew):  # or there is nobody to hand anything to
            for hands in slow:
                self._put_back(hands.hand_on())
        # Where processes share CPUs, each of them takes that much longer for any image.
        interval_s = _WATCH_INTERVAL_S * max(1.0, self._processes / available_cpus())
        self._next_watch = asyncio.get_running_loop().call_later(interval_s, self._watch)

    def _put_back(self, images: Sequence[Image]) -> None:
        """Let images be the next ones, in their order."""
        if images:
            self._waiting.extendleft(reversed(images))
            self._dispatch_soon()

    async def _keep(self, hands: Hands) -> None:
        """Take a process's replies until it ends, replace it, and so on."""
        while True:
            cause = await self._serve(hands)
            self._crew.remove(hands)
            status = await hands.process.status
            if status == -signal.SIGPROF:  # the kernel's, and nobody else's
                cause = Cause.OVERTIME
            wreck = hands.wreck(cause)
            hands.process.close()
            self._put_back(wreck.innocents)
            if not (wreck.culprit or wreck.suspects):
                await asyncio.sleep(_IDLE_DEATH_PAUSE_S)
            hands = Hands(await self._launcher.launch(), wreck.suspects)
            self._crew.append(hands)
            self._dispatch_soon()
            if wreck.culprit is not None:
                await self._convict(wreck.culprit, status)

    async def _serve(self, hands: Hands) -> Cause:
        """Take its replies until it ends, and say why it did, as far as is known."""
        try:
            while True:
                await hands.receive()
                if self._waiting:
                    self._dispatch_soon()
        except (EOFError, ConnectionError):
            return Cause.UNKNOWN
        except ValueError as error:
            _log.warning("a codec process answered nonsense and was ended: %s", error)
            self._launcher.kill(hands.process)
            return Cause.NONSENSE

    async def _convict(self, image: Image, status: int) -> None:
        """Say that an image ended its process, and keep its body for a look."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(image.body).hexdigest())
        kept = await asyncio.to_thread(self._quarantine.keep, image.body, sha256) if self._quarantine else None
        why = self._cause(status)
        # The same image a thousand times, or a web full of poison, is not to flood whoever looks after the run.
        level = logging.WARNING if kept or self._quarantine is None else logging.INFO
        _log.log(level, "an image %s: sha256 %s, %s", why, sha256, f"kept as {kept}" if kept else "not kept")
        image.settle(Failure(FailureKind.WORKER_CRASHED, why, sha256=sha256))

    def _cause(self, status: int) -> str:
        """What a death says of the image."""
        limit_s = self._spec.decode_timeout_s
        if status == -signal.SIGPROF:
            return f"took more than {limit_s:g} s of CPU time"
        if status == -signal.SIGALRM:
            return f"hung for {limit_s * WALL_CLOCK_FACTOR:g} s"
        if status == OUT_OF_MEMORY_STATUS:
            return "took more memory than an image may"
        if status < 0:
            return f"ended its codec process by {signal.Signals(-status).name}"
        return f"ended its codec process with status {status}"

    def _end_of_keeper(self, keeper: asyncio.Task[None]) -> None:
        self._keepers.discard(keeper)
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Let every caller have the error that ended the pool, for no image will be answered any more."""
        self._broken = error
        self._waiting.clear()
        for image in self._owed:
            if not image.is_settled:
                image.outcome.set_exception(error)

    async def _close(self) -> None:
        for handle in (self._next_watch, self._next_dispatch):
            if handle is not None:
                handle.cancel()
        keepers = list(self._keepers)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for hands in self._crew:
            hands.process.close()
        await self._launcher.close()
        for image in self._owed:
            image.outcome.cancel()
