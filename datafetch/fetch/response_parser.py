"""Parses HTTP/1 responses as leniently as browsers and curl do: bytes go in, a head and the body's bytes come out.

Theory of operation. A response is one head after another until one is final (a status from 200 on), and then a body.
``ResponseParser.feed`` takes bytes as they arrive and returns those that belong to the body. How the network has cut
them makes no difference to the outcome. There are two states:

* In the head (``response_head``). Nearly all heads conform to RFC 9112 and arrive in one read; one regular expression
  matches such a head in C. Any other head is collected until its empty line has come, and is then read line by line.
* In the body (``response_body``). The head decides which of three bodies it is: one of a known length, one in chunks,
  or one that lasts until the connection ends.

A response is accepted if there is exactly one way to understand it, whether it conforms or not. Where two are possible
(two different lengths, a NUL in the head), it is refused. A response that is read leniently may end elsewhere than its
server meant, and what follows would be taken for the next response (response smuggling). So the connection is not
used again unless every byte of a response conforms: ``keeps_alive`` is false.

Rules: no I/O. Everything that a server sends has a bound: heads are bounded in bytes and, because each line costs CPU,
in number. Nothing but the head is kept.

Source: RFC 9112. For each deviation, it was tried what curl 7.88 accepts; tests/test_response_parser.py names it.
"""

from __future__ import annotations

import re

from datafetch.fetch.response_body import IncompleteBodyError, ResponseBody, body_of
from datafetch.fetch.response_head import STRICT_HEAD, ProtocolError, ResponseHead, head_of_strict_match, read_head

MAX_HEAD_BYTES = 256 * 1024  # of all heads of a response, interim ones included; browsers have the same bound
MAX_HEAD_LINES = 5000  # of all heads of a response; curl's bound
MAX_INTERIM_RESPONSES = 20
_WHITESPACE = re.compile(rb"[\r\n \t]*+")
_END_OF_HEAD = re.compile(rb"\n\r*\n")
_HTTP_PREFIX = b"http/"
_MAX_ONE_MATCH_HEAD_BYTES = 16 * 1024  # bounds the work that is lost where it turns out to be no strict head
_FIRST_FINAL_STATUS, _SWITCHING_PROTOCOLS = 200, 101


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
        self._body: ResponseBody | None = None

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
        if not self._unread and (match := STRICT_HEAD.match(data, 0, _MAX_ONE_MATCH_HEAD_BYTES)) is not None:
            head = head_of_strict_match(match)
            if head.status >= _FIRST_FINAL_STATUS and self._has_room_for(data, match.end()):
                self.head, self._body = head, body_of(head)
                return data[match.end() :]
        self._unread += data
        while self.head is None:
            # From where the last read left off, or the time would grow with the square of the number of reads.
            whitespace = _WHITESPACE.match(self._unread, self._whitespace_end)
            assert whitespace is not None, "it matches the empty string, too"
            start = self._whitespace_end = whitespace.end()
            prefix = self._unread[start : start + len(_HTTP_PREFIX)].lower()
            if self._search_from <= start and not _HTTP_PREFIX.startswith(prefix):
                raise ProtocolError("the response is not HTTP")
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
        self._body = body_of(self.head)
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
