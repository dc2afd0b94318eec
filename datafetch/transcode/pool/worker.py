"""Worker: what runs in a codec process. It takes batches of bodies from its shared buffers and puts JPEGs there.

Rules: the kernel bounds what an image may cost, because a decoder that is stuck does not react to anything. The sandbox
bounds what a worker may reach, because a decoder that was compromised obeys no rule. Outcomes are sent soon after they
exist, and the parent can see at any moment which image is at work, so a crash costs little and it is certain which
image caused it.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.process.allocator import keep_freed_memory
from datafetch.transcode.pool.protocol import U32, Startup, decode_request, encode_message, encode_reply
from datafetch.transcode.pool.sandbox import enter_sandbox
from datafetch.transcode.pool.shared_buffer import SharedBuffer
from datafetch.transcode.spec import ImageSpec

OUT_OF_MEMORY_STATUS = 77
"""The exit status of a worker that did not have enough memory for an image."""
WALL_CLOCK_FACTOR = 5
"""An image may take this many times its CPU limit in wall-clock time before it counts as hanging."""

_BASE_MEMORY_BYTES = 1 << 30  # the interpreter, Pillow, a batch of bodies, and what decoders need for any image
_MEMORY_BYTES_PER_PIXEL = 16  # an RGBA source and its RGB copy take 8, and a decoder's own buffers as much again
# Each reply wakes the parent, which costs it more than an image does; a crash costs what was not yet reported.
_REPLY_INTERVAL_S = 0.05
_OOM_SCORE_ADJ = "500"  # of 1000: when the machine runs out of memory, the kernel kills a worker before anything else


class Worker:
    """What a codec process does from its start to its end.

    Args:
        channel: Requests come from it, and replies are sent to it.
        buffers: Hold the bodies and the JPEGs.
        startup: What to do with a body, what it becomes, and what it may cost.
    """

    def __init__(self, channel: socket.socket, buffers: Sequence[SharedBuffer], startup: Startup) -> None:
        self._channel = channel
        self._buffers = buffers
        assert startup.codec is not None, "the fork server has loaded it"
        self._codec = startup.codec
        self._spec = startup.spec
        self._is_sandboxed = startup.is_sandboxed

    def run(self) -> None:
        """Process batch after batch until the parent closes the channel."""
        _limit_process(self._spec)
        keep_freed_memory()
        if self._is_sandboxed:
            enter_sandbox(_memory_limit_bytes(self._spec))
        with suppress(EOFError, ConnectionError), self._channel.makefile("rb") as requests:
            self._channel.sendall(encode_message(b""))
            while True:
                self._process_batch(_read_message(requests))

    def _process_batch(self, payload: bytes) -> None:
        """Process a batch, and report finished images at intervals."""
        request = decode_request(payload)
        buffer = self._buffers[request.buffer]
        outcomes: list[Outcome] = []
        body_start, jpeg_start = 0, sum(request.lengths)
        last_reply_s = time.monotonic()
        for number, length in enumerate(request.lengths):
            if not buffer.try_start(number):
                break
            with self._limits():
                outcome = self._codec(buffer.get(body_start, length), self._spec)
                if isinstance(outcome, Encoded):
                    buffer.put(jpeg_start, outcome.jpeg)
                    jpeg_start += len(outcome.jpeg)
            if isinstance(outcome, Failure) and outcome.kind is FailureKind.WORKER_CRASHED:
                os._exit(OUT_OF_MEMORY_STATUS)
            body_start += length
            outcomes.append(outcome)
            if time.monotonic() - last_reply_s >= _REPLY_INTERVAL_S and number + 1 < len(request.lengths):
                self._reply(encode_reply(request.buffer, outcomes, is_last=False))
                outcomes.clear()
                last_reply_s = time.monotonic()
        self._reply(encode_reply(request.buffer, outcomes, is_last=True))

    def _reply(self, payload: bytes) -> None:
        self._channel.sendall(encode_message(payload))

    @contextmanager
    def _limits(self) -> Iterator[None]:
        """Limit one image: the kernel ends this process when its time is up, and it exits when memory runs out.

        An image that finds too little memory is not to blame for what earlier images left allocated. The parent
        therefore tries it again in a fresh process.
        """
        signal.setitimer(signal.ITIMER_PROF, self._spec.decode_timeout_s)
        signal.setitimer(signal.ITIMER_REAL, self._spec.decode_timeout_s * WALL_CLOCK_FACTOR)
        try:
            yield
        except MemoryError:
            os._exit(OUT_OF_MEMORY_STATUS)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EFBIG):  # the shared buffer can't grow
                os._exit(OUT_OF_MEMORY_STATUS)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_process(spec: ImageSpec) -> None:
    """Keep the damage that an image can do within this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # otherwise each crash writes hundreds of MB
    # An image that allocates without end gets a MemoryError, instead of exhausting the machine's memory.
    limit_bytes = _memory_limit_bytes(spec)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)


def _memory_limit_bytes(spec: ImageSpec) -> int:
    return _BASE_MEMORY_BYTES + spec.max_pixels * _MEMORY_BYTES_PER_PIXEL


def _read_message(stream: BinaryIO) -> bytes:
    """Read the payload of the next message.

    Raises:
        EOFError: The parent closed the channel, or is gone.
    """
    return _read_exactly(stream, *U32.unpack(_read_exactly(stream, U32.size)))


def _read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
