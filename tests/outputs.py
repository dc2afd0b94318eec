"""Outputs made in a moment: a job file, ledgers, spools and heartbeats, for tests of what only looks at them."""

import os
import socket
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.sample import Sample
from datafetch.model.statistics import Statistics
from datafetch.monitor.heartbeat import ProgressSnapshot
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.shard_summary import ShardSummary
from datafetch.store.spool_format import ImageResult, SpoolRecord
from datafetch.store.spool_writer import write_spool


def line(sample: int, url: str, outcome: str = "ok") -> LedgerLine:
    """Return the ledger line of an image."""
    return LedgerLine(sample, str(sample), 0, url, url, outcome, 200, 1, 1000, 10, 10, "JPEG", "", 1.0, "")


def write_job(layout: OutputLayout, *shards: str, limit: int | None = None) -> None:
    """Write a job file with these shards."""
    layout.state_folder.mkdir(parents=True)
    shards_of_job = {shard: [f"{shard}.parquet", 10, "fingerprint"] for shard in shards}
    layout.job.write_bytes(orjson.dumps({"format": 1, "dataset": "coyo", "shards": shards_of_job, "limit": limit}))


def publish(layout: OutputLayout, shard: str, lines: list[LedgerLine]) -> None:
    """Publish a shard with these images, whose files have a hundred bytes."""
    outcomes = Counter(one.outcome for one in lines)
    layout.ledgers.mkdir(exist_ok=True)
    with LedgerWriter(layout.ledger(shard), shard) as ledger:
        ledger.write(lines)
        has_row = np.array([one.outcome == "ok" for one in lines], np.bool_)
        ledger.finish(ShardSummary(ShardCounts(len(lines), outcomes["ok"], dict(outcomes), 100), has_row, has_row))
    layout.out.mkdir(exist_ok=True)
    (layout.out / f"{shard}.pkl").write_bytes(b"x" * 99)
    (layout.out / f"{shard}.count").write_bytes(b"x")


def spool(layout: OutputLayout, shard: str, lines: list[LedgerLine]) -> None:
    """Write the spool of a shard in progress with these images."""
    ended: list[SpoolRecord] = []
    for one in lines:
        ended += [ImageResult(one, b"jpeg"), Sample(one.sample, one.key, (one.url,), {})]
    write_spool(replace(layout, job_hash="anything").spool(shard), ended)


def write_heartbeat(layout: OutputLayout, **numbers: object) -> None:
    """Write a heartbeat of this process, as of now."""
    nothing: dict[str, Any] = dict.fromkeys(Statistics.__slots__, 0)
    statistics = Statistics(
        **(
            nothing
            | {
                "resharding": None,
                "waiting": None,
                "transcoding": 0,
                "workers": (),
                "elapsed_s": 83.0,
                "open_requests": 500,
                "connections": 512,
            }
            | numbers
        )
    )
    spools = str(replace(layout, job_hash="anything").spool("").parent)
    snapshot = ProgressSnapshot(
        os.getpid(), socket.gethostname(), time.time(), time.time(), False, spools, 123.45, statistics
    )
    layout.progress.write_bytes(orjson.dumps(snapshot))
