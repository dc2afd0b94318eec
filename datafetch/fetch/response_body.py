"""Takes the body of an HTTP/1 response out of its framing: a length, chunks, or the end of the connection.

Rules: no I/O, and no part of the body is kept. The framing around chunks is bounded in bytes and, because each line
costs CPU, in number.
"""

from __future__ import annotations

import re
from typing import Protocol

from datafetch.fetch.response_head import TEXT, TOKEN, ProtocolError, ResponseHead

# Chunk sizes, extensions, line ends and trailers may take this much, and one byte more for every 8 bytes of the body.
# Chunks of 64 bytes stay within that however many there are; chunks of one byte don't.
_MAX_FRAMING_BYTES = 512 * 1024
_BODY_BYTES_PER_FRAMING_BYTE = 8
# There may be this many chunks and trailers, and one more for every 64 bytes of the body. Each takes most of a
# microsecond. Chunks of one byte are not counted: they come from servers that pass on each byte as they get it, and
# cost next to nothing as long as all are written alike.
_MAX_CHUNKS = 8192
_BYTES_PER_EXTRA_CHUNK = 64
_STRICT_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;" + TEXT + rb")?\r")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[;\s].*)?\Z", re.DOTALL)
_STRICT_SIZE_LINE = re.compile(_STRICT_CHUNK_SIZE.pattern + rb"\n")
_ONE_BYTE_CHUNKS = re.compile(rb"(?:1\r\n[\s\S]\r\n)++")
# The empty line after the last trailer also matches.
_STRICT_TRAILER = re.compile(rb"(?:" + TOKEN + rb":" + TEXT + rb")?\r")
_ONE_BYTE_SIZE_LINE, _CRLF = b"1\r\n", b"\r\n"


class FramingTooLargeError(ValueError):
    """The framing of a body takes more bytes or more chunks than any server needs."""


class IncompleteBodyError(ProtocolError):
    """The connection ended before the body did."""


class ResponseBody(Protocol):
    """The body of one response.

    Attributes:
        surplus: The bytes of the last ``feed`` that came after the end of the body.
        is_conformant: Whether all framing so far conforms to RFC 9112.
        is_complete: Whether the end of the body has been fed.
    """

    surplus: bytes
    is_conformant: bool
    is_complete: bool

    def feed(self, data: bytes) -> bytes:
        """Take bytes that arrived, and return the content in them.

        Raises:
            ProtocolError: The chunks can't be told apart.
            FramingTooLargeError: The framing exceeds its bounds.
        """
        ...

    def feed_eof(self) -> None:
        """Record that the connection was closed in an orderly way.

        Raises:
            IncompleteBodyError: The body is not complete.
        """
        ...


def body_of(head: ResponseHead) -> ResponseBody:
    """The body that a head announces."""
    if head.is_chunked:
        return _ChunkedBody()
    return _UntilCloseBody() if head.content_length is None else _LengthBody(head.content_length)


class _LengthBody:
    """A body of a known length."""

    __slots__ = ("_remaining", "is_complete", "is_conformant", "surplus")

    def __init__(self, length: int) -> None:
        self.is_complete = not length
        self.is_conformant = True
        self.surplus = b""
        self._remaining = length

    def feed(self, data: bytes) -> bytes:
        content, self.surplus = data, b""
        if len(data) > self._remaining:
            content, self.surplus = data[: self._remaining], data[self._remaining :]
        self._remaining -= len(content)
        self.is_complete = not self._remaining
        return content

    def feed_eof(self) -> None:
        raise IncompleteBodyError("the connection ended before all bytes of Content-Length had arrived")


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

    A chunk is a size line, that many bytes and a line end; a size of 0 is followed by trailers up to an empty line.
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
            raise FramingTooLargeError("most bytes of the body are framing")

    def _count_chunk(self) -> None:
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS + self._content_bytes // _BYTES_PER_EXTRA_CHUNK:
            raise FramingTooLargeError("the body has too many chunks and trailers for its size")

    def _read_size(self, line: bytes) -> None:
        match = _STRICT_CHUNK_SIZE.fullmatch(line)
        if match is None:
            self.is_conformant = False
            match = _CHUNK_SIZE.match(line)
        if match is None:
            raise ProtocolError("a chunk does not begin with its size")
        self._remaining = int(match[1], 16)
        self._is_one_byte_chunk = line + b"\n" == _ONE_BYTE_SIZE_LINE
        self._read_line = self._read_end_of_chunk if self._remaining else self._read_trailer

    def _read_end_of_chunk(self, line: bytes) -> None:
        if line.strip(b"\r"):
            raise ProtocolError("there is no line end after a chunk")
        self.is_conformant = self.is_conformant and line == b"\r"
        self._read_line = self._read_size
        if not self._is_one_byte_chunk or line + b"\n" != _CRLF:
            self._count_chunk()

    def _read_trailer(self, line: bytes) -> None:
        self.is_complete = not line.strip(b"\r")
        self.is_conformant = self.is_conformant and _STRICT_TRAILER.fullmatch(line) is not None
        self._count_chunk()
