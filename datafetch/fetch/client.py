"""One request and its response, over a kept connection or a new one.

Rules: a connection that ends before anything was answered on it, after an earlier response, ended by the server's own
timeout: the request is made once more on a new one (RFC 9112, 9.3.1), and nobody is told. The same goes for one that
brings something other than a response: that stood behind the earlier body, and came late.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from aiohttp import ClientOSError, ServerDisconnectedError, StreamReader
from multidict import CIMultiDictProxy
from yarl import URL

from datafetch.fetch.connection import Connection, Endpoint
from datafetch.fetch.connections import Connections
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.request_writer import RequestWriter
from datafetch.fetch.response_parser import ProtocolError
from datafetch.model.outcome import Permission


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose headers have come, and whose body may be under way.

    Attributes:
        url: What was asked for, without credentials.
        status: Of HTTP.
        headers: Theirs.
        content_length: Bytes that the body will have, where that is said.
        body: Its bytes as they arrive.
    """

    url: URL
    status: int
    headers: CIMultiDictProxy[str]
    content_length: int | None
    body: StreamReader


class Client:
    """Asks for URLs: ``async with client.get(url, proxy) as response: …``.

    Args:
        policy: Whom to name as a contact, and how long a silence may be.
        connections: Where connections come from and go to.
    """

    def __init__(self, policy: FetchPolicy, connections: Connections) -> None:
        self._writer = RequestWriter(policy.contact)
        self._stall_timeout_s = policy.stall_timeout_s
        self._connections = connections

    def get(
        self, url: URL, proxy: URL | None = None, cookie: str = "", permitted: set[Permission] | None = None
    ) -> Exchange:
        """Ask for a URL.

        Entering raises what ``Connections.connect`` does, and aiohttp's exceptions for what comes through a connection.

        Args:
            url: Of http or https.
            proxy: The proxy to go through.
            cookie: What the Cookie header is to have.
            permitted: Gets the permissions that it takes, also where it fails.
        """
        return Exchange(self, url, proxy, cookie, set() if permitted is None else permitted)

    async def begin(self, exchange: Exchange) -> Response:
        """Send the request, and wait for the response's headers."""
        endpoint = Endpoint.of(exchange.url, exchange.proxy)
        request = self._writer.get(exchange.url, exchange.proxy, exchange.cookie)
        exchange.connection = self._connections.take_idle(endpoint)
        if exchange.connection is not None:
            exchange.permitted |= exchange.connection.permitted
            try:
                return await self._converse(exchange.connection, request, exchange.url)
            except (ServerDisconnectedError, ClientOSError, ProtocolError):
                exchange.connection.drop()
        exchange.connection = await self._connections.connect(endpoint, exchange.permitted)
        exchange.permitted |= exchange.connection.permitted
        return await self._converse(exchange.connection, request, exchange.url)

    def end(self, connection: Connection) -> None:
        """Take a connection back, whatever state it is in."""
        self._connections.keep(connection)

    async def _converse(self, connection: Connection, request: bytes, url: URL) -> Response:
        protocol = connection.protocol
        protocol.expect_response(self._stall_timeout_s)
        connection.transport.write(request)
        head = await protocol.read_head()
        assert protocol.body is not None, "it begins where the head ends"
        return Response(
            url if url.raw_user is None and url.raw_password is None else url.with_user(None),
            head.status,
            head.headers,
            head.content_length,
            protocol.body,
        )


class Exchange:
    """A request and its response."""

    __slots__ = ("_client", "connection", "cookie", "permitted", "proxy", "url")

    def __init__(self, client: Client, url: URL, proxy: URL | None, cookie: str, permitted: set[Permission]) -> None:
        self._client = client
        self.url = url
        self.proxy = proxy
        self.cookie = cookie
        self.permitted = permitted
        self.connection: Connection | None = None

    async def __aenter__(self) -> Response:
        try:
            return await self._client.begin(self)
        except BaseException:
            if self.connection is not None:
                self.connection.drop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.connection is not None, "it has been entered"
        self._client.end(self.connection)
