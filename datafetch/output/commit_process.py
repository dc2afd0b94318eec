"""Commit shards in processes of their own, because a commit is many seconds of CPU work.

Theory of operation. A process commits one shard after the other, for it takes a third of a second to start. One that
has nothing to do stays for the next shard if it is the only such. A shard that is to be committed while others are
waits for a moment, since a process may have finished before another has started, and then gets a process of its own.
The parent writes a pickled ``Commit``, behind its length, to the standard input of an idle process. The
process writes ``_BEGUN`` to its standard output, and then the counts or the error as JSON, behind its length. It ends
when its standard input is closed, which is when its parent ends at the latest, in the middle of a commit or not.

A process that ends before it has begun a shard has written nothing. If it was an idle one, which the system may have
killed for its memory, another gets the shard.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import pickle
import signal
import sys
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import msgspec
import orjson

from datafetch.errors import (
    ConfigurationError,
    ConservationError,
    DatafetchError,
    ManifestError,
    ResourceError,
    is_exhaustion,
)
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.commit import Commit, commit_shard
from datafetch.process.allocator import without_blas_threads
from datafetch.process.child import child_command, start_failure

_WAIT_S = 1.0  # for a process at work, before another is started: a shard of a thousand images takes half of it
_BEGUN = b"\n"
_LENGTH_BYTES = 4
_ADVICE = "free resources or raise the limit ('ulimit -a' shows them), and run the same command again"
_ERRORS = {error.__name__: error for error in (ConfigurationError, ConservationError, ManifestError, ResourceError)}


class CommitProcesses:
    """Commits shards, any number at once: ``async with CommitProcesses() as commit: counts = await commit(shard)``."""

    def __init__(self) -> None:
        self._idle: list[asyncio.subprocess.Process] = []
        self._at_work = 0
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            await _end(self._idle.pop())

    async def __call__(self, commit: Commit) -> ShardCounts:
        """Commit a shard and return its counts.

        Raises:
            ResourceError: The disk is full or can't be written, or the process could not start or was killed.
            ConservationError: Samples or images were lost or counted twice; nothing was published.
        """
        request = _framed(pickle.dumps(commit))
        await self._wait_for_idle()
        self._at_work += 1
        try:
            fields: dict[str, Any] = orjson.loads(await self._ask_any(request))
        finally:
            self._at_work -= 1
            self._finished.set()
        if "error" in fields:
            raise _ERRORS[fields["error"]](fields["message"])
        return msgspec.convert(fields, ShardCounts)

    async def _wait_for_idle(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_S):
                while self._at_work and not self._idle:
                    self._finished.clear()
                    await self._finished.wait()

    async def _ask_any(self, request: bytes) -> bytes:
        """Let an idle process commit a shard, or start one.

        Raises:
            ResourceError: The process could not start or was killed.
        """
        while self._idle:
            response = await self._ask(self._idle.pop(), request)
            if response is not None:
                return response
        process = await _start()
        response = await self._ask(process, request)
        if response is None:
            raise _start_error(process.returncode)
        return response

    async def _ask(self, process: asyncio.subprocess.Process, request: bytes) -> bytes | None:
        """Let an idle process commit a shard; return None if it ends before it has begun.

        Raises:
            ResourceError: It was killed.
            RuntimeError: It has ended by itself.
        """
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
        has_begun = is_done = False
        try:
            with suppress(RuntimeError):  # uvloop's, of a pipe that it has found closed: the process has ended
                process.stdin.write(request)
            has_begun = await process.stdout.read(len(_BEGUN)) == _BEGUN
            if has_begun:
                length = int.from_bytes(await process.stdout.readexactly(_LENGTH_BYTES), "little")
                response = await process.stdout.readexactly(length)
                is_done = True
                return response
        except asyncio.IncompleteReadError:
            pass
        finally:
            if is_done and not self._idle:
                self._idle.append(process)
            else:
                await _end(process, is_busy=not is_done)
        if has_begun:
            raise _end_error(process.returncode)
        return None


async def _start() -> asyncio.subprocess.Process:
    environment = dict(os.environ)
    without_blas_threads(environment)
    try:
        return await asyncio.create_subprocess_exec(
            *child_command("datafetch.output.commit_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is handled by the parent alone
        )
    except OSError as error:
        reason = start_failure(error)
        raise ResourceError(f"cannot start the process that writes shards: {reason}; {_ADVICE}") from error


async def _end(process: asyncio.subprocess.Process, *, is_busy: bool = False) -> None:
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
    if is_busy and process.returncode is None and not process.stdout.at_eof():
        process.kill()
    process.stdin.close()
    await process.wait()


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content


def _start_error(status: int | None) -> ResourceError:
    """The error for a process that has not begun its first shard."""
    if status is not None and status < 0:
        return _killed(status)
    return ResourceError(f"the process that writes shards could not start (see the messages above); {_ADVICE}")


def _end_error(status: int | None) -> Exception:
    """The error for a process that has ended in the middle of a shard."""
    if status is not None and status < 0:
        return _killed(status)
    return RuntimeError(f"the process that writes shards ended with status {status}; its traceback is above")


def _killed(status: int) -> ResourceError:
    return ResourceError(
        f"the process that writes shards was killed by signal {-status}; if it ran out of memory, "
        "free some and run the same command again"
    )


def main() -> None:
    """Commit the shards that are requested on standard input, and write the results to standard output."""
    for number in (signal.SIGINT, signal.SIGTERM):  # handled by the parent, even if sent to all of its processes
        signal.signal(number, signal.SIG_IGN)
    requests = _Requests()
    request = _read_request()  # here, so that the lack of a thread is answered like any other failure
    with suppress(BrokenPipeError):  # the parent has ended, and this process is about to
        while request is not None:
            commit: Commit = pickle.loads(request)  # noqa: S301 - it comes from our parent
            os.write(sys.stdout.fileno(), _BEGUN)
            os.write(sys.stdout.fileno(), _framed(_respond(commit, requests)))
            request = requests.next()


def _respond(commit: Commit, requests: _Requests) -> bytes:
    """Commit the shard, and return the result or the error as JSON."""
    try:
        requests.watch()
        return orjson.dumps(commit_shard(commit))
    except DatafetchError as error:
        failure = error
    except Exception as error:
        if not is_exhaustion(error):
            raise
        failure = ResourceError.from_exhaustion(error)
    return orjson.dumps(_error_fields(failure))


def _error_fields(error: DatafetchError) -> dict[str, str]:
    """An error with the name of its class, which decides the exit code, so that the parent can raise it again."""
    kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
    return {"error": kind, "message": str(error)}


class _Requests:
    """The requests after the first, read in a thread that ends this process as soon as there can be no more."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._is_watched = self._is_read = False
        self._received, self._answered = 1, 0  # each is changed by one thread alone

    def watch(self) -> None:
        """Start the thread."""
        if not self._is_watched:
            # Not threading.Thread, whose start() blocks forever if the new thread runs out of memory before it signals.
            _thread.start_new_thread(self._read, ())
            self._is_watched = True

    def next(self) -> bytes | None:
        """Wait for the next request; None if there is no more."""
        self._answered += 1
        return self._queue.get() if self._is_read else None  # a thread that found no memory has not begun

    def _read(self) -> None:
        self._is_read = True
        try:
            while (request := _read_request()) is not None:
                self._received += 1
                self._queue.put(request)
        except MemoryError:  # this process commits what it has begun, and takes no more
            self._queue.put(None)
            return
        if self._received > self._answered:
            os._exit(1)
        self._queue.put(None)


def _read_request() -> bytes | None:
    """Read the next request; None if the parent has closed standard input.

    It is read without a buffer, since the interpreter aborts at shutdown if a daemon thread holds the lock of one.
    """
    length = _read_exactly(_LENGTH_BYTES)
    return None if length is None else _read_exactly(int.from_bytes(length, "little"))


def _read_exactly(size_bytes: int) -> bytes | None:
    content = bytearray()
    while len(content) < size_bytes:
        piece = os.read(0, size_bytes - len(content))
        if not piece:
            return None
        content += piece
    return bytes(content)
