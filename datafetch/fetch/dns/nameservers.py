"""NameServers: one name asked of the name servers, with patience, until there is an answer or no server gives one.

Rules: a lost packet is nobody's fault and is asked again, here and on no one else's clock. A name is blamed only on a
server's word about all of its addresses. What c-ares keeps in memory is bounded by making its channels again.

An answer over TCP may have 4,000 addresses, which cost 20 ms and 2 MB. So names are asked for over UDP, and what a
packet has of an answer that does not fit is enough; only a name that has no address there that this machine has a way
to is asked for again with TCP allowed, few at a time. A zone that leaves such a question unanswered is not asked any
more for a while, or its names would take the places of all others.
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

# Four rounds of at most 4.5 s and the waits between them: a name whose servers are all silent ends within 20 s. Four
# tries a round are 16 in all, so with 30 % of all packets lost four questions in a thousand million are never heard.
# c-ares waits 250 ms for the first try (five times what a server usually takes, if that is more) and doubles that from
# try to try, so a round of lost packets takes 3 s. A round of SERVFAILs takes none: four of them end within 2 s.
_ROUNDS = 4
_ROUND_S = 4.5
_TRIES = 4
_INITIAL_TIMEOUT_S = 1.0  # while c-ares does not know yet how fast a server is
_ROUND_PAUSE = wait_random_exponential(multiplier=0.5, max=1.0)

# Two questions a name, so 512 in the air. Fewer, and names that nobody answers (18 s each) would hold up the others:
# this lets 14 such names a second pass. More would only add to what small forwarders refuse (dnsmasq takes 150
# questions at once); what is refused is asked again, in rounds up to a second apart.
_MAX_CONCURRENT_NAMES = 256
# 512 answers may come at once, and a small packet takes 768 to 1,280 bytes of it; Linux gives 208 KiB by default.
_RECEIVE_BUFFER_BYTES = 1024 * 1024

# c-ares caches each answer for its TTL, up to an hour (an empty one for an hour), bounds that cache by nothing, and
# pycares has no switch for it: 2.2 KB a name were measured, 440 MB for 200,000 names.
_LOOKUPS_PER_CHANNEL = 5_000
_RECORDS_PER_LOOKUP = 4  # what more an answer has counts as further lookups
MAX_ADDRESSES = 8
"""Of each family, that are kept of a name."""

_MAX_CONCURRENT_TCP_NAMES = 4
_TCP_DEADLINE_S = 60.0  # the wait for one of these places and all rounds together
_SILENT_S = 60.0  # so long a zone is not asked by TCP after it gave no answer
_MAX_SILENT_ZONES = 1000  # that are remembered
_ZONE_LABELS = 2  # the last ones of a name: about what somebody registered

_DESCRIPTORS_PER_CHANNEL = 6  # epoll, inotify, a pipe's two ends, /etc/resolv.conf, a first socket

# Search domains and $HOSTALIASES are for people at a keyboard; EDNS is c-ares's default and lifts its 512 bytes.
_FLAGS = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS
_ACCEPT_TRUNCATED = pycares.ARES_FLAG_IGNTC
_UNSORTED = 1 << 7  # ARES_AI_NOSORT of <ares.h>, which pycares lacks; sorting opens a socket for each address
_NO_SUCH_NAME = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_EBADNAME, aiodns.error.ARES_ENONAME})
_ADDRESS_TYPES = {"A": pycares.QUERY_TYPE_A, "AAAA": pycares.QUERY_TYPE_AAAA}


class NameNotFoundError(OSError):
    """The name does not exist or has no address."""


class NameServerError(OSError):
    """No name server gave an answer."""


class _NoAnswerError(NameServerError):
    """Every name server was silent."""


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """Where a name leads.

    Attributes:
        addresses: IPv4 and IPv6, at least one and at most ``MAX_ADDRESSES`` of each: the family that this machine has
            a way to first (RFC 6724, rule 1), IPv6 where it has to both; within it as the server has them.
        ttl_s: How long that holds, by the shortest of the records that led there.
        records: How many there were in the answer.
    """

    addresses: tuple[str, ...]
    ttl_s: float
    records: int


_Answer = TypeVar("_Answer", bound="NameAnswer | None")
_Ask: TypeAlias = Callable[[aiodns.DNSResolver, str], Coroutine[Any, Any, _Answer]]


class NameServers:
    """The servers to ask: each in turn goes first, and the others stand in for it when it fails.

    Args:
        addresses: ``ADDRESS``, ``ADDRESS:PORT`` or ``[V6]:PORT``; empty for the system's, in the system's order.

    Raises:
        OSError: This process has no descriptors left for them.
        NameServerError: c-ares can do nothing with such addresses.
    """

    def __init__(self, addresses: Sequence[str] = ()) -> None:
        # c-ares's own rotation picks a server at random, dead ones too; within a channel it prefers the living.
        orders = [(*addresses[first:], *addresses[:first]) for first in range(len(addresses))] or [()]
        self._channels = [_Channel(order, _ACCEPT_TRUNCATED) for order in orders]
        self._tcp_channels: list[_Channel] = []  # made when the first name needs it
        self._retired: list[_Channel] = []
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_NAMES)
        self._tcp_slots = asyncio.Semaphore(_MAX_CONCURRENT_TCP_NAMES)
        self._silent_until_s: dict[str, float] = {}  # zones; the one that was silent last stands last
        self.waiting = 0
        """Names that wait for a place among those asked for at once."""
        self.rounds = 0
        """Rounds of questions so far; one a name where nothing is lost."""

    async def resolve(self, name: str) -> NameAnswer:
        """Ask for the addresses of a name.

        Args:
            name: A host name in ASCII, without search domains; /etc/hosts goes first.

        Raises:
            NameNotFoundError: It does not exist or has no address.
            NameServerError: No server said so or otherwise, in four rounds.
            OSError: With its ``errno``, when this process has no descriptors left to ask with.
        """
        found = await self._in_rounds(name, self._round)
        if found is not None and any(":" not in address or _has_route_to(address) for address in found.addresses):
            return found
        try:
            async with asyncio.timeout(_TCP_DEADLINE_S):
                return await self._in_rounds(name, self._round_over_tcp)
        except (TimeoutError, NameServerError) as error:
            if found is not None:
                return found
            if isinstance(error, NameServerError):
                raise
            raise NameServerError(f"{name}: too many other names take TCP to be asked for") from error

    async def close(self) -> None:
        """End all that is being asked."""
        for channel in (*self._channels, *self._tcp_channels, *self._retired):
            await channel.resolver.close()
        self._retired.clear()

    async def _in_rounds(self, name: str, ask: Callable[[str], Awaitable[_Answer]]) -> _Answer:
        try:
            return await ask(name)
        except NameServerError:
            # One round is enough for most, and tenacity costs 150 µs: more than c-ares does for question and answer.
            # The second follows at once, for it may be another server's turn.
            retrying = AsyncRetrying(
                stop=stop_after_attempt(_ROUNDS - 1),
                wait=_ROUND_PAUSE,
                retry=retry_if_exception_type(NameServerError),
                reraise=True,
            )
            return await retrying(ask, name)

    async def _round(self, name: str) -> NameAnswer | None:
        """What a packet has of the answer; None where that is no address."""
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
        """The whole answer, by TCP where it does not fit a packet."""
        async with self._tcp_slots:
            zone = ".".join(name.split(".")[-_ZONE_LABELS:])
            if time.monotonic() < self._silent_until_s.get(zone, 0.0):
                raise NameServerError(f"{name}: {zone} was asked by TCP a moment ago, and gave no answer")
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

    async def _query(self, name: str, channels: list[_Channel], ask: _Ask[_Answer]) -> _Answer:
        channel = self._next_channel(channels)
        channel.open += 1
        try:
            async with asyncio.timeout(_ROUND_S):
                found = await ask(channel.resolver, name)
                if found is not None:
                    channel.lookups += found.records // _RECORDS_PER_LOOKUP
                return found
        except TimeoutError as error:
            _check_socket()
            raise _NoAnswerError(f"{name}: no answer") from error
        except aiodns.error.DNSError as error:
            raise _classify(name, error) from error
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
        except OSError:  # no descriptors to spare: the old one does for as long as that lasts
            return old
        self._retired.append(old)
        return new

    async def _close_retired(self) -> None:
        """Close the retired channels on which nothing is under way any more."""
        idle = [channel for channel in self._retired if not channel.open]
        if idle:
            # All at once, for others come here while one is being closed.
            self._retired = [channel for channel in self._retired if channel.open]
            for channel in idle:
                await channel.resolver.close()


class _Channel:
    """A c-ares channel with its thread, its sockets and its cache, and what it has been used for."""

    def __init__(self, servers: tuple[str, ...], flags: int) -> None:
        # Without descriptors c-ares would not read /etc/resolv.conf and ask 127.0.0.1 from then on.
        _check_free_descriptors(_DESCRIPTORS_PER_CHANNEL)
        _check_socket()
        self.servers = servers
        self.flags = flags
        try:
            self.resolver = aiodns.DNSResolver(
                nameservers=servers or None,
                flags=_FLAGS | flags,
                timeout=_INITIAL_TIMEOUT_S,
                tries=_TRIES,
                socket_receive_buffer_size=_RECEIVE_BUFFER_BYTES,
            )
        except pycares.AresError as error:
            raise NameServerError(f"no channel to {servers or 'the name servers'}: {error}") from error
        self.lookups = 0
        self.open = 0


async def _query_udp(resolver: aiodns.DNSResolver, name: str) -> NameAnswer | None:
    """What a packet has of the answer; None where that is no address, which may not have fitted."""
    try:
        return await _addresses(resolver, name)
    except aiodns.error.DNSError as error:
        if error.args[0] == aiodns.error.ARES_ENODATA:
            return None
        raise


async def _query_tcp(resolver: aiodns.DNSResolver, name: str) -> NameAnswer:
    """The answer, by TCP where it does not fit a packet."""
    try:
        return await _addresses(resolver, name)
    except aiodns.error.DNSError as error:
        if error.args[0] == aiodns.error.ARES_ENODATA:
            await _confirm_no_address(resolver, name)
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
    """So many addresses of each family as are ever tried; an answer may have thousands."""
    families: dict[int, list[Any]] = {}
    for node in nodes:
        family = families.setdefault(node.family, [])
        if len(family) < MAX_ADDRESSES:
            family.append(node)
    chosen = {id(node) for family in families.values() for node in family}
    return [node for node in nodes if id(node) in chosen]


def _preferred_family_first(addresses: Iterable[str]) -> tuple[str, ...]:
    """First those of the family that there is a way to."""
    families: tuple[list[str], list[str]] = ([], [])  # IPv6, IPv4
    for address in addresses:
        families[":" not in address].append(address)
    v6, v4 = families
    return (*v6, *v4) if not v4 or (v6 and _has_route_to(v6[0])) else (*v4, *v6)


def _has_route_to(address: str) -> bool:
    """Whether this machine has a route to an IPv6 address. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((address, 9))
    except OSError:
        return False
    return True


async def _confirm_no_address(resolver: aiodns.DNSResolver, name: str) -> None:
    """Return when each type of address is missing on a server's word; raise what stands against it otherwise.

    c-ares reports the later of its two questions: "no AAAA" hides an A that nobody answered. What it does know comes
    from its cache here.
    """
    for kind, number in _ADDRESS_TYPES.items():
        try:
            result = await resolver.query_dns(name, kind)
        except aiodns.error.DNSError as error:
            if error.args[0] != aiodns.error.ARES_ENODATA:
                raise
        else:
            if any(record.type == number for record in result.answer):
                raise aiodns.error.DNSError(aiodns.error.ARES_ETIMEOUT, "an answer was lost on the way")


def _classify(name: str, error: aiodns.error.DNSError) -> OSError:
    """Say whose fault it is.

    Raises:
        OSError: Ours: this process has no descriptors left. c-ares says of its socket "connection refused", as it does
            of a server that is not there, so we ask the system for one ourselves.
    """
    code, text = error.args[0], error.args[1]
    if code in _NO_SUCH_NAME or code == aiodns.error.ARES_ENODATA:
        return NameNotFoundError(f"{name}: {text}")
    _check_socket()
    kind = _NoAnswerError if code == aiodns.error.ARES_ETIMEOUT else NameServerError
    return kind(f"{name}: {text}")


def _check_socket() -> None:
    """Raise what the system says against one more socket, if it says anything."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _check_free_descriptors(wanted: int) -> None:
    """Raise EMFILE unless this process can still open this many descriptors.

    They are counted and not opened, not even for an instant: another thread may need the last of them just then.
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
