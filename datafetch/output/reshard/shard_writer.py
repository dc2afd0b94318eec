"""Write resharded files in any order of their rows.

Rules: the file and offset of a row follow from the lengths of all rows before it. So rows can be written in any order,
and writing one again changes nothing. Writing and syncing have one file open at a time, however many shards there are;
only ``checksum`` and ``is_correct``, which read, may be called while another thread is in a method.
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
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, FrameOffsets, crc32_of, frame_sizes
from datafetch.output.reshard.plan import Int64s
from datafetch.output.reshard.ranks import Ranks, shard_sizes
from datafetch.output.reshard.record import ReshardedFile
from datafetch.store.atomic import make_folder, sync

UInt32s: TypeAlias = npt.NDArray[np.uint32]


def shard_name(number: int, shards: int) -> str:
    """The name of a shard. All names have the same number of digits, because the loader sorts them as text.

    Args:
        number: The shard's number, from 0.
        shards: The number of shards.
    """
    return f"part-{number:0{max(5, len(str(shards - 1)))}d}"


class ReshardWriter:
    """Writes a set of new shards; memory holds 12 bytes per row.

    Args:
        folder: The folder of the shards.
        frame_bytes: The length of each row's frame, by the row's position among all rows of the set.
        ranks: The ranks that will read them.

    Raises:
        ConfigurationError: There are too few rows for this number of ranks.
    """

    def __init__(self, folder: Path, frame_bytes: UInt32s, ranks: Ranks) -> None:
        self.folder = folder
        self.rows = len(frame_bytes)
        self._frame_bytes = frame_bytes
        sizes = shard_sizes(self.rows, ranks, int(frame_bytes.sum(dtype=np.int64)))
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._offsets = np.empty(self.rows, np.int64)
        self._file_bytes: list[int] = []
        for shard in range(len(sizes)):
            frames = self._frame_offsets(shard)
            self._offsets[self._span(shard)] = frames.offsets
            self._file_bytes.append(frames.total_bytes)
        self._unsynced: set[int] = set()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def total_bytes(self) -> int:
        """The size of all shards, without their counts."""
        return sum(self._file_bytes)

    def rows_of(self, shard: int) -> int:
        """The number of rows in a shard."""
        span = self._span(shard)
        return int(span.stop - span.start)

    def files(self) -> dict[str, ReshardedFile]:
        """The shards by name, in order."""
        return {
            self.name_of(shard): ReshardedFile(self.rows_of(shard), self._file_bytes[shard])
            for shard in range(len(self))
        }

    def write_opcodes_and_counts(self) -> None:
        """Write everything but the rows: pickle opcodes and counts. Repeating it changes nothing."""
        make_folder(self.folder)
        for shard in range(len(self)):
            with self._opened(shard) as descriptor:
                for piece in self._frame_offsets(shard).pieces():
                    _write_at(descriptor, piece.content, piece.offset)
            self._path(shard).with_suffix(COUNT_SUFFIX).write_text(str(self.rows_of(shard)), encoding="ascii")

    def write(self, frames: Sequence[bytes], positions: Int64s) -> None:
        """Write frames to the offsets of their positions, one shard after another."""
        by_position = np.argsort(positions, kind="stable")
        shards = np.searchsorted(self._ends, positions[by_position], side="right")
        firsts = np.flatnonzero(np.diff(shards, prepend=-1))
        offsets = self._offsets[positions].tolist()
        for shard, rows in zip(shards[firsts].tolist(), np.split(by_position, firsts[1:]), strict=True):
            with self._opened(shard) as descriptor:
                for row in rows.tolist():
                    _write_at(descriptor, frames[row], offsets[row])

    def sync(self) -> None:
        """Return when everything that has been written is on disk."""
        for shard in sorted(self._unsynced):
            sync(self._path(shard))
            sync(self._path(shard).with_suffix(COUNT_SUFFIX))
        sync(self.folder)
        self._unsynced.clear()

    def have_lengths(self, positions: Int64s, frames: Sequence[bytes]) -> bool:
        """Whether frames have the lengths that were measured at their positions, and so fit there."""
        return bool(np.array_equal(self._frame_bytes[positions], [len(frame) for frame in frames]))

    def is_correct(self, shard: int) -> bool:
        """Whether a shard, read back as any reader would, is complete and has frames of the measured lengths."""
        try:
            lengths = np.fromiter(frame_sizes(self._path(shard)), np.int64)
        except ManifestError:
            return False
        return bool(np.array_equal(lengths, self._frame_bytes[self._span(shard)]))

    def checksum(self, shard: int) -> int:
        """Read the rows file of a shard, and compute its CRC-32."""
        return crc32_of(self._path(shard))

    def name_of(self, shard: int) -> str:
        """The name of a shard."""
        return shard_name(shard, len(self))

    def _span(self, shard: int) -> slice:
        return slice(int(self._ends[shard - 1]) if shard else 0, int(self._ends[shard]))

    def _frame_offsets(self, shard: int) -> FrameOffsets:
        return FrameOffsets(self._frame_bytes[self._span(shard)].astype(np.int64))

    def _path(self, shard: int) -> Path:
        return self.folder / f"{self.name_of(shard)}{ROWS_SUFFIX}"

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        self._unsynced.add(shard)
        descriptor = os.open(self._path(shard), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    written = 0
    while written < len(content):  # a disk that is almost full writes a part first, and then fails
        written += os.pwrite(descriptor, memoryview(content)[written:], offset + written)
