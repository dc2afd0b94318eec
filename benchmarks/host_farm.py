"""HostFarm: one small, fast server process that acts as thousands of hosts, good ones and bad ones.

Rules: every address of 127.0.0.0/8 is a host of its own, and all have the same port; only the loopback device is
listened on. The path says how the host treats a request: ``/<behaviour>/<body>/<anything>``, where the body is random
bytes of that number, or, if there is a folder of pictures, the picture of that number. A request must cost the server
next to nothing, because it shares the machine with what is measured. The server ends with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import orjson
import uvloop

from benchmarks.host_farm_tls import Identities, TlsConnection
from datafetch.process.child import child_command

_BACKLOG = 4096  # a thousand clients may connect in the same instant
_DRIP_S = 1.0
_MAX_DRIPS = 30  # for clients that have no deadline
_PIECE_BYTES = 10_000  # a body in small chunks is written in pieces of this size
_ONE_BYTE_PIECE = b"1\r\n.\r\n" * _PIECE_BYTES
_SMALL_PIECE = b"".join(b"%x\r\n%b\r\n" % (size, b"." * size) for size in (2, 5, 3, 4, 6)) * (_PIECE_BYTES // 20)
_HOSTS_PER_NETWORK = 1 << 16
_NETWORKS = 250
_COUNT = b"?"  # on standard input; the answer is the number of requests, on a line
_REPEATED = b"+"  # the answer is a JSON object, on a line


class Behaviour(StrEnum):
    """How a host behaves. ``GONE`` and those after it never deliver an image; ``BUSY`` does at the second request."""

    GOOD = "good"
    ONCE = "once"
    BUSY = "busy"
    GONE = "gone"
    TARPIT = "tarpit"
    RESET = "reset"
    DRIP = "drip"
    ONE_BYTE_CHUNKS = "one_byte_chunks"
    SMALL_CHUNKS = "small_chunks"


@dataclass(frozen=True, slots=True)
class HeavyTail:
    """A log-normal delay.

    Attributes:
        median_ms: Its median.
        sigma: The standard deviation of its natural logarithm.
    """

    median_ms: float
    sigma: float


class HostFarm:
    """Runs the server in a process of its own while the ``with`` block lasts; ``url`` names what its hosts serve.

    Args:
        delay_ms: The random delay before each answer: its minimum and maximum, or a distribution with a heavy tail.
        authority: The file to write the certificate to that clients must trust (``SSL_CERT_FILE``). If it is given, all
            hosts speak TLS only.
        pictures: The folder of the pictures to serve, numbered in the order of their names; None for random bytes.
        counts_targets: Whether it counts the requests of each URL, for ``repeated``.
    """

    def __init__(
        self,
        delay_ms: tuple[float, float] | HeavyTail = (0.0, 0.0),
        authority: Path | None = None,
        pictures: Path | None = None,
        *,
        counts_targets: bool = False,
    ) -> None:
        self._options: list[str] = []
        if isinstance(delay_ms, HeavyTail):
            self._options += ["--heavy-tail", str(delay_ms.median_ms), str(delay_ms.sigma)]
        else:
            self._options += ["--delay-ms", *map(str, delay_ms)]
        if authority:
            self._options += ["--authority", str(authority)]
        if pictures:
            self._options += ["--pictures", str(pictures)]
        if counts_targets:
            self._options += ["--counts-targets"]
        self._scheme = "https" if authority else "http"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        # The server ends when its standard input does, which is when this process ends at the latest.
        self._process = subprocess.Popen(
            [*child_command("benchmarks.host_farm"), *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None, "it is a pipe"
        self._port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def url(self, behaviour: Behaviour, *, host: int | str, body: int, number: int) -> str:
        """The URL at which a host serves an image.

        Args:
            behaviour: How the host treats the request.
            host: Its number, or its loopback address.
            body: The number of bytes, or of the picture.
            number: Another number gives another URL.
        """
        name = host if isinstance(host, str) else address(host)
        return f"{self._scheme}://{name}:{self._port}/{behaviour}/{body}/{number}"

    def requests(self) -> int:
        """The number of requests since the start."""
        return int(self._ask(_COUNT))

    def repeated(self) -> dict[str, int]:
        """Path → number of requests, of those URLs that were requested more than once."""
        counts: dict[str, int] = orjson.loads(self._ask(_REPEATED))
        return counts

    def _ask(self, question: bytes) -> bytes:
        process = self._process
        assert process is not None, "it is running"
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        process.stdin.write(question)
        process.stdin.flush()
        return process.stdout.readline()


def address(host: int) -> str:
    """The loopback address of a host; 127.0.0.0/16 and the last networks are left to others."""
    network, rest = divmod(host % (_NETWORKS * _HOSTS_PER_NETWORK), _HOSTS_PER_NETWORK)
    return f"127.{network + 1}.{rest >> 8}.{rest & 255}"


class _Connection(asyncio.Protocol):
    """One connection. It expects each request to be a GET that arrives in one piece, after the previous answer."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._target = b""
        self._piece = b""
        self._pieces_left = 0
        self._is_paused = False
        self._drips_left = _MAX_DRIPS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class fits it without deriving from it

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._server.requests += 1
        self._target = data[4 : data.index(b" ", 4)]
        if self._server.counts is not None:
            self._server.counts[self._target] += 1
        delay_s = self._server.delay_s()
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._answer)
        else:
            self._answer()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._send_chunks()

    def _answer(self) -> None:
        transport = self._transport
        if transport is not None:  # the client may have left during the delay
            behaviour, body = self._target.split(b"/", 3)[1:3]
            _ANSWERS[behaviour](self, transport, int(body))

    def _good(self, transport: asyncio.Transport, body: int) -> None:
        transport.write(self._server.response(body, ""))

    def _once(self, transport: asyncio.Transport, body: int) -> None:
        transport.write(self._server.response(body, "Connection: close\r\n"))
        transport.close()

    def _busy(self, transport: asyncio.Transport, body: int) -> None:
        if self._target in self._server.turned_away:
            self._server.turned_away.remove(self._target)
            self._good(transport, body)
        else:
            self._server.turned_away.add(self._target)
            transport.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")

    def _gone(self, transport: asyncio.Transport, _: int) -> None:
        transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _tarpit(self, _: asyncio.Transport, __: int) -> None:
        """Never answer; the client's deadline ends the request."""

    def _reset(self, transport: asyncio.Transport, _: int) -> None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _drip(self, transport: asyncio.Transport, body: int) -> None:
        transport.write(self._server.response(body, "").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        self._drop()

    def _drop(self) -> None:
        if self._transport is not None and self._drips_left:
            self._drips_left -= 1
            self._transport.write(b"\xff")
            asyncio.get_running_loop().call_later(_DRIP_S, self._drop)
        elif self._transport is not None:
            self._transport.close()

    def _one_byte_chunks(self, transport: asyncio.Transport, size_bytes: int) -> None:
        """Send chunks of one byte."""
        self._begin_chunks(transport, _ONE_BYTE_PIECE, size_bytes)

    def _small_chunks(self, transport: asyncio.Transport, size_bytes: int) -> None:
        """Send chunks of a few bytes, each of another size than the one before."""
        self._begin_chunks(transport, _SMALL_PIECE, size_bytes)

    def _begin_chunks(self, transport: asyncio.Transport, piece: bytes, size_bytes: int) -> None:
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._piece, self._pieces_left = piece, size_bytes // _PIECE_BYTES
        self._send_chunks()

    def _send_chunks(self) -> None:
        """Send chunks as fast as the client reads them."""
        while self._transport is not None and self._pieces_left and not self._is_paused:
            self._pieces_left -= 1
            self._transport.write(self._piece if self._pieces_left else self._piece + b"0\r\n\r\n")


_ANSWERS: Mapping[bytes, Callable[[_Connection, asyncio.Transport, int], None]] = {
    behaviour.encode(): getattr(_Connection, f"_{behaviour}") for behaviour in Behaviour
}


class _Server:
    """The state that all connections share, and the loop that accepts them."""

    def __init__(
        self, delay_s: Callable[[], float], authority: Path | None, pictures: Path | None, *, counts_targets: bool
    ) -> None:
        self.delay_s = delay_s
        self.counts: Counter[bytes] | None = Counter() if counts_targets else None
        self.requests = 0
        self._pictures = [path.read_bytes() for path in sorted(pictures.iterdir())] if pictures else []
        self._identities = Identities(authority) if authority else None
        self.turned_away: set[bytes] = set()
        """Targets that were answered with 429, and will be answered with their image next time."""

    def response(self, body: int, header: str) -> bytes:
        """The response with a picture, or with random bytes of this number."""
        return _head(self._pictures[body], header) + self._pictures[body] if self._pictures else _random(body, header)

    async def serve(self) -> None:
        """Serve until standard input ends."""
        listener = socket.create_server(("0.0.0.0", 0), backlog=_BACKLOG)  # noqa: S104 - bound to the loopback device
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        await asyncio.get_running_loop().create_server(self._connect, sock=listener, backlog=_BACKLOG)
        _say(str(listener.getsockname()[1]))
        while question := await asyncio.to_thread(os.read, 0, 1):
            _say(str(self.requests) if question == _COUNT else orjson.dumps(self._repeated()).decode())
        os._exit(0)  # without waiting for open connections

    def _repeated(self) -> dict[str, int]:
        return {target.decode(): count for target, count in (self.counts or {}).items() if count > 1}

    def _connect(self) -> asyncio.Protocol:
        connection = _Connection(self)
        return TlsConnection(self._identities, connection) if self._identities else connection


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _head(body: bytes, header: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n{header}Content-Length: {len(body)}\r\n\r\n".encode()


@lru_cache(maxsize=256)
def _random(size_bytes: int, header: str) -> bytes:
    body = random.Random(size_bytes).randbytes(size_bytes)
    return _head(body, header) + body


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--heavy-tail", type=float, nargs=2, metavar=("MEDIAN_MS", "SIGMA"))
    parser.add_argument("--authority", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--counts-targets", action="store_true")
    arguments = parser.parse_args()
    if arguments.heavy_tail:
        median_ms, sigma = arguments.heavy_tail
        delay_s = partial(random.lognormvariate, math.log(median_ms / 1000), sigma)
    else:
        delay_s = partial(random.uniform, *(delay_ms / 1000 for delay_ms in arguments.delay_ms))
    server = _Server(delay_s, arguments.authority, arguments.pictures, counts_targets=arguments.counts_targets)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve())
