"""A pool of connections: makes them, keeps a few for the next request, and drops the rest.

Rules: a connection is made only to an address that the resolver or the address guard has permitted. A connection that
is not certain to be reusable is dropped, abruptly. Few connections are kept idle: the URLs of a web dataset rarely
share a host, and keep-alive to thousands of hosts used up 20,000 descriptors in a benchmark, at a third of the speed.

This replaces aiohttp's connector and session, which take 150 µs more CPU for each image and connect in two steps (first
a socket, then a transport), for another 100 µs under uvloop.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from http import HTTPStatus

from datafetch.fetch.connection import Connection, ConnectionLostError, Endpoint, ResponseProtocol
from datafetch.fetch.dns.resolver import Resolver
from datafetch.fetch.happy_eyeballs import connect_to_first
from datafetch.fetch.means import LATELY_S
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.request_writer import connect_request
from datafetch.fetch.response_head import ProtocolError
from datafetch.fetch.timers import TimeLimit, Timers
from datafetch.fetch.tls_connection import READ_BYTES, TlsConnection
from datafetch.fetch.tls_sessions import TlsSessions
from datafetch.model.outcome import Permission

_MAX_IDLE = 128  # enough for the few hosts that a manifest has many images of
_MAX_IDLE_S = 5.0

# What OpenSSL says of a name and of its own code, which would tell apart failures of one reason.
_TLS_SPECIFICS = re.compile(r" for '[^']*'| \(_ssl\.c:\d+\)")
_ALLOWED_NET = frozenset({Permission.ALLOW_NET})


class NoConnectionError(OSError):
    """The host refused the connection, or can't be reached."""


class ConnectTimeoutError(NoConnectionError):
    """The connection was not established in time."""


class ProxyUnreachableError(NoConnectionError):
    """There is no connection to the proxy, which says nothing about the host."""


class ProxyLoginError(NoConnectionError):
    """The proxy asks for a login, or does not accept the one that it was given, which says nothing about the host."""


class _SessionError(OSError):
    """The TLS handshake failed in which an earlier session was to be resumed, which says nothing about the server."""


class TlsError(OSError):
    """The TLS handshake failed: the certificate is not valid for the host, or the host's TLS is outdated."""


class Connections:
    """Makes connections, and keeps a few idle ones.

    Args:
        policy: Says how long making a connection may take.
        resolver: Finds the permitted addresses of hosts.
        timers: Those of the event loop.
        tls: The TLS context for all connections.
        lax_tls: A second context to try where a handshake fails with the first; None to fail.
        proxies: Has the addresses of proxies; None if none are used.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        resolver: Resolver,
        timers: Timers,
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
        self._timers = timers
        self._loop = timers.loop
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # since when, the longest idle one first
        self._idle_at: dict[Endpoint, list[Connection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._connected_at_s = -math.inf
        self._sessions = TlsSessions()
        self._tls_buffer = memoryview(bytearray(READ_BYTES))

    @property
    def has_connected_lately(self) -> bool:
        """Whether a connection was made within the last second, wherever to."""
        return self._loop.time() - self._connected_at_s < LATELY_S

    def take_idle(self, endpoint: Endpoint) -> Connection | None:
        """Take the most recently used idle connection to an endpoint, if there is one."""
        while kept := self._idle_at.get(endpoint):
            connection = kept[-1]
            self._remove_idle(connection)
            # Whatever has arrived belongs to no request, and the event loop may not have got round to reading it.
            if connection.protocol.is_reusable and not connection.has_unread:
                return connection
            connection.drop()
        return None

    def release(self, connection: Connection) -> None:
        """Take back a connection after a response, and keep it if it is reusable."""
        if self._is_closed or not connection.protocol.is_reusable:
            connection.drop()
            return
        connection.protocol.forget_response()  # an idle connection must not keep a body, which no budget counts
        self._idle[connection] = self._loop.time()
        self._idle_at.setdefault(connection.endpoint, []).append(connection)
        if len(self._idle) > _MAX_IDLE:
            self._drop_idle(next(iter(self._idle)))
        if self._timer is None:
            self._timer = self._loop.call_later(_MAX_IDLE_S, self._drop_expired)

    def drop_idle(self) -> None:
        """Close all idle connections."""
        for connection in list(self._idle):
            self._drop_idle(connection)

    async def close(self) -> None:
        """Close all idle connections, and wait until that is done."""
        self._is_closed = True
        closing = [connection.protocol.wait_closed() for connection in self._idle]
        self.drop_idle()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*closing)

    async def connect(self, endpoint: Endpoint, permitted: set[Permission] | None = None) -> Connection:
        """Make a new connection, TLS included.

        Args:
            endpoint: Where to connect to.
            permitted: The permissions that the attempt used are added here if it fails; if it succeeds, the connection
                has them.

        Raises:
            ConnectTimeoutError: The connection was not established in time.
            ProxyUnreachableError: There is no connection to the proxy.
            NoConnectionError: It was refused, the host is unreachable, or the proxy declined. Has the system's
                ``errno``, if there is one.
            TlsError: The handshake failed.
            BlockedAddressError: The host's addresses are not public and not allowed.
            NameNotFoundError: The host has no address.
            NameServerError: No name server answered.
        """
        permitted = set() if permitted is None else permitted
        try:
            try:
                return await self._connect(endpoint, self._tls, permitted)
            except _SessionError:  # from now on the server is offered none
                return await self._connect(endpoint, self._tls, permitted)
        except (TlsError, NoConnectionError) as error:
            if self._lax_tls is None or not endpoint.is_tls or not _failed_in_tls(error):
                raise
        # Only after the verified attempt has failed, so that the ledger marks only images that needed the permission.
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
        except (
            BaseException
        ):  # also when cancelled by the deadline of the attempt: the permission was used all the same
            if endpoint.proxy is None and any(map(self._resolver.is_exception, addresses)):
                permitted.add(Permission.ALLOW_NET)
            raise

    async def _connect_to(self, addresses: Sequence[str], endpoint: Endpoint, tls: ssl.SSLContext) -> Connection:
        until_s = self._loop.time() + self._policy.connect_timeout_s
        to_proxy = None if endpoint.proxy is None else await self._open_to_proxy(addresses, endpoint, until_s)
        try:
            with TimeLimit(self._timers, until_s):
                if to_proxy is None:
                    return await self._open(endpoint, addresses, endpoint.port, tls if endpoint.is_tls else None)
                return await self._tunnel(to_proxy, tls) if endpoint.is_tls else to_proxy
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {self._policy.connect_timeout_s:g} s") from error
        except (ConnectionLostError, ProtocolError) as error:
            raise NoConnectionError(f"proxy: {error}") from error
        except (ProxyLoginError, _SessionError):
            raise
        except ssl.SSLError as error:
            raise TlsError(f"{type(error).__name__}: {_TLS_SPECIFICS.sub('', str(error))}") from error
        except (OSError, RuntimeError, UnicodeError) as error:  # uvloop raises RuntimeError in some cases
            failure = NoConnectionError(_describe(error))
            failure.errno = getattr(error, "errno", None)
            raise failure from error

    async def _open_to_proxy(self, addresses: Sequence[str], endpoint: Endpoint, until_s: float) -> Connection:
        assert endpoint.proxy is not None, "the caller has looked"
        assert self._proxies is not None, "the endpoint's proxy came from there"
        try:
            with TimeLimit(self._timers, until_s):
                connection = await self._open(endpoint, addresses, endpoint.proxy.port, None)
        except (OSError, RuntimeError) as error:
            failure = ProxyUnreachableError(f"no connection to the proxy: {str(error) or type(error).__name__}")
            failure.errno = getattr(error, "errno", None)
            raise failure from error
        self._proxies.means[endpoint.proxy].worked()
        return connection

    async def _addresses(self, endpoint: Endpoint) -> Sequence[str]:
        if endpoint.proxy is not None:
            assert self._proxies is not None, "the endpoint's proxy came from there"
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
        self._connected_at_s = self._loop.time()
        # A proxy's own address needs no permission.
        is_exception = endpoint.proxy is None and self._resolver.is_exception(address)
        return Connection(endpoint, transport, protocol, _ALLOWED_NET if is_exception else frozenset())

    async def _start_tls(self, connection: Connection, tls: ssl.SSLContext) -> Connection:
        """Make the TLS handshake on a connection."""
        server = self._sessions.of(connection.endpoint) if tls is self._tls else None
        tls_connection = None
        try:
            name = _tls_name(connection.endpoint)
            tls_connection = TlsConnection(connection.protocol, tls, name, buffer=self._tls_buffer, server=server)
            tls_connection.start(connection.transport)
            await tls_connection.secured
        except BaseException as error:
            connection.drop()
            if server is not None and tls_connection is not None and tls_connection.offers_session:
                server.refuse()  # also where the handshake took too long
                if isinstance(error, OSError):
                    raise _SessionError(str(error)) from error
            raise
        transport = tls_connection.transport()
        if transport.is_closing():  # the server has closed it since
            raise ConnectionResetError("the connection was closed in the TLS handshake")
        connection.protocol.use_tls(transport)
        return Connection(connection.endpoint, transport, connection.protocol, connection.permitted)

    async def _tunnel(self, connection: Connection, tls: ssl.SSLContext) -> Connection:
        """Make the proxy connect to the host, and make the TLS handshake with the host."""
        endpoint = connection.endpoint
        assert endpoint.proxy is not None, "a tunnel goes through a proxy"
        try:
            connection.protocol.expect_response(self._policy.silence_s)
            connection.transport.write(connect_request(endpoint.host, endpoint.port, endpoint.proxy))
            _require_tunnel((await connection.protocol.read_head()).status)
        except BaseException:
            connection.drop()
            raise
        connection.protocol.forget_response()
        return await self._start_tls(connection, tls)

    def _new_protocol(self) -> ResponseProtocol:
        return ResponseProtocol(self._timers)

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


def _describe(error: Exception) -> str:
    """Say why there is no connection, without the address that asyncio adds: equal reasons must be equal texts."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _failed_in_tls(error: TlsError | NoConnectionError) -> bool:
    """Whether it was the TLS handshake that failed; some servers just close the connection on a ClientHello."""
    return isinstance(error, TlsError) or isinstance(error.__cause__, ConnectionResetError | ConnectionAbortedError)


def _require_tunnel(status: int) -> None:
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        raise ProxyLoginError(f"proxy: HTTP {status}")
    if status != HTTPStatus.OK:
        raise ConnectionRefusedError(f"proxy: HTTP {status}")


def _tls_name(endpoint: Endpoint) -> str:
    return endpoint.host.removesuffix(".")  # RFC 6066, 3
