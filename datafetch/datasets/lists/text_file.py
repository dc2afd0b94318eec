"""The content of a file of text on this machine, plain or compressed.

Rules: a file is the same whenever it is opened, or it is refused. A compressed one can expand a few bytes to an endless
stream, so what is read of it is bounded in proportion to its size.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from datafetch.datasets.jsonl_manifest import BadRecordError
from datafetch.datasets.lists.record_blocks import RecordTooLongError
from datafetch.datasets.readers.compression import READ_ERRORS, check_zip, open_plain, opener_of
from datafetch.errors import STARTS_OVER, ManifestError, unreadable
from datafetch.model.regular_file import open_regular

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

EDGE_BYTES = 1 << 16
"""How much of a file's beginning shows what it is."""
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1 << 20
_MIN_CONTENT_BYTES = 1 << 30  # accepted of a compressed file of any size; it is read in seconds
_MAX_EXPANSION = 1000  # gzip's own limit; lists of URLs shrink to a tenth, and the most regular ones to a hundredth


class TextFile:
    """The content of a file on this machine, decompressed.

    Args:
        path: The file.

    Attributes:
        path: The file.
        size_bytes: Its size on disk.
        fingerprint: A hash of its size, its beginning and its end.
        start: The first bytes of its content, without a byte order mark.
        start_offset: The offset of these in its content: the size of the byte order mark.

    Raises:
        ManifestError: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), open_regular(path) as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(EDGE_BYTES)
            self.fingerprint = self._fingerprint(file)
            self._open = opener_of(start)
            check_zip(path, self._open)
            with self._open(path) as content:
                start = content.read(EDGE_BYTES)
        self.start_offset = len(_BOM) if start.startswith(_BOM) else 0
        self.start = start[self.start_offset :]

    @property
    def is_compressed(self) -> bool:
        """Whether its content is larger than its size on disk."""
        return self._open is not open_plain

    @contextmanager
    def opened_at(self, offset: int) -> Iterator[IO[bytes]]:
        """Open the content at an offset.

        Raises:
            ManifestError: It can't be read, or has changed; also while it is read.
        """
        with _reading(self.path):
            with open_regular(self.path) as file:
                if os.fstat(file.fileno()).st_size != self.size_bytes or self._fingerprint(file) != self.fingerprint:
                    raise ManifestError(f"{self.path} has changed since it was opened; {STARTS_OVER}")
            with self._open(self.path) as opened:
                content = self._bounded(opened) if self.is_compressed else opened
                self.move(content, 0, offset)
                yield content

    def move(self, content: IO[bytes], offset: int, target: int) -> None:
        """Go on in the opened content at a later offset, from one that was reached: what is plain is not read."""
        if not self.is_compressed:
            content.seek(target)
            return
        while offset < target:
            skipped = len(content.read(min(target - offset, _SKIP_BYTES)))
            if not skipped:
                return
            offset += skipped

    def _fingerprint(self, file: IO[bytes]) -> str:
        file.seek(0)
        start = file.read(EDGE_BYTES)
        file.seek(max(0, self.size_bytes - EDGE_BYTES))
        return hashlib.sha256(b"%d " % self.size_bytes + start + file.read(EDGE_BYTES)).hexdigest()[:16]

    def _bounded(self, content: IO[bytes]) -> IO[bytes]:
        max_bytes = max(_MIN_CONTENT_BYTES, self.size_bytes * _MAX_EXPANSION)
        return io.BufferedReader(_BoundedStream(content, max_bytes, self.path), _SKIP_BYTES)


class _BoundedStream(io.RawIOBase):
    """The content of a compressed file, of which no more is read than such a file may have."""

    def __init__(self, content: IO[bytes], max_bytes: int, path: Path) -> None:
        self._content = content
        self._left_bytes = self._max_bytes = max_bytes
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        content = self._content.read(memoryview(buffer).nbytes)
        self._left_bytes -= len(content)
        if self._left_bytes < 0:
            raise ManifestError(
                f"{self._path} would be more than {self._max_bytes:,} bytes when it is unpacked, the limit for a "
                "compressed file of its size; unpack it first, or leave it out"
            )
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)


def path_time_ns(path: Path) -> int:
    """When a file was last changed: a fingerprint of its edges would miss a change in its middle."""
    return path.stat().st_mtime_ns


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (RecordTooLongError, ManifestError, BadRecordError):
        raise
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
