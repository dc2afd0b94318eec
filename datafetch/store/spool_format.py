r"""The on-disk format of a spool: self-delimiting entries that can be recovered even if their neighbours are damaged.

A file header is followed by entries; all integers are little-endian::

    file header:  "datafetch spool 2\n" · marker (8 random bytes)
    entry:        marker · u32 payload length · u32 CRC-32 of the payload · u32 CRC-32 of these three · payload
    payload:      u8 kind · u32 metadata length · metadata (JSON) · JPEG

Kind ``I`` is the result of one image, with a ``LedgerLine`` as its metadata. Kind ``S`` is a sample whose images all
have results. The JSON is written by ``exact_json``, so a row of metadata comes back exactly as it was published.

Theory of operation: a crash or a bad disk block can damage an entry anywhere. An entry counts only if both checksums
match; its header has a checksum of its own, so that a damaged length is never trusted. After a damaged entry, the
reader searches for the next occurrence of the marker and continues there. The marker is chosen at random for each
spool, so nothing that was fetched from the web can contain it and be mistaken for an entry.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeAlias

import msgspec
import orjson

from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model import exact_json
from datafetch.model.checksum import crc32
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample
from datafetch.model.untrusted import short_repr

_MAGIC = b"datafetch spool 2\n"
MARKER_BYTES = 8
FILE_HEADER_BYTES = len(_MAGIC) + MARKER_BYTES
_ENTRY_HEADER = struct.Struct(f"<{MARKER_BYTES}sII")  # marker, length of the payload, its CRC
_HEADER_CRC = struct.Struct("<I")
_KIND_AND_LENGTH = struct.Struct("<BI")  # kind, length of the metadata
_HEADER_BYTES = _ENTRY_HEADER.size + _HEADER_CRC.size
_IMAGE = ord("I")
_SAMPLE = ord("S")
SAMPLE_ENTRY = -1
"""Stands for a sample's own entry among the numbers of its images, and before all of them."""
_SEARCH_BYTES = 1 << 20  # read at a time while searching for the next marker


class _PlaceOfImage(msgspec.Struct):
    sample: int
    image: int


class _PlaceOfSample(msgspec.Struct):
    position: int


_IMAGE_POSITION = msgspec.json.Decoder(_PlaceOfImage)
_SAMPLE_POSITION = msgspec.json.Decoder(_PlaceOfSample)


@dataclass(frozen=True, slots=True, repr=False)
class ImageResult:
    """The result of one image: its ledger line, and its JPEG, which is empty if the image failed."""

    line: LedgerLine
    jpeg: bytes

    def __repr__(self) -> str:
        return f"ImageResult({self.line.outcome}, {self.jpeg_bytes:,} bytes, {short_repr(self.line.url)})"

    @property
    def jpeg_bytes(self) -> int:
        """The size of the JPEG; 0 if the image failed."""
        return len(self.jpeg)

    def load(self) -> ImageResult:
        """Return itself: the JPEG of this result is in memory already, unlike that of a ``StoredImage``."""
        return self


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The result of one image, whose JPEG stays in the spool until it is loaded.

    Attributes:
        line: The image's ledger line.
        jpeg_bytes: The size of the JPEG; 0 if the image failed.
        file: The open spool.
        jpeg_offset: The offset of the JPEG in the spool, in bytes.
        crc_before: The CRC-32 of what precedes the JPEG in its entry's payload.
        crc: The CRC-32 of the whole payload, as the entry's header has it.
    """

    line: LedgerLine
    jpeg_bytes: int
    file: BinaryIO
    jpeg_offset: int
    crc_before: int
    crc: int

    def load(self) -> ImageResult:
        """Read the JPEG.

        Raises:
            ConservationError: The spool no longer holds the entry.
        """
        self.file.seek(self.jpeg_offset)
        jpeg = self.file.read(self.jpeg_bytes)
        if len(jpeg) != self.jpeg_bytes or crc32(jpeg, self.crc_before) != self.crc:
            raise ConservationError(f"{self.file.name} changed while it was read")
        return ImageResult(self.line, jpeg)


SpooledImage: TypeAlias = ImageResult | StoredImage
"""The result of one image, whose JPEG is in memory or still in a spool."""

SpoolRecord: TypeAlias = ImageResult | Sample
"""The content of an entry."""

LazySpoolRecord: TypeAlias = SpooledImage | Sample
"""The content of an entry, where the JPEG may still be in a spool."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An intact entry.

    Attributes:
        offset: Where it begins in the file, in bytes.
        end_offset: Where it ends.
        record: Its content.
    """

    offset: int
    end_offset: int
    record: SpoolRecord


def file_header(marker: bytes | None = None) -> bytes:
    """The file header of a new spool, with the given marker or a new random one."""
    return _MAGIC + (os.urandom(MARKER_BYTES) if marker is None else marker)


def has_file_header(start: bytes) -> bool:
    """Whether the first bytes of a file are a complete file header."""
    return start.startswith(_MAGIC) and len(start) >= FILE_HEADER_BYTES


def is_torn_file_header(start: bytes) -> bool:
    """Whether a file holds nothing but an incomplete file header, because the machine died while it was written."""
    return len(start) < FILE_HEADER_BYTES and (start.startswith(_MAGIC) or _MAGIC.startswith(start))


def read_marker(file: BinaryIO) -> bytes:
    """Read the file header and return the marker; the file is left at the first entry.

    Raises:
        ConfigurationError: The file is not a spool of this version.
    """
    start = file.read(FILE_HEADER_BYTES)
    if not has_file_header(start):
        raise ConfigurationError(
            f"{file.name} is not a spool of this version of datafetch; move it away, and the images in "
            "progress that it "
            "held are fetched again"
        )
    return start[len(_MAGIC) :]


def encode(record: LazySpoolRecord, marker: bytes) -> tuple[bytes, ...]:
    """Encode one entry, as pieces that are to be written one after another."""
    start, metadata, jpeg = _encode_payload(record)
    # The pieces are not joined here, because the metadata alone may have a hundred megabytes.
    crc = crc32(jpeg, crc32(metadata, crc32(start)))
    header = _ENTRY_HEADER.pack(marker, len(start) + len(metadata) + len(jpeg), crc)
    return header, _HEADER_CRC.pack(crc32(header)), start, metadata, jpeg


def to_payload(record: SpoolRecord) -> bytes:
    """The payload of an entry, without what makes it one of a spool."""
    return b"".join(_encode_payload(record))


def from_payload(payload: bytes) -> SpoolRecord:
    """The content of such a payload."""
    return _decode(payload)


def _encode_payload(record: LazySpoolRecord) -> tuple[bytes, bytes, bytes]:
    """Kind and length of the metadata, the metadata, and the JPEG."""
    if isinstance(record, Sample):
        kind, metadata, jpeg = _SAMPLE, _encode_sample(record), b""
    else:
        kind, metadata, jpeg = _IMAGE, _encode_line(record.line), record.load().jpeg
    return _KIND_AND_LENGTH.pack(kind, len(metadata)), metadata, jpeg


def _encode_line(line: LedgerLine) -> bytes:
    try:
        return orjson.dumps(line)
    except TypeError:  # a lone surrogate in a URL
        return exact_json.write(asdict(line))


def _encode_sample(sample: Sample) -> bytes:
    return exact_json.write(
        {"position": sample.position, "key": sample.key, "urls": list(sample.urls), "row": sample.row}
    )


def read_entries(file: BinaryIO, marker: bytes) -> Iterator[Entry]:
    """All intact entries from the current position to the end that the file has now; damaged ones are skipped."""
    for offset, end_offset, payload in _read_payloads(file, marker):
        yield Entry(offset, end_offset, _decode(payload))


def _read_payloads(file: BinaryIO, marker: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The intact entries from the current position: where each begins and ends, and its payload."""
    offset, size = file.tell(), os.fstat(file.fileno()).st_size
    while offset < size:
        payload = _read_payload(file, marker, offset)
        if payload is None:
            offset = _find_marker(file, marker, offset + 1)
            if offset < 0:
                return
        else:
            end_offset = file.tell()
            yield offset, end_offset, payload
            offset = end_offset


def read_positions(file: BinaryIO, marker: bytes) -> Iterator[tuple[int, int, int]]:
    """Where the intact entries are, and what they are of; damaged ones are skipped.

    Yields:
        The offset of an entry, the position of its sample, and the number of its image; ``SAMPLE_ENTRY`` for the entry
        of the sample itself.
    """
    return (_position(offset, payload) for offset, _, payload in _read_payloads(file, marker))


def _position(offset: int, payload: bytes) -> tuple[int, int, int]:
    """Where an entry is and what it is of; nothing else of it is decoded.

    msgspec is stricter than the reader of whole entries, which decides about what it refuses.
    """
    kind, metadata_bytes = _KIND_AND_LENGTH.unpack_from(payload)
    metadata = memoryview(payload)[_KIND_AND_LENGTH.size : _KIND_AND_LENGTH.size + metadata_bytes]
    try:
        if kind == _SAMPLE:
            return offset, _SAMPLE_POSITION.decode(metadata).position, SAMPLE_ENTRY
        place = _IMAGE_POSITION.decode(metadata)
    except msgspec.MsgspecError:
        record = _decode(payload)
        if isinstance(record, Sample):
            return offset, record.position, SAMPLE_ENTRY
        return offset, record.line.sample, record.line.image
    return offset, place.sample, place.image


def read_entry(file: BinaryIO, marker: bytes, offset: int) -> Entry | None:
    """The entry at an offset; None if there is no intact one."""
    payload = _read_payload(file, marker, offset)
    return None if payload is None else Entry(offset, file.tell(), _decode(payload))


def _read_payload(file: BinaryIO, marker: bytes, offset: int) -> bytes | None:
    """The payload of the entry at an offset; None if there is no intact one."""
    header = _read_header(file, marker, offset)
    if header is None or offset + _HEADER_BYTES + header.payload_bytes > os.fstat(file.fileno()).st_size:
        return None
    payload = file.read(header.payload_bytes)
    return payload if crc32(payload) == header.crc else None


def read_stored(file: BinaryIO, marker: bytes, offset: int) -> Sample | StoredImage | None:
    """The sample or image at an offset, without reading the JPEG; None if there is no such entry.

    For an image with a JPEG only the entry's header is checked: the whole entry was checked when the spool was opened,
    and it is checked again when the JPEG is loaded.
    """
    header = _read_header(file, marker, offset)
    if header is None:
        return None
    start = file.read(_KIND_AND_LENGTH.size)
    kind, metadata_bytes = _KIND_AND_LENGTH.unpack(start)
    jpeg_bytes = header.payload_bytes - len(start) - metadata_bytes
    if jpeg_bytes < 0:
        return None
    if kind != _IMAGE or not jpeg_bytes:
        entry = read_entry(file, marker, offset)
        if entry is None:
            return None
        if isinstance(entry.record, Sample):
            return entry.record
        return StoredImage(entry.record.line, 0, file, file.tell(), header.crc, header.crc)
    metadata = file.read(metadata_bytes)
    record = _decode(start + metadata)
    assert not isinstance(record, Sample), "it is of another kind"
    return StoredImage(record.line, jpeg_bytes, file, file.tell(), crc32(metadata, crc32(start)), header.crc)


def scan_records(file: BinaryIO, marker: bytes) -> Iterator[SpoolRecord]:
    """The records of ``scan_entries``."""
    return (entry.record for entry in scan_entries(file, marker))


def scan_entries(file: BinaryIO, marker: bytes) -> Iterator[Entry]:
    """A quick pass over the entries, without their JPEGs, up to the first one that is incomplete.

    Payload checksums are not verified, so this is for statistics of a spool that another process may be writing.
    """
    offset, size = file.tell(), os.fstat(file.fileno()).st_size
    while (header := _read_header(file, marker, offset)) is not None:
        end_offset = offset + _HEADER_BYTES + header.payload_bytes
        if end_offset > size:
            return
        start = file.read(_KIND_AND_LENGTH.size)
        _, metadata_bytes = _KIND_AND_LENGTH.unpack(start)
        if len(start) + metadata_bytes > header.payload_bytes:  # one flipped bit must not make us read gigabytes
            return
        yield Entry(offset, end_offset, _decode(start + file.read(metadata_bytes)))
        offset = end_offset


@dataclass(frozen=True, slots=True)
class _EntryHeader:
    payload_bytes: int
    crc: int


def _read_header(file: BinaryIO, marker: bytes, offset: int) -> _EntryHeader | None:
    """Read the header of the entry at an offset, leaving the file at its payload; None if there is no entry."""
    file.seek(offset)
    header = file.read(_HEADER_BYTES)
    fields, crc_field = header[: _ENTRY_HEADER.size], header[_ENTRY_HEADER.size :]
    if len(header) != _HEADER_BYTES or _HEADER_CRC.pack(crc32(fields)) != crc_field:
        return None
    found, payload_bytes, crc = _ENTRY_HEADER.unpack(fields)
    return _EntryHeader(payload_bytes, crc) if found == marker and payload_bytes >= _KIND_AND_LENGTH.size else None


def _find_marker(file: BinaryIO, marker: bytes, offset: int) -> int:
    """The offset of the next marker at or after an offset; -1 if there is none."""
    while True:
        file.seek(offset)
        chunk = file.read(_SEARCH_BYTES)
        index = chunk.find(marker)
        if index >= 0:
            return offset + index
        if len(chunk) < _SEARCH_BYTES:
            return -1
        offset += len(chunk) - MARKER_BYTES + 1  # a marker may straddle two chunks


def _decode(payload: bytes) -> SpoolRecord:
    kind, metadata_bytes = _KIND_AND_LENGTH.unpack_from(payload)
    metadata_end = _KIND_AND_LENGTH.size + metadata_bytes
    fields: Any = exact_json.parse(payload[_KIND_AND_LENGTH.size : metadata_end])
    if kind == _SAMPLE:
        return Sample(fields["position"], fields["key"], tuple(fields["urls"]), fields["row"])
    return ImageResult(LedgerLine.from_fields(fields), payload[metadata_end:])
