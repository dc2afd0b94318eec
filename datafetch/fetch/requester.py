"""Makes one HTTP request, from its host's slot to its answer, and owns everything that all requests share.

A request passes five gates, in this order: a slot at its host, the address of its host, a slot among all open
requests, room in the memory budget, and its turn under the cap on the rate, if there is one. Only then does its
deadline start to run.

A failure that may be this machine's own is judged before it becomes an outcome (``means``): if this machine had no
name server, no route or no proxy, the request waits until they are back, and is made again.

Rules: no host is blamed for time that a request spends at a gate, and a request at a gate holds no connection.
Anything that ends a response early drops its connection.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from datafetch.fetch.classify import WEB_FAULTS, SocketsExhaustedError, classify
from datafetch.fetch.client import Client, Response
from datafetch.fetch.concurrency import HANGING_S, Concurrency
from datafetch.fetch.connections import Connections, ConnectTimeoutError, ProxyLoginError, ProxyUnreachableError
from datafetch.fetch.dns.address_guard import AddressGuard, is_address
from datafetch.fetch.dns.resolver import Resolver, host_name
from datafetch.fetch.headers import first_value, retry_after_s
from datafetch.fetch.hop import Hop
from datafetch.fetch.host_slots import HostSlot, HostSlots
from datafetch.fetch.hosts import Hosts
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.means import Means
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.proxies import Proxies, unused_proxy
from datafetch.fetch.receive_rate import ReceiveRate, rate_of
from datafetch.fetch.response import BodyReader
from datafetch.fetch.response_body import FramingTooLargeError
from datafetch.fetch.routes import has_public_route
from datafetch.fetch.timers import Timers
from datafetch.fetch.tls import lax_tls_context, tls_context
from datafetch.fetch.urls import WebUrl, join_url
from datafetch.model.outcome import Failure, FailureKind, Fetched

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
THROTTLED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""The statuses with which a host may ask for a pause."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a fetcher shares with the fetchers of other processes.

    Attributes:
        processes: How many processes there are; each asks name servers for its part of as many names as one would.
        share_hosts: Returns the slots of all hosts, given those of the hosts that are counted in this process, and what
            to call when a request begins to wait.
    """

    processes: int
    share_hosts: Callable[[Hosts, Callable[[], None]], HostSlots]


_MAX_ATTEMPTS_WITHOUT_SOCKETS = 60  # about a minute; if no descriptor is freed in that time, something else holds them


class Requester:
    """Makes requests: ``async with Requester(policy) as requester: answer = await requester.request(hop)``.

    Args:
        policy: The operator's settings.
        rate: The cap on what is received, where it is shared with other fetchers; None makes that of the policy.
        sharing: What is shared with the fetchers of other processes; None if there are none.

    Attributes:
        sent_requests: Number of requests sent so far, redirects included.
        received_bytes: Body bytes received so far, before decompression.
        concurrency: Decides how many requests may be open.
        limiter: Has a slot for each of the open requests.
        hosts: Has the slots of each host.
        own_hosts: Has those of the hosts whose requests are counted in this process; without others, of all.
        unused_proxy: The environment variable that names a proxy which is not used; empty if there is none.
        resolver: Finds the addresses of hosts, and knows whether the name servers answer.
        timers: The timers of all time limits.
    """

    def __init__(self, policy: FetchPolicy, rate: ReceiveRate | None = None, sharing: Sharing | None = None) -> None:
        self.sent_requests = 0
        self.received_bytes = 0
        self._hanging_s = min(HANGING_S, policy.timeout_s / 4)
        self.concurrency = Concurrency(policy.connections, self._hanging_s)
        self.limiter = Limiter(lambda: self.concurrency.slots)
        self._policy = policy
        self._body_reader = BodyReader(policy, self._count_bytes)
        self._failed_lookups = 0
        self.unused_proxy = "" if policy.trust_env else unused_proxy()
        self._proxy_hint = f", or use the proxy in {self.unused_proxy} with --trust-env" if self.unused_proxy else ""
        self._route = Means(
            _has_public_route,
            problem=lambda: "this machine has no network: there is no route to any public address",
            remedy=f"connect it{self._proxy_hint}",
            remembers=False,
        )
        self._rate = rate
        self._sharing = sharing
        self._held_back = 0
        self._call_limiters: list[Limiter] = []
        self._hanging_timer: asyncio.TimerHandle | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._rate = self._rate or rate_of(self._policy)
        self._proxies = Proxies() if self._policy.trust_env else None
        if self._proxies is not None:
            self._resources.push_async_callback(self._proxies.close)
            await self._proxies.resolve()
        self._resources.push_async_callback(self._route.close)
        self.timers = Timers()
        self._resources.callback(self.timers.close)
        tls = await asyncio.to_thread(tls_context)
        lax_tls = await asyncio.to_thread(lax_tls_context) if self._policy.insecure else None
        self.own_hosts = Hosts(self._policy.per_host, self._policy.backoff_s, self._admit_calls)
        self.hosts: HostSlots = (
            self.own_hosts if self._sharing is None else self._sharing.share_hosts(self.own_hosts, self._admit_calls)
        )
        self._guard = AddressGuard(self._policy.networks())
        self.resolver = Resolver(
            self._guard,
            self._policy.nameservers,
            other_remedy=self._proxy_hint,
            processes=1 if self._sharing is None else self._sharing.processes,
        )
        self._resources.push_async_callback(self.resolver.close)
        self._connections = Connections(
            self._policy, self.resolver, self.timers, tls=tls, lax_tls=lax_tls, proxies=self._proxies
        )
        self._resources.push_async_callback(self._connections.close)
        self._resources.callback(self._cancel_hanging_timer)
        self._resources.callback(self._body_reader.close)
        self._client = Client(self._policy, self._connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    def limit_to(self, per_host: int, max_rate_bytes_per_s: int | None) -> None:
        """Set other limits than the policy's; a rate has an effect only where the policy has one."""
        self.own_hosts.limit_to(per_host)
        if self._rate is not None and max_rate_bytes_per_s is not None:
            self._rate.limit_to(max_rate_bytes_per_s)

    @property
    def open_requests(self) -> int:
        """Number of requests in flight: those that have a slot, without those that the cap on the rate holds back."""
        return self.limiter.open - self._held_back

    @property
    def used_proxies(self) -> str:
        """The proxies that are used, with the environment variables that name them; empty if there are none."""
        return "" if self._proxies is None else str(self._proxies)

    def call_limiter(self, calls_per_connection: int) -> Limiter:
        """Make a limiter for calls; those that wait for a slot at their host don't count against it."""
        limiter = Limiter(lambda: self.concurrency.connections * calls_per_connection + self.hosts.waiting)
        self._call_limiters.append(limiter)
        return limiter

    async def request(self, hop: Hop) -> Fetched | WebUrl:
        """Make one request, as soon as its host and this machine have room for it.

        Returns:
            The body, the failure, or the URL that the response redirects to.

        Raises:
            SocketsExhaustedError: For a minute there was no descriptor, or no memory, for a socket.
            ResourceError: For half a minute no name server answered, or there was no network, or no proxy, or the proxy
                did not accept its login.
        """
        try:
            return await self._request_in_slot(hop)
        except SocketsExhaustedError as error:
            return await self._retry_until_sockets(error, hop)

    async def _retry_until_sockets(self, first: SocketsExhaustedError, hop: Hop) -> Fetched | WebUrl:
        """Repeat a request, with pauses that tenacity times, until there is a descriptor for it."""
        made = [first]

        async def request() -> Fetched | WebUrl:
            if made:
                raise made.pop()
            return await self._request_in_slot(hop)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(_MAX_ATTEMPTS_WITHOUT_SOCKETS),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_exception_type(SocketsExhaustedError),
            before_sleep=self._reduce_load,
            reraise=True,
        )
        answer: Fetched | WebUrl = await retrying(request)
        return answer

    async def _request_in_slot(self, hop: Hop) -> Fetched | WebUrl:
        try:
            async with self.hosts.slot(hop.url.authority, hop.memory.number) as slot:
                proxy = await self._resolve_route(hop.url)
                while True:
                    async with self.limiter:
                        # Memory comes last: while a request waited for a slot, others could use up what there was.
                        await hop.memory.wait_for_room()
                        if self._rate is None:
                            answer = await self._send(hop, proxy, slot)
                        else:
                            answer = await self._send_in_turn(self._rate, hop, proxy, slot)
                    if not isinstance(answer, _Fault):
                        return answer
                    hop.memory.shrink(0)
                    if not await self._was_ours(answer, proxy):
                        _report_fault(slot, answer, has_proxy=proxy is not None)
                        return answer.failure
                    hop.deadline.rewind(answer.elapsed_before_s)
        except WEB_FAULTS as error:
            failure = classify(error)
            if failure.kind is FailureKind.DNS_FAILED:
                self._report_failed_lookup()
            return failure

    def _reduce_load(self, _: RetryCallState) -> None:
        self.concurrency.sockets_exhausted()
        self._connections.drop_idle()

    def _report_failed_lookup(self) -> None:
        """Report a name that no server answered for, but only once: later lookups get the failure from the cache."""
        failed_lookups = self.resolver.statistics().failed
        if failed_lookups > self._failed_lookups:
            self._failed_lookups = failed_lookups
            self.concurrency.lookup_failed()

    async def _resolve_route(self, url: WebUrl) -> WebUrl | None:
        """Make sure that the host may be connected to and has an address, and find the proxy to go through, if any.

        A name that goes through a proxy is left to the proxy to resolve and to judge, unless this machine knows that
        it leads to an address that may not be connected to.
        """
        host = url.host
        proxy = self._proxies.proxy_for(url) if self._proxies else None
        if proxy is None or is_address(host):
            await self.resolver.lookup(host)
        elif self._proxies is not None:
            self._proxies.check(host_name(host), self._guard)
        return proxy

    async def _send_in_turn(
        self, rate: ReceiveRate, hop: Hop, proxy: WebUrl | None, slot: HostSlot
    ) -> Fetched | WebUrl | _Fault:
        """Send the request as soon as the cap on the rate allows it."""
        self._held_back += 1
        try:
            transfer = await rate.begin()
        finally:
            self._held_back -= 1
        try:
            return await self._send(hop._replace(transfer=transfer), proxy, slot)
        finally:
            transfer.end()

    async def _was_ours(self, fault: _Fault, proxy: WebUrl | None) -> bool:
        """Whether a request failed for lack of something that this machine needs, which is there again now.

        Silence is suspect only where name servers have answered before: whether they still do tells whether there is a
        network. A job may also have nothing but addresses, and no name server.

        Raises:
            ResourceError: It has not come back.
        """
        error, since_s = fault.error, fault.began_at_s
        is_silence = isinstance(error, TimeoutError | ConnectTimeoutError)
        if proxy is not None:
            assert self._proxies is not None, "the proxy came from there"
            if isinstance(error, ProxyLoginError):
                return await self._proxies.logins[proxy].was_missing(since_s)
            is_suspect = is_silence or isinstance(error, ProxyUnreachableError)
            return is_suspect and await self._proxies.means[proxy].was_missing(since_s)
        is_unreachable = isinstance(error, OSError) and error.errno in _UNREACHABLE
        if is_unreachable and await self._route.was_missing(since_s):
            return True
        servers = self.resolver.servers
        if not (is_silence or is_unreachable) or not servers.has_worked or self._connections.has_connected_lately:
            return False
        return await servers.was_missing(since_s)

    async def _send(self, hop: Hop, proxy: WebUrl | None, slot: HostSlot) -> Fetched | WebUrl | _Fault:
        """Send the request, read the response, and report an answer to the host's slot, the end to ``concurrency``."""
        began_at_s, elapsed_before_s = time.monotonic(), hop.deadline.elapsed_s
        self.sent_requests += 1
        open_request = self.concurrency.request_started(is_saturated=self.limiter.waiting > 0)
        if self._hanging_timer is None and not self.concurrency.is_fixed:
            self._make_up_for_hanging_requests()
        is_answered = is_overload = False
        try:
            with hop.deadline:
                response = await self._client.send(hop, proxy)
                is_answered = True
                try:
                    answer = await self._read(hop, response)
                finally:
                    self._client.release(response)
        except WEB_FAULTS as error:
            failure = classify(error)
            is_timeout = isinstance(error, TimeoutError | ConnectTimeoutError)
            is_overload = is_timeout and not is_answered and slot.host_was_healthy
            return _Fault(error, failure, began_at_s, elapsed_before_s)
        else:
            if proxy is not None and response.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                assert isinstance(answer, Failure), "it is no success"
                return _Fault(ProxyLoginError(answer.detail), answer, began_at_s, elapsed_before_s)
            _report_to_host(slot, response)
            return answer
        finally:
            self.concurrency.request_ended(open_request, is_answered=is_answered, is_overload=is_overload)

    async def _read(self, hop: Hop, response: Response) -> Fetched | WebUrl:
        location = first_value(response.headers, "location") if response.status in _REDIRECTS else ""
        if location:
            await hop.cookies.store(response.headers, hop.url)
            is_range = hop.request.byte_range is not None
            # Credentials are for the URL that the operator gave, and an archive may redirect to a third party's store.
            return join_url(hop.url.without_login() if is_range else hop.url, location)
        return await self._body_reader.read(response, hop)

    def _admit_calls(self) -> None:
        for limiter in self._call_limiters:
            limiter.admit()

    def _make_up_for_hanging_requests(self) -> None:
        """Let others in for requests that have begun to hang, and repeat that while any request is open.

        The limiters look at their capacity only when a request comes or leaves, and no event marks that one hangs.
        """
        self.limiter.admit()
        self._admit_calls()
        self._hanging_timer = None
        if self.limiter.open:
            self._hanging_timer = asyncio.get_running_loop().call_later(
                self._hanging_s / 4, self._make_up_for_hanging_requests
            )

    def _cancel_hanging_timer(self) -> None:
        if self._hanging_timer is not None:
            self._hanging_timer.cancel()

    def _count_bytes(self, received_bytes: int) -> None:
        self.received_bytes += received_bytes


@dataclass(frozen=True, slots=True)
class _Fault:
    """How a request failed, before it is known whose fault that was.

    Attributes:
        error: What was raised.
        failure: What it is if it was the web's fault.
        began_at_s: When the request was begun, by ``time.monotonic``.
        elapsed_before_s: What the deadline had run by then.
    """

    error: Exception
    failure: Failure
    began_at_s: float
    elapsed_before_s: float


async def _has_public_route() -> bool:
    return has_public_route()


def _report_fault(slot: HostSlot, fault: _Fault, *, has_proxy: bool) -> None:
    """Report a failure to the slot of the host whose fault it was."""
    failure = fault.failure
    if failure.kind is FailureKind.TIMEOUT:
        slot.timed_out(failure.detail)
    elif isinstance(fault.error, FramingTooLargeError) or (failure.kind is FailureKind.CONNECT and not has_proxy):
        # A proxy's fault is not the host's. A body that is mostly framing is: it costs the CPU of many images.
        slot.failed(failure.detail)


def _report_to_host(slot: HostSlot, response: Response) -> None:
    if response.status not in THROTTLED:
        slot.answered()
        return
    pause_s = retry_after_s(response.headers)
    # A 503 without a Retry-After may be about one URL for good, while the host answers others.
    if response.status == HTTPStatus.TOO_MANY_REQUESTS or pause_s is not None or not slot.host_answered_recently:
        slot.throttled(pause_s, f"HTTP {response.status}")
