"""The cap on what is received in a second: it holds for all connections together, and blames no host."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import LOOPBACK, until
from http_server import HttpServer

from datafetch.cli.app import main
from datafetch.cli.options import GivenOptions
from datafetch.engine.job import Job
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.model.outcome import Body, Failure, FailureKind

RATE = 500_000
BURST = RATE / 4  # what the cap lets through at once, besides one response
_PATIENCE_S = 60.0
POLICY = FetchPolicy(allow_net=LOOPBACK, max_rate_bytes_per_s=RATE, connections=16, per_host=16, retries=0)


class _Bodies(HttpServer):
    """Answers ``/SIZE`` with that many bytes, and ``/SIZE/gone`` with as many and status 404; counts what it sends."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def sent_bytes(self) -> int:
        """The size of all responses so far."""
        return sum(self._sizes)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Send head and body at once, as soon as answers are allowed."""
        self.may_answer.wait(_PATIENCE_S)
        _, size, *gone = handler.path.split("/")
        status = "404 Not Found" if gone else "200 OK"
        response = f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(int(size))
        self._sizes.append(len(response))
        handler.wfile.write(response)


@pytest.fixture
def server() -> Iterator[_Bodies]:
    """A server of bodies."""
    with _Bodies() as running:
        yield running


@pytest.mark.both_loops
@pytest.mark.parametrize("path", ["/20000", "/12000/gone"])
async def test_all_connections_together_receive_no_more_than_the_cap(server: _Bodies, path: str) -> None:
    """Also of bodies that nobody wants; and every image arrives at its first attempt."""
    count = 40 if path == "/20000" else 60
    async with Fetcher(POLICY) as fetch:
        started_s = time.monotonic()
        fetched = await asyncio.gather(*(fetch(server.url + path) for _ in range(count)))
        elapsed_s = time.monotonic() - started_s
    assert {one.kind if isinstance(one, Failure) else len(one.content) for one in fetched} == (
        {20_000} if path == "/20000" else {FailureKind.HTTP_STATUS}
    )
    assert {one.attempts for one in fetched} == {1}
    one_response = server.sent_bytes / count
    assert server.sent_bytes >= 700_000
    assert elapsed_s >= (server.sent_bytes - BURST - one_response) / RATE


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_timeout_does_not_count_the_time_that_the_cap_takes(server: _Bodies) -> None:
    """A body may take several times as long as an attempt may, if it is our own cap that makes it wait."""
    policy = replace(POLICY, timeout_s=1.0, stall_timeout_s=1.0)
    async with Fetcher(policy) as fetch:
        started_s = time.monotonic()
        bodies = await asyncio.gather(*(fetch(f"{server.url}/900000") for _ in range(2)))
        elapsed_s = time.monotonic() - started_s
    assert [isinstance(body, Body) and len(body.content) for body in bodies] == [900_000, 900_000]
    assert elapsed_s >= (1_800_000 - BURST - 2 * 512 * 1024) / RATE  # the last of each may be in its read buffer
    assert all(body.fetch_ms < 1000 for body in bodies)


async def test_fetchers_may_share_a_cap(server: _Bodies) -> None:
    """As those do that read a manifest and fetch its images."""
    rate = ReceiveRate(RATE)
    async with Fetcher(POLICY, rate=rate) as one, Fetcher(POLICY, rate=rate) as other:
        started_s = time.monotonic()
        await asyncio.gather(*(fetch(f"{server.url}/20000") for fetch in (one, other) for _ in range(20)))
        elapsed_s = time.monotonic() - started_s
    assert server.sent_bytes >= 800_000
    assert elapsed_s >= (server.sent_bytes - BURST - 20_000) / RATE


async def test_requests_that_are_held_back_are_not_open(server: _Bodies) -> None:
    """Statistics count what has been sent."""
    server.may_answer.clear()
    async with Fetcher(POLICY) as fetch:
        calls = [asyncio.create_task(fetch(f"{server.url}/100")) for _ in range(16)]
        await until(lambda: fetch._requester.limiter.open == 16)
        assert 0 < fetch.statistics().open_requests < 16
        server.may_answer.set()
        await asyncio.gather(*calls)
        assert fetch.statistics().open_requests == 0


async def test_bodies_go_before_requests_and_each_kind_in_its_order() -> None:
    """What has begun is completed first."""
    rate = ReceiveRate(1_000_000)
    await rate.take(300_000)  # 50,000 more than there are
    order: list[str] = []

    async def wait(name: str) -> None:
        if name.startswith("request"):
            await rate.begin()
        else:
            await rate.take(1000)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in ("request 1", "request 2", "body 1", "body 2"):
            group.create_task(wait(name))
    assert order == ["body 1", "body 2", "request 1", "request 2"]


async def test_what_is_cancelled_takes_nothing() -> None:
    """A document's images are cancelled when it is lost; the others go on, and sooner if a request brought less."""
    rate = ReceiveRate(1_000_000)
    await rate.take(10**12)
    cancelled = [asyncio.create_task(rate.take(10**15)) for _ in range(3)]
    last = asyncio.create_task(rate.take(1))
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    rate.settle(10**12 - 300_000, 0)
    await last


async def test_what_requests_bring_is_learned() -> None:
    """A request that brought nothing gives back what it paid in advance, and the next ones pay less."""
    rate = ReceiveRate(1_000_000)
    paid: list[float] = []
    for _ in range(100):
        transfer = await rate.begin()
        paid.append(transfer._paid_bytes)
        transfer.end()
    assert paid[0] == 64 * 1024
    assert paid[-1] < 1024


def test_the_option_takes_sizes() -> None:
    """As the other options in bytes do; a retry can lift the cap of its run."""
    job = Job("coyo", "in", "out")
    assert GivenOptions({"max_rate": "10MB"}).change(job).fetch.max_rate_bytes_per_s == 10 << 20
    capped = replace(job, fetch=POLICY)
    assert GivenOptions({}).change(capped).fetch.max_rate_bytes_per_s == RATE
    assert GivenOptions({"max_rate": "none"}).change(capped).fetch.max_rate_bytes_per_s is None


def test_a_cap_without_a_unit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--max-rate 10`` would take a day for a hundred images."""
    command = ["prepare", "coyo", "--source", str(tmp_path), "--root", str(tmp_path), "--max-rate", "10"]
    assert main(command) == 2
    assert capsys.readouterr().err == ("datafetch: --max-rate must be from 1,024 to 1,125,899,906,842,624, not 10\n")
