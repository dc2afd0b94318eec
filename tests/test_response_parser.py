"""Responses as browsers and curl read them, however the network cuts them."""

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
from datafetch.fetch import response_parser
from datafetch.fetch.response_parser import (
    MAX_HEAD_BYTES,
    MAX_HEAD_LINES,
    MAX_INTERIM_RESPONSES,
    FramingTooLargeError,
    ProtocolError,
    ResponseParser,
)

_BODY = b"hello"
_OK_1_0 = b"HTTP/1.0 200 OK\r\n"
_OK = b"HTTP/1.1 200 OK\r\n"
_WHOLE = _OK + b"Content-Length: 5\r\n\r\nhello"
_PICTURE = bytes(range(256))
# What an answer of the table ends with, and how much of it is looked at: some have no end.
_MOST_BYTES = 3000


@dataclass
class _Recorder:
    """Stands where a connection's writer is, and keeps what is written to it."""

    written: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        if len(self.written) > _MOST_BYTES:
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
    """What a behaviour of the origin sends, and whether it then closes the connection."""
    recorder = _Recorder()
    request = Request(f"GET /{name}/cat.jpg HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n".encode())
    exchange = Exchange(request, {"http": 80, "https": 443}, recorder)  # type: ignore[arg-type]
    exchange.picture = _PICTURE

    async def answer() -> None:
        async with asyncio.timeout(5):
            await BEHAVIOURS[name].answer(exchange)

    with suppress(EOFError):
        asyncio.run(answer())
    return bytes(recorder.written[:_MOST_BYTES]), recorder.is_over and len(recorder.written) <= _MOST_BYTES


def _outcome(pieces: Sequence[bytes], *, has_end: bool) -> object:
    """What comes of a response that arrives in these pieces."""
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
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(len(data)):
        yield [data[:place], data[place:]]


@pytest.mark.parametrize("name", sorted(name for name, row in BEHAVIOURS.items() if not row.waits))
def test_how_an_answer_is_cut_makes_no_difference(name: str) -> None:
    """Whole, byte by byte, and cut in two at every place, each answer of the table comes to the same."""
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
        # Deviations, each with what curl 7.88 makes of it: it takes them, but where another reason is named.
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
def test_what_can_be_made_sense_of_is_taken(data: bytes, keeps_alive: bool) -> None:
    """The body is whole, and the connection goes on only after what RFC 9112 allows."""
    parser = ResponseParser()
    assert parser.feed(data) == _BODY
    assert parser.is_complete
    assert parser.head is not None
    assert (parser.head.status, parser.keeps_alive) == (200, keeps_alive)


@pytest.mark.parametrize("length", ["-1", "plenty", "", "9" * 30])
def test_a_length_that_is_none_leaves_the_end_to_the_connection(length: str) -> None:
    """As in Chromium; curl takes the last of these so, and refuses the others."""
    parser = ResponseParser()
    assert parser.feed(_OK + f"Content-Length: {length}\r\n\r\n".encode() + _BODY) == _BODY
    assert not parser.is_complete
    parser.feed_eof()
    assert parser.is_complete


@pytest.mark.parametrize("behind", [b"\0", b"<!-- cached -->", b"\xff\xd9", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_comes_behind_a_body_changes_nothing(behind: bytes) -> None:
    """In the same read or in another, it is known to be there, and belongs to nothing."""
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
def test_what_has_no_one_meaning_is_refused(data: bytes) -> None:
    """As curl refuses it, or because two readers could take it for two things."""
    assert _outcome([data], has_end=False) is ProtocolError


def test_lines_of_interim_responses_count_wherever_the_read_ends() -> None:
    """The last head is as it should be, and comes with a read of its own."""
    interim = b"HTTP/1.1 103 Early Hints\r\n" + b"x:\r\n" * (MAX_HEAD_LINES // 3) + b"\r\n"
    parser = ResponseParser()
    parser.feed(interim * 2)
    with pytest.raises(ProtocolError, match="lines of headers"):
        parser.feed(_OK + b"x:\r\n" * (MAX_HEAD_LINES // 3) + b"Content-Length: 5\r\n\r\nhello")


def test_a_status_beyond_the_classes_there_are_is_taken_and_ends_the_connection() -> None:
    """LinkedIn sends 999, for one."""
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 999 No\r\nContent-Length: 5\r\n\r\nhello")
    assert parser.head is not None
    assert (parser.head.status, parser.is_complete, parser.keeps_alive) == (999, True, False)


def test_whitespace_before_a_head_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they come: 64 KB byte by byte took seconds of CPU when each read began anew."""
    whitespace = _CountedPattern(response_parser._WHITESPACE)
    monkeypatch.setattr(response_parser, "_WHITESPACE", whitespace)
    parser = ResponseParser()
    for _ in range(1000):
        parser.feed(b"\n")
    assert parser.feed(_WHOLE) == _BODY
    assert whitespace.matched_bytes == 1000


class _CountedPattern:
    """A pattern, and how many bytes it has matched."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.matched_bytes = 0

    def match(self, data: bytes, place: int) -> re.Match[bytes] | None:
        """Match there."""
        match = self._pattern.match(data, place)
        self.matched_bytes += len(match[0]) if match else 0
        return match


def test_interim_responses_count_into_the_head() -> None:
    """What is announced again and again has the same bound as what is said once."""
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
def test_what_stands_around_a_body_is_counted(endless: bytes) -> None:
    """Chunks of a byte, extensions and lines without an end take a bounded number of bytes, and nothing is kept."""
    start = b"5;" if not endless.endswith(b"\n") else b""
    _expect_a_bound(_OK + b"Transfer-Encoding: chunked\r\n\r\n" + start, endless)


def test_trailers_are_counted() -> None:
    """They take a bounded number of bytes as well."""
    _expect_a_bound(_OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", b"X-Trailer: and another one\r\n")


def _expect_a_bound(start: bytes, endless: bytes) -> None:
    pieces = (1 << 20) // len(endless) + 1
    assert _outcome([start, *[endless] * pieces], has_end=False) is FramingTooLargeError


def test_a_body_in_small_chunks_has_room_for_their_sizes() -> None:
    """However large a body is, chunks of 64 bytes are no bomb."""
    parser = ResponseParser()
    parser.feed(_OK + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"40\r\n" + b"." * 64 + b"\r\n"
    assert sum(len(parser.feed(chunk * 1000)) for _ in range(200)) == 200 * 64_000


@pytest.mark.parametrize(
    "many",
    [b"2\r\n..\r\n", b"01\r\n.\r\n", b"1\n.\n", b"1;\r\n.\r\n", b"1\r\n.\r\r\n", b"1\r\n.\r\n2\r\n..\r\n"],
    ids=["of two bytes", "a zero before the size", "without CR", "an extension", "CR CR LF", "of one byte and of two"],
)
def test_small_chunks_are_counted(many: bytes) -> None:
    """Each costs CPU, so that a host that sends them could leave none for the others; long before their bytes count."""
    begun = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    assert isinstance(_outcome([begun, many * 8000], has_end=False), tuple)
    assert _outcome([begun, many * 10_000], has_end=False) is FramingTooLargeError


def test_trailers_are_counted_like_chunks() -> None:
    """They may be of a byte as well."""
    begun = _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    assert isinstance(_outcome([begun, b"a\n" * 8000], has_end=False), tuple)
    assert _outcome([begun, b"a\n" * 10_000], has_end=False) is FramingTooLargeError


def test_chunks_of_a_byte_are_cheap_and_not_counted() -> None:
    """Servers that hand on what they get byte by byte send a whole picture in them."""
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
def test_how_chunks_are_cut_makes_no_difference_to_what_is_counted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there as a whole are taken another way than those that are cut; the bounds are the same."""
    monkeypatch.setattr(response_parser, "_MAX_FRAMING_BYTES", 250)
    monkeypatch.setattr(response_parser, "_MAX_CHUNKS", 20)
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
        places = sorted(chance.choices(range(len(data)), k=chance.randint(1, 20)))
        cut = [data[start:end] for start, end in pairwise([0, *places, len(data)])]
        by_byte = [data[place : place + 1] for place in range(len(data))]
        assert _outcome(cut, has_end=True) == _outcome(by_byte, has_end=True) == whole
        outcomes.add(whole if isinstance(whole, type) else tuple)
    assert {tuple, FramingTooLargeError} <= outcomes


@pytest.mark.parametrize("number", range(len(_WHOLE)))
def test_an_end_before_its_time_is_known(number: int) -> None:
    """A response that is cut anywhere is not taken for a whole one."""
    outcome = _outcome([_WHOLE[:number]], has_end=True)
    assert isinstance(outcome, type)
    assert issubclass(outcome, ProtocolError)


def test_the_end_of_a_body_in_chunks_is_its_last_chunk() -> None:
    """Without it the body is cut; what is missing behind it is not."""
    chunked = _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ends = [isinstance(_outcome([chunked[:place]], has_end=True), type) for place in range(len(chunked) + 1)]
    assert [before and not after for before, after in pairwise(ends)].count(True) == 1
    assert not any(ends[-3:])
