"""Connections: made, kept for the next request, dropped.

Rules: a connection goes to an address that the resolver has found permitted, and to no other. What is not plainly fit
for another request is dropped, at once and without a goodbye. Few connections are kept idle: URLs of a web dataset
rarely share a host, and keep-alive to thousands of hosts once used up 20,000 descriptors in a benchmark, at a third of
the speed.

This stands in for aiohttp's connector and session, whose parser and flow control it uses: they take 150 µs of CPU more
for each image, and connect twice (a socket first, a transport then), for another 100 µs under uvloop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType
from aiohttp import ClientError, ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import RawResponseMessage
from yarl import URL

from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.requests import connect_request
from datafetch.fetch.resolver import Resolver
from datafetch.model import HTTP_OK

_MAX_IDLE = 128  # enough for the few hosts that a manifest does ask again and again
_MAX_IDLE_S = 5.0
_NEXT_ADDRESS_DELAY_S = 0.25  # RFC 8305, 8
_READ_BUFFER_BYTES = 128 * 1024  # reading pauses at twice that: after most photographs, and before a thousand add up
_MAX_HEADER_BYTES = 64 * 1024  # security policies and cookies of real sites outgrow aiohttp's 8 KiB
_MAX_HEADERS = 512
_MAX_HEAD_BYTES = 256 * 1024  # and what one read brings on top of it
LAST_INTERIM_STATUS = 199


class NoConnectionError(OSError):
    """The host refused, or there is no way to it."""


class ConnectTimeoutError(NoConnectionError):
    """There was no connection in time."""


class TlsError(OSError):
    """The host did not prove that it is who its name says, or does not speak TLS as it is spoken today."""


class ProtocolError(ValueError):
    """What came is no answer to what was asked."""


class Protocol(ResponseHandler):
    """aiohttp's parser of responses on a connection, with a bound on all of a response's headers together."""

    _head_bytes = 0
    _is_head_over = False

    def data_received(self, data: bytes) -> None:
        """Take what came; aiohttp bounds each header and their number, which lets 32 MiB through."""
        super().data_received(data)
        if self._is_head_over:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES and self.exception() is None:
            self.set_exception(ProtocolError(f"over {_MAX_HEAD_BYTES} bytes of headers"))
            self.abort()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a response whose headers are over."""
        self._is_head_over = data[0].code > LAST_INTERIM_STATUS
        super().feed_data(data, size)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; aiohttp would set TCP_NODELAY here, which both loops have done."""
        self.transport = transport  # type: ignore[assignment]

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Also tell whoever reads the body; aiohttp 3.14 leaves them waiting when a chunk is malformed."""
        payload = self._payload
        super().set_exception(exc, *cause)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            is_known = isinstance(exc, ClientError | TimeoutError)
            payload.set_exception(exc if is_known else ClientPayloadError(f"{type(exc).__name__}: {exc}"))

    def expect_response(self, stall_timeout_s: float) -> None:
        """Get ready for the response to a request that has just been sent."""
        self._head_bytes, self._is_head_over = 0, False
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,  # see coding.py
            read_timeout=stall_timeout_s,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )
        self.start_timeout()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads: two requests with the same one may share it."""

    host: str
    port: int
    is_tls: bool
    proxy: URL | None = None

    @classmethod
    def of(cls, url: URL, proxy: URL | None) -> Endpoint:
        """The endpoint for a URL."""
        return cls(url.raw_host or "", url.port or 0, url.scheme == "https", proxy)


@dataclass(slots=True, eq=False)
class Connection:
    """A connection and the parser of what comes through it."""

    endpoint: Endpoint
    transport: asyncio.Transport
    protocol: Protocol

    @property
    def is_fit(self) -> bool:
        """Whether another request may be sent: the last response is over, and nobody has said anything since."""
        return self.protocol.is_connected() and not self.protocol.should_close

    def drop(self) -> None:
        """End it at once. Closed politely, a TLS connection is read on for 30 s by uvloop (MagicStack/uvloop#471)."""
        self.transport.abort()


class Connections:
    """Makes connections, and keeps a few of those that are free.

    Args:
        policy: How long making one may take.
        resolver: Names to addresses, to permitted ones alone.
        tls: The context that all share.
        proxies: Where proxies lie; None when there are none.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        resolver: Resolver,
        *,
        tls: ssl.SSLContext,
        proxies: Proxies | None,
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._tls = tls
        self._proxies = proxies
        self._loop = asyncio.get_running_loop()
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # since when; the oldest stands first
        self._idle_at: dict[Endpoint, list[Connection]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take_idle(self, endpoint: Endpoint) -> Connection | None:
        """A kept connection to this endpoint, the one used last, if there is one."""
        while kept := self._idle_at.get(endpoint):
            connection = kept[-1]
            self._forget(connection)
            if connection.is_fit:
                return connection
            connection.drop()
        return None

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request, if it is fit for one."""
        if self._is_closed or not connection.is_fit:
            connection.drop()
            return
        self._idle[connection] = self._loop.time()
        self._idle_at.setdefault(connection.endpoint, []).append(connection)
        if len(self._idle) > _MAX_IDLE:
            self._drop_idle(next(iter(self._idle)))
        if self._alarm is None:
            self._alarm = self._loop.call_later(_MAX_IDLE_S, self._drop_old)

    def drop_idle(self) -> None:
        """End all connections that nobody uses now."""
        for connection in list(self._idle):
            self._drop_idle(connection)

    async def close(self) -> None:
        """End all connections that nobody uses now, and see them closed."""
        self._is_closed = True
        closing = [connection.protocol.closed for connection in self._idle]
        self.drop_idle()
        if self._alarm is not None:
            self._alarm.cancel()
        await asyncio.gather(*(closed for closed in closing if closed is not None), return_exceptions=True)

    async def connect(self, endpoint: Endpoint) -> Connection:
        """Make a new connection, TLS included.

        Raises:
            ConnectTimeoutError: Not in time.
            NoConnectionError: Refused, unreachable, or the proxy won't. It bears the system's ``errno``.
            TlsError: The handshake failed.
            BlockedAddressError: The host is at an address that may not be connected to.
            NameNotFoundError: The host has no address.
            NameServerError: Nobody knows.
        """
        addresses = await self._addresses(endpoint)
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s):
                if endpoint.proxy is None:
                    return await self._open(endpoint, addresses, endpoint.port, self._tls if endpoint.is_tls else None)
                connection = await self._open(endpoint, addresses, endpoint.proxy.port or 0, None)
                return await self._tunnel(connection) if endpoint.is_tls else connection
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {self._policy.connect_timeout_s:g} s") from error
        except ClientError as error:
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
        name = _tls_name(endpoint) if tls else None
        if len(addresses) == 1:
            transport, protocol = await self._loop.create_connection(
                self._new_protocol, addresses[0], port, ssl=tls, server_hostname=name
            )
        else:
            chosen = await aiohappyeyeballs.start_connection(
                [_address_info(address, port) for address in addresses],
                happy_eyeballs_delay=_NEXT_ADDRESS_DELAY_S,
                interleave=1,
                loop=self._loop,
            )
            transport, protocol = await self._loop.create_connection(
                self._new_protocol, sock=chosen, ssl=tls, server_hostname=name
            )
        return Connection(endpoint, transport, protocol)

    async def _tunnel(self, connection: Connection) -> Connection:
        """Have the proxy connect on to the host, and speak TLS with that."""
        endpoint = connection.endpoint
        assert endpoint.proxy is not None, "there is a proxy to ask"
        try:
            connection.transport.write(connect_request(endpoint.host, endpoint.port, endpoint.proxy))
            connection.protocol.expect_response(self._policy.stall_timeout_s)
            _check_tunnel((await connection.protocol.read())[0].code)
            protocol = self._new_protocol()
            transport = await self._loop.start_tls(
                connection.transport, protocol, self._tls, server_hostname=_tls_name(endpoint)
            )
        except BaseException:
            connection.drop()
            raise
        assert transport is not None, "an open transport was given"
        protocol.connection_made(transport)
        return Connection(endpoint, transport, protocol)

    def _new_protocol(self) -> Protocol:
        return Protocol(self._loop)

    def _forget(self, connection: Connection) -> None:
        del self._idle[connection]
        kept = self._idle_at[connection.endpoint]
        kept.remove(connection)
        if not kept:
            del self._idle_at[connection.endpoint]

    def _drop_idle(self, connection: Connection) -> None:
        self._forget(connection)
        connection.drop()

    def _drop_old(self) -> None:
        self._alarm = None
        oldest_s = self._loop.time() - _MAX_IDLE_S
        while self._idle:
            connection, since_s = next(iter(self._idle.items()))
            if since_s > oldest_s:
                self._alarm = self._loop.call_at(since_s + _MAX_IDLE_S, self._drop_old)
                break
            self._drop_idle(connection)


def _check_tunnel(status: int) -> None:
    if status != HTTP_OK:
        raise ConnectionRefusedError(f"the proxy says {status}")


def _tls_name(endpoint: Endpoint) -> str:
    return endpoint.host.removesuffix(".")  # RFC 6066, 3


def _address_info(address: str, port: int) -> AddrInfoType:
    is_v6 = ":" in address
    endpoint = (address, port, 0, 0) if is_v6 else (address, port)
    return socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", endpoint
