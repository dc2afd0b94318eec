"""Parses HTTP/1 responses as leniently as browsers and curl do: bytes go in, a head and the body's bytes come out.

Theory of operation. A response is one head after another until one is final (a status from 200 on), and then a body.
``ResponseParser.feed`` takes bytes as they arrive and returns those that belong to the body. How the network has cut
them makes no difference to the outcome. There are two states:

* In the head. Nearly all heads conform to RFC 9112 and arrive in one read; one regular expression matches such a head
  in C. Any other head is collected until its empty line has come, and is then read line by line.
* In the body. The head decides which of three bodies it is: one of a known length, one in chunks, or one that lasts
  until the connection ends. The chunked one is a small state machine of its own, which reads a size line, that many
  bytes and a line end, and after a size of 0 trailers up to an empty line. Chunks that arrived whole are taken by
  regular expressions as well.

A response is accepted if there is exactly one way to understand it, whether it conforms or not. Where two are possible
(two different lengths, a NUL in the head), it is refused. A response that is read leniently may end elsewhere than its
server meant, and what follows would be taken for the next response (response smuggling). So the connection is not
used again unless every byte of a response conforms: ``keeps_alive`` is false.

Rules: no I/O. Everything that a server sends has a bound. Heads, and the framing around chunks, are bounded in bytes
and, because each line costs CPU, in number. Nothing but the head is kept.

Source: RFC 9112. For each deviation, it was tried what curl 7.88 accepts; tests/test_response_parser.py names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from multidict import CIMultiDict, CIMultiDictProxy

MAX_HEAD_BYTES = 256 * 1024  # of all heads of a response, interim ones included; browsers have the same bound
MAX_HEAD_LINES = 5000  # of all heads of a response; curl's bound
MAX_INTERIM_RESPONSES = 20
# Chunk sizes, extensions, line ends and trailers may take this much, and one byte more for every 8 bytes of the body.
# Chunks of 64 bytes stay within that however many there are; chunks of one byte don't.
_MAX_FRAMING_BYTES = 512 * 1024
_BODY_BYTES_PER_FRAMING_BYTE = 8
# There may be this many chunks and trailers, and one more for every 64 bytes of the body. Each takes most of a
# microsecond. Chunks of one byte are not counted: they come from servers that pass on each byte as they get it, and
# cost next to nothing as long as all are written alike.
_MAX_CHUNKS = 8192
_BYTES_PER_EXTRA_CHUNK = 64
_MAX_LENGTH_DIGITS = 18  # any such number fits into 63 bits

# The fields that the fetcher looks at; others are not even decoded.
_HEADERS = frozenset(
    {
        *(b"connection", b"content-encoding", b"content-length", b"content-range", b"etag", b"location"),
        *(b"retry-after", b"set-cookie", b"transfer-encoding", b"x-robots-tag"),
    }
)
_WHITESPACE = re.compile(rb"[\r\n \t]*+")
_END_OF_HEAD = re.compile(rb"\n\r*\n")
_STATUS_LINE = re.compile(rb"[ \t]*http/(\S+)[ \t]+([0-9]{3})(?![0-9])", re.IGNORECASE)
_HTTP_PREFIX = b"http/"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_TEXT = rb"[^\x00-\x08\n-\x1f\x7f]*+"  # the only control character that a line may contain is the tab
# "Strict" patterns match what conforms to RFC 9112, which nearly every response does.
_STRICT_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: " + _TEXT + rb")?\r\n(?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*+\r\n"
)
_STRICT_FIELD = re.compile(rb"\n(" + b"|".join(sorted(_HEADERS)) + rb"):[ \t]*([^\r]*)\r", re.IGNORECASE)
_MAX_ONE_MATCH_HEAD_BYTES = 16 * 1024  # bounds the work that is lost where it turns out to be no strict head
_LENGTH = re.compile(r"\+?([0-9]+)(?:\.[0-9]*)?")
_STRICT_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;" + _TEXT + rb")?\r")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[;\s].*)?\Z", re.DOTALL)
_STRICT_SIZE_LINE = re.compile(_STRICT_CHUNK_SIZE.pattern + rb"\n")
_ONE_BYTE_CHUNKS = re.compile(rb"(?:1\r\n[\s\S]\r\n)++")
_STRICT_TRAILER = re.compile(
    rb"(?:" + _TOKEN + rb":" + _TEXT + rb")?\r"
)  # the empty line behind the last trailer also matches
_ONE_BYTE_SIZE_LINE, _CRLF = b"1\r\n", b"\r\n"
_FIRST_FINAL_STATUS, _SWITCHING_PROTOCOLS, _FIRST_STATUS = 200, 101, 100
_WITHOUT_BODY = (204, 304)
_NO_OPTIONS: frozenset[str] = frozenset()


class ProtocolError(ValueError):
    """What came is no HTTP response, or one that can be understood in more than one way."""


class FramingTooLargeError(ValueError):
    """The framing of a body takes more bytes or more chunks than any server needs."""


class IncompleteBodyError(ProtocolError):
    """The connection ended before the body did."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a final response.

    Attributes:
        status: The HTTP status, 200 to 999.
        headers: The fields that the fetcher looks at. Bytes that are not UTF-8 are escaped as surrogates.
        content_length: Size of the body in bytes; None where chunks or the end of the connection delimit it.
        is_chunked: Whether the body comes in chunks.
        keeps_alive: Whether the head allows another request on the connection: the server allows
            it, and all of the head conforms. ``ResponseParser.keeps_alive`` takes the body into account as well.
    """

    status: int
    headers: CIMultiDictProxy[str]
    content_length: int | None
    is_chunked: bool
    keeps_alive: bool


class _Body(Protocol):
    """What follows a head. ``feed`` returns the bytes that belong to the body and leaves the rest in ``surplus``."""

    surplus: bytes
    is_conformant: bool

    @property
    def is_complete(self) -> bool: ...

    def feed(self, data: bytes) -> bytes: ...

    def feed_eof(self) -> None: ...


class ResponseParser:
    """Parses one response.

    Attributes:
        head: The final head, once all of it has arrived.
        has_surplus: Whether anything came after the end of the body. It belongs to no request and is dropped.
    """

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.has_surplus = False
        self._unread = bytearray()
        self._search_from = 0
        self._whitespace_end = 0
        self._head_bytes = 0
        self._head_lines = 0
        self._interim_responses = 0
        self._body: _Body | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all of the body has been fed."""
        return self._body is not None and self._body.is_complete

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow: the response is complete, and every byte of it conforms to RFC 9112."""
        body, head = self._body, self.head
        if body is None or head is None or not body.is_complete:
            return False
        return head.keeps_alive and body.is_conformant and not self.has_surplus

    def feed(self, data: bytes) -> bytes:
        """Take bytes that arrived, and return those of them that belong to the body.

        Raises:
            ProtocolError: They are no response, or its chunks can't be told apart.
            FramingTooLargeError: The framing of the body is over its bounds.
        """
        if self._body is None:
            data = self._feed_head(data)
            if self._body is None:
                return b""
        if self._body.is_complete:
            self.has_surplus = self.has_surplus or bool(data)
            return b""
        content = self._body.feed(data)
        self.has_surplus = bool(self._body.surplus)
        return content

    def feed_eof(self) -> None:
        """Record that the connection was closed in an orderly way.

        Raises:
            IncompleteBodyError: The response is not complete.
        """
        if self._body is None:
            raise IncompleteBodyError("the connection ended before the head of a response did")
        if not self._body.is_complete:
            self._body.feed_eof()

    def _feed_head(self, data: bytes) -> bytes:
        """Take bytes while the head is not complete; once it is, return those that follow it."""
        if not self._unread and (match := _STRICT_HEAD.match(data, 0, _MAX_ONE_MATCH_HEAD_BYTES)) is not None:
            head = _head_of_strict_match(match)
            if head.status >= _FIRST_FINAL_STATUS and self._has_room_for(data, match.end()):
                self.head, self._body = head, _body_of(head)
                return data[match.end() :]
        self._unread += data
        while self.head is None:
            # From where the last read left off, or the time would grow with the square of the number of reads.
            whitespace = _WHITESPACE.match(self._unread, self._whitespace_end)
            assert whitespace is not None, "it matches the empty string, too"
            start = self._whitespace_end = whitespace.end()
            prefix = self._unread[start : start + len(_HTTP_PREFIX)].lower()
            if self._search_from <= start and not _HTTP_PREFIX.startswith(prefix):
                raise ProtocolError(f"not an HTTP response: {bytes(self._unread[start : start + 40])!r}")
            end = _END_OF_HEAD.search(self._unread, max(start, self._search_from))
            length = len(self._unread) if end is None else end.end()
            if self._head_bytes + length > MAX_HEAD_BYTES:
                raise ProtocolError(f"over {MAX_HEAD_BYTES} bytes of headers")
            if end is None:
                self._search_from = max(0, self._unread.rfind(b"\n"))
                return b""
            self._head_bytes += length
            self._search_from = self._whitespace_end = 0
            self._head_lines += self._unread.count(b"\n", start, length)
            if self._head_lines > MAX_HEAD_LINES:
                raise ProtocolError(f"over {MAX_HEAD_LINES} lines of headers")
            self.head = self._read_head(bytes(self._unread[start : end.end()]), is_conformant=not start)
            del self._unread[: end.end()]
        self._body = _body_of(self.head)
        rest = bytes(self._unread)
        self._unread.clear()
        return rest

    def _has_room_for(self, data: bytes, head_bytes: int) -> bool:
        """Whether a head of this size is within the bounds, together with the interim ones before it.

        A single head that one match has found is always within them.
        """
        if not self._head_bytes:
            return True
        lines = self._head_lines + data.count(b"\n", 0, head_bytes)
        return self._head_bytes + head_bytes <= MAX_HEAD_BYTES and lines <= MAX_HEAD_LINES

    def _read_head(self, head: bytes, *, is_conformant: bool) -> ResponseHead | None:
        """Read a head; return None for one that announces another."""
        found = read_head(head, is_conformant=is_conformant)
        if found.status >= _FIRST_FINAL_STATUS:
            return found
        self._interim_responses += 1
        if found.status == _SWITCHING_PROTOCOLS:
            raise ProtocolError("101: the server switched to another protocol")
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            raise ProtocolError(f"over {MAX_INTERIM_RESPONSES} interim responses")
        return None


def read_head(head: bytes, *, is_conformant: bool = True) -> ResponseHead:
    """Read a head, from its status line to the empty line.

    Args:
        head: All of it.
        is_conformant: Whether what came before it conforms to RFC 9112, which allows nothing there.

    Raises:
        ProtocolError: It is no head, or can be understood in more than one way.
    """
    if is_conformant and (strict := _STRICT_HEAD.fullmatch(head)) is not None:
        return _head_of_strict_match(strict)
    if b"\0" in head:
        raise ProtocolError("NUL byte in the headers")
    status_line, *lines = head.split(b"\n")
    match = _STATUS_LINE.match(status_line)
    status = int(match[2]) if match else 0
    if match is None or status < _FIRST_STATUS:
        raise ProtocolError(f"not an HTTP status line: {status_line[:40]!r}")
    return _head_of(status, _lenient_fields(lines), is_1_1=match[1] == b"1.1", is_conformant=False)


def _head_of_strict_match(match: re.Match[bytes]) -> ResponseHead:
    """The head of a match of ``_STRICT_HEAD``."""
    fields = CIMultiDict(map(_decoded, _STRICT_FIELD.findall(match[0])))
    return _head_of(int(match[2]), fields, is_1_1=match[1] == b"1", is_conformant=True)


def _decoded(field: tuple[bytes, bytes]) -> tuple[str, str]:
    return field[0].decode("ascii"), field[1].strip().decode("utf-8", "surrogateescape")


def _head_of(status: int, headers: CIMultiDict[str], *, is_1_1: bool, is_conformant: bool) -> ResponseHead:
    """Make a head of its status and its fields.

    Raises:
        ProtocolError: It has two different lengths.
    """
    coding_fields = headers.getall("Transfer-Encoding", None)
    codings = ",".join(coding_fields) if coding_fields else ""
    is_chunked = bool(codings) and "chunked" in [coding.strip().lower() for coding in codings.split(",")]
    length, is_unambiguous = _content_length(headers)
    # RFC 9112, 6.1: HTTP/1.0 has no transfer codings, and a body whose coding is not "chunked" has no defined end.
    is_unambiguous = is_unambiguous and (
        coding_fields is None or (codings.lower() == "chunked" and codings.isascii() and is_1_1)
    )
    if is_chunked or status in _WITHOUT_BODY:
        is_unambiguous = is_unambiguous and length is None
        length = None if is_chunked else 0
    options = _NO_OPTIONS
    if connection := ",".join(headers.getall("Connection", ())):
        options = frozenset(option.strip().lower() for option in connection.split(","))
        is_unambiguous = is_unambiguous and connection.isascii()
    keeps_alive = is_conformant and is_unambiguous and "close" not in options and (is_1_1 or "keep-alive" in options)
    return ResponseHead(status, CIMultiDictProxy(headers), length, is_chunked, keeps_alive)


def _lenient_fields(lines: list[bytes]) -> CIMultiDict[str]:
    """The fields that the fetcher looks at, read from lines that need not conform as browsers and curl read them."""
    return CIMultiDict(_decoded(field) for field in _unfolded(lines) if field[0] in _HEADERS)


def _unfolded(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Names in lower case and values, with continuation lines joined (obsolete line folding, RFC 9112, 5.2)."""
    name, value = b"", b""
    for line in lines:
        if line[:1] in (b" ", b"\t") and name:
            value += b" " + line.strip()
            continue
        if name:
            yield name, value
        name, colon, value = line.partition(b":")
        name = name.strip().lower() if colon else b""
    if name:
        yield name, value


def _content_length(headers: CIMultiDict[str]) -> tuple[int | None, bool]:
    """Read the body's length.

    Returns:
        The length, None where there is none or it is no number; and whether the fields conform to RFC 9110.

    Raises:
        ProtocolError: There are two different lengths.
    """
    fields = headers.getall("Content-Length", ())
    if len(fields) == 1 and len(fields[0]) <= _MAX_LENGTH_DIGITS and fields[0].isascii() and fields[0].isdigit():
        return int(fields[0]), True  # the usual case, in a third of the time
    if not fields:
        return None, True
    values = [value.strip() for field in fields for value in field.split(",")]
    lengths = set()
    for value in set(values):
        match = _LENGTH.fullmatch(value)
        if match is not None and len(match[1]) <= _MAX_LENGTH_DIGITS:
            lengths.add(int(match[1]))
    if len(lengths) > 1:
        raise ProtocolError(f"two different lengths: {', '.join(values)[:100]}")
    return (lengths.pop() if lengths else None), False


def _body_of(head: ResponseHead) -> _Body:
    if head.is_chunked:
        return _ChunkedBody()
    return _UntilCloseBody() if head.content_length is None else _LengthBody(head.content_length)


class _LengthBody:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self.surplus = b""
        self.is_conformant = True
        self._length = length
        self._remaining = length

    @property
    def is_complete(self) -> bool:
        return not self._remaining

    def feed(self, data: bytes) -> bytes:
        if len(data) <= self._remaining:
            self._remaining -= len(data)
            return data
        content, self.surplus = data[: self._remaining], data[self._remaining :]
        self._remaining = 0
        return content

    def feed_eof(self) -> None:
        raise IncompleteBodyError(f"received {self._length - self._remaining} of {self._length} bytes")


class _UntilCloseBody:
    """A body that lasts until the connection ends."""

    def __init__(self) -> None:
        self.is_complete = False
        self.is_conformant = True
        self.surplus = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_eof(self) -> None:
        self.is_complete = True


class _ChunkedBody:
    """A body in chunks.

    Only the current line is held, and trailers are dropped line by line. Chunks that arrive whole are not read line by
    line, which would take several times as long; what is counted against the bounds is the same either way.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.is_conformant = True
        self.surplus = b""
        self._remaining = 0
        self._line = bytearray()
        self._read_line = self._read_size
        self._content_bytes = 0
        self._framing_bytes = 0
        self._is_one_byte_chunk = False
        self._chunks = 0

    def feed(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        position = 0
        while position < len(data) and not self.is_complete:
            if self._remaining:
                piece = data[position : position + self._remaining]
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
                self._content_bytes += len(piece)
            else:
                if self._read_line == self._read_size and not self._line:
                    position = self._feed_whole_chunks(data, position, pieces)
                position = self._feed_line(data, position)
        self.surplus = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def feed_eof(self) -> None:
        if self._read_line != self._read_trailer:
            raise IncompleteBodyError("the connection ended before the last chunk")
        self.is_complete = True

    def _feed_whole_chunks(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Take the chunks that have arrived whole and conform to RFC 9112; return the position behind the last."""
        while (size := _STRICT_SIZE_LINE.match(data, position)) is not None:
            start = size.end()
            end = start + int(size[1], 16)
            if end == start or not data.startswith(_CRLF, end):
                break  # it is the last chunk, has not arrived whole, or does not conform
            if size[0] == _ONE_BYTE_SIZE_LINE:
                position = self._feed_one_byte_chunks(data, position, pieces)
                continue
            self._count_framing(start - position)
            pieces.append(data[start:end])
            self._content_bytes += end - start
            position = end + len(_CRLF)
            self._count_framing(position - end)
            self._count_chunk()
        return position

    def _feed_one_byte_chunks(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Take a run of chunks of one byte, in a hundredth of the time; return the position behind the last.

        Each adds more framing than the bound for framing grows by, so if any of them exceeds it, the last one does.
        """
        chunks = _ONE_BYTE_CHUNKS.match(data, position)
        assert chunks is not None, "the caller has found one"
        before, step = len(_ONE_BYTE_SIZE_LINE), len(_ONE_BYTE_SIZE_LINE + b"." + _CRLF)
        content = data[position + before : chunks.end() : step]
        pieces.append(content)
        self._content_bytes += len(content)
        self._count_framing(chunks.end() - position - len(content))
        return chunks.end()

    def _feed_line(self, data: bytes, position: int) -> int:
        """Take as much of a line as has arrived; return the position behind it."""
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        self._count_framing(stop - position)
        self._line += data[position:stop]
        if end >= 0:
            line = bytes(self._line[:-1])
            self._line.clear()
            self._read_line(line)
        return stop

    def _count_framing(self, size_bytes: int) -> None:
        self._framing_bytes += size_bytes
        if self._framing_bytes > _MAX_FRAMING_BYTES + self._content_bytes // _BODY_BYTES_PER_FRAMING_BYTE:
            raise FramingTooLargeError(f"{self._framing_bytes} bytes around {self._content_bytes} bytes of a body")

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS + self._content_bytes // _BYTES_PER_EXTRA_CHUNK:
            raise FramingTooLargeError(f"{self._chunks} chunks and trailers for {self._content_bytes} bytes of a body")

    def _read_size(self, line: bytes) -> None:
        match = _STRICT_CHUNK_SIZE.fullmatch(line)
        if match is None:
            self.is_conformant = False
            match = _CHUNK_SIZE.match(line)
        if match is None:
            raise ProtocolError(f"not a chunk size: {line[:40]!r}")
        self._remaining = int(match[1], 16)
        self._is_one_byte_chunk = line + b"\n" == _ONE_BYTE_SIZE_LINE
        self._read_line = self._read_end_of_chunk if self._remaining else self._read_trailer

    def _read_end_of_chunk(self, line: bytes) -> None:
        if line.strip(b"\r"):
            raise ProtocolError(f"no line end after a chunk: {line[:40]!r}")
        self.is_conformant = self.is_conformant and line == b"\r"
        self._read_line = self._read_size
        if not self._is_one_byte_chunk or line + b"\n" != _CRLF:
            self._count_chunk()

    def _read_trailer(self, line: bytes) -> None:
        self.is_complete = not line.strip(b"\r")
        self.is_conformant = self.is_conformant and _STRICT_TRAILER.fullmatch(line) is not None
        self._count_chunk()
