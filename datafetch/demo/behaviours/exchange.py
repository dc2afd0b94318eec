"""One request to the origin, and the means to answer it well or badly."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from pathlib import Path

from datafetch.model.outcome import FailureKind

_CONTENT_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: ``/<behaviour>/<step>/…/<picture>?<query>``, with any number of steps.

    Attributes:
        head: As received, with the empty line at its end.
        seen: How often this target was asked for, this time included.
        turn: The request's place on its connection, from 1.
    """

    head: bytes
    seen: int = 1
    turn: int = 1

    @property
    def target(self) -> str:
        """Path and query, as sent."""
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def parts(self) -> list[str]:
        """The path between its slashes: the behaviour first, the picture last, the steps between."""
        return self.target.partition("?")[0].split("/")[1:]

    @property
    def steps(self) -> list[str]:
        """What stands between behaviour and picture: where a redirect by the behaviour itself leads to."""
        return self.parts[1:-1]

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None


class Exchange:
    """A request, the picture it asks for, and the connection that the answer goes to.

    Attributes:
        request: The request.
        ports: Listener → port; ``http``, and ``https`` where the origin has a certificate.
        picture: The bytes it asks for.
        over: Whether this side has ended the connection.
    """

    def __init__(self, request: Request, ports: Mapping[str, int], writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.ports = ports
        self.picture = b""
        self.over = False
        self._writer = writer

    @property
    def content_type(self) -> str:
        """The picture's, as a header line."""
        suffix = Path(self.request.parts[-1]).suffix
        return f"Content-Type: {_CONTENT_TYPES.get(suffix, 'application/octet-stream')}"

    @property
    def host(self) -> str:
        """As the client named it, without the port."""
        return (self.request.header("host") or "127.0.0.1").rpartition(":")[0]

    def path(self, behaviour: str, *steps: str) -> str:
        """Path and query of this picture under a behaviour."""
        name = self.request.target.rpartition("/")[2]
        return "/".join(["", behaviour, *steps, name])

    def again(self, *steps: str) -> str:
        """Path and query of this picture under the same behaviour, some steps on."""
        return self.path(self.request.parts[0], *steps)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    def head(self, status: int, length: int | None, *fields: str) -> None:
        """Send status line and headers.

        Args:
            status: Any number.
            length: Of the body; without it the body ends with the connection.
            fields: Header lines, in latin-1.
        """
        reason = responses.get(status, "Whatever")
        end = "Connection: close" if length is None else f"Content-Length: {length}"
        self.send("\r\n".join([f"HTTP/1.1 {status} {reason}", end, *fields, "", ""]).encode("latin-1"))

    def whole(self, data: bytes, *fields: str) -> None:
        """Answer with 200 and all of this, as the picture's type unless the fields name another."""
        self.head(HTTPStatus.OK, len(data), *(fields or (self.content_type,)))
        self.send(data)

    async def drain(self) -> None:
        """Let what was sent go out."""
        await self._writer.drain()

    async def pause(self, seconds: float) -> None:
        """Let what was sent go out, and a while pass."""
        await self.drain()
        await asyncio.sleep(seconds)

    async def send_without_end(self, data: bytes) -> None:
        """Send these bytes again and again, until the client has gone."""
        while True:
            self.send(data)
            await self.drain()
            # A TLS transport that has lost its connection but not yet heard of it would never let anybody else run.
            await asyncio.sleep(0)

    async def hang(self) -> None:
        """Let what was sent go out, and nothing follow; the client ends it."""
        await self.drain()
        await asyncio.Event().wait()

    def close(self) -> None:
        """End the connection in order."""
        self.over = True
        self._writer.close()

    def break_off(self) -> None:
        """End the connection without TLS's good-bye; on a plain one this is ``close``, but for what is unsent."""
        self.over = True
        self._writer.transport.abort()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
        self.break_off()


Answer = Callable[[Exchange], Awaitable[None]]
SampleFetcher = Callable[[bytes], bytes]


def _all_of_it(picture: bytes) -> bytes:
    return picture


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the origin does with a request, and what must become of the image.

    Attributes:
        answer: Does it.
        expected: The failure kind, or None when the image must arrive.
        status: The HTTP status that the failure must carry.
        attempts: How many it takes; None for as many as are allowed.
        delivers: The body that must arrive, given the picture.
        waits: Whether a clock must run out before it ends: the client's or that of ``Retry-After``.
    """

    answer: Answer
    expected: FailureKind | None = None
    status: int | None = None
    attempts: int | None = 1
    delivers: SampleFetcher = _all_of_it
    waits: bool = False
