"""Turns at hosts: so many at once, pauses they ask for, hosts that are down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from conftest import until

from datafetch.fetch import hosts as room
from datafetch.fetch.hosts import HostDownError, Hosts, HostSlot

HOST = "example.org:80"


@asynccontextmanager
async def _slots(hosts: Hosts, count: int) -> AsyncIterator[list[HostSlot]]:
    """So many turns at once, held until the end."""
    slots = [hosts.slot(HOST, number) for number in range(count)]
    for slot in slots:
        await slot.__aenter__()
    yield slots
    for slot in slots:
        await slot.__aexit__(None, None, None)


async def test_a_host_gets_so_many_requests_at_once() -> None:
    """And another host is not held up by it."""
    hosts = Hosts(2, 0.01)
    async with _slots(hosts, 2):
        third = asyncio.create_task(hosts.slot(HOST, 3).__aenter__())
        await until(lambda: hosts.statistics().waiting == 1)
        async with hosts.slot("example.com:80", 4):
            assert not third.done()
    await (await third).__aexit__(None, None, None)
    assert hosts.statistics().known == 0


async def test_the_image_that_came_first_is_asked_for_first() -> None:
    """So that retries, whose images came early, are not put behind everybody who came since."""
    hosts = Hosts(1, 0.01)
    order: list[int] = []

    async def ask(number: int) -> None:
        async with hosts.slot(HOST, number):
            order.append(number)

    async with asyncio.TaskGroup() as group, hosts.slot(HOST, 0):
        for number in (5, 3, 4, 1, 2):
            group.create_task(ask(number))
        await until(lambda: hosts.statistics().waiting == 5)
    assert order == [1, 2, 3, 4, 5]


async def test_a_refusal_pauses_the_host_and_no_other() -> None:
    """429 and 503 hold for all of the host's images, as long as it says."""
    hosts = Hosts(4, 30.0)
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(30.0)
    async with hosts.slot("example.com:80", 1):
        assert hosts.statistics().paused == 1
    hosts = Hosts(4, 30.0)
    loop = asyncio.get_running_loop()
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(0.2)
        refused_at_s = loop.time()
    async with hosts.slot(HOST, 2):
        assert loop.time() - refused_at_s >= 0.19


async def test_a_host_delays_us_so_much_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it answers others in between, beyond that it pauses nothing, and what it refuses is not waited for."""
    monkeypatch.setattr(room, "_MAX_DELAY_S", 0.3)
    hosts = Hosts(4, 30.0)
    number = 0
    monkeypatch.setattr(room, "_DELAY_RETURNED_PER_ANSWER_S", 0.01)
    while hosts.may_wait_for(HOST):
        async with hosts.slot(HOST, number) as slot:
            slot.throttled(0.1)
        async with hosts.slot(HOST, number + 1) as slot:
            slot.answered()
        number += 2
        assert number < 20
    async with hosts.slot(HOST, number) as slot:
        slot.throttled(30.0)
    assert hosts.statistics().paused == 0
    assert hosts.may_wait_for("example.com:80")


async def test_what_a_host_delayed_us_is_not_forgotten_with_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image after the other, each refused once and never asked for again: that, too, is bounded."""
    monkeypatch.setattr(room, "_MAX_DELAY_S", 0.05)
    monkeypatch.setattr(room, "_DELAY_RETURNED_PER_ANSWER_S", 0.0)
    hosts = Hosts(4, 30.0)
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(0.06)
    async with hosts.slot(HOST, 0) as slot:  # the pause is over, and nothing else is to be remembered
        slot.answered()
    assert not hosts.may_wait_for(HOST)


async def test_a_host_that_delivers_may_ask_for_pauses_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer earns it a second, so one with a limit of requests a minute is obeyed to the end of the run."""
    monkeypatch.setattr(room, "_MAX_DELAY_S", 0.01)
    hosts = Hosts(4, 30.0)
    for number in range(20):
        async with hosts.slot(HOST, number) as slot:
            slot.throttled(0.001)
        async with hosts.slot(HOST, number) as slot:
            slot.answered()
        assert hosts.may_wait_for(HOST), number


async def test_whoever_waits_is_told_of() -> None:
    """So that others may be let in meanwhile."""
    told = []
    hosts = Hosts(1, 0.01, on_wait=lambda: told.append(hosts.waiting))
    async with hosts.slot(HOST, 0):
        waiting = asyncio.create_task(hosts.slot(HOST, 1).__aenter__())
        await until(lambda: hosts.waiting == 1)
    await (await waiting).__aexit__(None, None, None)
    assert (told, hosts.waiting) == ([1], 0)


async def test_a_host_that_refuses_an_image_again_gets_one_request_at_a_time() -> None:
    """Then there were too many of us, and each answer brings only a little back."""
    hosts = Hosts(8, 0.0)
    for _ in range(2):
        async with hosts.slot(HOST, 0) as slot:
            slot.throttled(0.0)
    async with hosts.slot(HOST, 1) as slot:
        second = asyncio.create_task(hosts.slot(HOST, 2).__aenter__())
        await until(lambda: hosts.waiting == 1)
        slot.answered()
    await (await second).__aexit__(None, None, None)


@pytest.mark.parametrize("pause_s", [None, 0.0])
async def test_a_refusal_without_a_time_pauses_for_a_while(pause_s: float | None) -> None:
    """The back-off is the first pause, and the least: a host that says "now" is not taken at its word."""
    hosts = Hosts(4, 0.1)
    loop = asyncio.get_running_loop()
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(pause_s)
        refused_at_s = loop.time()
    async with hosts.slot(HOST, 1) as slot:
        assert loop.time() - refused_at_s >= 0.09
        slot.answered()


async def test_refusals_of_one_moment_count_once() -> None:
    """Eight answers to requests of before the pause are one refusal, not the end of the host."""
    hosts = Hosts(8, 0.01)
    async with _slots(hosts, 8) as slots:
        for slot in slots:
            slot.throttled(None)
    async with hosts.slot(HOST, 9) as slot:
        slot.answered()
    assert hosts.statistics().down == 0


async def test_a_host_that_only_refuses_is_given_up() -> None:
    """It is not worth a pause for each of its images."""
    hosts = Hosts(8, 0.0)
    for number in range(6):
        async with hosts.slot(HOST, number) as slot:
            slot.throttled(None)
    with pytest.raises(HostDownError, match="refused 6 times in a row"):
        async with hosts.slot(HOST, 7):
            pytest.fail("must not be asked")


async def test_a_host_that_fails_is_left_alone_and_those_who_wait_are_told() -> None:
    """Five failures in a row; whoever waits for its turn hears at once."""
    hosts = Hosts(5, 0.01)
    async with _slots(hosts, 5) as slots:
        waiting = asyncio.create_task(hosts.slot(HOST, 6).__aenter__())
        await until(lambda: hosts.statistics().waiting == 1)
        for slot in slots:
            slot.failed("refused")
        with pytest.raises(HostDownError, match="failed 5 times in a row"):
            await waiting
    with pytest.raises(HostDownError):
        await hosts.slot(HOST, 7).__aenter__()
    assert hosts.statistics().down == 1


async def test_an_answer_between_failures_starts_the_count_anew() -> None:
    """A host that answers now and then is there."""
    hosts = Hosts(5, 0.01)
    for number in range(40):
        async with hosts.slot(HOST, number) as slot:
            if number % 5 == 4:
                slot.answered()
            else:
                slot.failed("timeout")
    assert hosts.statistics().down == 0


async def test_a_host_that_answers_others_is_not_given_up_for_what_times_out() -> None:
    """A URL that hangs is a matter of the URL, however many of them there are at once."""
    hosts = Hosts(8, 0.01)
    async with hosts.slot(HOST, 0) as slot:
        slot.answered()
        async with _slots(hosts, 7) as slots:
            for other in slots:
                other.timed_out("nothing came")
    assert hosts.statistics().down == 0
    async with _slots(hosts, 5) as slots:
        for other in slots:
            other.failed("refused")  # that is another matter
    assert hosts.statistics().down == 1


async def test_images_that_are_always_refused_do_not_stand_in_the_others_way() -> None:
    """After two refusals of its own an image lets the others go before it, and they show that the host is there."""
    hosts = Hosts(1, 0.0)
    for _ in range(2):
        for number in range(8):
            async with hosts.slot(HOST, number) as slot:
                slot.throttled(None)
            async with hosts.slot(HOST, 100) as slot:
                slot.answered()
    order = []

    async def ask(number: int) -> None:
        async with hosts.slot(HOST, number):
            order.append(number)

    async with asyncio.TaskGroup() as group, hosts.slot(HOST, 1000):
        for number in (0, 1, 50, 60):
            group.create_task(ask(number))
        await until(lambda: hosts.waiting == 4)
    assert order == [50, 60, 0, 1]


async def test_one_probe_finds_out_whether_the_host_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; when it fails the host stays down, when it is answered all may ask again."""
    monkeypatch.setattr(room, "_DOWN_S", 0.0)
    hosts = Hosts(5, 0.01)
    async with _slots(hosts, 5) as slots:
        for slot in slots:
            slot.failed("refused")
    async with hosts.slot(HOST, 6) as probe:
        with pytest.raises(HostDownError):
            await hosts.slot(HOST, 7).__aenter__()
        probe.failed("refused")
    async with hosts.slot(HOST, 8) as probe:
        probe.answered()
    assert hosts.statistics().down == 0
    async with hosts.slot(HOST, 9) as slot:
        slot.answered()
    assert hosts.statistics().known == 0


async def test_late_failures_do_not_lengthen_an_outage() -> None:
    """Requests of before count once; the host is asked again when the first while is over."""
    hosts = Hosts(8, 0.01)
    async with _slots(hosts, 8) as slots:
        for slot in slots[:5]:
            slot.failed("timeout")
        first = hosts._hosts[HOST].retry_at_s
        for slot in slots[5:]:
            slot.failed("timeout")
        assert hosts._hosts[HOST].retry_at_s == first


async def test_who_is_cancelled_takes_no_turn() -> None:
    """Neither while waiting nor in the instant of the turn."""
    hosts = Hosts(1, 0.01)
    async with hosts.slot(HOST, 0):
        waiting = asyncio.create_task(hosts.slot(HOST, 1).__aenter__())
        await until(lambda: hosts.statistics().waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        instant = asyncio.create_task(hosts.slot(HOST, 2).__aenter__())
        await until(lambda: hosts.statistics().waiting == 1)
    instant.cancel()
    with pytest.raises(asyncio.CancelledError):
        await instant
    assert hosts.statistics().known == 0


async def test_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million hosts with a failure each are not all remembered, and those that are well not at all."""
    monkeypatch.setattr(room, "_MAX_KNOWN_HOSTS", 10)
    hosts = Hosts(1, 0.01)
    for number in range(100):
        async with hosts.slot(f"{number}.example:80", number) as slot:
            slot.failed("refused")
    assert hosts.statistics().known == 10
    for number in range(90, 100):
        async with hosts.slot(f"{number}.example:80", number) as slot:
            slot.answered()
    assert hosts.statistics().known == 0
