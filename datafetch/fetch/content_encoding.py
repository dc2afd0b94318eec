"""Decompresses bodies that servers compress although the request asks for no compression.

Rules: these are pure functions with a bound on the bytes they return, so that a decompression bomb costs no more than
an image of the largest size allowed. A coding that is named in the header but was not applied is common on the web,
and no fault.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from typing import Any, Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_IMAGE_MAGICS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
_AVIF_MAGIC = b"ftypavi"  # behind a length of four bytes
_BMP_MAGIC = b"BM"  # compressed data may begin with these bytes as well
_GZIP_HAS_CHECKSUM, _GZIP_HAS_EXTRA, _GZIP_HAS_NAME, _GZIP_HAS_COMMENT = 2, 4, 8, 16  # RFC 1952, 2.3.1
_GZIP_HEADER_BYTES, _GZIP_TRAILER_BYTES = 10, 8
_ZLIB_HEADER_BYTES = 2  # RFC 1950, 2.2
_GZIP_WINDOW, _ZLIB_WINDOW, _DEFLATE_WINDOW = 31, 15, -15  # the values of wbits by which zlib knows the three formats
_MAX_ZLIB_WINDOW_CODE = 7  # RFC 1950, 2.2: stands for a window of 2 to the power of 7 + 8 bytes
_ZSTD_WINDOW_LOG = 23  # RFC 9659: a content coding's window is 8 MiB at most
_MAX_CODINGS = 3
_MAX_MEMBERS = 64
_PIECE_BYTES = 64 * 1024


class CodingError(ValueError):
    """The compressed body is cut short or damaged."""


class BodyTooLargeError(ValueError):
    """The body is larger than allowed, before or after decompression."""


def decode(body: bytes, codings: Iterable[str], max_bytes: int) -> bytes:
    """Undo the content codings of a body, in the given order.

    Args:
        body: The body as received.
        codings: Names of codings as in ``Content-Encoding``, in lower case. Unknown ones count as not applied.
        max_bytes: Size that the body may have after each step.

    Raises:
        CodingError: The compressed data ends early or is damaged, or there are too many codings.
        BodyTooLargeError: The body is larger than ``max_bytes``.
    """
    known = [_DECODERS[coding] for coding in codings if coding in _DECODERS]
    if len(known) > _MAX_CODINGS:
        raise CodingError(f"more than {_MAX_CODINGS} content codings on top of one another")
    for decoder in known:
        if body.startswith(_IMAGE_MAGICS) or body[4:].startswith(_AVIF_MAGIC):  # named, and not applied
            continue
        try:
            body = decoder(body, max_bytes)
        except (zlib.error, brotli.error, zstd.ZstdError, CodingError) as error:
            if body.startswith(_BMP_MAGIC):
                continue
            raise CodingError(f"{type(error).__name__}: {error}") from error
    return body


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    try:
        return _decompress_members(body, _GZIP_MAGIC, partial(zlib.decompressobj, _GZIP_WINDOW), max_bytes)
    except CodingError:
        content = _without_trailer(body, max_bytes)
        if content is None:
            raise
        return content


def _without_trailer(body: bytes, max_bytes: int) -> bytes | None:
    """Decompress a gzip member whose data is complete but whose trailer is not, as browsers do; else return None."""
    start = _end_of_gzip_header(body)
    if start is None:
        return None
    decompressor = zlib.decompressobj(_DEFLATE_WINDOW)
    content = _check_size(decompressor.decompress(memoryview(body)[start:], max_bytes + 1), max_bytes)
    return content if decompressor.eof and len(decompressor.unused_data) < _GZIP_TRAILER_BYTES else None


def _end_of_gzip_header(body: bytes) -> int | None:
    if len(body) < _GZIP_HEADER_BYTES:
        return None
    flags, end = body[3], _GZIP_HEADER_BYTES
    if flags & _GZIP_HAS_EXTRA:
        end += 2 + int.from_bytes(body[end : end + 2], "little")
    for flag in (_GZIP_HAS_NAME, _GZIP_HAS_COMMENT):
        if flags & flag:
            end = body.find(b"\0", end) + 1
            if not end:
                return None
    return end + 2 if flags & _GZIP_HAS_CHECKSUM else end


def _inflate(body: bytes, max_bytes: int) -> bytes:
    # By "deflate" RFC 9110 means the zlib format, but there have always been servers that send bare deflate data.
    is_zlib = _is_zlib(body)
    decompressor = zlib.decompressobj(_ZLIB_WINDOW if is_zlib else _DEFLATE_WINDOW)
    content = _check_size(decompressor.decompress(body, max_bytes + 1), max_bytes)
    if not decompressor.eof and not (is_zlib and _lacks_checksum_alone(body, content)):
        raise CodingError("the deflate data ends early")
    return content


def _lacks_checksum_alone(body: bytes, content: bytes) -> bool:
    """Whether nothing but the checksum at the end, or part of it, is missing; curl accepts that."""
    decompressor = zlib.decompressobj(_DEFLATE_WINDOW)
    decompressor.decompress(memoryview(body)[_ZLIB_HEADER_BYTES:], len(content) + 1)
    return decompressor.eof


def _is_zlib(body: bytes) -> bool:
    # RFC 1950, 2.2: the method, the window of at most 32 KiB, and the check bits of the header.
    is_deflate = bool(body) and body[0] & 0x0F == zlib.DEFLATED and body[0] >> 4 <= _MAX_ZLIB_WINDOW_CODE
    return is_deflate and int.from_bytes(body[:2], "big") % 31 == 0


def _unbrotli(body: bytes, max_bytes: int) -> bytes:
    decompressor = brotli.Decompressor()
    pieces = [decompressor.process(body, output_buffer_limit=max_bytes + 1)]
    size_bytes = len(pieces[0])
    while not decompressor.is_finished() and size_bytes <= max_bytes:
        piece = decompressor.process(b"", output_buffer_limit=max_bytes + 1)
        if not piece:
            raise CodingError("the brotli data ends early")
        pieces.append(piece)
        size_bytes += len(piece)
    return _check_size(b"".join(pieces), max_bytes)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return _decompress_members(body, _ZSTD_MAGIC, partial(zstd.ZstdDecompressor, options=options), max_bytes)


class _Decompressor(Protocol):
    """Decompresses one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: memoryview, max_length: int) -> bytes: ...


def _decompress_members(body: bytes, magic: bytes, new: Callable[[], Any], max_bytes: int) -> bytes:
    """Decompress consecutive members or frames (RFC 1952, 2.2; RFC 8878, 3); anything after them is padding.

    The body is fed in small pieces, because a decompressor copies the input that it leaves unused: with one big piece,
    a small body of very many empty members would take hours.
    """
    if not body.startswith(magic):
        return body
    content = BytesIO()
    view, offset, members = memoryview(body), 0, 0
    while body.startswith(magic, offset):
        members += 1
        if members > _MAX_MEMBERS:
            raise CodingError(f"over {_MAX_MEMBERS} members or frames")
        decompressor: _Decompressor = new()
        while not decompressor.eof:
            piece = view[offset : offset + _PIECE_BYTES]
            if not piece:
                raise CodingError("the compressed data ends early")
            content.write(decompressor.decompress(piece, max_bytes - content.tell() + 1))
            if content.tell() > max_bytes:
                raise BodyTooLargeError(f"over {max_bytes:,} bytes when decompressed")
            offset += len(piece)
        offset -= len(decompressor.unused_data)
    return content.getvalue()


def _check_size(content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise BodyTooLargeError(f"over {max_bytes:,} bytes when decompressed")
    return content


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
