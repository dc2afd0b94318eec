"""A file that is written from beginning to end, and then compared with what was written."""

from __future__ import annotations

from pathlib import Path

from datafetch.errors import ResourceError
from datafetch.model.checksum import crc32

_WRITE_BUFFER_BYTES = 1 << 16  # larger pieces, as most images are, are written without a copy
_READ_BUFFER_BYTES = 1 << 18  # a larger one is no faster, as the system first has to provide its pages


class ChecksummedFile:
    """A file of a shard. It is checked by its checksum, because it may not fit into memory.

    Attributes:
        path: The file.
        written_bytes: The number of bytes that were written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written_bytes = 0
        self._file = path.open("wb", buffering=_WRITE_BUFFER_BYTES)
        self._checksum = 0

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        self._file.write(piece)
        self.written_bytes += len(piece)
        self._checksum = crc32(piece, self._checksum)

    def finish(self) -> None:
        """Write what is buffered; the commit syncs the file."""
        self._file.flush()

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of the file, by its name."""
        return {self.path.name: self._checksum}

    def check(self) -> None:
        """Read the finished file back.

        Raises:
            ResourceError: It does not have the bytes that were written.
        """
        if crc32_of(self.path) != self._checksum or self.path.stat().st_size != self.written_bytes:
            raise ResourceError(f"{self.path.name} does not have the bytes that were written; check the disk")

    def close(self) -> None:
        """Close the file, finished or not. May be called twice."""
        self._file.close()


def crc32_of(path: Path) -> int:
    """Read a file, and compute its CRC-32."""
    checksum, buffer = 0, memoryview(bytearray(_READ_BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            checksum = crc32(buffer[:size], checksum)
    return checksum
