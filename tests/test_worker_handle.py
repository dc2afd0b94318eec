"""Who is to blame, with the test in the place of the codec process."""

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
from datafetch.transcode.pool.worker_handle import Cause, Image, WorkerHandle

MOST_JPEG_BYTES = 100
FAILURE = Failure(FailureKind.TRUNCATED)


@dataclass
class Worker:
    """The other end of a process: the test's."""

    process: Process
    channel: socket.socket

    def begin(self, image: int, buffer: int = 0) -> bool:
        """Say that an image is begun, as the codec process does."""
        return self.process.buffers[buffer].begin(image)

    def answer(self, *outcomes: Outcome, is_last: bool = False, buffer: int = 0) -> None:
        """Answer for images."""
        self.channel.sendall(encode_message(encode_reply(buffer, outcomes, is_last=is_last)))


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    """A process that does what the test says."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    descriptors = [open_shared_buffer(), open_shared_buffer()]
    buffers = [SharedBuffer(fd) for fd in descriptors]
    for fd in descriptors:
        os.close(fd)
    process = Process(1, buffers, reader, writer, asyncio.get_running_loop().create_future())
    with theirs:
        yield Worker(process, theirs)
    process.close()


def images(count: int) -> list[Image]:
    """Images that wait."""
    return [Image(b"%d" % number, asyncio.get_running_loop().create_future()) for number in range(count)]


async def hands_with(working: Worker, given: Sequence[Image]) -> WorkerHandle:
    """The pool's view of it, with a batch in hand."""
    handle = WorkerHandle(working.process, MOST_JPEG_BYTES)
    handle.give(given)
    return handle


async def test_the_image_at_work_is_the_suspect() -> None:
    """Those before it were answered, those behind it not begun."""
    async with worker() as working:
        given = images(4)
        handle = await hands_with(working, given)
        working.begin(0)
        working.answer(FAILURE)
        await handle.receive()
        working.begin(1)
        working.begin(2)
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert crash_report.culprit is None
    assert crash_report.suspects == [given[2]]
    assert crash_report.requeue == [given[1], given[3]]


async def test_who_used_up_the_cpu_time_is_the_culprit() -> None:
    """The kernel itself has seen it."""
    async with worker() as working:
        given = images(2)
        handle = await hands_with(working, given)
        working.begin(0)
        crash_report = handle.crash_report(Cause.OVERTIME)
    assert (crash_report.culprit, crash_report.suspects, crash_report.requeue) == (given[0], [], [given[1]])


async def test_nonsense_makes_everybody_a_suspect() -> None:
    """Who made the process send it, and when, can't be known."""
    async with worker() as working:
        given = images(3)
        handle = await hands_with(working, given)
        working.begin(0)
        crash_report = handle.crash_report(Cause.NONSENSE)
    assert (crash_report.culprit, crash_report.suspects, crash_report.requeue) == (None, given, [])


async def test_a_suspect_that_ends_a_fresh_process_is_the_culprit() -> None:
    """The others are tried next."""
    async with worker() as working:
        suspects = images(3)
        handle = WorkerHandle(working.process, MOST_JPEG_BYTES, suspects)
        handle.begin_isolation_run()
        assert not handle.has_room
        working.begin(0)
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert (crash_report.culprit, crash_report.suspects) == (suspects[0], suspects[1:])


async def test_a_suspect_that_was_not_begun_is_not_convicted() -> None:
    """It can't have ended the process, and is tried again."""
    async with worker() as working:
        suspects = images(1)
        handle = WorkerHandle(working.process, MOST_JPEG_BYTES, suspects)
        handle.begin_isolation_run()
        assert handle.hand_on() == []
        crash_report = handle.crash_report(Cause.UNKNOWN)
    assert (crash_report.culprit, crash_report.suspects) == (None, suspects)


async def test_a_suspect_is_not_convicted_after_another() -> None:
    """What the first one left behind in the process may have ended it."""
    async with worker() as working:
        suspects = images(2)
        handle = WorkerHandle(working.process, MOST_JPEG_BYTES, suspects)
        handle.begin_isolation_run()
        working.begin(0)
        working.answer(FAILURE, is_last=True)
        await handle.receive()
        working.begin(0)
        crash_report = handle.crash_report(Cause.NONSENSE)
    assert (crash_report.culprit, crash_report.suspects) == (None, suspects[1:])


async def test_when_all_suspects_have_passed_the_process_is_like_any_other() -> None:
    """It is given batches."""
    async with worker() as working:
        handle = WorkerHandle(working.process, MOST_JPEG_BYTES, images(1))
        handle.begin_isolation_run()
        working.begin(0)
        working.answer(FAILURE, is_last=True)
        await handle.receive()
        assert handle.is_idle


async def test_what_is_not_begun_is_handed_on_once() -> None:
    """It is no longer this process's to answer, and the process skips it."""
    async with worker() as working:
        first, second = images(3), images(2)
        handle = await hands_with(working, first)
        handle.give(second)
        working.begin(0)
        assert not handle.look()
        assert handle.look()
        assert handle.hand_on() == [*first[1:], *second]
        assert handle.hand_on() == []
        assert not working.begin(1)
        assert handle.crash_report(Cause.UNKNOWN).requeue == []


async def test_a_process_that_was_just_given_its_first_batch_is_not_slow() -> None:
    """It counts as slow when a whole interval has passed, not when somebody looks at once."""
    async with worker() as working:
        handle = await hands_with(working, images(2))
        assert not handle.look()
        assert handle.look()


async def test_what_is_done_but_not_told_is_lent_once() -> None:
    """Its answer may be there only after the slow image's; whoever answers first counts."""
    async with worker() as working:
        given = images(5)
        handle = await hands_with(working, given)
        for number in range(3):
            working.begin(number)
        working.answer(FAILURE)
        await handle.receive()
        assert handle.hand_on() == [given[1], *given[3:]]
        assert handle.hand_on() == []
        assert handle.crash_report(Cause.UNKNOWN).suspects == [given[2]]


async def test_an_image_begun_while_it_was_handed_on_may_be_answered_twice() -> None:
    """The first answer counts."""
    async with worker() as working:
        given = images(2)
        handle = await hands_with(working, given)
        working.begin(0)
        assert handle.hand_on() == given[1:]
        working.answer(FAILURE, FAILURE, is_last=True)
        await handle.receive()
        assert [image.outcome.result() for image in given] == [FAILURE, FAILURE]
        given[1].settle(Failure(FailureKind.NOT_AN_IMAGE))
        assert given[1].outcome.result() == FAILURE


@pytest.mark.parametrize(
    ("outcomes", "buffer"),
    [([FAILURE] * 3, 0), ([FAILURE], 1), ([Encoded(bytes(MOST_JPEG_BYTES + 1), 1, 1, "PNG")], 0)],
)
async def test_an_answer_to_nothing_is_nonsense(outcomes: list[Outcome], buffer: int) -> None:
    """More answers than images, for a buffer that was not given, or a JPEG longer than any can be."""
    async with worker() as working:
        handle = await hands_with(working, images(2))
        working.answer(*outcomes, buffer=buffer)
        with pytest.raises(ValueError, match=r"answer to nothing|a JPEG of"):
            await handle.receive()


async def test_a_batch_that_ends_early_is_nonsense() -> None:
    """Images that it was to answer are left."""
    async with worker() as working:
        handle = await hands_with(working, images(2))
        working.answer(FAILURE, is_last=True)
        with pytest.raises(ValueError, match="before its last image"):
            await handle.receive()
