"""One request, from its host's turn to its answer, and everything that all requests share.

Rules: a request first waits for whatever is ours or its host's (a turn, a name, a place, room for a body), and only
then does the clock run: no host is blamed for our queue, and whoever waits holds no connection. Whatever stops a
response early drops its connection (``BoundedConnector``).
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Self

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from yarl import URL

from datafetch.fetch.address import AddressGuard, is_address
from datafetch.fetch.classify import WEB_FAULTS, PressureError, classify
from datafetch.fetch.concurrency import Concurrency
from datafetch.fetch.connector import BoundedConnector, tls_context
from datafetch.fetch.headers import retry_after_s
from datafetch.fetch.hosts import Hosts, Turn
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import Allotment
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.receive import Receiver
from datafetch.fetch.resolver import Resolver
from datafetch.fetch.stopwatch import Stopwatch
from datafetch.fetch.urls import authority, join_url
from datafetch.model import FailureKind, Fetched

PROJECT_URL = "https://github.com/datafetch/datafetch"
_VERSION = version("datafetch")  # read once, while nothing is waiting for a loop: it opens a file

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSALS = frozenset({429, 503})
_HOST_FAULTS = frozenset({FailureKind.CONNECT, FailureKind.TIMEOUT})  # where nothing was answered
_READ_BUFFER_BYTES = 256 * 1024  # a photograph in one or two reads; aiohttp's 64 KiB pauses the socket too often
_MAX_HEADER_BYTES = 64 * 1024  # security policies and cookies of real sites outgrow aiohttp's 8 KiB
_MAX_PRESSURE_S = 60.0  # requests end within the deadline; when none frees a descriptor, something else holds them


class Requester:
    """Makes requests: ``async with Requester(policy) as requester: await requester.ask(url, memory, watch)``.

    Args:
        policy: What the operator may set.

    Attributes:
        requests: Requests sent so far, redirects included.
        received_bytes: Body bytes received so far, as they came.
        concurrency: How many may be open.
        limiter: The places of the open ones.
        hosts: Whose turn it is.
        resolver: Names to addresses.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self.requests = 0
        self.received_bytes = 0
        self.concurrency = Concurrency(policy.connections)
        self.limiter = Limiter(lambda: self.concurrency.connections)
        self._policy = policy
        self._receiver = Receiver(policy, self._count_bytes)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._proxies = Proxies() if self._policy.trust_env else None
        proxies = await self._proxies.addresses() if self._proxies else ()
        self._guard = AddressGuard((*self._policy.networks(), *proxies))
        self.hosts = Hosts(self._policy.per_host, self._policy.backoff_s)
        self.resolver = Resolver(self._guard, self._policy.nameservers)
        self._resources.push_async_callback(self.resolver.close)
        context = await asyncio.to_thread(tls_context, verify=not self._policy.insecure)
        self._connector = BoundedConnector(self.resolver, self._socket, context)
        self._session = await self._resources.enter_async_context(self._new_session())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    async def ask(self, url: URL, memory: Allotment, watch: Stopwatch) -> Fetched | URL:
        """Make one request, as soon as it is its turn and this machine can make it.

        Args:
            url: Of http or https.
            memory: What its body will be held against; images take their turns in the order of their allotments.
            watch: The attempt's clock; it runs while the request is under way.

        Returns:
            The body, the failure, or where the response redirects to.

        Raises:
            PressureError: There was no descriptor or no memory for a socket, for a minute.
        """
        try:
            return await self._ask_in_turn(url, memory, watch)
        except PressureError:
            retrying = AsyncRetrying(
                stop=stop_after_delay(_MAX_PRESSURE_S),
                wait=wait_random_exponential(multiplier=0.1, max=2.0),
                retry=retry_if_exception_type(PressureError),
                reraise=True,
            )
            answer: Fetched | URL = await retrying(self._ask_in_turn, url, memory, watch)
            return answer

    async def _ask_in_turn(self, url: URL, memory: Allotment, watch: Stopwatch) -> Fetched | URL:
        try:
            async with self.hosts.turn(authority(url), memory.number) as turn:
                proxy = await self._find_way(url)
                async with self.limiter:
                    # With the place in hand, for whoever passed while waiting for one would still bring a body.
                    await memory.wait_for_room()
                    return await self._exchange(url, proxy, memory, watch, turn)
        except WEB_FAULTS as error:
            failure = classify(error)
            if failure.kind is FailureKind.DNS_FAILED:
                self.concurrency.ended(is_answer=False, is_overload=True, was_full=False)
            return failure
        except PressureError:
            self.concurrency.pressed()
            self._connector.drop_idle()
            raise

    async def _find_way(self, url: URL) -> URL | None:
        """Make sure that the host may be asked and has an address; returns the proxy that leads there, if one does.

        A name that goes through a proxy is the proxy's to resolve, and to judge.
        """
        host = url.raw_host or ""
        proxy = self._proxies.find(url) if self._proxies else None
        if is_address(host):
            self._guard.check(host)
        elif proxy is None:
            await self.resolver.lookup(host)
        return proxy

    async def _exchange(
        self, url: URL, proxy: URL | None, memory: Allotment, watch: Stopwatch, turn: Turn
    ) -> Fetched | URL:
        """Send the request, and take in what comes."""
        self.requests += 1
        is_answered = is_overload = False
        try:
            async with watch, self._session.get(url, proxy=proxy, allow_redirects=False) as response:
                is_answered = True
                if response.status in _REFUSALS:
                    turn.refused(retry_after_s(response.headers))
                else:
                    turn.answered()
                location = response.headers.get("Location") if response.status in _REDIRECTS else None
                if location:
                    return join_url(url, location)
                return await self._receiver.receive(response, memory, watch)
        except WEB_FAULTS as error:
            failure = classify(error)
            if not is_answered and failure.kind in _HOST_FAULTS:
                is_overload = isinstance(error, TimeoutError) and turn.host_was_sound
                turn.failed(failure.detail)
            return failure
        finally:
            self.concurrency.ended(is_answer=is_answered, is_overload=is_overload, was_full=self.limiter.waiting > 0)

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": user_agent(self._policy.contact),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
            # The connection's limit covers TCP and TLS: nobody queues in the pool, and the name is resolved by then.
            # aiohttp's total would count what is ours; the attempt's clock is the stopwatch.
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._policy.connect_timeout_s, sock_read=self._policy.stall_timeout_s
            ),
            auto_decompress=False,  # see coding.py
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            trust_env=False,  # it would read passwords from ~/.netrc, too; proxies.py is what --trust-env means
        )

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make the socket for a connection: the last look at where it really goes, literals included."""
        family, kind, protocol, _, endpoint = address
        self._guard.check(str(endpoint[0]))
        return socket.socket(family, kind, protocol)

    def _count_bytes(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes


def user_agent(contact: str = "") -> str:
    """The User-Agent header: who we are, where to read about us, whom to ask."""
    return f"datafetch/{_VERSION} (+{PROJECT_URL}{'; ' + contact if contact else ''})"
