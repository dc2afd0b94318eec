"""The fetcher against a real server: what can be fetched is fetched, and everything else has one reason."""

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LOOPBACK, until

from datafetch.demo.origin import Origin
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.classify import SocketsExhaustedError, classify
from datafetch.fetch.concurrency import affordable_connections
from datafetch.fetch.connection import ConnectionLostError
from datafetch.fetch.happy_eyeballs import connect_to_first
from datafetch.model.outcome import Body, Failure, FailureKind

# Short, so that the tests are; the figures themselves don't matter.
QUICK = FetchPolicy(allow_net=LOOPBACK, timeout_s=2.5, backoff_s=0.01, retries=2, max_body_bytes=1 << 20)

Pictures = tuple[Path, list[str]]


@pytest.fixture
def unique() -> Iterator[str]:
    """Parts of URLs that no other test uses, so that the origin's counts are for this test alone."""
    return iter(lambda: os.urandom(8).hex(), "")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("", FailureKind.BAD_URL),
        ("cat.jpg", FailureKind.BAD_URL),
        ("http://", FailureKind.BAD_URL),
        ("//127.0.0.1:1/cat.jpg", FailureKind.CONNECT),
        ("ws://127.0.0.1/cat.jpg", FailureKind.BAD_URL),
        ("http://[", FailureKind.BAD_URL),
        ("http://example.org:99999/", FailureKind.BAD_URL),
        ("ftp://example.org/cat.jpg", FailureKind.BAD_URL),
        ("file:///etc/passwd", FailureKind.BAD_URL),
        ("javascript:alert(1)", FailureKind.BAD_URL),
        ("data:image/png;base64,AAAA", FailureKind.BAD_URL),
        (f"http://{'a' * 70}.example/", FailureKind.DNS_NOT_FOUND),
        ("http://10.1.2.3/cat.jpg", FailureKind.BLOCKED_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", FailureKind.BLOCKED_ADDRESS),
        ("http://[::1]/", FailureKind.BLOCKED_ADDRESS),
        ("http://[::ffff:10.0.0.1]/", FailureKind.BLOCKED_ADDRESS),
        ("https://0.0.0.0/", FailureKind.BLOCKED_ADDRESS),
        ("http://127.0.0.1:1/", FailureKind.CONNECT),
    ],
)
async def test_urls_that_lead_nowhere(url: str, kind: FailureKind) -> None:
    """A URL that can't or mustn't be requested is a failure like any other, and nothing is raised."""
    async with Fetcher(FetchPolicy(allow_net=LOOPBACK, retries=0)) as fetch:
        fetched = await fetch(url)
    assert isinstance(fetched, Failure)
    assert fetched.kind is kind, fetched


@pytest.mark.parametrize("behaviour", ["well", "until_close", "chunked"])
async def test_the_bound_for_bodies_holds_to_the_byte(origin: Origin, pictures: Pictures, behaviour: str) -> None:
    """It holds whether the size is announced by a length or counted."""
    folder, names = pictures
    size_bytes = (folder / names[0]).stat().st_size
    url = origin.url(behaviour, names[0])
    fetched = []
    for max_body_bytes in (size_bytes, size_bytes - 1):
        async with Fetcher(replace(QUICK, max_body_bytes=max_body_bytes)) as fetch:
            fetched.append(await fetch(url))
    taken, refused = fetched
    assert isinstance(taken, Body)
    assert taken.content == (folder / names[0]).read_bytes()
    assert isinstance(refused, Failure)
    assert refused.kind is FailureKind.TOO_LARGE


async def test_loopback_is_refused_unless_it_is_allowed(origin: Origin, pictures: Pictures) -> None:
    """Without ``allow_net`` not even a request is sent."""
    before = await asyncio.to_thread(origin.requests)
    async with Fetcher(FetchPolicy()) as fetch:
        fetched = await fetch(origin.url("well", pictures[1][0]))
    assert isinstance(fetched, Failure)
    assert fetched.kind is FailureKind.BLOCKED_ADDRESS
    assert await asyncio.to_thread(origin.requests) == before


async def test_only_failures_that_may_pass_are_retried(
    origin: Origin, pictures: Pictures, unique: Iterator[str]
) -> None:
    """The server sees as many requests as that calls for."""
    missing, broken, flaky = (
        origin.url(behaviour, pictures[1][0], next(unique)) for behaviour in ("missing", "broken", "flaky")
    )
    async with Fetcher(QUICK) as fetch:
        await asyncio.gather(fetch(missing), fetch(broken), fetch(flaky))
        assert fetch.statistics().attempts == 1 + 3 + 2
    counts = await asyncio.to_thread(origin.requests)
    assert [counts["/" + url.split("/", 3)[3]] for url in (missing, broken, flaky)] == [1, 3, 2]


@pytest.mark.rotating
async def test_queueing_does_not_count_against_the_host(origin: Origin, pictures: Pictures) -> None:
    """Three slow answers through one connection take longer than the timeout, and all arrive."""
    policy = FetchPolicy(allow_net=LOOPBACK, connections=1, timeout_s=2.5, retries=0)
    async with Fetcher(policy) as fetch:
        fetched = await asyncio.gather(*(fetch(origin.url("slow", pictures[1][0], number)) for number in range(3)))
    assert all(isinstance(one, Body) for one in fetched)
    assert sum(one.fetch_ms for one in fetched) > 2500


async def test_a_retry_waits_without_a_slot(origin: Origin, pictures: Pictures, unique: Iterator[str]) -> None:
    """While one image waits for its second attempt, the only slot goes to the others."""
    policy = FetchPolicy(allow_net=LOOPBACK, connections=1, backoff_s=30.0, retries=1)
    async with Fetcher(policy) as fetch:
        waiting = asyncio.create_task(fetch(origin.url("flaky", pictures[1][0], next(unique))))
        await until(lambda: fetch.statistics().attempts == 1)
        bodies = await asyncio.gather(*(fetch(origin.url("well", name)) for name in pictures[1]))
        assert all(isinstance(one, Body) for one in bodies)
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.both_loops
async def test_the_connection_of_a_body_that_is_too_large_is_dropped() -> None:
    """Refusing a body means dropping the connection, not reading on."""
    lost = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"." * 65536)
                await writer.drain()
        except ConnectionError:
            lost.set()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Fetcher(QUICK) as fetch, asyncio.timeout(5):
            fetched = await fetch(f"http://127.0.0.1:{port}/")
            await lost.wait()
    assert isinstance(fetched, Failure)
    assert fetched.kind is FailureKind.TOO_LARGE


@pytest.mark.both_loops
async def test_idle_connections_are_few() -> None:
    """After one request to each of 300 hosts, no more connections than the bound stay open."""
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.")
        except asyncio.IncompleteReadError:
            open_now -= 1
            writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", 0, backlog=512) as server:  # noqa: S104 - 127.0.0.0/8
        port = server.sockets[0].getsockname()[1]
        policy = FetchPolicy(allow_net=LOOPBACK)  # with time: one loop serves all of these hosts
        async with Fetcher(policy) as fetch:
            urls = [f"http://127.0.{number // 250}.{number % 250 + 1}:{port}/" for number in range(300)]
            fetched = await asyncio.gather(*(fetch(url) for url in urls))
            assert all(isinstance(one, Body) for one in fetched)
            await fetch(urls[0])
            await until(lambda: 0 < open_now <= 130)


@pytest.mark.both_loops
async def test_a_request_keeps_its_time_limit_when_the_fetcher_closes() -> None:
    """What is still in progress then ends when its time is up, and does not hang."""
    is_asked, is_left = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        is_asked.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        is_left.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Fetcher(replace(QUICK, retries=0)) as fetch:
            fetching = asyncio.create_task(fetch(f"http://127.0.0.1:{port}/"))
            await is_asked.wait()
        failure = await fetching
        await is_left.wait()
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TIMEOUT


async def test_requests_name_the_project_and_the_contact() -> None:
    """They accept images without compression, and have no cookies."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\n\r\n.")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Fetcher(FetchPolicy(allow_net=LOOPBACK, contact="someone@example.org")) as fetch:
            for _ in range(2):
                await fetch(f"http://127.0.0.1:{port}/cat.jpg")
    for head in heads:
        assert b"\r\nUser-Agent: datafetch/" in head
        assert b"(+https://" in head
        assert b"; someone@example.org)" in head
        assert b"\r\nAccept: image/*\r\n" in head
        assert b"\r\nAccept-Encoding: identity\r\n" in head
        assert b"Cookie" not in head


@pytest.mark.both_loops
async def test_leaving_ends_every_request(origin: Origin, pictures: Pictures) -> None:
    """A cancelled fetch leaves no request open."""
    async with Fetcher(QUICK) as fetch:
        stuck = asyncio.create_task(fetch(origin.url("stuck", pictures[1][0])))
        await until(lambda: fetch.statistics().open_requests == 1)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        assert fetch.statistics().open_requests == 0


@pytest.mark.both_loops
async def test_long_headers_are_accepted() -> None:
    """Real sites have security policies of 30 KB."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Security-Policy: " + b"a" * 30_000)
        writer.write(b"\r\nContent-Length: 1\r\nConnection: close\r\n\r\n.")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Fetcher(QUICK) as fetch:
            assert isinstance(await fetch(f"http://127.0.0.1:{port}/"), Body)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ConnectionLostError(24, "Too many")])
def test_running_out_of_descriptors_is_not_a_failure(error: OSError) -> None:
    """An exception is raised for it, in whichever form it occurs."""
    with pytest.raises(ResourceError, match="ulimit"):
        classify(error)


async def test_running_out_of_descriptors_at_one_address_is_not_a_failure() -> None:
    """The host may be fine, whatever its other addresses report."""
    errors = {"192.0.2.1": errno.ENETUNREACH, "192.0.2.2": errno.EMFILE, "192.0.2.3": errno.ECONNREFUSED}

    async def connect(address: str) -> None:
        raise OSError(errors[address], os.strerror(errors[address]))

    with pytest.raises(OSError, match="Too many open files") as raised:
        await connect_to_first([*errors], connect, lambda _: None)
    with pytest.raises(SocketsExhaustedError, match="ulimit"):
        classify(raised.value)


def test_connections_fit_the_descriptors() -> None:
    """No more connections are used than this process has descriptors for."""
    assert affordable_connections(8) == 8
    assert affordable_connections(10**9) < 10**9


@pytest.mark.parametrize(("timeout_s", "silence_s"), [(5.0, 20.0), (30.0, 20.0), (30.5, 30.5), (120.0, 120.0)])
def test_a_long_timeout_lets_servers_be_silent(timeout_s: float, silence_s: float) -> None:
    """It is given for servers that take long to answer; what is set for silence itself holds in any case."""
    assert FetchPolicy(timeout_s=timeout_s).silence_s == silence_s
    assert FetchPolicy(timeout_s=timeout_s, stall_timeout_s=7.0).silence_s == 7.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections": 0},
        {"retries": -1},
        {"retries": 61},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"connect_timeout_s": float("inf")},
        {"stall_timeout_s": float("inf")},
        {"max_body_bytes": 0},
        {"per_host": 0},
        {"connect_timeout_s": 0},
        {"stall_timeout_s": -1},
        {"opt_out": "sometimes"},
        {"allow_net": ("127.0.0.1/33",)},
        {"nameservers": ("ns.example.org",)},
        {"nameservers": ("1.2.3",)},
        {"nameservers": ("1.2.3.4:99999",)},
        {"contact": "me\r\nX-Evil: 1"},
    ],
)
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    """It is refused before anything is fetched."""
    with pytest.raises(ConfigurationError):
        FetchPolicy(**wrong)  # type: ignore[arg-type]
