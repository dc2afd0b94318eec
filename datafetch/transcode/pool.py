"""Transcoder: a pool of codec processes that survives its workers.

Rules: images are handed over several at a time, but nobody waits for a batch to fill. When a worker dies, each image
that it had in hand is tried again alone, for somebody may have killed it; one that is alone when a worker dies again is
to blame. A worker that can't even start is our fault, and stops the run.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Self

from datafetch.child import child_command
from datafetch.errors import ResourceError
from datafetch.model import Body, Failure, FailureKind, Fetched, Outcome
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import ImageSpec
from datafetch.transcode.worker import U32, Codec, decode_reply, encode_frame

# Handing over one by one costs the parent 180-250 us an image, 16 together 50-75 us (docs/design.md, decision 7).
_MAX_BATCH_IMAGES = 16
_MAX_BATCH_BYTES = 4 * 1024 * 1024
# Two batches a worker: it goes on with the second while the parent reads the first one's reply.
_BATCHES_IN_HAND = 2


@dataclass(slots=True, eq=False)
class _Image:
    """One image on its way through the pool."""

    body: bytes
    outcome: asyncio.Future[Outcome]
    suspect: bool = False


@dataclass(slots=True, eq=False)
class _Worker:
    """One codec process, with the batches it has not answered yet, oldest first."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    in_hand: deque[list[_Image]] = field(default_factory=deque)

    @property
    def images(self) -> Iterator[_Image]:
        """The images it has not answered for."""
        return chain.from_iterable(self.in_hand)

    @property
    def has_suspect(self) -> bool:
        """Whether it works on an image that may kill it, and must get no other."""
        return any(image.suspect for image in self.images)


class Transcoder:
    """body → Encoded or Failure, in processes of its own, from any number of tasks of one event loop.

    Use it as ``async with Transcoder(spec, processes=8) as transcode: outcome = await transcode(body)``.

    Args:
        spec: What comes out.
        processes: How many; None takes one for each CPU this process may use.
        codec: What to do with a body; a module-level function, for it travels to the processes.
    """

    def __init__(
        self, spec: ImageSpec | None = None, *, processes: int | None = None, codec: Codec = transcode
    ) -> None:
        self._orders = pickle.dumps((codec, spec or ImageSpec()))
        self._processes = processes or len(os.sched_getaffinity(0))
        self._waiting: deque[_Image] = deque()
        self._workers: list[_Worker] = []
        self._keepers: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._processes):
                    group.create_task(self._add_worker())
        except BaseExceptionGroup as errors:
            await self._close()
            raise errors.exceptions[0] from errors
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def waiting(self) -> int:
        """Images that no worker has yet."""
        return len(self._waiting)

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it as JPEG.

        Args:
            body: What the fetcher brought, or plain bytes. A failure comes straight back.

        Returns:
            ``Encoded`` or ``Failure``; WORKER_CRASHED when this image, alone in a worker, killed it.

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
        image = _Image(content, asyncio.get_running_loop().create_future())
        self._waiting.append(image)
        self._dispatch()
        return await image.outcome

    def _dispatch(self) -> None:
        """Hand out what is waiting to whoever has room, the least busy first."""
        while self._waiting:
            worker = min(self._workers, key=lambda candidate: len(candidate.in_hand), default=None)
            if worker is None or len(worker.in_hand) >= _BATCHES_IN_HAND:
                return
            if self._waiting[0].suspect or worker.has_suspect:
                worker = next((candidate for candidate in self._workers if not candidate.in_hand), None)
                if worker is None:
                    return
            if batch := self._take_batch():
                worker.in_hand.append(batch)
                worker.writer.writelines(encode_frame([image.body for image in batch]))

    def _take_batch(self) -> list[_Image]:
        """The next images: an even share of what waits, within the bounds; a suspect goes alone."""
        share = -(-len(self._waiting) // len(self._workers))
        batch: list[_Image] = []
        batch_bytes = 0
        while self._waiting and len(batch) < min(share, _MAX_BATCH_IMAGES):
            image = self._waiting[0]
            too_much = batch_bytes + len(image.body) > _MAX_BATCH_BYTES
            if batch and (too_much or image.suspect or batch[0].suspect):
                break
            self._waiting.popleft()
            if not image.outcome.done():  # its task was cancelled while it waited
                batch.append(image)
                batch_bytes += len(image.body)
        return batch

    async def _add_worker(self) -> None:
        worker = await _start(self._orders)
        self._workers.append(worker)
        keeper = asyncio.create_task(self._keep(worker))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._end_of_keeper)
        if self._closing:
            worker.writer.transport.abort()

    async def _keep(self, worker: _Worker) -> None:
        """Take a worker's replies until it ends, then replace it."""
        with suppress(EOFError, ConnectionError):
            while True:
                parts = await _read_frame(worker.reader)
                for image, outcome in zip(worker.in_hand.popleft(), decode_reply(parts), strict=True):
                    _settle(image, outcome)
                self._dispatch()
        self._workers.remove(worker)
        status = await _stop(worker)
        if self._closing:
            for image in worker.images:
                image.outcome.cancel()
        else:
            self._put_back(worker, status)
            await self._replace()

    def _put_back(self, worker: _Worker, status: int) -> None:
        """Convict a suspect whose worker died again, or line up a dead worker's images as suspects."""
        for image in reversed([image for image in worker.images if not image.outcome.done()]):
            if image.suspect:
                _settle(image, Failure(FailureKind.WORKER_CRASHED, f"the codec process ended with status {status}"))
            else:
                image.suspect = True
                self._waiting.appendleft(image)

    async def _replace(self) -> None:
        try:
            await self._add_worker()
        except ResourceError as error:
            self._break(error)
        else:
            self._dispatch()

    def _end_of_keeper(self, keeper: asyncio.Task[None]) -> None:
        self._keepers.discard(keeper)
        if not keeper.cancelled() and (bug := keeper.exception()) is not None:
            self._break(bug)

    def _break(self, error: BaseException) -> None:
        """Let every caller have the error that ended the pool, for no image will be answered any more."""
        self._broken = error
        for image in chain(self._waiting, *(worker.images for worker in self._workers)):
            if not image.outcome.done():
                image.outcome.set_exception(error)
        self._waiting.clear()

    async def _close(self) -> None:
        self._closing = True
        for worker in self._workers:
            worker.writer.transport.abort()
        while self._keepers:
            await asyncio.gather(*self._keepers)
        for image in self._waiting:
            image.outcome.cancel()


def _settle(image: _Image, outcome: Outcome) -> None:
    if not image.outcome.done():  # its task may have been cancelled meanwhile
        image.outcome.set_result(outcome)


async def _start(orders: bytes) -> _Worker:
    """Start a codec process and wait until it is ready.

    Raises:
        ResourceError: It ended before that.
    """
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        with theirs:
            # A session of its own: Ctrl-C at the terminal is for the parent alone, even while the child starts.
            process = await asyncio.create_subprocess_exec(
                *child_command("datafetch.transcode.worker"),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
    except BaseException as error:
        writer.transport.abort()
        if isinstance(error, OSError):
            raise ResourceError(f"cannot start a codec process: {error.strerror}") from error
        raise
    worker = _Worker(process, reader, writer)
    try:
        writer.writelines(encode_frame([orders]))
        await _read_frame(reader)
    except BaseException as error:
        status = await _stop(worker)
        if isinstance(error, EOFError | ConnectionError):
            raise ResourceError(
                f"a codec process ended with status {status} before its first image; "
                "check that this Python can import PIL.Image and that there is memory for it"
            ) from error
        raise
    return worker


async def _stop(worker: _Worker) -> int:
    """End a worker, whatever it is doing, and return its exit status; nobody waits for its answers any more."""
    worker.writer.transport.abort()
    with suppress(ProcessLookupError):
        worker.process.kill()
    return await worker.process.wait()


async def _read_frame(reader: asyncio.StreamReader) -> list[bytes]:
    """The parts of the next frame.

    Raises:
        EOFError: The worker ended.
    """
    (count,) = U32.unpack(await reader.readexactly(U32.size))
    parts = []
    for _ in range(count):
        (length,) = U32.unpack(await reader.readexactly(U32.size))
        parts.append(await reader.readexactly(length))
    return parts
