"""CRC-32, as all files that datafetch writes are checked by.

Every image passes through it six times between its arrival and the trainer's file, which with the ``zlib`` of the
standard library takes a quarter of a commit's CPU time (docs/performance.md). This one has the same values in a quarter
of the time.
"""

from pathlib import Path

from zlib_ng.zlib_ng import crc32

__all__ = ["crc32", "crc32_of"]

_CHUNK_BYTES = 1 << 20


def crc32_of(path: Path, size_bytes: int | None = None) -> int:
    """The CRC-32 of a file, or of so many bytes at its beginning."""
    checksum, left = 0, size_bytes
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)):
            checksum = crc32(chunk, checksum)
            left = None if left is None else left - len(chunk)
    return checksum
