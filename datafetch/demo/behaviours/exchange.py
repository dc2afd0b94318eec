"""One request to the origin, and the means to respond to it correctly or with faults."""

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
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """A request for ``/<behaviour>/<step>/…/<picture>?<query>``, with any number of steps.

    Attributes:
        head: The head as received, with the empty line at its end.
        times_requested: How often this target has been requested, including this time.
        number: The position of the request on its connection, from 1.
    """

    head: bytes
    times_requested: int = 1
    number: int = 1

    @property
    def method(self) -> str:
        """The method, in capitals."""
        return self.head.split(b" ", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        """Path and query, as received."""
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def path(self) -> str:
        """The path, as received."""
        return self.target.partition("?")[0]

    @property
    def parts(self) -> list[str]:
        """The parts of the path: first the behaviour, then the steps, last the picture."""
        return self.path.split("/")[1:]

    @property
    def steps(self) -> list[str]:
        """The parts between behaviour and picture, which redirects of the behaviour itself add."""
        return self.parts[1:-1]

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None if it is missing."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None


class Exchange:
    """A request, the requested picture, and the connection for the response.

    Attributes:
        request: The request.
        ports: Listener → port; ``http``, and ``https`` if the origin has a certificate.
        picture: The bytes of the requested picture.
        is_closed: Whether this side has closed the connection.
    """

    def __init__(self, request: Request, ports: Mapping[str, int], writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.ports = ports
        self.picture = b""
        self.is_closed = False
        self._writer = writer

    @property
    def content_type(self) -> str:
        """The picture's content type, as a header line."""
        suffix = Path(self.request.parts[-1]).suffix
        return f"Content-Type: {_CONTENT_TYPES.get(suffix, 'application/octet-stream')}"

    @property
    def host(self) -> str:
        """The value of the Host header, without the port."""
        return (self.request.header("host") or "127.0.0.1").rpartition(":")[0]

    def path(self, behaviour: str, *steps: str) -> str:
        """Return path and query of this picture with another behaviour."""
        name = self.request.target.rpartition("/")[2]
        return "/".join(["", behaviour, *steps, name])

    def next_path(self, *steps: str) -> str:
        """Return path and query of this picture with the same behaviour, after these steps."""
        return self.path(self.request.parts[0], *steps)

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self._writer.write(data)

    def send_head(self, status: int, length: int | None, *fields: str) -> None:
        """Send the status line and headers.

        Args:
            status: Any number.
            length: The length of the body; None means that the body ends with the connection.
            fields: Header lines, in latin-1.
        """
        reason = responses.get(status, "Whatever")
        end = "Connection: close" if length is None else f"Content-Length: {length}"
        self.send("\r\n".join([f"HTTP/1.1 {status} {reason}", end, *fields, "", ""]).encode("latin-1"))

    def send_ok(self, data: bytes, *fields: str) -> None:
        """Send a complete 200 response with this body, with the picture's content type unless there are fields."""
        self.send_head(HTTPStatus.OK, len(data), *(fields or (self.content_type,)))
        self.send(data)

    async def drain(self) -> None:
        """Wait until everything has been sent."""
        await self._writer.drain()

    async def pause(self, seconds: float) -> None:
        """Wait until everything has been sent, and then for a while."""
        await self.drain()
        await asyncio.sleep(seconds)

    async def send_without_end(self, data: bytes) -> None:
        """Send these bytes again and again, until the client disconnects."""
        while True:
            self.send(data)
            await self.drain()
            # On a TLS transport that has not yet noticed the end of its connection, drain() never yields to the loop.
            await asyncio.sleep(0)

    async def hang(self) -> None:
        """Wait until everything has been sent, and then send nothing more until the client disconnects."""
        await self.drain()
        await asyncio.Event().wait()

    def close(self) -> None:
        """Close the connection properly."""
        self.is_closed = True
        self._writer.close()

    def abort(self) -> None:
        """Close the connection without TLS's close_notify, dropping unsent data; otherwise like ``close``."""
        self.is_closed = True
        self._writer.transport.abort()

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()


Answer = Callable[[Exchange], Awaitable[None]]
BodyTransform = Callable[[bytes], bytes]


def _unchanged(picture: bytes) -> bytes:
    return picture


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the origin does with a request, and what outcome the image must have.

    Attributes:
        answer: Sends the response.
        expected: The failure kind, or None if the image must arrive.
        status: The HTTP status that the failure must have.
        attempts: How many attempts it takes; None for as many as the client makes.
        delivers: Computes the body that must arrive from the picture.
        waits: Whether it takes until a timeout of the client expires, or ``Retry-After``.
    """

    answer: Answer
    expected: FailureKind | None = None
    status: int | None = None
    attempts: int | None = 1
    delivers: BodyTransform = _unchanged
    waits: bool = False
