"""Transcoder: a pool of workers (codec processes) that survives the crash of any of them.

Theory of operation. An image waits in ``_queue`` until a worker has room. Dispatch is deferred to the end of the
current round of the event loop, so that images that arrive together travel together, but no image ever waits for a
batch to fill. A batch is an even share of the queue, within bounds. It goes to the worker with the fewest batches.

From then on there are four cases:

* The worker answers, and the caller of the image gets the outcome.
* The worker is slow, that is, still at the same image after a whole interval of ``_watch``. What is behind that image
  is reclaimed and goes back to the head of the queue. The same happens when other workers are idle.
* The worker ends. Its ``CrashReport`` requeues the image, makes it a suspect, or blames it. Suspects go to the worker
  that replaces the ended one, each alone (see worker_handle.py).
* The caller is cancelled. The image is skipped if it is still in the queue, and otherwise its answer is dropped.

Where only headers are looked at (``BodyCheck.HEADER``) there is no pool: that takes microseconds, and is done by the
caller's process, in a thread if the body is large.

One task per worker (``_supervise``) receives its replies and replaces it when it ends. It ends by itself, or because
``_terminate`` killed it: for an invalid reply, for hanging, or because no batch could be given to it. A worker that
can't even start is no image's fault. It fails the whole pool: every pending and every later call raises the error.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
from collections import deque
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from datafetch.errors import ResourceError
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, Outcome
from datafetch.model.untrusted import short_repr
from datafetch.process.child import signal_name
from datafetch.process.cpus import available_cpus
from datafetch.transcode.header import check_header
from datafetch.transcode.pool.protocol import Codec
from datafetch.transcode.pool.quarantine import Quarantine
from datafetch.transcode.pool.sandbox import missing_protections
from datafetch.transcode.pool.shared_buffer import USUAL_BYTES
from datafetch.transcode.pool.spawner import UNKNOWN_STATUS, Spawner
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS, WALL_CLOCK_FACTOR
from datafetch.transcode.pool.worker_handle import Cause, PendingImage, WorkerHandle
from datafetch.transcode.spec import BodyCheck, ImageSpec

# A batch costs the parent one message there and a few back, whatever its size (docs/design.md, decision 7).
_MAX_BATCH_IMAGES = 16
_MAX_BATCH_BYTES = USUAL_BYTES // 2  # the other half is for the JPEGs
# An image that is at work for one to two intervals is slow.
_WATCH_INTERVAL_S = 0.1
_RESTART_PAUSE_S = 0.1
_SILENCE_MARGIN_S = 5.0
_MAX_FAILED_ASSIGNMENTS = 3
_JPEG_BYTES_PER_PIXEL = 4  # noise at the best quality, in three channels
_JPEG_HEADER_BYTES = 1024 * 1024
MAX_BODY_BYTES = 2**32 - 1  # a request stores lengths as u32
# The header of a larger body is looked at in a thread; one of this size takes 12 ms if it was crafted for that, and
# 0.5 ms otherwise, most of which is its hash.
_MAX_BYTES_ON_LOOP = 256 * 1024

_log = logging.getLogger(__name__)
MAX_PROCESSES = 1024
"""More than any machine has CPUs; each process takes 60 MB."""


class Transcoder:
    """body → Encoded or Failure, in processes of its own, for any number of tasks of one event loop.

    It has no processes if the spec demands no more than a look at headers.

    Use it as ``async with Transcoder(spec, processes=8) as transcode: outcome = await transcode(body)``.

    Args:
        spec: What an image becomes.
        processes: How many codec processes; None takes one for each CPU this process may use.
        codec: What to do with a body; a module-level function, because it is sent to the processes. None is
            ``codec.transcode``, which loads Pillow and is imported there alone.
        quarantine: Folder for bodies that crashed a process, at most 100 and 256 MiB in all; None keeps none.
        is_sandboxed: Whether the processes have no access to files and the network (docs/design.md, decision 9). Only
            a custom codec that needs them has a reason to turn this off.
    """

    def __init__(
        self,
        spec: ImageSpec | None = None,
        *,
        processes: int | None = None,
        codec: Codec | None = None,
        quarantine: Path | None = None,
        is_sandboxed: bool = True,
    ) -> None:
        self._spec = spec or ImageSpec()
        self._spawner = Spawner(codec, self._spec, is_sandboxed=is_sandboxed)
        self._is_sandboxed = is_sandboxed
        self._only_checks_headers = codec is None and self._spec.check is BodyCheck.HEADER
        self._processes = processes or available_cpus()
        self._quarantine = Quarantine(quarantine) if quarantine else None
        self._pending: set[PendingImage] = set()
        self._queue: deque[PendingImage] = deque()
        self._workers: list[WorkerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_dispatch: asyncio.Handle | None = None
        self._next_watch: asyncio.Handle | None = None
        self._failed_assignments = 0
        self._unusable: BaseException | None = _not_open()

    async def __aenter__(self) -> Self:
        if self._only_checks_headers:
            self._unusable = None
            return self
        if self._spec.shrinks_fast:
            from datafetch.transcode.image.resize import load_resizer  # noqa: PLC0415 - it loads Pillow

            await asyncio.to_thread(load_resizer, self._spec)
        if self._is_sandboxed and (missing := missing_protections()):
            _log.info("a decoder that a malicious image takes over could still reach: %s", "; ".join(missing))
        try:
            for _ in range(self._processes):
                self._run_in_background(self._supervise(await self._spawn()))
        except BaseException:
            await self._close()
            raise
        self._unusable = None
        self._watch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def queued(self) -> int:
        """How many images no worker has been given yet."""
        return len(self._queue)

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it, or keep it as it is where the spec says so.

        Args:
            body: What the fetcher returned, or plain bytes. A failure is returned unchanged.

        Returns:
            ``Encoded`` or ``Failure``; WORKER_CRASHED if this image, alone in a process, crashed it.

        Raises:
            ResourceError: No codec process can be started any more.
            RuntimeError: The transcoder is not open; the message says what to write.
            TypeError: It is given something else than a body.
        """
        match body:
            case Failure():
                return body
            case Body():
                content = body.content
            case bytes():
                content = body
            case _:
                raise TypeError(f"a Transcoder takes what a Fetcher returned, or bytes, not {short_repr(body)}")
        if len(content) > MAX_BODY_BYTES:
            return Failure(FailureKind.TOO_LARGE, "it has more bytes than the codec takes")
        if self._unusable is not None:
            raise self._unusable
        if self._only_checks_headers:
            if len(content) <= _MAX_BYTES_ON_LOOP:
                return check_header(content, self._spec)
            return await asyncio.to_thread(check_header, content, self._spec)
        image = PendingImage(content, asyncio.get_running_loop().create_future())
        self._pending.add(image)
        self._queue.append(image)
        self._dispatch_soon()
        try:
            return await image.outcome
        finally:
            self._pending.discard(image)

    def _dispatch_soon(self) -> None:
        """Dispatch at the end of this round of the event loop, so that images that arrive in it travel together."""
        if self._next_dispatch is None:
            self._next_dispatch = asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Assign the queue to the workers that have room, those with the fewest batches first."""
        self._next_dispatch = None
        share = -(-len(self._queue) // max(1, len(self._workers)))
        while self._queue:
            available = (worker for worker in self._workers if worker.has_room)
            worker = min(available, key=lambda worker: worker.batches, default=None)
            if worker is None:
                return
            if batch := self._take_batch(share):
                self._assign(worker, batch)

    def _take_batch(self, share: int) -> list[PendingImage]:
        """Take the next images from the queue: at most this share, within the bounds of a batch."""
        batch: list[PendingImage] = []
        batch_bytes = 0
        while self._queue and len(batch) < min(share, _MAX_BATCH_IMAGES):
            batch_bytes += len(self._queue[0].body)
            if batch and batch_bytes > _MAX_BATCH_BYTES:
                break
            image = self._queue.popleft()
            if not image.is_resolved:
                batch.append(image)
        return batch

    def _assign(self, worker: WorkerHandle, batch: Sequence[PendingImage]) -> None:
        """Give a batch to a worker; one that can't take it is replaced, because it may have broken its own buffer."""
        try:
            worker.assign(batch)
        except OSError as error:
            self._terminate(worker)
            self._requeue(batch)
            self._failed_assignments += 1
            if self._failed_assignments > _MAX_FAILED_ASSIGNMENTS:  # in a row, so this machine has no memory left
                self._fail(
                    ResourceError(
                        f"not enough memory to pass images to a codec process: {error.strerror}; free some or reduce "
                        "--processes, and run the same command again"
                    )
                )
        else:
            self._failed_assignments = 0

    def _watch(self) -> None:
        """Move images away from slow workers and towards idle ones, and end workers that hang."""
        slow = [worker for worker in self._workers if worker.check_slow()]
        if len(slow) < len(self._workers):  # otherwise there is no worker to move them to
            for worker in slow:
                self._requeue(worker.reclaim())
        if not self._queue and any(worker.is_idle for worker in self._workers):
            busiest = max(self._workers, key=lambda worker: worker.unstarted)
            if busiest.unstarted:
                self._requeue(busiest.reclaim())
        # The kernel ends a worker whose image hangs, unless a bug in the decoder has disabled the timers.
        for worker in self._workers:
            if (
                not worker.is_terminated
                and worker.silence_s() > self._spec.decode_timeout_s * WALL_CLOCK_FACTOR + _SILENCE_MARGIN_S
            ):
                self._terminate(worker)
        # Where workers share CPUs, each takes proportionally longer for any image.
        interval_s = _WATCH_INTERVAL_S * max(1.0, self._processes / available_cpus())
        self._next_watch = asyncio.get_running_loop().call_later(interval_s, self._watch)

    def _terminate(self, worker: WorkerHandle) -> None:
        """Kill a worker; ``_supervise`` takes care of the images that it leaves behind."""
        worker.is_terminated = True
        self._spawner.kill(worker.process)

    def _requeue(self, images: Sequence[PendingImage]) -> None:
        """Put images at the head of the queue, in their order."""
        if images:
            self._queue.extendleft(reversed(images))
            self._dispatch_soon()

    async def _spawn(self, suspects: Sequence[PendingImage] = ()) -> WorkerHandle:
        """Start a worker, and its isolation run where there are suspects."""
        max_jpeg_bytes = self._spec.max_pixels * _JPEG_BYTES_PER_PIXEL + _JPEG_HEADER_BYTES
        worker = WorkerHandle(await self._spawner.spawn(), max_jpeg_bytes, suspects)
        self._workers.append(worker)
        try:
            worker.start_isolation_run()
        except OSError:
            self._terminate(worker)  # and ``_supervise`` tries again with another
        self._dispatch_soon()
        return worker

    async def _supervise(self, worker: WorkerHandle) -> None:
        """Receive a worker's replies until it ends, then replace it, over and over."""
        while True:
            cause = await self._receive_until_end(worker)
            self._terminate(worker)  # it may have closed its channel and still be running
            status = await worker.process.status
            if status == -signal.SIGPROF:  # only the kernel's timer sends it
                cause = Cause.CPU_LIMIT
            if status == UNKNOWN_STATUS and cause is Cause.UNKNOWN:
                cause = Cause.SERVER_LOST
            crash_report = worker.crash_report(cause)
            self._workers.remove(worker)
            worker.process.close()
            self._requeue(crash_report.requeue)
            if crash_report.culprit is not None:
                self._run_in_background(self._blame(crash_report.culprit, self._crash_detail(status, cause)))
            elif status in (-signal.SIGKILL, UNKNOWN_STATUS) or not crash_report.suspects:
                await asyncio.sleep(_RESTART_PAUSE_S)  # what killed it without cause may do so again at once
            worker = await self._spawn([image for image in crash_report.suspects if not image.is_resolved])

    async def _receive_until_end(self, worker: WorkerHandle) -> Cause:
        """Receive replies until the worker ends or has to be ended, and return why, as far as it is known."""
        try:
            while True:
                await worker.receive()
                if self._queue:
                    self._dispatch_soon()
        except (EOFError, OSError):
            return Cause.UNKNOWN
        except ValueError as error:
            _log.warning("a codec process sent an invalid reply and was killed: %s", error)
            return Cause.INVALID_REPLY

    async def _blame(self, image: PendingImage, detail: str) -> None:
        """Resolve an image as the one that crashed its worker, and keep its body for inspection."""
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(image.body).hexdigest())
        kept = await asyncio.to_thread(self._quarantine.keep, image.body, sha256) if self._quarantine else None
        # Thousands of copies of one image, or of hostile ones, must not flood the log.
        level = logging.WARNING if kept or self._quarantine is None else logging.DEBUG
        _log.log(level, "an image %s: sha256 %s, %s", detail, sha256, f"kept as {kept}" if kept else "not kept")
        image.resolve(Failure(FailureKind.WORKER_CRASHED, detail, sha256=sha256))

    def _crash_detail(self, status: int, cause: Cause) -> str:
        """Describe how an image ended its worker; for the ledger and the log."""
        limit_s = self._spec.decode_timeout_s
        if cause is Cause.INVALID_REPLY:
            return "made its codec process send an invalid reply"
        if status == -signal.SIGPROF:
            return f"took more than {limit_s:g} s of CPU time"
        if status == -signal.SIGALRM:
            return f"hung for {limit_s * WALL_CLOCK_FACTOR:g} s"
        if status == OUT_OF_MEMORY_STATUS:
            return "needed more memory than an image may use"
        if status == UNKNOWN_STATUS:
            return "ended its codec process several times, for an unknown reason"
        return f"crashed its codec process ({signal_name(-status) if status < 0 else f'exit status {status}'})"

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine until the pool is closed; an exception in it fails the pool."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Raise this error in every pending and every later call: no image will be answered any more."""
        self._unusable = error
        self._queue.clear()
        for image in self._pending:
            if not image.is_resolved:
                image.outcome.set_exception(error)

    async def _close(self) -> None:
        """End everything. A cancellation that comes meanwhile is raised only when that is done."""
        self._unusable = _not_open()
        self._queue.clear()
        for handle in (self._next_watch, self._next_dispatch):
            if handle is not None:
                handle.cancel()
        for image in self._pending:
            image.outcome.cancel()
        ending = asyncio.create_task(self._end_workers())
        is_cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                is_cancelled = True
        ending.result()
        if is_cancelled:
            raise asyncio.CancelledError

    async def _end_workers(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._spawner.close()
        for worker in self._workers:
            worker.process.close()
        self._workers.clear()


def _not_open() -> RuntimeError:
    return RuntimeError(
        "a Transcoder works only while it is open; write: async with Transcoder(spec) as transcode: "
        "await transcode(body)"
    )
