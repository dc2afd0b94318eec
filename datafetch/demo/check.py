"""What must come out of the demo, compared with what did."""

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
from datafetch.store.layout import OutputLayout

_SHORT_SIDE_PX = 336


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    what: str
    number: int
    expected: str
    seen: str

    @property
    def is_right(self) -> bool:
        """Whether it is as it must be."""
        return self.expected == self.seen


def check_outcomes(job: Job, urls: Sequence[str]) -> Iterator[Finding]:
    """Whether every image ended as its server's behaviour demands, by the ledger.

    Args:
        job: What was run.
        urls: What was asked for; the behaviour stands in the path.
    """
    seen: dict[str, Counter[str]] = {}
    for ledger in sorted(OutputLayout(Path(job.out)).ledgers.glob("*.parquet")):
        for line in pq.read_table(ledger, columns=["url", "outcome"]).to_pylist():
            seen.setdefault(_behaviour(line["url"]), Counter())[line["outcome"]] += 1
    for behaviour, images in Counter(map(_behaviour, urls)).items():
        outcomes = seen.get(behaviour, Counter())
        yield Finding(
            f"served {behaviour}",
            images,
            f"{images} {BEHAVIOURS[behaviour].expected or OK}",
            ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items())) or "none",
        )


def _behaviour(url: str) -> str:
    return urlsplit(url).path.split("/")[1]


def check_files(job: Job, report: Report, source: CoyoSource) -> Iterator[Finding]:
    """Whether the files are what the trainer's loader demands, and the books balance."""
    out = Path(job.out)
    shards = sorted(path.stem for path in out.glob("*.pkl"))
    yield Finding(
        "files in the data folder",
        len(list(out.iterdir())),
        "a .pkl and a .count each shard",
        "a .pkl and a .count each shard"
        if {path.name for path in out.iterdir()} == {f"{shard}{end}" for shard in shards for end in (".pkl", ".count")}
        else "others",
    )
    rows: list[dict[str, Any]] = []
    for shard in shards:
        shard_rows = pickle.loads((out / f"{shard}.pkl").read_bytes())  # noqa: S301 - we wrote it a moment ago
        yield Finding(f"rows in {shard}", len(shard_rows), (out / f"{shard}.count").read_text(), str(len(shard_rows)))
        rows += shard_rows
    order = {number: place for place, number in enumerate(source.urls)}
    places = [order[row["id"]] for row in rows]
    yield Finding("rows in manifest order", len(rows), "all", "all" if places == sorted(set(places)) else "not all")
    sound = sum(_is_sound(row["image"]) for row in rows)
    yield Finding("images that decode, short side 336 at most", sound, str(report.totals.ok), str(sound))
    assert report.selection is not None, "the demo's job has an id list"
    yield Finding(
        "ids listed twice", report.selection.duplicates, str(source.duplicates), str(report.selection.duplicates)
    )
    yield Finding("ids not found", source.not_found, str(source.not_found), str(report.selection.not_found))


def _is_sound(image_base64: str) -> bool:
    with Image.open(BytesIO(base64.b64decode(image_base64))) as image:
        image.load()
        return image.format == "JPEG" and image.mode == "RGB" and min(image.size) <= _SHORT_SIDE_PX
