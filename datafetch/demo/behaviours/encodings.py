"""Compressed bodies that were not requested: valid, cut off, mislabelled, and decompression bombs."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache

import brotli

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compress = Callable[[bytes], bytes]

_BOMB_BYTES = 64 << 20  # exceeds the limit of any client for pictures
_RAW_DEFLATE = -15  # makes zlib write neither header nor checksum


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def _raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(1, wbits=_RAW_DEFLATE)
    return deflate.compress(data) + deflate.flush()


def _brotli(data: bytes) -> bytes:
    compressed: bytes = brotli.compress(data, quality=1)
    return compressed


def _zstd(data: bytes) -> bytes:
    return zstd.compress(data, level=1)


def _gzip_twice(data: bytes) -> bytes:
    return _gzip(_gzip(data))


def _gzip_members(data: bytes) -> bytes:
    half = len(data) // 2
    return _gzip(data[:half]) + _gzip(data[half:])


def _gzip_then_rubbish(data: bytes) -> bytes:
    return _gzip(data) + b"\0" * 100


def _cut(compress: Compress) -> Compress:
    def compressed(data: bytes) -> bytes:
        whole = compress(data)
        return whole[: len(whole) // 2]

    return compressed


def _gzip_without_trailer(data: bytes) -> bytes:
    return _gzip(data)[:-8]


def _as_it_is(data: bytes) -> bytes:
    return data


def _nothing(_: bytes) -> bytes:
    return b""


@lru_cache
def _bomb(compress: Compress) -> bytes:
    return compress(bytes(_BOMB_BYTES))


def _response(encoding: str, compress: Compress) -> Answer:
    async def answer(exchange: Exchange) -> None:
        exchange.send_ok(compress(exchange.picture), exchange.content_type, f"Content-Encoding: {encoding}")

    return answer


def _bomb_response(encoding: str, compress: Compress) -> Answer:
    async def answer(exchange: Exchange) -> None:
        exchange.send_ok(_bomb(compress), exchange.content_type, f"Content-Encoding: {encoding}")

    return answer


async def _gzip_chunked(exchange: Exchange) -> None:
    compressed = _gzip(exchange.picture)
    fields = (exchange.content_type, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    exchange.send("\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode())
    for byte in compressed[:20]:  # the header, in the smallest possible chunks
        exchange.send(b"1\r\n%c\r\n" % byte)
    exchange.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(compressed) - 20, compressed[20:]))


_ARRIVES: Mapping[str, tuple[str, Compress]] = {
    "gzip": ("gzip", _gzip),
    "gzip_in_capitals": ("GZIP", _gzip),
    "x_gzip": ("x-gzip", _gzip),
    "gzip_twice": ("gzip, gzip", _gzip_twice),
    "gzip_members": ("gzip", _gzip_members),
    "gzip_then_rubbish": ("gzip", _gzip_then_rubbish),
    "gzip_without_trailer": ("gzip", _gzip_without_trailer),
    "deflate": ("deflate", zlib.compress),
    "deflate_raw": ("deflate", _raw_deflate),
    "brotli": ("br", _brotli),
    "zstd": ("zstd", _zstd),
    "gzip_in_name_only": ("gzip", _as_it_is),
    "brotli_in_name_only": ("br", _as_it_is),
    "encoded_utf_8": ("utf-8", _as_it_is),
    "encoded_none": ("none", _as_it_is),
    "encoded_identity": ("identity", _as_it_is),
    "encoded_blank": ("", _as_it_is),
}
_EMPTY: Mapping[str, tuple[str, Compress]] = {
    "gzip_of_nothing": ("gzip", lambda _: _gzip(b"")),
    "nothing_as_gzip": ("gzip", _nothing),
}
_CUT: Mapping[str, tuple[str, Compress]] = {
    "gzip_cut": ("gzip", _cut(_gzip)),
    "deflate_cut": ("deflate", _cut(zlib.compress)),
    "brotli_cut": ("br", _cut(_brotli)),
    "zstd_cut": ("zstd", _cut(_zstd)),
}
_BOMBS: Mapping[str, tuple[str, Compress]] = {
    "gzip_bomb": ("gzip", _gzip),
    "gzip_twice_bomb": ("gzip, gzip", _gzip_twice),
    "deflate_bomb": ("deflate", zlib.compress),
    "brotli_bomb": ("br", _brotli),
    "zstd_bomb": ("zstd", _zstd),
}

ENCODINGS: Mapping[str, Behaviour] = {
    "gzip_chunked": Behaviour(_gzip_chunked),
    **{name: Behaviour(_response(*encoding)) for name, encoding in _ARRIVES.items()},
    **{
        name: Behaviour(_response(*encoding), FailureKind.EMPTY, status=200, attempts=None)
        for name, encoding in _EMPTY.items()
    },
    **{
        name: Behaviour(_response(*encoding), FailureKind.DISCONNECTED, attempts=None)
        for name, encoding in _CUT.items()
    },
    **{name: Behaviour(_bomb_response(*encoding), FailureKind.TOO_LARGE) for name, encoding in _BOMBS.items()},
}
"""Name in the path → how the body is encoded."""
