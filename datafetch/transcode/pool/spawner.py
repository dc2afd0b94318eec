"""Spawner: starts workers, through a fork server of its own (see forkserver.py), and opens a channel to each.

Theory of operation. ``spawn`` starts the fork server if there is none, has it fork, and waits until the new worker says
that it is ready. Each worker has a future, ``Process.status``, which is resolved exactly once:

* with the status that the server reports, when the worker ends;
* with ``UNKNOWN_STATUS``, if the server has ended, because the kernel ends its workers with it. A server that does not
  report in time after a kill, or does not fork in time, may have been stopped by somebody, and is killed. The next
  ``spawn`` starts another one.

So the caller that kills a worker can await its status without a timeout.

Rules: a worker that can't be started is the machine's or the installation's fault, never an image's. Nothing that is
started here outlives ``Spawner.close``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from datafetch.errors import ResourceError
from datafetch.process.child import child_command, signal_name, start_failure
from datafetch.transcode.pool.forkserver import COMMAND, FORK, FORK_FAILED, KILL, STATUS
from datafetch.transcode.pool.protocol import U32, Codec, Startup, encode_message
from datafetch.transcode.pool.sandbox import kept_environment
from datafetch.transcode.pool.shared_buffer import SharedBuffer, open_shared_buffer
from datafetch.transcode.pool.worker import OUT_OF_MEMORY_STATUS
from datafetch.transcode.spec import ImageSpec

BUFFERS_PER_WORKER = 2
"""How many batches a worker may have: it works on the second while the parent reads the replies for the first."""

_MAX_REPLY_BYTES = 1024 * 1024
_ATTEMPTS = 3
_RETRY_PAUSE_S = 0.2
_DRAIN_S = 0.5  # for replies that a worker sent just before it ended
_SHUTDOWN_TIMEOUT_S = 5.0  # for the fork server to end its workers and itself, which takes milliseconds
_RESPONSE_TIMEOUT_S = 10.0  # for it to fork or to report a status, which takes milliseconds as well
_FIRST_SPAWN_TIMEOUT_S = 60.0  # the first fork waits until Pillow is loaded, perhaps from a slow disk

UNKNOWN_STATUS = -10_000
"""The status of a worker whose fork server did not report how it ended."""

_REMEDY = (
    "free some memory, raise a limit ('ulimit -n', 'ulimit -u') or reduce --processes, and run the same command again "
    "(nothing written so far is lost)"
)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process, as its parent sees it.

    Attributes:
        number: Unique among all workers of one spawner.
        buffers: The shared buffers for its batches.
        reader: Its replies.
        writer: Its requests.
        status: How it ended, once that is known: an exit status, a negative signal, or ``UNKNOWN_STATUS``.
    """

    number: int
    buffers: Sequence[SharedBuffer]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: asyncio.Future[int]

    def send(self, payload: bytes) -> None:
        """Send a message. Does nothing once the worker has ended; ``receive`` reports the end."""
        if not self.writer.transport.is_closing():  # uvloop raises where asyncio's own loop ignores the write
            self.writer.write(encode_message(payload))

    async def receive(self) -> bytes:
        """Wait for the next message, and return its payload.

        Raises:
            EOFError: The worker ended.
            ConnectionError: The worker ended.
            ValueError: The message is longer than any valid one.
        """
        (length,) = U32.unpack(await self.reader.readexactly(U32.size))
        if length > _MAX_REPLY_BYTES:
            raise ValueError(f"a message of {length} bytes")
        return await self.reader.readexactly(length)

    def close(self) -> None:
        """Close its channel and shared buffers."""
        self.writer.transport.abort()
        for buffer in self.buffers:
            buffer.close()


class Spawner:
    """Starts the workers of one pool.

    Args:
        codec: What workers do with a body; a module-level function, because it is sent to them. None is
            ``codec.transcode``.
        spec: What an image becomes.
        is_sandboxed: Whether workers enter the sandbox.
    """

    def __init__(self, codec: Codec | None, spec: ImageSpec, *, is_sandboxed: bool) -> None:
        self._codec = codec
        self._spec = spec
        self._is_sandboxed = is_sandboxed
        self._server: _ForkServerHandle | None = None
        self._spawning = asyncio.Lock()
        self._spawned = 0

    async def spawn(self) -> Process:
        """Start a worker and wait until it is ready.

        Raises:
            ResourceError: No worker can be started.
        """
        async with self._spawning:
            for _ in range(_ATTEMPTS - 1):
                try:
                    return await self._try_spawn()
                except _TransientError:
                    await asyncio.sleep(_RETRY_PAUSE_S)
            return await self._try_spawn()

    def kill(self, process: Process) -> None:
        """Kill a worker unless it has ended. Its status is resolved soon, whatever state the fork server is in."""
        if self._server is not None and not process.status.done():
            with suppress(OSError):  # the server has ended, and its workers with it
                self._server.send(KILL, process.number)
            self._server.require_status(process.status)

    async def close(self) -> None:
        """End the fork server and all workers, and wait until they are gone."""
        if self._server is not None:
            await self._server.close()

    async def _try_spawn(self) -> Process:
        if self._server is not None and self._server.is_gone:
            await self._server.close()
            self._server = None
        if self._server is None:
            self._server = await _ForkServerHandle.start()
            await self._server.send_startup(Startup(self._codec, self._spec, os.getpid(), self._is_sandboxed))
        self._spawned += 1
        server, process = self._server, await _fork(self._server, self._spawned)
        try:
            async with asyncio.timeout(_RESPONSE_TIMEOUT_S if server.has_spawned else _FIRST_SPAWN_TIMEOUT_S):
                await self._wait_until_ready(process)
        except TimeoutError as error:
            server.kill_unresponsive()
            process.close()
            raise _TransientError(f"the process that starts codec processes does not respond; {_REMEDY}") from error
        except BaseException:
            process.close()
            raise
        server.has_spawned = True
        return process

    async def _wait_until_ready(self, process: Process) -> None:
        """Wait until a worker says that it is ready.

        Raises:
            ResourceError: It ended before that.
        """
        try:
            await process.receive()
        except (EOFError, ConnectionError) as error:
            raise await self._start_error(await process.status) from error

    async def _start_error(self, status: int) -> ResourceError:
        """The error for a worker that ended before its first image."""
        if status >= FORK_FAILED:
            return _TransientError(f"cannot start a codec process: {os.strerror(status - FORK_FAILED)}; {_REMEDY}")
        if self._server is not None and self._server.is_gone:
            status = await self._server.wait()
        if status < 0:
            return _TransientError(
                f"a codec process was killed by {signal_name(-status)} before its first image; {_REMEDY}"
            )
        if status == OUT_OF_MEMORY_STATUS:
            return _TransientError(
                f"a codec process had too few file descriptors or too little memory to start; {_REMEDY}"
            )
        return ResourceError(
            f"a codec process ended with status {status} before its first image; "
            "check that this Python can import PIL.Image, see the messages above, and run the same command again"
        )


class _TransientError(ResourceError):
    """A worker could not be started for a reason that may pass: it was killed, or a resource is exhausted."""


class _ForkServerHandle:
    """The fork server, as its parent sees it.

    Attributes:
        is_gone: Whether it has ended, or must not be used any more.
        has_spawned: Whether one of its workers has been ready, so that everything is loaded.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        control: socket.socket,
    ) -> None:
        self.is_gone = False
        self.has_spawned = False
        self._process = process
        self._reader = reader
        self._writer = writer  # kept, because its deallocation closes the stream
        self._control = control
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._receiving = asyncio.create_task(self._receive_statuses())

    @classmethod
    async def start(cls) -> Self:
        """Start a fork server. Only its first worker shows whether it works.

        Raises:
            ResourceError: This machine can't start a process.
        """
        with ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.callback(_close, ours)
                with theirs:
                    # asyncio's streams can't send descriptors, so commands use a duplicate of the same socket.
                    control = undo.enter_context(ours.dup())
                    control.setblocking(False)
                    reader, writer = await asyncio.open_unix_connection(sock=ours)
                    undo.callback(writer.transport.abort)
                    # In a session of its own, it never receives a Ctrl-C at the terminal, not even while it starts.
                    process = await asyncio.create_subprocess_exec(
                        *child_command("datafetch.transcode.pool.forkserver"),
                        stdin=theirs.fileno(),
                        stdout=asyncio.subprocess.DEVNULL,
                        env=kept_environment(os.environ),
                        start_new_session=True,
                    )
            except OSError as error:
                raise ResourceError(f"cannot start a codec process: {start_failure(error)}; {_REMEDY}") from error
            undo.pop_all()
        return cls(process, reader, writer, control)

    async def send_startup(self, startup: Startup) -> None:
        """Send what its workers have to do; the first message it gets."""
        message = encode_message(pickle.dumps(startup))
        with suppress(ConnectionError):  # it may have ended already; the first fork then reports why
            await asyncio.get_running_loop().sock_sendall(self._control, message)

    def expect_status(self, number: int) -> asyncio.Future[int]:
        """Create the future that is resolved with the status of the worker with this number."""
        status = asyncio.get_running_loop().create_future()
        self._statuses[number] = status
        return status

    def send(self, command: bytes, number: int, descriptors: Sequence[int] = ()) -> None:
        """Send a command, and the descriptors that belong to it.

        Raises:
            OSError: The server is gone.
        """
        try:
            socket.send_fds(self._control, [COMMAND.pack(command, number)], descriptors)
        except ConnectionError:
            self.is_gone = True
            raise

    def require_status(self, status: asyncio.Future[int]) -> None:
        """Kill the server unless it reports this status, of a worker that was killed, in time."""
        deadline = asyncio.get_running_loop().call_later(_RESPONSE_TIMEOUT_S, self.kill_unresponsive)
        status.add_done_callback(lambda _: deadline.cancel())

    def kill_unresponsive(self) -> None:
        """Kill the server, which may have been stopped; its workers die with it."""
        if self.is_gone:
            return
        _log.warning("the process that starts codec processes did not respond; it is replaced")
        self.is_gone = True
        with suppress(ProcessLookupError):
            self._process.kill()
        self._writer.transport.abort()

    async def wait(self) -> int:
        """Wait until the server ends, and return its status."""
        return await self._process.wait()

    async def close(self) -> None:
        """End the server and its workers, and wait until they are gone."""
        with suppress(OSError):  # it has ended by itself
            # Closing is not enough if the user's program has forked, because its child holds a copy of the socket.
            self._control.shutdown(socket.SHUT_RDWR)
        self._writer.transport.abort()
        self._control.close()
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:  # it was stopped; its workers die with it all the same
            self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._receiving])  # the end of an event loop cancels it before

    async def _receive_statuses(self) -> None:
        """Resolve the statuses that the server reports, and the remaining ones when it is gone."""
        with suppress(EOFError, ConnectionError):
            while True:
                number, status = STATUS.unpack(await self._reader.readexactly(STATUS.size))
                _set_status(self._statuses.pop(number), status)
        self.is_gone = True
        for pending in self._statuses.values():
            _set_status(pending, UNKNOWN_STATUS)  # the kernel ends its workers with it, if they had not ended before


async def _fork(server: _ForkServerHandle, number: int) -> Process:
    """Have a worker forked; it is not ready yet.

    Raises:
        ResourceError: This machine has no descriptor or no memory left for it, or the server is gone.
    """
    status = server.expect_status(number)
    try:
        ours, theirs = socket.socketpair()
        with ExitStack() as undo:
            undo.callback(_close, ours)
            with theirs:
                buffers = _send_fork(server, number, theirs)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.pop_all()
    except ConnectionError as error:
        raise _TransientError(f"the process that starts codec processes has ended; {_REMEDY}") from error
    except OSError as error:
        raise _TransientError(f"cannot start a codec process: {error.strerror}; {_REMEDY}") from error
    # A worker that ended may have left a child that keeps the channel open, so the channel is closed from this side,
    # after a moment for the replies that are still in it.
    loop = asyncio.get_running_loop()
    status.add_done_callback(lambda _: loop.call_later(_DRAIN_S, writer.transport.abort))
    return Process(number, buffers, reader, writer, status)


def _send_fork(server: _ForkServerHandle, number: int, channel: socket.socket) -> list[SharedBuffer]:
    buffers = []
    with ExitStack() as sent:
        descriptors = [channel.fileno()]
        for _ in range(BUFFERS_PER_WORKER):
            fd = open_shared_buffer()
            sent.callback(os.close, fd)
            descriptors.append(fd)
            buffers.append(SharedBuffer(fd))
        server.send(FORK, number, descriptors)
    return buffers


def _close(channel: socket.socket) -> None:
    with suppress(OSError):  # uvloop before 0.22 closes it itself when connecting is cancelled
        channel.close()


def _set_status(pending: asyncio.Future[int], status: int) -> None:
    if not pending.done():
        pending.set_result(status)
