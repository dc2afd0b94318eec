"""One request, from its host's turn to its answer, and everything that all requests share.

Rules: a request first waits for whatever is ours or its host's (a turn, a name, a place, room for a body), and only
then does the clock run: no host is blamed for our queue, and whoever waits holds no connection. Whatever stops a
response early drops its connection.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from yarl import URL

from datafetch.fetch.address import AddressGuard, is_address
from datafetch.fetch.classify import WEB_FAULTS, PressureError, classify
from datafetch.fetch.client import Client, Response
from datafetch.fetch.concurrency import Concurrency
from datafetch.fetch.connections import Connections, ConnectTimeoutError
from datafetch.fetch.headers import retry_after_s
from datafetch.fetch.hosts import Hosts, Turn
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import Allotment
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.receive import Receiver
from datafetch.fetch.resolver import Resolver
from datafetch.fetch.stopwatch import Stopwatch
from datafetch.fetch.tls import tls_context
from datafetch.fetch.urls import authority, join_url
from datafetch.model import FailureKind, Fetched

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
REFUSALS = frozenset({429, 503})
"""The statuses by which a host asks to be left in peace for a while."""

_HOST_FAULTS = frozenset({FailureKind.CONNECT, FailureKind.TIMEOUT})
_WATCH_S = 0.5
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
        self.limiter = Limiter(lambda: self.concurrency.places)
        self._policy = policy
        self._receiver = Receiver(policy, self._count_bytes)
        self._ahead: list[Limiter] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._proxies = Proxies() if self._policy.trust_env else None
        if self._proxies is not None:
            await self._proxies.resolve()
        tls = await asyncio.to_thread(tls_context, verify=not self._policy.insecure)
        self.hosts = Hosts(self._policy.per_host, self._policy.backoff_s, self._admit_ahead)
        self.resolver = Resolver(AddressGuard(self._policy.networks()), self._policy.nameservers)
        self._resources.push_async_callback(self.resolver.close)
        self._connections = Connections(self._policy, self.resolver, tls=tls, proxies=self._proxies)
        self._resources.push_async_callback(self._connections.close)
        self._resources.callback(self._stop_watching)
        self._client = Client(self._policy, self._connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    def look_ahead(self, per_connection: int) -> Limiter:
        """Places for calls: so many for each connection, those not counted that wait for their host's turn."""
        limiter = Limiter(lambda: self.concurrency.connections * per_connection + self.hosts.waiting)
        self._ahead.append(limiter)
        return limiter

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
        except PressureError as error:
            return await self._ask_under_pressure(error, url, memory, watch)

    async def _ask_under_pressure(
        self, first: PressureError, url: URL, memory: Allotment, watch: Stopwatch
    ) -> Fetched | URL:
        """Ask again and again, with tenacity as the clock between, until there is a descriptor."""
        made = [first]

        async def ask() -> Fetched | URL:
            if made:
                raise made.pop()
            return await self._ask_in_turn(url, memory, watch)

        retrying = AsyncRetrying(
            stop=stop_after_delay(_MAX_PRESSURE_S),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_exception_type(PressureError),
            reraise=True,
        )
        answer: Fetched | URL = await retrying(ask)
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
                self.concurrency.failed_to_resolve()
            return failure
        except PressureError:
            self.concurrency.pressed()
            self._connections.drop_idle()
            raise

    async def _find_way(self, url: URL) -> URL | None:
        """Make sure that the host may be asked and has an address; returns the proxy that leads there, if one does.

        A name that goes through a proxy is the proxy's to resolve, and to judge.
        """
        host = url.raw_host or ""
        proxy = self._proxies.find(url) if self._proxies else None
        if proxy is None or is_address(host):
            await self.resolver.lookup(host)
        return proxy

    async def _exchange(
        self, url: URL, proxy: URL | None, memory: Allotment, watch: Stopwatch, turn: Turn
    ) -> Fetched | URL:
        """Send the request, and take in what comes."""
        self.requests += 1
        request = self.concurrency.started(is_full=self.limiter.waiting > 0)
        if self._alarm is None:
            self._watch_for_hanging()
        is_answered = is_overload = False
        try:
            async with watch, self._client.get(url, proxy) as response:
                is_answered = True
                answer = await self._read(url, response, memory, watch)
                if response.status in REFUSALS:
                    turn.refused(retry_after_s(response.headers))
                else:
                    turn.answered()
                return answer
        except WEB_FAULTS as error:
            failure = classify(error)
            if failure.kind in _HOST_FAULTS:
                is_timeout = isinstance(error, TimeoutError | ConnectTimeoutError)
                is_overload = is_timeout and not is_answered and turn.host_was_sound
                turn.failed(failure.detail)
            return failure
        finally:
            self.concurrency.ended(request, is_answered=is_answered, is_overload=is_overload)

    async def _read(self, url: URL, response: Response, memory: Allotment, watch: Stopwatch) -> Fetched | URL:
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        if location:
            return join_url(url, location)
        return await self._receiver.receive(response, memory, watch)

    def _admit_ahead(self) -> None:
        for limiter in self._ahead:
            limiter.admit()

    def _watch_for_hanging(self) -> None:
        """Requests that begin to hang make room for others, though nobody comes or leaves."""
        self.limiter.admit()
        self._admit_ahead()
        is_needed = self.limiter.open > 0 and not self.concurrency.is_fixed
        self._alarm = asyncio.get_running_loop().call_later(_WATCH_S, self._watch_for_hanging) if is_needed else None

    def _stop_watching(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _count_bytes(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes
