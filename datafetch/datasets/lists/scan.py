"""FileScan: what reading a whole file once has found: how many rows it has, where they are, and which are selected.

A scan of a large file takes minutes. So what it has found is kept every few seconds, for a run that resumes the job.
What is kept may be damaged, or be that of another scan, so it begins with a hash of its key and of its content.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from typing import Self, TypeAlias

import numpy as np

from datafetch.datasets.lists.row_bits import RowBits
from datafetch.datasets.readers import Int64s
from datafetch.model.manifest import ScanCache

_HEADER = struct.Struct("<?QQQQQ")
_VALUES = np.dtype("<i8")
_HASH_BYTES = hashlib.sha256().digest_size
_SAVED_EVERY_S = 5.0
_FIXED_BYTES = 64 << 20  # of a small file with many rows of a few values

Bits: TypeAlias = RowBits | None


class FileScan:
    """What a scan of one file has found so far.

    Args:
        selects: Whether a filter selects rows; otherwise all are.

    Attributes:
        is_complete: Whether the whole file was read.
        position: Where the scan goes on; its reader knows what that means.
        rows: The number of rows that were read.
        unreadable: How many of them could not be compared with conditions, since they can't be read.
        bits: Which of them are selected; None for all.
        starts: Offsets in the file at which some row begins.
        first_rows: The numbers of these rows.
    """

    __slots__ = ("bits", "first_rows", "is_complete", "position", "rows", "starts", "unreadable")

    def __init__(self, *, selects: bool) -> None:
        self.is_complete = False
        self.position = 0
        self.rows = 0
        self.unreadable = 0
        self.bits: Bits = RowBits() if selects else None
        self.starts: list[int] = []
        self.first_rows: list[int] = []

    @property
    def selected(self) -> int:
        """The number of selected rows."""
        return self.rows if self.bits is None else self.bits.selected

    def numbers(self, start: int, stop: int) -> Int64s:
        """The numbers of the rows that are selected as number ``start`` up to, but not including, ``stop``."""
        if self.bits is None:
            return np.arange(start, min(stop, self.rows), dtype=np.int64)
        return self.bits.numbers(start, stop)

    def to_bytes(self, key: str) -> bytes:
        """The scan as it is kept under a key."""
        packed = b"" if self.bits is None else zlib.compress(self.bits.to_bytes(), 1)
        header = _HEADER.pack(
            self.is_complete, self.position, self.rows, self.unreadable, len(self.starts), len(packed)
        )
        places = np.array([self.starts, self.first_rows], _VALUES).tobytes()
        content = header + places + packed
        return _hash(key, content) + content

    @classmethod
    def from_bytes(cls, key: str, kept: bytes, *, selects: bool) -> Self | None:
        """The scan that was kept under a key; None if it is damaged, or was kept under another one."""
        content = kept[_HASH_BYTES:]
        if len(content) < _HEADER.size or kept[:_HASH_BYTES] != _hash(key, content):
            return None
        scan = cls(selects=selects)
        scan.is_complete, scan.position, scan.rows, scan.unreadable, places, _ = _HEADER.unpack_from(content)
        offset = _HEADER.size + 2 * places * _VALUES.itemsize
        starts, first_rows = np.frombuffer(content[_HEADER.size : offset], _VALUES).reshape(2, places).tolist()
        scan.starts, scan.first_rows = starts, first_rows
        if selects:
            packed_bytes = -(-scan.rows // 8)
            packed = zlib.decompressobj().decompress(content[offset:], packed_bytes + 1)
            if len(packed) != packed_bytes:
                return None
            scan.bits = RowBits.from_bytes(packed, scan.rows)
        return scan

    @staticmethod
    def max_bytes(size_bytes: int) -> int:
        """The maximum size of a kept scan of a file of this size."""
        return _FIXED_BYTES + size_bytes


class ScanKeeper:
    """Keeps the scan of one file: what earlier runs found, and what this one finds.

    Args:
        key: Names the scan, and everything that its result depends on.
        size_bytes: The size of the file.
        cache: Where it is kept; None keeps nothing.
        selects: Whether a filter selects rows.
        advance: Called often while a scan goes on, with how many bytes of the file were read since the last call; it
            raises an exception to end the scan.
    """

    def __init__(
        self,
        key: str,
        size_bytes: int,
        cache: ScanCache | None,
        *,
        selects: bool,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._key = key
        self._max_bytes = FileScan.max_bytes(size_bytes)
        self._cache = cache
        self._selects = selects
        self._saved_s = time.monotonic()
        self.advance = advance

    def begin(self) -> FileScan:
        """The scan as far as an earlier run came, or an empty one."""
        kept = None if self._cache is None else self._cache.read(self._key, self._max_bytes)
        scan = None if kept is None else FileScan.from_bytes(self._key, kept, selects=self._selects)
        return scan or FileScan(selects=self._selects)

    def save_sometimes(self, scan: FileScan) -> None:
        """Keep a scan that goes on, if it was not kept for some seconds."""
        if self._cache is not None and time.monotonic() - self._saved_s > _SAVED_EVERY_S:
            self.save(scan)

    def save(self, scan: FileScan) -> None:
        """Keep a scan."""
        if self._cache is not None:
            self._cache.write(self._key, scan.to_bytes(self._key))
        self._saved_s = time.monotonic()


def _hash(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
