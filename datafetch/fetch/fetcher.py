"""Fetches URLs: makes the attempts, follows the redirects of each, and pauses between them.

Rules: faults of the web are returned as ``Failure``; only faults of this machine are raised. A call that pauses before
its next attempt holds no slot, no connection and no memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import TracebackType
from typing import Self

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from datafetch.fetch.classify import classify
from datafetch.fetch.cookies import Cookies
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.hop import Hop
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import BodyBudget, Reservation
from datafetch.fetch.pauses import Pauses
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.fetch.requester import THROTTLED, Requester, Sharing
from datafetch.fetch.statistics import FetchStatistics
from datafetch.fetch.urls import BadUrlError, WebUrl, parse_url, split_url
from datafetch.fetch.waiting import find_waiting
from datafetch.model.outcome import OK, Body, Failure, FailureKind, Fetched
from datafetch.model.request import Request
from datafetch.model.untrusted import short_repr

_MAX_BACKOFF_S = 30.0
_DEFAULT_BUDGET_BYTES = 1024**3
_MS_PER_S = 1000.0
_MIN_RANGE_BYTES_PER_S = 16 * 1024  # a range that comes more slowly is given up; a modem's line has half of it
OUT_OF_TIME = Failure(FailureKind.TIMEOUT, "not fetched by the time that --finish-by sets")
"""The outcome of what the operator's time limit for a whole run has ended, or kept from being requested."""
UNREACHED = frozenset(
    {
        FailureKind.DNS_NOT_FOUND,
        FailureKind.DNS_FAILED,
        FailureKind.CONNECT,
        FailureKind.TLS,
        FailureKind.TIMEOUT,
        FailureKind.HOST_DOWN,
    }
)
"""How a call fails that no server has answered: the fault of the host, or of the way from here to it."""
_MAX_UNREACHED, _MAX_UNREACHED_CHARS = 16, 2000
_RETRIED_ELSEWHERE = frozenset({FailureKind.DNS_FAILED, FailureKind.HOST_DOWN})
"""The resolver has already repeated its queries; a host that is down is probed again when its time has come."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call of the fetcher, with all of its attempts.

    Attributes:
        url: The request's URL, parsed.
        request: What the caller wants.
        memory: The reservation that the body's bytes are counted against.
        attempts: Number of attempts so far. One that was refused before anything was sent does not count.
        failure: The failure of the latest attempt.
        deadline: The clock of the attempt that is being made; None between attempts.
    """

    url: WebUrl
    request: Request
    memory: Reservation
    attempts: int = 0
    failure: Failure | None = None
    deadline: Deadline | None = None


class Fetcher:
    """Fetches URLs, from any number of tasks of one event loop.

    Use it as ``async with Fetcher(policy) as fetch: fetched = await fetch(url)``.

    Args:
        policy: The operator's settings.
        budget: The memory budget that bodies are counted against, for a caller who holds bodies after the call; by
            default the fetcher has a budget of 1 GiB of its own.
        rate: The cap on what is received, for a caller whose fetchers share one; by default the policy sets it.
        sharing: What is shared with the fetchers of other processes; None if there are none.
    """

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        budget: BodyBudget | None = None,
        rate: ReceiveRate | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._policy = policy or FetchPolicy()
        self._budget = budget or BodyBudget(_DEFAULT_BUDGET_BYTES)
        self._requester = Requester(self._policy, rate, sharing)
        backoff_s = self._policy.backoff_s
        self._backoff = wait_exponential(multiplier=backoff_s, max=_MAX_BACKOFF_S) + wait_random(0, backoff_s)
        self._outcomes: Counter[str] = Counter()
        self._attempts = 0
        self._unreached: deque[str] = deque(maxlen=_MAX_UNREACHED)
        self._is_open = False
        self._pauses = Pauses()
        self._resources = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Fetcher, {'open' if self._is_open else 'not open'}, {self._attempts:,} attempts>"

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self._requester)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        await self._resources.aclose()

    @property
    def retries(self) -> int:
        """Number of further attempts after a failure that may pass."""
        return self._policy.retries

    @property
    def connections(self) -> int:
        """Number of requests that may be in flight now, hanging ones not counted.

        Unless the operator fixed it, this is the number that has been found to serve best so far.
        """
        return self._requester.concurrency.connections

    @property
    def max_connections(self) -> int:
        """Number of requests that may be in flight at any time."""
        return self._requester.concurrency.max_connections

    @property
    def unused_proxy(self) -> str:
        """The environment variable that names a proxy which is not used; empty if there is none."""
        return self._requester.unused_proxy

    @property
    def used_proxies(self) -> str:
        """The proxies that are used, with the environment variables that name them; empty if there are none."""
        return self._requester.used_proxies

    @property
    def unreached(self) -> tuple[str, ...]:
        """The URLs of the latest calls that no server has answered, a few, the latest last."""
        return tuple(self._unreached)

    def limit_to(self, per_host: int, max_rate_bytes_per_s: int | None) -> None:
        """Set other limits than the policy's, for a caller who shares those with other machines; only while it is open.

        Args:
            per_host: Number of requests in flight at once to one host. Those that are beyond it end first.
            max_rate_bytes_per_s: The cap on what is received in a second; without an effect if the policy sets none.
        """
        self._require_open()
        self._requester.limit_to(per_host, max_rate_bytes_per_s)

    @property
    def per_host(self) -> int:
        """Number of requests that may be in flight at once to one host."""
        return self._requester.own_hosts.per_host

    @property
    def is_within_limits(self) -> bool:
        """Whether no host has more requests in flight than may be, as after the number was lowered."""
        return self._requester.own_hosts.are_within_limit

    def call_limiter(self, calls_per_connection: int) -> Limiter:
        """Make a limiter for calls, for a caller with more URLs than it should hold at once.

        It has ``calls_per_connection`` slots for each connection, and one more for each call that waits for its host:
        such a call holds nothing, so that others may proceed in the meantime. Use it as ``async with limiter: …``.
        """
        return self._requester.call_limiter(calls_per_connection)

    def statistics(self) -> FetchStatistics:
        """Take a snapshot; only inside ``async with``."""
        self._require_open()
        requester = self._requester
        return FetchStatistics(
            attempts=self._attempts,
            sent_requests=requester.sent_requests,
            fetched_bytes=requester.received_bytes,
            outcomes=dict(self._outcomes),
            connections=self.connections,
            open_requests=requester.open_requests,
            peak_open_requests=requester.limiter.peak,
            waiting_requests=requester.limiter.waiting,
            held_bytes=self._budget.held_bytes,
            hosts=requester.hosts.statistics(),
            names=requester.resolver.statistics(),
            waiting=find_waiting(requester.hosts, self._pauses),
        )

    async def __call__(
        self, request: str | Request, *, memory: Reservation | None = None, until_s: float | None = None
    ) -> Fetched:
        """Fetch one file, or one range of its bytes.

        Args:
            request: A URL as published, or a request with more to say than a URL.
            memory: The reservation that the body is counted against, for a caller who holds the body after the call.
            until_s: When the call ends at the latest, as ``OUT_OF_TIME`` with the attempts made: a time of the event
                loop's clock. None lets it end by itself.

        Returns:
            A ``Body`` of at least one byte and at most ``max_body_bytes``, or the ``Failure`` of the last attempt. Both
            carry the number of attempts. Any status but 200 is a failure of kind HTTP_STATUS.

            With a byte range, the body is that range, or the beginning of it: up to the end of the file, or as much as
            the server sends. ``Body.part`` tells which bytes it holds. Any status but 206 is then a failure of kind
            HTTP_STATUS: 200 where the server ignores ranges or the file is no longer the one of ``if_range``, 416 where
            the range begins behind the end of the file. So is, with status 206, a response without a
            ``Content-Range``, with one for other bytes than those requested, or with a content coding. A body that is
            shorter than its ``Content-Range`` says is DISCONNECTED, a longer one is TOO_LARGE.

        Raises:
            ResourceError: This machine has had no descriptors for sockets, or no memory for them, for a minute; or no
                name server that answers, no network or no proxy for half a minute. None of these is a failure of the
                URL: it may be fetched again once that is mended.
            RuntimeError: The fetcher is not open; the message says what to write.
            TypeError: The request is neither a URL nor a ``Request``.
        """
        self._require_open()
        if isinstance(request, str):
            request = Request(request)
        elif not isinstance(request, Request):
            raise TypeError(f"a Fetcher takes a URL as a string, or a Request, not {short_repr(request)}")
        with self._budget.reservation() if memory is None else nullcontext(memory) as reserved:
            try:
                call = _Call(parse_url(request.url), request, reserved)
            except BadUrlError as error:
                fetched: Fetched = classify(error)
            else:
                fetched = await (self._fetch(call) if until_s is None else self._fetch_until(until_s, call))
        if isinstance(fetched, Body):
            self._outcomes[OK] += 1
        else:
            self._outcomes[fetched.kind] += 1
            if fetched.kind in UNREACHED and len(request.url) <= _MAX_UNREACHED_CHARS:
                self._unreached.append(request.url)
        return fetched

    def _require_open(self) -> None:
        if not self._is_open:
            raise RuntimeError(
                "a Fetcher works only while it is open; write: async with Fetcher(policy) as fetch: await fetch(url)"
            )

    async def _fetch_until(self, until_s: float, call: _Call) -> Fetched:
        limit = asyncio.timeout_at(until_s)
        try:
            async with limit:
                return await self._fetch(call)
        except TimeoutError:
            if not limit.expired():
                raise
        call.memory.shrink(0)
        if call.deadline is None:
            return replace(OUT_OF_TIME, attempts=call.attempts)
        return self._end_attempt(call, call.deadline, OUT_OF_TIME)

    async def _fetch(self, call: _Call) -> Fetched:
        fetched = await self._attempt(call)
        if self.retries and self._is_worth_a_retry(fetched):
            fetched = await self._retry(call, fetched)
        if isinstance(fetched, Failure) and fetched.kind is FailureKind.HOST_DOWN and call.failure:
            return call.failure  # why the earlier attempt failed says more than that no other was made
        return fetched

    async def _retry(self, call: _Call, first: Fetched) -> Fetched:
        """Make the further attempts; tenacity schedules them."""
        made = [first]

        async def attempt() -> Fetched:
            # tenacity's first attempt is the one already made: most images need no other, and tenacity costs 35 µs.
            return made.pop() if made else await self._attempt(call)

        async def pause(seconds: float) -> None:
            assert call.failure is not None, "only a failure is worth a retry"
            await self._pauses.pause(seconds, _host_of(call, call.failure), _in_words(call.failure))

        # One AsyncRetrying for each call: a shared one mixes up concurrent calls (jd/tenacity#93).
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=self._pause_s,
            sleep=pause,
            retry=retry_if_result(self._is_worth_a_retry),
            retry_error_callback=_last_result,
        )
        fetched: Fetched = await retrying(attempt)
        return fetched

    def _pause_s(self, state: RetryCallState) -> float:
        """Seconds to wait before the next attempt: none after a 429, since ``Hosts`` then pauses the whole host."""
        failure = _last_result(state)
        is_host_paused = isinstance(failure, Failure) and failure.status == HTTPStatus.TOO_MANY_REQUESTS
        return 0.0 if is_host_paused else self._backoff(state)

    def _is_worth_a_retry(self, fetched: Fetched) -> bool:
        if not isinstance(fetched, Failure) or not fetched.may_pass or fetched.kind in _RETRIED_ELSEWHERE:
            return False
        return fetched.status not in THROTTLED or self._requester.hosts.may_wait_for(
            split_url(fetched.final_url).authority
        )

    async def _attempt(self, call: _Call) -> Fetched:
        """Make one attempt, redirects included."""
        deadline = call.deadline = Deadline(self._limit_s(call.request), self._requester.timers)
        cookies, url = Cookies(), call.url
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._requester.request(Hop(url, call.request, call.memory, deadline, cookies))
            if not isinstance(answer, WebUrl):
                is_redirected = isinstance(answer, Failure) and url is not call.url
                fetched = replace(answer, final_url=url.href) if is_redirected else answer
                break
            url = answer
        else:
            detail = f"more than {self._policy.max_redirects} redirects"
            fetched = Failure(FailureKind.TOO_MANY_REDIRECTS, detail, final_url=url.href)
        if isinstance(fetched, Failure):
            call.memory.shrink(0)  # what was received is gone, so it must not be held during a pause
            if fetched.kind is FailureKind.HOST_DOWN:
                call.deadline = None
                return fetched
        fetched = self._end_attempt(call, deadline, fetched)
        call.failure = fetched if isinstance(fetched, Failure) else None
        return fetched

    def _end_attempt(self, call: _Call, deadline: Deadline, fetched: Fetched) -> Fetched:
        """Count an attempt, and add what it took to how it ended."""
        call.deadline = None
        if deadline.has_run:  # otherwise the host's name or address was refused, and no request was sent
            self._attempts += 1
            call.attempts += 1
        attempts, fetch_ms = call.attempts, deadline.elapsed_s * _MS_PER_S
        permitted = tuple(sorted(deadline.permitted))
        if isinstance(fetched, Body):  # ``replace`` takes longer, and bodies are what most attempts bring
            return Body(
                fetched.content,
                fetched.final_url,
                attempts=attempts,
                fetch_ms=fetch_ms,
                permitted=permitted,
                part=fetched.part,
            )
        return replace(fetched, attempts=attempts, fetch_ms=fetch_ms, permitted=permitted)

    def _limit_s(self, request: Request) -> float:
        """Seconds for one attempt. A range may be large, so it has time in proportion to its size on a slow link."""
        size_bytes = 0 if request.byte_range is None else request.byte_range.size_bytes
        return self._policy.timeout_s + size_bytes / _MIN_RANGE_BYTES_PER_S


def _host_of(call: _Call, failure: Failure) -> str:
    """The host and port at which the latest attempt failed."""
    return (split_url(failure.final_url) if failure.final_url else call.url).authority


def _in_words(failure: Failure) -> str:
    return failure.kind.value if failure.status is None else f"HTTP {failure.status}"


def _last_result(state: RetryCallState) -> Fetched:
    assert state.outcome is not None, "tenacity calls this after an attempt"
    fetched: Fetched = state.outcome.result()
    return fetched
