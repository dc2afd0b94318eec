"""What a codec process and its parent say to each other; the images themselves lie in trays.

A message is a u32 length and as many bytes::

    parent   u8 tray, then a u32 length for each body that lies in it, one after the other
    worker   empty: ready; then, as images end, JSON: [tray, [answer, …], is_last]
             answer: [width, height, format, sha256, is_original, length of the JPEG in the tray, [permission, …]]
             or [kind, detail, sha256]

Answers come in the order of their bodies and their JPEGs lie in the tray in that order. ``is_last`` says that the
codec process is done with the tray, be it because the rest was not to be begun.
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
"""Decodes and encodes one image. Must pickle, for it travels to the processes; must not raise for a bad body."""

U32 = struct.Struct("<I")

_MAX_DETAIL_CHARS = 1000  # so that no honest reply is longer than its parent would read


@dataclass(frozen=True, slots=True)
class Startup:
    """What the fork server is started with, as a pickle.

    Attributes:
        codec: What its processes do with a body.
        spec: What comes out.
        parent_pid: Who ordered it.
        is_shut_in: Whether its processes are shut into a sandbox before their first body.
    """

    codec: Codec
    spec: ImageSpec
    parent_pid: int
    is_shut_in: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A batch: the number of the tray that it lies in, and the length of each body."""

    buffer: int
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class Reply:
    """The next answers for a batch.

    Attributes:
        buffer: The number of its tray.
        answers: One an image.
        is_last: Whether the tray is free again.
    """

    buffer: int
    answers: Sequence[Arrival | Failure]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    """An image that was encoded, whose JPEG lies in the tray; see ``Encoded``."""

    width_px: int
    height_px: int
    source_format: str
    sha256: str
    is_original: bool
    jpeg_length: int
    permitted: Permissions

    def with_jpeg(self, jpeg: bytes) -> Encoded:
        """The outcome."""
        size_px = self.width_px, self.height_px
        return Encoded(jpeg, *size_px, self.source_format, self.sha256, self.is_original, self.permitted)


def encode_message(payload: bytes) -> bytes:
    """A message, ready to be sent."""
    return U32.pack(len(payload)) + payload


def encode_request(request: Request) -> bytes:
    """The payload that tells of a batch."""
    return struct.pack(f"<B{len(request.lengths)}I", request.buffer, *request.lengths)


def decode_request(payload: bytes) -> Request:
    """The batch that a payload tells of."""
    buffer, *lengths = struct.unpack(f"<B{len(payload) // U32.size}I", payload)
    return Request(buffer, lengths)


def encode_reply(buffer: int, outcomes: Sequence[Outcome], *, is_last: bool) -> bytes:
    """The payload that tells of these outcomes."""
    return orjson.dumps([buffer, [_describe(outcome) for outcome in outcomes], is_last])


def _describe(outcome: Outcome) -> list[str | int | bool | Permissions]:
    if isinstance(outcome, Failure):
        detail = outcome.detail[:_MAX_DETAIL_CHARS].encode("utf-8", "replace").decode()
        return [outcome.kind.value, detail, outcome.sha256]
    size = [outcome.width_px, outcome.height_px]
    return [*size, outcome.source_format, outcome.sha256, outcome.is_original, len(outcome.jpeg), outcome.permitted]


def decode_reply(payload: bytes) -> Reply:
    """The outcomes that a payload tells of.

    Raises:
        ValueError: It tells of none; a decoder that strangers' data overwhelmed may say anything.
    """
    match orjson.loads(payload):
        case [int(buffer), [*outcomes], bool(is_last)]:
            return Reply(buffer, [_answer(outcome) for outcome in outcomes], is_last)
        case _:
            raise ValueError("not a reply")


def _answer(description: object) -> Arrival | Failure:
    match description:
        case [int(width_px), int(height_px), str(source_format), str(sha256), bool(is_original), int(length), [*said]]:
            permitted = tuple(Permission(str(permission)) for permission in said)
            return Arrival(width_px, height_px, source_format, sha256, is_original, length, permitted)
        case [str(kind), str(detail), str(sha256)]:
            return Failure(FailureKind(kind), detail, sha256=sha256)
        case _:
            raise ValueError("not an outcome")
