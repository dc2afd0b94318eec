"""An image server on loopback that misbehaves on request: the demo's, the tests' and the benchmarks' origin.

Rules: it runs in a process of its own, on a free port of 127.0.0.1, and ends when whoever started it does. What it does
with a request stands in the path: ``/<behaviour>/<picture>``, with the behaviours of ``BEHAVIOURS``; ``/requests``
answers with a JSON object of path → number of requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

import orjson

from datafetch.child import child_command
from datafetch.model import FailureKind

_BACKLOG = 4096  # a thousand clients may connect in the same instant
_CONTENT_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
_SLOW_PIECES = 5
_SLOW_PAUSE_S = 0.2
_REASONS = {200: "OK", 302: "Found", 404: "Not Found", 500: "Internal Server Error"}


class Exchange:
    """One request, and the means to answer it well or badly."""

    def __init__(self, target: str, seen: int, picture: bytes, writer: asyncio.StreamWriter) -> None:
        self.target = target
        self.seen = seen
        self.picture = picture
        self.content_type = _CONTENT_TYPES.get(Path(target.partition("?")[0]).suffix, "application/json")
        self._writer = writer

    def head(self, status: int, length: int | None, **headers: str) -> None:
        """Send status line and headers; without a length the body ends with the connection."""
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
        lines.append("Connection: close" if length is None else f"Content-Length: {length}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def body(self, data: bytes) -> None:
        """Send bytes of a body."""
        self._writer.write(data)

    def whole(self, data: bytes, content_type: str = "") -> None:
        """Answer with 200 and all of this."""
        self.head(200, len(data), Content_Type=content_type or self.content_type)
        self.body(data)

    async def drain(self) -> None:
        """Let what was sent go out."""
        await self._writer.drain()

    async def pause(self) -> None:
        """Let what was sent go out, and a while pass."""
        await self.drain()
        await asyncio.sleep(_SLOW_PAUSE_S)

    def close(self) -> None:
        """End the connection in order."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


async def _well(exchange: Exchange) -> None:
    exchange.whole(exchange.picture)


async def _missing(exchange: Exchange) -> None:
    exchange.head(404, 0)


async def _flaky(exchange: Exchange) -> None:
    if exchange.seen == 1:
        exchange.head(500, 0)
    else:
        exchange.whole(exchange.picture)


async def _broken(exchange: Exchange) -> None:
    exchange.head(500, 0)


async def _slow(exchange: Exchange) -> None:
    picture = exchange.picture
    exchange.head(200, len(picture), Content_Type=exchange.content_type)
    step = len(picture) // _SLOW_PIECES + 1
    for start in range(0, len(picture), step):
        await exchange.pause()
        exchange.body(picture[start : start + step])


async def _truncated(exchange: Exchange) -> None:
    exchange.whole(exchange.picture[: len(exchange.picture) * 6 // 10])


async def _cut(exchange: Exchange) -> None:
    exchange.head(200, len(exchange.picture), Content_Type=exchange.content_type)
    exchange.body(exchange.picture[: len(exchange.picture) // 2])
    exchange.close()


async def _html(exchange: Exchange) -> None:
    exchange.whole(b"<!doctype html><title>Gone</title><p>This picture has moved.", "image/jpeg")


async def _empty(exchange: Exchange) -> None:
    exchange.whole(b"")


async def _reset(exchange: Exchange) -> None:
    exchange.reset()


async def _stuck(_: Exchange) -> None:
    """Accept and never answer; the client's deadline ends it."""
    await asyncio.Event().wait()


async def _large(exchange: Exchange) -> None:
    """Promise a gibibyte."""
    exchange.head(200, 1 << 30, Content_Type=exchange.content_type)
    exchange.body(exchange.picture)


async def _endless(exchange: Exchange) -> None:
    """Send without end and without having said how much; the client's size cap ends it."""
    exchange.head(200, None, Content_Type=exchange.content_type)
    while True:
        exchange.body(exchange.picture)
        await exchange.drain()


async def _circle(exchange: Exchange) -> None:
    exchange.head(302, 0, Location=exchange.target)


async def _elsewhere(exchange: Exchange) -> None:
    exchange.head(302, 0, Location="ftp://127.0.0.1/picture.jpg")


async def _garbage(exchange: Exchange) -> None:
    exchange.body(b"NONSENSE\r\n\r\n")
    exchange.close()


async def _moved(exchange: Exchange) -> None:
    exchange.head(302, 0, Location=exchange.target.replace("/moved/", "/well/", 1))


async def _inside(exchange: Exchange) -> None:
    exchange.head(302, 0, Location="http://10.255.255.1/secret")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the origin does with a request, and what must become of the image.

    Attributes:
        answer: Does it.
        expected: The failure kind, or None when the image must arrive.
    """

    answer: Callable[[Exchange], Awaitable[None]]
    expected: FailureKind | None


BEHAVIOURS: Mapping[str, Behaviour] = {
    "well": Behaviour(_well, None),
    "flaky": Behaviour(_flaky, None),
    "slow": Behaviour(_slow, None),
    "moved": Behaviour(_moved, None),
    "missing": Behaviour(_missing, FailureKind.HTTP_STATUS),
    "broken": Behaviour(_broken, FailureKind.HTTP_STATUS),
    "truncated": Behaviour(_truncated, FailureKind.TRUNCATED),
    "cut": Behaviour(_cut, FailureKind.DISCONNECTED),
    "reset": Behaviour(_reset, FailureKind.DISCONNECTED),
    "html": Behaviour(_html, FailureKind.NOT_AN_IMAGE),
    "empty": Behaviour(_empty, FailureKind.EMPTY),
    "garbage": Behaviour(_garbage, FailureKind.DISCONNECTED),
    "large": Behaviour(_large, FailureKind.TOO_LARGE),
    "endless": Behaviour(_endless, FailureKind.TOO_LARGE),
    "circle": Behaviour(_circle, FailureKind.TOO_MANY_REDIRECTS),
    "elsewhere": Behaviour(_elsewhere, FailureKind.BAD_URL),
    "stuck": Behaviour(_stuck, FailureKind.TIMEOUT),
    "inside": Behaviour(_inside, FailureKind.BLOCKED_ADDRESS),
}


class Origin:
    """The server as a process: ``with Origin(folder) as origin: origin.url("well", "00001.jpg")``.

    Args:
        pictures: The folder with the pictures.
    """

    def __init__(self, pictures: Path) -> None:
        self._pictures = pictures
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __enter__(self) -> Self:
        # Its standard input stays open as long as we live: the end of it ends the server.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*child_command("datafetch.demo.origin"), str(self._pictures)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None, "it is a pipe"
        port = self._process.stdout.readline().decode().strip()
        self._address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def url(self, behaviour: str, picture: str, query: object = "") -> str:
        """The URL of a picture under a behaviour; another query is another image to the client."""
        return f"{self._address}/{behaviour}/{picture}" + (f"?{query}" if query != "" else "")

    def requests(self) -> dict[str, int]:
        """How often each path was asked for, query included."""
        with urlopen(f"{self._address}/requests") as response:  # noqa: S310 - our own server
            counts: dict[str, int] = orjson.loads(response.read())
        return counts


class _Server:
    def __init__(self, pictures: Path) -> None:
        self._pictures = pictures
        self._requests: Counter[str] = Counter()
        self._read = lru_cache(maxsize=4096)(lambda name: (pictures / name).read_bytes())

    async def serve(self) -> None:
        """Serve until standard input ends."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=_BACKLOG)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        while await asyncio.to_thread(os.read, 0, 1):
            pass
        os._exit(0)  # whatever connections are open

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.split(b" ", 2)[1].decode("latin-1"), writer)
                await writer.drain()
        writer.close()

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> None:
        if target == "/requests":
            Exchange(target, 0, b"", writer).whole(orjson.dumps(self._requests))
            return
        self._requests[target] += 1
        _, behaviour, name = target.partition("?")[0].split("/")
        exchange = Exchange(target, self._requests[target], self._read(name), writer)
        await BEHAVIOURS[behaviour].answer(exchange)


def main() -> None:
    """Serve the pictures of the folder that the command line names."""
    asyncio.run(_Server(Path(sys.argv[1])).serve())
