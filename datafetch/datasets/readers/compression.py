"""Opens files, plain or compressed, as streams of their content.

The compression is detected from a file's first bytes, because names are often wrong: gzip, bzip2, xz, Zstandard, or a
zip with one file in it. Any of them can expand a few bytes to an endless stream, so readers bound what they take of it,
and what opens a stream bounds the memory of its decoder: the decoder of xz has a limit of its own, that of Zstandard
refuses windows of more than 128 MiB, a zip may not claim a large central directory, and of the compression methods of
zip only those are accepted that ``zipfile`` decompresses piece by piece.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from datafetch.errors import ManifestError
from datafetch.model.regular_file import open_regular
from datafetch.model.wording import counted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zstd.ZstdError,
)
"""What reading a damaged file raises. For a damaged zip, zipfile also raises ValueError (names that can't be decoded,
impossible offsets) and NotImplementedError (methods and versions of the format that it does not know)."""

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""The suffixes of the names of compressed files."""

Opener: TypeAlias = Callable[[Path], AbstractContextManager[IO[bytes]]]
"""Opens a file as a stream of its content."""

_GZIP_MAGIC = b"\x1f\x8b"
_BZIP2_MAGIC = b"BZh"
_XZ_MAGIC = b"\xfd7zXZ\0"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGICS = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))  # pzstd writes one first
_ZIP_MAGIC = b"PK\x03\x04"
_EMPTY_ZIP_MAGIC = b"PK\x05\x06"
_ENCRYPTED = 0x1
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the others without a limit
_BUFFER_BYTES = 1 << 16
_MAX_DIRECTORY_BYTES = 1 << 20  # of a zip; zipfile takes twenty times as much memory for it
_MAX_XZ_BYTES = 128 << 20  # of the decoder's memory; 'xz -9' needs 65 MiB, and a header may claim 4 GiB


def open_plain(path: Path) -> IO[bytes]:
    """Open a file that is not compressed."""
    return path.open("rb", buffering=1 << 20)


def opener_of(start: bytes) -> Opener:
    """What opens a file.

    Args:
        start: Its first bytes, at least six of them.
    """
    if start.startswith(_GZIP_MAGIC):
        return _open_gzip
    if start.startswith(_BZIP2_MAGIC):
        return _open_bzip2
    if start.startswith(_XZ_MAGIC):
        return _open_xz
    if start.startswith((_ZSTD_MAGIC, *_ZSTD_SKIPPABLE_MAGICS)):
        return _open_zstd
    if start.startswith((_ZIP_MAGIC, _EMPTY_ZIP_MAGIC)):
        return _open_zip
    return open_plain


def check_zip(path: Path, opener: Opener) -> None:
    """Check, if a file is a zip, that it has exactly one file that can be unpacked here.

    Folders and what macOS adds don't count.

    Raises:
        ManifestError: It has not.
    """
    if opener is _open_zip:
        with _zip(path) as archive:
            _only_member(path, archive)


def _open_gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _open_bzip2(path: Path) -> Any:
    return bz2.open(path, "rb")


def _open_xz(path: Path) -> Any:
    return io.BufferedReader(_XzStream(path), _BUFFER_BYTES)


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


class _XzStream(io.RawIOBase):
    """The content of an xz file. ``lzma.LZMAFile`` does not bound its decoder's memory, and this does."""

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        self._decoder: lzma.LZMADecompressor | None = None
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        while True:
            if self._decoder is None or self._decoder.eof:
                rest = b"" if self._decoder is None else self._decoder.unused_data
                # Between streams there may be zeros.
                self._compressed = (rest or self._file.read(_BUFFER_BYTES)).lstrip(b"\0")
                if not self._compressed:
                    if not rest:
                        return 0
                    self._decoder = None
                    continue
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_BYTES)
            elif self._decoder.needs_input:
                self._compressed = self._file.read(_BUFFER_BYTES)
                if not self._compressed:
                    raise EOFError("it is cut short")
            content = self._decoder.decompress(self._compressed, len(target))
            self._compressed = b""
            if content:
                target[: len(content)] = content
                return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


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
        raise ManifestError(f"{path} holds {counted(len(members), 'file')}; give a zip with one, or unpack it")
    (member,) = members
    if member.flag_bits & _ENCRYPTED:
        raise ManifestError(f"{path} is encrypted; unpack it first")
    if member.compress_type not in _BOUNDED_METHODS:
        raise ManifestError(f"{path} uses a compression method that is not supported in a zip; unpack it first")
    return member
