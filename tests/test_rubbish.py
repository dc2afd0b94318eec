"""Responses put together at random: each image gets an outcome whatever the bytes, and nothing is left open."""

import asyncio
import gzip
import random
from contextlib import suppress

import pytest
from conftest import LOOPBACK

from datafetch.fetch import Fetcher, FetchPolicy

_STATUSES = (
    *(b"200 OK", b"200", b"206 Partial", b"302 Found", b"301 Moved", b"404 Not Found", b"429 Later", b"503 Later"),
    *(b"100 Go on", b"101 Switching", b"103 Hints", b"204 None", b"304 Same", b"999 X", b"000 X", b"20 0", b"500 \xff"),
)
_HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 5, 5", b"Content-Length: " + b"9" * 5000),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Connection: close", b"Upgrade: h2c"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: br, zstd", b"Content-Encoding: deflate", b"Connection: Upgrade"),
    *(b"Location: //[", b"Location: http://\xff\xfe/", b"Location: \xed\xa0\x80", b"Location: ?", b"Location: /x y"),
    *(b"Retry-After: Mon, 1 Jan 99999999999999999 0:0:0 GMT", b"Retry-After: \xff", b"X-Robots-Tag: \xff, :noai"),
    *(b"Set-Cookie: \xff=;;;", b"A: \x00", b": x", b"Keep-Alive: timeout=-1", b"Trailer: x"),
)
_BODIES = (
    *(
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nx",
        b"-1\r\nx",
        gzip.compress(b"hello", mtime=0),
    ),
    *(b"5;a=\xff\r\nhello\r\n0\r\nX: y\r\n\r\n", gzip.compress(b"x", mtime=0)[:9], b"\x28\xb5\x2f\xfd\xff"),
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
)
_REQUESTS = 600
_AT_ONCE = 40


def _response(chance: random.Random) -> bytes:
    headers = b"".join(header + b"\r\n" for header in chance.sample(_HEADERS, chance.randrange(5)))
    version = chance.choice((b"1", b"1", b"0", b"9"))
    response = bytearray(
        b"HTTP/1.%b %b\r\n%b\r\n%b" % (version, chance.choice(_STATUSES), headers, chance.choice(_BODIES))
    )
    if chance.random() < 0.2:
        for _ in range(chance.randrange(1, 4)):
            response[chance.randrange(len(response))] = chance.randrange(256)
    return bytes(response[: chance.randrange(len(response))] if chance.random() < 0.1 else response)


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (12, 13))])
async def test_no_response_affects_more_than_its_own_image(seed: int) -> None:
    """There is no exception, no request stays open, and no memory stays reserved."""
    chance = random.Random(seed)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                for _ in range(chance.choice((1, 1, 1, 2, 3))):
                    writer.write(_response(chance))
                await writer.drain()
                if chance.random() < 0.4:
                    chance.choice((writer.close, writer.transport.abort))()
        writer.close()

    policy = FetchPolicy(
        allow_net=LOOPBACK,
        timeout_s=0.5,
        stall_timeout_s=0.3,
        retries=1,
        backoff_s=0.001,
        nameservers=("127.0.0.1:1",),  # does not exist, so that a redirect to a name sends no query
    )
    server = await asyncio.start_server(converse, "0.0.0.0", 0, backlog=512)  # noqa: S104 - for all of 127.0.0.0/8
    async with server, Fetcher(policy) as fetch:
        port = server.sockets[0].getsockname()[1]
        urls = iter([f"http://127.0.{number // 200}.{number % 200 + 1}:{port}/" for number in range(_REQUESTS)])

        async def work() -> None:
            for url in urls:
                await fetch(url)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        statistics = fetch.statistics()
    assert sum(statistics.outcomes.values()) == _REQUESTS
    assert len(statistics.outcomes) > 4  # or the rubbish has lost its variety
    assert (statistics.open_requests, statistics.waiting_requests, statistics.held_bytes, statistics.hosts.waiting) == (
        0,
        0,
        0,
        0,
    )
