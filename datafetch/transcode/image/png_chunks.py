"""The chunks that a PNG consists of.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from datafetch.model.checksum import crc32

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_HEADER = struct.Struct(">I4s")  # length and type; the content and a checksum follow
CRC_BYTES = 4


def chunks(png: bytes, offset: int = len(SIGNATURE)) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, start and end of each chunk of a PNG, with its header and its checksum; the last may be cut off.

    Args:
        png: The file, or what claims to be one.
        offset: Where the first of them starts.
    """
    while offset < len(png):
        length, name = CHUNK_HEADER.unpack(png[offset : offset + CHUNK_HEADER.size].ljust(CHUNK_HEADER.size, b"\0"))
        end = min(len(png), offset + CHUNK_HEADER.size + length + CRC_BYTES)
        yield name, offset, end
        offset = end


def chunk(name: bytes, content: bytes) -> bytes:
    """Make a chunk."""
    return CHUNK_HEADER.pack(len(content), name) + content + crc32(name + content).to_bytes(CRC_BYTES, "big")
