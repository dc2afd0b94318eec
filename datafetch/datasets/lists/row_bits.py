"""Which rows of a file are selected, as one bit for each row; found again by the number of selected rows before it."""

from __future__ import annotations

from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from datafetch.datasets.readers import Int64s

Bools: TypeAlias = npt.NDArray[np.bool_]

_PIECE_ROWS = 1 << 16


class RowBits:
    """Which rows are selected; rows are only added at the end.

    Attributes:
        rows: How many rows there are.
        selected: How many of them are selected.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.selected = 0
        self._pieces: list[npt.NDArray[np.uint8]] = []  # of ``_PIECE_ROWS`` rows each, packed
        self._selected_before = [0]  # each piece, and behind the last one
        self._last = np.empty(0, np.bool_)  # the rows behind these

    def add(self, are_selected: Bools) -> None:
        """Add rows."""
        self.rows += len(are_selected)
        self.selected += int(np.count_nonzero(are_selected))
        self._last = np.concatenate((self._last, are_selected))
        while len(self._last) >= _PIECE_ROWS:
            piece, self._last = self._last[:_PIECE_ROWS], self._last[_PIECE_ROWS:]
            self._pieces.append(np.packbits(piece))
            self._selected_before.append(self._selected_before[-1] + int(np.count_nonzero(piece)))

    def add_unselected(self, rows: int) -> None:
        """Add rows none of which is selected."""
        while rows > 0:
            self.add(np.zeros(min(rows, _PIECE_ROWS), np.bool_))
            rows -= _PIECE_ROWS

    def numbers(self, start: int, stop: int) -> Int64s:
        """The numbers of the rows that are selected as number ``start`` up to, but not including, ``stop``."""
        before = np.array(self._selected_before)
        first = max(0, int(np.searchsorted(before, start, "right")) - 1)
        found: list[Int64s] = []
        count = int(before[first])
        for piece in range(first, len(self._pieces) + 1):
            if count >= stop:
                break
            bits = np.unpackbits(self._pieces[piece]) if piece < len(self._pieces) else self._last
            numbers = np.flatnonzero(bits).astype(np.int64) + piece * _PIECE_ROWS
            found.append(numbers[max(0, start - count) : stop - count])
            count += len(numbers)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def to_bytes(self) -> bytes:
        """All bits, packed; the last byte may have more bits than rows."""
        return b"".join((*(piece.tobytes() for piece in self._pieces), np.packbits(self._last).tobytes()))

    @classmethod
    def from_bytes(cls, packed: bytes, rows: int) -> Self:
        """The rows that were packed by ``to_bytes``."""
        bits = cls()
        content = np.frombuffer(packed, np.uint8)
        piece_bytes = _PIECE_ROWS // 8
        for start in range(0, len(content), piece_bytes):
            left = rows - bits.rows
            bits.add(np.unpackbits(content[start : start + piece_bytes], count=min(left, _PIECE_ROWS)).astype(np.bool_))
        return bits
