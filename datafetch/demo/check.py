"""Checks of the demo: compares its results with the expected ones."""

from __future__ import annotations

import base64
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from PIL import Image

from datafetch.demo.behaviours import BEHAVIOURS
from datafetch.demo.manifest import CoyoSource
from datafetch.engine.job import Job
from datafetch.model.outcome import OK
from datafetch.model.report import Report
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX
from datafetch.store.layout import OutputLayout

_SHORT_SIDE_PX = 336


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was checked.
        number: How many images, rows or files it covers.
        expected: What the result must be.
        actual: What the result is.
    """

    check: str
    number: int
    expected: str
    actual: str

    @property
    def is_passed(self) -> bool:
        """Whether the actual result is the expected one."""
        return self.expected == self.actual


def check_outcomes(job: Job, urls: Sequence[str]) -> Iterator[Finding]:
    """Check by the ledger that every image had the outcome that the server's behaviour must cause.

    Args:
        job: The job that was run.
        urls: The URLs of all images; each path starts with the behaviour.
    """
    actual: dict[str, Counter[str]] = {}
    for ledger in sorted(OutputLayout(Path(job.out)).ledgers.glob("*.parquet")):
        for line in pq.read_table(ledger, columns=["url", "outcome"]).to_pylist():
            actual.setdefault(_behaviour(line["url"]), Counter())[line["outcome"]] += 1
    for behaviour, images in Counter(map(_behaviour, urls)).items():
        outcomes = actual.get(behaviour, Counter())
        yield Finding(
            f"served {behaviour}",
            images,
            f"{images} {BEHAVIOURS[behaviour].expected or OK}",
            ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items())) or "none",
        )


def _behaviour(url: str) -> str:
    return urlsplit(url).path.split("/")[1]


def check_files(job: Job, report: Report, source: CoyoSource) -> Iterator[Finding]:
    """Check that the files are what the trainer's loader requires, and that the counts agree."""
    out = Path(job.out)
    shards = sorted(path.stem for path in out.glob(f"*{ROWS_SUFFIX}"))
    names = {path.name for path in out.iterdir()}
    shard_names = {f"{shard}{suffix}" for shard in shards for suffix in (ROWS_SUFFIX, COUNT_SUFFIX)}
    shards_only = f"a {ROWS_SUFFIX} and a {COUNT_SUFFIX} per shard"
    yield Finding(
        "files in the data folder", len(names), shards_only, shards_only if names == shard_names else "other files"
    )
    rows: list[dict[str, Any]] = []
    for shard in shards:
        shard_rows = pickle.loads((out / f"{shard}{ROWS_SUFFIX}").read_bytes())  # noqa: S301 - we wrote it a moment ago
        count = (out / f"{shard}{COUNT_SUFFIX}").read_text()
        yield Finding(f"rows in {shard}", len(shard_rows), count, str(len(shard_rows)))
        rows += shard_rows
    position_of = {row_id: position for position, row_id in enumerate(source.urls)}
    positions = [position_of[row["id"]] for row in rows]
    is_ordered = positions == sorted(set(positions))
    yield Finding("rows in manifest order", len(rows), "all", "all" if is_ordered else "not all")
    intact = sum(_is_intact(row["image"]) for row in rows)
    yield Finding("images that decode, short side at most 336", intact, str(report.totals.ok), str(intact))
    ids = report.id_list_result
    assert ids is not None, "the demo's job has an ID list"
    yield Finding("IDs listed twice", ids.duplicates, str(source.duplicates), str(ids.duplicates))
    yield Finding("IDs not found", source.not_found, str(source.not_found), str(ids.not_found))


def _is_intact(image_base64: str) -> bool:
    with Image.open(BytesIO(base64.b64decode(image_base64))) as image:
        image.load()
        return image.format == "JPEG" and image.mode == "RGB" and min(image.size) <= _SHORT_SIDE_PX
