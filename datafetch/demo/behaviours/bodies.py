"""Bodies: complete, short, long, slow, cut off, empty, and in every framing that HTTP/1 knows."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

_SLOW_PIECES = 5
_SLOW_PAUSE_S = 0.2
_DRIP_PAUSE_S = 0.25  # between two bytes, so that the body never stalls, but never ends in time
_REST_PAUSE_S = 0.05
_SMALL_CHUNKS = 50_000
_GIBIBYTE = 1 << 30
_HTML = b"<!doctype html><title>Gone</title><p>This picture has moved."
_UNSOLICITED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
_BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


def _half(picture: bytes) -> bytes:
    return picture[: len(picture) // 2]


def _first_60_percent(picture: bytes) -> bytes:
    return picture[: len(picture) * 6 // 10]


def _html_page(_: bytes) -> bytes:
    return _HTML


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _begin(exchange: Exchange, *framing: str) -> None:
    """Send a head with this framing, and no other."""
    lines = ["HTTP/1.1 200 OK", exchange.content_type, *framing, "", ""]
    exchange.send("\r\n".join(lines).encode("latin-1"))


async def _well(exchange: Exchange) -> None:
    exchange.send_ok(exchange.picture)


async def _slow(exchange: Exchange) -> None:
    picture = exchange.picture
    exchange.send_head(200, len(picture), exchange.content_type)
    step = len(picture) // _SLOW_PIECES + 1
    for start in range(0, len(picture), step):
        await exchange.pause(_SLOW_PAUSE_S)
        exchange.send(picture[start : start + step])


async def _truncated(exchange: Exchange) -> None:
    exchange.send_ok(_first_60_percent(exchange.picture))


async def _html(exchange: Exchange) -> None:
    exchange.send_ok(_HTML, "Content-Type: image/jpeg")


async def _until_close(exchange: Exchange) -> None:
    exchange.send_head(200, None, exchange.content_type)
    exchange.send(exchange.picture)
    await exchange.drain()
    exchange.close()


async def _chunked(exchange: Exchange) -> None:
    half = len(exchange.picture) // 2
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture[:half]) + _chunk(exchange.picture[half:]) + _chunk(b""))


async def _chunked_in_full(exchange: Exchange) -> None:
    """Use rare features: a chunk extension, upper-case digits, and a trailer."""
    _begin(exchange, "Transfer-Encoding: chunked", "Trailer: X-Checksum")
    size = f"{len(exchange.picture):X}".encode()
    exchange.send(size + b';name="value"\r\n' + exchange.picture + b"\r\n0\r\nX-Checksum: 17\r\n\r\n")


async def _short_length(exchange: Exchange) -> None:
    """Announce half of the length that is sent; the announced length counts."""
    half = len(exchange.picture) // 2
    exchange.send_head(200, half, exchange.content_type)
    exchange.send(exchange.picture)


async def _unasked(exchange: Exchange) -> None:
    """Send a second response right after the first; the client must not use it for its next request."""
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    exchange.send(exchange.picture + _UNSOLICITED)


async def _stale(exchange: Exchange) -> None:
    """Keep the connection alive, but close it when the next request comes."""
    if exchange.request.number > 1:
        exchange.close()
    else:
        exchange.send_ok(exchange.picture)


async def _stale_reset(exchange: Exchange) -> None:
    """Keep the connection alive, but reset it when the next request comes."""
    if exchange.request.number > 1:
        exchange.reset()
    else:
        exchange.send_ok(exchange.picture)


async def _empty(exchange: Exchange) -> None:
    exchange.send_ok(b"")


async def _empty_chunked(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(b""))


async def _empty_until_close(exchange: Exchange) -> None:
    exchange.send_head(200, None, exchange.content_type)
    exchange.close()


async def _cut(exchange: Exchange) -> None:
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    exchange.close()


async def _broken_off(exchange: Exchange) -> None:
    """Cut off the body, and over TLS also omit the close_notify."""
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.drain()
    exchange.abort()


async def _reset(exchange: Exchange) -> None:
    exchange.reset()


async def _reset_in_body(exchange: Exchange) -> None:
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.drain()
    exchange.reset()


async def _closed(exchange: Exchange) -> None:
    exchange.close()


async def _long_length(exchange: Exchange) -> None:
    """Announce a hundred bytes more than are sent."""
    exchange.send_head(200, len(exchange.picture) + 100, exchange.content_type)
    exchange.send(exchange.picture)
    exchange.close()


def _whole_body_framed(*framing: str) -> Answer:
    """Send the whole picture with an odd framing, and close the connection; {} stands for the picture's size."""

    async def answer(exchange: Exchange) -> None:
        _begin(exchange, *(line.format(len(exchange.picture)) for line in framing))
        exchange.send(exchange.picture)
        exchange.close()

    return answer


async def _two_lengths(exchange: Exchange) -> None:
    size = len(exchange.picture)
    _begin(exchange, f"Content-Length: {size}", f"Content-Length: {size - 1}")
    exchange.send(exchange.picture)
    exchange.close()


def _followed_by(data: bytes) -> Answer:
    """Send the picture, and data right behind it."""

    async def answer(exchange: Exchange) -> None:
        exchange.send_head(200, len(exchange.picture), exchange.content_type)
        exchange.send(exchange.picture + data)

    return answer


async def _length_and_chunks(exchange: Exchange) -> None:
    """Send a wrong Content-Length together with chunks; the chunks count."""
    _begin(exchange, "Content-Length: 5", "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture) + _chunk(b""))


async def _chunked_in_c(exchange: Exchange) -> None:
    """Write chunk sizes like a C literal (0x…), which reads as the size 0 followed by garbage."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(b"0x" + _chunk(exchange.picture) + _chunk(b""))
    exchange.close()


async def _chunked_in_bytes(exchange: Exchange) -> None:
    """Send single-byte chunks, as many as are still cheap for a client, and the rest in one chunk."""
    _begin(exchange, "Transfer-Encoding: chunked")
    few = min(len(exchange.picture), _SMALL_CHUNKS)
    exchange.send(b"".join(_chunk(exchange.picture[start : start + 1]) for start in range(few)))
    exchange.send((_chunk(exchange.picture[few:]) if exchange.picture[few:] else b"") + _chunk(b""))


async def _chunk_bomb(exchange: Exchange) -> None:
    """Send single-byte chunks without end."""
    _begin(exchange, "Transfer-Encoding: chunked")
    await exchange.send_without_end(_chunk(b".") * 1000)


async def _extension_without_end(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(b"5;extension=")
    await exchange.send_without_end(b"." * 10_000)


async def _trailers_without_end(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture) + b"0\r\n")
    await exchange.send_without_end(b"X-Trailer: and another one\r\n" * 100)


async def _chunked_badly(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(_half(exchange.picture)) + b"what?\r\n" + exchange.picture)
    exchange.close()


async def _chunked_badly_later(exchange: Exchange) -> None:
    """Break the framing after the client has started to read the body."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(_half(exchange.picture)))
    await exchange.pause(_REST_PAUSE_S)
    exchange.send(b"what?\r\n" + exchange.picture)
    exchange.close()


async def _chunked_hugely(exchange: Exchange) -> None:
    """Announce a chunk whose size overflows 64 bits."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(_half(exchange.picture)) + b"f" * 20 + b"\r\n" + exchange.picture)
    exchange.close()


async def _chunked_cut(exchange: Exchange) -> None:
    """Send everything except the last chunk, whose absence is the only sign of the cut."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture))
    exchange.close()


async def _chunked_cut_inside(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(b"%x\r\n%s" % (len(exchange.picture), _half(exchange.picture)))
    exchange.close()


async def _stuck(exchange: Exchange) -> None:
    """Accept the request, and never respond."""
    await exchange.hang()


async def _stalled(exchange: Exchange) -> None:
    """Send half of the body, and nothing more."""
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.hang()


async def _headless(exchange: Exchange) -> None:
    """Send the head, and nothing more."""
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    await exchange.hang()


async def _drip(exchange: Exchange) -> None:
    """Send byte after byte, slowly."""
    exchange.send_head(200, len(exchange.picture), exchange.content_type)
    for byte in exchange.picture:
        exchange.send(bytes([byte]))
        await exchange.pause(_DRIP_PAUSE_S)


async def _large(exchange: Exchange) -> None:
    """Announce a gibibyte, and send without end."""
    exchange.send_head(200, _GIBIBYTE, exchange.content_type)
    await exchange.send_without_end(exchange.picture)


async def _endless(exchange: Exchange) -> None:
    """Send without end, and without a length."""
    exchange.send_head(200, None, exchange.content_type)
    await exchange.send_without_end(exchange.picture)


async def _endless_chunks(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    await exchange.send_without_end(_chunk(exchange.picture))


async def _camera(exchange: Exchange) -> None:
    """Send picture after picture, like a web camera (MJPEG)."""
    exchange.send_head(200, None, "Content-Type: multipart/x-mixed-replace; boundary=frame")
    await exchange.send_without_end(_BOUNDARY + exchange.picture + b"\r\n")


_WELL: Mapping[str, Behaviour] = {
    "well": Behaviour(_well),
    "slow": Behaviour(_slow, waits=True),
    "until_close": Behaviour(_until_close),
    "chunked": Behaviour(_chunked),
    "chunked_in_full": Behaviour(_chunked_in_full),
    "short_length": Behaviour(_short_length, delivers=_half),
    "unasked": Behaviour(_unasked),
    "nul_behind": Behaviour(_followed_by(b"\0")),
    "comment_behind": Behaviour(_followed_by(b"<!-- cached -->")),
    "end_behind": Behaviour(_followed_by(b"\xff\xd9")),
    "negative_length": Behaviour(_whole_body_framed("Content-Length: -1")),
    "worded_length": Behaviour(_whole_body_framed("Content-Length: plenty")),
    "huge_length": Behaviour(_whole_body_framed("Content-Length: 99999999999999999999999")),
    "length_with_plus": Behaviour(_whole_body_framed("Content-Length: +{}")),
    "length_with_point": Behaviour(_whole_body_framed("Content-Length: {}.0")),
    "length_twice": Behaviour(_whole_body_framed("Content-Length: {}", "Content-Length: {}")),
    "length_twice_in_one": Behaviour(_whole_body_framed("Content-Length: {0}, {0}")),
    "length_and_chunks": Behaviour(_length_and_chunks),
    "transferred_as_it_is": Behaviour(_whole_body_framed("Transfer-Encoding: identity", "Content-Length: {}")),
    "transferred_somehow": Behaviour(_whole_body_framed("Transfer-Encoding: whatever")),
    "chunked_in_bytes": Behaviour(_chunked_in_bytes),
    "stale": Behaviour(_stale),
    "stale_reset": Behaviour(_stale_reset),
}
_FOR_THE_CODEC_TO_FIND: Mapping[str, Behaviour] = {
    "truncated": Behaviour(_truncated, FailureKind.CORRUPT, delivers=_first_60_percent),
    "html": Behaviour(_html, FailureKind.NOT_AN_IMAGE, delivers=_html_page),
}
_DISCONNECTED: Mapping[str, Answer] = {
    "cut": _cut,
    "broken_off": _broken_off,
    "closed": _closed,
    "reset": _reset,
    "reset_in_body": _reset_in_body,
    "long_length": _long_length,
    "chunked_in_c": _chunked_in_c,
    "two_lengths": _two_lengths,
    "chunked_badly": _chunked_badly,
    "chunked_badly_later": _chunked_badly_later,
    "chunked_hugely": _chunked_hugely,
    "chunked_cut": _chunked_cut,
    "chunked_cut_inside": _chunked_cut_inside,
}
_EMPTY: Mapping[str, Answer] = {
    "empty": _empty,
    "empty_chunked": _empty_chunked,
    "empty_until_close": _empty_until_close,
}
_TIMEOUT: Mapping[str, Answer] = {"stuck": _stuck, "stalled": _stalled, "headless": _headless, "drip": _drip}
_TOO_LARGE: Mapping[str, Answer] = {
    "large": _large,
    "endless": _endless,
    "endless_chunks": _endless_chunks,
    "chunk_bomb": _chunk_bomb,
    "extension_without_end": _extension_without_end,
    "trailers_without_end": _trailers_without_end,
    "camera": _camera,
}

BODIES: Mapping[str, Behaviour] = {
    **_WELL,
    **_FOR_THE_CODEC_TO_FIND,
    **{name: Behaviour(answer, FailureKind.DISCONNECTED, attempts=None) for name, answer in _DISCONNECTED.items()},
    **{name: Behaviour(answer, FailureKind.EMPTY, status=200, attempts=None) for name, answer in _EMPTY.items()},
    **{name: Behaviour(answer, FailureKind.TIMEOUT, attempts=None, waits=True) for name, answer in _TIMEOUT.items()},
    **{name: Behaviour(answer, FailureKind.TOO_LARGE) for name, answer in _TOO_LARGE.items()},
}
"""Name in the path → what is done with the body."""
