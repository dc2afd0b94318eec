"""The resolver, with a real name server that answers from a script."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pycares
import pytest
from conftest import LOOPBACK, until
from nameserver import (
    NO_DATA,
    NXDOMAIN,
    REFUSED,
    ROOT_ZONE,
    SERVFAIL,
    SILENCE,
    Answer,
    NameServer,
    Type,
)
from tenacity import wait_fixed

from datafetch.errors import ResourceError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.dns import nameservers
from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError
from datafetch.fetch.dns.resolver import NameNotFoundError, NameServerError, Resolver
from datafetch.model.outcome import Failure, FailureKind

_GUARD = AddressGuard((ip_network("127.0.0.0/8"), ip_network("::1/128")))
_HERE = Answer(("127.0.0.1",), ttl_s=60)
# c-ares keeps no answer whose TTL is 0, ours does for 30 s: with a clock of its own, a test sees all our queries.
_FLEETING = Answer(("127.0.0.1",), ttl_s=0)
_PRIVATE = Answer(("10.0.0.7",), ttl_s=0)
_PATIENCE_S = 60.0
_NO_SERVER = "127.0.0.1:9"  # nothing listens there: "connection refused"


class _Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a fifth of the usual time for a server that does not answer, and hardly at all between rounds."""
    monkeypatch.setattr(nameservers, "_INITIAL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(nameservers, "_ROUND_PAUSE", wait_fixed(0.01))
    monkeypatch.setattr("datafetch.fetch.means._PATIENCE_AT_START_S", 0.5)


@pytest.fixture
def _no_haste(_haste: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a server that will answer, however busy this machine is: a query that is repeated would count twice."""
    monkeypatch.setattr(nameservers, "_INITIAL_TIMEOUT_S", _PATIENCE_S)


@pytest.fixture
def clock() -> _Clock:
    """A clock that the test sets."""
    return _Clock()


@asynccontextmanager
async def _resolver(*servers: str, clock: _Clock | None = None, max_names: int = 1000) -> AsyncIterator[Resolver]:
    resolver = Resolver(_GUARD, servers, max_names=max_names, clock=clock or time.monotonic)
    try:
        yield resolver
    finally:
        await resolver.close()


async def _addresses(resolver: Resolver, host: str) -> set[str]:
    await resolver.lookup(host)
    return set(await resolver.addresses(host))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (NXDOMAIN, FailureKind.DNS_NOT_FOUND),
        (NO_DATA, FailureKind.DNS_NOT_FOUND),
        (SERVFAIL, FailureKind.DNS_FAILED),
        (_PRIVATE, FailureKind.BLOCKED_ADDRESS),
        (_HERE, FailureKind.CONNECT),
    ],
)
async def test_each_answer_has_its_kind(answer: Answer, kind: FailureKind) -> None:
    """A missing name is final, a server that fails may pass, and a private address is refused."""
    with NameServer(otherwise=answer) as server:
        async with Fetcher(FetchPolicy(nameservers=(server.address,), allow_net=LOOPBACK, retries=0)) as fetch:
            fetched = await fetch("http://cat.example:1/cat.jpg")
    assert isinstance(fetched, Failure)
    assert fetched.kind is kind, fetched
    assert fetched.may_pass == (kind in {FailureKind.DNS_FAILED, FailureKind.CONNECT})


@pytest.mark.usefixtures("_no_haste")
@pytest.mark.parametrize("answer", [SERVFAIL, REFUSED])
async def test_servers_that_report_failures_are_given_up_soon(answer: Answer) -> None:
    """They are queried again in every try and round, without the time that one try waits for a silent server.

    A server that refuses every question is none (``test_means``), so this one answers for the root zone.
    """
    with NameServer({ROOT_ZONE: NO_DATA} if answer is REFUSED else {}, otherwise=answer) as server:
        async with asyncio.timeout(_PATIENCE_S), _resolver(server.address) as resolver:
            with pytest.raises(NameServerError):
                await resolver.lookup("cat.example")
            assert resolver.statistics().failed == 1
            assert server.query_count("cat.example") > resolver.statistics().rounds > 1


@pytest.mark.usefixtures("_no_haste")
@pytest.mark.both_loops
async def test_a_missing_name_server_is_the_fault_of_this_machine() -> None:
    """A closed port says nothing about the name, and nothing is remembered of it."""
    async with asyncio.timeout(_PATIENCE_S), _resolver(_NO_SERVER) as resolver:
        with pytest.raises(ResourceError, match=f"no name server answers .{_NO_SERVER}"):
            await resolver.lookup("cat.example")
        assert (resolver.statistics().failed, resolver.statistics().cached) == (0, 0)


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "..", "cat..example", ".example", "cat.example..", f"{'a' * 64}.example", ".".join(["a" * 60] * 5)),
        *("cat example", "cat\0.example", "cat/../dog", "katze\udcff.example", "\u2603" * 70, "*.example"),
        *("\N{IDEOGRAPHIC FULL STOP}", "a\N{ZERO WIDTH JOINER}b.example", "\n"),
    ],
)
async def test_an_impossible_host_name_is_not_found(host: str) -> None:
    """It counts as a name that does not exist, whether it is recognised here or by a server."""
    with NameServer() as server:
        async with _resolver(server.address) as resolver:
            with pytest.raises(NameNotFoundError):
                await resolver.lookup(host)
            with pytest.raises(NameNotFoundError):
                await resolver.addresses(host)


@pytest.mark.parametrize(
    "host", ["a_b.example", "_a.example", "-a-.example", "cat", "CAT.Example.", "b\xfccher.example"]
)
async def test_unusual_names_are_queried(host: str) -> None:
    """Underscores, single labels, capitals, a trailing dot and other alphabets are all in use."""
    with NameServer(otherwise=_HERE) as server:
        async with _resolver(server.address) as resolver:
            assert await _addresses(resolver, host) == {"127.0.0.1"}


async def test_addresses_need_no_lookup() -> None:
    """An address is judged without a query; names in /etc/hosts take precedence over name servers."""
    with NameServer(otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            await resolver.lookup("127.0.0.1")
            await resolver.lookup("::1")
            for private in ("10.0.0.7", "169.254.169.254", "fe80::1%eth0", "::ffff:10.0.0.7"):
                with pytest.raises(BlockedAddressError):
                    await resolver.lookup(private)
            assert await _addresses(resolver, "localhost") >= {"127.0.0.1"}
            assert resolver.statistics().queried == 1
        assert not server.query_count("localhost")


async def test_both_families_are_found() -> None:
    """The addresses of a name include its IPv4 and its IPv6 addresses."""
    with NameServer({"cat.example": Answer(("127.0.0.1", "127.0.0.2", "::1"))}) as server:
        async with _resolver(server.address) as resolver:
            assert await _addresses(resolver, "cat.example") == {"127.0.0.1", "127.0.0.2", "::1"}


async def test_one_family_is_enough() -> None:
    """A host with IPv6 alone is found."""
    with NameServer({"six.example": Answer(("::1",))}) as server:
        async with _resolver(server.address) as resolver:
            assert await _addresses(resolver, "six.example") == {"::1"}


@pytest.mark.both_loops
async def test_aliases_and_long_answers_are_followed() -> None:
    """A CNAME leads to its target's address, and an answer that does not fit into a packet comes over TCP."""
    script = {
        "www.example": Answer(("127.0.0.1",), alias="cdn.example"),
        "long.example": Answer(tuple(f"127.0.1.{number}" for number in range(200)), is_truncated=True),
    }
    with NameServer(script) as server:
        async with _resolver(server.address) as resolver:
            assert await _addresses(resolver, "www.example") == {"127.0.0.1"}
            assert len(await _addresses(resolver, "long.example")) == nameservers.MAX_ADDRESSES


async def test_few_of_thousands_of_addresses_are_kept() -> None:
    """A few addresses of each family are kept, so that no zone can use up memory or time."""
    many = Answer(
        (*(f"127.0.{n // 250}.{n % 250 + 1}" for n in range(2000)), *(f"::ffff:127.0.1.{n}" for n in range(50)))
    )
    with NameServer({"many.example": many}) as server:
        async with _resolver(server.address) as resolver:
            addresses = await _addresses(resolver, "many.example")
            (channel,) = resolver._servers._channels
    assert 0 < len(addresses) <= 2 * nameservers.MAX_ADDRESSES
    assert channel.lookups > 2000 // 8  # so that the channel, which keeps them all, is soon replaced


@pytest.mark.rotating
@pytest.mark.slow  # takes many seconds; that only a few are queried over TCP at a time is tested next
async def test_names_with_thousands_of_addresses_are_found_in_little_memory() -> None:
    """Over UDP they don't fit; a few at a time are queried over TCP, and all are found. Measured in a child process."""
    many = Answer(tuple(f"127.1.{n // 250}.{n % 250 + 1}" for n in range(4000)), ttl_s=3600, is_truncated=True)
    with NameServer(otherwise=many) as server:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ASK_FOR_MANY, server.address, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await child.communicate()
    found, grown_mib = map(float, printed.split())
    assert found == 200  # a few dozen where all are answered at once: then none is in time
    assert grown_mib < 100


_ASK_FOR_MANY = """
import asyncio, resource, sys
from ipaddress import ip_network

from datafetch.fetch.dns.address_guard import AddressGuard
from datafetch.fetch.dns.resolver import Resolver

async def main():
    resolver = Resolver(AddressGuard((ip_network("127.0.0.0/8"),)), (sys.argv[1],))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = await asyncio.gather(*(resolver.lookup(f"{n}.example") for n in range(200)), return_exceptions=True)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(sum(one is None for one in answers), grown_kib / 1024)
    await resolver.close()

asyncio.run(main())
"""


@pytest.mark.rotating
async def test_a_zone_that_is_silent_over_tcp_delays_only_its_own_names() -> None:
    """Its answers don't fit into a packet, and over TCP it is silent: after a few of its names no more are queried.

    Names of other zones are found, those that lack an address for certain too, and an address of IPv6 does.
    """
    silent = Answer(is_truncated=True, is_silent_by_tcp=True)
    six = Answer(("::1",), is_silent_by_tcp=True)
    many = Answer(tuple(f"127.0.1.{number}" for number in range(200)), is_truncated=True)
    script = {f"n{number}.silent.example": silent for number in range(500)}
    with NameServer({**script, "six.example": six, "empty.test": NO_DATA, "many.invalid": many}) as server:
        async with _resolver(server.address) as resolver:
            hosts = [*script, "six.example", "empty.test", "many.invalid"]
            results = dict(
                zip(hosts, await asyncio.gather(*map(resolver.lookup, hosts), return_exceptions=True), strict=True)
            )
            assert all(isinstance(results[name], NameServerError) for name in script)
            assert results["six.example"] is results["many.invalid"] is None
            assert isinstance(results["empty.test"], NameNotFoundError)
        # Some at once, and some in slots that names of other zones left.
        assert len(server.names_queried_by_tcp & script.keys()) < 10, {str(results[name]) for name in script}


async def test_addresses_that_are_not_permitted_are_dropped() -> None:
    """Of a public and a private address the public one remains; with private ones alone, all are named."""
    script = {
        "mixed.example": Answer(("10.0.0.7", "127.0.0.1", "fd00::1")),
        "inner.example": Answer(("10.0.0.7", "10.0.0.8")),
    }
    with NameServer(script) as server:
        async with _resolver(server.address) as resolver:
            assert await _addresses(resolver, "mixed.example") == {"127.0.0.1"}
            for _ in range(2):
                with pytest.raises(BlockedAddressError, match="are not public addresses") as blocked:
                    await resolver.lookup("inner.example")
                assert set(blocked.value.networks) == {"10.0.0.7", "10.0.0.8"}
            with pytest.raises(BlockedAddressError):
                await resolver.addresses("inner.example")
            assert resolver.statistics().blocked == 1


@pytest.mark.usefixtures("_no_haste")
async def test_lookups_of_one_name_share_one_query() -> None:
    """Fifty concurrent lookups send one query of each type, and the fifty-first is answered from the cache."""
    with NameServer({"cat.example": _HERE}) as server:
        async with _resolver(server.address) as resolver:
            await asyncio.gather(*(resolver.lookup("cat.example") for _ in range(50)))
            await resolver.lookup("cat.example")
            statistics = resolver.statistics()
        assert server.query_count("cat.example", Type.A) == server.query_count("cat.example", Type.AAAA) == 1
    assert (statistics.queried, statistics.coalesced, statistics.hits, statistics.cached) == (1, 49, 1, 1)
    assert (statistics.found, statistics.rounds, statistics.in_progress, statistics.waiting) == (1, 1, 0, 0)


@pytest.mark.both_loops
async def test_a_cancelled_lookup_cancels_no_other() -> None:
    """Cancelling one of two lookups of a name leaves the other its answer; cancelling both leaves it to the cache."""
    lost_once = (SILENCE, _HERE)
    with NameServer({"one.example": lost_once, "both.example": lost_once}) as server:
        async with _resolver(server.address) as resolver:
            first, second, third = (
                asyncio.create_task(resolver.lookup(host)) for host in ("one.example", "one.example", "both.example")
            )
            await until(lambda: resolver.statistics().in_progress == 2)
            first.cancel()
            third.cancel()
            await second
            await until(lambda: resolver.statistics().in_progress == 0)
            assert first.cancelled()
            assert third.cancelled()
            await resolver.lookup("both.example")
            assert resolver.statistics().hits == 1


@pytest.mark.both_loops
async def test_closing_ends_lookups_in_progress() -> None:
    """A lookup that waits for a silent server fails when the resolver is closed."""
    with NameServer(otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            waiting = asyncio.create_task(resolver.lookup("cat.example"))
            await until(lambda: server.query_count("cat.example") >= 1)
        with pytest.raises(NameServerError, match="closed"):
            await waiting


@pytest.mark.usefixtures("_no_haste")
async def test_an_answer_is_cached_for_its_ttl(clock: _Clock) -> None:
    """The TTL is at least 30 s and at most an hour; then the name is queried again."""
    script = {"brief.example": _FLEETING, "long.example": Answer(("127.0.0.1",), ttl_s=10**6)}
    with NameServer(script) as server:
        async with _resolver(server.address, clock=clock) as resolver:
            await asyncio.gather(*map(resolver.lookup, script))
            for later_s, queries in ((29, 2), (2, 3), (3560, 4), (20, 5)):
                clock.now_s += later_s
                await asyncio.gather(*map(resolver.lookup, script))
                assert resolver.statistics().queried == queries
        assert server.query_count("brief.example", Type.A) == 3


@pytest.mark.parametrize(
    ("answer", "error", "lasts_s"),
    [(NXDOMAIN, NameNotFoundError, 300), (SERVFAIL, NameServerError, 30), (_PRIVATE, BlockedAddressError, 30)],
)
async def test_failures_are_cached_for_a_while(
    answer: Answer, error: type[OSError], lasts_s: int, clock: _Clock
) -> None:
    """A missing name is queried again after 5 minutes, a failed one after 30 s."""
    with NameServer({"cat.example": answer}) as server:
        async with _resolver(server.address, clock=clock) as resolver:
            for _ in range(2):
                with pytest.raises(error):
                    await resolver.lookup("cat.example")
                with pytest.raises(error):
                    await resolver.addresses("cat.example")
            assert resolver.statistics().queried == 1
            server.script["cat.example"] = _HERE
            clock.now_s += lasts_s + 1
            assert await _addresses(resolver, "cat.example") == {"127.0.0.1"}


async def test_a_connection_uses_an_answer_that_expired_in_the_queue(clock: _Clock) -> None:
    """``addresses`` uses the cache for 5 minutes after the TTL; ``lookup`` queries again."""
    with NameServer({"cat.example": _FLEETING}) as server:
        async with _resolver(server.address, clock=clock) as resolver:
            await resolver.lookup("cat.example")
            for later_s, queries in ((320, 1), (20, 2)):
                clock.now_s += later_s
                assert await resolver.addresses("cat.example")
                assert resolver.statistics().queried == queries
            clock.now_s += 40
            await resolver.lookup("cat.example")
            assert resolver.statistics().queried == 3


async def test_an_expired_answer_is_used_while_no_server_answers(clock: _Clock) -> None:
    """A name keeps its last address for 5 minutes, and failing servers are queried every 30 s (RFC 8767)."""
    with NameServer({"cat.example": (_FLEETING, SERVFAIL)}) as server:
        async with _resolver(server.address, clock=clock) as resolver:
            await resolver.lookup("cat.example")
            clock.now_s += 40
            for _ in range(2):
                assert await _addresses(resolver, "cat.example") == {"127.0.0.1"}
            assert resolver.statistics().queried == 2
            assert resolver.statistics().stale == 1
            clock.now_s += 300
            with pytest.raises(NameServerError):
                await resolver.lookup("cat.example")


async def test_dns_rebinding_is_blocked(clock: _Clock) -> None:
    """A name that has a private address the second time is blocked from then on."""
    with NameServer({"cat.example": (_FLEETING, _PRIVATE)}) as server:
        async with _resolver(server.address, clock=clock) as resolver:
            await resolver.lookup("cat.example")
            clock.now_s += 40
            with pytest.raises(BlockedAddressError):
                await resolver.lookup("cat.example")
            with pytest.raises(BlockedAddressError):
                await resolver.addresses("cat.example")


async def test_the_cache_is_bounded() -> None:
    """The least recently used names are dropped."""
    with NameServer(otherwise=_HERE) as server:
        async with _resolver(server.address, max_names=10) as resolver:
            for number in range(15):
                await resolver.lookup(f"{number}.example")
                await resolver.lookup("0.example")
            statistics = resolver.statistics()
            assert (statistics.cached, statistics.queried, statistics.hits) == (10, 15, 15)
            await resolver.lookup("1.example")
            assert resolver.statistics().queried == 16


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_lost_packets_fail_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """If 30 % of all queries are lost, the tries of c-ares and our own rounds still find every name."""
    monkeypatch.setattr(nameservers, "_TRIES", 2)  # the same 16 queries of each type, in more rounds that end sooner
    monkeypatch.setattr(nameservers, "_ROUNDS", 8)
    names = [f"host-{number}.example" for number in range(1000)]
    with NameServer(otherwise=None, drop_share=0.3) as server:
        async with _resolver(server.address) as resolver:
            await asyncio.gather(*map(resolver.lookup, names))
            statistics = resolver.statistics()
        assert server.dropped > len(names) * 0.4
    assert statistics.rounds > statistics.queried
    assert (statistics.found, statistics.queried) == (len(names), len(names))


async def test_concurrent_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names beyond the bound wait for a slot, and are found then."""
    monkeypatch.setattr(nameservers, "_MAX_CONCURRENT_NAMES", 4)
    with NameServer(otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            lookups = [asyncio.create_task(resolver.lookup(f"{number}.example")) for number in range(10)]
            await until(lambda: server.query_count("3.example") > 0)
            assert (resolver.statistics().in_progress, resolver.statistics().waiting) == (10, 6)
            assert not server.query_count("4.example")
            server.script |= {f"{number}.example": _HERE for number in range(10)}
            await asyncio.gather(*lookups)


async def test_half_an_answer_is_no_missing_name() -> None:
    """If a server has no IPv6 address and fails for IPv4, the lookup has failed, whichever result comes last."""
    with NameServer() as server:
        server.script_by_type = {("cat.example", Type.A): SERVFAIL, ("cat.example", Type.AAAA): (SILENCE, NO_DATA)}
        async with _resolver(server.address) as resolver:
            with pytest.raises(NameServerError):
                await resolver.lookup("cat.example")


async def test_a_lost_answer_is_not_taken_for_a_zone_that_is_silent_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server fails for the addresses, and has said late that there are none of IPv6, it is queried again."""
    monkeypatch.setattr(nameservers, "_TRIES", 2)
    with NameServer() as server:
        server.script_by_type = {
            ("cat.example", Type.A): (*[SERVFAIL] * 4, _HERE),
            ("cat.example", Type.AAAA): (SILENCE, NO_DATA, SILENCE, NO_DATA),
        }
        async with _resolver(server.address) as resolver:
            await resolver.lookup("cat.example")
            assert resolver.statistics().found == 1


async def test_addresses_that_do_not_fit_are_asked_for_over_tcp_whatever_is_wrong_with_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If that there are many comes last, after a server has failed for IPv6."""
    monkeypatch.setattr(nameservers, "_TRIES", 2)
    many = Answer(tuple(f"127.0.1.{number}" for number in range(200)), is_truncated=True)
    with NameServer() as server:
        server.script_by_type = {("cat.example", Type.A): (SILENCE, many), ("cat.example", Type.AAAA): SERVFAIL}
        async with _resolver(server.address) as resolver:
            await resolver.lookup("cat.example")
        assert server.names_queried_by_tcp == {"cat.example"}


@pytest.mark.parametrize("is_silent", [True, False])
async def test_other_servers_stand_in_for_a_dead_one(is_silent: bool) -> None:
    """If the first server is dead, every name is found, and only the first few are sent to it."""
    names = [f"{number}.example" for number in range(100)]
    with NameServer(otherwise=SILENCE) as dead, NameServer(otherwise=_HERE) as alive:
        async with _resolver(dead.address if is_silent else _NO_SERVER, alive.address) as resolver:
            await resolver.lookup("first.example")
            await resolver.lookup("second.example")
            await asyncio.gather(*map(resolver.lookup, names))
            assert resolver.statistics().found == 102
        # On a busy machine c-ares may take the living one for slow, and ask the dead one for a few names more.
        assert sum(dead.query_count(name) > 0 for name in names) < len(names) / 2


@pytest.mark.usefixtures("_no_haste")
async def test_several_servers_take_turns() -> None:
    """Each is the first choice for its share of the names; one of them has an IPv6 address in brackets."""
    names = [f"{number}.example" for number in range(30)]
    with NameServer(otherwise=_HERE) as one, NameServer(otherwise=_HERE) as other:
        async with _resolver(one.address, other.address_v6 or other.address) as resolver:
            await asyncio.gather(*map(resolver.lookup, names))
        assert [sum(map(server.query_count, names)) for server in (one, other)] == [15, 15]


@pytest.mark.both_loops
async def test_channels_are_replaced_without_losing_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of c-ares has no bound, so a channel is replaced after some names; its queries still succeed."""
    monkeypatch.setattr(nameservers, "_LOOKUPS_PER_CHANNEL", 20)
    script = {f"{number}.example": (_HERE if number % 7 else SILENCE, _HERE) for number in range(200)}
    with NameServer(script) as server:
        async with _resolver(server.address) as resolver:
            await asyncio.gather(*map(resolver.lookup, script))
            assert resolver.statistics().found == 200
            assert resolver.statistics().rounds == 200
            assert not resolver._servers._retired


async def test_a_name_server_must_be_an_address() -> None:
    """The error is raised when the resolver is created, and not for each name."""
    with pytest.raises(NameServerError, match=r"dns\.example"):
        Resolver(_GUARD, ("dns.example",))


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_running_out_of_descriptors_fails_no_name() -> None:
    """The error has the errno and is not cached: once there are descriptors, the same name is found."""
    with NameServer({"cat.example": _HERE}) as server:
        async with _resolver(server.address) as resolver:
            async with _no_descriptors_left():
                for _ in range(2):
                    with pytest.raises(OSError, match="Too many open files") as caught:
                        await resolver.lookup("cat.example")
                    assert caught.value.errno == errno.EMFILE
            assert await _addresses(resolver, "cat.example") == {"127.0.0.1"}
            async with _no_descriptors_left():
                with pytest.raises(OSError, match="Too many open files"):
                    Resolver(_GUARD, (server.address,))


async def test_a_channel_stays_in_use_while_descriptors_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new channel would need six descriptors."""
    monkeypatch.setattr(nameservers, "_LOOKUPS_PER_CHANNEL", 1)
    with NameServer(otherwise=_HERE) as server:
        async with _resolver(server.address) as resolver:
            old = resolver._servers._channels[0]
            with monkeypatch.context() as scarcity:
                scarcity.setattr(nameservers, "_check_free_descriptors", _refuse)
                await asyncio.gather(*(resolver.lookup(f"{number}.example") for number in range(10)))
                assert resolver._servers._channels == [old]
            await resolver.lookup("10.example")
            assert resolver._servers._channels != [old]
            assert resolver.statistics().found == 11


def _refuse(_: int) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@asynccontextmanager
async def _no_descriptors_left() -> AsyncIterator[None]:
    """Let this process open no further descriptor."""
    await _earlier_channels_are_gone()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(_open_descriptors()) + 20, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def _earlier_channels_are_gone() -> None:
    """Wait until pycares, in a thread of its own, has closed all channels of earlier tests one by one.

    Otherwise their descriptors would become free during this test. The last one's are waited for by number, because it
    closes those that have no name of their own after those that have.
    """
    gc.collect()
    before = _open_descriptors()
    last = pycares.Channel()
    its_own = _open_descriptors() - before
    assert its_own
    last.close()
    await until(lambda: not its_own & _open_descriptors())


def _open_descriptors() -> set[int]:
    listed = {
        int(entry.name) for entry in Path("/proc/self/fd").iterdir()
    }  # has the listing's own, which is closed by now
    return {descriptor for descriptor in listed if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True
