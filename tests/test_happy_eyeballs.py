"""Hosts with several addresses, some of which don't answer: two sockets at most find the one that does."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK, until
from nameserver import Answer, NameServer
from origin import black_holes
from runs import OPTIONS, Run, RunFolders

from datafetch.demo.manifest import write_coyo_source
from datafetch.fetch import Fetcher, FetchPolicy, concurrency, happy_eyeballs
from datafetch.fetch.happy_eyeballs import connect_to_first, interleave_families
from datafetch.model.outcome import Failure, FailureKind

_HOLES = tuple(str(IPv4Address("127.9.0.1") + number) for number in range(60))
_TRIED = 4  # addresses of a name
_SOCKETS = 2  # of a request


@pytest.fixture(autouse=True)
def _is_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays before the next address is tried."""
    monkeypatch.setattr(happy_eyeballs, "_NEXT_ADDRESS_DELAY_S", 0.01)
    monkeypatch.setattr(happy_eyeballs, "_SECOND_SOCKET_S", 0.02)


@dataclass
class _Host:
    """Connects to addresses of which some fail, some answer, and some swallow what comes.

    Attributes:
        answers: What a connection to an address leads to; those that are not here never answer.
        tried: All addresses that were tried, in order.
        open: The sockets that are held now.
        most_open: The most that ever were.
        dropped: What was connected and not needed.
    """

    answers: dict[str, Callable[[], Awaitable[str]]] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    dropped: list[str] = field(default_factory=list)

    async def connect(self, address: str) -> str:
        self.tried.append(address)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self.answers.get(address, _never)()
        finally:
            self.open -= 1

    async def reach(self, *addresses: str) -> str:
        return await connect_to_first(addresses, self.connect, self.dropped.append)


async def _never() -> str:
    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return await never


def _connects(name: str) -> Callable[[], Awaitable[str]]:
    async def answer() -> str:
        return name

    return answer


def _fails(number: int) -> Callable[[], Awaitable[str]]:
    async def answer() -> str:
        raise OSError(number, os.strerror(number))

    return answer


@pytest.mark.parametrize("count", [2, _TRIED, 60])
async def test_silent_addresses_take_two_sockets(count: int) -> None:
    """A call uses two sockets for any number of silent addresses, and none once it is cancelled."""
    host = _Host()
    reaching = asyncio.create_task(host.reach(*_HOLES[:count]))
    await until(lambda: len(host.tried) == min(count, _TRIED) and host.open == _SOCKETS)
    assert host.most_open == _SOCKETS == happy_eyeballs.MAX_SOCKETS
    reaching.cancel()
    await asyncio.gather(reaching, return_exceptions=True)
    await until(lambda: host.open == 0)
    assert host.tried == list(_HOLES[: min(count, _TRIED)])


async def test_a_host_that_fails_at_four_addresses_is_not_tried_at_a_fifth() -> None:
    """It counts as down, and the error is that of the first address."""
    host = _Host({address: _fails(errno.ECONNREFUSED) for address in _HOLES[1:_TRIED]})
    host.answers |= {_HOLES[0]: _fails(errno.ENETUNREACH), _HOLES[_TRIED]: _connects("the fifth")}
    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        await host.reach(*_HOLES)
    assert host.tried == list(_HOLES[:_TRIED])


async def test_the_last_of_four_is_reached_if_three_are_silent() -> None:
    """All but the first share the second socket."""
    host = _Host({_HOLES[3]: _connects("the last")})
    assert await host.reach(*_HOLES[:_TRIED]) == "the last"
    await until(lambda: host.open == 0)
    assert (host.tried, host.most_open, host.dropped) == (list(_HOLES[:_TRIED]), _SOCKETS, [])


async def test_after_a_failure_the_next_address_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays apply only to addresses that are silent."""
    monkeypatch.setattr(happy_eyeballs, "_NEXT_ADDRESS_DELAY_S", 3600)
    host = _Host({_HOLES[0]: _fails(errno.ECONNREFUSED), _HOLES[1]: _connects("the second")})
    assert await host.reach(*_HOLES[:3]) == "the second"
    assert host.tried == list(_HOLES[:2])


async def test_a_slow_first_address_is_waited_for() -> None:
    """It keeps its socket while the others are tried, and may answer after them."""
    is_awake = asyncio.Event()

    async def answer_late() -> str:
        await is_awake.wait()
        return "the first"

    host = _Host({_HOLES[0]: answer_late})
    reaching = asyncio.create_task(host.reach(*_HOLES))
    await until(lambda: len(host.tried) == _TRIED)
    is_awake.set()
    assert await reaching == "the first"


async def test_a_connection_that_comes_too_late_is_dropped() -> None:
    """This includes one that is established at the moment when it is given up."""

    async def answer_all_the_same() -> str:
        try:
            return await _never()
        except asyncio.CancelledError:
            return "late"

    host = _Host({_HOLES[0]: answer_all_the_same, _HOLES[1]: _connects("in time")})
    assert await host.reach(*_HOLES[:2]) == "in time"
    await until(lambda: host.dropped == ["late"])

    both = asyncio.Event()

    def at_once_as(name: str) -> Callable[[], Awaitable[str]]:
        async def answer() -> str:
            await both.wait()
            return name

        return answer

    host = _Host({_HOLES[0]: at_once_as("a"), _HOLES[1]: at_once_as("b")})
    reaching = asyncio.create_task(host.reach(*_HOLES[:2]))
    await until(lambda: host.open == _SOCKETS)
    both.set()
    taken = await reaching
    await until(lambda: [taken, *host.dropped] in (["a", "b"], ["b", "a"]))


async def test_running_out_of_descriptors_is_raised() -> None:
    """It is raised whatever errors the other addresses had, since no host is to blame for it."""
    host = _Host({_HOLES[0]: _fails(errno.ECONNREFUSED), _HOLES[1]: _fails(errno.EMFILE)})
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        await host.reach(*_HOLES[:2])


def test_address_families_alternate() -> None:
    """The family of the first address comes first, and an unreachable family costs one address (RFC 8305, 4)."""
    assert interleave_families(["::1", "::2", "::3", "127.0.0.1"]) == ["::1", "127.0.0.1", "::2", "::3"]


def test_descriptors_are_reserved_for_all_sockets_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules that need the number of sockets agree on it."""
    assert concurrency._DESCRIPTORS_PER_REQUEST == happy_eyeballs.MAX_SOCKETS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert concurrency.affordable_connections(1000) == (1024 - concurrency._RESERVED_DESCRIPTORS) // _SOCKETS


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_names_with_sixty_silent_addresses_take_two_descriptors_each() -> None:
    """Of fifty concurrent requests to such names, each uses two descriptors and fails."""
    requests = 50
    with NameServer(otherwise=Answer(_HOLES)) as names, black_holes(_HOLES) as port:
        policy = FetchPolicy(
            allow_net=LOOPBACK, connections=requests, retries=0, connect_timeout_s=2.0, nameservers=(names.address,)
        )
        async with Fetcher(policy) as fetch:
            before = most = _descriptors()
            pending = {asyncio.create_task(fetch(f"http://{n}.example:{port}/cat.jpg")) for n in range(requests)}
            tasks = frozenset(pending)
            while pending:
                _, pending = await asyncio.wait(pending, timeout=0.01)
                most = max(most, _descriptors())
    ends = [task.result() for task in tasks]
    assert {end.kind for end in ends if isinstance(end, Failure)} == {FailureKind.CONNECT}, ends
    # Behind the sockets are a channel of c-ares and its connections to the name server.
    assert before + requests < most <= before + requests * _SOCKETS + 16


def _descriptors(process: int | str = "self") -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.rotating
@pytest.mark.slow
def test_a_run_with_few_descriptors_survives_silent_addresses(tmp_path: Path) -> None:
    """With 1,024 descriptors and 150 names of 60 addresses, each image fails by itself and the run is a success."""
    count = 150
    with NameServer(otherwise=Answer(_HOLES)) as names, black_holes(_HOLES) as port:
        urls = [f"http://{number}.example:{port}/cat.jpg" for number in range(count)]
        source = write_coyo_source(tmp_path / "source", urls)
        folders = RunFolders(tmp_path / "root")
        command = [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)),
            *("--ids", str(source.ids), "--root", str(folders.root), *OPTIONS),
            *("--connections", str(count), "--nameserver", names.address),
        ]
        most = 0
        with Run(["sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *command]) as run:
            for _ in run.readings():
                with suppress(FileNotFoundError):
                    most = max(most, _descriptors(run.process.pid))
            assert run.end() == 0, run.messages()
    ledger = pq.read_table(next(folders.layout.ledgers.glob("*.parquet")), columns=["outcome"])
    assert ledger["outcome"].to_pylist() == [FailureKind.CONNECT.value] * count
    assert count < most < 1024
