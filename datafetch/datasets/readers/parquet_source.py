"""Where a parquet file is read from: a file of this machine, or a server from which only the needed parts are copied.

Theory of operation. Arrow reads a file at the offsets that its footer has, and nothing else of it. So a file on a
server is represented by an unnamed temporary file of the same size, which is sparse: it takes disk space only for what
was copied into it. That is the footer, and then the column chunks of one row group at a time. Everything that judges a
file (its footer, page headers and sizes) reads such a copy as it would read the file itself.

Rules: a range is checked against the size of the file before it is requested. Memory holds a few pieces of a file, and
the disk the needed columns of one row group, whatever the size of the file; nothing stays if the process is killed.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from datafetch.errors import ManifestError, ResourceError, raise_if_exhausted
from datafetch.model.manifest import RemoteFile
from datafetch.model.regular_file import require_regular

_PIECE_BYTES = 4 << 20  # at a third of a second for a request and its redirect, some 100 MB/s
_MAX_PIECES = 8  # of one file in flight, or waiting to be written
_MAX_FILE_BYTES = 1 << 40  # a filesystem may refuse a larger sparse file; published ones have a gigabyte


class OpenParquet(Protocol):
    """A parquet file that can be read where it was loaded.

    Attributes:
        path: What to open, as often as needed; only the ranges that were loaded have their content.
        size_bytes: The size of the file.
    """

    path: Path
    size_bytes: int

    def load(self, spans: Iterable[tuple[int, int]]) -> None:
        """Make ranges of the file readable.

        Args:
            spans: For each range, the offset of its first byte and the offset behind its last one.

        Raises:
            ManifestError: The server does not send them, or has another file now.
            ResourceError: There is no space for them.
        """
        ...

    def unload(self) -> None:
        """Free the space of all that was loaded."""
        ...


class ParquetSource(Protocol):
    """A parquet file that can be opened, several times and in several threads.

    Attributes:
        name: The file in messages.
        path: The file, for what needs a path; it can be opened only if it is on this machine.
    """

    name: str
    path: Path

    @contextmanager
    def open(self) -> Iterator[OpenParquet]:
        """Open the file until the context ends."""
        ...


class LocalParquet:
    """A parquet file of this machine; all of it is loaded.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.path = path

    @contextmanager
    def open(self) -> Iterator[OpenParquet]:
        """Open the file until the context ends.

        Raises:
            OSError: It can't be looked at, or is not a regular file.
        """
        require_regular(self.path)
        yield _WholeFile(self.path)


class _WholeFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size

    def load(self, spans: Iterable[tuple[int, int]]) -> None:
        """Do nothing: all of it can be read."""

    def unload(self) -> None:
        """Do nothing: it takes no space."""


class RemoteParquet:
    """A parquet file on a server.

    Args:
        file: The file.
    """

    def __init__(self, file: RemoteFile) -> None:
        self.name = file.name
        self.path = Path(file.name)
        self._file = file
        self._size_bytes: int | None = None

    @contextmanager
    def open(self) -> Iterator[OpenParquet]:
        """Open the file until the context ends.

        Raises:
            ManifestError: The server does not say how large the file is, or claims too much.
            ResourceError: There is no temporary file.
        """
        if self._size_bytes is None:
            self._size_bytes = self._file.find_size().result()
        if self._size_bytes > _MAX_FILE_BYTES:
            raise ManifestError(
                f"{self.name} claims to have {self._size_bytes:,} bytes, more than is accepted; check its address"
            )
        with _disk_errors(self.name):
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, where other errors are others' faults
        with copy:
            yield _SparseCopy(self._file, self._size_bytes, copy)


class _SparseCopy:
    """A sparse file of the size of a file on a server, with the parts of it that were loaded."""

    def __init__(self, file: RemoteFile, size_bytes: int, copy: BinaryIO) -> None:
        self.path = Path(f"/proc/self/fd/{copy.fileno()}")
        self.size_bytes = size_bytes
        self._file = file
        self._copy = copy
        self.unload()

    def load(self, spans: Iterable[tuple[int, int]]) -> None:
        """Copy ranges of the file, several pieces at a time."""
        pieces = self._pieces(spans)
        requested: deque[tuple[int, Future[bytes]]] = deque()
        try:
            while True:
                while len(requested) < _MAX_PIECES and (piece := next(pieces, None)) is not None:
                    requested.append((piece[0], self._file.read(*piece)))
                if not requested:
                    return
                offset, read = requested.popleft()
                self._write(read.result(), offset)
        finally:
            for _, read in requested:
                read.cancel()

    def unload(self) -> None:
        """Free the space of all that was copied."""
        with _disk_errors(self._file.name):
            os.ftruncate(self._copy.fileno(), 0)
            os.ftruncate(self._copy.fileno(), self.size_bytes)

    def _pieces(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for start, stop in _joined(spans):
            assert 0 <= start <= stop <= self.size_bytes, "footers are checked before"
            for piece_start in range(start, stop, _PIECE_BYTES):
                yield piece_start, min(piece_start + _PIECE_BYTES, stop)

    def _write(self, content: bytes, offset: int) -> None:
        with _disk_errors(self._file.name):
            while content:
                written = os.pwrite(self._copy.fileno(), content, offset)
                content, offset = content[written:], offset + written


def _joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges in the order of their offsets, those that touch or overlap as one."""
    joined: tuple[int, int] | None = None
    for start, stop in sorted(spans):
        if joined is not None and start <= joined[1]:
            joined = joined[0], max(joined[1], stop)
        else:
            if joined is not None:
                yield joined
            joined = start, stop
    if joined is not None:
        yield joined


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_exhausted(error)
        folder = "the temporary folder"
        with suppress(OSError):  # there is none in which a file can be created
            folder = tempfile.gettempdir()
        raise ResourceError.from_disk_error(
            error, f"copy a part of {name} to {folder}, which TMPDIR can change"
        ) from error
