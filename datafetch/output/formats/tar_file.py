"""Tar files whose bytes follow from their members alone, written from beginning to end and read member by member.

Rules: a member is a regular file with a fixed time, owner and mode. Headers are those of POSIX (ustar), preceded by a
PAX header only where a name or a size does not fit into one. What is read is not trusted: headers are checked, names
are bounded, and nothing is extracted.

Headers of plain members are filled in here, because ``tarfile`` takes 70 to 100 µs for each, and a sample has three;
all others are those of ``tarfile``. The bytes are the same (``test_tar_file.py``).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from datafetch.output.formats.checksummed_file import ChecksummedFile

BLOCK_BYTES = 512
MTIME_S = 315_532_800  # 1980-01-01; of times at or before the epoch, some versions of GNU tar complain
_MODE = 0o644
_MAX_NAME_BYTES = 100
_MAX_SIZE_BYTES = 8**11 - 1
_MAX_PAX_BYTES = 1 << 16
_OCTAL_DIGITS = frozenset(b"01234567")
_MAX_DIGITS = 20  # of a number in a PAX header
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_TYPE = slice(156, 157)
_MAGIC = slice(257, 262)
_PREFIX = slice(345, 500)


class TarWriter:
    """Writes the members of a tar file; a member can be copied from another file with its header.

    Args:
        file: The file to write to.
    """

    def __init__(self, file: ChecksummedFile) -> None:
        self._file = file

    def write(self, name: str, content: bytes) -> None:
        """Append a member."""
        self._file.write(member_header(name, len(content)))
        self._file.write(content)
        self._file.write(bytes(-len(content) % BLOCK_BYTES))

    def copy(self, piece: bytes) -> None:
        """Append a piece of the bytes of members that were written by a ``TarWriter``."""
        self._file.write(piece)

    def finish(self) -> None:
        """Mark the end, and fill the last record, as tar does."""
        self._file.write(bytes(2 * BLOCK_BYTES))
        self._file.write(bytes(-self._file.written_bytes % tarfile.RECORDSIZE))


def _tarfile_header(name: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size_bytes, _MODE, MTIME_S
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8")


_TEMPLATE = _tarfile_header("", 0)[:BLOCK_BYTES]
_BEFORE_SIZE = _TEMPLATE[_MAX_NAME_BYTES : _SIZE.start]
_BEFORE_CHECKSUM = _TEMPLATE[_SIZE.stop : _CHECKSUM.start]
_AFTER_CHECKSUM = _TEMPLATE[_CHECKSUM.stop :]
# The checksum of a header adds up all of its bytes, with blanks in its own place.
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_BEFORE_CHECKSUM) + sum(_AFTER_CHECKSUM) + 8 * ord(" ")


def member_header(name: str, size_bytes: int) -> bytes:
    """The header of a member, with a PAX header before it where that is needed."""
    if len(name) > _MAX_NAME_BYTES or size_bytes > _MAX_SIZE_BYTES or not name.isascii():
        return _tarfile_header(name, size_bytes)
    name_field, size_field = name.encode("ascii"), b"%011o\0" % size_bytes
    checksum = _FIXED_SUM + sum(name_field) + sum(size_field)
    return b"".join(
        (
            name_field.ljust(_MAX_NAME_BYTES, b"\0"),
            _BEFORE_SIZE,
            size_field,
            _BEFORE_CHECKSUM,
            b"%06o\0 " % checksum,
            _AFTER_CHECKSUM,
        )
    )


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a tar file, and where it is.

    Attributes:
        name: Its name.
        start: Offset of its header, or of the PAX header before it.
        content_start: Offset of its content.
        size_bytes: The size of its content.
    """

    name: str
    start: int
    content_start: int
    size_bytes: int

    @property
    def stop(self) -> int:
        """Offset behind its content and what fills its last block."""
        return self.content_start + self.size_bytes + -self.size_bytes % BLOCK_BYTES

    def read(self, file: BinaryIO) -> bytes:
        """Its content; fewer bytes where the file ends before."""
        return os.pread(file.fileno(), self.size_bytes, self.content_start)


def read_members(file: BinaryIO) -> Iterator[TarMember]:
    """The members of a tar file, in order; their content is not read.

    Raises:
        ValueError: The file is damaged or cut short, or has other members than regular files.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    start = 0
    while header := _read_header(file, start):
        extended: dict[str, str] = {}
        content_start = start + BLOCK_BYTES
        if header[_TYPE] == b"x":
            extended, content_start = _read_extended(file, header, content_start)
            header = _read_header(file, content_start)
            content_start += BLOCK_BYTES
        if header[_TYPE] not in {b"0", b"\0"}:
            raise ValueError(f"has something else than a regular file at byte {start:,}")
        size_bytes = _decimal(extended["size"], start) if "size" in extended else _size(header, start)
        member = TarMember(extended.get("path") or _name(header, start), start, content_start, size_bytes)
        if member.stop > file_bytes:
            raise ValueError(f"is cut short in a member that begins at byte {start:,}")
        yield member
        start = member.stop


def _read_header(file: BinaryIO, offset: int) -> bytes:
    """The header at an offset; none at the end of the archive.

    Raises:
        ValueError: There is neither.
    """
    header = os.pread(file.fileno(), BLOCK_BYTES, offset)
    if len(header) < BLOCK_BYTES:
        raise ValueError(f"is cut short at byte {offset:,}")
    if not any(header):
        return b""
    found = header[_CHECKSUM].strip(b" \0")
    expected = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    if header[_MAGIC] != b"ustar" or _octal(found, offset) != expected:
        raise ValueError(f"is damaged at byte {offset:,}")
    return header


def _octal(digits: bytes, offset: int) -> int:
    if not digits or not _OCTAL_DIGITS.issuperset(digits):  # int would take a sign, too
        raise ValueError(f"is damaged at byte {offset:,}")
    return int(digits, 8)


def _decimal(digits: str, offset: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS):
        raise ValueError(f"is damaged at byte {offset:,}")
    return int(digits)


def _size(header: bytes, offset: int) -> int:
    return _octal(header[_SIZE].strip(b" \0"), offset)


def _name(header: bytes, offset: int) -> str:
    name, prefix = (field.split(b"\0", 1)[0] for field in (header[:_MAX_NAME_BYTES], header[_PREFIX]))
    try:
        return (prefix + b"/" + name if prefix else name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"has a name that is not UTF-8 at byte {offset:,}") from error


def _read_extended(file: BinaryIO, header: bytes, start: int) -> tuple[dict[str, str], int]:
    """The records of a PAX header, each ``length key=value`` and a line break, and the offset behind them."""
    size_bytes = _size(header, start)
    if size_bytes > _MAX_PAX_BYTES:
        raise ValueError(f"has a header of {size_bytes:,} bytes at byte {start:,}")
    content = os.pread(file.fileno(), size_bytes, start)
    records: dict[str, str] = {}
    while content:
        digits, _, _ = content[:_MAX_DIGITS].partition(b" ")
        record_bytes = int(digits) if digits.isdigit() else 0
        record, _, _ = content[:record_bytes].partition(b"\n")
        name, separator, value = record[len(digits) + 1 :].partition(b"=")
        if not separator or record_bytes > len(content):
            raise ValueError(f"is damaged at byte {start:,}")
        try:
            records[name.decode("utf-8")] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"has a name that is not UTF-8 at byte {start:,}") from error
        content = content[record_bytes:]
    return records, start + size_bytes + -size_bytes % BLOCK_BYTES
