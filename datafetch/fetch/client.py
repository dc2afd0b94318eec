"""Sends one request and waits for the head of its response, over a kept connection or a new one.

Rules: a server may close a kept connection at any moment, also while the next request is on its way. So when a kept
connection ends before anything was answered on it, the request is sent once more over a new one (RFC 9112, 9.3.1), and
this does not count as a failure. The same holds when a kept connection brings something that is no response: those
bytes belonged to the response before, and came late.
"""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

from aiohttp import ClientOSError, ServerDisconnectedError

from datafetch.fetch.connection import Connection, Endpoint
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
    """

    url: WebUrl
    status: int
    headers: Headers
    content_length: int | None
    body: ReceivedBody


class Client:
    """Sends requests: ``async with client.send(hop, proxy) as response: …``.

    Args:
        policy: Gives the contact to name in requests, and how long a server may be silent.
        connections: The pool that connections are taken from and returned to.
    """

    def __init__(self, policy: FetchPolicy, connections: Connections) -> None:
        self._writer = RequestWriter(policy.contact)
        self._stall_timeout_s = policy.silence_s
        self._range_stall_timeout_s = policy.timeout_s
        self._connections = connections

    def send(self, hop: Hop, proxy: WebUrl | None = None) -> ResponseContext:
        """Send a request when the returned context is entered, and take its connection back when that is left.

        Entering raises what ``Connections.connect`` does, and aiohttp's exceptions for what comes through a connection.
        Permissions that the connection needs are added to the hop's deadline, also where it fails.

        Args:
            hop: What to request.
            proxy: The proxy to go through.
        """
        return ResponseContext(self, hop, proxy)

    async def open_response(self, context: ResponseContext) -> Response:
        """Send the request of a context, and wait for the head of the response."""
        hop = context.hop
        endpoint = Endpoint.of(hop.url, context.proxy)
        request = self._writer.request(hop, context.proxy)
        permitted = hop.deadline.permitted
        context.connection = self._connections.take_idle(endpoint)
        if context.connection is not None:
            permitted |= context.connection.permitted
            try:
                return await self._exchange(context.connection, request, hop)
            except (ServerDisconnectedError, ClientOSError, ProtocolError):
                context.connection.drop()
        context.connection = await self._connections.connect(endpoint, permitted)
        permitted |= context.connection.permitted
        return await self._exchange(context.connection, request, hop)

    def release(self, connection: Connection) -> None:
        """Take a connection back, whatever state it is in."""
        self._connections.release(connection)

    async def _exchange(self, connection: Connection, request: bytes, hop: Hop) -> Response:
        protocol = connection.protocol
        is_range = hop.request.byte_range is not None
        stall_timeout_s = self._range_stall_timeout_s if is_range else self._stall_timeout_s
        protocol.expect_response(stall_timeout_s, hop.transfer)
        connection.transport.write(request)
        head = await protocol.read_head()
        assert protocol.body is not None, "it begins where the head ends"
        return Response(hop.url.without_login(), head.status, head.headers, head.content_length, protocol.body)


class ResponseContext:
    """The context in which a response may be read; its connection is the client's again afterwards."""

    __slots__ = ("_client", "connection", "hop", "proxy")

    def __init__(self, client: Client, hop: Hop, proxy: WebUrl | None) -> None:
        self._client = client
        self.hop = hop
        self.proxy = proxy
        self.connection: Connection | None = None

    async def __aenter__(self) -> Response:
        try:
            return await self._client.open_response(self)
        except BaseException:
            if self.connection is not None:
                self.connection.drop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.connection is not None, "it has been entered"
        self._client.release(self.connection)
