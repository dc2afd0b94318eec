"""FetchStatistics: how a fetcher stands, as a frozen snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datafetch.fetch.dns.resolver import ResolverStatistics
from datafetch.fetch.hosts import HostStatistics


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """A snapshot of a fetcher.

    Attributes:
        attempts: Attempts that have ended, retries included; an attempt follows redirects.
        requests: Requests sent so far, redirects included.
        fetched_bytes: Body bytes received so far, as they came.
        outcomes: Calls that have ended, by ``ok`` or failure kind.
        connections: Requests that may be open now; where the number is found, those that hang come on top.
        open: Requests open now.
        waiting: Requests that wait for a place among the open ones.
        held_bytes: Bytes of bodies in hand, promised ones included.
        hosts: How the hosts stand.
        names: How the resolver stands.
    """

    attempts: int
    requests: int
    fetched_bytes: int
    outcomes: Mapping[str, int]
    connections: int
    open: int
    waiting: int
    held_bytes: int
    hosts: HostStatistics
    names: ResolverStatistics
