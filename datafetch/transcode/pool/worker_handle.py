"""What is in whose hands: the batches that one codec process works on.

Rules: every image that was given to a process is answered by it, handed on to another, or found in its wreck. A process
that strangers' data overwhelmed may say anything; what doesn't answer a question is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from datafetch.model.outcome import Failure, Outcome
from datafetch.transcode.pool.protocol import Request, decode_reply, encode_request
from datafetch.transcode.pool.spawner import TRAYS, Process

_MOST_SPARED = 2


@dataclass(slots=True, eq=False)
class Image:
    """One image on its way through the pool.

    Attributes:
        body: As it was received.
        outcome: What became of it, for whoever waits.
        spared: How often it was not blamed for a death that nobody has seen.
    """

    body: bytes
    outcome: asyncio.Future[Outcome]
    spared: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for it any more; its task may have been cancelled."""
        return self.outcome.done()

    def settle(self, outcome: Outcome) -> None:
        """Say what became of it; the first word counts, for two processes may have had it."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Cause(Enum):
    """What ended a process."""

    UNKNOWN = auto()
    """It, or somebody else; or we, for it hung."""
    OVERTIME = auto()
    """Nobody but the image at work: it used up its CPU time."""
    NONSENSE = auto()
    """We did, for what it sent."""
    UNSEEN = auto()
    """It ended with the fork server, which was killed for its silence; perhaps before, of something else."""


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The images that a process has left unanswered.

    Attributes:
        culprit: The one that ended it, where that is certain.
        suspects: Those that may have.
        innocents: The others, in order.
    """

    culprit: Image | None
    suspects: Sequence[Image]
    requeue: Sequence[Image]


@dataclass(slots=True, eq=False)
class _Batch:
    """Images in one tray.

    Attributes:
        buffer: Its number.
        images: In the order of their bodies.
        kept: How many of them are this process's to answer; those behind were handed on.
        jpegs_end: Where in the tray the next JPEG begins.
        answered: How many images have been.
        lent: How many of those that are done, but not told of yet, were given to others as well.
    """

    buffer: int
    images: Sequence[Image]
    kept: int
    jpegs_end: int
    answered: int = 0
    lent: int = 0


class WorkerHandle:
    """One codec process, and what it has in hand.

    Args:
        process: Ready, and with nothing in hand yet.
        most_jpeg_bytes: No JPEG of an image of the permitted size is longer, unless its body is and was kept.
        suspects: Images that may end it. It gets them one at a time, and others when it has survived them.
    """

    def __init__(self, process: Process, most_jpeg_bytes: int, suspects: Sequence[Image] = ()) -> None:
        self.process = process
        self.is_ended = False
        self._most_jpeg_bytes = most_jpeg_bytes
        self._suspects = deque(suspects)
        self._batches: deque[_Batch] = deque()
        self._ended_batches = 0
        self._progress_seen = (-1, 0)  # nothing yet, so that a first batch has its time as any other
        self._heard_s = 0.0
        self._is_slow = False

    @property
    def batches(self) -> int:
        """How many it has in hand."""
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """Whether it may be given another batch."""
        return not (self.is_ended or self._is_slow or self._suspects) and len(self._batches) < TRAYS

    @property
    def is_idle(self) -> bool:
        """Whether it could work on something at once."""
        return self.has_room and not self._batches

    @property
    def unbegun(self) -> int:
        """Images that it might hand on."""
        return sum(max(0, batch.kept - self._begun(batch)) for batch in self._batches)

    def begin_isolation_run(self) -> None:
        """Hand it the first of its suspects, if it has any.

        Raises:
            OSError: There is no memory for it.
        """
        if self._suspects:
            self.give([self._suspects[0]])

    def give(self, images: Sequence[Image]) -> None:
        """Hand it a batch.

        Raises:
            OSError: There is no memory for it, or the process has made its tray useless.
        """
        if not self._batches:
            self._heard_s = asyncio.get_running_loop().time()
        busy = {batch.buffer for batch in self._batches}
        buffer = next(number for number in range(TRAYS) if number not in busy)
        self.process.buffers[buffer].load([image.body for image in images])
        lengths = [len(image.body) for image in images]
        self._batches.append(_Batch(buffer, images, kept=len(images), jpegs_end=sum(lengths)))
        self.process.send(encode_request(Request(buffer, lengths)))

    async def receive(self) -> None:
        """Wait for its next reply, and settle the images that it answers.

        Raises:
            EOFError: It ended.
            ConnectionError: It ended.
            ValueError: It sends nonsense.
        """
        reply = decode_reply(await self.process.receive())
        batch = self._batches[0] if self._batches else None
        if batch is None or batch.buffer != reply.buffer or batch.answered + len(reply.answers) > len(batch.images):
            raise ValueError("an answer to nothing")
        buffer = self.process.buffers[batch.buffer]
        for answer in reply.answers:
            image = batch.images[batch.answered]
            if isinstance(answer, Failure):
                image.settle(answer)
            else:
                if answer.jpeg_length > max(self._most_jpeg_bytes, len(image.body)):
                    raise ValueError(f"a JPEG of {answer.jpeg_length} bytes")
                image.settle(answer.with_jpeg(buffer.get(batch.jpegs_end, answer.jpeg_length)))
                batch.jpegs_end += answer.jpeg_length
            batch.answered += 1
        self._is_slow = False
        self._heard_s = asyncio.get_running_loop().time()
        if reply.is_last:
            if batch.answered < batch.kept:
                raise ValueError("a batch ended before its last image")
            buffer.trim()
            self._batches.popleft()
            self._ended_batches += 1
            self._clear()

    def look(self) -> bool:
        """Called at intervals: whether it is slow, still at the image that it was at when somebody last looked."""
        if self._batches:
            progress_before, self._progress_seen = self._progress_seen, self._progress()
            self._is_slow = self._progress_seen == progress_before
        return self._is_slow

    def silent_s(self) -> float:
        """For how long it has had images in hand and said nothing."""
        return asyncio.get_running_loop().time() - self._heard_s if self._batches else 0.0

    def hand_on(self) -> list[Image]:
        """Take from it what it has not begun, and lend what it has done and will not tell of before the image at work.

        Both sides write to the tray without a lock, so it may begin one image that is handed on this very instant; then
        two processes have it, and the first answer counts. A suspect is never handed on.
        """
        if self._suspects:
            return []
        return [image for batch in self._batches for image in self._cut(batch)]

    def crash_report(self, cause: Cause) -> CrashReport:
        """What it has left behind, once it has ended."""
        unanswered = [image for batch in self._batches for image in batch.images[batch.answered : batch.kept]]
        at_work = self._at_work()
        if self._suspects:
            # Only a process that had nothing before says who is to blame, and only if it had begun.
            is_certain = at_work is self._suspects[0] and self._ended_batches == 0
            if is_certain and cause is Cause.UNSEEN and self._suspects[0].spared < _MOST_SPARED:
                self._suspects[0].spared += 1  # but not for ever, for it may itself be what silences the server
                is_certain = False
            return CrashReport(at_work if is_certain else None, list(self._suspects)[is_certain:], [])
        if cause is Cause.NONSENSE:  # which it may have sent a while ago
            return CrashReport(None, unanswered, [])
        requeue = [image for image in unanswered if image is not at_work]
        if cause is Cause.OVERTIME:
            return CrashReport(at_work, [], requeue)
        return CrashReport(None, [at_work] if at_work else [], requeue)

    def _at_work(self) -> Image | None:
        """The image that it is working on, as far as that is its to answer."""
        if not self._batches:
            return None
        batch = self._batches[0]
        number = self.process.buffers[batch.buffer].begun - 1
        return batch.images[number] if batch.answered <= number < batch.kept else None

    def _clear(self) -> None:
        """Go on to the next suspect, now that this one has been answered."""
        if self._suspects:
            self._suspects.popleft()
        self.begin_isolation_run()

    def _progress(self) -> tuple[int, int]:
        """Grows with every image begun."""
        return self._ended_batches, self.process.buffers[self._batches[0].buffer].begun

    def _begun(self, batch: _Batch) -> int:
        return max(self.process.buffers[batch.buffer].begun, batch.answered)

    def _cut(self, batch: _Batch) -> Sequence[Image]:
        buffer = self.process.buffers[batch.buffer]
        begun = self._begun(batch)
        buffer.allow(begun)
        done = batch.images[max(batch.answered, batch.lent) : max(0, begun - 1)]
        batch.lent = max(batch.lent, begun - 1)
        rest = batch.images[begun : batch.kept]
        batch.kept = min(batch.kept, begun)
        return [*done, *rest]
