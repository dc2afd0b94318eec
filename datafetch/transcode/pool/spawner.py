"""Where the pool gets its codec processes from: a fork server of its own, and a channel to each process.

Rules: a process that can't be started is our fault and never an image's. Nothing that is started here outlives
``Spawner.close``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from datafetch.errors import ResourceError
from datafetch.process.child import child_command, why_not_started
from datafetch.transcode.pool.forkserver import COMMAND, END, FORK, FORK_FAILED, KILL
from datafetch.transcode.pool.protocol import U32, Codec, Startup, encode_message
from datafetch.transcode.pool.sandbox import kept_environment
from datafetch.transcode.pool.shared_buffer import SharedBuffer, open_shared_buffer
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS
from datafetch.transcode.spec import ImageSpec

TRAYS = 2
"""Batches that a codec process may have in hand: it works on the second while the first one's replies are read."""

_MAX_REPLY_BYTES = 1024 * 1024
_TRIES = 3
_PAUSE_S = 0.2  # between them
_LAST_WORDS_S = 0.5
_GRACE_S = 5.0  # for a fork server to end its processes and itself, which takes it milliseconds
_SILENCE_S = 10.0  # for it to fork, or to say how a process ended, which takes it milliseconds as well
_START_S = 60.0  # and for its first process, for it has to be loaded, perhaps from a slow disk

UNKNOWN_STATUS = -10_000
"""Stands for how a process ended whose fork server said nothing about it and was killed for that."""

_AGAIN = (
    "free some memory, raise a limit ('ulimit -n', 'ulimit -u') or reduce --processes, and run the same command again "
    "(nothing written so far is lost)"
)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Process:
    """A codec process, as its parent sees it.

    Attributes:
        number: Its own among all of one fork server.
        trays: For its batches.
        reader: Brings its replies.
        writer: Takes its requests.
        status: How it ended, once that is known: an exit status, a negative signal, or ``UNKNOWN_STATUS``.
    """

    number: int
    buffers: Sequence[SharedBuffer]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: asyncio.Future[int]

    def send(self, payload: bytes) -> None:
        """Send a message. Does nothing once the process has ended; its reader reports the end."""
        if not self.writer.transport.is_closing():  # uvloop raises where asyncio's own loop ignores the write
            self.writer.write(encode_message(payload))

    async def receive(self) -> bytes:
        """The payload of its next message.

        Raises:
            EOFError: It ended.
            ConnectionError: It ended.
            ValueError: It sends nonsense.
        """
        (length,) = U32.unpack(await self.reader.readexactly(U32.size))
        if length > _MAX_REPLY_BYTES:
            raise ValueError(f"a message of {length} bytes")
        return await self.reader.readexactly(length)

    def close(self) -> None:
        """Let go of its channel and trays."""
        self.writer.transport.abort()
        for buffer in self.buffers:
            buffer.close()


class Spawner:
    """Starts codec processes, of one event loop.

    Args:
        codec: What they do with a body; a module-level function, for it travels to them.
        spec: What comes out.
        is_shut_in: Whether they are shut into a sandbox.
    """

    def __init__(self, codec: Codec, spec: ImageSpec, *, is_shut_in: bool) -> None:
        self._codec = codec
        self._spec = spec
        self._is_shut_in = is_shut_in
        self._server: _Server | None = None
        self._starting = asyncio.Lock()
        self._launched = 0

    async def launch(self) -> Process:
        """Start a codec process and wait until it is ready.

        Raises:
            ResourceError: It can't be started.
        """
        async with self._starting:
            for _ in range(_TRIES - 1):
                try:
                    return await self._launch()
                except _PassingError:
                    await asyncio.sleep(_PAUSE_S)
            return await self._launch()

    def kill(self, process: Process) -> None:
        """End a process, if it has not ended; its status is known soon, whatever has become of the fork server."""
        if self._server is not None and not process.status.done():
            with suppress(OSError):  # the server has ended, and its processes with it
                self._server.send(KILL, process.number)
            self._server.expect_word(process.status)

    async def close(self) -> None:
        """End every process, and see them gone."""
        if self._server is not None:
            await self._server.close()

    async def _launch(self) -> Process:
        if self._server is not None and self._server.is_gone:
            await self._server.close()
            self._server = None
        if self._server is None:
            self._server = await _Server.start()
            await self._server.order(Startup(self._codec, self._spec, os.getpid(), self._is_shut_in))
        self._launched += 1
        server, process = self._server, await _fork(self._server, self._launched)
        try:
            async with asyncio.timeout(_SILENCE_S if server.is_tried else _START_S):
                await self._see_ready(process)
        except TimeoutError as error:
            server.end_for_silence()
            process.close()
            raise _PassingError(f"the process that forks codec processes does not answer; {_AGAIN}") from error
        except BaseException:
            process.close()
            raise
        server.is_tried = True
        return process

    async def _see_ready(self, process: Process) -> None:
        """Wait until a process says that it is ready.

        Raises:
            ResourceError: It ended before.
        """
        try:
            await process.receive()
        except (EOFError, ConnectionError) as error:
            raise await self._start_error(await process.status) from error

    async def _start_error(self, status: int) -> ResourceError:
        """Why a process ended before its first image."""
        if status >= FORK_FAILED:
            return _PassingError(f"cannot start a codec process: {os.strerror(status - FORK_FAILED)}; {_AGAIN}")
        if self._server is not None and self._server.is_gone:
            status = await self._server.wait()
        if status < 0:
            return _PassingError(
                f"a codec process was killed by {signal_name(-status)} before its first image; {_AGAIN}"
            )
        if status == OUT_OF_MEMORY_STATUS:
            return _PassingError(f"a codec process found too few descriptors, or too little memory, to begin; {_AGAIN}")
        return ResourceError(
            f"a codec process ended with status {status} before its first image; "
            "check that this Python can import PIL.Image, see the messages above, and run the same command again"
        )


def signal_name(number: int) -> str:
    """``SIGSEGV``, or ``signal 40`` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _PassingError(ResourceError):
    """A process could not be started for a temporary reason: it was killed from outside, or there are too many now."""


class _Server:
    """The fork server, as its parent sees it.

    Attributes:
        is_gone: Whether it has ended, or is not to be asked for anything any more.
        is_tried: Whether a process of its has come up.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        control: socket.socket,
    ) -> None:
        self.is_gone = False
        self.is_tried = False
        self._last_word = -signal.SIGKILL  # the kernel ends its processes with it
        self._process = process
        self._reader = reader
        self._writer = writer  # kept, for it closes the stream when it goes
        self._control = control
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls) -> Self:
        """Start a fork server; whether it works shows with its first process.

        Raises:
            ResourceError: This machine can't start a process.
        """
        with ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.callback(_close, ours)
                with theirs:
                    # Descriptors are sent past the stream, on a descriptor of its own to the same socket.
                    control = undo.enter_context(ours.dup())
                    control.setblocking(False)
                    reader, writer = await asyncio.open_unix_connection(sock=ours)
                    undo.callback(writer.transport.abort)
                    # A session of its own: Ctrl-C at the terminal is for the parent alone, even while the child starts.
                    process = await asyncio.create_subprocess_exec(
                        *child_command("datafetch.transcode.pool.forkserver"),
                        stdin=theirs.fileno(),
                        stdout=asyncio.subprocess.DEVNULL,
                        env=kept_environment(os.environ),
                        start_new_session=True,
                    )
            except OSError as error:
                raise ResourceError(f"cannot start a codec process: {why_not_started(error)}; {_AGAIN}") from error
            undo.pop_all()
        return cls(process, reader, writer, control)

    async def order(self, orders: Startup) -> None:
        """Tell it what its processes are to do."""
        message = encode_message(pickle.dumps(orders))
        with suppress(ConnectionError):  # it may be gone already; its first process will tell why
            await asyncio.get_running_loop().sock_sendall(self._control, message)

    def expect(self, number: int) -> asyncio.Future[int]:
        """How the process of this number will have ended."""
        end = asyncio.get_running_loop().create_future()
        self._ends[number] = end
        return end

    def send(self, command: bytes, number: int, descriptors: Sequence[int] = ()) -> None:
        """Send a command, with descriptors.

        Raises:
            OSError: The server is gone.
        """
        try:
            socket.send_fds(self._control, [COMMAND.pack(command, number)], descriptors)
        except ConnectionError:
            self.is_gone = True
            raise

    def expect_word(self, status: asyncio.Future[int]) -> None:
        """Give it a while to say how a process has ended that was killed; if it does not, it is of no use any more."""
        deadline = asyncio.get_running_loop().call_later(_SILENCE_S, self.end_for_silence)
        status.add_done_callback(lambda _: deadline.cancel())

    def end_for_silence(self) -> None:
        """Kill it, for it was stopped from outside, or worse; its processes end with it."""
        if self.is_gone:
            return
        _log.warning("the process that forks codec processes did not answer; it is replaced")
        self.is_gone = True
        self._last_word = UNKNOWN_STATUS
        with suppress(ProcessLookupError):
            self._process.kill()
        self._writer.transport.abort()

    async def wait(self) -> int:
        """Wait for its end, and say how it came."""
        return await self._process.wait()

    async def close(self) -> None:
        """End it and its processes, and see them gone."""
        with suppress(OSError):  # it ended by itself
            # Closing alone would not tell it, where the user's program has forked and holds copies of the socket.
            self._control.shutdown(socket.SHUT_RDWR)
        self._writer.transport.abort()
        self._control.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        except TimeoutError:  # it was stopped from outside; its processes die with it all the same
            self._process.kill()
            await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        """Take note of how processes end, until the server itself is gone."""
        with suppress(EOFError, ConnectionError):
            while True:
                number, status = END.unpack(await self._reader.readexactly(END.size))
                _set(self._ends.pop(number), status)
        self.is_gone = True
        for end in self._ends.values():
            _set(end, self._last_word)


async def _fork(server: _Server, number: int) -> Process:
    """Have a codec process forked; it is not ready yet.

    Raises:
        ResourceError: This machine has no descriptor or no memory for it, or the server is gone.
    """
    status = server.expect(number)
    try:
        ours, theirs = socket.socketpair()
        with ExitStack() as undo:
            undo.callback(_close, ours)
            with theirs:
                buffers = _send_fork(server, number, theirs)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.pop_all()
    except ConnectionError as error:
        raise _PassingError(f"the process that forks codec processes has ended; {_AGAIN}") from error
    except OSError as error:
        raise _PassingError(f"cannot start a codec process: {error.strerror}; {_AGAIN}") from error
    # It may have ended and left a child of its own that holds the channel. What is still in it gets a moment.
    loop = asyncio.get_running_loop()
    status.add_done_callback(lambda _: loop.call_later(_LAST_WORDS_S, writer.transport.abort))
    return Process(number, buffers, reader, writer, status)


def _send_fork(server: _Server, number: int, channel: socket.socket) -> list[SharedBuffer]:
    buffers = []
    with ExitStack() as sent:
        descriptors = [channel.fileno()]
        for _ in range(TRAYS):
            fd = open_shared_buffer()
            sent.callback(os.close, fd)
            descriptors.append(fd)
            buffers.append(SharedBuffer(fd))
        server.send(FORK, number, descriptors)
    return buffers


def _close(channel: socket.socket) -> None:
    with suppress(OSError):  # uvloop before 0.22 has closed it when the connection was cancelled
        channel.close()


def _set(end: asyncio.Future[int], status: int) -> None:
    if not end.done():
        end.set_result(status)
