"""The messages between a worker and its parent; the images themselves are in shared buffers.

A message is a u32 length and a payload of that length::

    parent   u8 number of the buffer, then a u32 length for each body in it, one after the other
    worker   empty: ready; then, as images are finished, JSON: [buffer, [answer, …], is_last]
             answer: [width, height, format, sha256, is_original, length of the JPEG in the buffer, [permission, …],
             [width, height] as received or null if the same]
             or [kind, detail, sha256]

Answers come in the order of their bodies, and their JPEGs are in the buffer in the same order. ``is_last`` means that
the worker is done with the buffer, either because the batch is finished or because the parent took back the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permission, Permissions
from datafetch.transcode.spec import ImageSpec

Codec: TypeAlias = Callable[[bytes, ImageSpec], Outcome]
"""Decodes and encodes one image. It must pickle, because it is sent to the workers, and must not raise for a bad body.
"""

U32 = struct.Struct("<I")

_MAX_DETAIL_CHARS = 1000  # keeps every valid reply below the length that the parent accepts


@dataclass(frozen=True, slots=True)
class Startup:
    """What the fork server is told before it forks its first worker, as a pickle.

    Attributes:
        codec: What workers do with a body; None is ``codec.transcode``.
        spec: What an image becomes.
        parent_pid: The process that started the fork server.
        is_sandboxed: Whether workers enter the sandbox before their first body.
    """

    codec: Codec | None
    spec: ImageSpec
    parent_pid: int
    is_sandboxed: bool


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A batch: the number of the buffer that holds it, and the length of each body."""

    buffer: int
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class BatchReply:
    """The next answers for a batch.

    Attributes:
        buffer: The number of the batch's buffer.
        answers: One for each image.
        is_last: Whether the buffer is free again.
    """

    buffer: int
    answers: Sequence[EncodedInBuffer | Failure]
    is_last: bool


@dataclass(frozen=True, slots=True)
class EncodedInBuffer:
    """An ``Encoded`` whose JPEG is still in the shared buffer."""

    width_px: int
    height_px: int
    source_format: str
    sha256: str
    is_original: bool
    jpeg_length: int
    permitted: Permissions
    received_px: tuple[int, int] | None

    def with_jpeg(self, jpeg: bytes) -> Encoded:
        """Return the complete outcome."""
        size_px = self.width_px, self.height_px
        return Encoded(
            jpeg, *size_px, self.source_format, self.sha256, self.is_original, self.permitted, self.received_px
        )


def encode_message(payload: bytes) -> bytes:
    """Put the length in front of a payload."""
    return U32.pack(len(payload)) + payload


def encode_request(request: BatchRequest) -> bytes:
    """Encode a request as a payload."""
    return struct.pack(f"<B{len(request.lengths)}I", request.buffer, *request.lengths)


def decode_request(payload: bytes) -> BatchRequest:
    """Decode the payload of a request."""
    buffer, *lengths = struct.unpack(f"<B{len(payload) // U32.size}I", payload)
    return BatchRequest(buffer, lengths)


def encode_reply(buffer: int, outcomes: Sequence[Outcome], *, is_last: bool) -> bytes:
    """Encode outcomes as the payload of a reply, without their JPEGs."""
    return orjson.dumps([buffer, [_encode_answer(outcome) for outcome in outcomes], is_last])


def _encode_answer(outcome: Outcome) -> list[object]:
    if isinstance(outcome, Failure):
        detail = outcome.detail[:_MAX_DETAIL_CHARS].encode("utf-8", "replace").decode()
        return [outcome.kind.value, detail, outcome.sha256]
    size = [outcome.width_px, outcome.height_px]
    about = [outcome.source_format, outcome.sha256, outcome.is_original, len(outcome.jpeg), outcome.permitted]
    return [*size, *about, outcome.received_px]


def decode_reply(payload: bytes) -> BatchReply:
    """Decode the payload of a reply.

    Raises:
        ValueError: It is no valid reply; a worker that was compromised by an image may send anything.
    """
    match orjson.loads(payload):
        case [int(buffer), [*answers], bool(is_last)]:
            return BatchReply(buffer, [_decode_answer(answer) for answer in answers], is_last)
        case _:
            raise ValueError("not a reply")


def _decode_answer(answer: object) -> EncodedInBuffer | Failure:
    match answer:
        case [
            int(width_px),
            int(height_px),
            str(source_format),
            str(sha256),
            bool(is_original),
            int(length),
            [*names],
            None | [int(), int()] as received,
        ]:
            permitted = tuple(Permission(str(name)) for name in names)
            received_px = None if received is None else (received[0], received[1])
            about = source_format, sha256, is_original, length, permitted, received_px
            return EncodedInBuffer(width_px, height_px, *about)
        case [str(kind), str(detail), str(sha256)]:
            return Failure(FailureKind(kind), detail, sha256=sha256)
        case _:
            raise ValueError("not an outcome")
