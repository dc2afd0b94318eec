"""FetchStatistics: a frozen snapshot of a fetcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datafetch.fetch.dns.resolver import ResolverStatistics
from datafetch.fetch.hosts import HostStatistics
from datafetch.model.statistics import Waiting


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """A snapshot of a fetcher. Counts are since the fetcher was entered.

    Attributes:
        attempts: Number of attempts that have ended, retries included. An attempt includes its redirects.
        sent_requests: Number of requests sent, one for each redirect included.
        fetched_bytes: Body bytes received, before decompression.
        outcomes: Number of calls that have ended, by ``ok`` or failure kind.
        connections: Number of requests that may be in flight now, hanging ones not counted.
        open_requests: Number of requests in flight now.
        peak_open_requests: The largest number of requests that were in flight at once.
        waiting_requests: Number of requests that wait for a slot among those in flight.
        held_bytes: Bytes of bodies in memory, including those reserved for bytes still to come.
        hosts: A snapshot of the hosts.
        names: A snapshot of the resolver.
        waiting: What most calls wait for before they can send their next request; None if no call waits for its host.
    """

    attempts: int
    sent_requests: int
    fetched_bytes: int
    outcomes: Mapping[str, int]
    connections: int
    open_requests: int
    peak_open_requests: int
    waiting_requests: int
    held_bytes: int
    hosts: HostStatistics
    names: ResolverStatistics
    waiting: Waiting | None
