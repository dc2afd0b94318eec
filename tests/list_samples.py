"""Shards of samples as a list of URLs gives them, committed in every format for lists, and read back without datafetch.

Rules: what is read back is read with ``tarfile``, ``json`` and pyarrow, and never with the code under test.
"""

from __future__ import annotations

import asyncio
import json
import random
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from test_spool import make_result

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.engine.retry_source import FailedSamples
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import BAD_LINE, Record, Row, Sample
from datafetch.output.commit import Commit, commit_shard
from datafetch.output.merge import Output
from datafetch.output.retry_filter import Retry, RetryFilter
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool import Spool

FORMATS_OF_LISTS = ("webdataset", "parquet", "files")
SHARD = "00007"
GONE = Failure(FailureKind.HTTP_STATUS, "not found", 404, 1)
LATE = Failure(FailureKind.TIMEOUT, "too slow", None, 3)
BROKEN = Failure(FailureKind.TRUNCATED, "cut off", None, 1, sha256="12" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOfUrls(DatasetDefaults):
    """A list whose samples have the rows in their metadata."""

    name: str = "list"
    summary: str = "a list of URLs"
    path: str = "list"
    payloads: frozenset[Payload] = frozenset({Payload.BYTES})

    def bind(self, source: Path, ids: Path | None) -> Any:
        """Never called: samples are spooled by the tests."""
        raise AssertionError(source, ids)

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """Return the row of a sample, whatever became of its images; None for a line that is none."""
        del payload
        return None if BAD_LINE in record.sample.row else record.sample.row

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Return whether it is a line that is no sample: every sample has a row."""
        del failed
        return BAD_LINE in sample.row


@dataclass(frozen=True, slots=True)
class ListSample:
    """A sample of a list.

    Attributes:
        outcomes: What becomes of its images.
        key: Its key; empty for one by its position.
        are_several: Whether its URLs are a list.
        values: What its row has besides key and URL.
    """

    outcomes: Sequence[Outcome] = ()
    key: str = ""
    are_several: bool = False
    values: Row = field(default_factory=dict)

    def at(self, position: int) -> Sample:
        """Return the sample at a position of its shard."""
        urls = tuple(f"http://example.org/{position}/{number}" for number in range(len(self.outcomes)))
        if BAD_LINE in self.values:
            return Sample(position, f"row {position}", (), self.values)
        row = {
            "key": self.key or f"{SHARD}{position:04d}",
            "url": list(urls) if self.are_several else urls[0],
            **self.values,
        }
        return Sample(position, f"row {position}", urls, row)


def picture(number: int, file_format: str = "JPEG", *, is_original: bool = True) -> Encoded:
    """Return an image that arrived, with other pixels for each number."""
    file = BytesIO()
    Image.new("RGB", (8, 6), (number % 256, number // 256, 77)).save(file, file_format)
    encoded = Encoded(file.getvalue(), 8, 6, file_format, f"{number:064x}", is_original=is_original)
    return encoded if is_original else replace(encoded, received_px=(80, 60))


def mixed_samples(count: int) -> list[ListSample]:
    """Return pairs of which two of five fail, with captions and kept columns of several types."""
    outcomes: list[Outcome] = [picture(0), GONE, picture(2, "PNG"), LATE, picture(4, "WEBP", is_original=False)]
    samples = []
    for number in range(count):
        caption = None if number % 7 == 3 else f"第{number}号 \N{CAT FACE}"
        columns = {
            "similarity": number / 8,
            "n": number,
            "tags": ["a", None],
            "is_safe": number % 2 == 0,
            "m": {"x": 1},
        }
        types = {"similarity": "float", "n": "int64", "tags": "list<string>", "is_safe": "bool", "m": "json"}
        values = {"caption": caption, "columns": columns, "types": types}
        samples.append(ListSample([outcomes[number % len(outcomes)]], values=values))
    return samples


class ListOutput:
    """An output with one shard.

    Args:
        folder: Where it lies.
        output_format: The name of its format.
    """

    def __init__(self, folder: Path, output_format: str) -> None:
        self.layout = OutputLayout(folder / "out", job_hash="first", output_format=output_format)
        self.output = Output(ListOfUrls(output_format=output_format), self.layout, Payload.BYTES)
        self.output_format = output_format

    def commit(self, samples: Sequence[ListSample], seed: int = 0, spools: int = 1) -> ShardCounts:
        """Spool samples in a random order, to one spool or more, and commit the shard."""
        asyncio.run(
            _spool(self.layout, [(sample.at(n), sample.outcomes) for n, sample in enumerate(samples)], seed, spools)
        )
        counts = commit_shard(Commit(self.output, SHARD, len(samples)))
        self.layout.delete_spools(SHARD)
        return counts

    def retry(self, arrived: Mapping[tuple[int, int], Outcome], retry_filter: RetryFilter | None = None) -> ShardCounts:
        """Retry failures.

        Args:
            arrived: (sample, image) → the image's outcome in this retry; all others fail as ``GONE``.
            retry_filter: Which; None for those that may pass.
        """
        number = read_shard_summary(self.layout.ledger(SHARD)).retry + 1
        retry = Retry(number, retry_filter or RetryFilter())
        again = replace(self.output, layout=replace(self.layout, job_hash=f"retry-{number}"), retry=retry)
        source = FailedSamples(again, retry, [SHARD])
        (shard,) = source.shards()
        samples = list(source.samples(shard))
        ended = [(s, [arrived.get((s.position, n), GONE) for n in range(len(s.urls))]) for s in samples]
        asyncio.run(_spool(again.layout, ended, number, 1))
        counts = commit_shard(Commit(again, SHARD, shard.size))
        again.layout.delete_spools(SHARD)
        return counts

    def files(self) -> dict[str, bytes]:
        """Return the files that have the same bytes in every run."""
        out = self.layout.out
        paths = sorted(out.rglob("*")) if out.is_dir() else []
        return {
            str(path.relative_to(out)): path.read_bytes()
            for path in paths
            if path.is_file() and not path.name.endswith("_stats.json")
        }

    def stats(self) -> dict[str, Any]:
        """Return the statistics without what they have of times, after checking that."""
        found: dict[str, Any] = json.loads((self.layout.out / f"{SHARD}_stats.json").read_bytes())
        times = [found.pop(name) for name in ("start_time", "end_time", "duration")]
        assert times[2] == times[1] - times[0] >= 0
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the parquet, without images."""
        rows = pq.read_table(self.layout.out / f"{SHARD}.parquet").to_pylist()
        return [{name: value for name, value in row.items() if name != "image"} for row in rows]

    def images(self) -> list[tuple[str, bytes]]:
        """Return the images with their names, in the order of the samples."""
        return [(name, content) for name, content in self._named_files() if not name.endswith((".txt", ".json"))]

    def texts(self) -> dict[str, bytes]:
        """Return the captions and the metadata of samples, by the names of their files; none of parquet."""
        return {name: content for name, content in self._named_files() if name.endswith((".txt", ".json"))}

    def _named_files(self) -> Iterable[tuple[str, bytes]]:
        out = self.layout.out
        if self.output_format == "parquet":
            for row in pq.read_table(out / f"{SHARD}.parquet").to_pylist():
                images = row["image"] if isinstance(row["image"], list) else [row["image"]]
                yield from ((image["path"], image["bytes"]) for image in images if image is not None)
        elif self.output_format == "files":
            for path in sorted((out / SHARD).iterdir(), key=lambda path: path.name):
                yield path.name, path.read_bytes()
        else:
            with tarfile.open(out / f"{SHARD}.tar") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()


async def _spool(
    layout: OutputLayout, ended: Sequence[tuple[Sample, Sequence[Outcome]]], seed: int, spools: int
) -> None:
    order = random.Random(seed).sample(range(len(ended)), len(ended))
    for number in range(spools):
        path = layout.spool(SHARD) if number == 0 else layout.worker_spool(SHARD, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = await Spool.open(path)
        for position in order[number::spools]:
            sample, outcomes = ended[position]
            there = spool.recovered.images.get(sample.position, {})
            results = [make_result(sample, n, outcome) for n, outcome in enumerate(outcomes) if n not in there]
            await spool.append(*results, sample)
        await spool.close()
