"""Are the samples that ``datafetch get`` writes those that img2dataset makes of the same list?

Both write tar files of WebDataset, of two parquet files with captions and other columns, some of whose URLs lead
nowhere, over HTTP and over HTTPS. Compared are the names of shards, the keys, members and captions of tars, all fields
of the metadata and of the rows beside the tars, and the statistics. What is known to differ is counted apart.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urljoin, urlsplit

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.rivals.corpus import Corpus, make_corpus
from benchmarks.rivals.environments import IMG2DATASET, make_environment
from benchmarks.rivals.origin import Hosts, PictureOrigin, Scheme, picture_origin

_FILES, _SHARDS_PER_FILE = 2, 2
_MISSING_EVERY = 20  # of so many URLs one leads nowhere
_CAPTIONS = ("a cat", "", None, "第一号 🐈", 'he said "no", twice\n\tand left', "naïve\\x00", " " * 3)
_KEPT = ("similarity", "id")
_KNOWN = frozenset({"exif", "error_message"})
"""Fields that differ: EXIF is not read, and failures have names of their own."""
_COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")

_Sample = Mapping[str, Any]


def main() -> int:
    """Compare, print what was equal, and return 1 if anything differs that should not."""
    arguments = _arguments()
    corpus = make_corpus(arguments.cache, arguments.pictures)
    python = make_environment(arguments.cache / "img2dataset", IMG2DATASET)
    compared: Counter[tuple[str, bool]] = Counter()
    for scheme in Scheme:
        with TemporaryDirectory(prefix="datafetch-benchmark-") as name:
            compared.update(_compare(scheme, corpus, python, Path(name), arguments.urls))
    table = Table(title=f"of {arguments.urls:,} URLs over HTTP and as many over HTTPS, {IMG2DATASET[0]}")
    for heading in ("what", "equal", "different"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    names = sorted({name for name, _ in compared})
    for name in names:
        table.add_row(name, f"{compared[name, True]:,}", f"{compared[name, False]:,}")
    Console().print(table)
    return 1 if any(compared[name, False] for name in names if name not in _KNOWN) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "datafetch-benchmarks"
    parser.add_argument("--urls", type=int, default=2000, help="URLs of the list")
    parser.add_argument("--pictures", type=int, default=4000, help="distinct pictures")
    parser.add_argument("--cache", type=Path, default=cache, help="folder of pictures and rivals; default: %(default)s")
    return parser.parse_args()


def _compare(scheme: Scheme, corpus: Corpus, python: Path, folder: Path, urls: int) -> Iterator[tuple[str, bool]]:
    """Yield what was compared, and whether it was equal."""
    (folder / "origin").mkdir()
    lists, ours, theirs = folder / "lists", folder / "ours", folder / "theirs"
    lists.mkdir()
    shard_size = -(-urls // (_FILES * _SHARDS_PER_FILE))
    with picture_origin(folder / "origin", corpus.folder, corpus.names) as origin:
        _write_lists(lists, origin, scheme, urls)
        environment = {**os.environ, "SSL_CERT_FILE": str(origin.bundle), "NO_ALBUMENTATIONS_UPDATE": "1"}
        for command in (_get(lists, ours, shard_size), _img2dataset(python, lists, theirs, shard_size)):
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    shards = sorted(path.stem for path in theirs.glob("*.tar"))
    yield "names of shards", shards == sorted(path.stem for path in ours.glob("*.tar"))
    for shard in shards:
        yield from _compare_shard(ours, theirs, shard)


def _write_lists(folder: Path, origin: PictureOrigin, scheme: Scheme, urls: int) -> None:
    per_file = -(-urls // _FILES)
    for file in range(_FILES):
        numbers = range(file * per_file, min(urls, (file + 1) * per_file))
        found = [origin.url(number, scheme=scheme, hosts=Hosts.FRESH) for number in numbers]
        columns = {
            "URL": [_gone(url) if n % _MISSING_EVERY == 0 else url for n, url in zip(numbers, found, strict=True)],
            "TEXT": [_CAPTIONS[number % len(_CAPTIONS)] for number in numbers],
            "similarity": [None if number % 7 == 0 else number / 1000 for number in numbers],
            "id": [*numbers],
        }
        pq.write_table(pa.table(columns), folder / f"{file:03d}.parquet")


def _gone(url: str) -> str:
    """A URL of the same host that leads nowhere."""
    return urljoin(url, f"/gone{urlsplit(url).path}")


def _get(lists: Path, out: Path, shard_size: int) -> list[str]:
    return [
        *(sys.executable, "-m", "datafetch", "get", str(lists), "--out", str(out), "--shard-size", str(shard_size)),
        *("--url-col", "URL", "--caption-col", "TEXT", "--per-host", "1024", "--allow-net", "127.0.0.0/8"),
        *(word for column in _KEPT for word in ("--keep-col", column)),
    ]


def _img2dataset(python: Path, lists: Path, out: Path, shard_size: int) -> list[str]:
    options = {
        "url_list": lists,
        "input_format": "parquet",
        "url_col": "URL",
        "caption_col": "TEXT",
        "save_additional_columns": orjson.dumps(_KEPT).decode(),
        "output_folder": out,
        "output_format": "webdataset",
        "number_sample_per_shard": shard_size,
        "processes_count": 2,
        "thread_count": 32,
        "resize_mode": "no",
        "skip_reencode": True,
    }
    return [str(python.with_name("img2dataset")), *(f"--{name}={value}" for name, value in options.items())]


def _compare_shard(ours: Path, theirs: Path, shard: str) -> Iterator[tuple[str, bool]]:
    own, other = (_samples(folder / f"{shard}.tar") for folder in (ours, theirs))
    yield "keys of a tar", sorted(own) == sorted(other)
    for key in own.keys() & other.keys():
        mine, its = own[key], other[key]
        yield "members of a sample", mine.keys() == its.keys()
        yield "captions", mine["txt"] == its["txt"]
        yield from _compare_fields(orjson.loads(mine["json"]), orjson.loads(its["json"]), "json: ")
        if hashlib.sha256(its["jpg"]).hexdigest() == orjson.loads(its["json"])["sha256"]:
            yield "bytes of images that img2dataset keeps", mine["jpg"] == its["jpg"]
    mine_rows, its_rows = (_rows(folder / f"{shard}.parquet") for folder in (ours, theirs))
    yield "keys of rows", [row["key"] for row in mine_rows] == sorted(row["key"] for row in its_rows)
    for mine_row, its_row in zip(mine_rows, sorted(its_rows, key=lambda row: str(row["key"])), strict=True):
        yield from _compare_fields(mine_row, its_row, "row: ")
    mine_counts, its_counts = (orjson.loads((folder / f"{shard}_stats.json").read_bytes()) for folder in (ours, theirs))
    yield "names of statistics", mine_counts.keys() == its_counts.keys()
    for name in _COUNTS:
        yield f"statistics: {name}", mine_counts[name] == its_counts[name]


def _compare_fields(mine: _Sample, its: _Sample, prefix: str) -> Iterator[tuple[str, bool]]:
    yield f"{prefix}names", mine.keys() == its.keys()
    for name in mine.keys() & its.keys():
        yield name if name in _KNOWN else f"{prefix}{name}", mine[name] == its[name]


def _samples(path: Path) -> dict[str, dict[str, bytes]]:
    """The members of a tar by key and suffix."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, "they are plain files"
            key, _, suffix = member.name.partition(".")
            samples.setdefault(key, {})[suffix] = file.read()
    return samples


def _rows(path: Path) -> Sequence[_Sample]:
    rows: list[_Sample] = pq.read_table(path).to_pylist()
    return rows


if __name__ == "__main__":
    sys.exit(main())
