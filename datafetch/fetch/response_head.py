"""Reads the head of an HTTP/1 response: its status, and the fields that decide about the body and the connection.

Rules: pure functions of the head's bytes. A head that conforms to RFC 9112, as nearly all do, is read by two regular
expressions; any other is read line by line, as browsers and curl read it. A head that can be understood in more than
one way is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from datafetch.fetch.headers import Headers

_MAX_LENGTH_DIGITS = 18  # any such number fits into 63 bits

# The fields that the fetcher looks at; others are not even decoded.
_HEADERS = frozenset(
    {
        *(b"connection", b"content-encoding", b"content-length", b"content-range", b"etag", b"location"),
        *(b"retry-after", b"set-cookie", b"transfer-encoding", b"x-robots-tag"),
    }
)
_STATUS_LINE = re.compile(rb"[ \t]*http/(\S+)[ \t]+([0-9]{3})(?![0-9])", re.IGNORECASE)
# Patterns of RFC 9110: a field name, and the rest of a line, whose only control characters may be tabs.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
TEXT = rb"[^\x00-\x08\n-\x1f\x7f]*+"
# "Strict" patterns match what conforms to RFC 9112, which nearly every response does.
STRICT_HEAD = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: " + TEXT + rb")?\r\n(?:" + TOKEN + rb":" + TEXT + rb"\r\n)*+\r\n"
)
_STRICT_FIELD = re.compile(rb"\n(" + b"|".join(sorted(_HEADERS)) + rb"):[ \t]*([^\r]*)\r", re.IGNORECASE)
_LENGTH = re.compile(r"\+?([0-9]+)(?:\.[0-9]*)?")
_FIRST_STATUS = 100
_WITHOUT_BODY = (204, 304)


class ProtocolError(ValueError):
    """What came is no HTTP response, or one that can be understood in more than one way."""


class ResponseHead(NamedTuple):
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
    headers: Headers
    content_length: int | None
    is_chunked: bool
    keeps_alive: bool


def read_head(head: bytes, *, is_conformant: bool = True) -> ResponseHead:
    """Read a head, from its status line to the empty line.

    Args:
        head: All of it.
        is_conformant: Whether what came before it conforms to RFC 9112, which allows nothing there.

    Raises:
        ProtocolError: It is no head, or can be understood in more than one way.
    """
    if is_conformant and (strict := STRICT_HEAD.fullmatch(head)) is not None:
        return head_of_strict_match(strict)
    if b"\0" in head:
        raise ProtocolError("NUL byte in the headers")
    status_line, *lines = head.split(b"\n")
    match = _STATUS_LINE.match(status_line)
    status = int(match[2]) if match else 0
    if match is None or status < _FIRST_STATUS:
        raise ProtocolError("the response does not begin with an HTTP status line")
    return _head_of(status, _lenient_fields(lines), is_1_1=match[1] == b"1.1", is_conformant=False)


def head_of_strict_match(match: re.Match[bytes]) -> ResponseHead:
    """The head of a match of ``STRICT_HEAD``."""
    return _head_of(
        int(match[2]), _by_name(_STRICT_FIELD.findall(match[0])), is_1_1=match[1] == b"1", is_conformant=True
    )


def _by_name(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The values of fields by their names in lower case, from names and values as they were received."""
    headers: dict[str, list[str]] = {}
    for name, value in fields:
        text = value.strip().decode("utf-8", "surrogateescape")
        headers.setdefault(name.lower().decode("ascii"), []).append(text)
    return headers


def _head_of(status: int, headers: Headers, *, is_1_1: bool, is_conformant: bool) -> ResponseHead:
    """Make a head of its status and its fields.

    Raises:
        ProtocolError: It has two different lengths.
    """
    length, is_unambiguous = _content_length(headers.get("content-length", ()))
    is_chunked = False
    if coding_fields := headers.get("transfer-encoding"):
        codings = ",".join(coding_fields)
        is_chunked = "chunked" in [coding.strip().lower() for coding in codings.split(",")]
        # RFC 9112, 6.1: HTTP/1.0 has no transfer codings, and a body whose coding is not "chunked" has no defined end.
        is_unambiguous = is_unambiguous and codings.lower() == "chunked" and codings.isascii() and is_1_1
    if is_chunked or status in _WITHOUT_BODY:
        is_unambiguous = is_unambiguous and length is None
        length = None if is_chunked else 0
    options: Collection[str] = ()
    if connection_fields := headers.get("connection"):
        connection = ",".join(connection_fields)
        options = [option.strip() for option in connection.lower().split(",")]
        is_unambiguous = is_unambiguous and connection.isascii()
    keeps_alive = is_conformant and is_unambiguous and "close" not in options and (is_1_1 or "keep-alive" in options)
    return ResponseHead(status, headers, length, is_chunked, keeps_alive)


def _lenient_fields(lines: list[bytes]) -> Headers:
    """The fields that the fetcher looks at, read from lines that need not conform as browsers and curl read them."""
    return _by_name(field for field in _unfolded(lines) if field[0] in _HEADERS)


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


def _content_length(fields: Sequence[str]) -> tuple[int | None, bool]:
    """Read the body's length.

    Args:
        fields: The values of Content-Length.

    Returns:
        The length, None where there is none or it is no number; and whether the fields conform to RFC 9110.

    Raises:
        ProtocolError: There are two different lengths.
    """
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
        raise ProtocolError("the headers give two different lengths")
    return (lengths.pop() if lengths else None), False
