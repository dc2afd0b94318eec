"""Connections: made, kept for the next request, dropped.

Rules: a connection goes to an address that the resolver has found permitted, and to no other. What is not plainly fit
for another request is dropped, at once and without a goodbye. Few connections are kept idle: URLs of a web dataset
rarely share a host, and keep-alive to thousands of hosts once used up 20,000 descriptors in a benchmark, at a third of
the speed.

This stands in for aiohttp's connector and session: they take 150 µs of CPU more for each image, and connect twice (a
socket first, a transport then), for another 100 µs under uvloop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Sequence

from aiohttp import ClientError

from datafetch.fetch.connection import Connection, Endpoint, ResponseProtocol
from datafetch.fetch.dns.resolver import Resolver
from datafetch.fetch.happy_eyeballs import connect_to_first
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.request_writer import connect_request
from datafetch.fetch.response_parser import ProtocolError
from datafetch.model.outcome import HTTP_OK, Permission

_MAX_IDLE = 128  # enough for the few hosts that a manifest does ask again and again
_MAX_IDLE_S = 5.0

_ALLOWED_NET = frozenset({Permission.ALLOW_NET})


class NoConnectionError(OSError):
    """The host refused, or there is no way to it."""


class ConnectTimeoutError(NoConnectionError):
    """There was no connection in time."""


class TlsError(OSError):
    """The host did not prove that it is who its name says, or does not speak TLS as it is spoken today."""


class Connections:
    """Makes connections, and keeps a few of those that are free.

    Args:
        policy: How long making one may take.
        resolver: Names to addresses, to permitted ones alone.
        tls: The context that all share.
        lax_tls: The context for those that refuse that one or are refused by it; None gives them up.
        proxies: Where proxies lie; None when there are none.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        resolver: Resolver,
        *,
        tls: ssl.SSLContext,
        lax_tls: ssl.SSLContext | None,
        proxies: Proxies | None,
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._tls = tls
        self._lax_tls = lax_tls
        self._proxies = proxies
        self._loop = asyncio.get_running_loop()
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # since when; the oldest stands first
        self._idle_at: dict[Endpoint, list[Connection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take_idle(self, endpoint: Endpoint) -> Connection | None:
        """A kept connection to this endpoint, the one used last, if there is one."""
        while kept := self._idle_at.get(endpoint):
            connection = kept[-1]
            self._remove_idle(connection)
            # What came by now belongs to no request, and the loop may be too busy to have noticed.
            if connection.protocol.is_reusable and not connection.has_unread:
                return connection
            connection.drop()
        return None

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request, if it is fit for one."""
        if self._is_closed or not connection.protocol.is_reusable:
            connection.drop()
            return
        self._idle[connection] = self._loop.time()
        self._idle_at.setdefault(connection.endpoint, []).append(connection)
        if len(self._idle) > _MAX_IDLE:
            self._drop_idle(next(iter(self._idle)))
        if self._timer is None:
            self._timer = self._loop.call_later(_MAX_IDLE_S, self._drop_expired)

    def drop_idle(self) -> None:
        """End all connections that are idle."""
        for connection in list(self._idle):
            self._drop_idle(connection)

    async def close(self) -> None:
        """End all connections that are idle, and wait until they are closed."""
        self._is_closed = True
        closing = [connection.protocol.closed for connection in self._idle]
        self.drop_idle()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*closing)

    async def connect(self, endpoint: Endpoint, permitted: set[Permission] | None = None) -> Connection:
        """Make a new connection, TLS included.

        Args:
            endpoint: Where to.
            permitted: Gets the permissions that were used, where there is no connection.

        Raises:
            ConnectTimeoutError: Not in time.
            NoConnectionError: Refused, unreachable, or the proxy won't. It bears the system's ``errno``.
            TlsError: The handshake failed.
            BlockedAddressError: The host is at an address that may not be connected to.
            NameNotFoundError: The host has no address.
            NameServerError: No name server answered.
        """
        permitted = set() if permitted is None else permitted
        try:
            return await self._connect(endpoint, self._tls, permitted)
        except (TlsError, NoConnectionError) as error:
            if self._lax_tls is None or not endpoint.is_tls or not _failed_in_tls(error):
                raise
        # Only now: it is by this that a ledger can tell which images the permission was needed for.
        try:
            connection = await self._connect(endpoint, self._lax_tls, permitted)
        except BaseException:
            permitted.add(Permission.INSECURE)
            raise
        connection.permitted |= {Permission.INSECURE}
        return connection

    async def _connect(self, endpoint: Endpoint, tls: ssl.SSLContext, permitted: set[Permission]) -> Connection:
        addresses = await self._addresses(endpoint)
        try:
            return await self._connect_to(addresses, endpoint, tls)
        except BaseException:  # the deadline of the attempt, too, is one that the host has missed
            if endpoint.proxy is None and any(map(self._resolver.is_exception, addresses)):
                permitted.add(Permission.ALLOW_NET)
            raise

    async def _connect_to(self, addresses: Sequence[str], endpoint: Endpoint, tls: ssl.SSLContext) -> Connection:
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s):
                if endpoint.proxy is None:
                    return await self._open(endpoint, addresses, endpoint.port, tls if endpoint.is_tls else None)
                connection = await self._open(endpoint, addresses, endpoint.proxy.port or 0, None)
                return await self._tunnel(connection, tls) if endpoint.is_tls else connection
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {self._policy.connect_timeout_s:g} s") from error
        except (ClientError, ProtocolError) as error:
            raise NoConnectionError(f"the proxy: {error}") from error
        except ssl.SSLError as error:
            raise TlsError(f"{type(error).__name__}: {error}") from error
        except (OSError, RuntimeError, UnicodeError) as error:  # uvloop says some of it with a RuntimeError
            failure = NoConnectionError(str(error) or type(error).__name__)
            failure.errno = getattr(error, "errno", None)
            raise failure from error

    async def _addresses(self, endpoint: Endpoint) -> Sequence[str]:
        if endpoint.proxy is not None:
            assert self._proxies is not None, "they named the proxy"
            return self._proxies.addresses[endpoint.proxy]
        return await self._resolver.addresses(endpoint.host)

    async def _open(
        self, endpoint: Endpoint, addresses: Sequence[str], port: int, tls: ssl.SSLContext | None
    ) -> Connection:
        if len(addresses) == 1:
            connection = await self._open_plain(endpoint, addresses[0], port)
        else:
            connection = await connect_to_first(
                addresses, lambda address: self._open_plain(endpoint, address, port), Connection.drop
            )
        return connection if tls is None else await self._start_tls(connection, tls)

    async def _open_plain(self, endpoint: Endpoint, address: str, port: int) -> Connection:
        transport, protocol = await self._loop.create_connection(self._new_protocol, address, port)
        # A proxy's own address needs no permission.
        is_exception = endpoint.proxy is None and self._resolver.is_exception(address)
        return Connection(endpoint, transport, protocol, _ALLOWED_NET if is_exception else frozenset())

    async def _start_tls(self, connection: Connection, tls: ssl.SSLContext) -> Connection:
        """Speak TLS on a connection from now on."""
        try:
            transport = await self._loop.start_tls(
                connection.transport, connection.protocol, tls, server_hostname=_tls_name(connection.endpoint)
            )
        except BaseException:
            connection.drop()
            raise
        if transport is None or transport.is_closing():  # uvloop reports no error when the server closes meanwhile
            raise ConnectionResetError("the connection was closed in the TLS handshake")
        connection.protocol.use_tls(transport)
        return Connection(connection.endpoint, transport, connection.protocol, connection.permitted)

    async def _tunnel(self, connection: Connection, tls: ssl.SSLContext) -> Connection:
        """Have the proxy connect on to the host, and speak TLS with that."""
        endpoint = connection.endpoint
        assert endpoint.proxy is not None, "there is a proxy to ask"
        try:
            connection.protocol.expect_response(self._policy.stall_timeout_s)
            connection.transport.write(connect_request(endpoint.host, endpoint.port, endpoint.proxy))
            _require_tunnel((await connection.protocol.read_head()).status)
        except BaseException:
            connection.drop()
            raise
        connection.protocol.forget_response()
        return await self._start_tls(connection, tls)

    def _new_protocol(self) -> ResponseProtocol:
        return ResponseProtocol(self._loop)

    def _remove_idle(self, connection: Connection) -> None:
        del self._idle[connection]
        kept = self._idle_at[connection.endpoint]
        kept.remove(connection)
        if not kept:
            del self._idle_at[connection.endpoint]

    def _drop_idle(self, connection: Connection) -> None:
        self._remove_idle(connection)
        connection.drop()

    def _drop_expired(self) -> None:
        self._timer = None
        oldest_s = self._loop.time() - _MAX_IDLE_S
        while self._idle:
            connection, since_s = next(iter(self._idle.items()))
            if since_s > oldest_s:
                self._timer = self._loop.call_at(since_s + _MAX_IDLE_S, self._drop_expired)
                break
            self._drop_idle(connection)


def _failed_in_tls(error: TlsError | NoConnectionError) -> bool:
    """Whether a connection failed in the TLS handshake; some servers close it when they dislike the ClientHello."""
    return isinstance(error, TlsError) or isinstance(error.__cause__, ConnectionResetError | ConnectionAbortedError)


def _require_tunnel(status: int) -> None:
    if status != HTTP_OK:
        raise ConnectionRefusedError(f"the proxy says {status}")


def _tls_name(endpoint: Endpoint) -> str:
    return endpoint.host.removesuffix(".")  # RFC 6066, 3
