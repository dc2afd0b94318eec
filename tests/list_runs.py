"""A list of two files that has whatever lists have, on an origin of its own; its runs in a format, and what they leave.

Rules: what is expected of an output follows from the list alone, and what is read back is read with ``tarfile``,
``json``, ``pickle`` and pyarrow, never with the code under test.
"""

from __future__ import annotations

import base64
import json
import pickle
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import LOOPBACK
from runs import RunFolders, listed

from datafetch import FetchPolicy, Job, ListFormat, ListJob, ListOptions
from datafetch.datasets import LIST
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.engine.job import own_spec
from datafetch.store.layout import OutputLayout

FORMATS = tuple(one.value for one in ListFormat)
SHARD_SIZE = 16
POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=8, per_host=8, retries=0)
_OPTIONS: Mapping[str, Any] = {
    "url_col": "URL",
    "caption_col": "TEXT",
    "id_col": "uid",
    "keep_col": ("all",),
    "shard_size": SHARD_SIZE,
}
_STATS_TIMES = ("start_time", "end_time", "duration")
_SIZES = (40, 30)
_PICTURES = 20
_REASONS = {
    "missing": "HTTP 404",
    "broken": "HTTP 500",
    "html": "not_an_image",
    "flaky": "HTTP 500",
    "well": None,
}
# Of every twenty rows these fail.
_FAULTS = {3: "missing", 8: "broken", 13: "html"}
_NO_URL, _REPEATED, _SEVERAL, _BAD_LINE = 5, 17, 50, 53
"""Numbers of rows: without a URL, with the URL of the next one but ten, with two URLs, that is no JSON."""
# The names that columns have behind those that formats have themselves: in those of img2dataset, and in pickles.
_RENAMED = {
    "width": "input_width",
    "key": "input_input_key",
    "image": "input_image",
    "url": "input_url",
    "caption": "input_caption",
}
_RENAMED_IN_PICKLES = {
    "id": "input_id",
    "text": "input_text",
    "image": "input_image",
    "rawbytes": "input_rawbytes",
    "url": "input_url",
}


@dataclass(frozen=True, slots=True)
class ListedSample:
    """A row of the list.

    Attributes:
        key: The key of its sample; empty if it can't be read.
        number: Its number in all of the list.
        urls: Its URLs; None has none, and a list has them as a list.
        reasons: Why each of its images fails; None for those that arrive.
        caption: Its caption.
        columns: All other columns.
    """

    key: str
    number: int
    urls: str | list[str] | None
    reasons: Sequence[str | None]
    caption: str | None
    columns: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """Return the row of the list."""
        return {"URL": self.urls, "TEXT": self.caption, **self.columns}


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as it is read from an output.

    Attributes:
        row: Its row, without the images.
        images: Its images.
        texts: Suffix → content of what lies beside its images.
    """

    row: Mapping[str, Any]
    images: Sequence[bytes] = ()
    texts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListTrial:
    """The list, and a format of its outputs.

    Attributes:
        pictures: Its images.
        inputs: Its files.
        samples: Its rows.
        output_format: The format.
        files: The files of an undisturbed run.
    """

    pictures: Pictures
    inputs: Sequence[Path]
    samples: Sequence[ListedSample]
    output_format: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def command(self, folders: RunFolders, *more: str, workers: int = 1) -> list[str]:
        """Return the command that fetches the list."""
        options = [("--url-col", "URL"), ("--caption-col", "TEXT"), ("--id-col", "uid"), ("--keep-col", "all")]
        options += [("--shard-size", f"{SHARD_SIZE}"), ("--format", self.output_format), ("--retries", "0")]
        options += [("--allow-net", LOOPBACK[0]), ("--connections", "8"), ("--per-host", "8")]
        options += [("--workers", f"{workers}"), ("--processes", f"{workers}")]
        return [
            *(sys.executable, "-m", "datafetch", "get", *map(str, self.inputs), "--out", str(folders.layout.out)),
            *(word for option in options for word in option),
            *("--no-reshard", *more),
        ]

    def job(self, folders: RunFolders) -> Job:
        """Return the same as a job."""
        own = ListOptions(format=ListFormat(self.output_format), **_OPTIONS)
        inputs, out = [*map(str, self.inputs)], str(folders.layout.out)
        return ListJob(inputs, out, own, fetch=POLICY, world_size=None, image=own_spec(LIST), processes=1)

    def requests(self) -> dict[str, int]:
        """Return how often each URL was requested; 0 for those that the list has several times."""
        by_path = self.pictures.origin.requests()
        urls = Counter(url for sample in self.samples for url in _listed(sample.urls))
        return {
            url: by_path.get("/" + url.split("/", 3)[-1], 0) if url and count == 1 else 0 for url, count in urls.items()
        }

    def check_files(self, folders: RunFolders) -> None:
        """Check that each file of the output is that of an undisturbed run."""
        found = files_in(folders.layout.out)
        assert found.items() <= self.files.items(), sorted(
            name for name, content in found.items() if self.files.get(name) != content
        )

    def expected(self) -> list[ListedSample]:
        """Return the samples that have a row."""
        rows = [sample for sample in self.samples if sample.key]
        if self.output_format != ListFormat.PICKLE:
            return rows
        return [sample for sample in rows if list(sample.reasons) == [None]]

    def row(self, sample: ListedSample) -> dict[str, Any]:
        """Return what the row of a sample has, besides what is said of its images."""
        if self.output_format == ListFormat.PICKLE:
            own = {"id": sample.columns["uid"], "url": sample.urls, "text": sample.caption or ""}
            return own | {_RENAMED_IN_PICKLES.get(name, name): value for name, value in sample.columns.items()}
        own = {"key": sample.key, "caption": sample.caption, "url": sample.urls or ""}
        return own | {_RENAMED.get(name, name): value for name, value in sample.columns.items()}


def list_folders(root: Path) -> RunFolders:
    """Return the folders of a run in a folder."""
    return RunFolders(root, path=Path("out"))


class Pictures:
    """The images of lists, and the server that has them."""

    def __init__(self, origin: Origin, folder: Path, names: Sequence[str]) -> None:
        self.origin = origin
        self.folder = folder
        self.names = names

    def url(self, way: str, number: int, mark: str) -> str:
        """Return the URL of the picture of a row, with a behaviour."""
        return self.origin.url(way, self.names[number % len(self.names)], f"{mark}-{number}")

    def write_list(self, folder: Path, mark: str, *, flaky: bool = False) -> ListTrial:
        """Write a list.

        Args:
            folder: A new folder for its files.
            mark: A part of all of its URLs, which no other list has.
            flaky: Whether the images that otherwise always fail with status 500 arrive when they are requested again.
        """
        folder.mkdir(parents=True)
        faults = {**_FAULTS, **({8: "flaky"} if flaky else {})}
        samples = [_sample(self, mark, faults, key, number) for number, key in enumerate(_keys())]
        inputs = [folder / "a.parquet", folder / "b.jsonl"]
        first, second = samples[: _SIZES[0]], samples[_SIZES[0] :]
        pq.write_table(pa.Table.from_pylist([sample.row() for sample in first]), inputs[0], row_group_size=7)
        lines = [json.dumps(sample.row(), ensure_ascii=False) for sample in second]
        lines[_BAD_LINE - _SIZES[0]] = '{"URL": '
        inputs[1].write_text("\n".join(lines), encoding="utf-8")
        samples[_BAD_LINE] = replace(samples[_BAD_LINE], key="")
        return ListTrial(self, inputs, samples)


@contextmanager
def serve_pictures(folder: Path) -> Iterator[Pictures]:
    """Paint pictures, and serve them."""
    names = [f"{number:05d}.{'png' if number % 3 else 'jpg'}" for number in range(_PICTURES)]
    for number, name in enumerate(names):
        paint((48, 40), number).save(folder / name)
    with Origin(folder) as origin:
        yield Pictures(origin, folder, names)


def _keys() -> list[str]:
    """The keys of all rows: the number of a shard, which each file begins anew, and of the row in it."""
    shards = [f"{number:05d}" for number in range(sum(-(-size // SHARD_SIZE) for size in _SIZES))]
    starts = [(start, size) for size in _SIZES for start in range(0, size, SHARD_SIZE)]
    return [
        f"{shard}{position:02d}"
        for shard, (start, size) in zip(shards, starts, strict=True)
        for position in range(min(SHARD_SIZE, size - start))
    ]


def _sample(pictures: Pictures, mark: str, faults: Mapping[int, str], key: str, number: int) -> ListedSample:
    way = faults.get(number % 20, "well")
    urls: str | list[str] | None = pictures.url(way, number + 10 if number == _REPEATED else number, mark)
    if number == _NO_URL:
        urls = None
    elif number == _SEVERAL:
        urls = [pictures.url(way, number, mark), pictures.url("missing", number, f"{mark}-another")]
    reasons = [
        "bad_url" if urls is None else _REASONS[way],
        *([_REASONS["missing"]] if number == _SEVERAL else []),
    ]
    columns = {
        "uid": [f"猫-{number % 7}", f"{number:07d}", key, "é" * 50][number % 4],  # of which several rows have the same
        "key": number,
        "input_key": f"{number}",
        "width": number / 4,
        "image": "mine",
        "rawbytes": None if number % 3 else "also mine",
        "similarity": number / 8,
        "clip_sim": 0.25,
        "id": number % 2,
        "url": "http://example.org/",
        "text": "",
        "caption": "another caption",
        "名前": ["太郎", None, 'a\nb\t"c"'][number % 3],
        "tags": [["a", "ж"], [], None][number % 3],
    }
    caption = [None, "", f"第{number}号 \N{CAT FACE}", 'with "quotes",\ttabs\nand lines'][number % 4]
    return ListedSample(key, number, urls, reasons, caption, columns)


def _listed(urls: str | list[str] | None) -> list[str]:
    return urls if isinstance(urls, list) else ["" if urls is None else urls]


def files_in(out: Path) -> dict[str, bytes]:
    """Return the files below a folder, with statistics without times."""
    files = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith("_stats.json"):
                stats = json.loads(content)
                content = json.dumps(
                    {name: value for name, value in stats.items() if name not in _STATS_TIMES}
                ).encode()
            files[str(path.relative_to(out))] = content
    return files


def lines_in(layout: OutputLayout) -> list[dict[str, Any]]:
    """Return all lines of the ledgers, without times, and without what depends on which of equal URLs came first."""
    lines = [line for path in listed(layout.ledgers) for line in pq.read_table(path).to_pylist()]
    urls = Counter(line["url"] for line in lines)
    unknown = [{"fetch_ms": None, **({"attempts": None} if urls[line["url"]] > 1 else {})} for line in lines]
    return [{**line, **values} for line, values in zip(lines, unknown, strict=True)]


def read_samples(out: Path, output_format: str) -> list[StoredSample]:
    """Return all samples of an output, in the order of its shards."""
    if output_format == ListFormat.PICKLE:
        rows = [row for path in sorted(out.glob("*.pkl")) for row in pickle.loads(path.read_bytes())]
        return [StoredSample(row, [base64.b64decode(row.pop("image"))]) for row in rows]
    found = []
    for path in sorted(out.glob("*.parquet")):
        beside = {} if output_format == ListFormat.PARQUET else _beside(path.with_suffix(""), output_format)
        for row in pq.read_table(path).to_pylist():
            key = row["key"]
            if output_format == ListFormat.PARQUET:
                images = row.pop("image")
                contents = [one["bytes"] for one in (images if isinstance(images, list) else [images]) if one]
                found.append(StoredSample(row, contents))
            else:
                own = {name: content for name, content in beside.items() if name.partition(".")[0] == key}
                texts = {
                    Path(name).suffix: content for name, content in own.items() if name.endswith((".txt", ".json"))
                }
                contents = [content for name, content in own.items() if not name.endswith((".txt", ".json"))]
                found.append(StoredSample(row, contents, texts))
    return found


def _beside(shard: Path, output_format: str) -> dict[str, bytes]:
    """What lies in the tar or the folder of a shard, by name."""
    if output_format == ListFormat.FILES:
        return {path.name: path.read_bytes() for path in listed(shard)}
    with tarfile.open(shard.with_suffix(".tar")) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar}
        return {name: content.read() for name, content in contents.items() if content is not None}
