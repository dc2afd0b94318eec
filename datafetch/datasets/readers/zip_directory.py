"""Reads the directory of a zip archive, which may lie on a server, and finds out which members can be trusted.

Theory of operation. The directory stands at the archive's end, behind it a record that says where it begins, and in
front of that record, if the archive is large, another one with numbers of 64 bits. ``locate_directory`` finds them. It
reads nothing itself: it yields the ranges of bytes that it needs, and is sent their content. So the same code reads a
file and a server. Programs prepend and append bytes to archives; all offsets are then too small by the size of what
was prepended, which is the difference between where the directory is and where it is said to be.

``ZipDirectory`` reads the entries from a copy of the directory. An archive may have a million of them, so that it holds
17 bytes for each (some 50 while it sorts them), and reads the rest from the copy again when it is needed. An entry is
never believed. Members that overlap are refused, because they are how a small archive becomes a large one; so are
members that are encrypted, links, or compressed by a method that is not read. Whether sizes and checksums are true
shows when a member is read.

Rules: an archive that can't be read at all is a ``ManifestError``; a single member that can't be is a ``ZipEntry`` with
a ``problem``.

Python's ``zipfile`` holds about a kilobyte for each entry, needs the archive as a seekable file, and does not look for
overlaps; ``remotezip`` is built on it. ``stream-unzip`` reads an archive from its beginning to its end.

Source: APPNOTE.TXT 6.3.10, PKWARE.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec
import numpy as np
import orjson

from datafetch.datasets.readers.limits import Int64s
from datafetch.errors import STARTS_OVER, ManifestError
from datafetch.model.archive import LOCAL_HEADER_BYTES, METHODS, STORED, Member

MAX_DIRECTORY_BYTES = 1 << 30
"""A larger directory is refused. One of a million members has some 100 MB."""

_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\5\6"
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCATOR_64_SIGNATURE = b"PK\6\7"
_END_64 = struct.Struct("<4sQ2H2L4Q")
_END_64_SIGNATURE = b"PK\6\6"
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_ENTRY_SIGNATURE = b"PK\1\2"
_EXTRA_HEADER = struct.Struct("<2H")
_NEAR_BYTES = 128 * 1024  # the longest comment, all three records, and as much again of what was appended
_FAR_BYTES = 4 * 1024 * 1024  # what is searched for the end of the directory before an archive is said to have none
_MAX_PROBES = 64  # requests for what looks like the end of a directory
_IN_64 = 0xFFFFFFFF
_ZIP64_FIELD = 0x0001
_UNICODE_PATH_FIELD = 0x7075
_UNICODE_PATH_HEADER = struct.Struct("<BL")
_IS_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # by the old way, by a strong one, or with a masked header
_IS_PATCH = 0x0020
_IS_UTF8 = 0x0800
_DESCRIPTOR_BYTES = 24  # behind the data, at most: a signature, a checksum and two sizes of 64 bits
_INCOMPRESSIBLE_SHARE, _INCOMPRESSIBLE_BYTES = 1000, 65_536  # what deflate may add to data that it can't compress
_SLACK_BYTES = 1024  # by how much a local header's extra fields may be longer than those of the directory
_WINDOW_BYTES = 64 * 1024
_HEADER_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20
_MAX_OFFSET = 2**62
_UNIX = 3

ByteSpan: TypeAlias = tuple[int, int]
"""Offsets of the first byte and behind the last one."""


class Fingerprint(msgspec.Struct, frozen=True):
    """What identifies an archive, and where its directory is.

    Attributes:
        size_bytes: Size of the archive.
        shift_bytes: What has to be added to each offset, because so many bytes were prepended to the archive.
        start: Where the directory begins.
        stop: Where it ends.
        etag: The strong entity tag by which a server identified the archive; empty if it gave none.
    """

    size_bytes: int
    shift_bytes: int
    start: int
    stop: int
    etag: str = ""


def locate_directory(name: str, size_bytes: int) -> Generator[ByteSpan, bytes, Fingerprint]:
    """Find the directory of an archive.

    Args:
        name: The archive in messages.
        size_bytes: Its size.

    Yields:
        A range of bytes to read; its content is to be sent.

    Returns:
        Where the directory is.

    Raises:
        ManifestError: There is none.
    """
    empty: Fingerprint | None = None
    found: Fingerprint | None
    for searched_bytes in (_NEAR_BYTES, _FAR_BYTES):
        tail_start = max(0, size_bytes - searched_bytes)
        tail = yield (tail_start, size_bytes)
        position, probes = len(tail), 0
        while probes < _MAX_PROBES and (position := tail.rfind(_END_SIGNATURE, 0, position)) >= 0:
            reading = _read_end(tail, tail_start, position, size_bytes)
            found = content = None
            while True:
                try:
                    span = next(reading) if content is None else reading.send(content)
                except StopIteration as end:
                    found = end.value
                    break
                probes += 1
                content = yield span
            if found is not None and found.start < found.stop:
                return found
            empty = empty or found  # which what was appended may look like
        if tail_start == 0:
            break
    if empty is not None:
        return empty
    raise ManifestError(
        f"{name} is not a zip archive, or only a part of one: it has no central directory at its end; "
        "download it again, "
        "or give another"
    )


def _read_end(
    tail: bytes, tail_start: int, position: int, size_bytes: int
) -> Generator[ByteSpan, bytes, Fingerprint | None]:
    """Read what may be the record of the directory's end, and look whether there is a directory in front of it."""
    if position + _END.size > len(tail):
        return None
    _, disk, first_disk, _, entries, directory_bytes, offset, _ = _END.unpack_from(tail, position)
    stop = tail_start + position
    end_64 = yield from _read_end_64(tail, tail_start, position, size_bytes)
    if end_64 is not None:
        stop, record = end_64
        _, _, _, _, disk, first_disk, _, entries, directory_bytes, offset = _END_64.unpack(record)
    if disk != first_disk:  # one of several parts of an archive, or no such record at all
        return None
    start = stop - directory_bytes
    if not 0 <= offset <= start or directory_bytes > MAX_DIRECTORY_BYTES or entries * _ENTRY.size > directory_bytes:
        return None
    if directory_bytes:
        signature = yield (start, start + len(_ENTRY_SIGNATURE))
        if signature != _ENTRY_SIGNATURE:
            return None
    elif entries:
        return None
    return Fingerprint(size_bytes, start - offset, start, stop)


def _read_end_64(
    tail: bytes, tail_start: int, position: int, size_bytes: int
) -> Generator[ByteSpan, bytes, tuple[int, bytes] | None]:
    """Read the record with numbers of 64 bits, and return where it is and its bytes; None if there is none."""
    locator_start = position - _LOCATOR_64.size
    if locator_start < 0 or not tail.startswith(_LOCATOR_64_SIGNATURE, locator_start):
        return None
    _, _, offset, _ = _LOCATOR_64.unpack_from(tail, locator_start)
    for start in (tail_start + locator_start - _END_64.size, offset):
        if 0 <= start <= size_bytes - _END_64.size:
            record = yield (start, start + _END_64.size)
            if record.startswith(_END_64_SIGNATURE) and len(record) == _END_64.size:
                return start, record
    return None


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry of a directory.

    Attributes:
        name: The member's path in the archive, as published; its separators are slashes.
        member: Where its bytes are; meaningless if there is a problem.
        problem: Why it can't be read; empty if it can.
    """

    name: str
    member: Member
    problem: str = ""


class ZipDirectory:
    """The members of an archive, in the order in which their bytes lie in it.

    Args:
        path: A copy of the directory, ``copy_header`` and then its bytes.
        archive: The number that its members give as theirs.

    Attributes:
        name: The archive's file name.
        fingerprint: What identifies the archive.
        sha256: Hash of the directory, which has the checksums of all members; hex digits.

    Raises:
        ManifestError: The copy is not of a directory, or that is damaged.
    """

    def __init__(self, path: Path, archive: int = 0) -> None:
        self._path = path
        self._archive = archive
        with path.open("rb") as file:
            self.name, self.fingerprint = _read_header(file)
            first = file.tell()
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            starts, offsets, stops = array("q"), array("q"), array("q")
            try:
                entries, offset = _EntryReader(file), first
                while (raw := entries.read(offset)) is not None:
                    starts.append(raw.start)
                    stops.append(raw.start + LOCAL_HEADER_BYTES + raw.name_bytes + raw.compressed_bytes)
                    offsets.append(offset)
                    offset += raw.entry_bytes
            except ManifestError as error:
                raise ManifestError(f"{self.name} {error}; fetch it again, or give another one") from error
        self._starts: Int64s = np.array(starts, np.int64)
        self._offsets: Int64s = np.array(offsets, np.int64)
        order = np.argsort(self._starts, kind="stable")
        self._starts, self._offsets = self._starts[order], self._offsets[order]
        self._is_overlapping = _find_overlaps(self._starts, np.array(stops, np.int64)[order])

    @staticmethod
    def read_fingerprint(path: Path) -> Fingerprint:
        """What identifies the archive of a copy of a directory.

        Raises:
            ManifestError: It is not such a copy.
        """
        with path.open("rb") as file:
            return _read_header(file)[1]

    def __len__(self) -> int:
        return len(self._starts)

    def entries(self, numbers: Int64s | range | None = None) -> Iterator[ZipEntry]:
        """The entries with these numbers, counted from 0 in the order of their bytes; None is all."""
        with self._path.open("rb") as file:
            entries = _EntryReader(file)
            for number in range(len(self)) if numbers is None else numbers:
                yield self._entry(entries, int(number))

    def _entry(self, entries: _EntryReader, number: int) -> ZipEntry:
        raw = entries.read(int(self._offsets[number]))
        assert raw is not None, "it was there when the offsets were read"
        start = int(self._starts[number]) + self.fingerprint.shift_bytes
        limit = self.fingerprint.start
        if number + 1 < len(self):
            limit = min(limit, int(self._starts[number + 1]) + self.fingerprint.shift_bytes)
        longest = LOCAL_HEADER_BYTES + raw.name_bytes + raw.extra_bytes + raw.compressed_bytes + _DESCRIPTOR_BYTES
        member = Member(
            archive=self._archive,
            start=start,
            stop=min(limit, start + longest + _SLACK_BYTES),
            gap_bytes=0,
            compressed_bytes=raw.compressed_bytes,
            size_bytes=raw.size_bytes,
            crc32=raw.crc32,
            method=raw.method,
        )
        problem = raw.problem or _size_problem(raw)
        if not problem and (self._is_overlapping[number] or start < 0):
            problem = "its bytes overlap with those of another member, or of the central directory"
        if not problem and start + LOCAL_HEADER_BYTES + raw.name_bytes + raw.compressed_bytes > limit:
            problem = "its bytes overlap with those of another member, or of the central directory"
        return ZipEntry(raw.name, member, problem)


def copy_header(name: str, fingerprint: Fingerprint) -> bytes:
    """The first line of a copy of a directory.

    Copies of one directory from different places have lines of the same length, so that a process that reads one may
    find another in its place.
    """
    line = orjson.dumps({"name": name, **msgspec.structs.asdict(fingerprint)})
    return line.ljust(_HEADER_BYTES - 1) + b"\n"


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size_bytes: int
    shift_bytes: int
    start: int
    stop: int
    etag: str


def _read_header(file: BinaryIO) -> tuple[str, Fingerprint]:
    try:
        header = msgspec.json.decode(file.readline(_MAX_HEADER_BYTES), type=_Header)
    except ValueError as error:
        raise ManifestError(f"is not a copy of an archive's central directory; {STARTS_OVER}") from error
    return header.name, Fingerprint(header.size_bytes, header.shift_bytes, header.start, header.stop, header.etag)


@dataclass(slots=True)
class _RawEntry:
    entry_bytes: int
    name: str
    name_bytes: int
    extra_bytes: int
    start: int
    compressed_bytes: int
    size_bytes: int
    crc32: int
    method: int
    problem: str


class _EntryReader:
    """Reads entries of a directory through a window, so that neighbours cost one read together.

    Args:
        file: The copy of the directory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = os.fstat(file.fileno()).st_size
        self._window = b""
        self._window_start = 0

    def read(self, offset: int) -> _RawEntry | None:
        """Read the entry at an offset of the file; None if the file ends there.

        Raises:
            ManifestError: What is there is no entry.
        """
        if offset == self._end:
            return None
        raw = self._read(offset, _ENTRY.size)
        if len(raw) < _ENTRY.size or not raw.startswith(_ENTRY_SIGNATURE):
            raise ManifestError("has a central directory that is damaged or cut short")
        fields = _ENTRY.unpack(raw)
        name_bytes, extra_bytes, comment_bytes = fields[12:15]
        entry_bytes = _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        if offset + entry_bytes > self._end:
            raise ManifestError("has a central directory that is damaged or cut short")
        texts = self._read(offset + _ENTRY.size, name_bytes + extra_bytes)
        return _read_entry(entry_bytes, fields, texts[:name_bytes], texts[name_bytes:])

    def _read(self, offset: int, size_bytes: int) -> bytes:
        start = offset - self._window_start
        if start < 0 or start + size_bytes > len(self._window):
            self._file.seek(offset)
            self._window = self._file.read(max(size_bytes, _WINDOW_BYTES))
            self._window_start, start = offset, 0
        return self._window[start : start + size_bytes]


def _read_entry(entry_bytes: int, fields: tuple[int, ...], raw_name: bytes, raw_extra: bytes) -> _RawEntry:
    _, _, system, _, _, flags, method, _, _, crc32, compressed, size, _, _, _, _, _, mode, start = fields
    extra = _extra_fields(raw_extra)
    problem = ""
    if _IN_64 in (size, compressed, start):
        values = extra.get(_ZIP64_FIELD, b"")
        numbers = iter(struct.unpack(f"<{len(values) // 8}Q", values[: len(values) // 8 * 8]))
        size, compressed, start = (
            next(numbers, _MAX_OFFSET) if value == _IN_64 else value for value in (size, compressed, start)
        )
        if max(size, compressed, start) >= _MAX_OFFSET // 2:
            size, compressed, start = 0, 0, _MAX_OFFSET
            problem = "its sizes are missing, or larger than any archive"
    name = _decode_name(raw_name, extra, is_utf8=bool(flags & _IS_UTF8))
    if name is None:
        name, problem = raw_name.decode("ascii", "replace"), problem or "its name is not valid UTF-8"
    if flags & _IS_ENCRYPTED:
        problem = problem or "it is encrypted"
    elif flags & _IS_PATCH or method not in METHODS:
        problem = problem or f"it is compressed by method {method}, and only stored, deflate and deflate64 are read"
    elif system == _UNIX and stat.S_ISLNK(mode >> 16):
        problem = problem or "it is a link"
    return _RawEntry(entry_bytes, name, len(raw_name), len(raw_extra), start, compressed, size, crc32, method, problem)


def _decode_name(raw: bytes, extra: dict[int, bytes], *, is_utf8: bool) -> str | None:
    """The name of a member; None if it is not what it is said to be.

    Without the mark of UTF-8 it may still be that, because many programs forget the mark.
    """
    unicode_path = extra.get(_UNICODE_PATH_FIELD, b"")
    if not is_utf8 and len(unicode_path) > _UNICODE_PATH_HEADER.size:
        version, crc32 = _UNICODE_PATH_HEADER.unpack_from(unicode_path)
        if version == 1 and crc32 == crc32(raw):
            raw, is_utf8 = unicode_path[_UNICODE_PATH_HEADER.size :], True
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None if is_utf8 else raw.decode("cp437")


def _extra_fields(raw: bytes) -> dict[int, bytes]:
    """The extra fields of an entry, by their number; of several with one number the first."""
    found: dict[int, bytes] = {}
    position = 0
    while position + _EXTRA_HEADER.size <= len(raw):
        number, size = _EXTRA_HEADER.unpack_from(raw, position)
        position += _EXTRA_HEADER.size
        found.setdefault(number, raw[position : position + size])
        position += size
    return found


def _size_problem(raw: _RawEntry) -> str:
    """Why the sizes of a member can't be true; the compressed one decides how much is read."""
    if raw.method == STORED:
        return "" if raw.compressed_bytes == raw.size_bytes else "it is stored, and has two different sizes"
    most = raw.size_bytes + raw.size_bytes // _INCOMPRESSIBLE_SHARE + _INCOMPRESSIBLE_BYTES
    return "" if raw.compressed_bytes <= most else "its compressed size is larger than any that its size can have"


def _find_overlaps(starts: Int64s, stops: Int64s) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which members share bytes with another one, both of them; given in the order of their starts."""
    is_overlapping = np.zeros(len(starts), np.bool_)
    if len(starts) > 1:
        furthest = np.maximum.accumulate(stops)
        is_overlapping[1:] |= furthest[:-1] > starts[1:]
        is_overlapping[:-1] |= stops[:-1] > starts[1:]
    return is_overlapping
