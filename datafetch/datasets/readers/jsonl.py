"""Reads files of lines, plain or compressed, in constant memory.

The compression is detected from a file's first bytes, because names are often wrong: gzip, Zstandard, or a zip with one
file in it. Any of them can expand a few bytes to an endless line or to any number of lines, and a zip can claim a
central directory of any size. So lines are read with a limit on their length, their number is limited in proportion to
the file's size, and the file below ``zipfile`` refuses large reads. Of the compression methods of zip, only those that
``zipfile`` decompresses piece by piece are accepted.

Nothing is decompressed when a file is opened, except for the directory of a zip: a folder may hold tens of thousands
of files. A fingerprint of size, beginning and end identifies the content, which is reliable for files that are
downloaded or compressed as a whole, but misses a change in the middle of a plain file that leaves its size the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from datafetch.datasets.readers.file_kind import describe_non_data, describe_text
from datafetch.datasets.readers.limits import max_rows
from datafetch.errors import ManifestError, unreadable
from datafetch.model.regular_file import open_regular

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The maximum length of a line; published ones have a few kilobytes. Reading one takes twice its length in memory."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGICS = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))  # pzstd writes one first
_ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP_MAGIC = b"PK\x05\x06"
_BOM = b"\xef\xbb\xbf"
_ENCRYPTED = 0x1
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the others without a limit
_BUFFER_BYTES = 1 << 16
_EDGE_BYTES = 4096  # read from a file's beginning and from its end
# For a damaged zip, zipfile also raises ValueError (names that can't be decoded, impossible offsets) and
# NotImplementedError (methods and versions of the format that it does not know).
_READ_ERRORS = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, zipfile.BadZipFile, zstd.ZstdError)
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".zip")
_SUFFIXES = (*_COMPRESSED_SUFFIXES, ".jsonl", ".json")
_MAX_DIRECTORY_BYTES = 1 << 20  # of a zip; zipfile takes twenty times as much memory for it
_ADVICE = "download it again, or move it away"


class LineFile:
    """One file of lines, plain or compressed.

    Args:
        path: The file.

    Attributes:
        path: The file.
        size_bytes: Its size on disk.
        fingerprint: A hash of its size, its beginning and its end.

    Raises:
        ManifestError: The file can't be read, or is a web page or a pointer of Git LFS; or it is empty, although its
            name is that of a compressed file; or it is a zip that does not have exactly one file that can be unpacked
            here, not counting folders and what macOS adds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), open_regular(path) as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_EDGE_BYTES)
            file.seek(max(0, self.size_bytes - _EDGE_BYTES))
            identifying = b"%d " % self.size_bytes + start + file.read(_EDGE_BYTES)
            self._open = _opener(start)
            self._start = start
            self._check_start()
            if self._open is _open_zip:
                with _zip(path) as archive:
                    _only_member(path, archive)
        self.fingerprint = hashlib.sha256(identifying).hexdigest()[:16]

    @property
    def is_compressed(self) -> bool:
        """Whether its content is larger than its size on disk."""
        return self._open is not _open_plain

    def explain_bad_line(self) -> str:
        """Explain a line that is not a record by the whole file, if that is not compressed as its name says.

        Returns:
            What the file is; an empty string if its name is right, so that the fault is in the line alone.
        """
        if self.is_compressed or not self.path.name.endswith(_COMPRESSED_SUFFIXES):
            return ""
        return f"{self.path} is not compressed as its name says: {describe_text(self._start)}; {_ADVICE}"

    def _check_start(self) -> None:
        """Check the first bytes for something other than data. An empty file is accepted if it need not be compressed.

        Raises:
            ManifestError: The file is not data.
        """
        description = describe_non_data(self._start)
        if description and (self._start or self.path.name.endswith(_COMPRESSED_SUFFIXES)):
            raise ManifestError(f"{self.path} has no JSON lines: {description}; {_ADVICE}")

    def lines(self) -> Iterator[bytes]:
        """All lines in order, without line ends. Blank lines are included, so that line numbers are right.

        Raises:
            ManifestError: The file can't be read, is cut short or damaged, has a line longer than ``MAX_LINE_BYTES``,
                or has more lines than a file of its size may have.
        """
        max_lines = max_rows(self.size_bytes)
        with _reading(self.path), self._open(self.path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
                number += 1
                if number > max_lines:
                    raise ManifestError(
                        f"{self.path} has more than {max_lines:,} lines in {self.size_bytes:,} bytes, the limit for a "
                        "file of its size; --source takes JSON lines"
                    )
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(
                        f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; --source takes JSON lines"
                    )
                yield line.removeprefix(_BOM) if number == 1 else line


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its format and compression."""
    name = path.name
    while suffix := next((suffix for suffix in _SUFFIXES if name.endswith(suffix) and name != suffix), ""):
        name = name.removesuffix(suffix)
    return name


def _opener(start: bytes) -> Callable[[Path], AbstractContextManager[IO[bytes]]]:
    if start.startswith(_GZIP_MAGIC):
        return _open_gzip
    if start.startswith((_ZSTD_MAGIC, *_ZSTD_SKIPPABLE_MAGICS)):
        return _open_zstd
    if start.startswith((_ZIP_MAGIC, _EMPTY_ZIP_MAGIC)):
        return _open_zip
    return _open_plain


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=1 << 20)


def _open_gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _open_zstd(path: Path) -> Any:
    return zstd.open(path, "rb")


@contextmanager
def _open_zip(path: Path) -> Iterator[IO[bytes]]:
    # zipfile's own readline takes three times as long when it is given a limit.
    with (
        _zip(path) as archive,
        archive.open(_only_member(path, archive)) as member,
        io.BufferedReader(member, _BUFFER_BYTES) as file,  # type: ignore[type-var]  # it has a raw file's methods
    ):
        yield file


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with _BoundedFile(io.FileIO(path)) as raw, zipfile.ZipFile(raw) as archive:
        yield archive


class _BoundedFile(io.BufferedReader):
    """A file that refuses large reads, because zipfile reads the central directory of a zip in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its central directory is too large for a zip with one file")
        return super().read(size)


def _only_member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Find the one file in a zip.

    Raises:
        ManifestError: There is not exactly one, or it can't be unpacked here.
    """
    members = [
        member for member in archive.infolist() if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]
    if len(members) != 1:
        raise ManifestError(f"{path} holds {len(members):,} files; --source takes a zip with one")
    (member,) = members
    if member.flag_bits & _ENCRYPTED:
        raise ManifestError(f"{path} is encrypted; unpack it first")
    if member.compress_type not in _BOUNDED_METHODS:
        raise ManifestError(f"{path} uses a compression method that is not supported in a zip; unpack it first")
    return member


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise unreadable(path, error) from error
