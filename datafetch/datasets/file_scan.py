"""FileScan: which rows a scan of a manifest file selected, as a value that is kept for a run that resumes the job.

What is kept may be damaged, or be that of another scan. So it begins with a hash of its key and of its content.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

from datafetch.datasets.readers import Int64s

_HEADER = struct.Struct("<4Q")
_VALUES = np.dtype("<i8")
_HASH_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True, eq=False)
class FileScan:
    """What a scan of one file found.

    Attributes:
        rows: The numbers of the selected rows, ascending; 8 bytes each.
        taken: What later files may not select again, as the selection counts it.
        repeated: The number of rows that were left out because an earlier row has the same id.
        without_id: The number of rows that were skipped because they have no id.
    """

    rows: Int64s
    taken: Int64s
    repeated: int
    without_id: int = 0

    def to_bytes(self, key: str) -> bytes:
        """The scan as it is kept under a key."""
        header = _HEADER.pack(len(self.rows), len(self.taken), self.repeated, self.without_id)
        content = header + self.rows.astype(_VALUES).tobytes() + self.taken.astype(_VALUES).tobytes()
        return _hash(key, content) + content

    @classmethod
    def from_bytes(cls, key: str, kept: bytes) -> Self | None:
        """The scan that was kept under a key; None if it is damaged, or was kept under another one."""
        content = kept[_HASH_BYTES:]
        if len(content) < _HEADER.size or kept[:_HASH_BYTES] != _hash(key, content):
            return None
        rows, taken, repeated, without_id = _HEADER.unpack_from(content)
        if len(content) != _HEADER.size + (rows + taken) * _VALUES.itemsize:
            return None
        values = np.frombuffer(content, _VALUES, offset=_HEADER.size).astype(np.int64)
        return cls(values[:rows], values[rows:], repeated, without_id)

    @staticmethod
    def max_bytes(rows: int) -> int:
        """The maximum size of a kept scan of a file with this number of rows."""
        return _HASH_BYTES + _HEADER.size + 2 * rows * _VALUES.itemsize


def _hash(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
