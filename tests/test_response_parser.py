"""The parser of responses: what it accepts and refuses, however the network cuts them."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from datafetch.demo.behaviours import BEHAVIOURS, Exchange, Request
from datafetch.fetch import response_body, response_parser
from datafetch.fetch.response_body import FramingTooLargeError
from datafetch.fetch.response_head import ProtocolError
from datafetch.fetch.response_parser import MAX_HEAD_BYTES, MAX_HEAD_LINES, MAX_INTERIM_RESPONSES, ResponseParser

_BODY = b"hello"
_OK_1_0 = b"HTTP/1.0 200 OK\r\n"
_OK = b"HTTP/1.1 200 OK\r\n"
_WHOLE = _OK + b"Content-Length: 5\r\n\r\nhello"
_PICTURE = bytes(range(256))
# How much of an answer of the table is read, since some are endless.
_MAX_BYTES = 3000


@dataclass
class _Recorder:
    """Stands in for the writer of a connection, and records what is written."""

    written: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        if len(self.written) > _MAX_BYTES:
            raise EOFError

    def close(self) -> None:
        self.is_over = True

    @property
    def transport(self) -> _Recorder:
        return self

    def abort(self) -> None:
        self.is_over = True

    def get_extra_info(self, _: str) -> _Recorder:
        return self

    def setsockopt(self, *_: object) -> None:
        pass


def answer_of(name: str) -> tuple[bytes, bool]:
    """Return the bytes that a behaviour of the origin sends, and whether it then closes the connection."""
    recorder = _Recorder()
    request = Request(f"GET /{name}/cat.jpg HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n".encode())
    exchange = Exchange(request, {"http": 80, "https": 443}, recorder)  # type: ignore[arg-type]
    exchange.picture = _PICTURE

    async def answer() -> None:
        async with asyncio.timeout(5):
            await BEHAVIOURS[name].answer(exchange)

    with suppress(EOFError):
        asyncio.run(answer())
    return bytes(recorder.written[:_MAX_BYTES]), recorder.is_over and len(recorder.written) <= _MAX_BYTES


def _outcome(pieces: Sequence[bytes], *, has_end: bool) -> object:
    """The result of parsing a response that arrives in these pieces."""
    parser = ResponseParser()
    body = bytearray()
    try:
        for piece in pieces:
            body += parser.feed(piece)
        if has_end:
            parser.feed_eof()
    except (ProtocolError, FramingTooLargeError) as error:
        return type(error)
    return parser.head, bytes(body), parser.is_complete, parser.has_surplus


def _cuts(data: bytes) -> Iterator[Sequence[bytes]]:
    yield [data[position : position + 1] for position in range(len(data))]
    for position in range(len(data)):
        yield [data[:position], data[position:]]


@pytest.mark.rotating
@pytest.mark.parametrize("name", sorted(name for name, row in BEHAVIOURS.items() if not row.waits))
def test_how_a_response_is_cut_makes_no_difference(name: str) -> None:
    """Each response of the table gives the same result whole, byte by byte, and cut in two anywhere."""
    data, has_end = answer_of(name)
    whole = _outcome([data], has_end=has_end)
    assert all(_outcome(pieces, has_end=has_end) == whole for pieces in _cuts(data))


@pytest.mark.parametrize(
    ("data", "keeps_alive"),
    [
        (_WHOLE, True),
        (_OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello", True),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", True),
        # Deviations that curl 7.88 accepts, unless a comment gives another reason.
        (_OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", False),
        (_OK + b"Content-Length: 5, 5\r\n\r\nhello", False),
        (_OK + b"Content-Length: +5\r\n\r\nhello", False),
        (_OK + b"Content-Length: 5.0\r\n\r\nhello", False),
        (_OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", False),
        (_OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        (_OK_1_0 + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Content-Length : 5\r\n\r\nhello", False),
        (_OK + b" Content-Length: 5\r\n\r\nhello", False),  # Chromium takes it
        (_OK + b"X y: z\r\nContent-Length: 5\r\n\r\nhello", False),
        (_OK + b"X\xff(y): z\r\nContent-Length: 5\r\n\r\nhello", False),
        (_OK + b"no colon\r\nContent-Length: 5\r\n\r\nhello", False),  # Chromium takes it
        (_OK + b"X: y\r\n and on\r\nContent-Length: 5\r\n\r\nhello", False),
        (_WHOLE.replace(b"\r\n", b"\r\r\n"), False),
        (_WHOLE.replace(b"\r\n", b"\n"), False),
        (b"\r\n" + _WHOLE, False),  # RFC 9112, 2.2, allows it of requests; Chromium takes it
        (b"http/1.1 200 ok\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/1.1 200OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/1.1  200  OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5  \r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5 junk\r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0 ; c\r\nX: y\r\n\r\n", True),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nno trailer\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: \x7f\r\n\r\n", False),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n5;\v\r\nhello\r\n0\r\n\r\n", False),
        (_OK + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", False),
        # Blanks of Unicode and of C, which are none in HTTP.
        *(
            (_OK + field % blank + b"\r\n\r\n" + body, False)
            for blank in (b"\v", b"\f", b"\x1f", "\xa0".encode(), "\u2003".encode())
            for field, body in (
                (b"Content-Length: 5%s", b"hello"),
                (b"Content-Length: 5\r\nConnection: keep-alive%s", b"hello"),
                (b"Transfer-Encoding: chunked%s", b"5\r\nhello\r\n0\r\n\r\n"),
                (b"Transfer-Encoding: %schunked", b"5\r\nhello\r\n0\r\n\r\n"),
            )
        ),
    ],
)
def test_unambiguous_responses_are_accepted(data: bytes, keeps_alive: bool) -> None:
    """The body is complete, and the connection is reused only after what RFC 9112 allows."""
    parser = ResponseParser()
    assert parser.feed(data) == _BODY
    assert parser.is_complete
    assert parser.head is not None
    assert (parser.head.status, parser.keeps_alive) == (200, keeps_alive)


@pytest.mark.parametrize("length", ["-1", "plenty", "", "9" * 30])
def test_an_invalid_length_is_ignored(length: str) -> None:
    """The body then lasts until the connection ends, as in Chromium; curl does so for the last of these alone."""
    parser = ResponseParser()
    assert parser.feed(_OK + f"Content-Length: {length}\r\n\r\n".encode() + _BODY) == _BODY
    assert not parser.is_complete
    parser.feed_eof()
    assert parser.is_complete


@pytest.mark.parametrize("behind", [b"\0", b"<!-- cached -->", b"\xff\xd9", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_bytes_after_a_body_are_dropped(behind: bytes) -> None:
    """They are noticed whether they come in the same read or in another, and belong to no response."""
    for pieces in ([_WHOLE + behind], [_WHOLE, behind], [_WHOLE[:-2], _WHOLE[-2:] + behind]):
        assert _outcome(pieces, has_end=True) == (*_outcome([_WHOLE], has_end=True)[:3], True)  # type: ignore[index]
        parser = ResponseParser()
        for piece in pieces:
            parser.feed(piece)
        assert not parser.keeps_alive


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"\x89PNG\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 FINE 200\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        _OK + b"X: a\0b\r\n\r\n",
        _OK + b"Content-Length: 5\r\nContent-Length: 4\r\n\r\n",
        _OK + b"Content-Length: 5, 4\r\n\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        _OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
        _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INTERIM_RESPONSES + 1),
        _OK + b"X: " + b"." * MAX_HEAD_BYTES,
        _OK + b"x:\n" * MAX_HEAD_LINES + b"\r\n",
        (b"HTTP/1.1 103 Early Hints\r\n" + b"x:\n" * (MAX_HEAD_LINES // 4) + b"\r\n") * 4,
    ],
)
def test_ambiguous_and_invalid_responses_are_refused(data: bytes) -> None:
    """Either curl refuses it too, or two parsers could understand it in two ways."""
    assert _outcome([data], has_end=False) is ProtocolError


def test_lines_of_interim_responses_count_wherever_the_read_ends() -> None:
    """The final head conforms, and comes in a read of its own."""
    interim = b"HTTP/1.1 103 Early Hints\r\n" + b"x:\r\n" * (MAX_HEAD_LINES // 3) + b"\r\n"
    parser = ResponseParser()
    parser.feed(interim * 2)
    with pytest.raises(ProtocolError, match="lines of headers"):
        parser.feed(_OK + b"x:\r\n" * (MAX_HEAD_LINES // 3) + b"Content-Length: 5\r\n\r\nhello")


def test_a_status_of_an_unknown_class_is_accepted_and_ends_the_connection() -> None:
    """LinkedIn, for example, sends 999."""
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 999 No\r\nContent-Length: 5\r\n\r\nhello")
    assert parser.head is not None
    assert (parser.head.status, parser.is_complete, parser.keeps_alive) == (999, True, False)


def test_whitespace_before_a_head_is_scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 KB that came byte by byte took seconds of CPU when each read scanned them from the start."""
    whitespace = _CountedPattern(response_parser._WHITESPACE)
    monkeypatch.setattr(response_parser, "_WHITESPACE", whitespace)
    parser = ResponseParser()
    for _ in range(1000):
        parser.feed(b"\n")
    assert parser.feed(_WHOLE) == _BODY
    assert whitespace.matched_bytes == 1000


class _CountedPattern:
    """A pattern that counts the bytes it has matched."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.matched_bytes = 0

    def match(self, data: bytes, position: int) -> re.Match[bytes] | None:
        """Match at a position."""
        match = self._pattern.match(data, position)
        self.matched_bytes += len(match[0]) if match else 0
        return match


def test_interim_responses_count_towards_the_bound_for_heads() -> None:
    """Many small heads have the same bound as one large head."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"." * 20_000 + b"\r\n\r\n"
    parser = ResponseParser()
    parser.feed(interim * 12)
    with pytest.raises(ProtocolError, match="bytes of headers"):
        parser.feed(interim * 2)


@pytest.mark.parametrize(
    "endless",
    [b"1\r\n.\r\n", b"5;" + b"." * 5000 + b"\r\nhello\r\n", b"." * 1000],
    ids=["chunks of a byte", "extensions", "a size without an end"],
)
def test_the_framing_of_a_body_is_bounded(endless: bytes) -> None:
    """Chunks of one byte, extensions and endless lines are read up to a bound, and none of it is kept."""
    start = b"5;" if not endless.endswith(b"\n") else b""
    _expect_a_bound(_OK + b"Transfer-Encoding: chunked\r\n\r\n" + start, endless)


def test_trailers_are_bounded() -> None:
    """The bytes of trailers count as framing."""
    _expect_a_bound(_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", b"X-Trailer: and another one\r\n")


def _expect_a_bound(start: bytes, endless: bytes) -> None:
    pieces = (1 << 20) // len(endless) + 1
    assert _outcome([start, *[endless] * pieces], has_end=False) is FramingTooLargeError


def test_a_body_in_chunks_of_64_bytes_is_within_the_bounds() -> None:
    """This holds however large the body is."""
    parser = ResponseParser()
    parser.feed(_OK + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"40\r\n" + b"." * 64 + b"\r\n"
    assert sum(len(parser.feed(chunk * 1000)) for _ in range(200)) == 200 * 64_000


@pytest.mark.parametrize(
    "many",
    [b"2\r\n..\r\n", b"01\r\n.\r\n", b"1\n.\n", b"1;\r\n.\r\n", b"1\r\n.\r\r\n", b"1\r\n.\r\n2\r\n..\r\n"],
    ids=["of two bytes", "a zero before the size", "without CR", "an extension", "CR CR LF", "of one byte and of two"],
)
def test_the_number_of_small_chunks_is_bounded(many: bytes) -> None:
    """Each chunk costs CPU, which would be used up long before the bound for bytes is reached."""
    start = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    assert isinstance(_outcome([start, many * 8000], has_end=False), tuple)
    assert _outcome([start, many * 10_000], has_end=False) is FramingTooLargeError


def test_the_number_of_trailers_is_bounded() -> None:
    """A trailer may be as short as a chunk."""
    start = _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    assert isinstance(_outcome([start, b"a\n" * 8000], has_end=False), tuple)
    assert _outcome([start, b"a\n" * 10_000], has_end=False) is FramingTooLargeError


def test_chunks_of_one_byte_are_cheap_and_not_counted() -> None:
    """Servers that pass on each byte as they get it send whole pictures in them."""
    body = bytes(range(256)) * 350
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    for pieces in (
        [chunks],
        [chunks[:100_001], chunks[100_001:]],
        [chunks[at : at + 1460] for at in range(0, len(chunks), 1460)],
    ):
        outcome = _outcome([_OK + b"Transfer-Encoding: chunked\r\n\r\n", *pieces, b"0\r\n\r\n"], has_end=False)
        assert isinstance(outcome, tuple)
        assert outcome[1:] == (body, True, False)


@pytest.mark.parametrize("seed", range(20))
def test_how_chunks_are_cut_makes_no_difference_to_the_bounds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that arrive whole are parsed in another way than those that are cut, with the same bounds."""
    monkeypatch.setattr(response_body, "_MAX_FRAMING_BYTES", 250)
    monkeypatch.setattr(response_body, "_MAX_CHUNKS", 20)
    chance = random.Random(seed)
    plain = [b"1\r\n.\r\n", b"2\r\n\r\n\r\n", b"1\r\n\n\r\n", b"28\r\n%b\r\n" % (b"\n" * 40)]
    odd = [
        b"01 ;a\r\n.\n",
        b"A\n0123456789\r\r\n",
        b"1\n.\r\n",
        b"1\r\n.\r\r\n",
        b"3\x0b\n...\n",
        b"0\r\nX: y\n\r\n",
        b"1\r\n..\r\n",
    ]
    outcomes = set()
    for _ in range(30):
        chunks = chance.choices(plain + odd, [20, 5, 5, 3, 2, 2, 2, 2, 2, 0.1, 0.1], k=chance.randint(20, 90))
        data = b"".join([_OK, b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"])
        whole = _outcome([data], has_end=True)
        positions = sorted(chance.choices(range(len(data)), k=chance.randint(1, 20)))
        cut = [data[start:end] for start, end in pairwise([0, *positions, len(data)])]
        by_byte = [data[position : position + 1] for position in range(len(data))]
        assert _outcome(cut, has_end=True) == _outcome(by_byte, has_end=True) == whole
        outcomes.add(whole if isinstance(whole, type) else tuple)
    assert {tuple, FramingTooLargeError} <= outcomes


@pytest.mark.parametrize("number", range(len(_WHOLE)))
def test_an_early_end_is_noticed(number: int) -> None:
    """A response that is cut off anywhere does not count as complete."""
    outcome = _outcome([_WHOLE[:number]], has_end=True)
    assert isinstance(outcome, type)
    assert issubclass(outcome, ProtocolError)


def test_the_end_of_a_body_in_chunks_is_its_last_chunk() -> None:
    """Without it the body is incomplete; what is missing after it does not matter."""
    chunked = _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ends = [isinstance(_outcome([chunked[:position]], has_end=True), type) for position in range(len(chunked) + 1)]
    assert [before and not after for before, after in pairwise(ends)].count(True) == 1
    assert not any(ends[-3:])
