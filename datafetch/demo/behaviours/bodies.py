"""Bodies: whole, short, long, slow, cut, empty, and in every framing that HTTP/1 knows."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind

_SLOW_PIECES = 5
_SLOW_PAUSE_S = 0.2
_DRIP_PAUSE_S = 0.25  # between two bytes: no stall, and no end either
_REST_PAUSE_S = 0.05
_SMALL_CHUNKS = 50_000
_GIBIBYTE = 1 << 30
_HTML = b"<!doctype html><title>Gone</title><p>This picture has moved."
_UNASKED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
_BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"


def _half(picture: bytes) -> bytes:
    return picture[: len(picture) // 2]


def _most(picture: bytes) -> bytes:
    return picture[: len(picture) * 6 // 10]


def _html_page(_: bytes) -> bytes:
    return _HTML


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _begin(exchange: Exchange, *framing: str) -> None:
    """Send a head whose framing is all in these lines."""
    lines = ["HTTP/1.1 200 OK", exchange.content_type, *framing, "", ""]
    exchange.send("\r\n".join(lines).encode("latin-1"))


async def _well(exchange: Exchange) -> None:
    exchange.whole(exchange.picture)


async def _slow(exchange: Exchange) -> None:
    picture = exchange.picture
    exchange.head(200, len(picture), exchange.content_type)
    step = len(picture) // _SLOW_PIECES + 1
    for start in range(0, len(picture), step):
        await exchange.pause(_SLOW_PAUSE_S)
        exchange.send(picture[start : start + step])


async def _truncated(exchange: Exchange) -> None:
    exchange.whole(_most(exchange.picture))


async def _html(exchange: Exchange) -> None:
    exchange.whole(_HTML, "Content-Type: image/jpeg")


async def _until_close(exchange: Exchange) -> None:
    exchange.head(200, None, exchange.content_type)
    exchange.send(exchange.picture)
    await exchange.drain()
    exchange.close()


async def _chunked(exchange: Exchange) -> None:
    half = len(exchange.picture) // 2
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture[:half]) + _chunk(exchange.picture[half:]) + _chunk(b""))


async def _chunked_in_full(exchange: Exchange) -> None:
    """Use what hardly anybody does: a chunk extension, upper-case digits, a trailer."""
    _begin(exchange, "Transfer-Encoding: chunked", "Trailer: X-Checksum")
    size = f"{len(exchange.picture):X}".encode()
    exchange.send(size + b';name="value"\r\n' + exchange.picture + b"\r\n0\r\nX-Checksum: 17\r\n\r\n")


async def _short_length(exchange: Exchange) -> None:
    """Promise half of what comes in the end; the promise counts."""
    half = len(exchange.picture) // 2
    exchange.head(200, half, exchange.content_type)
    exchange.send(exchange.picture)


async def _unasked(exchange: Exchange) -> None:
    """Send a second answer right after the first; nobody may take it for one."""
    exchange.head(200, len(exchange.picture), exchange.content_type)
    exchange.send(exchange.picture + _UNASKED)


async def _stale(exchange: Exchange) -> None:
    """Keep the connection alive, and close it when the next request comes."""
    if exchange.request.turn > 1:
        exchange.close()
    else:
        exchange.whole(exchange.picture)


async def _stale_reset(exchange: Exchange) -> None:
    """Keep the connection alive, and reset it when the next request comes."""
    if exchange.request.turn > 1:
        exchange.reset()
    else:
        exchange.whole(exchange.picture)


async def _empty(exchange: Exchange) -> None:
    exchange.whole(b"")


async def _empty_chunked(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(b""))


async def _empty_until_close(exchange: Exchange) -> None:
    exchange.head(200, None, exchange.content_type)
    exchange.close()


async def _cut(exchange: Exchange) -> None:
    exchange.head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    exchange.close()


async def _broken_off(exchange: Exchange) -> None:
    """Cut, and over TLS without its good-bye."""
    exchange.head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.drain()
    exchange.break_off()


async def _reset(exchange: Exchange) -> None:
    exchange.reset()


async def _reset_in_body(exchange: Exchange) -> None:
    exchange.head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.drain()
    exchange.reset()


async def _closed(exchange: Exchange) -> None:
    exchange.close()


async def _long_length(exchange: Exchange) -> None:
    """Promise a hundred bytes more than come."""
    exchange.head(200, len(exchange.picture) + 100, exchange.content_type)
    exchange.send(exchange.picture)
    exchange.close()


def _framed(*framing: str) -> Answer:
    """The whole picture and the end of the connection, under a framing that is odd; {} is the picture's size."""

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
    """The picture, and something right behind it."""

    async def answer(exchange: Exchange) -> None:
        exchange.head(200, len(exchange.picture), exchange.content_type)
        exchange.send(exchange.picture + data)

    return answer


async def _length_and_chunks(exchange: Exchange) -> None:
    """Say how long it is, and something else; the chunks count."""
    _begin(exchange, "Content-Length: 5", "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture) + _chunk(b""))


async def _chunked_in_c(exchange: Exchange) -> None:
    """Write the size as programs in C do, which makes it the size 0 and rubbish."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(b"0x" + _chunk(exchange.picture) + _chunk(b""))
    exchange.close()


async def _chunked_in_bytes(exchange: Exchange) -> None:
    """Send chunks of a single byte, as long as that is still cheap for a client, and the rest in one."""
    _begin(exchange, "Transfer-Encoding: chunked")
    few = min(len(exchange.picture), _SMALL_CHUNKS)
    exchange.send(b"".join(_chunk(exchange.picture[place : place + 1]) for place in range(few)))
    exchange.send((_chunk(exchange.picture[few:]) if exchange.picture[few:] else b"") + _chunk(b""))


async def _chunk_bomb(exchange: Exchange) -> None:
    """Send chunks of a single byte without end."""
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
    """Break the framing when the client has long begun to read the body."""
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
    """Send everything but the last chunk, so that only its absence tells."""
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(_chunk(exchange.picture))
    exchange.close()


async def _chunked_cut_inside(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    exchange.send(b"%x\r\n%s" % (len(exchange.picture), _half(exchange.picture)))
    exchange.close()


async def _stuck(exchange: Exchange) -> None:
    """Accept and never answer."""
    await exchange.hang()


async def _stalled(exchange: Exchange) -> None:
    """Send half, and nothing more."""
    exchange.head(200, len(exchange.picture), exchange.content_type)
    exchange.send(_half(exchange.picture))
    await exchange.hang()


async def _headless(exchange: Exchange) -> None:
    """Send the head, and nothing more."""
    exchange.head(200, len(exchange.picture), exchange.content_type)
    await exchange.hang()


async def _drip(exchange: Exchange) -> None:
    """Send byte after byte, slowly."""
    exchange.head(200, len(exchange.picture), exchange.content_type)
    for byte in exchange.picture:
        exchange.send(bytes([byte]))
        await exchange.pause(_DRIP_PAUSE_S)


async def _large(exchange: Exchange) -> None:
    """Promise a gibibyte, and send it."""
    exchange.head(200, _GIBIBYTE, exchange.content_type)
    await exchange.send_without_end(exchange.picture)


async def _endless(exchange: Exchange) -> None:
    """Send without end and without having said how much."""
    exchange.head(200, None, exchange.content_type)
    await exchange.send_without_end(exchange.picture)


async def _endless_chunks(exchange: Exchange) -> None:
    _begin(exchange, "Transfer-Encoding: chunked")
    await exchange.send_without_end(_chunk(exchange.picture))


async def _camera(exchange: Exchange) -> None:
    """Send picture after picture, as a web camera does (MJPEG)."""
    exchange.head(200, None, "Content-Type: multipart/x-mixed-replace; boundary=frame")
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
    "negative_length": Behaviour(_framed("Content-Length: -1")),
    "worded_length": Behaviour(_framed("Content-Length: plenty")),
    "huge_length": Behaviour(_framed("Content-Length: 99999999999999999999999")),
    "length_with_plus": Behaviour(_framed("Content-Length: +{}")),
    "length_with_point": Behaviour(_framed("Content-Length: {}.0")),
    "length_twice": Behaviour(_framed("Content-Length: {}", "Content-Length: {}")),
    "length_twice_in_one": Behaviour(_framed("Content-Length: {0}, {0}")),
    "length_and_chunks": Behaviour(_length_and_chunks),
    "transferred_as_it_is": Behaviour(_framed("Transfer-Encoding: identity", "Content-Length: {}")),
    "transferred_somehow": Behaviour(_framed("Transfer-Encoding: whatever")),
    "chunked_in_bytes": Behaviour(_chunked_in_bytes),
    "stale": Behaviour(_stale),
    "stale_reset": Behaviour(_stale_reset),
}
_FOR_THE_CODEC_TO_FIND: Mapping[str, Behaviour] = {
    "truncated": Behaviour(_truncated, FailureKind.CORRUPT, delivers=_most),
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
