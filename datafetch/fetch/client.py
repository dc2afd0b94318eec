"""Sends one request and waits for the head of its response, over a kept connection or a new one.

Rules: a server may close a kept connection at any moment, also while the next request is on its way. So when a kept
connection ends before anything was answered on it, the request is sent once more over a new one (RFC 9112, 9.3.1), and
this does not count as a failure. The same holds when a kept connection brings something that is no response: those
bytes belonged to the response before, and came late.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from datafetch.fetch.connection import Connection, ConnectionLostError, Endpoint
from datafetch.fetch.connections import Connections
from datafetch.fetch.headers import Headers
from datafetch.fetch.hop import Hop
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.received_body import ReceivedBody
from datafetch.fetch.request_writer import RequestWriter
from datafetch.fetch.response_head import ProtocolError
from datafetch.fetch.urls import WebUrl


class Response(NamedTuple):
    """A response whose head has arrived, and whose body may still be on its way.

    Attributes:
        url: The URL that was requested, without credentials.
        status: The HTTP status.
        headers: The header fields that the fetcher looks at.
        content_length: Size of the body in bytes, where the server gives it.
        body: Collects the body's bytes as they arrive.
        connection: What it comes over.
    """

    url: WebUrl
    status: int
    headers: Headers
    content_length: int | None
    body: ReceivedBody
    connection: Connection


class Client:
    """Sends requests; each response that ``send`` returns is given to ``release`` when it has been read.

    Args:
        policy: Gives the contact to name in requests, and how long a server may be silent.
        connections: The pool that connections are taken from and returned to.
    """

    def __init__(self, policy: FetchPolicy, connections: Connections) -> None:
        self._writer = RequestWriter(policy.contact)
        self._stall_timeout_s = policy.silence_s
        self._range_stall_timeout_s = policy.timeout_s
        self._connections = connections

    async def send(self, hop: Hop, proxy: WebUrl | None = None) -> Response:
        """Send a request, and wait for the head of the response.

        Permissions that the connection needs are added to the hop's deadline, also where it fails.

        Args:
            hop: What to request.
            proxy: The proxy to go through.

        Raises:
            OSError: What ``Connections.connect`` and ``ResponseProtocol.read_head`` raise.
            ProtocolError: What arrives is no HTTP response.
        """
        endpoint = Endpoint.of(hop.url, proxy)
        request = self._writer.request(hop, proxy)
        permitted = hop.deadline.permitted
        connection = self._connections.take_idle(endpoint)
        if connection is not None:
            permitted |= connection.permitted
            with suppress(ConnectionLostError, ProtocolError):
                return await self._exchange(connection, request, hop)
        connection = await self._connections.connect(endpoint, permitted)
        permitted |= connection.permitted
        return await self._exchange(connection, request, hop)

    def release(self, response: Response) -> None:
        """Take the connection of a response back, whatever state it is in."""
        self._connections.release(response.connection)

    async def _exchange(self, connection: Connection, request: bytes, hop: Hop) -> Response:
        """Send a request over a connection, which is dropped if it fails."""
        protocol = connection.protocol
        is_range = hop.request.byte_range is not None
        try:
            protocol.expect_response(self._range_stall_timeout_s if is_range else self._stall_timeout_s, hop.transfer)
            connection.transport.write(request)
            head = await protocol.read_head()
        except BaseException:
            connection.drop()
            raise
        assert protocol.body is not None, "it begins where the head ends"
        url = hop.url.without_login()
        return Response(url, head.status, head.headers, head.content_length, protocol.body, connection)
