"""The byte format of pickle shards: a pickled list of dicts, as VILA's loaders read it, that is written row by row.

Theory of operation: a pickle of a list can be written before the number of its elements is known, because the list is
extended in batches (``pickletools`` documents the opcodes)::

    PROTO 4 · EMPTY_LIST · MARK · row … row · APPENDS · MARK · row … row · APPENDS · STOP

Each batch has ``ROWS_PER_BATCH`` rows, and each row is a FRAME of its own. A frame starts with its length, so rows can
be found, counted and copied without being decoded (``pickle_rows``). The offset of a row depends only on the lengths of
the rows before it, so rows can also be written in any order (``FrameOffsets``). Never more than one row is in memory.
"""

from __future__ import annotations

import pickle
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
)
from datafetch.store.spool_format import SpooledImage

PREAMBLE = pickle.PROTO + bytes([4]) + pickle.EMPTY_LIST
FRAME_HEADER_BYTES = 9  # the opcode and a length of 8 bytes
MAX_FRAME_BYTES = 2**32 - 1  # resharding holds the lengths of millions of rows, in 4 bytes each
ROWS_PER_BATCH = 1000  # as in the standard library; the reader's stack holds a batch before it joins the list

# Protocol 3 has no frames of its own that would be nested in ours, and all of its output is valid in protocol 4.
_ROW_PROTOCOL = 3
_ROW_PREAMBLE_BYTES = 2
BATCH_SEPARATOR = pickle.APPENDS + pickle.MARK
LIST_END = pickle.APPENDS + pickle.STOP


def encode_row(row: Row) -> bytes:
    """The frame of a row.

    No memo is used, so the bytes depend on the row's values alone, and not on which of them are the same object.
    """
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, _ROW_PROTOCOL)
    pickler.fast = True
    pickler.dump(dict(row))
    body = buffer.getbuffer()[_ROW_PREAMBLE_BYTES : -len(pickle.STOP)]
    return b"".join((pickle.FRAME, len(body).to_bytes(8, "little"), body))


def row_frame(row: OutputRow) -> Iterable[bytes]:
    """The frame of a row with its images, as from ``encode_row``, in pieces, with one image in memory at a time."""
    template = encode_row(row.values)[FRAME_HEADER_BYTES:]
    slots = [_ImageSlot.of(match, row.images) for match in _PLACEHOLDERS.finditer(template)]
    body_bytes = len(template) + sum(slot.grows_by_bytes for slot in slots)
    return _pieces(template, slots, body_bytes)


def _pieces(template: bytes, slots: Sequence[_ImageSlot], body_bytes: int) -> Iterator[bytes]:
    yield pickle.FRAME + body_bytes.to_bytes(8, "little")
    copied = 0
    for slot in slots:
        yield template[copied : slot.start]
        yield slot.header
        yield slot.content()
        copied = slot.end
    yield template[copied:]


# A placeholder in a pickle: base64 text with its length in four bytes, or bytes with their length in one.
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
class _ImageSlot:
    """A placeholder in a pickled row, and the image that replaces it; offsets include the opcode and the length."""

    start: int
    end: int
    image: SpooledImage
    is_text: bool

    @classmethod
    def of(cls, match: re.Match[bytes], images: Sequence[SpooledImage]) -> Self:
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
        if size <= _MAX_SHORT_BYTES:
            return pickle.SHORT_BINBYTES + bytes([size])
        return pickle.BINBYTES + size.to_bytes(4, "little")

    @property
    def grows_by_bytes(self) -> int:
        return len(self.header) + self.content_bytes - (self.end - self.start)

    def content(self) -> bytes:
        jpeg = self.image.load().jpeg
        return pybase64.b64encode(jpeg) if self.is_text else jpeg


_MAX_SHORT_BYTES = 255


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at an offset of a file."""

    offset: int
    content: bytes = field(repr=False)


class FrameOffsets:
    """The offsets of the frames of a shard, so that they can be written in any order.

    Args:
        frame_bytes: The lengths of the frames in order; at least one.
    """

    def __init__(self, frame_bytes: npt.NDArray[np.int64]) -> None:
        rows = len(frame_bytes)
        before = np.concatenate(([0], np.cumsum(frame_bytes[:-1], dtype=np.int64)))
        breaks = np.arange(rows, dtype=np.int64) // ROWS_PER_BATCH
        self.offsets = len(PREAMBLE) + len(pickle.MARK) + len(BATCH_SEPARATOR) * breaks + before
        self._end = int(self.offsets[-1] + frame_bytes[-1])

    @property
    def total_bytes(self) -> int:
        """The size of the file."""
        return self._end + len(LIST_END)

    def pieces(self) -> list[Piece]:
        """Everything in the file that is not a frame."""
        breaks = self.offsets[ROWS_PER_BATCH::ROWS_PER_BATCH]
        between = (Piece(int(offset) - len(BATCH_SEPARATOR), BATCH_SEPARATOR) for offset in breaks)
        return [Piece(0, PREAMBLE + pickle.MARK), *between, Piece(self._end, LIST_END)]
