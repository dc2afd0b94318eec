"""Makes zip archives, also such as no program should make."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import inflate64
import numpy as np
from PIL import Image

DEFLATE64 = 9


def jpeg(number: int, side_px: int = 40) -> bytes:
    """A JPEG unlike that of any other number."""
    values = (number * 31 + np.arange(side_px * side_px * 3) * (number % 7 + 1)) % 256
    buffer = BytesIO()
    Image.fromarray(values.astype(np.uint8).reshape(side_px, side_px, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_zip(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Write a plain archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)


@dataclass(slots=True)
class Crafted:
    """A member of a crafted archive; what is None is as it should be.

    Attributes:
        name: Its name, in the bytes that the archive has.
        content: Its content.
        method: How it is compressed.
        flags: Its flags.
        crc32: The checksum that the archive gives.
        size_bytes: The size that the archive gives.
        compressed_bytes: The compressed size that the archive gives.
        start: The offset that the directory gives.
        mode: Its mode on Unix.
        is_64: Whether its numbers are in a field of 64 bits.
        local_extra: Extra fields of the local header, which the directory does not have.
        extra: Further extra fields of the directory.
        has_descriptor: Whether its sizes stand behind its data and not in its local header.
        gap: Bytes between the member before it, and it.
    """

    name: bytes
    content: bytes = b""
    method: int = zipfile.ZIP_STORED
    flags: int = 0
    crc32: int | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    start: int | None = None
    mode: int = 0o100644
    is_64: bool = False
    local_extra: bytes = b""
    extra: bytes = b""
    has_descriptor: bool = False
    gap: bytes = b""
    _offset: int = field(default=0, init=False)

    @property
    def data(self) -> bytes:
        """Its data as it is in the archive."""
        if self.method == zipfile.ZIP_DEFLATED:
            deflating = zlib.compressobj(wbits=-15)
            return deflating.compress(self.content) + deflating.flush()
        if self.method == DEFLATE64:
            deflating64 = inflate64.Deflater()
            return bytes(deflating64.deflate(self.content) + deflating64.flush())
        return self.content


def craft(
    *members: Crafted, before: bytes = b"", behind: bytes = b"", comment: bytes = b"", is_64: bool = False
) -> bytes:
    """Build an archive.

    Args:
        members: Its members.
        before: Bytes in front of it, which its offsets know nothing of.
        behind: Bytes behind it.
        comment: Its comment.
        is_64: Whether the end of its directory has numbers of 64 bits.
    """
    body, directory = bytearray(), bytearray()
    for member in members:
        body += member.gap
        offset = len(body) if member.start is None else member.start
        data = member.data
        crc32 = zlib.crc32(member.content) if member.crc32 is None else member.crc32
        size = len(member.content) if member.size_bytes is None else member.size_bytes
        compressed = len(data) if member.compressed_bytes is None else member.compressed_bytes
        flags = member.flags | (8 if member.has_descriptor else 0)
        in_header = (0, 0, 0) if member.has_descriptor else (crc32, compressed, size)
        if member.is_64 and not member.has_descriptor:
            in_header = (crc32, 0xFFFFFFFF, 0xFFFFFFFF)
        local_extra = member.local_extra + (struct.pack("<2H2Q", 1, 16, size, compressed) if member.is_64 else b"")
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 45, flags, member.method, 0, 33, *in_header, len(member.name), len(local_extra)
        )
        body += member.name + local_extra + data
        if member.has_descriptor:
            body += struct.pack("<4s3L", b"PK\7\x08", crc32, compressed, size)
        numbers = (0xFFFFFFFF,) * 3 if member.is_64 else (compressed, size, offset)
        extra = (struct.pack("<2H3Q", 1, 24, size, compressed, offset) if member.is_64 else b"") + member.extra
        directory += struct.pack(
            "<4s4B4H3L5H2L",
            b"PK\1\2",
            45,
            3,
            45,
            0,
            flags,
            member.method,
            0,
            33,
            crc32,
            numbers[0],
            numbers[1],
            len(member.name),
            len(extra),
            0,
            0,
            0,
            member.mode << 16,
            numbers[2],
        )
        directory += member.name + extra
    start, count = len(body), len(members)
    end = b""
    if is_64:
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
        end = record + struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    short = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if is_64 else (count, count, len(directory), start)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *short, len(comment)) + comment
    return before + bytes(body) + bytes(directory) + end + behind
