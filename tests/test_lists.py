"""Lists of URLs: one contract over all kinds of input, how columns are found, and what is wrong with files."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import logging
import lzma
import math
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.datasets import find_dataset
from datafetch.datasets.lists import text_table
from datafetch.datasets.lists.list_dataset import ListFormat, ListOptions
from datafetch.datasets.lists.table import InputFormat
from datafetch.engine.list_inputs import find_local
from datafetch.errors import DatafetchError, ManifestError
from datafetch.model.kinds import Payload
from datafetch.model.manifest import Manifest
from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.model.sample import BAD_LINE, HASHES, REFUSED, Record, Sample

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROWS: list[dict[str, Any]] = [
    {"url": "http://a.example/1.jpg", "caption": 'a "cat"', "width": 100},
    {"url": "http://a.example/2.jpg?a=1,2", "caption": "two\r\nlines", "width": 200},
    {"url": None, "caption": "no URL", "width": 300},
    {"url": "http://a.example/3.jpg", "caption": None, "width": None},
    {"url": "ftp://a.example/4.jpg", "caption": "猫\t🐈", "width": 400},
    {"url": "http://a.example/1.jpg", "caption": "the same URL; again", "width": 500},
]
URLS = [row["url"] or "" for row in ROWS]


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as parquet, in row groups of two, not compressed."""
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=2, compression="none")
    return buffer.getvalue()


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", end: str = "\n") -> bytes:
    """Rows as Python's csv module writes them."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def zipped(content: bytes) -> bytes:
    """A zip with one file."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("list", content)
    return buffer.getvalue()


BOM = b"\xef\xbb\xbf"
CONTENTS: dict[str, bytes] = {
    "parquet": as_parquet(ROWS),
    "csv": as_csv(ROWS),
    "csv with a byte order mark and CRLF": BOM + as_csv(ROWS, end="\r\n"),
    "csv with semicolons": as_csv(ROWS, ";"),
    "csv with empty lines": as_csv(ROWS, end="\n\n").replace(b"two\r\n\nlines", b"two\r\nlines"),
    "tsv": as_csv(ROWS, "\t"),
    "jsonl": as_jsonl(ROWS),
    "jsonl with empty lines and CRLF": as_jsonl(ROWS).replace(b"\n", b"\r\n\r\n") + b"\r\n",
    "jsonl with a byte order mark": BOM + as_jsonl(ROWS),
    "json": json.dumps(ROWS, indent=1).encode(),
    "json with a byte order mark": BOM + json.dumps(ROWS).encode(),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "zip": zipped,
}


def bound(tmp_path: Path, content: bytes, name: str = "list", **options: Any) -> Manifest:
    """The manifest of a file with some content."""
    path = tmp_path / name
    path.write_bytes(content)
    return manifest_of([path], **options)


def manifest_of(paths: Sequence[Path], **options: Any) -> Manifest:
    """The manifest of files."""
    return find_dataset("list", ListOptions(**options)).bind_inputs(paths, lambda: None)


def samples_of(manifest: Manifest) -> list[Sample]:
    """All samples, which are the same on every call."""
    found = [list(manifest.samples(shard)) for shard in manifest.shards()]
    assert found == [list(manifest.samples(shard)) for shard in manifest.shards()]
    for shard, samples in zip(manifest.shards(), found, strict=True):
        assert len(samples) == len(manifest.samples(shard)) == shard.size
        assert [sample.position for sample in samples] == list(range(len(samples)))
        for position in range(len(samples)):
            assert list(manifest.samples(shard).starting_at(position)) == samples[position:]
    return [sample for samples in found for sample in samples]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_all_kinds_of_input_give_the_same_samples(tmp_path: Path, kind: str, compression: str) -> None:
    """Whatever the format, line ends and compression: told by the content alone, under a name that says nothing.

    A row without a URL is a sample whose image fails, and so is one with a URL that can't be requested.
    """
    if kind == "parquet" and compression != "plain":
        with pytest.raises(ManifestError, match="parquet that is compressed as a whole; unpack it first"):
            bound(tmp_path, COMPRESSIONS[compression](CONTENTS[kind]))
        return
    manifest = bound(tmp_path, COMPRESSIONS[compression](CONTENTS[kind]), keep_col=("width",), shard_size=4)
    samples = samples_of(manifest)
    assert [sample.urls for sample in samples] == [(url,) for url in URLS]
    assert [sample.row["caption"] for sample in samples] == [row["caption"] for row in ROWS]
    widths = [sample.row["columns"]["width"] for sample in samples]  # type: ignore[index]
    assert [None if width is None else int(width) for width in widths] == [row["width"] for row in ROWS]
    assert [sample.row["id"] for sample in samples] == list(range(len(ROWS)))
    assert [shard.name for shard in manifest.shards()] == ["00000", "00001"]
    assert [sample.key for sample in samples] == ["000000", "000001", "000002", "000003", "000010", "000011"]


@pytest.mark.parametrize("kind", [kind for kind in CONTENTS if "empty lines" not in kind])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("width >= 200",), [1, 2, 4, 5]),
        (("width > 100", "width != 300", "caption != 'no URL'"), [1, 4, 5]),
        (("caption = 猫\t🐈",), [4]),
        (("caption >= a", "width < 1000"), [0, 1, 2, 4, 5]),
    ],
)
def test_conditions_select_the_same_rows_of_all_kinds(
    tmp_path: Path, kind: str, where: tuple[str, ...], expected: list[int]
) -> None:
    """Shards are cut behind the filter, and a row keeps its number in the input."""
    manifest = bound(tmp_path, CONTENTS[kind], where=where, shard_size=2, caption_col="caption")
    samples = samples_of(manifest)
    assert [sample.row["id"] for sample in samples] == expected
    assert [sample.urls for sample in samples] == [(URLS[number],) for number in expected]
    assert [shard.size for shard in manifest.shards()] == [2] * (len(expected) // 2) + [1] * (len(expected) % 2)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_files_have_a_url_a_line(tmp_path: Path, compression: str) -> None:
    """Blank lines are no rows, and neither byte order marks nor line ends are part of a URL."""
    lines = BOM + b"http://a.example/1,2.jpg\r\n\r\nhttps://b.example/x\nHTTP://c.example"
    samples = samples_of(bound(tmp_path, COMPRESSIONS[compression](lines)))
    assert [sample.urls[0] for sample in samples] == [
        "http://a.example/1,2.jpg",
        "https://b.example/x",
        "HTTP://c.example",
    ]


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    """A file of URLs with commas is CSV if the operator says so, or its name does."""
    lines = b"http://a.example/1,a cat\nhttp://a.example/2,a dog\n"
    assert samples_of(bound(tmp_path, lines))[0].row["caption"] == "a cat"
    urls = b"http://a.example/1,cat\nhttp://a.example/2,dog\n"
    assert samples_of(bound(tmp_path, urls))[0].urls == ("http://a.example/1,cat",)
    assert samples_of(bound(tmp_path, urls, input_format=InputFormat.CSV))[0].urls == ("http://a.example/1",)
    assert samples_of(bound(tmp_path, urls, "list.csv"))[0].urls == ("http://a.example/1",)
    assert samples_of(bound(tmp_path, b"x\ny\n", input_format=InputFormat.TXT))[0].urls == ("x",)


def test_files_with_tabs_may_have_no_quotes(tmp_path: Path) -> None:
    """A quote is a character like any other, unless fields are quoted as a writer of CSV does it."""
    lines = b'url\tcaption\nhttp://a.example/1\t"half quoted\nhttp://a.example/2\t5" wide\n'
    assert [sample.row["caption"] for sample in samples_of(bound(tmp_path, lines))] == ['"half quoted', '5" wide']
    headless = b"http://a.example/1\ta cat\nhttp://a.example/2\ta dog\n"
    assert [sample.row["caption"] for sample in samples_of(bound(tmp_path, headless))] == ["a cat", "a dog"]


def test_rows_that_cant_be_read_are_counted(tmp_path: Path) -> None:
    """A row of wrong fields, bytes or JSON stops nothing: it is a sample without URLs that says where it is and why."""
    contents = {
        "csv": b"url,caption\nhttp://a.example/1,x\nhttp://a.example/2\nhttp://a.example/3,y,z\nhttp://\xff,w\n",
        "jsonl": b'{"url": "http://a.example/1"}\nnot json\n[1]\n{"url": "http://\xff"}\n',
        "parquet": as_parquet([{"url": f"http://a.example/{number}"} for number in range(1, 5)]).replace(
            b"example/4", b"example\xff4"
        ),
        "json": json.dumps([{"url": "http://a.example/1"}, 5, ["x"], None]).encode(),
    }
    reasons = {
        "csv": ["it has 1 fields where the header has 2", "more than 2 fields", "column url is not UTF-8 at byte 7"],
        "jsonl": ["not JSON", "not a JSON object", "not UTF-8 at byte 16"],
        "json": ["neither a JSON object nor a URL"] * 3,
        "parquet": ["column url is not UTF-8 at byte 16 of its text"],
    }
    for kind, content in contents.items():
        samples = samples_of(bound(tmp_path, content))
        assert samples[0].urls == ("http://a.example/1",)
        bad = [sample for sample in samples if not sample.urls]
        assert [list(sample.row) for sample in bad] == [[BAD_LINE]] * len(reasons[kind])
        for sample, reason in zip(bad, reasons[kind], strict=True):
            assert reason in str(sample.row[BAD_LINE])
            assert f"{tmp_path / 'list'}, row {sample.position}: " in str(sample.row[BAD_LINE])
            assert find_dataset("list").to_row(Record(sample, ()), Payload.BYTES) is None
            assert find_dataset("list").is_lost(sample, ())


@pytest.mark.parametrize("value", [5, 1.5, True, math.nan, {"a": 1}, "", "  ", "x" * 70_000, "\ud800"])
def test_values_that_are_no_urls_are_failures(tmp_path: Path, value: object) -> None:
    """A number, an object or nothing at all in place of a URL is one image that fails, and no traceback."""
    content = json.dumps([{"url": "http://a.example/1", "text": "x"}, {"url": value, "text": value}]).encode()
    samples = samples_of(bound(tmp_path, content))
    assert len(samples[1].urls) == 1
    assert isinstance(samples[1].urls[0], str)
    assert len(samples[1].urls[0]) <= 65_537
    samples[1].urls[0].encode()


def test_lists_of_urls_make_samples_of_several_images(tmp_path: Path) -> None:
    """In parquet and JSON as lists, in CSV as the JSON of one; a list without URLs is one image that fails."""
    urls: list[list[str | None] | None] = [
        ["http://a.example/1", "http://a.example/2"],
        ["http://a.example/3"],
        [],
        None,
    ]
    urls.append([None, "http://a.example/4"])
    rows = [{"images": value, "text": "x"} for value in urls]
    expected = [tuple(url or "" for url in value or [""]) for value in urls]
    for content in (as_parquet(rows), as_jsonl(rows), json.dumps(rows).encode()):
        assert [sample.urls for sample in samples_of(bound(tmp_path, content))] == expected
    in_csv = as_csv([{**row, "images": json.dumps(row["images"]) if row["images"] else ""} for row in rows])
    assert [sample.urls for sample in samples_of(bound(tmp_path, in_csv))] == expected
    dataset = find_dataset("list", ListOptions(format=ListFormat.WEBDATASET))
    sample = samples_of(bound(tmp_path, as_parquet(rows)))[0]
    outcomes = (Encoded(b"jpeg", 1, 1, "JPEG"), Failure(FailureKind.TIMEOUT, "late"))
    row = dataset.to_row(Record(sample, outcomes), Payload.BYTES)
    assert row is not None
    assert (row["key"], row["url"], row["caption"]) == ("000000000", list(urls[0] or []), "x")
    assert "images" not in row  # writers have the outcomes


def test_a_pickle_row_has_one_image(tmp_path: Path) -> None:
    """A sample with several is refused and counted, since the loader of such rows reads one."""
    rows = [{"url": ["http://a.example/1"]}, {"url": ["http://a.example/1", "http://a.example/2"]}]
    samples = samples_of(bound(tmp_path, as_parquet(rows), format=ListFormat.PICKLE))
    assert samples[0].urls == ("http://a.example/1",)
    assert "it has 2 URLs, and this format one image a sample" in str(samples[1].row[REFUSED])


def test_pickle_rows_are_those_of_coyo(tmp_path: Path) -> None:
    """With the kept columns behind, of which none replaces another; without a caption the text is empty."""
    rows = [{"url": "http://a.example/1", "text": "x", "similarity": 0.5, "image": "mine", "id": "seven", "n": 1}]
    options: dict[str, Any] = {"format": ListFormat.PICKLE, "keep_col": ("all",), "id_col": "id"}
    sample = samples_of(bound(tmp_path, as_parquet(rows), **options))[0]
    dataset = find_dataset("list", ListOptions(**options))
    row = dataset.to_row(Record(sample, (Encoded(b"jpeg", 1, 1, "JPEG"),)), Payload.BYTES)
    assert row == {
        "id": "seven",
        "url": "http://a.example/1",
        "text": "x",
        "clip_sim": 0.5,
        "similarity": 0.5,
        "input_image": "mine",
        "n": 1,
        "rawbytes": b"jpeg",
    }
    assert dataset.to_row(Record(sample, (Failure(FailureKind.TIMEOUT),)), Payload.BYTES) is None
    assert dataset.is_lost(sample, [0])


@pytest.mark.parametrize(
    ("names", "url", "caption"),
    [
        (["URL", "TEXT"], "URL", "TEXT"),
        (["image_url", "caption", "text"], "image_url", "caption"),
        (["Alt", "src"], "src", "Alt"),
        (["photo", "words"], "photo", None),
        (["1", "2"], "1", "2"),
    ],
)
def test_columns_are_found_by_name_and_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], url: str, caption: str | None
) -> None:
    """The usual names in any case, and else the only column with nothing but URLs; the log says which were taken."""
    caplog.set_level(logging.INFO)
    values = {name: "http://a.example/1" if name == url else "a text" for name in names}
    manifest = bound(tmp_path, as_csv([values]))
    found: Any = manifest.identity_fields()["columns"]
    (chosen,) = found
    assert (chosen["url"], chosen["caption"]) == (url, caption)
    captions = "no captions" if caption is None else f"captions from {caption}"
    assert f"list (csv): URLs from column {url}, {captions}" in caplog.text


def test_a_column_with_a_usual_name_and_no_urls_is_not_taken(tmp_path: Path) -> None:
    """An image column with file names does not hide the one with the URLs."""
    rows = [{"image": "cat.jpg", "location": "https://a.example/1"}]
    for content in (as_csv(rows), as_parquet(rows)):
        assert samples_of(bound(tmp_path, content))[0].urls == ("https://a.example/1",)


WRONG_FILES: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {}, "has no rows: it is empty"),
    "blank": (b"\n \n", {}, "has no rows: it is empty"),
    "a header alone": (b"url,caption\n", {"url_col": "url"}, "nothing to fetch from .*: it has no rows"),
    "an empty list": (b"[]", {"url_col": "url"}, "has no column url; it has no others"),
    "a web page": (b"<html><body>Not found", {}, "it is a page of HTML or XML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", {}, "it is a pointer of Git LFS"),
    "a picture": (b"\xff\xd8\xff\xe0\0\x10JFIF", {}, "it is binary and begins with"),
    "UTF-16": ("url\nhttp://a.example/1".encode("utf-16"), {}, "is text in UTF-16; write it as UTF-8"),
    "an old Mac's": (b"url\rhttp://a.example/1\r", {}, "line ends of a carriage return alone"),
    "one object": (b'{\n"url": "http://a.example/1"\n}', {}, "is one JSON object, or damaged"),
    "JSON cut short": (b'[{"url": "http://a.example/1"}, {"url', {}, "is not JSON, or is cut short"),
    "gzip cut short": (gzip.compress(os.urandom(3000))[:-20], {}, "cannot read .*/list: Compressed file ended"),
    "xz cut short": (lzma.compress(os.urandom(3000))[:-20], {}, "cannot read .*/list: it is cut short"),
    "parquet cut short": (CONTENTS["parquet"][:-9], {}, "is cut short, or not parquet"),
    "text as parquet": (b"url\nx\n", {"input_format": InputFormat.PARQUET}, "is not parquet: it is text that begins"),
    "no URLs": (b"a,b\nx,y\n", {}, r"have no URLs that begin with http:// or https://; its columns: a, b; name the"),
    "URLs in two columns": (
        b"a,b\nhttp://a.example/1,http://a.example/2\n",
        {},
        "has URLs in several columns: a, b; name one of them with --url-col",
    ),
    "no such column": (CONTENTS["csv"], {"caption_col": "words"}, "has no column words; it has url, caption, width"),
    "no such column to keep": (CONTENTS["json"], {"keep_col": ("x", "y")}, "has no column x, y; it has url, caption"),
    "no such column in a condition": (CONTENTS["parquet"], {"where": ("high > 1",)}, "has no column high"),
    "a column twice": (b"url,url\nhttp://a.example/1,x\n", {"url_col": "url"}, "has several columns named url"),
    "a kept column twice": (b"url,a,a\nhttp://a.example/1,x,y\n", {"keep_col": ("all",)}, "columns named a; leave one"),
    "nothing passes": (CONTENTS["csv"], {"where": ("width > 999",)}, "none of its 6 rows meets the conditions of --wh"),
    "a header of other bytes": (b"\xff,url\nx,http://a.example/1\n", {}, "first line is the header is not UTF-8"),
}


@pytest.mark.parametrize("fault", WRONG_FILES)
def test_wrong_files_get_one_clear_line(tmp_path: Path, fault: str) -> None:
    """What is wrong with a whole file is one line that names it, before anything is fetched."""
    content, options, message = WRONG_FILES[fault]
    with pytest.raises(ManifestError, match=message) as raised:
        samples_of(bound(tmp_path, content, **options))
    assert str(tmp_path / "list") in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=200), st.sampled_from([*CONTENTS]), st.integers(0, 400), st.sampled_from([*COMPRESSIONS]))
def test_damaged_files_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, kind: str, place: int, compression: str
) -> None:
    """Whatever stands in a file, it is read, counted as bad rows, or refused."""
    content = CONTENTS[kind]
    content = COMPRESSIONS[compression](content[: place % len(content)] + junk + content[place % len(content) :])
    try:
        samples_of(bound(tmp_path_factory.mktemp("junk"), content, where=("width > 0",)))
    except DatafetchError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most are not refused


def test_several_files_may_have_different_columns(tmp_path: Path) -> None:
    """Each file's columns are found by themselves, and each file begins a shard; numbers of rows go on."""
    paths = [tmp_path / name for name in ("b.parquet", "a.csv", "c.txt")]
    paths[0].write_bytes(as_parquet([{"URL": f"http://b.example/{number}", "TEXT": "b"} for number in range(3)]))
    paths[1].write_bytes(as_csv([{"alt": "a", "image_url": f"http://a.example/{number}"} for number in range(3)]))
    paths[2].write_text("http://c.example/0\n")
    manifest = manifest_of(paths, shard_size=2)
    samples = samples_of(manifest)
    assert [(shard.name, shard.source.name, shard.size) for shard in manifest.shards()] == [
        ("00000", "b.parquet", 2),
        ("00001", "b.parquet", 1),
        ("00002", "a.csv", 2),
        ("00003", "a.csv", 1),
        ("00004", "c.txt", 1),
    ]
    assert [sample.urls[0] for sample in samples][2:4] == ["http://b.example/2", "http://a.example/0"]
    assert [sample.row["id"] for sample in samples] == list(range(7))
    assert [sample.row.get("caption", "none") for sample in samples] == ["b"] * 3 + ["a"] * 3 + ["none"]
    with pytest.raises(ManifestError, match=r"a\.csv has no column TEXT; it has alt, image_url; name another one"):
        manifest_of(paths, caption_col="TEXT")


def test_kept_values_are_json(tmp_path: Path) -> None:
    """Times and decimals become text, bytes base64 and NaN null; an output's columns get the type that is known."""
    columns: dict[str, Any] = {
        "url": pa.array(["http://a.example/1"]),
        "time": pa.array([1_600_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "day": pa.array([date(2020, 1, 2)]),
        "later": pa.array([datetime(2020, 1, 2, tzinfo=UTC)]),
        "price": pa.array([Decimal("1.50")]),
        "raw": pa.array([b"\xff\0"]),
        "nan": pa.array([math.nan], pa.float32()),
        "tags": pa.array([["a", None]]),
        "box": pa.array([{"x": 1, "y": [2.5]}]),
        "word": pa.array(["x"]).dictionary_encode(),
        "large": pa.array([2**64 - 1], pa.uint64()),
        "no": pa.nulls(1),
    }
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table(columns), path)
    row = samples_of(manifest_of([path], keep_col=("all",)))[0].row
    assert row["columns"] == {
        "time": "2020-09-13 12:26:40.123456789Z",
        "day": "2020-01-02",
        "later": "2020-01-02 00:00:00.000000Z",
        "price": "1.50",
        "raw": "/wA=",
        "nan": None,
        "tags": ["a", None],
        "box": {"x": 1, "y": [2.5]},
        "word": "x",
        "large": 2**64 - 1,
        "no": None,
    }
    assert row["types"] == {
        **dict.fromkeys(("time", "day", "later", "price", "raw", "word"), "string"),
        "nan": "float",
        "tags": "list<string>",
        "box": "json",
        "large": "uint64",
        "no": "json",
    }


def test_hash_columns_say_which_bodies_images_have_to_be(tmp_path: Path) -> None:
    """As text in any case or as bytes, for each image of a list; what is no hash makes the row a bad one."""
    sha256, md5 = "AB" * 32, "cd" * 16
    rows: list[dict[str, Any]] = [
        {"url": "http://a.example/1", "sha256": sha256, "md5": md5},
        {"url": "http://a.example/2", "sha256": None, "md5": None},
        {"url": "http://a.example/3", "sha256": "abc", "md5": None},
    ]
    options: dict[str, Any] = {"sha256_col": "sha256", "md5_col": "md5"}
    for content in (as_parquet(rows), as_csv(rows), as_jsonl(rows)):
        samples = samples_of(bound(tmp_path, content, **options))
        assert samples[0].row[HASHES] == [{"sha256": sha256.lower(), "md5": md5}]
        assert samples[1].row[HASHES] == [None]
        assert "column sha256 has no sha256 of 64 hexadecimal digits" in str(samples[2].row[BAD_LINE])
    several: list[dict[str, Any]] = [{"url": ["http://a.example/1", "http://a.example/2"], "sha256": [bytes(32), None]}]
    several.append({"url": ["http://a.example/1", "http://a.example/2"], "sha256": [bytes(32)]})
    samples = samples_of(bound(tmp_path, as_parquet(several), sha256_col="sha256"))
    assert samples[0].row[HASHES] == [{"sha256": "00" * 32}, None]
    assert "column sha256 has 1 for 2 URLs" in str(samples[1].row[BAD_LINE])


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no list by its name is left out of a folder, and counted; a pattern takes what it matches."""
    caplog.set_level(logging.INFO)
    dataset = find_dataset("list")
    for name in ("b.csv.gz", "a.parquet", "README.md", ".hidden.csv", "_SUCCESS", "sub/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert [path.name for path in find_local(str(tmp_path), dataset)] == ["a.parquet", "b.csv.gz"]
    assert "3 other files left out, by the names" in caplog.text
    assert [path.name for path in find_local(f"{tmp_path}/**/*.txt", dataset)] == ["c.txt"]
    with pytest.raises(ManifestError, match=r"no file matches .*\*\.tsv; check the pattern"):
        find_local(f"{tmp_path}/*.tsv", dataset)
    with pytest.raises(ManifestError, match=r"there is no file or folder .*/none; check its spelling"):
        find_local(f"{tmp_path}/none", dataset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="has no files of a list"):
        find_local(f"{tmp_path}/empty", dataset)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Another file in its place gives no other rows under the same numbers."""
    for kind in ("csv", "json", "parquet"):
        manifest = bound(tmp_path, CONTENTS[kind])
        shards = manifest.shards()
        (tmp_path / "list").write_bytes(CONTENTS[kind].replace(b"example", b"exxmple"))
        with pytest.raises(ManifestError, match="has changed since it was opened"):
            list(manifest.samples(shards[0]))


def test_a_compressed_file_can_t_have_any_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kilobytes that expand to endless rows are refused; memory holds one bit a row."""
    monkeypatch.setattr(text_table, "_MIN_ROW_LIMIT", 50_000)
    with pytest.raises(ManifestError, match=r"has more than 50,000 rows in [0-9,]+ bytes"):
        bound(tmp_path, gzip.compress(b"http://a.example/\n" * 60_000)).shards()


def test_a_header_of_xz_can_t_claim_gigabytes(tmp_path: Path) -> None:
    """A decoder that would need more memory than is accepted is not made."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    content = lzma.compress(b"http://a.example/1\n", filters=filters)
    with pytest.raises(ManifestError, match="Memory usage limit exceeded"):
        bound(tmp_path, content)
    padded = lzma.compress(b"http://a.example/1\n") + bytes(8) + lzma.compress(b"http://a.example/2\n")
    assert [sample.urls for sample in samples_of(bound(tmp_path, padded))] == [
        ("http://a.example/1",),
        ("http://a.example/2",),
    ]


def test_a_parquet_file_of_long_texts_is_read_in_small_batches(tmp_path: Path) -> None:
    """Kept columns and lists are bounded in bytes like all others: a dictionary can repeat a text of megabytes."""
    caption = "x" * 1_000_000
    table = pa.table(
        {
            "url": [[f"http://a.example/{number}"] * 3 for number in range(300)],
            "caption": pa.array([caption] * 300).dictionary_encode(),
        }
    )
    path = tmp_path / "list.parquet"
    pq.write_table(table, path)
    assert path.stat().st_size < 1_000_000
    pool = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counted)
    try:
        manifest = manifest_of([path])
        for sample in manifest.samples(manifest.shards()[0]):
            assert len(sample.urls) == 3
            assert sample.row["caption"] == caption
    finally:
        pa.set_memory_pool(pool)
    assert 0 < counted.max_memory() < 64 << 20
