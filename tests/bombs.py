"""Manifests that are small on disk and large in memory if they are believed, and how much memory reading them takes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20

_PEAK = """
import re, sys
from pathlib import Path

import datafetch.engine.runner  # what a run loads does not count
from datafetch.datasets import find_dataset

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

before_mib = peak_mib()
path = Path(sys.argv[1])
{code}
print(peak_mib() - before_mib)
"""


def grown_mib(code: str, path: Path) -> int:
    """Return by how much a fresh process grows at most in MiB when it runs this code with the path as ``path``."""
    source = _PEAK.replace("{code}", code)
    ended = subprocess.run([sys.executable, "-c", source, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.split()[-1])


def coyo_table(urls: pa.Array, texts: pa.Array, rows: int, first_id: int = 0) -> pa.Table:
    """Return rows of COYO that are all similar enough to be selected."""
    half = pa.array([0.5], pa.float32()).take(pa.array([0] * rows))
    ids = pa.array(range(first_id, first_id + rows), pa.int64())
    return pa.table(
        {"id": ids, "url": urls, "text": texts, "clip_similarity_vitb32": half, "clip_similarity_vitl14": half}
    )


def write_shared_text(path: Path, rows: int, text_bytes: int) -> None:
    """Write a parquet file whose rows share one long URL by a dictionary."""
    shared = pa.array([0] * rows, pa.int32())
    urls = pa.DictionaryArray.from_arrays(shared, pa.array(["http://127.0.0.1/" + "a" * text_bytes]))
    texts = pa.DictionaryArray.from_arrays(shared, pa.array(["text"]))
    table = coyo_table(urls, texts, rows)
    pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=2 * text_bytes)


def write_some_long_texts(path: Path, long_rows: int, text_bytes: int, encoding: str) -> None:
    """Write a parquet file of ten thousand rows, the first of which have long texts."""
    rows = 10_000
    long = "a" * text_bytes
    texts = pa.array([f"{long}{number}" if number < long_rows else "a" for number in range(rows)])
    pq.write_table(
        coyo_table(pa.array(["u"] * rows), texts, rows),
        path,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"text": encoding},
        write_batch_size=4,
    )


def write_constant_rows(path: Path, rows: int) -> None:
    """Write a parquet file of this many equal rows, in some kilobytes."""
    a_million = coyo_table(pa.array(["u"] * 1), pa.array(["t"]), 1).take(pa.array([0] * min(rows, 1_000_000)))
    with pq.ParquetWriter(path, a_million.schema, compression="zstd") as writer:
        for first in range(0, rows, 1_000_000):
            writer.write_table(a_million.slice(0, min(1_000_000, rows - first)))


def write_long_lines(path: Path, lines: int, text_bytes: int) -> None:
    """Write documents with one long text each, in some kilobytes."""
    document = {
        "text_list": ["a" * text_bytes],
        "image_info": [{"raw_url": "http://127.0.0.1/1.jpg", "matched_text_index": 0}],
        "similarity_matrix": [[0.3]],
    }
    with zstd.open(path, "wb") as file:
        for _ in range(lines):
            file.write(json.dumps(document).encode() + b"\n")


def write_covers(path: Path, covers: int) -> None:
    """Write a list of covers with much structure in few bytes."""
    with path.open("w") as file:
        for number in range(covers):
            file.write("," if number else "{")
            file.write(f'"{number}":{{"imageURL":"u","q":[[],[],[],[]],"a":[{{}},{{}}]}}')
        file.write("}")


def write_repeated_ids(path: Path, lines: int) -> None:
    """Write the same id repeatedly, in some kilobytes."""
    path.write_bytes(gzip.compress(b"7\n" * lines))


def write_zip_of_many(path: Path, members: int) -> None:
    """Write a zip with this many members."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(members):
            archive.writestr(str(number), b"")


def blank_lines(count: int) -> Iterator[bytes]:
    """Yield this many line ends, a megabyte at a time."""
    while count > 0:
        yield b"\n" * min(count, MIB)
        count -= MIB


def write_blank_lines(path: Path, lines: int, header: bytes = b"") -> None:
    """Write this many blank lines behind a header, in some kilobytes."""
    with zstd.open(path, "wb") as file:
        file.write(header)
        file.writelines(blank_lines(lines))
