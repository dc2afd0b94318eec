"""Queries the name servers for one name, again and again, until one of them answers or all have had their chance.

Theory of operation. c-ares does the queries. It repeats them itself, several times within a round, and a round that
brings no answer is followed by another one, up to four. Each channel of c-ares has the servers in another order, and
the channels take turns, so that each server is the first choice for its share of the names.

Rounds go over UDP at first. If an answer does not fit into a packet, what the packet holds of it is enough: an answer
over TCP may have 4,000 addresses, which take 20 ms and 2 MB. Only if the packet holds no address that this machine has
a route to is the name queried again with TCP allowed, a few names at a time. A zone that is silent over TCP is then
not queried over TCP for a minute, because its names would otherwise occupy all of the few slots.

c-ares never drops anything from the cache that each of its channels has. So a channel that has answered some thousand
names is replaced by a new one, retired, and closed once its last query is over.

Rules: packets get lost, so repeating a query costs no attempt of an image. A name counts as missing only
if a server has said so about both types of address. What c-ares keeps in memory is bounded.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeAlias, TypeVar

import aiodns
import pycares
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from datafetch.fetch.routes import has_public_route, has_route_to

# Four rounds of at most 4.5 s and the pauses between them: a name whose servers are all silent fails within 20 s. Four
# tries in each round are 16 in all, so if 30 % of all packets are lost, four queries in a billion are never received.
# c-ares waits 250 ms for the first try (or five times what the server usually takes, if that is more) and doubles that
# from try to try, so a round of lost packets takes 3 s. A round of SERVFAILs takes no time; four of them end in 2 s.
_ROUNDS = 4
_ROUND_S = 4.5
_TRIES = 4
_INITIAL_TIMEOUT_S = 1.0  # until c-ares has measured how fast a server is
_ROUND_PAUSE = wait_random_exponential(multiplier=0.5, max=1.0)

# A name takes two queries, so 512 are in flight. With fewer, names that no server answers for (18 s each) would hold
# up the others; this lets 14 of them pass each second. With more, small forwarders would refuse more of them (dnsmasq
# takes 150 at once); refused queries are repeated in rounds up to a second apart.
_MAX_CONCURRENT_NAMES = 256
# 512 answers may arrive at once, each of which takes 768 to 1,280 bytes of the buffer; Linux's default is 208 KiB.
_RECEIVE_BUFFER_BYTES = 1024 * 1024

# c-ares caches each answer for its TTL of up to an hour, an empty one for an hour. The cache has no bound, and pycares
# can't turn it off. It was measured to take 2.2 KB for each name, or 440 MB for 200,000 names.
_LOOKUPS_PER_CHANNEL = 5_000
_RECORDS_PER_LOOKUP = 4  # an answer with more records counts as several lookups
MAX_ADDRESSES = 8
"""Number of addresses of each family that are kept for a name."""

_MAX_CONCURRENT_TCP_NAMES = 4
_TCP_DEADLINE_S = 60.0  # for the wait for a slot and all rounds together
_SILENT_S = 60.0  # how long a zone is not queried over TCP after it was silent
_MAX_SILENT_ZONES = 1000  # remembered at most
_ZONE_LABELS = 2  # the last two labels of a name are, roughly, the registered domain

_DESCRIPTORS_PER_CHANNEL = 6  # epoll, inotify, a pipe's two ends, /etc/resolv.conf, a first socket

# Search domains and $HOSTALIASES are for interactive use. EDNS, which allows more than 512 bytes, is c-ares's default.
_FLAGS = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS
_ACCEPT_TRUNCATED = pycares.ARES_FLAG_IGNTC
_UNSORTED = 1 << 7  # ARES_AI_NOSORT in <ares.h>, missing in pycares; sorting would open a socket for each address
_NO_SUCH_NAME = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_EBADNAME, aiodns.error.ARES_ENONAME})
_NO_ANSWER = frozenset({aiodns.error.ARES_ETIMEOUT, aiodns.error.ARES_ECONNREFUSED, aiodns.error.ARES_EREFUSED})
_KNOWN_TO_ALL = ((".", "NS"), ("a.root-servers.net", "A"))  # some servers don't answer the former, which is abused
_ADDRESS_TYPES = {"A": pycares.QUERY_TYPE_A, "AAAA": pycares.QUERY_TYPE_AAAA}


class NameNotFoundError(OSError):
    """The name does not exist or has no address."""


class NameServerError(OSError):
    """No name server gave an answer, or only errors."""


class _NoAnswerError(NameServerError):
    """All name servers were silent."""


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """The addresses of a name.

    Attributes:
        addresses: IPv4 and IPv6, at least one and at most ``MAX_ADDRESSES`` of each family. The family that this
            machine has a route to comes first (RFC 6724, rule 1), IPv6 if it has routes to both. Within a family they
            are in the order of the answer.
        ttl_s: How long the answer is valid: the shortest TTL of its records.
        records: Number of records in the answer.
    """

    addresses: tuple[str, ...]
    ttl_s: float
    records: int


_Answer = TypeVar("_Answer", bound="NameAnswer | None")
_QueryFunction: TypeAlias = Callable[[aiodns.DNSResolver, str], Coroutine[Any, Any, _Answer]]


class NameServers:
    """Queries name servers. They take turns at being the first choice, and stand in for one another.

    Args:
        addresses: ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT`` each; empty uses the system's, in the system's order.
        processes: How many processes query them, each for its part of the names at a time.

    Attributes:
        waiting: Number of names that wait for a slot.
        rounds: Number of rounds of queries so far; one for each name if nothing is lost.
        refuses: Whether the last probe (``are_there``) was refused.

    Raises:
        OSError: This process has no descriptors left.
        NameServerError: c-ares does not accept the addresses.
    """

    def __init__(self, addresses: Sequence[str] = (), processes: int = 1) -> None:
        # c-ares's own rotation picks servers at random, dead ones included. Without it, a channel prefers live ones.
        orders = [(*addresses[first:], *addresses[:first]) for first in range(len(addresses))] or [()]
        self._channels = [_Channel(order, _ACCEPT_TRUNCATED) for order in orders]
        self._tcp_channels: list[_Channel] = []  # made when the first name needs it
        self._retired: list[_Channel] = []
        self._slots = asyncio.Semaphore(max(1, _MAX_CONCURRENT_NAMES // processes))
        self._tcp_slots = asyncio.Semaphore(max(1, _MAX_CONCURRENT_TCP_NAMES // processes))
        self._silent_until_s: dict[str, float] = {}  # by zone, the one that was silent last in the last position
        self.waiting = 0
        self.rounds = 0
        self.refuses = False

    async def resolve(self, name: str) -> NameAnswer:
        """Find the addresses of a name.

        Args:
            name: A fully qualified host name in ASCII. What /etc/hosts has for it takes precedence.

        Raises:
            NameNotFoundError: The name does not exist or has no address.
            NameServerError: In four rounds no server gave an answer.
            OSError: This process has no descriptors left for a query; has the system's ``errno``.
        """
        answer = await self._in_rounds(name, self._round)
        if answer is not None and any(":" not in address or has_route_to(address) for address in answer.addresses):
            return answer
        try:
            async with asyncio.timeout(_TCP_DEADLINE_S):
                return await self._in_rounds(name, self._round_over_tcp)
        except (TimeoutError, NameServerError) as error:
            if answer is not None:
                return answer
            if isinstance(error, NameServerError):
                raise
            raise NameServerError("too many other names need TCP for their answers") from error

    async def are_there(self) -> bool:
        """Whether any server answers when asked for the servers of the root zone, or for the address of one of them.

        A server on this machine that reports an error may just lack the network. So that counts as an answer only if
        there is a route to the world. One that refuses to answer serves others, and not this machine.

        Raises:
            OSError: This process has no descriptors left for a query.
        """
        # A new channel has no answer in its cache. It asks each server once, for this is about the present moment.
        self.refuses = False
        channel = _Channel(self._channels[0].servers, _ACCEPT_TRUNCATED, is_probe=True)
        self._channels.append(self._channels.pop(0))  # so that the next probe begins with another server
        try:
            async with asyncio.timeout(_ROUND_S):
                for name, kind in _KNOWN_TO_ALL:
                    if await self._is_answered(channel.resolver, name, kind):
                        return True
        except TimeoutError:
            pass
        finally:
            await channel.resolver.close()
        _check_socket()
        return False

    async def _is_answered(self, resolver: aiodns.DNSResolver, name: str, kind: str) -> bool:
        try:
            await resolver.query_dns(name, kind)
        except aiodns.error.DNSError as error:
            code = error.args[0]
            self.refuses |= code == aiodns.error.ARES_EREFUSED
            return (
                code == aiodns.error.ARES_ENODATA
                or code in _NO_SUCH_NAME
                or (code not in _NO_ANSWER and has_public_route())
            )
        return True

    async def close(self) -> None:
        """Cancel all queries and close all channels."""
        for channel in (*self._channels, *self._tcp_channels, *self._retired):
            await channel.resolver.close()
        self._retired.clear()

    async def _in_rounds(self, name: str, make_round: Callable[[str], Awaitable[_Answer]]) -> _Answer:
        try:
            return await make_round(name)
        except NameServerError:
            # One round is enough for most names, and tenacity costs 150 µs, more than c-ares does for query and answer.
            # The second round follows at once, since the next channel may have another server as its first choice.
            retrying = AsyncRetrying(
                stop=stop_after_attempt(_ROUNDS - 1),
                wait=_ROUND_PAUSE,
                retry=retry_if_exception_type(NameServerError),
                reraise=True,
            )
            return await retrying(make_round, name)

    async def _round(self, name: str) -> NameAnswer | None:
        """Make one round over UDP; return None if no address fits into a packet."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.rounds += 1
        try:
            return await self._query(name, self._channels, _query_udp)
        finally:
            self._slots.release()
            await self._close_retired()

    async def _round_over_tcp(self, name: str) -> NameAnswer:
        """Make one round with TCP allowed, which brings the whole answer."""
        async with self._tcp_slots:
            zone = ".".join(name.split(".")[-_ZONE_LABELS:])
            if time.monotonic() < self._silent_until_s.get(zone, 0.0):
                raise NameServerError("its zone did not answer over TCP a moment ago")
            if not self._tcp_channels:
                self._tcp_channels.append(_Channel(self._channels[0].servers, 0))
            try:
                return await self._query(name, self._tcp_channels, _query_tcp)
            except _NoAnswerError:
                self._mark_silent(zone)
                raise
            finally:
                await self._close_retired()

    def _mark_silent(self, zone: str) -> None:
        self._silent_until_s.pop(zone, None)
        self._silent_until_s[zone] = time.monotonic() + _SILENT_S
        if len(self._silent_until_s) > _MAX_SILENT_ZONES:
            del self._silent_until_s[next(iter(self._silent_until_s))]

    async def _query(self, name: str, channels: list[_Channel], query: _QueryFunction[_Answer]) -> _Answer:
        channel = self._next_channel(channels)
        channel.open += 1
        try:
            async with asyncio.timeout(_ROUND_S):
                answer = await query(channel.resolver, name)
                if answer is not None:
                    channel.lookups += answer.records // _RECORDS_PER_LOOKUP
                return answer
        except TimeoutError as error:
            _check_socket()
            raise _NoAnswerError("no answer") from error
        except aiodns.error.DNSError as error:
            raise _classify(error) from error
        finally:
            channel.open -= 1

    def _next_channel(self, channels: list[_Channel]) -> _Channel:
        channel = channels.pop(0)
        if channel.lookups >= _LOOKUPS_PER_CHANNEL:
            channel = self._replace(channel)
        channel.lookups += 1
        channels.append(channel)
        return channel

    def _replace(self, old: _Channel) -> _Channel:
        try:
            new = _Channel(old.servers, old.flags)
        except OSError:  # there are no descriptors to spare now, so the old one stays in use
            return old
        self._retired.append(old)
        return new

    async def _close_retired(self) -> None:
        """Close the retired channels whose queries are over."""
        idle = [channel for channel in self._retired if not channel.open]
        if idle:
            # All are removed before the first one is closed, since other tasks get here while that is awaited.
            self._retired = [channel for channel in self._retired if channel.open]
            for channel in idle:
                await channel.resolver.close()


class _Channel:
    """A c-ares channel, which has a thread, sockets and a cache of its own, and how much it has been used.

    Args:
        is_probe: Whether it asks each server only once, and waits longer for that.

    Attributes:
        servers: Its name servers, the first choice first; empty for the system's.
        flags: Its flags besides those that all channels have.
        lookups: Number of lookups so far.
        open: Number of lookups in progress.
    """

    def __init__(self, servers: tuple[str, ...], flags: int, *, is_probe: bool = False) -> None:
        # Without a free descriptor c-ares can't read /etc/resolv.conf, and would query 127.0.0.1 from then on.
        _check_free_descriptors(_DESCRIPTORS_PER_CHANNEL)
        _check_socket()
        self.servers = servers
        self.flags = flags
        try:
            self.resolver = aiodns.DNSResolver(
                nameservers=servers or None,
                flags=_FLAGS | flags,
                timeout=2 * _INITIAL_TIMEOUT_S if is_probe else _INITIAL_TIMEOUT_S,
                tries=1 if is_probe else _TRIES,
                socket_receive_buffer_size=_RECEIVE_BUFFER_BYTES,
            )
        except pycares.AresError as error:
            raise NameServerError(f"cannot use {servers or 'the name servers'}: {error}") from error
        self.lookups = 0
        self.open = 0


async def _query_udp(resolver: aiodns.DNSResolver, name: str) -> NameAnswer | None:
    """Query over UDP; return None if the packets hold no address, since there may be some that did not fit."""
    try:
        return await _addresses(resolver, name)
    except aiodns.error.DNSError as error:
        if error.args[0] != aiodns.error.ARES_ENODATA:
            raise
        # What is wrong with the other type of address is no reason not to ask for this one over TCP.
        await _confirm_no_address(resolver, name, ("A",))
        return None


async def _query_tcp(resolver: aiodns.DNSResolver, name: str) -> NameAnswer:
    """Query over UDP, and over TCP if the answer does not fit into a packet."""
    try:
        return await _addresses(resolver, name)
    except aiodns.error.DNSError as error:
        if error.args[0] == aiodns.error.ARES_ENODATA:
            await _confirm_no_address(resolver, name, _ADDRESS_TYPES)
        raise


async def _addresses(resolver: aiodns.DNSResolver, name: str) -> NameAnswer:
    result = await resolver.getaddrinfo(name, type=socket.SOCK_STREAM, flags=_UNSORTED)
    nodes = result.nodes
    if not nodes:
        raise aiodns.error.DNSError(aiodns.error.ARES_ENODATA, "answer without an address")
    addresses = _preferred_family_first(
        dict.fromkeys(node.addr[0].decode("ascii") for node in _limit_per_family(nodes))
    )
    ttl_s = min([node.ttl for node in nodes] + [alias.ttl for alias in result.cnames])
    return NameAnswer(addresses, ttl_s, len(nodes) + len(result.cnames))


def _limit_per_family(nodes: Sequence[Any]) -> Sequence[Any]:
    """The first addresses of each family, as many as are kept; an answer may have thousands."""
    families: dict[int, list[Any]] = {}
    for node in nodes:
        family = families.setdefault(node.family, [])
        if len(family) < MAX_ADDRESSES:
            family.append(node)
    chosen = {id(node) for family in families.values() for node in family}
    return [node for node in nodes if id(node) in chosen]


def _preferred_family_first(addresses: Iterable[str]) -> tuple[str, ...]:
    """Put the family first that this machine has a route to, and IPv6 if it has routes to both."""
    families: tuple[list[str], list[str]] = ([], [])  # IPv6, IPv4
    for address in addresses:
        families[":" not in address].append(address)
    v6, v4 = families
    return (*v6, *v4) if not v4 or (v6 and has_route_to(v6[0])) else (*v4, *v6)


async def _confirm_no_address(resolver: aiodns.DNSResolver, name: str, kinds: Iterable[str]) -> None:
    """Return if a server has said of these types of address that there are none; raise otherwise.

    A lookup makes two queries, and c-ares reports the result of the later one. So "no AAAA" may hide that no server
    answered for A. What c-ares does know is in its cache, so this sends only the query whose answer is missing.

    Raises:
        DNSError: No server has answered for one of the types.
        NameServerError: There is an address, so the lookup lost an answer and may be repeated.
    """
    for kind in kinds:
        try:
            result = await resolver.query_dns(name, kind)
        except aiodns.error.DNSError as error:
            if error.args[0] != aiodns.error.ARES_ENODATA:
                raise
        else:
            if any(record.type == _ADDRESS_TYPES[kind] for record in result.answer):
                raise NameServerError("an answer was lost")


def _classify(error: aiodns.error.DNSError) -> OSError:
    """Translate an error of c-ares by whose fault it is: the name's, or its servers'.

    Raises:
        OSError: It is our own: this process has no descriptors left. c-ares then reports "connection refused", as it
            does for a server that is not there, so this tries to open a socket itself.
    """
    code, text = error.args[0], error.args[1]
    if code in _NO_SUCH_NAME or code == aiodns.error.ARES_ENODATA:
        return NameNotFoundError(text)
    _check_socket()
    kind = _NoAnswerError if code == aiodns.error.ARES_ETIMEOUT else NameServerError
    return kind(text)


def _check_socket() -> None:
    """Raise OSError if the system does not allow one more socket."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _check_free_descriptors(wanted: int) -> None:
    """Raise EMFILE unless this process can still open this many descriptors.

    They are counted without opening any, because another thread may need the last of them at that moment.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = filter(_is_free, range(limit) if limit != resource.RLIM_INFINITY else count())
    if sum(1 for _ in islice(free, wanted)) < wanted:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return True
    return False
