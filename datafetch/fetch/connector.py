"""aiohttp's connector with a bound on idle connections.

URLs of a web dataset rarely share a host: keeping every connection alive for a next request that never comes once
used up 20,000 descriptors in a benchmark, and throughput fell to a third.
"""

from __future__ import annotations

from aiohttp import SocketFactoryType, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

_MAX_IDLE = 128  # enough for the few hosts that a manifest does ask again and again
_KEEPALIVE_TIMEOUT_S = 5.0
_DNS_CACHE_TTL_S = 300
_DNS_CACHE_NAMES = 10_000  # about 10 MB


class BoundedConnector(TCPConnector):
    """No limit of its own on open connections (the ``Limiter`` has it), and at most 128 idle ones."""

    def __init__(self, resolver: AbstractResolver, socket_factory: SocketFactoryType) -> None:
        super().__init__(
            # aiohttp's timeouts count the wait for a place in its pool, so nobody waits there.
            limit=0,
            limit_per_host=0,
            resolver=resolver,
            socket_factory=socket_factory,
            keepalive_timeout=_KEEPALIVE_TIMEOUT_S,
            use_dns_cache=True,
            ttl_dns_cache=_DNS_CACHE_TTL_S,
            dns_cache_max_size=_DNS_CACHE_NAMES,
        )

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        # aiohttp has no public bound on idle connections (aio-libs/aiohttp 3.13, 3.14); this is where one becomes idle.
        idle = sum(map(len, self._conns.values()))
        super()._release(key, protocol, should_close=should_close or idle >= _MAX_IDLE)
