"""aiohttp's connector with a bound on idle connections, and no polite goodbyes.

URLs of a web dataset rarely share a host: keeping every connection alive for a next request that never comes once
used up 20,000 descriptors in a benchmark, and throughput fell to a third.
"""

from __future__ import annotations

import ssl

from aiohttp import SocketFactoryType, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

_MAX_IDLE = 128  # enough for the few hosts that a manifest does ask again and again
_KEEPALIVE_TIMEOUT_S = 5.0
_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, which Python has a name for from 3.12 on


class BoundedConnector(TCPConnector):
    """No limit of its own on open connections (the ``Limiter`` has it), and at most 128 idle ones."""

    def __init__(
        self, resolver: AbstractResolver, socket_factory: SocketFactoryType, tls_context: ssl.SSLContext
    ) -> None:
        super().__init__(
            # aiohttp's timeouts count the wait for a place in its pool, so nobody waits there.
            limit=0,
            limit_per_host=0,
            resolver=resolver,
            use_dns_cache=False,  # the resolver has its own, which knows how long an answer holds
            socket_factory=socket_factory,
            ssl=tls_context,
            keepalive_timeout=_KEEPALIVE_TIMEOUT_S,
        )

    def drop_idle(self) -> None:
        """Close the connections that nobody uses now."""
        for connections in self._conns.values():
            for protocol, _ in connections:
                protocol.abort()
        self._conns.clear()

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        # aiohttp has no public bound on idle connections (aio-libs/aiohttp 3.14); this is where one becomes idle.
        idle = sum(map(len, self._conns.values()))
        if should_close or protocol.should_close or idle >= _MAX_IDLE:
            # Closed politely, a TLS connection whose server still sends is read on for 30 s by uvloop
            # (MagicStack/uvloop#471), and with it the body that was too large.
            protocol.abort()
            should_close = True
        super()._release(key, protocol, should_close=should_close)


def tls_context(*, verify: bool) -> ssl.SSLContext:
    """The context that all connections share. Reads the system's certificates, so not for the event loop.

    Args:
        verify: Whether a server must prove that it is who its name says.
    """
    context = ssl.create_default_context()
    # Servers without secure renegotiation (RFC 5746) are old and not rare; browsers still talk to them. What it guards
    # against is a client's request being prefixed by somebody else's; ours carry no secret.
    context.options |= _LEGACY_SERVER_CONNECT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
