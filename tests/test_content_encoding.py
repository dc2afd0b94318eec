"""Compressed bodies, which are decompressed within a bound whatever they hold."""

import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.fetch.content_encoding import BodyTooLargeError, CodingError, decode

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CAP_BYTES = 1 << 20
PICTURE = b"\xff\xd8\xff" + random.Random(5).randbytes(300_000)


def _bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("coding", CODERS)
def test_each_coding_is_undone(coding: str) -> None:
    """Every coding of HTTP, for a picture and for the shortest bodies."""
    for data in (PICTURE, b"x", b""):
        assert decode(CODERS[coding](data), [coding], CAP_BYTES) == data


def test_deflate_may_be_bare() -> None:
    """Some servers have always sent deflate data without the zlib format around it."""
    assert decode(_bare_deflate(PICTURE), ["deflate"], CAP_BYTES) == PICTURE


def test_several_codings_are_undone() -> None:
    """The coding that was applied last is undone first."""
    assert decode(brotli.compress(gzip.compress(PICTURE)), ["br", "gzip"], CAP_BYTES) == PICTURE


def test_consecutive_members_and_frames_are_one_body() -> None:
    """Concatenated gzip members and zstd frames are one body (RFC 1952, RFC 8878)."""
    assert decode(gzip.compress(b"a") + gzip.compress(b"b"), ["gzip"], CAP_BYTES) == b"ab"
    assert decode(zstd.compress(b"a") + zstd.compress(b"b"), ["zstd"], CAP_BYTES) == b"ab"


@pytest.mark.parametrize("coding", [*CODERS, "utf-8", "none", "image/jpeg"])
def test_a_coding_that_was_not_applied_is_no_fault(coding: str) -> None:
    """The header names a coding, but the body is the picture itself."""
    assert decode(PICTURE, [coding], CAP_BYTES) == PICTURE


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("size_bytes", [CAP_BYTES + 1, 20 * CAP_BYTES])
def test_a_bomb_is_too_large(coding: str, size_bytes: int) -> None:
    """A body of exactly the bound is accepted, and one byte more is too large."""
    with pytest.raises(BodyTooLargeError):
        decode(CODERS[coding](bytes(size_bytes)), [coding], CAP_BYTES)
    assert len(decode(CODERS[coding](bytes(CAP_BYTES)), [coding], CAP_BYTES)) == CAP_BYTES


@pytest.mark.parametrize("window_bits", range(9, 16))
def test_deflate_may_have_any_window(window_bits: int) -> None:
    """The header of the zlib format gives its size; curl and browsers accept all."""
    coder = zlib.compressobj(wbits=window_bits)
    assert decode(coder.compress(PICTURE) + coder.flush(), ["deflate"], CAP_BYTES) == PICTURE


@pytest.mark.parametrize("coding", CODERS)
def test_the_memory_of_a_bomb_is_bounded(coding: str) -> None:
    """However large the result would be, memory holds at most a few times the bound."""
    bomb = CODERS[coding](bytes(50 * CAP_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            decode(bomb, [coding], CAP_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * CAP_BYTES
    finally:
        tracemalloc.stop()


def test_bombs_in_many_members_are_too_large() -> None:
    """The bound is for all members together."""
    with pytest.raises(BodyTooLargeError):
        decode(gzip.compress(bytes(CAP_BYTES // 2)) * 3, ["gzip"], CAP_BYTES)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_many_members_without_content_are_refused(coding: str) -> None:
    """A small body of very many of them would keep a decoder busy for hours."""
    with pytest.raises(CodingError, match="members"):
        decode(CODERS[coding](b"") * 100_000, [coding], CAP_BYTES)


@pytest.mark.parametrize("coding", CODERS)
def test_a_body_cut_short_is_damaged(coding: str) -> None:
    """Half a picture is an error, even if the transfer was complete."""
    coded = CODERS[coding](PICTURE)
    # Without its trailer it is whole all the same; zstd's decoder can't tell a missing checksum from missing data.
    trailer_bytes = 8 if coding.endswith("gzip") else 4 if coding == "deflate" else 0
    for length in (len(coded) - trailer_bytes - 1, len(coded) // 2, 10):
        with pytest.raises(CodingError):
            decode(coded[:length], [coding], CAP_BYTES)


@pytest.mark.parametrize("missing_bytes", range(9))
def test_gzip_may_end_without_its_trailer(missing_bytes: int) -> None:
    """Browsers accept data of which only the checksum and the length, or part of them, are missing."""
    coded = gzip.compress(PICTURE)
    head = coded[:3] + bytes([2 + 4 + 8 + 16]) + coded[4:10] + b"\x03\0abc" + b"cat.jpg\0" + b"a comment\0"
    in_full = head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + coded[10:]
    for body in (coded, in_full):
        assert decode(body[: len(body) - missing_bytes], ["gzip"], CAP_BYTES) == PICTURE


@pytest.mark.parametrize("missing_bytes", range(5))
@pytest.mark.parametrize("data", [PICTURE, b"x", b""], ids=["picture", "a byte", "nothing"])
def test_deflate_may_end_without_its_checksum(missing_bytes: int, data: bytes) -> None:
    """It may also end with a part of it, as curl accepts."""
    coded = zlib.compress(data)
    assert decode(coded[: len(coded) - missing_bytes], ["deflate"], CAP_BYTES) == data


def test_a_checksum_that_is_there_must_be_right() -> None:
    """A picture whose bytes changed in transit must be fetched again."""
    coded = zlib.compress(PICTURE)
    with pytest.raises(CodingError):
        decode(coded[:-4] + bytes(4), ["deflate"], CAP_BYTES)


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize(
    "start", [b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x1cftypavif", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF"]
)
def test_a_coding_that_was_not_applied_is_skipped(coding: str, start: bytes) -> None:
    """This holds for every image format."""
    body = start + bytes(range(256)) * 4
    assert decode(body, [coding], CAP_BYTES) == body


def test_too_many_codings_are_refused() -> None:
    """No real server applies so many codings."""
    with pytest.raises(CodingError):
        decode(PICTURE, ["gzip"] * 4, CAP_BYTES)


@given(body=st.binary(max_size=300), coding=st.sampled_from(sorted(CODERS)))
def test_any_bytes_give_data_or_one_of_two_errors(body: bytes, coding: str) -> None:
    """The data stays within the bound, whatever the bytes are."""
    with suppress(CodingError, BodyTooLargeError):
        assert len(decode(body, [coding], 1000)) <= 1000
