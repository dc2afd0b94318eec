"""Reach: how much of the web a run reaches, for a caller who compares machines and divides limits among them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from datafetch.errors import DatafetchError
from datafetch.fetch import Fetcher
from datafetch.fetch.fetcher import UNREACHED
from datafetch.model.outcome import Failure, FailureKind
from datafetch.model.report import FetchedShards
from datafetch.model.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Reach:
    """What a run has reached so far.

    Attributes:
        images: The number of images that have ended and were requested.
        unreached: Of them, those that no server answered.
        urls: The URLs of the latest of these.
        is_within_limits: Whether no host has more open requests than ``limit_to`` allows.
    """

    images: int
    unreached: int
    urls: tuple[str, ...]
    is_within_limits: bool

    @classmethod
    def of(cls, outcomes: Mapping[str, int], urls: tuple[str, ...], *, is_within_limits: bool) -> Reach:
        """What was reached, by the number of images that ended with each outcome."""
        images = sum(outcomes.values()) - outcomes.get(FailureKind.NOT_REQUESTED, 0)
        return cls(images, sum(outcomes.get(kind, 0) for kind in UNREACHED), urls, is_within_limits)


class Steered(Protocol):
    """A session while it fetches, in one process or in several, for a caller who steers it."""

    def statistics(self) -> Statistics:
        """How it stands."""
        ...

    def fetched(self) -> FetchedShards:
        """What it has done so far."""
        ...

    def reach(self) -> Reach:
        """How much of the web it reaches."""
        ...

    def limit_to(self, per_host: int, max_rate_bytes_per_s: int | None) -> None:
        """Set other limits than the job has: requests in flight to one host, and bytes a second if there is a cap."""
        ...

    async def count_answered(self, urls: Sequence[str]) -> int | None:
        """Request URLs, and count those that a server answers, in whatever way; None if they can't be requested."""
        ...


async def count_answered(fetch: Fetcher, urls: Sequence[str]) -> int | None:
    """Request URLs, and count those that a server answers; None if this machine can request none."""
    with suppress(DatafetchError, RuntimeError):  # what it lacks its own requests will say; or the fetcher has closed
        fetched = await asyncio.gather(*map(fetch, urls))
        return sum(not (isinstance(one, Failure) and one.kind in UNREACHED) for one in fetched)
    return None
