"""The body of a response as it arrives: when its reader is woken, and when reading from the socket pauses."""

from __future__ import annotations

import asyncio

import pytest

from datafetch.fetch.received_body import _MAX_BYTES_BEYOND_ROOM, ReceivedBody

pytestmark = pytest.mark.both_loops


class _Socket:
    """What is told to pause and to resume."""

    def __init__(self) -> None:
        self._is_paused = False

    def is_paused(self) -> bool:
        return self._is_paused

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False

    def body(self) -> ReceivedBody:
        return ReceivedBody(asyncio.get_running_loop(), self.pause, self.resume)


async def test_a_reader_is_woken_when_the_body_is_complete() -> None:
    """While there is room for what arrives, its reader sleeps."""
    body = _Socket().body()
    reading = asyncio.create_task(body.wait(6))
    for piece in (b"abc", b"", b"def"):
        await asyncio.sleep(0)
        body.feed(piece)
        await asyncio.sleep(0)
        assert not reading.done()
    body.finish()
    await reading
    assert (body.content(), body.size_bytes, body.is_complete) == (b"abcdef", 6, True)


async def test_a_reader_is_woken_when_the_body_outgrows_its_room() -> None:
    """It learns how large the body is by now, and may make more room."""
    body = _Socket().body()
    reading = asyncio.create_task(body.wait(6))
    await asyncio.sleep(0)
    body.feed(b"abcdefg")
    await reading
    assert (body.size_bytes, body.is_complete) == (7, False)


async def test_reading_pauses_while_the_reader_makes_no_room() -> None:
    """At most a fixed number of bytes beyond the room is held, and one read; more room resumes reading."""
    socket = _Socket()
    body = socket.body()
    body.feed(bytes(_MAX_BYTES_BEYOND_ROOM))
    assert not socket.is_paused()
    body.feed(b"x")
    assert socket.is_paused()
    await body.wait(0)
    assert socket.is_paused(), "there is no more room than before"
    await body.wait(1)
    assert not socket.is_paused()


async def test_reading_resumes_once_the_body_is_complete() -> None:
    """The connection may be used again, however its last response was read."""
    socket = _Socket()
    body = socket.body()
    body.feed(bytes(_MAX_BYTES_BEYOND_ROOM + 1))
    assert socket.is_paused()
    body.finish()
    assert not socket.is_paused()


async def test_the_first_error_ends_the_body() -> None:
    """Those that follow come from it; what has arrived is counted all the same."""
    body = _Socket().body()
    reading = asyncio.create_task(body.wait(100))
    await asyncio.sleep(0)
    body.feed(b"abc")
    body.fail(TimeoutError("silent"))
    body.fail(ConnectionResetError("gone"))
    with pytest.raises(TimeoutError, match="silent"):
        await reading
    assert (body.size_bytes, body.is_complete) == (3, False)


async def test_a_reader_that_was_cancelled_is_not_woken() -> None:
    """The next call of ``wait`` sees all that has arrived, before the cancellation and after."""
    body = _Socket().body()
    reading = asyncio.create_task(body.wait(100))
    await asyncio.sleep(0)
    reading.cancel()
    body.feed(b"abc")
    with pytest.raises(asyncio.CancelledError):
        await reading
    body.finish()
    await body.wait(100)
    assert body.content() == b"abc"
