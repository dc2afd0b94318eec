"""Ranges of a file's bytes, from servers that send the right ones and from servers that don't."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from conftest import LOOPBACK

from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.headers import partial_content
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, PartialContent
from datafetch.model.request import ByteRange, Request

QUICK = FetchPolicy(allow_net=LOOPBACK, timeout_s=10.0, backoff_s=0.01, retries=1, max_body_bytes=1 << 20)
FILE = os.urandom(5000)
ETAG = '"of-this-file"'
MIDDLE = ByteRange(1000, 1100)

Answer = Callable[[str, dict[str, str]], bytes]
"""Path and headers of a request → the whole response."""


def _response(status: str, body: bytes, *fields: str) -> bytes:
    lines = "".join(f"{field}\r\n" for field in (f"Content-Length: {len(body)}", *fields))
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def _by_the_rules(_: str, headers: dict[str, str]) -> bytes:
    """Answer as RFC 9110 requires of a server that has one file."""
    if headers.get("if-range", ETAG) != ETAG or "range" not in headers:
        return _response("200 OK", FILE, f"ETag: {ETAG}")
    first, _, last = headers["range"].removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1, len(FILE))
    if start >= len(FILE):
        return _response("416 Range Not Satisfiable", b"", f"Content-Range: bytes */{len(FILE)}")
    content_range = f"Content-Range: bytes {start}-{stop - 1}/{len(FILE)}"
    return _response("206 Partial Content", FILE[start:stop], content_range, f"ETag: {ETAG}")


@asynccontextmanager
async def _server(answer: Answer) -> AsyncIterator[str]:
    """Serve every request by a function, and give the URL of the server's file."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                fields = (line.partition(": ") for line in lines)
                headers = {name.lower(): value for name, _, value in fields}
                response = answer(request_line.split(" ")[1], headers)
                writer.write(response)
                await writer.drain()
                if b"Connection: close" in response:
                    break
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/file.zip"


async def _fetch(answer: Answer, byte_range: ByteRange | None, if_range: str = "") -> Fetched:
    async with _server(answer) as url, Fetcher(QUICK) as fetch:
        return await fetch(Request(url, byte_range, if_range))


@pytest.mark.both_loops
async def test_a_range_returns_its_bytes_and_their_offset() -> None:
    """Any bytes can be requested, up to the last; a range that reaches beyond the file ends with it."""
    ranges = [ByteRange(0, 1), MIDDLE, ByteRange(4999, 5000), ByteRange(4000, 9000), ByteRange(0, 1 << 62)]
    async with _server(_by_the_rules) as url, Fetcher(replace(QUICK, max_body_bytes=len(FILE))) as fetch:
        fetched = [await fetch(Request(url, byte_range)) for byte_range in ranges]
        whole = await fetch(url)
    for byte_range, body in zip(ranges, fetched, strict=True):
        assert isinstance(body, Body), body
        assert body.content == FILE[byte_range.start : byte_range.stop]
        assert body.part == PartialContent(byte_range.start, min(byte_range.stop, len(FILE)), len(FILE), ETAG)
    assert isinstance(whole, Body)
    assert (whole.content, whole.part) == (FILE, None)


async def test_a_range_is_requested_at_every_redirect() -> None:
    """The range and its condition go with every hop. It may be part of any file, so any type is accepted."""
    seen: list[dict[str, str]] = []

    def answer(path: str, headers: dict[str, str]) -> bytes:
        seen.append(headers)
        if path == "/moved":
            return _by_the_rules(path, headers)
        return _response("302 Found", b"", "Location: /moved")

    fetched = await _fetch(answer, MIDDLE, ETAG)
    assert isinstance(fetched, Body)
    assert fetched.content == FILE[1000:1100]
    assert [(one["range"], one["if-range"], one["accept"]) for one in seen] == [("bytes=1000-1099", ETAG, "*/*")] * 2


async def test_a_plain_url_requests_no_range() -> None:
    """A server that sends a part anyway has not sent the image."""
    seen: list[dict[str, str]] = []

    def answer(_: str, headers: dict[str, str]) -> bytes:
        seen.append(headers)
        return _response("206 Partial Content", FILE[:10], f"Content-Range: bytes 0-9/{len(FILE)}")

    fetched = await _fetch(answer, None)
    assert isinstance(fetched, Failure)
    assert (fetched.kind, fetched.status) == (FailureKind.HTTP_STATUS, 206)
    assert all("range" not in one and "if-range" not in one for one in seen)


@pytest.mark.parametrize(
    ("byte_range", "if_range", "status"),
    [(MIDDLE, '"of-another-file"', 200), (ByteRange(5000, 5001), "", 416), (ByteRange(5000, 5001), ETAG, 416)],
    ids=["changed", "behind the end", "behind the end of the same file"],
)
async def test_a_range_that_is_refused_is_not_requested_again(
    byte_range: ByteRange, if_range: str, status: int
) -> None:
    """The status is the reason, and repeating the request would give the same one."""
    fetched = await _fetch(_by_the_rules, byte_range, if_range)
    assert isinstance(fetched, Failure)
    assert (fetched.kind, fetched.status, fetched.attempts) == (FailureKind.HTTP_STATUS, status, 1)
    assert not fetched.may_pass


async def test_the_body_of_a_server_without_ranges_is_not_read() -> None:
    """It may be a large file."""
    async with _server(lambda *_: _response("200 OK", FILE)) as url, Fetcher(QUICK) as fetch:
        fetched = await fetch(Request(url, MIDDLE))
        received_bytes = fetch.statistics().fetched_bytes
    assert isinstance(fetched, Failure)
    assert (fetched.kind, fetched.status, received_bytes) == (FailureKind.HTTP_STATUS, 200, 0)
    assert "range" in fetched.detail


_OTHER_PARTS = {
    "none": [],
    "an earlier one": ["Content-Range: bytes 999-1098/5000"],
    "a later one": ["Content-Range: bytes 1001-1100/5000"],
    "a longer one": ["Content-Range: bytes 1000-1100/5000"],
    "a longer one up to the end": ["Content-Range: bytes 1000-4999/5000"],
    "beyond the end": ["Content-Range: bytes 1000-1099/1099"],
    "backwards": ["Content-Range: bytes 1000-900/5000"],
    "another unit": ["Content-Range: pixels 1000-1099/5000"],
    "no numbers": ["Content-Range: bytes some-more/5000"],
    "two": ["Content-Range: bytes 1000-1099/5000", "Content-Range: bytes 1000-1099/5000"],
    "several parts": ["Content-Type: multipart/byteranges; boundary=x"],
    "coded": ["Content-Range: bytes 1000-1099/5000", "Content-Encoding: gzip"],
}


@pytest.mark.parametrize("fields", _OTHER_PARTS.values(), ids=list(_OTHER_PARTS))
async def test_another_part_than_the_requested_one_is_refused(fields: list[str]) -> None:
    """The header must name the requested range, or the beginning of it."""
    fetched = await _fetch(lambda *_: _response("206 Partial Content", FILE[1000:1100], *fields), MIDDLE)
    assert isinstance(fetched, Failure), fetched
    assert (fetched.kind, fetched.status, fetched.attempts) == (FailureKind.HTTP_STATUS, 206, 1)


@pytest.mark.parametrize("total", ["5000", "*"])
async def test_a_server_may_send_less_than_the_requested_range(total: str) -> None:
    """``Body.part`` says how far it goes; the rest is a request of its own."""
    fetched = await _fetch(
        lambda *_: _response("206 Partial Content", FILE[1000:1040], f"Content-Range: bytes 1000-1039/{total}"), MIDDLE
    )
    assert isinstance(fetched, Body), fetched
    assert fetched.content == FILE[1000:1040]
    assert fetched.part == PartialContent(1000, 1040, None if total == "*" else 5000, "")


@pytest.mark.parametrize(("size_bytes", "kind"), [(99, FailureKind.DISCONNECTED), (101, FailureKind.TOO_LARGE)])
@pytest.mark.parametrize("has_length", [True, False])
async def test_a_body_of_another_size_than_its_range_is_refused(
    size_bytes: int, kind: FailureKind, *, has_length: bool
) -> None:
    """This holds whether the size is announced by a length or counted."""

    def answer(*_: object) -> bytes:
        length = f"Content-Length: {size_bytes}" if has_length else "Connection: close"
        head = f"HTTP/1.1 206 Partial Content\r\n{length}\r\nContent-Range: bytes 1000-1099/5000\r\n\r\n"
        return head.encode() + FILE[1000 : 1000 + size_bytes]

    fetched = await _fetch(answer, MIDDLE)
    assert isinstance(fetched, Failure)
    assert (fetched.kind, fetched.status) == (kind, 206), fetched


async def test_a_range_that_broke_off_is_requested_again() -> None:
    """A body that ends early may pass, as for a whole file."""
    answers = iter([FILE[1000:1050], FILE[1000:1100]])

    def answer(*_: object) -> bytes:
        head = b"HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Range: bytes 1000-1099/*\r\n\r\n"
        return head + next(answers)

    fetched = await _fetch(answer, MIDDLE)
    assert isinstance(fetched, Body)
    assert (fetched.content, fetched.attempts) == (FILE[1000:1100], 2)
    assert fetched.part == PartialContent(1000, 1100, None, "")


async def test_a_range_over_the_maximum_size_is_refused() -> None:
    """The limit for bodies holds for ranges, before and after decompression."""
    async with _server(_by_the_rules) as url, Fetcher(replace(QUICK, max_body_bytes=99)) as fetch:
        refused = await fetch(Request(url, MIDDLE))
        taken = await fetch(Request(url, ByteRange(1000, 1099)))
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.status) == (FailureKind.TOO_LARGE, 206)
    assert isinstance(taken, Body)


@pytest.mark.parametrize(("etag", "taken"), [(ETAG, ETAG), ('W/"weak"', ""), ("bare", ""), ('"a"b"', ""), ("", "")])
def test_only_valid_strong_entity_tags_are_kept(etag: str, taken: str) -> None:
    """If-Range compares strongly, so a weak tag never matches, and an invalid tag must not be sent back."""
    headers = {"content-range": ["bytes 1000-1099/5000"], "etag": [etag]}
    part = partial_content(headers, MIDDLE)
    assert part is not None
    assert part.etag == taken


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 1), (2, 1), (0, 2**63)])
def test_an_impossible_range_cannot_be_created(start: int, stop: int) -> None:
    """It would be empty, negative or beyond 63 bits; an empty one could not even be written as a header."""
    with pytest.raises(ValueError, match="start < stop"):
        ByteRange(start, stop)


@pytest.mark.parametrize(
    ("byte_range", "if_range"),
    [(None, ETAG), (MIDDLE, 'W/"weak"'), (MIDDLE, '"a"\r\nHost: elsewhere'), (MIDDLE, '"\u00e4"')],
)
def test_an_invalid_condition_cannot_be_created(byte_range: ByteRange | None, if_range: str) -> None:
    """It would be ignored, never match, or inject a header."""
    with pytest.raises(ValueError, match="if_range"):
        Request("http://example.org/", byte_range, if_range)
