"""Responses of HTTP/1, read as browsers and curl read them: bytes in, a head and a body out.

A response is a head, which ends with an empty line, and a body, whose end one of three things tells: a length, chunks,
or the end of the connection. ``ResponseParser.feed`` takes bytes as they come and gives back what of them is body;
where they were cut makes no difference to the outcome.

Rules: no I/O. What can be made sense of is taken, as long as there is one way to make sense of it; what deviates from
RFC 9112 costs the connection and not the image, for a response after which the connection is closed can smuggle
nothing in. Everything that the server sends is counted: head, chunk sizes, extensions and trailers have budgets, by
their bytes and, for each costs CPU, by their number; none of it is kept beyond the head.

Source: RFC 9112; what curl 7.88 takes was tried for each deviation (tests/test_response_parser.py names it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from multidict import CIMultiDict, CIMultiDictProxy

MAX_HEAD_BYTES = 256 * 1024  # of all heads of a response together, interim ones included; browsers stop there, too
MAX_HEAD_LINES = 5000  # of them, again; curl's bound
MAX_INTERIM_RESPONSES = 20
_MAX_FRAMING_BYTES = 512 * 1024  # chunk sizes, extensions, line ends and trailers may take so much …
_BODY_BYTES_PER_FRAMING_BYTE = (
    8  # … and one of so many bytes of the body: chunks of 64 bytes have it, chunks of one byte have not
)
# A chunk or a trailer takes most of a microsecond. Chunks of one byte, which servers send that hand on byte by byte
# what they get, take next to nothing if all are written alike, and are not counted.
_MAX_CHUNKS = 8192
_BYTES_PER_EXTRA_CHUNK = 64  # there may be one more for each so many bytes of the body
_MAX_LENGTH_DIGITS = 18  # of a number that fits 63 bits

# In these alone the fetcher looks; the others are not even decoded.
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
_TEXT = rb"[^\x00-\x08\n-\x1f\x7f]*+"  # what may stand in a line: no control characters but tabs
# All of a head that is as RFC 9112 has it, and in it the fields that matter: that is nearly every head, and C is fast.
_STRICT_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: " + _TEXT + rb")?\r\n(?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*+\r\n"
)
_STRICT_FIELD = re.compile(rb"\n(" + b"|".join(sorted(_HEADERS)) + rb"):[ \t]*([^\r]*)\r", re.IGNORECASE)
_MAX_ONE_MATCH_HEAD_BYTES = 16 * 1024  # so much is looked at before it is known whether it is a head
_LENGTH = re.compile(r"\+?([0-9]+)(?:\.[0-9]*)?")
_STRICT_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;" + _TEXT + rb")?\r")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[;\s].*)?\Z", re.DOTALL)
_STRICT_SIZE_LINE = re.compile(_STRICT_CHUNK_SIZE.pattern + rb"\n")
_ONE_BYTE_CHUNKS = re.compile(rb"(?:1\r\n[\s\S]\r\n)++")
_STRICT_TRAILER = re.compile(rb"(?:" + _TOKEN + rb":" + _TEXT + rb")?\r")  # or the empty line behind the last one
_ONE_BYTE_SIZE_LINE, _CRLF = b"1\r\n", b"\r\n"
_FIRST_FINAL_STATUS, _SWITCHING_PROTOCOLS, _FIRST_STATUS = 200, 101, 100
_WITHOUT_BODY = (204, 304)
_NO_OPTIONS: frozenset[str] = frozenset()


class ProtocolError(ValueError):
    """What came is no answer to what was asked."""


class FramingTooLargeError(ValueError):
    """A response has more around its body than any server needs."""


class IncompleteBodyError(ProtocolError):
    """The connection ended before the body did."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response that is final.

    Attributes:
        status: From 200 on.
        headers: Those that the fetcher looks at; what is no UTF-8 in them is escaped by surrogates.
        content_length: Bytes of the body, where a length tells; None where chunks or the connection's end do.
        is_chunked: Whether the body comes in chunks.
        keeps_alive: Whether another request may follow on the connection: the server says so, and all of the head is
            as RFC 9112 has it. A body in chunks has a say of its own, in ``ResponseParser.keeps_alive``.
    """

    status: int
    headers: CIMultiDictProxy[str]
    content_length: int | None
    is_chunked: bool
    keeps_alive: bool


class _Body(Protocol):
    """What comes behind a head."""

    surplus: bytes
    is_conformant: bool

    @property
    def is_complete(self) -> bool: ...

    def feed(self, data: bytes) -> bytes: ...

    def feed_eof(self) -> None: ...


class ResponseParser:
    """One response.

    Attributes:
        head: Once all of it is there.
        has_surplus: Whether something came behind the body. Nobody asked for it, and it tells nothing of the response.
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
        """Whether another request may follow: the response is complete, and all of it was as RFC 9112 has it."""
        body, head = self._body, self.head
        if body is None or head is None or not body.is_complete:
            return False
        return head.keeps_alive and body.is_conformant and not self.has_surplus

    def feed(self, data: bytes) -> bytes:
        """Take what came, and return what of it belongs to the body.

        Raises:
            ProtocolError: It is no response, or its chunks can't be told apart.
            FramingTooLargeError: There is far more around the body than it needs.
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
        """The connection has ended, in order.

        Raises:
            IncompleteBodyError: Before the response did.
        """
        if self._body is None:
            raise IncompleteBodyError("the connection ended before the head of a response did")
        if not self._body.is_complete:
            self._body.feed_eof()

    def _feed_head(self, data: bytes) -> bytes:
        """Take what may be some of the head; returns what comes behind it, once that is so."""
        if not self._unread and (match := _STRICT_HEAD.match(data, 0, _MAX_ONE_MATCH_HEAD_BYTES)) is not None:
            head = _head_of_strict_match(match)
            if head.status >= _FIRST_FINAL_STATUS and self._has_room_for(data, match.end()):
                self.head, self._body = head, _body_of(head)
                return data[match.end() :]
        self._unread += data
        while self.head is None:
            whitespace = _WHITESPACE.match(
                self._unread, self._whitespace_end
            )  # from where the last read left off, or it is quadratic
            assert whitespace is not None, "it matches nothing, too"
            start = self._whitespace_end = whitespace.end()
            if self._search_from <= start and not _HTTP_PREFIX.startswith(
                self._unread[start : start + len(_HTTP_PREFIX)].lower()
            ):
                raise ProtocolError(f"no response of HTTP: {bytes(self._unread[start : start + 40])!r}")
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
        """Whether a head that is read at once is within bounds, with the interim ones before it; alone it always is."""
        if not self._head_bytes:
            return True
        lines = self._head_lines + data.count(b"\n", 0, head_bytes)
        return self._head_bytes + head_bytes <= MAX_HEAD_BYTES and lines <= MAX_HEAD_LINES

    def _read_head(self, head: bytes, *, is_conformant: bool) -> ResponseHead | None:
        """The head of a final response; None for one that announces another."""
        found = read_head(head, is_conformant=is_conformant)
        if found.status >= _FIRST_FINAL_STATUS:
            return found
        self._interim_responses += 1
        if found.status == _SWITCHING_PROTOCOLS:
            raise ProtocolError("101: it speaks another protocol now")
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            raise ProtocolError(f"over {MAX_INTERIM_RESPONSES} interim responses")
        return None


def read_head(head: bytes, *, is_conformant: bool = True) -> ResponseHead:
    """Read a head, from its status line to the empty line.

    Args:
        head: All of it.
        is_conformant: Whether what came before it is as RFC 9112 has it, which is nothing.

    Raises:
        ProtocolError: It is none, or there is more than one way to read it.
    """
    if is_conformant and (strict := _STRICT_HEAD.fullmatch(head)) is not None:
        return _head_of_strict_match(strict)
    if b"\0" in head:
        raise ProtocolError("a NUL in the head")
    status_line, *lines = head.split(b"\n")
    match = _STATUS_LINE.match(status_line)
    status = int(match[2]) if match else 0
    if match is None or status < _FIRST_STATUS:
        raise ProtocolError(f"no status line of HTTP: {status_line[:40]!r}")
    return _head_of(status, _lenient_fields(lines), is_1_1=match[1] == b"1.1", is_conformant=False)


def _head_of_strict_match(match: re.Match[bytes]) -> ResponseHead:
    """The head that ``_STRICT_HEAD`` matched."""
    fields = CIMultiDict(map(_decoded, _STRICT_FIELD.findall(match[0])))
    return _head_of(int(match[2]), fields, is_1_1=match[1] == b"1", is_conformant=True)


def _decoded(field: tuple[bytes, bytes]) -> tuple[str, str]:
    return field[0].decode("ascii"), field[1].strip().decode("utf-8", "surrogateescape")


def _head_of(status: int, headers: CIMultiDict[str], *, is_1_1: bool, is_conformant: bool) -> ResponseHead:
    """The head, by its status and its fields.

    Raises:
        ProtocolError: It says two lengths.
    """
    coding_fields = headers.getall("Transfer-Encoding", None)
    codings = ",".join(coding_fields) if coding_fields else ""
    is_chunked = bool(codings) and "chunked" in [coding.strip().lower() for coding in codings.split(",")]
    length, is_unambiguous = _content_length(headers)
    # RFC 9112, 6.1: in HTTP/1.0 nobody knows of codings, and of those besides "chunked" nobody knows the end.
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
    """The fields that matter, by what browsers and curl make of lines that deviate."""
    return CIMultiDict(_decoded(field) for field in _unfolded(lines) if field[0] in _HEADERS)


def _unfolded(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Names in lower case and values, lines that continue another joined to it (RFC 9112, 5.2: obsolete)."""
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
    """The length that is said, None where none is or it is no number; and whether it is said as RFC 9110 has it.

    Raises:
        ProtocolError: Two lengths are said.
    """
    fields = headers.getall("Content-Length", ())
    if len(fields) == 1 and len(fields[0]) <= _MAX_LENGTH_DIGITS and fields[0].isascii() and fields[0].isdigit():
        return int(fields[0]), True  # the usual, in a third of the time
    if not fields:
        return None, True
    values = [value.strip() for field in fields for value in field.split(",")]
    lengths = set()
    for value in set(values):
        match = _LENGTH.fullmatch(value)
        if match is not None and len(match[1]) <= _MAX_LENGTH_DIGITS:
            lengths.add(int(match[1]))
    if len(lengths) > 1:
        raise ProtocolError(f"two lengths: {', '.join(values)[:100]}")
    return (lengths.pop() if lengths else None), False


def _body_of(head: ResponseHead) -> _Body:
    if head.is_chunked:
        return _ChunkedBody()
    return _UntilCloseBody() if head.content_length is None else _LengthBody(head.content_length)


class _LengthBody:
    """A body of so many bytes."""

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
    """A body that ends with the connection."""

    def __init__(self) -> None:
        self.is_complete = False
        self.is_conformant = True
        self.surplus = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_eof(self) -> None:
        self.is_complete = True


class _ChunkedBody:
    """A body in chunks: a line with the size, as many bytes and a line end; a size of 0, trailers, an empty line.

    Only the line at hand is held, and the trailers are dropped line by line. What is there as a whole is not read line
    by line, which takes several times as long; how it was cut makes no difference to what is counted.
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
        """Take the chunks that are there from their size to their line end; returns where the rest begins.

        Only those that are as RFC 9112 has them; what deviates is read line by line.
        """
        while (size := _STRICT_SIZE_LINE.match(data, position)) is not None:
            start = size.end()
            end = start + int(size[1], 16)
            if end == start or not data.startswith(_CRLF, end):  # the last chunk, or it goes on, or deviates
                break
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
        """Take those, of which there is one at least, in a hundredth of the time.

        Each has more around it than the budget grows by, so it is overdrawn behind the last if it is behind any.
        """
        chunks = _ONE_BYTE_CHUNKS.match(data, position)
        assert chunks is not None, "there is one"
        before, step = len(_ONE_BYTE_SIZE_LINE), len(_ONE_BYTE_SIZE_LINE + b"." + _CRLF)
        content = data[position + before : chunks.end() : step]
        pieces.append(content)
        self._content_bytes += len(content)
        self._count_framing(chunks.end() - position - len(content))
        return chunks.end()

    def _feed_line(self, data: bytes, position: int) -> int:
        """Take what there is of a line; returns where the rest begins."""
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
            raise ProtocolError(f"no size of a chunk: {line[:40]!r}")
        self._remaining = int(match[1], 16)
        self._is_one_byte_chunk = line + b"\n" == _ONE_BYTE_SIZE_LINE
        self._read_line = self._read_end_of_chunk if self._remaining else self._read_trailer

    def _read_end_of_chunk(self, line: bytes) -> None:
        if line.strip(b"\r"):
            raise ProtocolError(f"no line end behind a chunk: {line[:40]!r}")
        self.is_conformant = self.is_conformant and line == b"\r"
        self._read_line = self._read_size
        if not self._is_one_byte_chunk or line + b"\n" != _CRLF:
            self._count_chunk()

    def _read_trailer(self, line: bytes) -> None:
        self.is_complete = not line.strip(b"\r")
        self.is_conformant = self.is_conformant and _STRICT_TRAILER.fullmatch(line) is not None
        self._count_chunk()
