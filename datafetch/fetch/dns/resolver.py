"""DNS: names to addresses that may be connected to, from the one cache that there is.

Rules: a name that does not exist is the web's fault and final; a name server that does not answer is not the name's
fault and may pass. An answer never leads to an address that is not public. Whoever waits for a name waits for the same
question, and whoever stops waiting stops nobody else.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError, is_address
from datafetch.fetch.dns.nameservers import NameAnswer, NameNotFoundError, NameServerError, NameServers

__all__ = ["NameNotFoundError", "NameServerError", "Resolver", "ResolverStatistics"]

_MAX_CACHED_NAMES = 50_000  # 390 bytes each, so 20 MB; images of one host tend to lie close together in a manifest
_MIN_TTL_S = 30.0  # names that change by the second do so for balance; their old address serves as well
_MAX_TTL_S = 3600.0  # a day-old address of a host that has moved would cost its images
_NO_NAME_TTL_S = 300.0  # RFC 2308 allows hours, but a name may be about to exist; within one shard it won't
_FAILURE_TTL_S = 30.0  # RFC 9520: from 1 s to 5 min; the name has been asked for in four rounds already
_MAX_STALE_S = 300.0  # a request may queue that long between its lookup and its connection; also RFC 8767's stale data
_STALE_TTL_S = 30.0  # RFC 8767: so long before servers that failed are asked again

_HOST_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")  # with the underscores that the web does use
_MAX_NAME_CHARS = 253


@dataclass(frozen=True, slots=True)
class ResolverStatistics:
    """A snapshot of a resolver. The counts are of names since it was made.

    Attributes:
        cached: Names in the cache now, those that are not there or failed included.
        hits: Lookups that a new answer in the cache settled.
        coalesced: Lookups that joined one that was under way.
        asked: Names that were asked of the name servers.
        found: Of them, those with an address that may be connected to.
        not_found: Of them, those that do not exist or have no address.
        blocked: Of them, those with addresses of which none is permitted.
        failed: Of them, those that no server answered for.
        stale: Of the failed ones, those whose expired address serves for a while longer.
        rounds: Rounds of questions; what exceeds ``asked`` are repetitions.
        asking: Names being asked for now.
        waiting: Of them, those that wait for their turn.
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
    """What is known of a name: addresses, or the fault to raise."""

    addresses: tuple[str, ...]
    error: Callable[[], OSError] | None
    fresh_until_s: float
    usable_until_s: float

    def check(self) -> None:
        if self.error is not None:
            raise self.error()  # a new one each time: a kept exception would collect tracebacks, and frames with them


class Resolver:
    """Names to addresses, for any number of tasks of one event loop; make it inside that loop.

    Await ``lookup`` before a request's clock starts; ``addresses`` then finds the answer in the cache.

    Args:
        guard: Says which addresses may be connected to; others are dropped from answers.
        nameservers: ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT``; empty uses the system's.
        max_names: The cache's bound; the name that was used the longest ago goes first.
        clock: Seconds that never go back.

    Raises:
        OSError: This process has no descriptors left.
        NameServerError: c-ares can do nothing with such addresses.
    """

    def __init__(
        self,
        guard: AddressGuard,
        nameservers: Sequence[str] = (),
        *,
        max_names: int = _MAX_CACHED_NAMES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = guard
        self._servers = NameServers(nameservers)
        self._max_names = max_names
        self._now_s = clock
        self._cache: OrderedDict[str, _CacheEntry] = OrderedDict()
        self._queries: dict[str, asyncio.Task[_CacheEntry]] = {}
        self._hits = self._coalesced = self._queried = 0
        self._found = self._not_found = self._blocked = self._failed = self._stale = 0

    def statistics(self) -> ResolverStatistics:
        """How it stands now."""
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
        """Make sure that the cache has a new answer for a host; an address needs none.

        Takes microseconds when it has; else as long as the name servers need, 20 seconds when all of them are silent,
        plus the wait for a turn.

        Raises:
            NameNotFoundError: The name does not exist, has no address or is no host name at all.
            NameServerError: No name server answered.
            BlockedAddressError: It has addresses, none of them permitted, or is such an address.
            OSError: With the system's ``errno``, when this process has no descriptors left to ask with.
        """
        if is_address(host):
            self._guard.check(host)
        else:
            (await self._lookup(host)).check()

    async def addresses(self, host: str) -> Sequence[str]:
        """Say which addresses may be connected to, also when the answer expired up to 5 minutes ago.

        Raises:
            OSError: As ``lookup`` does, which it awaits when the cache has nothing.
        """
        if is_address(host):
            self._guard.check(host)
            return (host,)
        entry = self._cache.get(host)  # hosts of URLs are in their final form already
        if entry is None or entry.usable_until_s < self._now_s():
            entry = await self._lookup(host)
        entry.check()
        return entry.addresses

    def is_exception(self, address: str) -> bool:
        """Whether an address is not public, and the operator allowed it all the same."""
        return self._guard.is_exception(address)

    async def close(self) -> None:
        """End all lookups that are under way; whoever still waits for one is told so."""
        asking = tuple(self._queries.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._queries.clear()  # of those that had not even begun
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
            if not task.done():  # it may be, where tasks begin at once
                self._queries[name] = task
        else:
            self._coalesced += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_being_cancelled():
                raise NameServerError(f"{name}: the resolver was closed") from None
            raise

    async def _query(self, name: str) -> _CacheEntry:
        """Ask, and remember what was said. Raises nothing, for there may be nobody left to hear it."""
        self._queried += 1
        try:
            return self._store(name, self._entry_of(await self._servers.resolve(name)))
        except NameNotFoundError as error:
            self._not_found += 1
            return self._store(name, self._error_entry(error, _NO_NAME_TTL_S))
        except NameServerError as error:
            self._failed += 1
            return self._store(name, self._stale_entry(name) or self._error_entry(error, _FAILURE_TTL_S))
        except OSError as error:  # ours, so nothing is remembered of the name
            return _CacheEntry((), partial(OSError, error.errno, error.strerror), 0.0, 0.0)
        finally:
            self._queries.pop(name, None)

    def _entry_of(self, found: NameAnswer) -> _CacheEntry:
        addresses = tuple(filter(self._guard.permits, found.addresses))
        fresh_until_s = self._now_s() + min(max(found.ttl_s, _MIN_TTL_S), _MAX_TTL_S)
        if not addresses:
            self._blocked += 1
            return _CacheEntry((), partial(BlockedAddressError, found.addresses[0]), fresh_until_s, fresh_until_s)
        self._found += 1
        return _CacheEntry(addresses, None, fresh_until_s, fresh_until_s + _MAX_STALE_S)

    def _error_entry(self, error: NameNotFoundError | NameServerError, ttl_s: float) -> _CacheEntry:
        until_s = self._now_s() + ttl_s
        return _CacheEntry((), partial(type(error), *error.args), until_s, until_s)

    def _stale_entry(self, name: str) -> _CacheEntry | None:
        """The expired addresses of a name for which no server answers now, if they expired not long ago."""
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


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def host_name(host: str) -> str:
    """A host in the one form under which it is asked for and kept: ASCII, lower case, without the last dot.

    Raises:
        NameNotFoundError: No such name can exist. Some are refused because c-ares would read another name into them: a
            NUL ends it there, a backslash begins a number.
    """
    name = host.removesuffix(".").lower()
    if not name.isascii() and len(name) <= _MAX_NAME_CHARS:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise NameNotFoundError(f"{host!r} is no host name") from error
    if len(name) > _MAX_NAME_CHARS or not _HOST_NAME.fullmatch(name):
        raise NameNotFoundError(f"{host!r} is no host name")
    return name
