"""How fast are the members of a remote zip read, and how much of it is asked for where few of them are needed?

An archive of stored members, with sizes like those of photographs, is on a server on this machine. Its members are read
in these cases: all of them, in memory, with sizes and checksums checked; the same bytes by ranges alone, of 8 MiB and
eight at a time, which is what could be had at most; one request for each member, as tools do that know nothing of
neighbours; a tenth of the members, at random, where the bytes that are asked for count; and all of a smaller archive
over eight connections of 5 MB/s each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from benchmarks.archive_host import ArchiveHost
from benchmarks.record import Record, Run, RunKind, kinds
from datafetch.datasets.archive_members import ArchiveMembers
from datafetch.datasets.image_sets import COCO
from datafetch.datasets.readers import ZipDirectory
from datafetch.engine.archives import Archives, open_archives, open_members
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy
from datafetch.model.archive import Member
from datafetch.model.outcome import Body
from datafetch.model.request import ByteRange, Request
from datafetch.model.sample import MEMBER
from datafetch.store.layout import OutputLayout

_MB = 1e6
_GIB = 1 << 30
_RANGE_BYTES = 8 << 20
_POLICY = FetchPolicy(allow_net=("127.0.0.0/8",))
_SLOW_BYTES_PER_S = 5_000_000
_IN_FLIGHT = 1024


def main() -> int:
    """Measure, print and save."""
    arguments = _arguments()
    with TemporaryDirectory(prefix="datafetch-benchmark-") as folder:
        _write_archive(Path(folder, "train2017.zip"), arguments.megabytes)
        _write_archive(Path(folder, "slow.zip"), arguments.slow_megabytes)
        with ArchiveHost(Path(folder)) as host, ArchiveHost(Path(folder), _SLOW_BYTES_PER_S) as slow:
            whole, small = host.url("train2017.zip"), slow.url("slow.zip")
            cases: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
                "members": lambda: _read_members(whole, 1.0),
                "ranges alone": lambda: _read_ranges(whole),
                "a request for each member": lambda: _read_one_by_one(whole),
                "a tenth of the members": lambda: _read_members(whole, 0.1),
                "members, 8 connections of 5 MB/s": lambda: _read_members(small, 1.0),
            }
            runs = [
                _measure(name, kind, measure)
                for kind in kinds(arguments.warm_ups, arguments.runs)
                for name, measure in cases.items()
            ]
    Record("archive", "speed", "MB/s", vars(arguments), runs).show(("asked_percent", "requests", "cpu_s"), [])
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each case")
    parser.add_argument("--warm-ups", type=int, default=1, help="unmeasured runs of each before those")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the archive")
    parser.add_argument("--slow-megabytes", type=int, default=400, help="size of that on the slow server")
    return parser.parse_args()


def _write_archive(path: Path, megabytes: int) -> None:
    rng = random.Random(7)
    noise = os.urandom(4 << 20)
    with zipfile.ZipFile(path, "w") as archive:
        number = left = 0
        left = megabytes * int(_MB)
        while left > 0:
            size = min(int(rng.lognormvariate(11.9, 0.5)), len(noise) // 2)  # a median of 147 KB
            start = rng.randrange(len(noise) - size)
            archive.writestr(zipfile.ZipInfo(f"train2017/{number:012d}.jpg"), noise[start : start + size])
            number, left = number + 1, left - size


def _measure(name: str, kind: RunKind, measure: Callable[[], Awaitable[dict[str, float]]]) -> Run:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    details = uvloop.run(_awaited(measure))
    elapsed_s = time.perf_counter() - started_s
    details["cpu_s"] = time.process_time() - cpu_s
    return Run(name, kind, details["read_bytes"] / _MB / elapsed_s, details, {"ok": int(details["members"])})


async def _awaited(measure: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    return await measure()


async def _read_members(url: str, share: float) -> dict[str, float]:
    layout = OutputLayout(Path("nowhere"))
    async with open_archives(COCO, url, layout, _POLICY, fresh=True) as archives:
        members = _select(archives, share)
        budget = BodyBudget(_GIB)
        async with Fetcher(_POLICY, budget=budget) as fetch:
            read = open_members(archives, fetch, _POLICY, _GIB)
            total = 0

            async def take(queue: Iterable[Member]) -> None:
                nonlocal total
                for member in queue:
                    with budget.reservation() as memory:
                        body = await read(member, memory)
                    assert isinstance(body, Body), body
                    total += len(body.content)

            waiting = iter(members)
            async with asyncio.TaskGroup() as group:
                for _ in range(_IN_FLIGHT):
                    group.create_task(take(waiting))
            await read.close()
            return _details(archives, fetch, total, len(members))


async def _read_one_by_one(url: str) -> dict[str, float]:
    layout = OutputLayout(Path("nowhere"))
    async with (
        open_archives(COCO, url, layout, _POLICY, fresh=True) as archives,
        Fetcher(_POLICY, budget=BodyBudget(_GIB)) as fetch,
    ):
        ranges = [ByteRange(member.start, member.stop) for member in _select(archives, 1.0)]
        total = await _read_all(fetch, url, ranges)
        return _details(archives, fetch, total, len(ranges))


async def _read_ranges(url: str) -> dict[str, float]:
    layout = OutputLayout(Path("nowhere"))
    async with (
        open_archives(COCO, url, layout, _POLICY, fresh=True) as archives,
        Fetcher(_POLICY, budget=BodyBudget(_GIB)) as fetch,
    ):
        stop = ZipDirectory.read_fingerprint(archives.copies[0]).start
        ranges = [ByteRange(start, min(stop, start + _RANGE_BYTES)) for start in range(0, stop, _RANGE_BYTES)]
        total = await _read_all(fetch, url, ranges)
        return _details(archives, fetch, total, len(ranges))


async def _read_all(fetch: Fetcher, url: str, ranges: list[ByteRange]) -> int:
    total = 0

    async def take(queue: Iterable[ByteRange]) -> None:
        nonlocal total
        for one in queue:
            body = await fetch(Request(url, one))
            assert isinstance(body, Body), body
            total += len(body.content)

    waiting = iter(ranges)
    async with asyncio.TaskGroup() as group:
        for _ in range(_POLICY.per_host):
            group.create_task(take(waiting))
    return total


def _select(archives: Archives, share: float) -> list[Member]:
    rng = random.Random(3)
    wanted = None
    if share < 1:
        names = (entry.name.rpartition("/")[2] for entry in ZipDirectory(archives.copies[0]).entries())
        wanted = frozenset(name for name in names if rng.random() < share)
    manifest = ArchiveMembers([ZipDirectory(archives.copies[0])], lambda path: path.rpartition("/")[2], wanted)
    samples = (sample for shard in manifest.shards() for sample in manifest.samples(shard))
    return [Member.from_json(sample.row[MEMBER]) for sample in samples]


def _details(archives: Archives, fetch: Fetcher, read_bytes: int, members: int) -> dict[str, float]:
    statistics = fetch.statistics()
    size = ZipDirectory.read_fingerprint(archives.copies[0]).size_bytes
    return {
        "read_bytes": read_bytes,
        "members": members,
        "asked_percent": 100 * statistics.fetched_bytes / size,
        "requests": statistics.attempts,
    }


if __name__ == "__main__":
    sys.exit(main())
