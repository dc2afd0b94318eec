"""The equal shards that are being made: where each row goes, and what is not on disk yet.

Rules: where a row lies in its shard follows from the lengths of the rows before it, so rows are written in any order,
and writing one again changes nothing. One file is open at a time, however many shards there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datafetch.errors import ManifestError
from datafetch.output.formats import ListLayout, frame_sizes
from datafetch.output.reshard.ranks import Ranks, equal_sizes
from datafetch.store.atomic import make_folder, sync

Int64s: TypeAlias = npt.NDArray[np.int64]
UInt32s: TypeAlias = npt.NDArray[np.uint32]


def shard_name(number: int, shards: int) -> str:
    """The name of one of so many shards. All have as many digits, for the loader sorts names as text."""
    return f"part-{number:0{max(5, len(str(shards - 1)))}d}"


class ShardWriter:
    """Equal shards in a folder; memory holds 12 bytes a row.

    Args:
        folder: Where they are made.
        frame_bytes: The length of each row as it stands in a shard, by its place among all rows.
        ranks: Who will read them.

    Raises:
        ConfigurationError: There are too few rows for so many ranks.
    """

    def __init__(self, folder: Path, frame_bytes: UInt32s, ranks: Ranks) -> None:
        self.folder = folder
        self.rows = len(frame_bytes)
        self._frame_bytes = frame_bytes
        sizes = equal_sizes(self.rows, ranks, int(frame_bytes.sum(dtype=np.int64)))
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._offsets = np.empty(self.rows, np.int64)
        self._file_bytes: list[int] = []
        for target in range(len(sizes)):
            layout = self._layout(target)
            self._offsets[self._span(target)] = layout.offsets
            self._file_bytes.append(layout.total_bytes)
        self._unsynced: set[int] = set()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def total_bytes(self) -> int:
        """Of all ``.pkl`` files."""
        return sum(self._file_bytes)

    def rows_of(self, target: int) -> int:
        """How many rows a shard holds."""
        span = self._span(target)
        return int(span.stop - span.start)

    def files(self) -> dict[str, list[int]]:
        """By the shard's name: its rows, and the bytes of its ``.pkl``."""
        return {
            shard_name(target, len(self)): [self.rows_of(target), self._file_bytes[target]]
            for target in range(len(self))
        }

    def lay_out(self) -> None:
        """Write everything that is not a row; done again, it changes nothing."""
        make_folder(self.folder)
        for target in range(len(self)):
            with self._opened(target) as descriptor:
                for piece in self._layout(target).pieces():
                    _write_at(descriptor, piece.content, piece.offset)
            self._path(target).with_suffix(".count").write_text(str(self.rows_of(target)), encoding="ascii")

    def write(self, frames: Sequence[bytes], places: Int64s) -> None:
        """Write rows to their places."""
        by_place = np.argsort(places, kind="stable")
        targets = np.searchsorted(self._ends, places[by_place], side="right")
        firsts = np.flatnonzero(np.diff(targets, prepend=-1))
        offsets = self._offsets[places].tolist()
        for target, members in zip(targets[firsts].tolist(), np.split(by_place, firsts[1:]), strict=True):
            with self._opened(target) as descriptor:
                for member in members.tolist():
                    _write_at(descriptor, frames[member], offsets[member])

    def sync(self) -> None:
        """Return when all that was written is on disk."""
        for target in sorted(self._unsynced):
            sync(self._path(target))
            sync(self._path(target).with_suffix(".count"))
        sync(self.folder)
        self._unsynced.clear()

    def have_lengths(self, places: Int64s, frames: Sequence[bytes]) -> bool:
        """Whether rows are as long as they were when they were measured, and so fit into their places."""
        return bool(np.array_equal(self._frame_bytes[places], [len(frame) for frame in frames]))

    def is_right(self, target: int) -> bool:
        """Whether a shard holds rows of the right lengths up to its proper end, as whoever reads it will see."""
        try:
            lengths = np.fromiter(frame_sizes(self._path(target)), np.int64)
        except ManifestError:
            return False
        return bool(np.array_equal(lengths, self._frame_bytes[self._span(target)]))

    def _span(self, target: int) -> slice:
        return slice(int(self._ends[target - 1]) if target else 0, int(self._ends[target]))

    def _layout(self, target: int) -> ListLayout:
        return ListLayout(self._frame_bytes[self._span(target)].astype(np.int64))

    def _path(self, target: int) -> Path:
        return self.folder / f"{shard_name(target, len(self))}.pkl"

    @contextmanager
    def _opened(self, target: int) -> Iterator[int]:
        self._unsynced.add(target)
        descriptor = os.open(self._path(target), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    written = 0
    while written < len(content):  # a disk that fills up takes a part, and then says so
        written += os.pwrite(descriptor, memoryview(content)[written:], offset + written)
