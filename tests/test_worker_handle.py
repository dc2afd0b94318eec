"""What the parent knows of a worker, and which image it blames; the tests play the worker."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.transcode.pool.protocol import encode_message, encode_reply
from datafetch.transcode.pool.shared_buffer import SharedBuffer, open_shared_buffer
from datafetch.transcode.pool.spawner import Process
from datafetch.transcode.pool.worker_handle import Cause, PendingImage, WorkerHandle

MAX_JPEG_BYTES = 100
FAILURE = Failure(FailureKind.TRUNCATED)


@dataclass
class FakeWorker:
    """The worker's end of the channel and the buffers, in the hands of the test."""

    process: Process
    channel: socket.socket

    def start(self, image: int, buffer: int = 0) -> bool:
        """Record that an image is started, as a worker does."""
        return self.process.buffers[buffer].try_start(image)

    def answer(self, *outcomes: Outcome, is_last: bool = False, buffer: int = 0) -> None:
        """Reply with the outcomes of the next images."""
        self.channel.sendall(encode_message(encode_reply(buffer, outcomes, is_last=is_last)))


@asynccontextmanager
async def fake_worker() -> AsyncIterator[FakeWorker]:
    """Set up a worker that does what the test says."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    descriptors = [open_shared_buffer(), open_shared_buffer()]
    buffers = [SharedBuffer(fd) for fd in descriptors]
    for fd in descriptors:
        os.close(fd)
    process = Process(1, buffers, reader, writer, asyncio.get_running_loop().create_future())
    with theirs:
        yield FakeWorker(process, theirs)
    process.close()


def images(count: int) -> list[PendingImage]:
    """Create images whose outcomes are pending."""
    return [PendingImage(b"%d" % number, asyncio.get_running_loop().create_future()) for number in range(count)]


async def handle_with(worker: FakeWorker, assigned: Sequence[PendingImage]) -> WorkerHandle:
    """Create the pool's view of the worker, with one batch assigned."""
    handle = WorkerHandle(worker.process, MAX_JPEG_BYTES)
    handle.assign(assigned)
    return handle


async def test_the_image_in_progress_is_the_suspect() -> None:
    """Images before it were finished, and those behind it were not started."""
    async with fake_worker() as worker:
        assigned = images(4)
        handle = await handle_with(worker, assigned)
        worker.start(0)
        worker.answer(FAILURE)
        await handle.receive()
        worker.start(1)
        worker.start(2)
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert crash_report.culprit is None
    assert crash_report.suspects == [assigned[2]]
    assert crash_report.requeue == [assigned[1], assigned[3]]


async def test_the_image_that_used_up_the_cpu_time_is_the_culprit() -> None:
    """The kernel has measured it, so there is no doubt."""
    async with fake_worker() as worker:
        assigned = images(2)
        handle = await handle_with(worker, assigned)
        worker.start(0)
        crash_report = handle.crash_report(Cause.CPU_LIMIT)
    assert (crash_report.culprit, crash_report.suspects, crash_report.requeue) == (assigned[0], [], [assigned[1]])


async def test_an_invalid_reply_makes_all_images_suspects() -> None:
    """Any of them may have corrupted the process, at any time."""
    async with fake_worker() as worker:
        assigned = images(3)
        handle = await handle_with(worker, assigned)
        worker.start(0)
        crash_report = handle.crash_report(Cause.INVALID_REPLY)
    assert (crash_report.culprit, crash_report.suspects, crash_report.requeue) == (None, assigned, [])


async def test_a_suspect_that_ends_a_fresh_worker_is_the_culprit() -> None:
    """Only the suspect that was started is blamed; the others are tried next."""
    async with fake_worker() as worker:
        suspects = images(3)
        handle = WorkerHandle(worker.process, MAX_JPEG_BYTES, suspects)
        handle.start_isolation_run()
        assert not handle.has_room
        worker.start(0)
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert (crash_report.culprit, crash_report.suspects) == (suspects[0], suspects[1:])


async def test_a_suspect_that_was_not_started_is_not_blamed() -> None:
    """A suspect that was not started can't have ended the worker, and is tried again."""
    async with fake_worker() as worker:
        suspects = images(1)
        handle = WorkerHandle(worker.process, MAX_JPEG_BYTES, suspects)
        handle.start_isolation_run()
        assert handle.reclaim() == []
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert (crash_report.culprit, crash_report.suspects) == (None, suspects)


async def test_a_suspect_is_not_blamed_after_another_in_the_same_worker() -> None:
    """The damage that the first one left may have ended the worker."""
    async with fake_worker() as worker:
        suspects = images(2)
        handle = WorkerHandle(worker.process, MAX_JPEG_BYTES, suspects)
        handle.start_isolation_run()
        worker.start(0)
        worker.answer(FAILURE, is_last=True)
        await handle.receive()
        worker.start(0)
        crash_report = handle.crash_report(Cause.INVALID_REPLY)
    assert (crash_report.culprit, crash_report.suspects) == (None, suspects[1:])


async def test_a_worker_whose_suspects_are_cleared_can_be_used_again() -> None:
    """Batches are assigned to it as to any other worker."""
    async with fake_worker() as worker:
        handle = WorkerHandle(worker.process, MAX_JPEG_BYTES, images(1))
        handle.start_isolation_run()
        worker.start(0)
        worker.answer(FAILURE, is_last=True)
        await handle.receive()
        assert handle.is_idle


async def test_unstarted_images_are_reclaimed_once() -> None:
    """The worker need not answer reclaimed images any more, and skips them."""
    async with fake_worker() as worker:
        first, second = images(3), images(2)
        handle = await handle_with(worker, first)
        handle.assign(second)
        worker.start(0)
        assert not handle.check_slow()
        assert handle.check_slow()
        assert handle.reclaim() == [*first[1:], *second]
        assert handle.reclaim() == []
        assert not worker.start(1)
        assert handle.crash_report(Cause.UNKNOWN).requeue == []


async def test_a_worker_that_was_just_assigned_its_first_batch_is_not_slow() -> None:
    """It counts as slow only after a whole interval, not at the first check."""
    async with fake_worker() as worker:
        handle = await handle_with(worker, images(2))
        assert not handle.check_slow()
        assert handle.check_slow()


async def test_finished_but_unreported_images_are_duplicated_once() -> None:
    """Their answers may come only with the slow image's, so other workers get them too; the first answer counts."""
    async with fake_worker() as worker:
        assigned = images(5)
        handle = await handle_with(worker, assigned)
        for number in range(3):
            worker.start(number)
        worker.answer(FAILURE)
        await handle.receive()
        assert handle.reclaim() == [assigned[1], *assigned[3:]]
        assert handle.reclaim() == []
        assert handle.crash_report(Cause.UNKNOWN).suspects == [assigned[2]]


async def test_an_image_started_while_it_was_reclaimed_may_be_answered_twice() -> None:
    """The first answer counts."""
    async with fake_worker() as worker:
        assigned = images(2)
        handle = await handle_with(worker, assigned)
        worker.start(0)
        assert handle.reclaim() == assigned[1:]
        worker.answer(FAILURE, FAILURE, is_last=True)
        await handle.receive()
        assert [image.outcome.result() for image in assigned] == [FAILURE, FAILURE]
        assigned[1].resolve(Failure(FailureKind.NOT_AN_IMAGE))
        assert assigned[1].outcome.result() == FAILURE


@pytest.mark.parametrize(
    ("outcomes", "buffer"),
    [([FAILURE] * 3, 0), ([FAILURE], 1), ([Encoded(bytes(MAX_JPEG_BYTES + 1), 1, 1, "PNG")], 0)],
)
async def test_a_reply_that_answers_no_request_is_invalid(outcomes: list[Outcome], buffer: int) -> None:
    """It has more answers than images, names a free buffer, or claims a JPEG longer than any can be."""
    async with fake_worker() as worker:
        handle = await handle_with(worker, images(2))
        worker.answer(*outcomes, buffer=buffer)
        with pytest.raises(ValueError, match=r"answers no open request|a JPEG of"):
            await handle.receive()


async def test_a_batch_that_ends_early_is_invalid() -> None:
    """Images that the worker had to answer are missing."""
    async with fake_worker() as worker:
        handle = await handle_with(worker, images(2))
        worker.answer(FAILURE, is_last=True)
        with pytest.raises(ValueError, match="before its last image"):
            await handle.receive()
