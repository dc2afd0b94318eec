"""Every way in which a body can end, whether reading is paused or not: it arrives complete or fails."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum

import pytest
import trustme
from conftest import LOOPBACK

from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy
from datafetch.model.outcome import Body, Failure, FailureKind

_MEBIBYTE = 1 << 20
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)
_AT_ONCE = 6
_PATIENCE_S = 20.0


class Framing(StrEnum):
    """How the response marks the end of its body."""

    LENGTH = "length"
    CHUNKS = "chunks"
    CLOSE = "close"


class Ending(StrEnum):
    """How the server ends the connection right after the body."""

    PLAIN = "plain"
    PLAIN_RESET = "plain, reset"
    NOTIFIED = "TLS, with close_notify"
    UNNOTIFIED = "TLS, without"
    RESET = "TLS, reset"

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.value.startswith("TLS")

    @property
    def is_reset(self) -> bool:
        """Whether the connection ends with a TCP reset."""
        return self.value.endswith("reset")


class _Server:
    """A server that answers one request per connection with a body made for its path, and ends the connection."""

    def __init__(self, tls: ssl.SSLContext, framing: Framing, ending: Ending, body: bytes) -> None:
        self._tls, self._framing, self._ending, self._body = tls, framing, ending, body
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Close the server, once all of its connections have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        conversations: list[threading.Thread] = []
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                conversations.append(threading.Thread(target=self._converse, args=(connection,)))
                conversations[-1].start()
        for conversation in conversations:
            conversation.join()

    def _converse(self, plain: socket.socket) -> None:
        plain.settimeout(_PATIENCE_S)
        with suppress(OSError):
            channel = self._tls.wrap_socket(plain, server_side=True) if self._ending.is_tls else plain
            request = b""
            while b"\r\n\r\n" not in request:
                request += channel.recv(65536)
            channel.sendall(self._answer())
            if self._ending is Ending.NOTIFIED:
                assert isinstance(channel, ssl.SSLSocket)
                channel.settimeout(0.0)  # the client need not close TLS in turn
                with suppress(ssl.SSLError):
                    channel.unwrap()
            if self._ending.is_reset:
                self._reset(channel)
            channel.close()

    def _answer(self) -> bytes:
        match self._framing:
            case Framing.LENGTH:
                return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._body) + self._body
            case Framing.CHUNKS:
                pieces = [self._body[start : start + 60_000] for start in range(0, len(self._body), 60_000)]
                chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
                return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            case Framing.CLOSE:
                return b"HTTP/1.1 200 OK\r\n\r\n" + self._body

    @staticmethod
    def _reset(channel: socket.socket) -> None:
        """Reset the connection once the client's kernel has all data, since a reset discards unsent data."""
        unsent, until_s = bytearray(4), time.monotonic() + _PATIENCE_S
        while fcntl.ioctl(channel.fileno(), termios.TIOCOUTQ, unsent) or int.from_bytes(unsent, "little"):
            if time.monotonic() > until_s:
                return
            os.sched_yield()
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    """A server's TLS context, whose certificate for 127.0.0.1 this process trusts."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield context


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize(
    "size_bytes", [1, 900_000, pytest.param(32 * _MEBIBYTE, marks=pytest.mark.slow)], ids=["1", "900 kB", "32 MiB"]
)
@pytest.mark.parametrize("budget_bytes", [1 << 30, 1_200_000], ids=["roomy", "tight"])
@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("framing", Framing)
async def test_a_body_arrives_whole_however_it_ends(
    tls: ssl.SSLContext, framing: Framing, ending: Ending, budget_bytes: int, size_bytes: int
) -> None:
    """Several requests at once make reading pause: by the buffer, and if memory is tight also by the budget.

    A body that lasts until the connection ends is incomplete if the connection is reset, since data may be missing.
    """
    body = hashlib.shake_128(b"a picture").digest(size_bytes)
    policy = FetchPolicy(
        allow_net=LOOPBACK, connections=_AT_ONCE, per_host=_AT_ONCE, retries=0, max_body_bytes=32 * _MEBIBYTE
    )
    server = await asyncio.to_thread(_Server, tls, framing, ending, body)
    async with Fetcher(policy, budget=BodyBudget(budget_bytes)) as fetch:
        url = f"{'https' if ending.is_tls else 'http'}://127.0.0.1:{server.port}/"
        fetched = await asyncio.gather(*(fetch(f"{url}{number}") for number in range(_AT_ONCE)))
    await asyncio.to_thread(server.close)
    for one in fetched:
        if framing is Framing.CLOSE and ending.is_reset:
            assert isinstance(one, Failure) and one.kind is FailureKind.DISCONNECTED, one  # noqa: PT018
        else:
            assert isinstance(one, Body), one
            assert one.content == body
