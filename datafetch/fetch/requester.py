"""One request, from its host's turn to its answer, and everything that all requests share.

Rules: a request first waits for whatever is ours or its host's (a turn, a name, a place, room for a body), and only
then does the clock run: no host is blamed for our queue, and whoever waits holds no connection. Whatever stops a
response early drops its connection.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from yarl import URL

from datafetch.fetch.classify import WEB_FAULTS, PressureError, classify
from datafetch.fetch.client import Client, Response
from datafetch.fetch.concurrency import HANGING_S, Concurrency
from datafetch.fetch.connections import Connections, ConnectTimeoutError
from datafetch.fetch.cookies import Cookies
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.dns.address_guard import AddressGuard, is_address
from datafetch.fetch.dns.resolver import Resolver, host_name
from datafetch.fetch.headers import retry_after_s
from datafetch.fetch.hosts import Hosts, HostSlot
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import Reservation
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.response import Receiver
from datafetch.fetch.response_parser import FramingTooLargeError
from datafetch.fetch.tls import lax_tls_context, tls_context
from datafetch.fetch.urls import authority, join_url
from datafetch.model.outcome import FailureKind, Fetched

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
HTTP_TOO_MANY_REQUESTS = 429
HTTP_UNAVAILABLE = 503

_MOST_ATTEMPTS_UNDER_PRESSURE = 60  # a minute: when nobody frees a descriptor for so long, something else holds them


@dataclass(frozen=True, slots=True)
class Request:
    """One request of an image's.

    Attributes:
        url: Of http or https.
        memory: What its body will be held against; images take their turns in the order of their allotments.
        watch: The attempt's clock; it runs while the request is under way.
        cookies: Of the redirects so far.
    """

    url: URL
    memory: Reservation
    watch: Deadline
    cookies: Cookies


class Requester:
    """Makes requests.

    Used as ``async with Requester(policy) as requester: await requester.ask(Request(url, memory, watch, cookies))``.

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
        self._hanging_s = min(HANGING_S, policy.timeout_s / 4)
        self.concurrency = Concurrency(policy.connections, self._hanging_s)
        self.limiter = Limiter(lambda: self.concurrency.places)
        self._policy = policy
        self._receiver = Receiver(policy, self._count_bytes)
        self._names_failed = 0
        self._ahead: list[Limiter] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._proxies = Proxies() if self._policy.trust_env else None
        if self._proxies is not None:
            await self._proxies.resolve()
        tls = await asyncio.to_thread(tls_context)
        lax_tls = await asyncio.to_thread(lax_tls_context) if self._policy.insecure else None
        self.hosts = Hosts(self._policy.per_host, self._policy.backoff_s, self._admit_ahead)
        self._guard = AddressGuard(self._policy.networks())
        self.resolver = Resolver(self._guard, self._policy.nameservers)
        self._resources.push_async_callback(self.resolver.close)
        self._connections = Connections(self._policy, self.resolver, tls=tls, lax_tls=lax_tls, proxies=self._proxies)
        self._resources.push_async_callback(self._connections.close)
        self._resources.callback(self._stop_watching)
        self._resources.callback(self._receiver.close)
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

    async def ask(self, request: Request) -> Fetched | URL:
        """Make one request, as soon as it is its turn and this machine can make it.

        Returns:
            The body, the failure, or where the response redirects to.

        Raises:
            PressureError: There was no descriptor or no memory for a socket, for a minute.
        """
        try:
            return await self._ask_in_slot(request)
        except PressureError as error:
            return await self._ask_under_pressure(error, request)

    async def _ask_under_pressure(self, first: PressureError, request: Request) -> Fetched | URL:
        """Ask again and again, with tenacity as the clock between, until there is a descriptor."""
        made = [first]

        async def ask() -> Fetched | URL:
            if made:
                raise made.pop()
            return await self._ask_in_slot(request)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(_MOST_ATTEMPTS_UNDER_PRESSURE),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_exception_type(PressureError),
            before_sleep=self._relieve,
            reraise=True,
        )
        answer: Fetched | URL = await retrying(ask)
        return answer

    async def _ask_in_slot(self, request: Request) -> Fetched | URL:
        try:
            async with self.hosts.slot(authority(request.url), request.memory.number) as slot:
                proxy = await self._find_way(request.url)
                async with self.limiter:
                    # With the place in hand, for whoever passed while waiting for one would still bring a body.
                    await request.memory.wait_for_room()
                    return await self._exchange(request, proxy, slot)
        except WEB_FAULTS as error:
            failure = classify(error)
            if failure.kind is FailureKind.DNS_FAILED:
                self._note_failed_name()
            return failure

    def _relieve(self, _: RetryCallState) -> None:
        self.concurrency.pressed()
        self._connections.drop_idle()

    def _note_failed_name(self) -> None:
        """Tell of a name that was asked for in vain; not of the same one again, for the cache has that answer."""
        names_failed = self.resolver.statistics().failed
        if names_failed > self._names_failed:
            self._names_failed = names_failed
            self.concurrency.failed_to_resolve()

    async def _find_way(self, url: URL) -> URL | None:
        """Make sure that the host may be asked and has an address; returns the proxy that leads there, if one does.

        A name that goes through a proxy is the proxy's to resolve, and to judge, unless it is known to lead inside.
        """
        host = url.raw_host or ""
        proxy = self._proxies.find(url) if self._proxies else None
        if proxy is None or is_address(host):
            await self.resolver.lookup(host)
        elif self._proxies is not None:
            self._proxies.check(host_name(host), self._guard)
        return proxy

    async def _exchange(self, request: Request, proxy: URL | None, slot: HostSlot) -> Fetched | URL:
        """Send the request, and take in what comes."""
        self.requests += 1
        under_way = self.concurrency.started(is_full=self.limiter.waiting > 0)
        if self._alarm is None and not self.concurrency.is_fixed:
            self._watch_for_hanging()
        is_answered = is_overload = False
        try:
            cookie = request.cookies.header(request.url)
            async with request.watch, self._client.get(request.url, proxy, cookie, request.watch.permitted) as response:
                is_answered = True
                answer = await self._read(request, response)
                _tell(slot, response)
                return answer
        except WEB_FAULTS as error:
            failure = classify(error)
            is_timeout = isinstance(error, TimeoutError | ConnectTimeoutError)
            is_overload = is_timeout and not is_answered and slot.host_was_sound
            if failure.kind is FailureKind.TIMEOUT:
                slot.timed_out(failure.detail)
            elif isinstance(error, FramingTooLargeError) or (failure.kind is FailureKind.CONNECT and proxy is None):
                # A proxy's fault is not the host's. A body that is mostly framing is, and takes the CPU of many images.
                slot.failed(failure.detail)
            return failure
        finally:
            self.concurrency.ended(under_way, is_answered=is_answered, is_overload=is_overload)

    async def _read(self, request: Request, response: Response) -> Fetched | URL:
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        if location:
            request.cookies.note(response.headers, request.url)
            return join_url(request.url, location)
        return await self._receiver.receive(response, request.memory, request.watch)

    def _admit_ahead(self) -> None:
        for limiter in self._ahead:
            limiter.admit()

    def _watch_for_hanging(self) -> None:
        """Requests that begin to hang make room for others, though nobody comes or leaves."""
        self.limiter.admit()
        self._admit_ahead()
        self._alarm = None
        if self.limiter.open:
            self._alarm = asyncio.get_running_loop().call_later(self._hanging_s / 4, self._watch_for_hanging)

    def _stop_watching(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _count_bytes(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes


def _tell(slot: HostSlot, response: Response) -> None:
    """Tell the host's turn what came of it."""
    if response.status not in (HTTP_TOO_MANY_REQUESTS, HTTP_UNAVAILABLE):
        slot.answered()
        return
    pause_s = retry_after_s(response.headers)
    # A URL may well be unavailable for ever on a host that is not.
    if response.status == HTTP_TOO_MANY_REQUESTS or pause_s is not None or not slot.host_is_alive:
        slot.refused(pause_s)
