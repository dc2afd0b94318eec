"""WorkerHandle: the parent's record of one worker, its batches, and what is left of them when it ends.

Theory of operation. A worker has two shared buffers, so it can process one batch while the replies for the previous one
are read. Of each batch the handle knows four counts, which only grow, except for ``assigned``, which only shrinks::

    answered ≤ started ≤ assigned ≤ all images of the batch      (started may pass assigned by one: see below)

Images before ``answered`` are resolved. Those up to ``started`` were begun by the worker, and the last of them is at
work; the worker itself counts them in the buffer, so the count is exact even after a crash. Those up to ``assigned``
are still this worker's to answer; those behind have been reclaimed for other workers. An image that the worker starts
in the instant of a reclaim is decoded twice, and its first answer counts.

When a worker ends, ``crash_report`` sorts its unanswered images by what ended it:

* It ended for an unknown reason: the image at work is a *suspect*, all others are requeued. It is no more than a
  suspect, because an operator or the kernel's OOM killer may have ended the process.
* The kernel ended it for its CPU time: the image at work is the *culprit*.
* It sent an invalid reply: any of its images may have corrupted it, so all of them are suspects.

Suspects then get an *isolation run*: the worker that replaces the ended one receives them one at a time, before
anything else. A suspect is the culprit if a fresh worker ends on it. If the worker had already finished another
suspect, that one may have left the damage behind, so the suspect is tried again in the next fresh worker. When all
suspects have been answered, the worker is like any other.

Rules: every image that was assigned to a worker is answered by it, reclaimed, or in its crash report. A compromised
worker may send anything; a reply that answers no open request is rejected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from datafetch.model.outcome import Failure, Outcome
from datafetch.transcode.pool.protocol import BatchRequest, decode_reply, encode_request
from datafetch.transcode.pool.spawner import BUFFERS_PER_WORKER, Process

_MAX_UNEXPLAINED_ENDS = 2


@dataclass(slots=True, eq=False)
class PendingImage:
    """An image whose outcome a caller awaits.

    Attributes:
        body: The body as received.
        outcome: Resolved with what became of the image.
        unexplained_ends: How often a worker ended on it, alone, together with the fork server that knew the reason.
    """

    body: bytes = field(repr=False)
    outcome: asyncio.Future[Outcome]
    unexplained_ends: int = 0

    @property
    def is_resolved(self) -> bool:
        """Whether there is an outcome, or the caller's task was cancelled."""
        return self.outcome.done()

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome; the first one counts, because two workers may have had the image."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Cause(Enum):
    """Why a worker ended."""

    UNKNOWN = auto()
    """It crashed or was killed, by the image, by an operator, or by the pool because it hung."""
    CPU_LIMIT = auto()
    """The kernel ended it, because the image at work used up its CPU time."""
    INVALID_REPLY = auto()
    """The pool ended it, because of what it sent."""
    SERVER_LOST = auto()
    """It ended with the fork server, which was killed, perhaps for not responding. It may have ended before."""


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The images that a worker left unanswered when it ended.

    Attributes:
        culprit: The image that ended it, where that is certain.
        suspects: The images that may have ended it; they get an isolation run.
        requeue: All others, in order.
    """

    culprit: PendingImage | None
    suspects: Sequence[PendingImage]
    requeue: Sequence[PendingImage]


@dataclass(slots=True, eq=False)
class _Batch:
    """The images in one shared buffer.

    Attributes:
        buffer: The number of the buffer.
        images: In the order of their bodies.
        assigned: How many of them this worker has to answer; those behind have been reclaimed.
        next_jpeg_start: The offset in the buffer at which the next JPEG begins.
        answered: How many have been answered.
        duplicated: Up to which image finished but unreported ones were given to other workers as well.
    """

    buffer: int
    images: Sequence[PendingImage]
    assigned: int
    next_jpeg_start: int
    answered: int = 0
    duplicated: int = 0


class WorkerHandle:
    """One worker, as the pool sees it.

    Args:
        process: Ready, with no images assigned.
        max_jpeg_bytes: The longest JPEG that an image of the permitted size can become. Bodies that are kept as
            received may be longer.
        suspects: Images that may end the worker. It gets them one at a time, and other images once it has survived
            them.
    """

    def __init__(self, process: Process, max_jpeg_bytes: int, suspects: Sequence[PendingImage] = ()) -> None:
        self.process = process
        self.is_terminated = False
        self._max_jpeg_bytes = max_jpeg_bytes
        self._suspects = deque(suspects)
        self._batches: deque[_Batch] = deque()
        self._finished_batches = 0
        self._last_progress = (-1, 0)  # equals no real progress, so the first batch gets a whole interval
        self._last_reply_s = 0.0
        self._is_slow = False

    @property
    def batches(self) -> int:
        """How many batches it has."""
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """Whether it can be assigned another batch."""
        is_available = not (self.is_terminated or self._is_slow or self._suspects)
        return is_available and len(self._batches) < BUFFERS_PER_WORKER

    @property
    def is_idle(self) -> bool:
        """Whether it would start on a new batch at once."""
        return self.has_room and not self._batches

    @property
    def unstarted(self) -> int:
        """How many of its images could be reclaimed."""
        return sum(max(0, batch.assigned - self._started(batch)) for batch in self._batches)

    def start_isolation_run(self) -> None:
        """Assign it the first of its suspects, if it has any.

        Raises:
            OSError: There is not enough memory.
        """
        if self._suspects:
            self.assign([self._suspects[0]])

    def assign(self, images: Sequence[PendingImage]) -> None:
        """Give it a batch.

        Raises:
            OSError: There is not enough memory, or the worker has made its buffer unusable.
        """
        if not self._batches:
            self._last_reply_s = asyncio.get_running_loop().time()
        in_use = {batch.buffer for batch in self._batches}
        buffer = next(number for number in range(BUFFERS_PER_WORKER) if number not in in_use)
        self.process.buffers[buffer].load([image.body for image in images])
        lengths = [len(image.body) for image in images]
        self._batches.append(_Batch(buffer, images, assigned=len(images), next_jpeg_start=sum(lengths)))
        self.process.send(encode_request(BatchRequest(buffer, lengths)))

    async def receive(self) -> None:
        """Wait for the next reply, and resolve the images that it answers.

        Raises:
            EOFError: The worker ended.
            ConnectionError: The worker ended.
            ValueError: The reply is invalid.
        """
        reply = decode_reply(await self.process.receive())
        batch = self._batches[0] if self._batches else None
        if batch is None or batch.buffer != reply.buffer or batch.answered + len(reply.answers) > len(batch.images):
            raise ValueError("it answers no open request")
        buffer = self.process.buffers[batch.buffer]
        for answer in reply.answers:
            image = batch.images[batch.answered]
            if isinstance(answer, Failure):
                image.resolve(answer)
            else:
                if answer.jpeg_length > max(self._max_jpeg_bytes, len(image.body)):
                    raise ValueError(f"a JPEG of {answer.jpeg_length} bytes")
                image.resolve(answer.with_jpeg(buffer.get(batch.next_jpeg_start, answer.jpeg_length)))
                batch.next_jpeg_start += answer.jpeg_length
            batch.answered += 1
        self._is_slow = False
        self._last_reply_s = asyncio.get_running_loop().time()
        if reply.is_last:
            if batch.answered < batch.assigned:
                raise ValueError("a batch ended before its last image")
            buffer.trim()
            self._batches.popleft()
            self._finished_batches += 1
            self._clear()

    def check_slow(self) -> bool:
        """Return whether it is still at the same image as at the previous check; called at regular intervals."""
        if self._batches:
            previous, self._last_progress = self._last_progress, self._progress()
            self._is_slow = self._last_progress == previous
        return self._is_slow

    def silence_s(self) -> float:
        """Return how long it has had images without sending a reply, in seconds."""
        return asyncio.get_running_loop().time() - self._last_reply_s if self._batches else 0.0

    def reclaim(self) -> list[PendingImage]:
        """Return the images that other workers can process now, instead of waiting for the one at work.

        These are the ones it has not started, which it will skip, and those it has finished but will report only after
        the image at work; the latter it keeps as well, and the first answer counts. A suspect is never reclaimed.
        """
        if self._suspects:
            return []
        return [image for batch in self._batches for image in self._reclaim_from(batch)]

    def crash_report(self, cause: Cause) -> CrashReport:
        """Sort the images that it has left unanswered, once it has ended."""
        unanswered = [image for batch in self._batches for image in batch.images[batch.answered : batch.assigned]]
        at_work = self._at_work()
        if self._suspects:
            # Only a fresh worker proves who is to blame, and only if it had started the image.
            is_certain = at_work is self._suspects[0] and self._finished_batches == 0
            if is_certain and cause is Cause.SERVER_LOST and self._suspects[0].unexplained_ends < _MAX_UNEXPLAINED_ENDS:
                self._suspects[0].unexplained_ends += 1  # bounded, because the image itself may stop the server
                is_certain = False
            return CrashReport(at_work if is_certain else None, list(self._suspects)[is_certain:], [])
        if cause is Cause.INVALID_REPLY:  # an earlier image may have corrupted the process
            return CrashReport(None, unanswered, [])
        requeue = [image for image in unanswered if image is not at_work]
        if cause is Cause.CPU_LIMIT:
            return CrashReport(at_work, [], requeue)
        return CrashReport(None, [at_work] if at_work else [], requeue)

    def _at_work(self) -> PendingImage | None:
        """The image that it is working on; None if there is none, or it has been reclaimed."""
        if not self._batches:
            return None
        batch = self._batches[0]
        number = self.process.buffers[batch.buffer].started - 1
        return batch.images[number] if batch.answered <= number < batch.assigned else None

    def _clear(self) -> None:
        """Clear the current suspect, which has been answered, and assign the next one."""
        if self._suspects:
            self._suspects.popleft()
        self.start_isolation_run()

    def _progress(self) -> tuple[int, int]:
        """A pair that grows with every image started."""
        return self._finished_batches, self.process.buffers[self._batches[0].buffer].started

    def _started(self, batch: _Batch) -> int:
        return max(self.process.buffers[batch.buffer].started, batch.answered)

    def _reclaim_from(self, batch: _Batch) -> Sequence[PendingImage]:
        buffer = self.process.buffers[batch.buffer]
        started = self._started(batch)
        buffer.set_limit(started)
        finished = batch.images[max(batch.answered, batch.duplicated) : max(0, started - 1)]
        batch.duplicated = max(batch.duplicated, started - 1)
        unstarted = batch.images[started : batch.assigned]
        batch.assigned = min(batch.assigned, started)
        return [*finished, *unstarted]
