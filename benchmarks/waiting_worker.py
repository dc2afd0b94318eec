"""A worker process that waits instead of fetching and transcoding; everything else is the real one.

Each request takes a slot at its host, as a real one does, and then a fixed time; each image then has the same JPEG. So
what is measured is what workers, and the process that hands out samples, cost by themselves.
"""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any, Self

from PIL import Image

from datafetch.engine.workers import worker
from datafetch.fetch import BodyBudget, FetchPolicy, FetchStatistics, Limiter, Reservation
from datafetch.fetch.dns.resolver import ResolverStatistics
from datafetch.fetch.host_slots import HostSlots
from datafetch.fetch.hosts import Hosts
from datafetch.fetch.requester import Sharing
from datafetch.fetch.urls import parse_url
from datafetch.model.outcome import Body, Encoded, Fetched, Outcome
from datafetch.model.request import Request

SERVICE_VARIABLE = "DATAFETCH_BENCHMARK_SERVICE_S"
"""The environment variable that says how many seconds a request takes."""

_SIDE_PX = 32


class _WaitingFetcher:
    """Waits in place of each request."""

    retries = 0
    unused_proxy = used_proxies = ""

    def __init__(self, policy: FetchPolicy, *, budget: BodyBudget, sharing: Sharing) -> None:
        self._policy = policy
        self._sharing = sharing
        self._budget = budget
        self._service_s = float(os.environ[SERVICE_VARIABLE])
        self._attempts = 0
        self.max_connections = policy.connections or 1
        self._limiter = Limiter(lambda: self.max_connections)

    async def __aenter__(self) -> Self:
        own = Hosts(self._policy.per_host, self._policy.backoff_s)
        self._hosts: HostSlots = self._sharing.share_hosts(own, lambda: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def call_limiter(self, calls_per_connection: int) -> Limiter:
        return Limiter(lambda: self.max_connections * calls_per_connection)

    def statistics(self) -> FetchStatistics:
        names = ResolverStatistics(*(0 for _ in ResolverStatistics.__slots__))
        return FetchStatistics(
            attempts=self._attempts,
            sent_requests=self._attempts,
            fetched_bytes=0,
            outcomes={},
            connections=self.max_connections,
            open_requests=self._limiter.open,
            peak_open_requests=self._limiter.peak,
            waiting_requests=self._limiter.waiting,
            held_bytes=self._budget.held_bytes,
            hosts=self._hosts.statistics(),
            names=names,
            waiting=None,
        )

    async def __call__(
        self, request: str | Request, *, memory: Reservation | None = None, until_s: float | None = None
    ) -> Fetched:
        assert isinstance(request, str) and memory is not None and until_s is None  # noqa: PT018 - as a run calls it
        async with self._hosts.slot(parse_url(request).authority, memory.number) as slot, self._limiter:
            await asyncio.sleep(self._service_s)
            slot.answered()
        self._attempts += 1
        return Body(b"-", request, attempts=1)


class _ConstantTranscoder:
    """Makes the same of each image."""

    def __init__(self, *_: Any, **__: Any) -> None:
        content = io.BytesIO()
        Image.new("RGB", (_SIDE_PX, _SIDE_PX)).save(content, "JPEG")
        self._encoded = Encoded(content.getvalue(), _SIDE_PX, _SIDE_PX, "JPEG", "0" * 64)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __call__(self, _: Fetched | bytes) -> Outcome:
        return self._encoded


def main() -> None:
    """Run the process."""
    vars(worker).update(Fetcher=_WaitingFetcher, Transcoder=_ConstantTranscoder)
    worker.main()
