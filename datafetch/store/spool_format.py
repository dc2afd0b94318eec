"""How a spool lies on disk: entries that are found again whatever happened to their neighbours.

The file is a line ``datafetch spool 2`` and a marker of 8 random bytes, then entries::

    marker · u32 length of payload · u32 CRC-32 of payload · u32 CRC-32 of the three · payload
    payload: u8 kind · u32 length of head · head (JSON) · JPEG bytes

Kind ``I`` is an image that ended, its head a ``LedgerLine``; kind ``S`` a sample all of whose images ended. The JSON is
that of ``exact_json``: a row comes back as it was published, whatever its numbers and texts.

Rules: an entry is whole or it counts for nothing. Behind a damaged one the marker is looked for; being random, no image
from the web can hold it and pass for an entry.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeAlias

import orjson

from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model import exact_json
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample

_MAGIC = b"datafetch spool 2\n"
MARKER_BYTES = 8
START_BYTES = len(_MAGIC) + MARKER_BYTES
_FRONT = struct.Struct(f"<{MARKER_BYTES}sII")  # marker, length, CRC of the payload
_CRC = struct.Struct("<I")  # of the front
_KIND_AND_HEAD_LENGTH = struct.Struct("<BI")
_HEADER_BYTES = _FRONT.size + _CRC.size
_IMAGE = ord("I")
_SAMPLE = ord("S")
_SEARCH_BYTES = 1 << 20  # of a damaged stretch, at a time


@dataclass(frozen=True, slots=True)
class ImageResult:
    """An image that ended: what the ledger will say, and the JPEG (empty where it did not arrive)."""

    line: LedgerLine
    jpeg: bytes

    @property
    def jpeg_bytes(self) -> int:
        """The size of the JPEG."""
        return len(self.jpeg)

    def load(self) -> ImageResult:
        """The same; for whoever has one that may still lie in a spool."""
        return self


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that ended, the JPEG being left in its spool until it is asked for.

    Attributes:
        line: What the ledger will say.
        jpeg_bytes: The size of the JPEG; 0 where it did not arrive.
        file: The spool, open.
        marker: What its entries begin with.
        offset: Where the entry lies.
    """

    line: LedgerLine
    jpeg_bytes: int
    file: BinaryIO
    marker: bytes
    offset: int

    def load(self) -> ImageResult:
        """The image with its JPEG.

        Raises:
            ConservationError: The spool no longer holds it.
        """
        payload = _read_payload(self.file, self.marker, self.offset)
        if payload is None or len(payload) < self.jpeg_bytes:
            raise ConservationError(f"{self.file.name} changed while it was read")
        return ImageResult(self.line, payload[len(payload) - self.jpeg_bytes :])


SpoolRecord: TypeAlias = ImageResult | Sample
"""What an entry tells."""

Stored: TypeAlias = SpoolRecord | StoredImage
"""The same, where JPEGs may be left in a spool."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole entry and where it lies."""

    offset: int
    end: int
    ended: SpoolRecord


def begin(marker: bytes | None = None) -> bytes:
    """The first bytes of a new spool, with this marker or one that nobody has had."""
    return _MAGIC + (os.urandom(MARKER_BYTES) if marker is None else marker)


def is_begun(start: bytes) -> bool:
    """Whether these first bytes of a file are those of a spool, all of them there."""
    return start.startswith(_MAGIC) and len(start) >= START_BYTES


def is_torn_beginning(start: bytes) -> bool:
    """Whether this is all that was written of a new spool before its machine died."""
    return len(start) < START_BYTES and (start.startswith(_MAGIC) or _MAGIC.startswith(start))


def read_marker(file: BinaryIO) -> bytes:
    """The marker of a spool, the file being left behind it.

    Raises:
        ConfigurationError: It is not a spool of this version.
    """
    start = file.read(START_BYTES)
    if not is_begun(start):
        raise ConfigurationError(
            f"{file.name} is not a spool of this version of datafetch; move it away, and the images that it held are "
            "fetched again"
        )
    return start[len(_MAGIC) :]


def encode(ended: Stored, marker: bytes) -> tuple[bytes, ...]:
    """One entry, in pieces."""
    if isinstance(ended, Sample):
        kind, head, jpeg = _SAMPLE, _encode_sample(ended), b""
    else:
        kind, head, jpeg = _IMAGE, _encode_line(ended.line), ended.load().jpeg
    start = _KIND_AND_HEAD_LENGTH.pack(kind, len(head))
    # The pieces stay apart: a head may have a hundred megabytes.
    crc = zlib.crc32(jpeg, zlib.crc32(head, zlib.crc32(start)))
    front = _FRONT.pack(marker, len(start) + len(head) + len(jpeg), crc)
    return front, _CRC.pack(zlib.crc32(front)), start, head, jpeg


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
    """All whole entries from here to the end of the file, as it is now."""
    offset, size = file.tell(), os.fstat(file.fileno()).st_size
    while offset < size:
        entry = read_entry(file, marker, offset)
        if entry is None:
            offset = _find(file, marker, offset + 1)
            if offset < 0:
                return
        else:
            yield entry
            offset = entry.end


def read_entry(file: BinaryIO, marker: bytes, offset: int) -> Entry | None:
    """The entry at this place, or None where there is no whole one."""
    payload = _read_payload(file, marker, offset)
    return None if payload is None else Entry(offset, file.tell(), _decode(payload))


def _read_payload(file: BinaryIO, marker: bytes, offset: int) -> bytes | None:
    """What the entry at this place holds, or None where there is no whole one."""
    front = _read_front(file, marker, offset)
    if front is None or offset + _HEADER_BYTES + front.payload_bytes > os.fstat(file.fileno()).st_size:
        return None
    payload = file.read(front.payload_bytes)
    return payload if zlib.crc32(payload) == front.crc else None


def read_stored(file: BinaryIO, marker: bytes, offset: int) -> Sample | StoredImage | None:
    """The sample or image at this place, its JPEG being left where it is; None where there is none.

    Only the entry's front is checked where a JPEG is left behind: it was read whole when the spool was opened.
    """
    front = _read_front(file, marker, offset)
    if front is None:
        return None
    start = file.read(_KIND_AND_HEAD_LENGTH.size)
    kind, head_bytes = _KIND_AND_HEAD_LENGTH.unpack(start)
    jpeg_bytes = front.payload_bytes - len(start) - head_bytes
    if jpeg_bytes < 0:
        return None
    if kind == _IMAGE and jpeg_bytes:
        ended = _decode(start + file.read(head_bytes))
    else:
        entry = read_entry(file, marker, offset)
        if entry is None:
            return None
        ended = entry.ended
    return ended if isinstance(ended, Sample) else StoredImage(ended.line, jpeg_bytes, file, marker, offset)


def read_heads(file: BinaryIO, marker: bytes) -> Iterator[SpoolRecord]:
    """What the entries say, without the images, up to the first that is not whole: a quick look, nothing is checked."""
    offset, size = file.tell(), os.fstat(file.fileno()).st_size
    while (front := _read_front(file, marker, offset)) is not None:
        end = offset + _HEADER_BYTES + front.payload_bytes
        if end > size:
            return
        start = file.read(_KIND_AND_HEAD_LENGTH.size)
        _, head_bytes = _KIND_AND_HEAD_LENGTH.unpack(start)
        if len(start) + head_bytes > front.payload_bytes:  # or one flipped byte would have gigabytes read
            return
        yield _decode(start + file.read(head_bytes))
        offset = end


@dataclass(frozen=True, slots=True)
class _Front:
    payload_bytes: int
    crc: int


def _read_front(file: BinaryIO, marker: bytes, offset: int) -> _Front | None:
    """What the entry at this place says of its payload, the file being left before that; None if there is no entry."""
    file.seek(offset)
    header = file.read(_HEADER_BYTES)
    if len(header) != _HEADER_BYTES or _CRC.pack(zlib.crc32(header[: _FRONT.size])) != header[_FRONT.size :]:
        return None
    found, payload_bytes, crc = _FRONT.unpack_from(header)
    return _Front(payload_bytes, crc) if found == marker and payload_bytes >= _KIND_AND_HEAD_LENGTH.size else None


def _find(file: BinaryIO, marker: bytes, offset: int) -> int:
    """Where the marker stands next, from this place on; -1 if nowhere."""
    while True:
        file.seek(offset)
        stretch = file.read(_SEARCH_BYTES)
        place = stretch.find(marker)
        if place >= 0:
            return offset + place
        if len(stretch) < _SEARCH_BYTES:
            return -1
        offset += len(stretch) - MARKER_BYTES + 1


def _decode(payload: bytes) -> SpoolRecord:
    kind, head_bytes = _KIND_AND_HEAD_LENGTH.unpack_from(payload)
    behind = _KIND_AND_HEAD_LENGTH.size + head_bytes
    fields: Any = exact_json.parse(payload[_KIND_AND_HEAD_LENGTH.size : behind])
    if kind == _SAMPLE:
        return Sample(fields["position"], fields["key"], tuple(fields["urls"]), fields["row"])
    return ImageResult(LedgerLine.from_fields(fields), payload[behind:])
