"""How many requests does an output in a bucket make: for the run, for each shard, for each lease renewed?

A run with few shards is compared with one that has more, in front of a server that speaks S3's protocol (moto's), with
a proxy between them that counts. What is counted is no speed, so one run of each is enough.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.host_farm import Behaviour, HostFarm
from benchmarks.record import Record, Run, RunKind
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.pictures import KINDS, encode, paint

_TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(_TESTS))

from object_store import BUCKET, FaultyProxy, ObjectStore, login  # noqa: E402 - found through the line above

_LEASE = "lease"  # renewed by the clock, and so no part of what a shard costs
_KINDS = (
    (re.compile(r"\.datafetch/lock($|\?)"), _LEASE),
    (re.compile(r"\.datafetch/lock-probe"), "proof of conditions"),
    (re.compile(r"\.datafetch/log/"), "log"),
    (re.compile(r"\.datafetch/ledger/"), "ledger"),
    (re.compile(r"\.datafetch/shards/"), "rows, until they are resharded"),
    (re.compile(r"\.datafetch/spool/"), "spool"),
    (re.compile(r"\.datafetch/"), "other state"),
    (re.compile(r"[?&](prefix|list-type|uploads)"), "lists"),
    (re.compile(r""), "trainer's files"),
)


def main() -> None:
    """Count, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, nargs=2, default=[4, 12], help="numbers of shards, fewer and more")
    parser.add_argument("--images", type=int, default=20, help="images of a shard")
    arguments = parser.parse_args()
    few, more = arguments.shards
    runs, tables = [], []
    for case, options in (("equal shards", ()), ("--no-reshard", ("--no-reshard",))):
        counts = [_count(shards, arguments.images, options) for shards in (few, more)]
        each = {key: (counts[1][key] - counts[0][key]) / (more - few) for key in counts[1]}
        tables.append(_table(case, counts[0], each, few))
        runs.append(_run_of(case, each))
    Console(width=None if Console().is_terminal else 160).print(*tables)
    Record("bucket_requests", "requests a shard", "requests", vars(arguments), runs).show(("put", "get", "delete"))


def _run_of(case: str, each: dict[tuple[str, str], float]) -> Run:
    by_method = Counter[str]()
    for (kind, method), number in each.items():
        if kind != _LEASE:
            by_method["put" if method in {"PUT", "POST"} else "delete" if method == "DELETE" else "get"] += number  # type: ignore[assignment]
    return Run(case, RunKind.MEASURED, sum(by_method.values()), dict(by_method))


def _table(case: str, of_few: Counter[tuple[str, str]], each: dict[tuple[str, str], float], few: int) -> Table:
    table = Table(title=case)
    table.add_column("for")
    for heading in ("method", "a run besides its shards", "a shard"):
        table.add_column(heading, justify="right")
    for (kind, method), number in sorted(each.items()):
        table.add_row(kind, method, f"{of_few[kind, method] - few * number:.1f}", f"{number:.2f}")
    return table


def _count(shards: int, images: int, options: tuple[str, ...]) -> Counter[tuple[str, str]]:
    """Run a job, and count its requests by what they are for and their method."""
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
        folder = Path(name)
        pictures = folder / "pictures"
        pictures.mkdir()
        (pictures / "00000.jpg").write_bytes(encode(paint((64, 64), 0), KINDS[0]))
        with HostFarm(pictures=pictures) as farm, ObjectStore() as store, FaultyProxy(store.port) as proxy:
            urls = [farm.url(Behaviour.GOOD, host=number, body=0, number=number) for number in range(shards * images)]
            source = write_coyo_source(folder / "source", urls, files=shards)
            words = (
                *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--root", f"s3://{BUCKET}/data", "--quiet"),
                *("--source", str(source.folder), "--ids", str(source.ids), "--allow-net", "127.0.0.0/8"),
                *("--scratch", str(folder / "scratch"), "--world-size", "2", *options),
            )
            subprocess.run(words, check=True, env={**os.environ, **login(proxy.url)}, stdout=subprocess.DEVNULL)
            return Counter((_kind_of(path), method) for method, path in proxy.requests)


def _kind_of(path: str) -> str:
    return next(kind for pattern, kind in _KINDS if pattern.search(path))


if __name__ == "__main__":
    main()
