"""The body of one response as it arrives: collected here, and read by the task that waits for it.

Theory of operation. What arrives is collected until the reader takes all of it at once. The reader says how many bytes
it has room for, and sleeps until the body is complete, has failed, or has outgrown that room: nearly every image fits,
so its task is woken once and not for each read from the socket. Bytes beyond the room are held, but no more than
``_MAX_BYTES_BEYOND_ROOM`` and one read: then reading from the socket is paused until the reader has made more room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO

_MAX_BYTES_BEYOND_ROOM = 256 * 1024  # most photographs fit, and a thousand of them stay affordable


class ReceivedBody:
    """The body of one response.

    Args:
        loop: The event loop of the connection.
        pause: Called to pause reading from the socket; may be called again while it is paused.
        resume: Called to resume it; may be called while it is not paused.

    Attributes:
        size_bytes: Number of bytes that have arrived.
        is_complete: Whether all of it has arrived.
    """

    __slots__ = (
        "_arrived",
        "_buffer",
        "_error",
        "_loop",
        "_pause",
        "_resume",
        "_room_bytes",
        "is_complete",
        "size_bytes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.size_bytes = 0
        self.is_complete = False
        self._loop = loop
        self._pause = pause
        self._resume = resume
        self._buffer: BytesIO | None = None
        self._room_bytes = 0
        self._error: BaseException | None = None
        self._arrived: asyncio.Future[None] | None = None

    def feed(self, content: bytes) -> None:
        """Take bytes that have arrived."""
        if not content:
            return
        if self._buffer is None:
            self._buffer = BytesIO(content)  # which shares the bytes, and yields them again, unless more follow
            self._buffer.seek(len(content))
        else:
            self._buffer.write(content)  # grows in place; joining pieces at the end would hold them twice
        self.size_bytes += len(content)
        if self.size_bytes > self._room_bytes:
            self._wake()
            if self.size_bytes > self._room_bytes + _MAX_BYTES_BEYOND_ROOM:
                self._pause()

    def finish(self) -> None:
        """Record that all of it has arrived."""
        self.is_complete = True
        self._resume()  # the connection may bring another response, which has nothing to do with how this one is read
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Record why no more of it will arrive. Only the first error counts, because later ones follow from it."""
        if self._error is None:
            self._error = error
            self._wake()

    async def wait(self, room_bytes: int) -> None:
        """Wait until the body is complete, or larger than there is room for.

        Args:
            room_bytes: How many of its bytes there is room for, from the first one on.

        Raises:
            BaseException: What ``fail`` was given.
        """
        self._room_bytes = room_bytes
        if self.size_bytes <= room_bytes + _MAX_BYTES_BEYOND_ROOM:
            self._resume()
        while self._error is None and not self.is_complete and self.size_bytes <= room_bytes:
            self._arrived = self._loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        if self._error is not None:
            raise self._error

    def content(self) -> bytes:
        """Everything that has arrived."""
        return b"" if self._buffer is None else self._buffer.getvalue()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
