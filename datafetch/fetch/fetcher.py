"""The request itself: redirects, deadline, size cap, retry.

Rules: a place among the open requests is taken before the clock starts and given back before a retry waits, so no host
is blamed for our queue. Every way to stop early aborts the socket. Faults of the web come back as ``Failure``; what is
raised is ours.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import TracebackType
from typing import Self, TypeAlias

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)
from yarl import URL

from datafetch.fetch.address import AddressGuard
from datafetch.fetch.classify import WEB_FAULTS, classify
from datafetch.fetch.connector import BoundedConnector
from datafetch.fetch.limiter import AUTO_CONNECTIONS, Limiter, affordable_connections
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.resolver import Resolver
from datafetch.model import HTTP_OK, Body, Failure, FailureKind, Fetched

PROJECT_URL = "https://github.com/datafetch/datafetch"
_VERSION = version("datafetch")  # read once, while nothing is waiting for a loop: it opens a file

_READ_BUFFER_BYTES = 256 * 1024  # a photograph in one or two reads; aiohttp's 64 KiB pauses the socket too often
_MAX_HEADER_BYTES = 64 * 1024  # security policies and cookies of real sites outgrow aiohttp's 8 KiB
_MAX_BACKOFF_S = 30.0
_MS_PER_S = 1000.0


Admission: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """A snapshot of a fetcher.

    Attributes:
        requests: Requests sent so far, retries included, redirects not.
        fetched_bytes: Body bytes received so far, decompressed.
        open: Requests open now.
        waiting: Requests that wait for a place.
    """

    requests: int
    fetched_bytes: int
    open: int
    waiting: int


class Fetcher:
    """url → body or Failure, from any number of tasks of one event loop.

    Use it as ``async with Fetcher(policy) as fetch: body = await fetch(url)``.

    Args:
        policy: What the operator may set.
        admit: Awaited before each request, when its turn has come and its clock has not started: where a caller that
            has no room for another body holds it back.
    """

    def __init__(self, policy: FetchPolicy | None = None, *, admit: Admission | None = None) -> None:
        self.policy = policy or FetchPolicy()
        self._admit = admit
        self._guard = AddressGuard(self.policy.networks())
        self.connections = affordable_connections(self.policy.connections or AUTO_CONNECTIONS)
        self._limiter = Limiter(self.connections)
        self._stop = stop_after_attempt(self.policy.retries + 1)
        self._wait = wait_exponential(multiplier=self.policy.backoff_s, max=_MAX_BACKOFF_S) + wait_random(
            0, self.policy.backoff_s
        )
        self._session: aiohttp.ClientSession | None = None
        self._resources = AsyncExitStack()
        self._requests = 0
        self._fetched_bytes = 0

    async def __aenter__(self) -> Self:
        resolver = Resolver(self._guard, self.policy.nameservers)
        self._resources.push_async_callback(resolver.close)
        session = aiohttp.ClientSession(
            connector=BoundedConnector(resolver, self._socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": user_agent(self.policy.contact),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
            # aiohttp's total and connect count its queue and the resolver; the deadline below is ours.
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=self.policy.connect_timeout_s, sock_read=None
            ),
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            trust_env=False,
        )
        self._session = await self._resources.enter_async_context(session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        await self._resources.aclose()

    def statistics(self) -> FetchStatistics:
        """How it stands now."""
        return FetchStatistics(self._requests, self._fetched_bytes, self._limiter.open, self._limiter.waiting)

    async def __call__(self, url: str) -> Fetched:
        """Fetch one image.

        Args:
            url: As published.

        Returns:
            The body, at most ``max_body_bytes`` bytes and at least one, or the failure of the last attempt. Both
            carry the number of attempts.

        Raises:
            ResourceError: This machine ran out of descriptors or memory for sockets.
        """
        # One AsyncRetrying a call: a shared one mixes up concurrent calls (jd/tenacity#93).
        retrying = AsyncRetrying(
            stop=self._stop,
            wait=self._wait,
            retry=retry_if_result(_may_pass),
            retry_error_callback=_last_result,
        )
        fetched: Fetched = await retrying(self._attempt, url)
        return replace(fetched, attempts=int(retrying.statistics["attempt_number"]))

    async def _attempt(self, url: str) -> Fetched:
        async with self._limiter:
            # With the place in hand, for whoever passed while waiting for one would still bring a body.
            if self._admit is not None:
                await self._admit()
            started_s = time.perf_counter()
            try:
                async with asyncio.timeout(self.policy.timeout_s):
                    fetched = await self._request(url)
            except WEB_FAULTS as error:
                fetched = classify(error)
        return replace(fetched, fetch_ms=(time.perf_counter() - started_s) * _MS_PER_S)

    async def _request(self, url: str) -> Fetched:
        session = self._session
        assert session is not None, "use the fetcher inside 'async with'"
        address = URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            return Failure(FailureKind.BAD_URL, "not an http or https URL with a host")
        self._requests += 1
        async with session.get(address, max_redirects=self.policy.max_redirects) as response:
            try:
                return await self._receive(response)
            except BaseException:
                _abort(response)
                raise

    async def _receive(self, response: aiohttp.ClientResponse) -> Fetched:
        final_url = str(response.url)
        if response.status != HTTP_OK:
            _abort(response)
            return Failure(FailureKind.HTTP_STATUS, f"HTTP {response.status}", response.status, final_url=final_url)
        if (response.content_length or 0) > self.policy.max_body_bytes:
            return self._too_large(response, f"Content-Length is {response.content_length} bytes")
        chunks: list[bytes] = []
        received_bytes = 0
        async for chunk in response.content.iter_any():
            received_bytes += len(chunk)
            self._fetched_bytes += len(chunk)
            if received_bytes > self.policy.max_body_bytes:
                return self._too_large(response, f"over {self.policy.max_body_bytes} bytes")
            chunks.append(chunk)
        if not received_bytes:
            return Failure(FailureKind.EMPTY, "200 without a body", HTTP_OK, final_url=final_url)
        return Body(b"".join(chunks), final_url)

    def _too_large(self, response: aiohttp.ClientResponse, detail: str) -> Failure:
        _abort(response)
        return Failure(FailureKind.TOO_LARGE, detail, response.status, final_url=str(response.url))

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make the socket for a connection: the last look at where it really goes, literals included."""
        family, kind, protocol, _, endpoint = address
        self._guard.check(str(endpoint[0]))
        return socket.socket(family, kind, protocol)


def user_agent(contact: str = "") -> str:
    """The User-Agent header: who we are, where to read about us, whom to ask."""
    return f"datafetch/{_VERSION} (+{PROJECT_URL}{'; ' + contact if contact else ''})"


def _abort(response: aiohttp.ClientResponse) -> None:
    """Drop the connection at once; under uvloop a TLS one closed politely reads on for 30 s (uvloop#471)."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _may_pass(fetched: Fetched) -> bool:
    return isinstance(fetched, Failure) and fetched.may_pass


def _last_result(state: RetryCallState) -> Fetched:
    assert state.outcome is not None, "tenacity calls this after an attempt"
    fetched: Fetched = state.outcome.result()
    return fetched
