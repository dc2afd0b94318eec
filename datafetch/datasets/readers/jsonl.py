"""Files of JSON lines to lines, plain or compressed: in constant memory, whatever a line or a file claims to hold."""

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
from datafetch.datasets.readers.limits import max_rows, reason
from datafetch.errors import ManifestError, raise_if_exhausted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Published lines have some kilobytes; a compressed file can claim any number. Reading one takes twice its length."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGICS = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))  # pzstd begins with one
_ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP_MAGIC = b"PK\x05\x06"
_BOM = b"\xef\xbb\xbf"
_ENCRYPTED = 0x1
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile undoes the others without a bound
_BUFFER_BYTES = 1 << 16
_SEEN_BYTES = 4096  # of a file's beginning and of its end; there may be tens of thousands of files
# A damaged zip raises ValueError, too: for names that are no text, and for places that no file can have; and
# NotImplementedError, for methods and versions of the format that zipfile does not know.
_DAMAGES = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, zipfile.BadZipFile, zstd.ZstdError)
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".zip")
_SUFFIXES = (*_COMPRESSED_SUFFIXES, ".jsonl", ".json")
_MAX_DIRECTORY_BYTES = 1 << 20  # of a zip; zipfile makes twenty times as much of it


_AGAIN = "download it again, or move it away"


class LineFile:
    """One file of lines, plain or compressed with gzip, Zstandard or as the one file in a zip, told by its content.

    Attributes:
        path: The file.
        size_bytes: Its size as it lies.
        fingerprint: Differs for other content, as far as size, beginning and end tell.

    Raises:
        ManifestError: It can't be read, is a page that a server sent in its place, is empty under a name that only a
            compressed file has, or is a zip without exactly one file that can be unpacked here; folders in it, and what
            macOS adds, don't count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), path.open("rb") as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_SEEN_BYTES)
            file.seek(max(0, self.size_bytes - _SEEN_BYTES))
            seen = b"%d " % self.size_bytes + start + file.read(_SEEN_BYTES)
            self._open = _opener(start)
            self._start = start
            self._refuse_what_is_no_data()
            if self._open is _open_zip:
                with _zip(path) as archive:
                    _only_member(path, archive)
        self.fingerprint = hashlib.sha256(seen).hexdigest()[:16]

    @property
    def is_compressed(self) -> bool:
        """Whether it holds more than its size tells."""
        return self._open is not _open_plain

    def explain_bad_line(self) -> str:
        """What a line that is no record says of the whole file: that it is not what its name says; else nothing."""
        if self.is_compressed or not self.path.name.endswith(_COMPRESSED_SUFFIXES):
            return ""
        return f"{self.path} is not compressed as its name says: {describe_text(self._start)}; {_AGAIN}"

    def _refuse_what_is_no_data(self) -> None:
        """See that it is no page of a server, and not empty where that can't be.

        Raises:
            ManifestError: It is.
        """
        is_it = describe_non_data(self._start)
        if is_it and (self._start or self.path.name.endswith(_COMPRESSED_SUFFIXES)):
            raise ManifestError(f"{self.path} holds no JSON lines: {is_it}; {_AGAIN}")

    def lines(self) -> Iterator[bytes]:
        """All lines, without their ends, in order; blank ones too, so that numbers hold.

        Raises:
            ManifestError: It can't be read, is cut short or damaged, a line is longer than ``MAX_LINE_BYTES``, or there
                are more of them than a file of its size can have.
        """
        max_lines = max_rows(self.size_bytes)
        with _reading(self.path), self._open(self.path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
                number += 1
                if number > max_lines:
                    raise ManifestError(
                        f"{self.path} has more than {max_lines:,} lines in {self.size_bytes:,} bytes, more than is "
                        "accepted; --source takes JSON lines"
                    )
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(
                        f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes; --source takes JSON lines"
                    )
                yield line.removeprefix(_BOM) if number == 1 else line


def stem_of(path: Path) -> str:
    """A file's name without what tells of its form."""
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
    # zipfile's own readline takes three times as long where it is given a limit.
    with (
        _zip(path) as archive,
        archive.open(_only_member(path, archive)) as member,
        io.BufferedReader(member, _BUFFER_BYTES) as file,  # type: ignore[type-var]  # it has all of a raw file's methods
    ):
        yield file


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with _BoundedFile(io.FileIO(path)) as raw, zipfile.ZipFile(raw) as archive:
        yield archive


class _BoundedFile(io.BufferedReader):
    """A file that refuses large reads: zipfile reads the central directory of a zip in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its central directory is too large for a zip with one file")
        return super().read(size)


def _only_member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        member for member in archive.infolist() if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]
    if len(members) != 1:
        raise ManifestError(f"{path} holds {len(members):,} files; --source takes a zip with one")
    (member,) = members
    if member.flag_bits & _ENCRYPTED:
        raise ManifestError(f"{path} is encrypted; unpack it")
    if member.compress_type not in _BOUNDED_METHODS:
        raise ManifestError(f"{path} uses a compression method that is not supported in a zip; unpack it")
    return member


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGES as error:
        raise_if_exhausted(error)
        raise ManifestError(f"cannot read {path}: {reason(error)}") from error
