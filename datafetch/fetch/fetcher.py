"""url → body or Failure: attempts, the redirects of each, and the pauses between them.

Rules: faults of the web come back as ``Failure``; what is raised is ours. A pause holds nothing that another image
could use.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
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
from yarl import URL

from datafetch.fetch.classify import classify
from datafetch.fetch.cookies import Cookies
from datafetch.fetch.deadline import Deadline
from datafetch.fetch.limiter import Limiter
from datafetch.fetch.memory import BodyBudget, Reservation
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.requester import HTTP_TOO_MANY_REQUESTS, HTTP_UNAVAILABLE, Request, Requester
from datafetch.fetch.statistics import FetchStatistics
from datafetch.fetch.urls import BadUrlError, authority, parse_url
from datafetch.model.outcome import OK, Body, Failure, FailureKind, Fetched

_MAX_BACKOFF_S = 30.0
_DEFAULT_BUDGET_BYTES = 1024**3
_MS_PER_S = 1000.0
_RETRIED_ELSEWHERE = frozenset({FailureKind.DNS_FAILED, FailureKind.HOST_DOWN})
"""The resolver has asked again on its own clock; a host that is down is asked again when its time has come."""


@dataclass(slots=True, eq=False)
class _Call:
    """One image on its way.

    Attributes:
        url: Where it is.
        memory: What its body is held against.
        attempts: Attempts made for it; what is refused before anything is sent is none.
        failure: Of the last of them.
    """

    url: URL
    memory: Reservation
    attempts: int = 0
    failure: Failure | None = None


class Fetcher:
    """url → body or Failure, from any number of tasks of one event loop.

    Use it as ``async with Fetcher(policy) as fetch: body = await fetch(url)``.

    Args:
        policy: What the operator may set.
        budget: What bodies are held against, for a caller who keeps holding them; 1 GiB by default.
    """

    def __init__(self, policy: FetchPolicy | None = None, *, budget: BodyBudget | None = None) -> None:
        self.policy = policy or FetchPolicy()
        self._budget = budget or BodyBudget(_DEFAULT_BUDGET_BYTES)
        self._requester = Requester(self.policy)
        backoff_s = self.policy.backoff_s
        self._backoff = wait_exponential(multiplier=backoff_s, max=_MAX_BACKOFF_S) + wait_random(0, backoff_s)
        self._outcomes: Counter[str] = Counter()
        self._attempts = 0
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._resources.enter_async_context(self._requester)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    @property
    def connections(self) -> int:
        """Requests that may be open now, hanging ones aside; without a fixed number, as many as serve best."""
        return self._requester.concurrency.connections

    @property
    def most_connections(self) -> int:
        """Requests that may be open at any time."""
        return self._requester.concurrency.most

    def look_ahead(self, per_connection: int) -> Limiter:
        """Places for calls, for a caller with more URLs than it will have in the air: ``async with places: …``.

        There are so many for each connection, and one more for each call that waits for its host's turn: it holds
        nothing, and others go on meanwhile.
        """
        return self._requester.look_ahead(per_connection)

    def statistics(self) -> FetchStatistics:
        """How it stands now; only inside ``async with``."""
        requester = self._requester
        return FetchStatistics(
            attempts=self._attempts,
            requests=requester.requests,
            fetched_bytes=requester.received_bytes,
            outcomes=dict(self._outcomes),
            connections=self.connections,
            open=requester.limiter.open,
            waiting=requester.limiter.waiting,
            held_bytes=self._budget.held_bytes,
            hosts=requester.hosts.statistics(),
            names=requester.resolver.statistics(),
        )

    async def __call__(self, url: str, *, memory: Reservation | None = None) -> Fetched:
        """Fetch one image.

        Args:
            url: As published.
            memory: What the body is held against, for a caller who keeps holding it.

        Returns:
            The body, at most ``max_body_bytes`` bytes and at least one, or the failure of the last attempt. Both
            carry the number of attempts.

        Raises:
            ResourceError: This machine has had no descriptors for sockets, or no memory for them, for a minute.
        """
        if memory is None:
            with self._budget.reservation() as own_memory:
                return await self(url, memory=own_memory)
        try:
            call = _Call(parse_url(url), memory)
        except BadUrlError as error:
            fetched: Fetched = classify(error)
        else:
            fetched = await self._fetch(call)
        self._outcomes[OK if isinstance(fetched, Body) else fetched.kind] += 1
        return fetched

    async def _fetch(self, call: _Call) -> Fetched:
        fetched = await self._attempt(call)
        if self.policy.retries and self._is_worth_a_retry(fetched):
            fetched = await self._retry(call, fetched)
        if isinstance(fetched, Failure) and fetched.kind is FailureKind.HOST_DOWN and call.failure:
            return call.failure  # what was tried says more than that nothing more was
        return fetched

    async def _retry(self, call: _Call, first: Fetched) -> Fetched:
        """Make the further attempts, with tenacity as the clock between them."""
        made = [first]

        async def attempt() -> Fetched:
            # tenacity's first attempt is the one that was made: most images need no other, and its clock costs 35 µs.
            return made.pop() if made else await self._attempt(call)

        # One AsyncRetrying a call: a shared one mixes up concurrent calls (jd/tenacity#93).
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.policy.retries + 1),
            wait=self._pause_s,
            retry=retry_if_result(self._is_worth_a_retry),
            retry_error_callback=_last_result,
        )
        fetched: Fetched = await retrying(attempt)
        return fetched

    def _pause_s(self, state: RetryCallState) -> float:
        """Between two attempts. After 429 the host itself is paused, and those it refused come first then."""
        failure = _last_result(state)
        is_paused = isinstance(failure, Failure) and failure.status == HTTP_TOO_MANY_REQUESTS
        return 0.0 if is_paused else self._backoff(state)

    def _is_worth_a_retry(self, fetched: Fetched) -> bool:
        if not isinstance(fetched, Failure) or not fetched.may_pass or fetched.kind in _RETRIED_ELSEWHERE:
            return False
        is_refused = fetched.status in (HTTP_TOO_MANY_REQUESTS, HTTP_UNAVAILABLE)
        return not is_refused or self._requester.hosts.is_patient_with(authority(URL(fetched.final_url, encoded=True)))

    async def _attempt(self, call: _Call) -> Fetched:
        """Ask once, redirects and all."""
        watch = Deadline(self.policy.timeout_s)
        fetched = await self._follow(call, watch)
        if isinstance(fetched, Failure):
            call.memory.shrink(0)  # what was received is gone, before any pause
            if fetched.kind is FailureKind.HOST_DOWN:
                return fetched
        if watch.has_run:  # otherwise the host's name or address was refused, and no request was sent
            self._attempts += 1
            call.attempts += 1
        fetched = replace(
            fetched,
            attempts=call.attempts,
            fetch_ms=watch.passed_s * _MS_PER_S,
            permitted=tuple(sorted(watch.permitted)),
        )
        call.failure = fetched if isinstance(fetched, Failure) else None
        return fetched

    async def _follow(self, call: _Call, watch: Deadline) -> Fetched:
        answer: Fetched | URL = call.url
        cookies = Cookies()
        for _ in range(self.policy.max_redirects + 1):
            assert isinstance(answer, URL), "anything else has been returned"
            answer = await self._requester.ask(Request(answer, call.memory, watch, cookies))
            if not isinstance(answer, URL):
                return answer
        detail = f"more than {self.policy.max_redirects}, the next to {answer}"
        return Failure(FailureKind.TOO_MANY_REDIRECTS, detail[:200], final_url=str(answer))


def _last_result(state: RetryCallState) -> Fetched:
    assert state.outcome is not None, "tenacity calls this after an attempt"
    fetched: Fetched = state.outcome.result()
    return fetched
