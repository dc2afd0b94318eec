"""The responses of a connection, however the network cuts them, and whether it can be used again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import cast

import pytest
from test_response_parser import answer_of

from datafetch.demo.behaviours import BEHAVIOURS
from datafetch.fetch import FetchPolicy, received_body
from datafetch.fetch.connection import Connection, Endpoint, ResponseProtocol
from datafetch.fetch.connections import Connections
from datafetch.fetch.dns.address_guard import AddressGuard
from datafetch.fetch.dns.resolver import Resolver
from datafetch.fetch.response_body import FramingTooLargeError
from datafetch.fetch.response_head import ProtocolError, ResponseHead
from datafetch.fetch.timers import Timers

_EVENLY = 40  # positions at which a response is cut, besides those near its edges
_NEAR = 4


class _Transport:
    """A connection without a network."""

    def __init__(self) -> None:
        self.is_read = asyncio.Event()
        self.is_read.set()
        self._is_closing = False

    def is_closing(self) -> bool:
        return self._is_closing

    def abort(self) -> None:
        self._is_closing = True

    def pause_reading(self) -> None:
        self.is_read.clear()

    def resume_reading(self) -> None:
        self.is_read.set()


async def _outcome(pieces: Sequence[bytes]) -> tuple[object, object, bool]:
    """Read a response that arrives in these pieces before the server closes the connection.

    Returns:
        The head or the type of its error, the same of the body, and whether another request could have followed.
    """
    transport, protocol = _Transport(), ResponseProtocol(Timers())
    protocol.connection_made(cast("asyncio.Transport", transport))
    protocol.expect_response(60.0)
    taking = asyncio.create_task(_take(protocol))
    for piece in pieces:
        await transport.is_read.wait()
        if transport.is_closing():
            break
        protocol.data_received(piece)
    is_reusable = protocol.is_reusable
    if not transport.is_closing():
        await transport.is_read.wait()
        protocol.eof_received()
    protocol.connection_lost(None)
    return *await taking, is_reusable


async def _take(protocol: ResponseProtocol) -> tuple[object, object]:
    try:
        head = await protocol.read_head()
    except (OSError, ProtocolError, FramingTooLargeError) as error:
        return type(error), None
    assert protocol.body is not None
    try:
        while not protocol.body.is_complete:
            await protocol.body.wait(protocol.body.size_bytes)
        return head, protocol.body.content()
    except (OSError, ProtocolError, FramingTooLargeError) as error:
        return head, type(error)


def _cuts(data: bytes) -> Iterator[Sequence[bytes]]:
    """Cut byte by byte; and in two, near both ends, near the end of the head, and at positions in between."""
    yield [data[position : position + 1] for position in range(len(data))]
    positions = set(range(0, len(data), len(data) // _EVENLY + 1))
    for edge in (0, data.find(b"\r\n\r\n") + 4, len(data)):
        positions.update(range(max(0, edge - _NEAR), min(len(data), edge + _NEAR)))
    for position in sorted(positions):
        yield [data[:position], data[position:]] if position else [data]


@pytest.mark.rotating
@pytest.mark.parametrize("buffer_bytes", [received_body._MAX_BYTES_BEYOND_ROOM, 32], ids=["at once", "with pauses"])
@pytest.mark.parametrize("name", sorted(name for name, row in BEHAVIOURS.items() if not row.waits))
async def test_how_a_response_is_cut_makes_no_difference_to_its_reader(
    monkeypatch: pytest.MonkeyPatch, name: str, buffer_bytes: int
) -> None:
    """Head, body or error, and whether the connection can be kept, also where its reader is slower than the network."""
    monkeypatch.setattr(received_body, "_MAX_BYTES_BEYOND_ROOM", buffer_bytes)
    data, _ = await asyncio.to_thread(answer_of, name)
    whole = await _outcome([data])
    for pieces in _cuts(data):
        assert await _outcome(pieces) == whole, [len(piece) for piece in pieces][:3]


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_head_counts_even_if_its_body_is_broken(pieces: int) -> None:
    """A 404 is a 404, also where the same read shows that the body can't be parsed."""
    head, body = b"HTTP/1.1 404 Gone\r\nTransfer-Encoding: chunked\r\n\r\n", b"no size\r\n"
    found, content, is_reusable = await _outcome([head + body] if pieces == 1 else [head, body])
    assert isinstance(found, ResponseHead)
    assert (found.status, content, is_reusable) == (404, ProtocolError, False)


@dataclass(frozen=True, slots=True)
class _Connected:
    """A connection of ``connections`` to an endpoint, and the server's end of it."""

    connections: Connections
    endpoint: Endpoint
    connection: Connection
    peer: socket.socket


@asynccontextmanager
async def _connected() -> AsyncIterator[_Connected]:
    resolver = Resolver(AddressGuard((ip_network("127.0.0.0/8"),)))
    tls = ssl.create_default_context()
    connections = Connections(FetchPolicy(), resolver, Timers(), tls=tls, lax_tls=None, proxies=None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = Endpoint("127.0.0.1", listening.getsockname()[1], is_tls=False)
        connection = await connections.connect(endpoint)
        peer, _ = listening.accept()
        with peer:
            yield _Connected(connections, endpoint, connection, peer)
    await connections.close()
    await resolver.close()


@pytest.mark.both_loops
@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"], ids=["end", "answer"])
async def test_data_that_arrives_before_a_request_is_not_its_response(unasked: bytes) -> None:
    """A kept connection with unread data, or that has ended, is not used, even if the loop has not noticed yet."""
    async with _connected() as ours:
        ours.connections.release(ours.connection)
        assert ours.connections.take_idle(ours.endpoint) is ours.connection
        ours.connections.release(ours.connection)
        ours.peer.sendall(unasked)
        ours.peer.shutdown(socket.SHUT_WR)
        assert ours.connections.take_idle(ours.endpoint) is None
        await ours.connection.protocol.wait_closed()


@pytest.mark.both_loops
async def test_an_idle_connection_keeps_no_body() -> None:
    """Its memory is no longer reserved: with many idle connections, bodies would add up beyond the budget."""
    async with _connected() as ours:
        protocol = ours.connection.protocol
        protocol.expect_response(60.0)
        ours.peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes")
        await protocol.read_head()
        body = protocol.body
        assert body is not None
        await body.wait(5)
        ours.connections.release(ours.connection)
        assert ours.connection.protocol.body is None
        assert ours.connections.take_idle(ours.endpoint) is ours.connection
