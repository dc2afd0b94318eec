"""The form of the pickle shards that VILA's loaders read: a list of dicts that can be written as it grows.

Rules: never more than one row in memory. A pickle of a list can be written as it grows::

    PROTO 4 · EMPTY_LIST · MARK · row … row · APPENDS · MARK · row … row · APPENDS · STOP

so many rows between MARK and APPENDS (``ROWS_AT_ONCE``), each in a FRAME of its own (pickletools documents the
opcodes). A frame carries its length, so that rows are found, counted and copied without being read
(``pickle_rows``). Where a row lies follows from the lengths of the rows before it: ``ListLayout``.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt

from datafetch.model import Row

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
