"""Slots at hosts, the pauses that hosts ask for, and hosts that are down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from conftest import until

from datafetch.fetch import hosts as hosts_module
from datafetch.fetch.hosts import HostDownError, Hosts, OwnSlot

HOST = "example.org:80"


@asynccontextmanager
async def _slots(hosts: Hosts, count: int) -> AsyncIterator[list[OwnSlot]]:
    """Hold several slots of a host until the end of the block."""
    slots = [hosts.slot(HOST, number) for number in range(count)]
    for slot in slots:
        await slot.__aenter__()
    yield slots
    for slot in slots:
        await slot.__aexit__(None, None, None)


async def test_requests_in_flight_to_one_host_are_limited() -> None:
    """Further ones wait, and those to another host don't."""
    hosts = Hosts(2, 0.01)
    async with _slots(hosts, 2):
        third = asyncio.create_task(hosts.slot(HOST, 3).__aenter__())
        await until(lambda: hosts.statistics().waiting == 1)
        async with hosts.slot("example.com:80", 4):
            assert not third.done()
    await (await third).__aexit__(None, None, None)
    assert hosts.statistics().known == 0


async def test_slots_are_granted_in_the_order_of_images() -> None:
    """Retries, whose images came early, are not put behind all that came since."""
    hosts = Hosts(1, 0.01)
    order: list[int] = []

    async def request(number: int) -> None:
        async with hosts.slot(HOST, number):
            order.append(number)

    async with asyncio.TaskGroup() as group, hosts.slot(HOST, 0):
        for number in (5, 3, 4, 1, 2):
            group.create_task(request(number))
        await until(lambda: hosts.statistics().waiting == 5)
    assert order == [1, 2, 3, 4, 5]


async def test_a_refusal_pauses_the_host_and_no_other() -> None:
    """A 429 or 503 pauses all of the host's images, for as long as it says."""
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


async def test_the_delay_that_a_host_may_cause_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound it is no longer paused for, nor are its refusals waited for, even if it answers in between."""
    monkeypatch.setattr(hosts_module, "_MAX_DELAY_S", 0.3)
    hosts = Hosts(4, 30.0)
    number = 0
    monkeypatch.setattr(hosts_module, "_DELAY_RETURNED_PER_ANSWER_S", 0.01)
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


async def test_the_delay_of_a_host_outlives_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that come one after the other, each refused once, are bounded too."""
    monkeypatch.setattr(hosts_module, "_MAX_DELAY_S", 0.05)
    monkeypatch.setattr(hosts_module, "_DELAY_RETURNED_PER_ANSWER_S", 0.0)
    hosts = Hosts(4, 30.0)
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(0.06)
    async with hosts.slot(HOST, 0) as slot:  # the pause is over, and nothing but its length is left to remember
        slot.answered()
    assert not hosts.may_wait_for(HOST)


async def test_a_host_that_answers_may_ask_for_any_number_of_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer returns a second, so a host with a rate limit is obeyed to the end of the run."""
    monkeypatch.setattr(hosts_module, "_MAX_DELAY_S", 0.01)
    hosts = Hosts(4, 30.0)
    for number in range(20):
        async with hosts.slot(HOST, number) as slot:
            slot.throttled(0.001)
        async with hosts.slot(HOST, number) as slot:
            slot.answered()
        assert hosts.may_wait_for(HOST), number


async def test_a_request_that_begins_to_wait_is_reported() -> None:
    """The caller is told, and can let other requests in."""
    reported = []
    hosts = Hosts(1, 0.01, on_wait=lambda: reported.append(hosts.waiting))
    async with hosts.slot(HOST, 0):
        waiting = asyncio.create_task(hosts.slot(HOST, 1).__aenter__())
        await until(lambda: hosts.waiting == 1)
    await (await waiting).__aexit__(None, None, None)
    assert (reported, hosts.waiting) == ([1], 0)


async def test_a_host_that_refuses_an_image_twice_gets_one_request_at_a_time() -> None:
    """It had too many at once; each answer returns only a part of a slot."""
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
async def test_a_refusal_without_a_time_pauses_for_the_back_off(pause_s: float | None) -> None:
    """A missing Retry-After, or one of 0, pauses the host for the back-off."""
    hosts = Hosts(4, 0.1)
    loop = asyncio.get_running_loop()
    async with hosts.slot(HOST, 0) as slot:
        slot.throttled(pause_s)
        refused_at_s = loop.time()
    async with hosts.slot(HOST, 1) as slot:
        assert loop.time() - refused_at_s >= 0.09
        slot.answered()


async def test_refusals_of_concurrent_requests_count_once() -> None:
    """Eight refusals of requests sent before the pause are one, and don't take the host down."""
    hosts = Hosts(8, 0.01)
    async with _slots(hosts, 8) as slots:
        for slot in slots:
            slot.throttled(None)
    async with hosts.slot(HOST, 9) as slot:
        slot.answered()
    assert hosts.statistics().down == 0


async def test_a_host_that_only_refuses_goes_down() -> None:
    """Its images are not worth a pause each."""
    hosts = Hosts(8, 0.0)
    for number in range(6):
        async with hosts.slot(HOST, number) as slot:
            slot.throttled(None)
    with pytest.raises(HostDownError, match="refused 6 times in a row"):
        async with hosts.slot(HOST, 7):
            pytest.fail("no request may be sent")


async def test_a_host_that_fails_goes_down_and_fails_waiting_requests() -> None:
    """After five failures in a row, requests that wait for a slot fail at once."""
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


async def test_an_answer_resets_the_count_of_failures() -> None:
    """A host that answers now and then is not down."""
    hosts = Hosts(5, 0.01)
    for number in range(40):
        async with hosts.slot(HOST, number) as slot:
            if number % 5 == 4:
                slot.answered()
            else:
                slot.failed("timeout")
    assert hosts.statistics().down == 0


async def test_timeouts_do_not_take_down_a_host_that_answers_others() -> None:
    """A URL that hangs is the URL's fault, however many of them hang at once."""
    hosts = Hosts(8, 0.01)
    async with hosts.slot(HOST, 0) as slot:
        slot.answered()
        async with _slots(hosts, 7) as slots:
            for other in slots:
                other.timed_out("nothing came")
    assert hosts.statistics().down == 0
    async with _slots(hosts, 5) as slots:
        for other in slots:
            other.failed("refused")  # a refused connection is the host's fault
    assert hosts.statistics().down == 1


async def test_images_that_are_always_refused_do_not_hold_up_the_others() -> None:
    """An image that was refused twice goes behind the others, and they show that the host answers."""
    hosts = Hosts(1, 0.0)
    for _ in range(2):
        for number in range(8):
            async with hosts.slot(HOST, number) as slot:
                slot.throttled(None)
            async with hosts.slot(HOST, 100) as slot:
                slot.answered()
    order = []

    async def request(number: int) -> None:
        async with hosts.slot(HOST, number):
            order.append(number)

    async with asyncio.TaskGroup() as group, hosts.slot(HOST, 1000):
        for number in (0, 1, 50, 60):
            group.create_task(request(number))
        await until(lambda: hosts.waiting == 4)
    assert order == [50, 60, 0, 1]


async def test_one_probe_decides_whether_a_host_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one probe at a time. If it fails, the host stays down; if it is answered, the host is open again."""
    monkeypatch.setattr(hosts_module, "_DOWN_S", 0.0)
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
    """Failures of requests sent before the host went down change nothing about when it is probed."""
    hosts = Hosts(8, 0.01)
    async with _slots(hosts, 8) as slots:
        for slot in slots[:5]:
            slot.failed("timeout")
        first = hosts._hosts[HOST].retry_at_s
        for slot in slots[5:]:
            slot.failed("timeout")
        assert hosts._hosts[HOST].retry_at_s == first


async def test_a_cancelled_request_takes_no_slot() -> None:
    """This holds while it waits, and at the moment when the slot is granted."""
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


async def test_the_number_of_remembered_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts with failures are remembered up to a bound, and hosts without any are not remembered at all."""
    monkeypatch.setattr(hosts_module, "_MAX_KNOWN_HOSTS", 10)
    hosts = Hosts(1, 0.01)
    for number in range(100):
        async with hosts.slot(f"{number}.example:80", number) as slot:
            slot.failed("refused")
    assert hosts.statistics().known == 10
    for number in range(90, 100):
        async with hosts.slot(f"{number}.example:80", number) as slot:
            slot.answered()
    assert hosts.statistics().known == 0
