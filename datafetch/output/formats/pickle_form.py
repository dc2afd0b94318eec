"""The form of the pickle shards that VILA's loaders read: a list of dicts that can be written as it grows.

Rules: never more than one row in memory. A pickle of a list can be written as it grows::

    PROTO 4 · EMPTY_LIST · MARK · row … row · APPENDS · MARK · row … row · APPENDS · STOP

so many rows between MARK and APPENDS (``ROWS_AT_ONCE``), each in a FRAME of its own (pickletools documents the
opcodes). A frame carries its length, so that rows are found, counted and copied without being read
(``pickle_rows``). Where a row lies follows from the lengths of the rows before it: ``ListLayout``.
"""

from __future__ import annotations

import pickle
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
import numpy.typing as npt
import pybase64

from datafetch.model.sample import Row
from datafetch.output.row import (
    NUMBER_BYTES,
    PLACEHOLDER_BYTES,
    PLACEHOLDER_PREFIX,
    PLACEHOLDER_PREFIX_TEXT,
    OutputRow,
    StoredImage,
)

PREAMBLE = pickle.PROTO + bytes([4]) + pickle.EMPTY_LIST
FRAME_HEADER_BYTES = 9  # the opcode and a length of 8 bytes
MOST_FRAME_BYTES = 2**32 - 1  # whoever moves rows keeps 4 bytes for each one's length, for millions of rows
ROWS_AT_ONCE = 1000  # as the standard library does: the reader's stack holds this many before they join the list

# Protocol 3 puts no frames of its own into a row, and whatever it writes is valid in protocol 4.
_ROW_PROTOCOL = 3
_ROW_PREAMBLE_BYTES = 2
BETWEEN = pickle.APPENDS + pickle.MARK
END = pickle.APPENDS + pickle.STOP


def encode_row(row: Row) -> bytes:
    """One row as it stands in a shard: its frame.

    Without a memo: what a row's bytes are depends on its values alone, and not on which of them are the same object.
    """
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, _ROW_PROTOCOL)
    pickler.fast = True
    pickler.dump(dict(row))
    body = buffer.getbuffer()[_ROW_PREAMBLE_BYTES : -len(pickle.STOP)]
    return b"".join((pickle.FRAME, len(body).to_bytes(8, "little"), body))


def row_frame(row: OutputRow) -> Iterable[bytes]:
    """One row as ``encode_row`` would give it with its images, in pieces, so that one image at a time is in memory."""
    template = encode_row(row.values)[FRAME_HEADER_BYTES:]
    places = [_ImagePlace.of(match, row.images) for match in _PLACEHOLDERS.finditer(template)]
    body_bytes = len(template) + sum(place.grows_by_bytes for place in places)
    return _pieces(template, places, body_bytes)


def _pieces(template: bytes, places: Sequence[_ImagePlace], body_bytes: int) -> Iterator[bytes]:
    yield pickle.FRAME + body_bytes.to_bytes(8, "little")
    copied = 0
    for place in places:
        yield template[copied : place.start]
        yield place.header
        yield place.content()
        copied = place.end
    yield template[copied:]


# As they lie in a pickle: text of base64 with its length in four bytes, or bytes with theirs in one.
_PLACEHOLDERS = re.compile(
    re.escape(pickle.BINUNICODE + (PLACEHOLDER_BYTES * 4 // 3).to_bytes(4, "little"))
    + rb"(?P<text>"
    + re.escape(PLACEHOLDER_PREFIX_TEXT)
    + rb"[A-Za-z0-9+/]{4})|"
    + re.escape(pickle.SHORT_BINBYTES + bytes([PLACEHOLDER_BYTES]))
    + rb"(?P<bytes>"
    + re.escape(PLACEHOLDER_PREFIX)
    + rb".{3})",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _ImagePlace:
    """Where in a row an image belongs: what stands there, opcode and length included, and what is to stand there."""

    start: int
    end: int
    image: StoredImage
    is_text: bool

    @classmethod
    def of(cls, match: re.Match[bytes], images: Sequence[StoredImage]) -> Self:
        is_text = match["text"] is not None
        content = b64decode(match["text"]) if is_text else match["bytes"]
        return cls(match.start(), match.end(), images[int.from_bytes(content[-NUMBER_BYTES:], "big")], is_text)

    @property
    def content_bytes(self) -> int:
        size = self.image.jpeg_bytes
        return -(-size // 3) * 4 if self.is_text else size

    @property
    def header(self) -> bytes:
        size = self.content_bytes
        if self.is_text:
            return pickle.BINUNICODE + size.to_bytes(4, "little")
        if size <= _MOST_SHORT_BYTES:
            return pickle.SHORT_BINBYTES + bytes([size])
        return pickle.BINBYTES + size.to_bytes(4, "little")

    @property
    def grows_by_bytes(self) -> int:
        return len(self.header) + self.content_bytes - (self.end - self.start)

    def content(self) -> bytes:
        jpeg = self.image.load().jpeg
        return pybase64.b64encode(jpeg) if self.is_text else jpeg


_MOST_SHORT_BYTES = 255


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at a place of a file."""

    offset: int
    content: bytes


class ListLayout:
    """Where the frames of a shard lie, so that they can be written in any order.

    Args:
        frame_bytes: The lengths of the frames, in order; one at least.
    """

    def __init__(self, frame_bytes: npt.NDArray[np.int64]) -> None:
        rows = len(frame_bytes)
        before = np.concatenate(([0], np.cumsum(frame_bytes[:-1], dtype=np.int64)))
        breaks = np.arange(rows, dtype=np.int64) // ROWS_AT_ONCE
        self.offsets = len(PREAMBLE) + len(pickle.MARK) + len(BETWEEN) * breaks + before
        self._end = int(self.offsets[-1] + frame_bytes[-1])

    @property
    def total_bytes(self) -> int:
        """The size of the file."""
        return self._end + len(END)

    def pieces(self) -> list[Piece]:
        """Everything in the file that is not a frame."""
        breaks = self.offsets[ROWS_AT_ONCE::ROWS_AT_ONCE]
        between = (Piece(int(offset) - len(BETWEEN), BETWEEN) for offset in breaks)
        return [Piece(0, PREAMBLE + pickle.MARK), *between, Piece(self._end, END)]
