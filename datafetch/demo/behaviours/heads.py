"""Status lines and headers: outdated, odd, long, slow, endless, and missing."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

_DRIP_PAUSE_S = 0.25
_HINT_PAUSE_S = 0.01
_MANY_HEADERS = 200  # above the default limits of libraries, but far below those of browsers
_EXCESSIVE_HEADERS = 10_000  # 300 KB of headers; browsers give up at 256 KiB
_LONG_BYTES = 30_000  # about the longest security policies of real sites
_HUGE_BYTES = 300_000


def _start_with(*lines: str) -> Answer:
    """Send these lines and a length, and then the whole picture."""

    async def answer(exchange: Exchange) -> None:
        head = [*lines, f"Content-Length: {len(exchange.picture)}", exchange.content_type, "", ""]
        exchange.send("\r\n".join(head).encode("latin-1") + exchange.picture)

    return answer


def _with(*fields: str) -> Answer:
    return _start_with("HTTP/1.1 200 OK", *fields)


def _raw(data: bytes) -> Answer:
    """Send these bytes, and close the connection."""

    async def answer(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.close()

    return answer


async def _http_1_0(exchange: Exchange) -> None:
    """Respond like a server of 1996: the body ends with the connection, and no header says so."""
    exchange.send(f"HTTP/1.0 200 OK\r\n{exchange.content_type}\r\n\r\n".encode() + exchange.picture)
    await exchange.drain()
    exchange.close()


async def _http_0_9(exchange: Exchange) -> None:
    """Send the picture without any head."""
    exchange.send(exchange.picture)
    exchange.close()


async def _bare_line_feeds(exchange: Exchange) -> None:
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(exchange.picture)}\n{exchange.content_type}\n\n"
    exchange.send(head.encode() + exchange.picture)


async def _returns(exchange: Exchange) -> None:
    """End each line with one carriage return too many."""
    head = f"HTTP/1.1 200 OK\r\r\nContent-Length: {len(exchange.picture)}\r\r\n\r\r\n"
    exchange.send(head.encode() + exchange.picture)


async def _cut_in_head(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    await exchange.drain()
    exchange.close()


async def _reset_in_head(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    await exchange.drain()
    exchange.reset()


async def _endless_head(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    await exchange.send_without_end(b"X-Header: and another one\r\n" * 100)


async def _endless_header(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Header: ")
    await exchange.send_without_end(b"and on and on " * 200)


async def _drip_head(exchange: Exchange) -> None:
    """Send the head byte after byte, slowly."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Header: " + b"." * 4096:
        exchange.send(bytes([byte]))
        await exchange.pause(_DRIP_PAUSE_S)


async def _endless_hints(exchange: Exchange) -> None:
    """Send interim responses without end."""
    while True:
        exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        await exchange.pause(_HINT_PAUSE_S)


_ARRIVES: Mapping[str, Answer] = {
    "http_1_0": _http_1_0,
    "bare_line_feeds": _bare_line_feeds,
    "without_reason": _start_with("HTTP/1.1 200"),
    "continued": _start_with("HTTP/1.1 100 Continue", "", "HTTP/1.1 200 OK"),
    "early_hints": _start_with("HTTP/1.1 103 Early Hints", "Link: </style.css>; rel=preload", "", "HTTP/1.1 200 OK"),
    "long_header": _with("Content-Security-Policy: " + "a" * _LONG_BYTES),
    "many_headers": _with(*(f"X-Header-{number}: and another one" for number in range(_MANY_HEADERS))),
    "folded_header": _with("X-Header: one line", "  and its continuation"),
    "small_letters": _start_with("http/1.1 200 ok"),
    "version_unknown": _start_with("HTTP/x 200 OK"),
    "status_after_blanks": _start_with("HTTP/1.1  200  OK"),
    "status_without_blank": _start_with("HTTP/1.1 200OK"),
    "blank_before_header": _with(" X-Header: y"),
    "blank_behind_header": _with("X-Header : y"),
    "blank_in_header": _with("X Header: y"),
    "odd_header": _with("X@Header(\xff): y"),
    "without_colon": _with("This is no header"),
    "returns": _returns,
    "empty_line_first": _start_with("", "HTTP/1.1 200 OK"),
    "latin_1_header": _with("X-Header: gr\xfcn"),
    "utf_8_header": _with("X-Header: " + "緑".encode().decode("latin-1")),
}
_DISCONNECTED: Mapping[str, Answer] = {
    "http_0_9": _http_0_9,
    "garbage": _raw(b"NONSENSE\r\n\r\n"),
    "empty_line_then_garbage": _raw(b"\r\nNONSENSE"),
    "worded_status": _start_with("HTTP/1.1 FINE 200"),
    "status_too_long": _start_with("HTTP/1.1 2000 OK"),
    "status_000": _start_with("HTTP/1.1 000 OK"),
    "nul_in_header": _with("X-Header: a\0b"),
    "huge_header": _with("X-Header: " + "a" * _HUGE_BYTES),
    "thousands_of_headers": _with(*(f"X-Header-{number}: and another one" for number in range(_EXCESSIVE_HEADERS))),
    "endless_head": _endless_head,
    "endless_header": _endless_header,
    "endless_hints": _endless_hints,
    "cut_in_head": _cut_in_head,
    "reset_in_head": _reset_in_head,
}
_TIMEOUT: Mapping[str, Answer] = {"drip_head": _drip_head}

HEADS: Mapping[str, Behaviour] = {
    **{name: Behaviour(answer) for name, answer in _ARRIVES.items()},
    **{name: Behaviour(answer, FailureKind.DISCONNECTED, attempts=None) for name, answer in _DISCONNECTED.items()},
    **{name: Behaviour(answer, FailureKind.TIMEOUT, attempts=None, waits=True) for name, answer in _TIMEOUT.items()},
}
"""Name in the path → what is done with the head."""
