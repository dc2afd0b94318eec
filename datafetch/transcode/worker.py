"""The other side of the pool: a process that reads bodies from a socket and writes outcomes to it.

Rules: it imports Pillow and never the network; it ends when its parent does, however that ends, because then the
socket does; it leaves Ctrl-C to its parent.

The first frame a worker gets is its orders: one part, a pickle of codec and spec. It answers with an empty frame when
it is ready. From then on a request is a frame of bodies, a reply a frame of outcomes in the same order::

    frame    u32 parts, then each part as u32 length + bytes
    request  one part a body
    reply    first part: JSON, a list of one object an outcome; then one part a JPEG, for those that have one
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import signal
import socket
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import orjson

from datafetch.model import Encoded, Failure, FailureKind, Outcome
from datafetch.transcode.spec import ImageSpec

Codec: TypeAlias = Callable[[bytes, ImageSpec], Outcome]
"""Decodes and encodes one image. Must pickle, for it travels to the processes; must not raise for a bad body."""

_Stream: TypeAlias = io.BufferedRWPair

_BASE_MEMORY_BYTES = 1 << 30  # interpreter, Pillow, a batch of bodies, the threads of the AVIF decoder
_MEMORY_BYTES_PER_PIXEL = 16  # an RGBA source and its RGB copy take 8, a decoder of its own as much again

U32 = struct.Struct("<I")


def main() -> None:
    """Serve the channel that the parent left as standard input, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rwb") as stream:
        # The parent may end at any moment, with a frame half sent or half read: that is the end of our work too.
        with contextlib.suppress(EOFError, ConnectionError):
            _serve(stream)
        with contextlib.suppress(ConnectionError):
            stream.close()


def _serve(stream: _Stream) -> None:
    codec, spec = pickle.loads(read_frame(stream)[0])  # noqa: S301 - our own parent wrote it
    _prepare_pillow()
    _limit_memory(spec.max_pixels)
    _write(stream, encode_frame([]))
    while True:
        bodies = read_frame(stream)
        _write(stream, encode_reply([_bounded(codec, body, spec) for body in bodies]))


def _prepare_pillow() -> None:
    from PIL import Image  # noqa: PLC0415 - here, so that a parent that imports this module stays free of Pillow

    Image.MAX_IMAGE_PIXELS = None  # the spec's own limit is checked from the header
    warnings.simplefilter("ignore")  # Pillow's remarks on strangers' files are nobody's news; the outcome says it


def _limit_memory(max_pixels: int) -> None:
    """Let an image that allocates without end run into a MemoryError instead of into the machine's other processes."""
    limit_bytes = _BASE_MEMORY_BYTES + max_pixels * _MEMORY_BYTES_PER_PIXEL
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


def _bounded(codec: Codec, body: bytes, spec: ImageSpec) -> Outcome:
    """Run the codec; past its CPU time the kernel ends this process, and the parent blames this image."""
    signal.setitimer(signal.ITIMER_PROF, spec.decode_timeout_s)
    try:
        return codec(body, spec)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _write(stream: _Stream, frame: Sequence[bytes]) -> None:
    stream.writelines(frame)
    stream.flush()


def encode_frame(parts: Sequence[bytes]) -> list[bytes]:
    """A frame as pieces to be written one after the other, without copying the parts."""
    frame = [U32.pack(len(parts))]
    for part in parts:
        frame += (U32.pack(len(part)), part)
    return frame


def read_frame(stream: _Stream) -> list[bytes]:
    """The parts of the next frame.

    Raises:
        EOFError: The stream ended.
    """
    (count,) = U32.unpack(_read_exactly(stream, U32.size))
    return [_read_exactly(stream, *U32.unpack(_read_exactly(stream, U32.size))) for _ in range(count)]


def _read_exactly(stream: _Stream, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def encode_reply(outcomes: Sequence[Outcome]) -> list[bytes]:
    """The frame that carries these outcomes."""
    heads = []
    jpegs = []
    for outcome in outcomes:
        match outcome:
            case Encoded():
                heads.append([outcome.width_px, outcome.height_px, outcome.source_format, outcome.sha256])
                jpegs.append(outcome.jpeg)
            case Failure():
                heads.append([outcome.kind.value, outcome.detail, outcome.sha256])
    return encode_frame([orjson.dumps(heads), *jpegs])


def decode_reply(parts: Sequence[bytes]) -> list[Outcome]:
    """The outcomes that a frame carries."""
    jpegs = iter(parts[1:])
    outcomes: list[Outcome] = []
    for head in orjson.loads(parts[0]):
        match head:
            case [int(width_px), int(height_px), str(source_format), str(sha256)]:
                outcomes.append(Encoded(next(jpegs), width_px, height_px, source_format, sha256))
            case [str(kind), str(detail), str(sha256)]:
                outcomes.append(Failure(FailureKind(kind), detail, sha256=sha256))
    return outcomes
