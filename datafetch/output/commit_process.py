"""Commit a shard in a process of its own, because a commit is many seconds of CPU work.

The parent writes a pickled ``Commit`` to the child's standard input. The child writes ``_STARTED``, and then the counts
or the error as JSON, to its standard output. It ends with its parent, which is when its standard input is closed.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import pickle
import signal
import sys
from contextlib import suppress
from typing import Any

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

_STARTED = b"\n"  # sent before the result, which is JSON
_ADVICE = "free resources or raise the limit ('ulimit -a' shows them), and run the same command again"
_ERRORS = {error.__name__: error for error in (ConfigurationError, ConservationError, ManifestError, ResourceError)}


async def commit_in_process(commit: Commit) -> ShardCounts:
    """Commit a shard in a process of its own and return its counts.

    Raises:
        ResourceError: The disk is full or can't be written, or the process could not start or was killed.
        ConservationError: Samples or images were lost or counted twice; nothing was published.
    """
    environment = dict(os.environ)
    without_blas_threads(environment)
    try:
        process = await asyncio.create_subprocess_exec(
            *child_command("datafetch.output.commit_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is handled by the parent alone
        )
    except OSError as error:
        reason = start_failure(error)
        raise ResourceError(f"cannot start the process that writes shards: {reason}; {_ADVICE}") from error
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
    try:
        # Standard input stays open: when it is closed, the child knows that its parent has ended.
        request = pickle.dumps(commit)
        process.stdin.write(len(request).to_bytes(4, "little") + request)
        response = await process.stdout.read()
    finally:
        if process.returncode is None and not process.stdout.at_eof():
            process.kill()
        process.stdin.close()
        await process.wait()
    return _decode_response(response, process.returncode)


def _decode_response(response: bytes, status: int | None) -> ShardCounts:
    if response in (b"", _STARTED) and status is not None and status < 0:
        raise ResourceError(
            f"the process that writes shards was killed by signal {-status}; if it ran out of memory, "
            "free some and run the same command again"
        )
    if not response:  # it did not even start
        raise ResourceError(f"the process that writes shards could not start (see the messages above); {_ADVICE}")
    if response == _STARTED:
        raise RuntimeError(f"the process that writes shards ended with status {status}; its traceback is above")
    fields: dict[str, Any] = orjson.loads(response)
    if "error" in fields:
        raise _ERRORS[fields["error"]](fields["message"])
    return msgspec.convert(fields, ShardCounts)


def main() -> None:
    """Commit the shard that is requested on standard input, and write the result to standard output."""
    for number in (signal.SIGINT, signal.SIGTERM):  # handled by the parent, even if sent to all of its processes
        signal.signal(number, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    length = int.from_bytes(stdin.read(4), "little")
    request = stdin.read(length)
    if not request or len(request) < length:  # the parent has ended
        return
    commit: Commit = pickle.loads(request)  # noqa: S301 - it comes from our parent
    with suppress(BrokenPipeError):  # the parent has ended, and this process is about to
        os.write(sys.stdout.fileno(), _STARTED)
        os.write(sys.stdout.fileno(), _respond(commit))


def _respond(commit: Commit) -> bytes:
    """Commit the shard, and return the result or the error as JSON."""
    try:
        # Not threading.Thread, whose start() blocks forever if the new thread runs out of memory before it signals.
        _thread.start_new_thread(_end_with_parent, ())
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


def _end_with_parent() -> None:
    # Unbuffered, because the interpreter aborts at shutdown if a daemon thread holds the lock of sys.stdin.
    while os.read(0, 1):
        pass
    os._exit(1)
