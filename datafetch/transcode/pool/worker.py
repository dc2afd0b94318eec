"""A codec process: it takes batches of bodies from its trays, and puts JPEGs there.

Rules: what an image may cost is bounded by the kernel, for a decoder that is stuck reacts to nothing, and so is what it
may reach, for one that is taken over obeys no rule. Outcomes are sent soon after they are there, and which image is in
hand can be seen at any moment, so that a death costs little and leaves no doubt which image was to blame.
"""

from __future__ import annotations

import ctypes
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
from datafetch.transcode.pool.protocol import U32, Startup, decode_request, encode_message, encode_reply
from datafetch.transcode.pool.sandbox import shut_in
from datafetch.transcode.pool.shared_buffer import SharedBuffer
from datafetch.transcode.spec import ImageSpec

OUT_OF_MEMORY_STATUS = 77
"""The exit status of a codec process whose memory was not enough for an image."""
WALL_CLOCK_FACTOR = 5
"""How many times its CPU seconds an image may take by the clock on the wall, before it counts as hanging."""

_BASE_MEMORY_BYTES = 1 << 30  # interpreter, Pillow, a batch of bodies, what decoders need whatever the size
_MEMORY_BYTES_PER_PIXEL = 16  # an RGBA source and its RGB copy take 8, a decoder of its own as much again
# A reply wakes the parent, which costs it more than the images do; a death costs what was not told yet.
_REPLY_INTERVAL_S = 0.05
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT_BLOCK_BYTES = 32 * 1024 * 1024  # Pillow allocates pixels in blocks of 16 MiB at most
_KEPT_BYTES = 64 * 1024 * 1024
_FIRST_VICTIM = "500"  # of 1000: when the machine runs out of memory, a codec process goes before anybody else


class CodecProcess:
    """What a codec process does, from its start to its end.

    Args:
        channel: Where requests come from and replies go to.
        trays: Where bodies and JPEGs lie.
        orders: What to do with a body, what comes out, and what an image may cost.
    """

    def __init__(self, channel: socket.socket, buffers: Sequence[SharedBuffer], orders: Startup) -> None:
        self._channel = channel
        self._trays = buffers
        self._codec = orders.codec
        self._spec = orders.spec
        self._is_shut_in = orders.is_shut_in

    def run(self) -> None:
        """Work on one batch after the other, until the parent closes the channel."""
        _limit_process(self._spec)
        keep_freed_memory()
        if self._is_shut_in:
            shut_in(_memory_bytes(self._spec))
        with suppress(EOFError, ConnectionError), self._channel.makefile("rb") as requests:
            self._channel.sendall(encode_message(b""))
            while True:
                self._serve(_read_message(requests))

    def _serve(self, payload: bytes) -> None:
        """Work on a batch, telling what is done often enough."""
        request = decode_request(payload)
        buffer = self._trays[request.buffer]
        outcomes: list[Outcome] = []
        body_start, jpeg_start = 0, sum(request.lengths)
        told_s = time.monotonic()
        for number, length in enumerate(request.lengths):
            if not buffer.begin(number):
                break
            with self._bounds():
                outcome = self._codec(buffer.get(body_start, length), self._spec)
                if isinstance(outcome, Encoded):
                    buffer.put(jpeg_start, outcome.jpeg)
                    jpeg_start += len(outcome.jpeg)
            if isinstance(outcome, Failure) and outcome.kind is FailureKind.WORKER_CRASHED:
                os._exit(OUT_OF_MEMORY_STATUS)
            body_start += length
            outcomes.append(outcome)
            if time.monotonic() - told_s >= _REPLY_INTERVAL_S and number + 1 < len(request.lengths):
                self._reply(encode_reply(request.buffer, outcomes, is_last=False))
                outcomes.clear()
                told_s = time.monotonic()
        self._reply(encode_reply(request.buffer, outcomes, is_last=True))

    def _reply(self, payload: bytes) -> None:
        self._channel.sendall(encode_message(payload))

    @contextmanager
    def _bounds(self) -> Iterator[None]:
        """Bound an image: past its time the kernel ends this process, and for want of memory it ends itself.

        An image that finds no memory is not to blame for what others left lying about, so the parent tries it again.
        """
        signal.setitimer(signal.ITIMER_PROF, self._spec.decode_timeout_s)
        signal.setitimer(signal.ITIMER_REAL, self._spec.decode_timeout_s * WALL_CLOCK_FACTOR)
        try:
            yield
        except MemoryError:
            os._exit(OUT_OF_MEMORY_STATUS)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EFBIG):  # of the tray
                os._exit(OUT_OF_MEMORY_STATUS)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_process(spec: ImageSpec) -> None:
    """Let what an image does to this process stay between the two of them."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # or each crash would write hundreds of MB
    # An image that allocates without end runs into a MemoryError instead of into the machine's other processes.
    limit_bytes = _memory_bytes(spec)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_VICTIM)


def _memory_bytes(spec: ImageSpec) -> int:
    return _BASE_MEMORY_BYTES + spec.max_pixels * _MEMORY_BYTES_PER_PIXEL


def keep_freed_memory() -> None:
    """Keep memory that an image frees for the next one; getting it from the system again costs a tenth of the time.

    An image of a web crawl costs 150 to 450 page faults otherwise, for glibc gives large blocks back at once.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _read_message(stream: BinaryIO) -> bytes:
    """The payload of the next message.

    Raises:
        EOFError: The parent closed the channel, or is gone.
    """
    return _read_exactly(stream, *U32.unpack(_read_exactly(stream, U32.size)))


def _read_exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
