"""Lists of URLs as files of every format, compressed in every way, and the samples that they give."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.datasets import find_dataset
from datafetch.datasets.lists.list_dataset import ListOptions
from datafetch.model.manifest import Manifest
from datafetch.model.sample import Sample

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Rows: TypeAlias = Sequence[Mapping[str, Any]]

BOM = b"\xef\xbb\xbf"


def as_parquet(rows: Rows) -> bytes:
    """Rows as parquet, in row groups of two, not compressed."""
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=2, compression="none")
    return buffer.getvalue()


def as_csv(rows: Rows, delimiter: str = ",", end: str = "\n") -> bytes:
    """Rows as Python's csv module writes them; a list or an object is JSON in a text."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _field(value) for key, value in row.items()})
    return text.getvalue().encode()


def as_jsonl(rows: Sequence[object], end: str = "\n") -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def as_json(rows: Sequence[object], end: str = "\n") -> bytes:
    """Rows as one JSON list, each member on a line of its own."""
    return json.dumps(list(rows), ensure_ascii=False, indent=1).replace("\n", end).encode()


def as_txt(rows: Rows, end: str = "\n") -> bytes:
    """The URLs of rows, one a line."""
    return "".join(f"{row['url']}{end}" for row in rows).encode()


def zipped(content: bytes) -> bytes:
    """A zip with one file."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("list", content)
    return buffer.getvalue()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "zip": zipped,
}


def bound(folder: Path, content: bytes, name: str = "list", **options: Any) -> Manifest:
    """The manifest of a file with some content."""
    path = folder / name
    path.write_bytes(content)
    return manifest_of([path], **options)


def manifest_of(paths: Sequence[Path], **options: Any) -> Manifest:
    """The manifest of files."""
    return find_dataset("list", ListOptions(**options)).bind_inputs(paths, lambda: None)


def samples_of(manifest: Manifest) -> list[Sample]:
    """All samples, which are the same on every call, and wherever the reading begins."""
    found = [list(manifest.samples(shard)) for shard in manifest.shards()]
    assert found == [list(manifest.samples(shard)) for shard in manifest.shards()]
    for shard, samples in zip(manifest.shards(), found, strict=True):
        assert len(samples) == len(manifest.samples(shard)) == shard.size
        assert [sample.position for sample in samples] == list(range(len(samples)))
        for position in range(len(samples)):
            assert list(manifest.samples(shard).starting_at(position)) == samples[position:]
    return [sample for samples in found for sample in samples]


def _field(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value
