"""Resolves host names to addresses that may be connected to, with a cache.

Theory of operation. The cache has one entry for each name: its addresses, or the error to raise. An entry goes through
three ages. While it is fresh, it is the answer. After that it is stale: ``lookup`` queries the name servers again,
``addresses`` still uses it for requests that were queued since their lookup, and if no server answers now, its
addresses serve for a while longer (RFC 8767). Past ``usable_until_s`` it is worthless.

A query runs in a task of its own that all concurrent lookups of the name share. A lookup that is cancelled does not
cancel the query, because others may wait for it and the answer goes into the cache anyway.

If the servers fail for a name, they may fail for all. ``Means`` finds that out, and the query is made again once the
servers are back.

Rules: a name that does not exist is a final failure. If the name servers fail for a name while they answer otherwise,
that says nothing about the name, and may pass; if they don't answer at all, it is no outcome. No address leaves the
resolver that the address guard does not permit.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from datafetch.errors import ResourceError
from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError, is_address
from datafetch.fetch.dns.nameservers import NameAnswer, NameNotFoundError, NameServerError, NameServers
from datafetch.fetch.means import Means
from datafetch.fetch.routes import has_public_route

__all__ = ["NameNotFoundError", "NameServerError", "Resolver", "ResolverStatistics"]

_MAX_CACHED_NAMES = 50_000  # 390 bytes each, so 20 MB; images of one host tend to be close together in a manifest
_MIN_TTL_S = 30.0  # shorter TTLs are for load balancing, and the address before serves as well
_MAX_TTL_S = 3600.0  # with a day-old address of a host that has moved, its images would be lost
_NO_NAME_TTL_S = 300.0  # RFC 2308 allows hours, but a missing name may be registered soon; not within one shard
_FAILURE_TTL_S = 30.0  # RFC 9520 allows 1 s to 5 min; the name has been queried in four rounds already
_MAX_STALE_S = 300.0  # a request may be queued this long between lookup and connection; RFC 8767 allows it
_STALE_TTL_S = 30.0  # RFC 8767: time before servers that failed are queried again

_HOST_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")  # underscores are not allowed, but in use
_MAX_NAME_CHARS = 253
_NOT_QUERIED = ".onion"  # c-ares asks no server for these (RFC 7686)


@dataclass(frozen=True, slots=True)
class ResolverStatistics:
    """A snapshot of a resolver. Counts are since it was made.

    Attributes:
        cached: Number of names in the cache now, including those without an address.
        hits: Number of lookups that a fresh entry of the cache answered.
        coalesced: Number of lookups that joined a query already in progress.
        queried: Number of names that the name servers were queried for.
        found: How many of them have an address that may be connected to.
        not_found: How many of them do not exist or have no address.
        blocked: How many of them only have addresses that may not be connected to.
        failed: How many of them no server answered for.
        stale: How many of the failed ones were answered from an expired entry.
        rounds: Number of rounds of queries; what exceeds ``queried`` are repetitions.
        in_progress: Number of names that are being queried for now.
        waiting: How many of these wait for a slot.
    """

    cached: int
    hits: int
    coalesced: int
    queried: int
    found: int
    not_found: int
    blocked: int
    failed: int
    stale: int
    rounds: int
    in_progress: int
    waiting: int


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    """What is known of a name: its addresses, or how to make the error to raise."""

    addresses: tuple[str, ...]
    error: Callable[[], Exception] | None
    fresh_until_s: float
    usable_until_s: float

    def check(self) -> None:
        if self.error is not None:
            raise self.error()  # a new one each time, since a kept exception would collect tracebacks and their frames


class Resolver:
    """Resolves host names, for any number of tasks of one event loop, in which it must be made.

    Await ``lookup`` before the deadline of a request starts to run; ``addresses`` then finds the answer in the cache.

    Args:
        guard: Decides which addresses may be connected to; all others are dropped from answers.
        nameservers: ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT`` each; empty uses the system's name servers.
        other_remedy: What else the operator can do if no name server answers, following another in a sentence.
        max_names: Size of the cache, from which the least recently used name is dropped.
        clock: In seconds, monotonic.
        processes: How many processes ask the name servers, each for its part of the names at a time.

    Attributes:
        servers: The name servers, as something that this machine needs.

    Raises:
        OSError: This process has no descriptors left.
        NameServerError: c-ares does not accept the addresses of the name servers.
    """

    def __init__(
        self,
        guard: AddressGuard,
        nameservers: Sequence[str] = (),
        *,
        other_remedy: str = "",
        max_names: int = _MAX_CACHED_NAMES,
        clock: Callable[[], float] = time.monotonic,
        processes: int = 1,
    ) -> None:
        self._guard = guard
        self._servers = NameServers(nameservers, processes)
        self.servers = Means(
            self._servers.are_there,
            problem=lambda: _no_server(nameservers, refuses=self._servers.refuses),
            remedy=f"check this machine's network, or name another server with --nameserver{other_remedy}",
        )
        self._max_names = max_names
        self._now_s = clock
        self._cache: OrderedDict[str, _CacheEntry] = OrderedDict()
        self._queries: dict[str, asyncio.Task[_CacheEntry]] = {}
        self._hits = self._coalesced = self._queried = 0
        self._found = self._not_found = self._blocked = self._failed = self._stale = 0

    def statistics(self) -> ResolverStatistics:
        """Take a snapshot."""
        return ResolverStatistics(
            cached=len(self._cache),
            hits=self._hits,
            coalesced=self._coalesced,
            queried=self._queried,
            found=self._found,
            not_found=self._not_found,
            blocked=self._blocked,
            failed=self._failed,
            stale=self._stale,
            rounds=self._servers.rounds,
            in_progress=len(self._queries),
            waiting=self._servers.waiting,
        )

    async def lookup(self, host: str) -> None:
        """Make sure that the cache has a fresh entry for a host, and that the host may be connected to.

        With a fresh entry this takes microseconds. Otherwise it takes as long as the name servers need, up to 20
        seconds if all of them are silent, and the wait for a slot; longer while they don't answer anything.

        Args:
            host: A name, or an address, which needs no entry.

        Raises:
            NameNotFoundError: The name does not exist, has no address, or can't be a host name.
            NameServerError: The name servers failed for this name.
            BlockedAddressError: None of the host's addresses may be connected to.
            ResourceError: No name server has answered anything for some time.
            OSError: This process has no descriptors left for a query; has the system's ``errno``.
        """
        if is_address(host):
            self._guard.check(host)
        else:
            (await self._lookup(host)).check()

    async def addresses(self, host: str) -> Sequence[str]:
        """The addresses of a host that may be connected to; the cache's entry may have expired up to 5 minutes ago.

        Raises:
            OSError, ResourceError: In the same cases as ``lookup``, which is awaited if the cache has no entry.
        """
        if is_address(host):
            self._guard.check(host)
            return (host,)
        entry = self._cache.get(host)  # a URL's host is in the form of the cache's keys already
        if entry is None or entry.usable_until_s < self._now_s():
            entry = await self._lookup(host)
        entry.check()
        return entry.addresses

    def is_exception(self, address: str) -> bool:
        """Whether an address is not public but allowed by the operator."""
        return self._guard.is_exception(address)

    async def close(self) -> None:
        """Cancel all queries in progress; lookups that wait for one raise NameServerError."""
        queries = tuple(self._queries.values())
        for task in queries:
            task.cancel()
        await asyncio.gather(*queries, return_exceptions=True)
        self._queries.clear()  # tasks that were cancelled before they began have not removed themselves
        await self.servers.close()
        await self._servers.close()

    async def _lookup(self, host: str) -> _CacheEntry:
        name = host_name(host)
        entry = self._cache.get(name)
        if entry is not None and entry.fresh_until_s >= self._now_s():
            self._hits += 1
            self._cache.move_to_end(name)
            return entry
        task = self._queries.get(name)
        if task is None:
            task = asyncio.create_task(self._query(name), name=f"look up {name}")
            if not task.done():  # with an eager task factory it may be
                self._queries[name] = task
        else:
            self._coalesced += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_being_cancelled():
                raise NameServerError("the resolver was closed") from None
            raise

    async def _query(self, name: str) -> _CacheEntry:
        """Query the name servers and cache the result. Raises nothing, since no lookup may be left to receive it."""
        self._queried += 1
        try:
            return self._store(name, await self._find(name))
        except OSError as error:  # a fault of this machine, which says nothing about the name
            return _CacheEntry((), partial(OSError, error.errno, error.strerror), 0.0, 0.0)
        except ResourceError as error:  # likewise
            return _CacheEntry((), partial(ResourceError, *error.args), 0.0, 0.0)
        finally:
            self._queries.pop(name, None)

    async def _find(self, name: str) -> _CacheEntry:
        """Query the name servers, again if they were missing, and make the entry."""
        while True:
            began_s = time.monotonic()
            try:
                answer = await self._servers.resolve(name)
            except NameNotFoundError as error:
                if not name.endswith(_NOT_QUERIED):
                    self.servers.worked()
                self._not_found += 1
                return self._error_entry(error, _NO_NAME_TTL_S)
            except NameServerError as error:
                stale = self._stale_entry(name)
                if stale is None and await self.servers.was_missing(began_s):
                    continue
                self._failed += 1
                return stale or self._error_entry(error, _FAILURE_TTL_S)
            if answer.ttl_s:  # otherwise it may be from /etc/hosts
                self.servers.worked()
            return self._entry_of(answer)

    def _entry_of(self, answer: NameAnswer) -> _CacheEntry:
        addresses = tuple(filter(self._guard.permits, answer.addresses))
        fresh_until_s = self._now_s() + min(max(answer.ttl_s, _MIN_TTL_S), _MAX_TTL_S)
        if not addresses:
            self._blocked += 1
            return _CacheEntry((), partial(BlockedAddressError, *answer.addresses), fresh_until_s, fresh_until_s)
        self._found += 1
        return _CacheEntry(addresses, None, fresh_until_s, fresh_until_s + _MAX_STALE_S)

    def _error_entry(self, error: NameNotFoundError | NameServerError, ttl_s: float) -> _CacheEntry:
        until_s = self._now_s() + ttl_s
        return _CacheEntry((), partial(type(error), *error.args), until_s, until_s)

    def _stale_entry(self, name: str) -> _CacheEntry | None:
        """The expired addresses of a name that no server answers for now, unless they expired too long ago."""
        old = self._cache.get(name)
        now_s = self._now_s()
        if old is None or not old.addresses or old.usable_until_s < now_s:
            return None
        self._stale += 1
        return replace(old, fresh_until_s=min(now_s + _STALE_TTL_S, old.usable_until_s))

    def _store(self, name: str, entry: _CacheEntry) -> _CacheEntry:
        self._cache[name] = entry
        self._cache.move_to_end(name)
        if len(self._cache) > self._max_names:
            self._cache.popitem(last=False)
        return entry


def _no_server(nameservers: Sequence[str], *, refuses: bool) -> str:
    where = ", ".join(nameservers) or "those of /etc/resolv.conf"
    why = "" if has_public_route() else ", and this machine has no route to any public address"
    what = "the name servers refuse to answer this machine" if refuses else "no name server answers"
    return f"{what} ({where}){why}"


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def host_name(host: str) -> str:
    """Bring a host into the form in which it is queried for and cached: ASCII, lower case, without a trailing dot.

    Raises:
        NameNotFoundError: It can't be a host name. That includes names that c-ares would take for others: it ends a
            name at a NUL, and reads a backslash as the start of a number.
    """
    name = host.removesuffix(".").lower()
    if not name.isascii() and len(name) <= _MAX_NAME_CHARS:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise NameNotFoundError("not the name of a host") from error
    if len(name) > _MAX_NAME_CHARS or not _HOST_NAME.fullmatch(name):
        raise NameNotFoundError("not the name of a host")
    return name
