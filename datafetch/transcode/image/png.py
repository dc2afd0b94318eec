"""Repair of PNGs that Pillow refuses because of texts or profiles that are too large or oddly compressed.

Rules: only bodies that Pillow has refused come here. Decompressed data is discarded, except for one profile. In total
no more is decompressed than Pillow itself would, and that profile.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from PIL import PngImagePlugin

from datafetch.transcode.image.icc import MAX_PROFILE_BYTES
from datafetch.transcode.image.png_chunks import CHUNK_HEADER, CRC_BYTES, SIGNATURE, chunks

_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PROFILE_CHUNK = b"iCCP"
_DEFLATE = b"\0"  # the only compression method that PNG defines


@dataclass(frozen=True, slots=True)
class RepairedPng:
    """A PNG without the chunks for which Pillow refuses it.

    Attributes:
        body: The file without them.
        profile: The ICC profile that was removed, if it is small enough to be applied.
    """

    body: bytes = field(repr=False)
    profile: bytes | None = field(repr=False)


def remove_refused_chunks(body: bytes) -> RepairedPng | None:
    """Remove the texts and the profile for which Pillow refuses a PNG; None if there are none, or it is no PNG."""
    if not body.startswith(SIGNATURE):
        return None
    kept, profile, text_bytes = [SIGNATURE], None, 0
    for name, start, end in chunks(body):
        is_checked = name in _TEXT_CHUNKS or name == _PROFILE_CHUNK
        content = body[start + CHUNK_HEADER.size : end - CRC_BYTES] if is_checked else b""
        if name in _TEXT_CHUNKS:
            if text_bytes > PngImagePlugin.MAX_TEXT_MEMORY:
                continue
            size_bytes = _text_bytes(name, content)
            text_bytes += PngImagePlugin.MAX_TEXT_CHUNK if size_bytes is None else size_bytes
            if size_bytes is None or text_bytes > PngImagePlugin.MAX_TEXT_MEMORY:
                continue
        elif name == _PROFILE_CHUNK and (found := _refused_profile(content)) is not None:
            profile = found or None
            continue
        kept.append(body[start:end])
    repaired = b"".join(kept)
    return None if len(repaired) == len(body) else RepairedPng(repaired, profile)


def _text_bytes(name: bytes, content: bytes) -> int | None:
    """Return the decompressed size of a text; None if Pillow refuses the file because of it."""
    compressed = content.partition(b"\0")[2]
    if name == b"zTXt":
        return _decompressed_bytes(compressed[1:]) if compressed[:1] in (b"", _DEFLATE) else None
    if name == b"iTXt" and compressed[:1] != b"\0" and compressed[1:2] == _DEFLATE:
        # A language and a translated keyword come first.
        _, _, compressed = compressed[2:].partition(b"\0")[2].partition(b"\0")
        return _decompressed_bytes(compressed)
    return len(content)


def _decompressed_bytes(compressed: bytes) -> int | None:
    decompressor = zlib.decompressobj()
    try:
        size_bytes = len(decompressor.decompress(compressed, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:  # Pillow ignores such a text
        return 0
    return None if decompressor.unconsumed_tail else size_bytes


def _refused_profile(content: bytes) -> bytes | None:
    """Return the profile for which Pillow refuses the file, empty if it can't be used; None if Pillow accepts it."""
    _, _, compressed = content.partition(b"\0")
    if compressed[:1] != _DEFLATE:
        return b""
    decompressor = zlib.decompressobj()
    try:
        profile = decompressor.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:  # Pillow ignores such a profile
        return None
    if decompressor.unconsumed_tail:
        return b""
    return profile if len(profile) > PngImagePlugin.MAX_TEXT_CHUNK else None
