"""Jobs on small manifests of COYO, and what is read back: rows, ledgers, files, and the requests that a server got."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from conftest import LOOPBACK

from datafetch import Job
from datafetch.demo.manifest import CoyoSource
from datafetch.demo.origin import Origin
from datafetch.fetch import FetchPolicy
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=64, per_host=64, retries=0)


def coyo_job(
    source: CoyoSource,
    out: Path,
    *,
    fetch: FetchPolicy = POLICY,
    processes: int | None = 1,
    world_size: int | None = None,
) -> Job:
    """Return a job that fetches a manifest."""
    return Job(
        dataset="coyo",
        source=str(source.folder),
        ids=str(source.ids),
        out=str(out),
        fetch=fetch,
        processes=processes,
        world_size=world_size,
    )


def faulty_urls(
    origin: Origin, names: Sequence[str], faults: Mapping[int, str], number_of_urls: int, mark: str
) -> list[str]:
    """Return URLs of pictures that no other test requests, if it has another mark.

    Args:
        origin: The server.
        names: The names of its pictures.
        faults: The behaviours of those that don't arrive as they should, by position.
        number_of_urls: How many.
        mark: A part of all of them.
    """
    return [
        origin.url(faults.get(position, "well"), names[position % len(names)], f"{mark}-{position}")
        for position in range(number_of_urls)
    ]


def read_rows(job: Job) -> list[dict[str, Any]]:
    """Return all rows, shard by shard, as the trainer's loader reads them."""
    rows = []
    for path in sorted(Path(job.out).glob("*.pkl")):
        shard = pickle.loads(path.read_bytes())
        assert int(path.with_suffix(".count").read_text().strip()) == len(shard)
        rows += shard
    return rows


def read_ledger(job: Job) -> list[dict[str, Any]]:
    """Return all lines of the ledger."""
    paths = sorted(OutputLayout(Path(job.out)).ledgers.glob("*.parquet"))
    return [line for path in paths for line in pq.read_table(path).to_pylist()]


def files_of(job: Job) -> dict[str, bytes]:
    """Return the files that the trainer reads."""
    return {path.name: path.read_bytes() for path in sorted(Path(job.out).iterdir())}


def requests_since(origin: Origin, before: Mapping[str, int]) -> dict[str, int]:
    """Return the number of requests for each path since the earlier counts."""
    return {
        path: times - before.get(path, 0) for path, times in origin.requests().items() if times > before.get(path, 0)
    }


def path_of(url: str) -> str:
    """Return the path of a URL, as the server counts it."""
    return "/" + url.split("/", 3)[3]
