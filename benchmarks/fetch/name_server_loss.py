"""Does every name resolve when the network loses queries, and what does a name cost in time, CPU and memory?

``Resolver`` looks up distinct names with a local name server that answers each of them, or loses a share of all
queries. No name is at fault, so none may fail. Each run has a process of its own, and the name server another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_network
from multiprocessing import get_context
from pathlib import Path

import aiodns
import psutil
import uvloop

from benchmarks.meter import MIB, Meter
from benchmarks.record import OTHERS_SHARE, Record, Run, RunKind, kinds
from datafetch.fetch.dns.address_guard import AddressGuard
from datafetch.fetch.dns.resolver import NameNotFoundError, NameServerError, Resolver
from datafetch.model.outcome import OK, FailureKind

_TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(_TESTS))

from nameserver import SERVFAIL, SILENCE, Answer, NameServer  # noqa: E402 - found through the line above

_TASKS = 1_024  # lookups at once: the number of images that a fetcher with 256 connections has in flight
_BARE_SLOTS = 256  # names in flight at once, as in Resolver
_HITS = 100_000
_DETAILS = (
    *("names_per_s", "cpu_us_per_name", "rounds_per_name", "lost_queries", "hit_us"),
    *("resident_mib", "bytes_per_name", OTHERS_SHARE),
)


@dataclass(frozen=True, slots=True)
class _Case:
    """A case.

    Attributes:
        name: Its name in the record.
        names: The number of names to look up.
        drop_share: The share of all queries that the server loses, 0 to 1.
        is_bare: Whether to use c-ares alone instead of ``Resolver``.
        otherwise: What a server in the same process answers to every name; None for a server in a process of its own.
    """

    name: str
    names: int
    drop_share: float = 0.0
    is_bare: bool = False
    otherwise: Answer | None = None


def main() -> int:
    """Measure, print and save; return 1 if a name that is not at fault failed."""
    arguments = _arguments()
    cases = [
        _Case(f"{arguments.names:,} names, none lost", arguments.names),
        _Case(f"{arguments.names:,} names, {arguments.drop_share:.0%} lost", arguments.names, arguments.drop_share),
        _Case(f"{arguments.many_names:,} names", arguments.many_names),
        _Case(f"{arguments.many_names:,} names, c-ares alone", arguments.many_names, is_bare=True),
    ]
    faults = [_Case("silent server", 1, otherwise=SILENCE), _Case("SERVFAIL", 1, otherwise=SERVFAIL)]
    runs = [
        _in_own_process(case, kind) for kind in kinds(arguments.warm_ups, arguments.runs) for case in (*cases, *faults)
    ]
    record = Record("name_server_loss", "time", "s", vars(arguments), runs)
    innocent = {case.name for case in cases}
    blamed = sum(
        count for run in runs if run.case in innocent for outcome, count in run.outcomes.items() if outcome != OK
    )
    record.show(_DETAILS, [f"names that failed without a fault: {blamed}"])
    return 1 if blamed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=0, help="unmeasured runs of each before those")
    parser.add_argument("--names", type=int, default=20_000, help="distinct names a run")
    parser.add_argument("--drop-share", type=float, default=0.3, help="share of all queries that is lost, 0 to 1")
    parser.add_argument("--many-names", type=int, default=200_000, help="names in the cases that fill the caches")
    return parser.parse_args()


def _in_own_process(case: _Case, kind: RunKind) -> Run:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_run, case, kind).result()


def _run(case: _Case, kind: RunKind) -> Run:
    look_ups = _bare if case.is_bare else _resolved
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if case.otherwise is not None:
            with NameServer(otherwise=case.otherwise) as server:
                return runner.run(look_ups(case, kind, server.address))
        process = _NameServerProcess(case.drop_share)
        try:
            run = runner.run(look_ups(case, kind, process.address))
        finally:
            lost_queries = process.end()
    return replace(run, details={**run.details, "lost_queries": lost_queries})


async def _resolved(case: _Case, kind: RunKind, address: str) -> Run:
    resolver = Resolver(AddressGuard((ip_network("127.0.0.0/8"),)), (address,))
    outcomes: dict[str, int] = defaultdict(int)

    async def look_up(host: str) -> None:
        try:
            await resolver.lookup(host)
        except NameNotFoundError:
            outcomes[FailureKind.DNS_NOT_FOUND.value] += 1
        except NameServerError:
            outcomes[FailureKind.DNS_FAILED.value] += 1
        else:
            outcomes[OK] += 1

    elapsed_s, details = await _work(case.names, look_up)
    details["rounds_per_name"] = resolver.statistics().rounds / case.names
    if outcomes.get(OK):
        host = _host(case.names - 1)
        started_s = time.perf_counter()
        for _ in range(_HITS):
            await resolver.addresses(host)
        details["hit_us"] = (time.perf_counter() - started_s) / _HITS * 1e6
    await resolver.close()
    return Run(case.name, kind, elapsed_s, details, dict(outcomes))


async def _bare(case: _Case, kind: RunKind, address: str) -> Run:
    """Look up the names with aiodns alone, which shows what the cache of c-ares keeps."""
    channel = aiodns.DNSResolver(nameservers=[address], timeout=1.0, tries=4)
    slots = asyncio.Semaphore(_BARE_SLOTS)
    outcomes: dict[str, int] = defaultdict(int)

    async def look_up(host: str) -> None:
        async with slots:
            await channel.getaddrinfo(host, type=socket.SOCK_STREAM)
        outcomes[OK] += 1

    elapsed_s, details = await _work(case.names, look_up)
    await channel.close()
    return Run(case.name, kind, elapsed_s, details, dict(outcomes))


async def _work(names: int, look_up: Callable[[str], Awaitable[None]]) -> tuple[float, dict[str, float]]:
    """Look up all names, and return how long that took, in seconds, and what it cost."""
    process = psutil.Process()
    meter, cpu_before_s, resident_before_bytes = Meter(os.getpid()), _cpu_s(process), process.memory_info().rss
    numbers = iter(range(names))

    async def work() -> None:
        for number in numbers:
            await look_up(_host(number))

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(min(_TASKS, names)):
            workers.create_task(work())
    elapsed_s = time.perf_counter() - started_s
    meter.sample()
    return elapsed_s, {
        "names_per_s": names / elapsed_s,
        "cpu_us_per_name": (_cpu_s(process) - cpu_before_s) / names * 1e6,
        "bytes_per_name": (process.memory_info().rss - resident_before_bytes) / names,
        "resident_mib": process.memory_info().rss / MIB,
        OTHERS_SHARE: meter.others_share() * 100,
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _host(number: int) -> str:
    return f"images-{number}.site-{number % 977}.example"


class _NameServerProcess:
    """A server in a process of its own."""

    def __init__(self, drop_share: float) -> None:
        command = (sys.executable, str(_TESTS / "nameserver.py"), "--drop-share", str(drop_share))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout, "piped"
        self.address = self._process.stdout.readline().strip()

    def end(self) -> int:
        """End the server, and return how many queries it lost."""
        with self._process:
            return int(self._process.communicate()[0])


if __name__ == "__main__":
    sys.exit(main())
