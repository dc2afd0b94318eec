"""PNGs that Pillow refuses for their ancillary chunks: texts and profiles that are too large, or packed oddly.

Rules: only what was refused comes here. What is inflated is thrown away but for one profile, and all of it together is
no more than Pillow itself would inflate, and that profile.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import PngImagePlugin

from datafetch.transcode.image.icc import MAX_PROFILE_BYTES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRONT = struct.Struct(">I4s")  # length and type; a checksum follows the content
_CHECKSUM_BYTES = 4
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PROFILE = b"iCCP"
_DEFLATE = b"\0"  # the one method there is


@dataclass(frozen=True, slots=True)
class LightPng:
    """A PNG without what Pillow refuses of it.

    Attributes:
        body: The file.
        profile: The profile that was taken out of it, where it is small enough to be applied.
    """

    body: bytes
    profile: bytes | None


def lightened(body: bytes) -> LightPng | None:
    """The file without the texts and the profile that Pillow refuses it for; None where there are none."""
    if not body.startswith(_SIGNATURE):
        return None
    kept, profile, text_bytes = [_SIGNATURE], None, 0
    for name, start, end in _chunks(body):
        content = body[start + _FRONT.size : end - _CHECKSUM_BYTES] if name in _TEXTS or name == _PROFILE else b""
        if name in _TEXTS:
            if text_bytes > PngImagePlugin.MAX_TEXT_MEMORY:
                continue
            size_bytes = _text_bytes(name, content)
            text_bytes += PngImagePlugin.MAX_TEXT_CHUNK if size_bytes is None else size_bytes
            if size_bytes is None or text_bytes > PngImagePlugin.MAX_TEXT_MEMORY:
                continue
        elif name == _PROFILE and (found := _refused_profile(content)) is not None:
            profile = found or None
            continue
        kept.append(body[start:end])
    light = b"".join(kept)
    return None if len(light) == len(body) else LightPng(light, profile)


def _chunks(body: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; the last may be cut off."""
    at = len(_SIGNATURE)
    while at < len(body):
        length, name = _FRONT.unpack(body[at : at + _FRONT.size].ljust(_FRONT.size, b"\0"))
        end = min(len(body), at + _FRONT.size + length + _CHECKSUM_BYTES)
        yield name, at, end
        at = end


def _text_bytes(name: bytes, content: bytes) -> int | None:
    """Bytes of a text; None where Pillow refuses the file for it."""
    packed = content.partition(b"\0")[2]
    if name == b"zTXt":
        return _inflated_bytes(packed[1:]) if packed[:1] in (b"", _DEFLATE) else None
    if name == b"iTXt" and packed[:1] != b"\0" and packed[1:2] == _DEFLATE:
        _, _, packed = packed[2:].partition(b"\0")[2].partition(b"\0")  # behind a language and a translated keyword
        return _inflated_bytes(packed)
    return len(content)


def _inflated_bytes(packed: bytes) -> int | None:
    inflating = zlib.decompressobj()
    try:
        size_bytes = len(inflating.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK))
    except zlib.error:  # which Pillow passes over
        return 0
    return None if inflating.unconsumed_tail else size_bytes


def _refused_profile(content: bytes) -> bytes | None:
    """A profile for which Pillow refuses the file, empty where it can't be used; None for any other."""
    _, _, packed = content.partition(b"\0")
    if packed[:1] != _DEFLATE:
        return b""
    inflating = zlib.decompressobj()
    try:
        profile = inflating.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:  # which Pillow passes over
        return None
    if inflating.unconsumed_tail:
        return b""
    return profile if len(profile) > PngImagePlugin.MAX_TEXT_CHUNK else None
