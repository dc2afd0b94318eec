"""Hosts and URLs that workers share: over real sockets, all in one process, so that each step can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import until
from test_spool import make_outcome, make_result, make_sample

from datafetch.engine.dedup import ReadableSpools, UrlTable
from datafetch.engine.workers.mesh import Mesh
from datafetch.engine.workers.owner import owner_of_host, owner_of_url
from datafetch.engine.workers.shared_urls import SharedUrls
from datafetch.fetch.hosts import HostDownError, Hosts
from datafetch.fetch.shared_hosts import SharedHosts
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult

_WORKERS = 2
_PER_HOST = 2


@dataclass(slots=True)
class Worker:
    """What a worker has of the mesh.

    Attributes:
        mesh: Its connections.
        urls: The URLs of all workers.
        own: The hosts that it owns.
        hosts: The slots of all hosts.
        spools: The spools that it has written.
    """

    mesh: Mesh
    urls: SharedUrls
    own: Hosts
    hosts: SharedHosts
    spools: ReadableSpools


@asynccontextmanager
async def open_worker(number: int) -> AsyncIterator[Worker]:
    """Open a worker that is not connected yet."""
    spools = ReadableSpools(number)
    table = UrlTable()
    async with asyncio.TaskGroup() as group, Mesh(number, _WORKERS, table, spools, group) as mesh:
        own = Hosts(_PER_HOST, 0.01)
        yield Worker(mesh, SharedUrls(mesh, table, spools), own, mesh.share_hosts(own, lambda: None), spools)


async def connect(first: Worker, second: Worker) -> None:
    """Connect two workers, as the coordinator lets them."""
    first.mesh.connect(second.mesh.worker, second.mesh.address)
    second.mesh.connect(first.mesh.worker, first.mesh.address)
    await first.mesh.wait_until_connected()
    await second.mesh.wait_until_connected()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Worker, Worker]]:
    """Two connected workers."""
    async with open_worker(1) as first, open_worker(2) as second:
        await connect(first, second)
        yield first, second


def hosts_of(worker: int) -> list[str]:
    """Return some hosts that a worker owns."""
    return [host for number in range(99) if owner_of_host(host := f"h{number}.example:80", _WORKERS) == worker]


def host_of(worker: int) -> str:
    """Return a host that a worker owns."""
    return hosts_of(worker)[0]


def url_of(worker: int) -> str:
    """Return a URL that a worker owns."""
    return next(url for number in range(99) if owner_of_url(url := f"http://h{number}.example/", _WORKERS) == worker)


async def until_waiting(worker: Worker, waiting: int) -> None:
    """Wait until as many requests wait for a slot at hosts that a worker owns."""
    await until(lambda: worker.own.waiting == waiting)


async def test_slots_of_a_host_are_counted_by_its_owner(pair: tuple[Worker, Worker]) -> None:
    """Whoever takes them; one that is given back goes to whoever waits."""
    one, owner = pair
    host = host_of(2)
    async with AsyncExitStack() as others:
        await others.enter_async_context(owner.hosts.slot(host, 0))
        async with one.hosts.slot(host, 1):
            waiting = asyncio.create_task(others.enter_async_context(one.hosts.slot(host, 2)))
            await until_waiting(owner, 1)
            assert not waiting.done()
        await waiting
    await until_waiting(owner, 0)
    async with one.hosts.slot(host, 3), one.hosts.slot(host, 4):
        pass


async def test_a_request_that_no_longer_waits_leaves_its_place(pair: tuple[Worker, Worker]) -> None:
    """Its slot goes to the next one."""
    one, owner = pair
    host = host_of(2)
    async with owner.hosts.slot(host, 0), AsyncExitStack() as others:
        await others.enter_async_context(owner.hosts.slot(host, 1))
        waiting = asyncio.create_task(others.enter_async_context(one.hosts.slot(host, 2)))
        await until_waiting(owner, 1)
        waiting.cancel()
        await until_waiting(owner, 0)
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_reports_of_all_workers_open_one_circuit(pair: tuple[Worker, Worker]) -> None:
    """And then neither of them is granted a slot; the reason is the same."""
    one, owner = pair
    host = host_of(2)
    for number in range(5):
        async with (one if number % 2 else owner).hosts.slot(host, number) as slot:
            slot.failed("refused")
    reasons = []
    for worker in pair:
        with pytest.raises(HostDownError) as raised:
            await worker.hosts.slot(host, 9).__aenter__()
        reasons.append(str(raised.value))
    assert reasons[0] == reasons[1]
    assert "failed 5 times in a row (refused)" in reasons[0]


async def test_what_the_owner_knows_comes_with_the_slot(pair: tuple[Worker, Worker]) -> None:
    """Whether the host answered, and whether it failed since."""
    one, owner = pair
    host = host_of(2)
    async with one.hosts.slot(host, 0) as slot:
        assert (slot.host_was_healthy, slot.host_answered_recently) == (True, False)
        slot.answered()
        assert slot.host_answered_recently
    async with owner.hosts.slot(host, 1), one.hosts.slot(host, 2) as slot:
        assert (slot.host_was_healthy, slot.host_answered_recently) == (True, True)
        slot.failed("refused")
    async with one.hosts.slot(host, 3) as slot:
        assert not slot.host_was_healthy


async def test_a_host_that_has_used_up_its_pauses_is_not_waited_for_by_others(pair: tuple[Worker, Worker]) -> None:
    """As soon as they are granted a slot."""
    one, owner = pair
    host = host_of(2)
    for number in range(6):
        async with owner.hosts.slot(host, number) as slot:
            slot.answered()
            owner.own._hosts[host].delay_s = 1000
    assert one.hosts.may_wait_for(host)
    async with one.hosts.slot(host, 7):
        assert not one.hosts.may_wait_for(host)


async def test_the_end_of_a_worker_gives_back_what_it_held() -> None:
    """Slots, and locks of URLs."""
    host, url = host_of(2), url_of(2)
    async with open_worker(2) as owner:
        async with open_worker(1) as one:
            await connect(one, owner)
            slots = [one.hosts.slot(host, number) for number in range(_PER_HOST)]
            for slot in slots:
                await slot.__aenter__()
            lock = one.urls.lock(url)
            await lock.__aenter__()
        async with asyncio.timeout(10), owner.hosts.slot(host, 9), owner.urls.lock(url):
            pass


async def test_what_was_granted_holds_at_the_owner_that_replaces_another() -> None:
    """It counts the slots that others have, grants what they wait for, and keeps URLs locked."""
    host, url, dead = host_of(2), url_of(2), f"dead.{host_of(2)}"
    assert owner_of_host(dead, _WORKERS) == 2
    async with open_worker(1) as one, AsyncExitStack() as held:
        async with open_worker(2) as owner:
            await connect(one, owner)
            for number in range(_PER_HOST):
                await held.enter_async_context(one.hosts.slot(host, number))
            lock = one.urls.lock(url)
            await held.enter_async_context(lock)
            waiting = asyncio.create_task(one.hosts.slot(host, 9).__aenter__())
            await until_waiting(owner, 1)
        async with open_worker(2) as other:
            await connect(one, other)
            await until_waiting(other, 1)
            own = asyncio.create_task(other.hosts.slot(host, 10).__aenter__())
            await until_waiting(other, 2)
            for number in range(5):
                async with other.own.slot(dead, number) as slot:
                    slot.failed("refused")
            other_lock = asyncio.create_task(other.urls.lock(url).__aenter__())
            with pytest.raises(HostDownError):  # a round trip, after which the lock would have been granted
                await one.hosts.slot(dead, 0).__aenter__()
            assert not other_lock.done()
            await held.aclose()
            async with asyncio.timeout(10):
                await asyncio.gather(waiting, own, other_lock)


async def test_a_pause_and_an_outage_hold_at_the_owner_that_replaces_another() -> None:
    """Whether they began before the others were connected to it, or after."""
    early, late, down, back, probe = hosts_of(2)[:5]
    async with open_worker(1) as one:
        async with open_worker(2) as owner:
            await throttle(owner, early)
            await connect(one, owner)
            await throttle(owner, late)
            await fail(owner, down)
            await fail(owner, back)
            owner.own.slot(back, 0).answered()  # by a request that was in flight
            async with one.hosts.slot(probe, 0):  # a round trip, so all of that has arrived
                pass
        async with open_worker(2) as other:
            await connect(one, other)
            assert {host for host, _ in other.own.suspensions()} == {early, late, down}
            for host in (early, late):
                reason, resume_at_s = other.own.why_waiting(host)
                assert reason == "HTTP 429"
                assert 20 < (resume_at_s or 0) - asyncio.get_running_loop().time() < 40
            with pytest.raises(HostDownError, match="failed 5 times in a row \\(refused\\)"):
                await one.hosts.slot(down, 9).__aenter__()


async def throttle(worker: Worker, host: str) -> None:
    """Let a host ask for a pause of half a minute."""
    async with worker.own.slot(host, 0) as slot:
        slot.throttled(30.0, "HTTP 429")


async def fail(worker: Worker, host: str) -> None:
    """Let a host fail until its circuit opens."""
    for number in range(1, 6):
        async with worker.own.slot(host, number) as slot:
            slot.failed("refused")


async def write_result(spool: Spool, url: str) -> tuple[ImageResult, int]:
    """Write the result of a URL, and return it with its offset."""
    result = make_result(replace(make_sample(0, images=1), urls=(url,)), 0, make_outcome(0))
    return result, await spool.append(result)


@pytest.mark.parametrize("owner", [1, 2])
async def test_a_result_is_found_by_all_workers(pair: tuple[Worker, Worker], tmp_path: Path, owner: int) -> None:
    """Whoever owns the URL, and whoever has the result."""
    url = url_of(owner)
    spool = await Spool.open(tmp_path / "x.spool")
    async with pair[0].urls.lock(url) as locked:
        assert await locked.lookup() is None
        result, offset = await write_result(spool, url)
        locked.record(result, spool, offset)
    for worker in pair:
        async with worker.urls.lock(url) as locked:
            assert await locked.lookup() == result
    await spool.close()
    for worker in pair:
        async with worker.urls.lock(url) as locked:
            assert await locked.lookup() is None


async def test_a_url_is_locked_for_all_workers(pair: tuple[Worker, Worker]) -> None:
    """One after the other, in the order in which the owner came to know of them."""
    one, owner = pair
    url, order = url_of(2), list[str]()

    async def hold(worker: Worker, name: str) -> None:
        async with worker.urls.lock(url):
            order.append(name)

    async with owner.urls.lock(url):
        first = asyncio.create_task(hold(one, "other"))
        async with one.hosts.slot(host_of(2), 0):  # a round trip, so the owner knows of the first
            second = asyncio.create_task(hold(owner, "owner"))
        async with one.hosts.slot(host_of(2), 1):
            assert not order
    async with asyncio.timeout(10):
        await asyncio.gather(first, second)
    assert order == ["other", "owner"]
