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
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from datafetch.errors import ResourceError
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, Outcome
from datafetch.transcode.codec import transcode
from datafetch.transcode.pool.protocol import Codec
from datafetch.transcode.pool.quarantine import Quarantine
from datafetch.transcode.pool.sandbox import gaps
from datafetch.transcode.pool.shared_buffer import ORDINARY_BYTES
from datafetch.transcode.pool.spawner import UNKNOWN_STATUS, Spawner, signal_name
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS, WALL_CLOCK_FACTOR
from datafetch.transcode.pool.worker_handle import Cause, Image, WorkerHandle
from datafetch.transcode.spec import ImageSpec

# A batch costs the parent a message there and a few back, whatever its size (docs/design.md, decision 7).
_MAX_BATCH_IMAGES = 16
_MAX_BATCH_BYTES = ORDINARY_BYTES // 2  # the other half is for what is made of them
# An image that is in hand for one to two of these is slow; what lies behind it goes to another process.
_WATCH_INTERVAL_S = 0.1
_PAUSE_S = 0.1
_SILENCE_MARGIN_S = 5.0
_MAX_FAILED_GIVES = 3
_JPEG_BYTES_PER_PIXEL = 4  # noise, at the best quality, in three channels
_JPEG_HEAD_BYTES = 1024 * 1024
MAX_BODY_BYTES = 2**32 - 1  # what a request can tell of

_log = logging.getLogger(__name__)
MOST_PROCESSES = 1024
"""Each takes 60 MB, and no machine has more CPUs than that."""


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
        is_shut_in: Whether the processes get neither files nor network (docs/design.md, decision 9). Only a codec of
            one's own that needs them has a reason to say False.
    """

    def __init__(
        self,
        spec: ImageSpec | None = None,
        *,
        processes: int | None = None,
        codec: Codec = transcode,
        quarantine: Path | None = None,
        is_shut_in: bool = True,
    ) -> None:
        self._spec = spec or ImageSpec()
        self._spawner = Spawner(codec, self._spec, is_shut_in=is_shut_in)
        self._is_shut_in = is_shut_in
        self._processes = processes or available_cpus()
        self._quarantine = Quarantine(quarantine) if quarantine else None
        self._owed: set[Image] = set()
        self._waiting: deque[Image] = deque()
        self._workers: list[WorkerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_dispatch: asyncio.Handle | None = None
        self._next_watch: asyncio.Handle | None = None
        self._failed_gives = 0
        self._refusal: BaseException | None = RuntimeError("a Transcoder works inside `async with`")

    async def __aenter__(self) -> Self:
        if self._is_shut_in and (missing := gaps()):
            _log.info("a decoder that is taken over could still reach: %s", "; ".join(missing))
        try:
            for _ in range(self._processes):
                self._start(self._supervise(await self._spawn()))
        except BaseException:
            await self._close()
            raise
        self._refusal = None
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
        """Decode one image and encode it as JPEG, or keep it.

        Args:
            body: What the fetcher brought, or plain bytes. A failure comes straight back.

        Returns:
            ``Encoded`` or ``Failure``; WORKER_CRASHED when this image, alone in a process, ended it.

        Raises:
            ResourceError: No codec process can be started any more.
        """
        match body:
            case Failure():
                return body
            case Body():
                content = body.content
            case _:
                content = body
        if len(content) > MAX_BODY_BYTES:
            return Failure(FailureKind.TOO_LARGE, f"{len(content)} bytes are more than the codec takes")
        if self._refusal is not None:
            raise self._refusal
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
        share = -(-len(self._waiting) // max(1, len(self._workers)))
        while self._waiting:
            worker = min((one for one in self._workers if one.has_room), key=lambda one: one.batches, default=None)
            if worker is None:
                return
            if batch := self._take_batch(share):
                self._give(worker, batch)

    def _take_batch(self, share: int) -> list[Image]:
        """The next images: an even share of what waits, within the bounds."""
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

    def _give(self, worker: WorkerHandle, batch: Sequence[Image]) -> None:
        """Hand a batch to a process; one that can't be handed anything is replaced, for it may have seen to that."""
        try:
            worker.give(batch)
        except OSError as error:
            self._terminate(worker)
            self._put_back(batch)
            self._failed_gives += 1
            if self._failed_gives > _MAX_FAILED_GIVES:  # in a row, so it is this machine that has no memory
                self._break(ResourceError(f"no memory to hand images to a codec process: {error.strerror}"))
        else:
            self._failed_gives = 0

    def _watch(self) -> None:
        """See to it that nobody waits for long behind a slow image, and that no process is silent for ever."""
        slow = [worker for worker in self._workers if worker.look()]
        if len(slow) < len(self._workers):  # or there is nobody to hand anything to
            for worker in slow:
                self._put_back(worker.hand_on())
        if not self._waiting and any(worker.is_idle for worker in self._workers):
            busiest = max(self._workers, key=lambda worker: worker.unbegun)
            if busiest.unbegun:
                self._put_back(busiest.hand_on())
        # The kernel ends a process whose image hangs, unless a decoder's bug has seen to that.
        for worker in self._workers:
            if (
                not worker.is_ended
                and worker.silent_s() > self._spec.decode_timeout_s * WALL_CLOCK_FACTOR + _SILENCE_MARGIN_S
            ):
                self._terminate(worker)
        # Where processes share CPUs, each of them takes that much longer for any image.
        interval_s = _WATCH_INTERVAL_S * max(1.0, self._processes / available_cpus())
        self._next_watch = asyncio.get_running_loop().call_later(interval_s, self._watch)

    def _terminate(self, worker: WorkerHandle) -> None:
        """End a process; its keeper finds what it has left behind."""
        worker.is_ended = True
        self._spawner.kill(worker.process)

    def _put_back(self, images: Sequence[Image]) -> None:
        """Let images be the next ones, in their order."""
        if images:
            self._waiting.extendleft(reversed(images))
            self._dispatch_soon()

    async def _spawn(self, suspects: Sequence[Image] = ()) -> WorkerHandle:
        """Start a process, with images that may end it or for those that wait."""
        most_jpeg_bytes = self._spec.max_pixels * _JPEG_BYTES_PER_PIXEL + _JPEG_HEAD_BYTES
        worker = WorkerHandle(await self._spawner.launch(), most_jpeg_bytes, suspects)
        self._workers.append(worker)
        try:
            worker.begin_isolation_run()
        except OSError:
            self._terminate(worker)  # and its keeper begins once more
        self._dispatch_soon()
        return worker

    async def _supervise(self, worker: WorkerHandle) -> None:
        """Take a process's replies until it ends, replace it, and so on."""
        while True:
            cause = await self._serve(worker)
            self._terminate(worker)  # for it may have closed its channel and live on
            status = await worker.process.status
            if status == -signal.SIGPROF:  # the kernel's, and nobody else's
                cause = Cause.OVERTIME
            if status == UNKNOWN_STATUS and cause is Cause.UNKNOWN:
                cause = Cause.UNSEEN
            crash_report = worker.crash_report(cause)
            self._workers.remove(worker)
            worker.process.close()
            self._put_back(crash_report.requeue)
            if crash_report.culprit is not None:
                self._start(self._blame(crash_report.culprit, self._verdict(status, cause)))
            elif status == -signal.SIGKILL or not crash_report.suspects:
                await asyncio.sleep(_PAUSE_S)  # whatever killed it without a reason of its own may do so again at once
            worker = await self._spawn([image for image in crash_report.suspects if not image.is_settled])

    async def _serve(self, worker: WorkerHandle) -> Cause:
        """Take its replies until it ends, and say why it did, as far as is known."""
        try:
            while True:
                await worker.receive()
                if self._waiting:
                    self._dispatch_soon()
        except (EOFError, OSError):
            return Cause.UNKNOWN
        except ValueError as error:
            _log.warning("a codec process answered nonsense and was ended: %s", error)
            return Cause.NONSENSE

    async def _blame(self, image: Image, why: str) -> None:
        """Say that an image ended its process, and keep its body for a look."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(image.body).hexdigest())
        kept = await asyncio.to_thread(self._quarantine.keep, image.body, sha256) if self._quarantine else None
        # The same image a thousand times, or a web full of poison, is not to flood whoever looks after the run.
        level = logging.WARNING if kept or self._quarantine is None else logging.DEBUG
        _log.log(level, "an image %s: sha256 %s, %s", why, sha256, f"kept as {kept}" if kept else "not kept")
        image.settle(Failure(FailureKind.WORKER_CRASHED, why, sha256=sha256))

    def _verdict(self, status: int, cause: Cause) -> str:
        """What a death says of the image."""
        limit_s = self._spec.decode_timeout_s
        if cause is Cause.NONSENSE:
            return "made its codec process answer nonsense"
        if status == -signal.SIGPROF:
            return f"took more than {limit_s:g} s of CPU time"
        if status == -signal.SIGALRM:
            return f"hung for {limit_s * WALL_CLOCK_FACTOR:g} s"
        if status == OUT_OF_MEMORY_STATUS:
            return "took more memory than an image may"
        if status == UNKNOWN_STATUS:
            return "ended its codec process again and again, for an unknown reason"
        return "ended its codec process " + (f"by {signal_name(-status)}" if status < 0 else f"with status {status}")

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Have something done beside, until the pool is closed; what it raises is the end of the pool."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_of_task)

    def _end_of_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Let every caller have the error that ended the pool, for no image will be answered any more."""
        self._refusal = error
        self._waiting.clear()
        for image in self._owed:
            if not image.is_settled:
                image.outcome.set_exception(error)

    async def _close(self) -> None:
        """End everything; being cancelled meanwhile is for afterwards."""
        self._refusal = RuntimeError("the Transcoder is closed")
        self._waiting.clear()
        for handle in (self._next_watch, self._next_dispatch):
            if handle is not None:
                handle.cancel()
        for image in self._owed:
            image.outcome.cancel()
        ending = asyncio.create_task(self._end())
        is_cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                is_cancelled = True
        ending.result()
        if is_cancelled:
            raise asyncio.CancelledError

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._spawner.close()
        for worker in self._workers:
            worker.process.close()
        self._workers.clear()
