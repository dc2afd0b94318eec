"""The contract of lists of URLs: the same rows give the same samples in every format, form and compression.

Whatever else stands in a file is a sample that is counted as one that can't be read, or one line that refuses the file.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bombs import grown_mib, write_blank_lines
from hypothesis import given
from hypothesis import strategies as st
from list_files import (
    BOM,
    COMPRESSIONS,
    Rows,
    as_csv,
    as_json,
    as_jsonl,
    as_parquet,
    as_txt,
    bound,
    manifest_of,
    samples_of,
    zipped,
)

from datafetch.cli.app import main
from datafetch.datasets import find_dataset
from datafetch.datasets.lists import open_table, record_blocks, text_file, text_table
from datafetch.datasets.lists.list_manifest import ListManifest
from datafetch.datasets.lists.table import InputFormat
from datafetch.errors import DatafetchError, ManifestError
from datafetch.model.kinds import Payload
from datafetch.model.sample import BAD_LINE, Record, Sample

KINDS = ("parquet", "csv", "tsv", "jsonl", "json")
A_MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """Rows, and the samples that they have to become.

    Attributes:
        rows: The rows, with the same keys each.
        urls: The URLs of each sample.
        captions: The caption of each sample; None for those of the rows.
        options: The options of the list.
        kept: The value of the kept column of each sample, as text; empty if there is none.
        ids: The number of the row of each sample; None for all.
        kinds: The formats that can have such rows.
    """

    rows: Rows
    urls: Sequence[tuple[str, ...]]
    captions: Sequence[str | None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    kept: Sequence[str | None] = ()
    ids: Sequence[int] | None = None
    kinds: Sequence[str] = KINDS


def url(number: int) -> str:
    """A URL."""
    return f"http://a.example/{number}.jpg"


def captioned(*captions: object) -> Rows:
    """Rows with these captions."""
    return [{"url": url(number), "caption": caption} for number, caption in enumerate(captions)]


ROWS: Rows = [
    {"url": "http://a.example/1.jpg", "caption": 'a "cat"', "width": 100},
    {"url": "http://a.example/2.jpg?a=1,2", "caption": "two\r\nlines", "width": 200},
    {"url": None, "caption": "no URL", "width": 300},
    {"url": "http://a.example/3.jpg", "caption": None, "width": None},
    {"url": "ftp://a.example/4.jpg", "caption": "猫\t🐈", "width": 400},
    {"url": "http://a.example/1.jpg", "caption": "the same URL; again", "width": 500},
]
URLS = [(row["url"] or "",) for row in ROWS]
WIDTHS = [None if row["width"] is None else str(row["width"]) for row in ROWS]
TEXTS = (
    "a, b",
    "a; b | c",
    "a\tb",
    "a\nb",
    "a\r\n\r\nb",
    '"',
    '""',
    '"a" b',
    'a "b"',
    '"a',
    "'a'",
    '\\"a',
    " a ",
    "\ufeffa",
    "[1",
    "猫",
)
SEVERAL: list[list[str | None] | None] = [[url(1), url(2)], [url(3)], None, [None, url(4)], [url(5), url(5)]]


def selected(ids: Sequence[int], *conditions: str) -> Case:
    """The rows that meet some conditions, which keep their numbers."""
    options = {"where": conditions, "keep_col": ("width",), "caption_col": "caption"}
    captions = [ROWS[number]["caption"] for number in ids]
    return Case(ROWS, [URLS[n] for n in ids], captions, options, [WIDTHS[number] for number in ids], ids)


CASES: dict[str, Case] = {
    "pairs": Case(ROWS, URLS, options={"keep_col": ("width",)}, kept=WIDTHS),
    "quotes, delimiters and line breaks": Case(captioned(*TEXTS), [(url(n),) for n in range(len(TEXTS))]),
    "a URL that is a number": Case(
        [{"url": 5, "text": "a"}, {"url": 70, "text": "b"}], [("5",), ("70",)], ["a", "b"], {"url_col": "url"}
    ),
    "captions that are numbers": Case(captioned(3, 1), [(url(0),), (url(1),)], ["3", "1"], {"caption_col": "caption"}),
    "no URL at all": Case([{"url": None, "text": "a"}] * 3, [("",)] * 3, ["a"] * 3, {"url_col": "url"}),
    "a URL that is too long": Case(
        [{"url": url(1), "text": "a"}, {"url": url(2) + "x" * 70_000, "text": "b"}],
        [(url(1),), ((url(2) + "x" * 70_000)[:65_537],)],
        ["a", "b"],
    ),
    "lists of URLs": Case(
        [{"images": urls, "text": "x"} for urls in SEVERAL],
        [tuple(one or "" for one in urls or [""]) for urls in SEVERAL],
        ["x"] * len(SEVERAL),
    ),
    "names of columns": Case(
        [{'a "b", c\nd': url(1), "": "x", "猫": "y"}],
        [(url(1),)],
        ["y"],
        {"url_col": 'a "b", c\nd', "caption_col": "猫", "keep_col": ("all",)},
        ["x"],
    ),
    "values that are not finite": Case(
        [{"url": url(1), "text": "x", "score": math.nan}, {"url": url(2), "text": "y", "score": math.inf}],
        [(url(1),), (url(2),)],
        ["x", "y"],
        {"keep_col": ("score",)},
        [None, None],
        kinds=("parquet", "jsonl", "json"),
    ),
    "one condition": selected([1, 2, 4, 5], "width >= 200"),
    "several conditions": selected([1, 4, 5], "width > 100", "width != 300", "caption != 'no URL'"),
    "a condition on a text": selected([4], "caption = 猫\t🐈"),
    "conditions on texts and numbers": selected([0, 1, 2, 4, 5], "caption >= a", "width < 1000"),
    "a condition that no number meets": selected([0, 1, 4, 5], "url != ''", "url < s", "width < 1e9"),
}


def forms(kind: str, rows: Rows) -> Iterator[bytes]:
    """A file of some format in each form that it may have: line ends, empty lines, a byte order mark."""
    if kind == "parquet":
        yield as_parquet(rows)
        return
    for end in ("\n", "\r\n", "\n\n", "\r\n\r\n"):
        match kind:
            case "csv" | "tsv":
                content = as_csv(rows, "\t" if kind == "tsv" else ",", end)
            case "txt":
                content = as_txt(rows, end)
            case _:
                content = (as_jsonl if kind == "jsonl" else as_json)(rows, end)
        yield from (content, BOM + content, content.removesuffix(end.encode()))
    if kind == "csv":
        yield from (as_csv(rows, ";"), as_csv(rows, "|"))


def summary(samples: Sequence[Sample]) -> list[object]:
    """What is the same in all formats: CSV has every value as a text."""
    return [(one.row["id"], one.urls, one.row.get("caption"), kept_of(one)) for one in samples]


def kept_of(sample: Sample) -> list[str | None]:
    """The kept values of a sample, as texts."""
    columns: Any = sample.row.get("columns", {})
    return [None if value is None else str(value) for value in columns.values()]


def expected(case: Case) -> list[object]:
    """The summary that the samples of a case have to have."""
    ids = range(len(case.rows)) if case.ids is None else case.ids
    captions = [row.get("caption") for row in case.rows] if case.captions is None else case.captions
    kept = [[one] for one in case.kept] or [[] for _ in case.urls]
    return list(zip(ids, case.urls, captions, kept, strict=True))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, case in CASES.items() for kind in case.kinds])
def test_the_same_rows_give_the_same_samples(tmp_path: Path, name: str, kind: str) -> None:
    """In every format and form, told by the content alone, under a name that says nothing.

    A row without a URL is a sample whose image fails, and so is one with a URL that can't be requested.
    """
    case = CASES[name]
    for content in forms(kind, case.rows):
        samples = samples_of(bound(tmp_path, content, shard_size=4, **case.options))
        assert summary(samples) == expected(case)
        assert [one.key for one in samples] == [f"{n // 4:05d}{n % 4}" for n in range(len(samples))]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_files_give_the_same_samples(tmp_path: Path, kind: str, compression: str) -> None:
    """Whatever the compression, also told by the content; parquet has its own."""
    case = CASES["pairs"]
    content = COMPRESSIONS[compression](next(forms(kind, case.rows)))
    if kind == "parquet" and compression != "plain":
        with pytest.raises(ManifestError, match="parquet that is compressed as a whole; unpack it first"):
            bound(tmp_path, content)
        return
    assert summary(samples_of(bound(tmp_path, content, **case.options))) == expected(case)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_files_have_a_url_a_line(tmp_path: Path, compression: str) -> None:
    """Blank lines are no rows, and neither byte order marks nor line ends are part of a URL; a few may be none."""
    urls = ["http://a.example/1,2.jpg", "https://b.example/x", "HTTP://c.example", *map(url, range(20)), "no URL"]
    for content in forms("txt", [{"url": one} for one in urls]):
        samples = samples_of(bound(tmp_path, COMPRESSIONS[compression](content)))
        assert [sample.urls for sample in samples] == [(one,) for one in urls]


BAD_ROWS: dict[str, tuple[bytes, dict[int, str]]] = {
    "csv": (
        b"url,caption\nhttp://a.example/1,x\nhttp://a.example/2\nhttp://a.example/3,y,z\nhttp://\xff,w\n",
        {
            1: "it has 1 field, where the header has 2",
            2: "it has more fields, where the header has 2",
            3: "column url is not UTF-8 at byte 7",
        },
    ),
    "csv with a quote that is never closed": (
        b'url,caption\nhttp://a.example/1,x\nhttp://a.example/2,"x\nhttp://a.example/3,y\n',
        {1: "a quote in it is never closed"},
    ),
    "tsv": (
        b"url\tcaption\nhttp://a.example/1\tx\nhttp://a.example/2\t\xff\nhttp://a.example/2\n",
        {1: "column caption is not UTF-8 at byte 0", 2: "it has 1 field, where the header has 2"},
    ),
    "txt": (b"http://a.example/1\nhttp://a.example/\xff\n", {1: "url is not UTF-8 at byte 17"}),
    "jsonl": (
        b'{"url": "http://a.example/1"}\nnot json\n[1]\n{"url": "http://\xff"}\n{"url": ' + b"[" * 900 + b"\n",
        {1: "not JSON", 2: "not a JSON object", 3: "not UTF-8 at byte 16", 4: "not JSON"},
    ),
    "jsonl that is too much": (
        b'{"url": "http://a.example/1"}\n{"url": ' + b"[" * 300 + b"]" * 300 + b'}\n{"n": ' + b"9" * 5000 + b"}\n",
        {1: "nested more than 200 levels deep", 2: "an integer has more than"},
    ),
    "json": (
        json.dumps([{"url": "http://a.example/1"}, 5, ["x"], None]).encode(),
        dict.fromkeys((1, 2, 3), "neither a JSON object nor a URL"),
    ),
    "parquet": (
        as_parquet([{"url": f"http://a.example/{number}"} for number in range(1, 5)]).replace(
            b"example/4", b"example\xff4"
        ),
        {3: "column url is not UTF-8 at byte 16 of its text"},
    ),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_that_cant_be_read_are_counted(tmp_path: Path, kind: str) -> None:
    """A row of wrong fields, bytes or JSON stops nothing: it is a sample without URLs that says where it is and why."""
    content, reasons = BAD_ROWS[kind]
    samples = samples_of(bound(tmp_path, content))
    assert samples[0].urls == ("http://a.example/1",)
    assert {sample.position for sample in samples if not sample.urls} == set(reasons)
    for position, reason in reasons.items():
        sample = samples[position]
        assert list(sample.row) == [BAD_LINE]
        assert reason in str(sample.row[BAD_LINE])
        assert f"{tmp_path / 'list'}, row {position}: " in str(sample.row[BAD_LINE])
        assert find_dataset("list").to_row(Record(sample, ()), Payload.BYTES) is None
        assert find_dataset("list").is_lost(sample, ())


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_rows_that_can_t_be_compared_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    """A row that can't be read meets no condition; how many there are is said before the run."""
    content, reasons = BAD_ROWS[kind]
    manifest = bound(tmp_path, content, where=("url != ''",))
    assert isinstance(manifest, ListManifest)
    samples = samples_of(manifest)
    assert samples[0].urls == ("http://a.example/1",)
    assert [sample.row.get("id") for sample in samples if sample.urls] == [0]
    left_out = len(reasons) - (len(samples) - 1)  # fields that are no UTF-8 are compared as bytes
    assert left_out
    noun = "row" if left_out == 1 else "rows"
    assert manifest.choices()[0].endswith(f"(--where); left out, since they can't be read: {left_out} {noun}")


@pytest.mark.parametrize(
    "value", [5, 1.5, True, math.nan, {"a": 1}, "", "  ", "x" * 70_000, "\ud800", [[["x"]]], "[[["]
)
def test_values_that_are_no_urls_are_failures(tmp_path: Path, value: object) -> None:
    """A number, an object or nothing at all in place of a URL is one image that fails, and no traceback."""
    rows = [{"url": "http://a.example/1", "text": "x"}, {"url": value, "text": value, "\ud800": value}]
    for content in (json.dumps(rows).encode(), "\n".join(map(json.dumps, rows)).encode()):
        samples = samples_of(bound(tmp_path, content, keep_col=("all",)))
        assert len(samples[1].urls) == 1
        assert isinstance(samples[1].urls[0], str)
        assert len(samples[1].urls[0]) <= 65_537
        json.dumps([samples[1].urls, samples[1].row], ensure_ascii=False).encode()


def parquet_of(**columns: Any) -> bytes:
    """A parquet file with some columns."""
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def nested(levels: int) -> pa.Array:
    """A column of lists within lists."""
    found = pa.array(["http://a.example/1"])
    for _ in range(levels):
        found = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), found)
    return found


PAIR = b"url,caption\nhttp://a.example/1,x\n"
NOISE = random.Random(1).randbytes(3000)
WRONG_FILES: dict[str, tuple[bytes, Sequence[str], str]] = {
    "empty": (b"", (), "has no rows: it is empty"),
    "blank": (b"\n \n", (), "has no rows: it is empty"),
    "a header alone": (b"url,caption\n", ("--url-col", "url"), "nothing to fetch from .*: it has no rows"),
    "a compressed header": (gzip.compress(b"url,caption\n"), (), "have no URLs|it has no rows"),
    "an empty list": (b"[]", ("--url-col", "url"), "has no column url; it has no others"),
    "a list of empty lists": (b"[[], [], 5]", (), "have no URLs .* its columns: no others"),
    "parquet without rows": (parquet_of(url=pa.array([], pa.string())), (), "nothing to fetch from .*: it has no rows"),
    "parquet without columns": (parquet_of(), (), "have no URLs .* its columns: no others"),
    "parquet of numbers": (parquet_of(url=[1, 2]), (), "have no URLs .* its columns: url"),
    "parquet of nulls": (parquet_of(url=pa.nulls(3)), (), "have no URLs .* its columns: url"),
    "a web page": (b"<html><body>Not found", (), "it is a page of HTML or XML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", (), "it is a pointer of Git LFS"),
    "a picture": (b"\xff\xd8\xff\xe0\0\x10JFIF", (), "it is binary and begins with"),
    "noise": (NOISE, (), "is no list of URLs|is not UTF-8|have no URLs"),
    "UTF-16": ("url\nhttp://a.example/1".encode("utf-16"), (), "is text in UTF-16; write it as UTF-8"),
    "UTF-16 without a mark": ("url\nhttp://a.example/1".encode("utf-16-le"), (), "it is binary and begins with"),
    "an old Mac's": (b"url\rhttp://a.example/1\r", (), "line ends of a carriage return alone"),
    "one object": (b'{\n"url": "http://a.example/1"\n}', (), "is one JSON object, or damaged"),
    "JSON cut short": (b'[{"url": "http://a.example/1"}, {"url', (), "is not JSON, or is cut short"),
    "JSON with more behind": (b'[{"url": "http://a.example/1"}] x', (), "has data after its list"),
    "JSON that is no UTF-8": (b'[{"url": "http://a.example/\xff"}]', (), "is not UTF-8"),
    "JSON of other texts": (b'["a", "b"]', (), "have no URLs"),
    "JSON too deep": (b"[" * 100_000, (), "nested more than 200 levels deep|is not JSON"),
    "JSON of an endless number": (b'[{"url": ' + b"9" * 5000 + b"}]", (), "an integer has more than"),
    "text as JSON": (PAIR, ("--input-format", "json"), "is not a JSON list"),
    "text as JSON lines": (PAIR, ("--input-format", "jsonl"), "have no URLs|no column"),
    "text as parquet": (b"url\nx\n", ("--input-format", "parquet"), "is not parquet: it is text that begins"),
    "no URLs": (b"a,b\nx,y\n", (), "have no URLs that begin with http:// or https://; its columns: a, b; name the"),
    "URLs in two columns": (
        b"a,b\nhttp://a.example/1,http://a.example/2\n",
        (),
        "has URLs in several columns: a, b; name one of them with --url-col",
    ),
    "no such column": (as_csv(ROWS), ("--caption-col", "words"), "has no column words; it has url, caption, width"),
    "no such columns to keep": (
        as_json(ROWS),
        ("--keep-col", "x", "--keep-col", "y"),
        "has no column x, y; it has url, caption",
    ),
    "a misspelt column": (
        as_csv(ROWS),
        ("--caption-col", "Captoin"),
        r"has no column Captoin; did you mean 'caption'\? it has url, caption, width",
    ),
    "no such column in a condition": (as_parquet(ROWS), ("--where", "high > 1"), "has no column high"),
    "a condition on lists": (
        parquet_of(url=["http://a.example/1"], box=[[1, 2]]),
        ("--where", "box > 1"),
        "column box has values of the type list",
    ),
    "a column twice": (b"url,url\nhttp://a.example/1,x\n", ("--url-col", "url"), "has several columns named url"),
    "a kept column twice": (
        b"url,a,a\nhttp://a.example/1,x,y\n",
        ("--keep-col", "all"),
        "has several columns named a; leave one",
    ),
    "columns without names": (
        b"url,,\nhttp://a.example/1,x,y\n",
        ("--keep-col", "all"),
        "has several columns without a name; leave one",
    ),
    "too many columns": (b"url" + b",x" * 10_001 + b"\n", (), "has more than 10,000 columns; leave some out"),
    "too many keys": (
        json.dumps([{"url": url(1), **{str(n): n for n in range(10_001)}}]).encode(),
        (),
        "has more than 10,000 columns; leave some out",
    ),
    "nothing passes": (as_csv(ROWS), ("--where", "width > 999"), "none of its 6 rows meets the conditions of --wh"),
    "a header of other bytes": (b"\xff,url\nx,http://a.example/1\n", (), "its header is not UTF-8"),
    "a zip of two": (zipped(b"x").replace(b"PK\5\6", b"PK\5\5"), (), "cannot read .*list"),
    "lists too deep": (parquet_of(url=nested(300)), ("--url-col", "url"), "list"),
}


def refusal(folder: Path, content: bytes, options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which the command refuses a file, the only one on stderr that is an error."""
    path, out = folder / "list", folder / "out"
    path.write_bytes(content)
    assert main(["get", str(path), "--out", str(out), *options]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert all("datafetch: " in one or "reading the list" in one for one in before)
    assert not out.exists()
    return line


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("fault", WRONG_FILES)
def test_wrong_files_get_one_clear_line(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with a whole file is one line that names it, exit code 2, and nothing is left behind."""
    content, options, message = WRONG_FILES[fault]
    line = refusal(tmp_path, content, options, capsys)
    assert str(tmp_path / "list") in line
    assert re.search(message, line), line


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "plain"])
def test_compressed_files_that_are_cut_short_are_refused(
    tmp_path: Path, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is cut: half a download is never taken for all of it."""
    rows = [{"url": f"{url(number)}?{random.Random(number).random()}"} for number in range(2000)]
    content = COMPRESSIONS[compression](as_txt(rows))
    for kept_bytes in (20, len(content) // 2, len(content) - 9, len(content) - 1):
        line = refusal(tmp_path, content[:kept_bytes], (), capsys)
        assert f"cannot read {tmp_path / 'list'}" in line


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name not in ("plain", "zstd")])
def test_compressed_files_that_are_damaged_are_refused(
    tmp_path: Path, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed bit shows by the checksum, which Zstandard files rarely have."""
    content = bytearray(COMPRESSIONS[compression](as_txt([{"url": f"{url(number)}"} for number in range(2000)])))
    content[len(content) // 2] ^= 4
    assert f"cannot read {tmp_path / 'list'}" in refusal(tmp_path, bytes(content), (), capsys)


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_files_of_one_piece_that_are_cut_short_are_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parquet and JSON have an end, without which nothing of them is fetched."""
    content = next(forms(kind, ROWS))
    for kept_bytes in (10, len(content) // 2, len(content) - 9, len(content) - 1):
        line = refusal(tmp_path, content[:kept_bytes], (), capsys)
        assert "is cut short" in line or "damaged" in line


BOMBS = {
    "blank lines": b"\n" * (2 * A_MIB),
    "a line": b"x" * (2 * A_MIB),
    "blanks in JSON": b"[" + b" " * (2 * A_MIB),
    "blank lines behind a header": b"url\n" + b"\n" * (2 * A_MIB),
    "many lines": b"http://a.example/\n" * (A_MIB // 8),
}


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd", "zip"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(
    tmp_path: Path, name: str, compression: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a few compressed bytes expand to is read up to a limit, whatever it is."""
    monkeypatch.setattr(text_file, "_MIN_CONTENT_BYTES", A_MIB)
    monkeypatch.setattr(text_file, "_MAX_EXPANSION", 1)
    line = refusal(tmp_path, COMPRESSIONS[compression](BOMBS[name]), (), capsys)
    assert "would be more than 1,048,576 bytes when it is unpacked" in line or "it is empty" in line


@pytest.mark.slow
def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """With the limits as they are: a gigabyte of blank lines behind a header in some kilobytes."""
    path = tmp_path / "list"
    write_blank_lines(path, 1100 * A_MIB, b"url\n")
    code = """
from datafetch.errors import ManifestError
try:
    find_dataset("list").bind_inputs([path], lambda: None)
except ManifestError as error:
    assert "when it is unpacked" in str(error), error
else:
    raise AssertionError("it was not refused")
"""
    assert grown_mib(code, path) < 64  # where a megabyte's million ends of lines lie, a few times over


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_a_line_that_is_too_long_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One up to the limit is read; of a longer one, it says where it is if the file was opened before it was met."""
    for module in (record_blocks, text_table, open_table):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 4 * A_MIB)
    long = "y" * (3 * A_MIB)
    rows = [{"url": url(1)}, {"url": url(2) + long}]
    if kind != "txt":
        rows = [{"url": url(1), "text": "x"}, {"url": url(2), "text": long}]
    content = next(forms(kind, rows))
    assert len(samples_of(bound(tmp_path, content))) == 2
    longer = content.replace(b"y" * A_MIB, b"y" * (2 * A_MIB))
    message = r"list(: the record after record 1 is longer than| has a line of more than) 4,194,304 bytes"
    with pytest.raises(ManifestError, match=message):
        samples_of(bound(tmp_path, longer))


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.integers(0, 400), st.sampled_from([*COMPRESSIONS]))
def test_damaged_files_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, kind: str, place: int, compression: str
) -> None:
    """Whatever stands in a file, it is read, counted as bad rows, or refused."""
    content = next(forms(kind, ROWS))
    content = COMPRESSIONS[compression](content[: place % len(content)] + junk + content[place % len(content) :])
    try:
        samples_of(bound(tmp_path_factory.mktemp("junk"), content, where=("width > 0",)))
    except DatafetchError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most are not refused


def test_several_files_may_have_different_columns(tmp_path: Path) -> None:
    """Each file's columns are found by themselves, and each file begins a shard; numbers of rows go on."""
    paths = [tmp_path / name for name in ("b.parquet", "a.csv", "c.txt", "d.jsonl")]
    paths[0].write_bytes(as_parquet([{"URL": f"http://b.example/{number}", "TEXT": "b"} for number in range(3)]))
    paths[1].write_bytes(as_csv([{"alt": "a", "image_url": f"http://a.example/{number}"} for number in range(3)]))
    paths[2].write_text("http://c.example/0\n")
    paths[3].write_bytes(as_jsonl([{"images": ["http://d.example/0", "http://d.example/1"], "title": "d"}]))
    manifest = manifest_of(paths, shard_size=2)
    samples = samples_of(manifest)
    assert [(shard.name, shard.source.name, shard.size) for shard in manifest.shards()] == [
        ("00000", "b.parquet", 2),
        ("00001", "b.parquet", 1),
        ("00002", "a.csv", 2),
        ("00003", "a.csv", 1),
        ("00004", "c.txt", 1),
        ("00005", "d.jsonl", 1),
    ]
    assert [sample.urls[0] for sample in samples][2:4] == ["http://b.example/2", "http://a.example/0"]
    assert samples[-1].urls == ("http://d.example/0", "http://d.example/1")
    assert [sample.row["id"] for sample in samples] == list(range(8))
    assert [sample.row.get("caption", "none") for sample in samples] == ["b"] * 3 + ["a"] * 3 + ["none", "d"]
    with pytest.raises(ManifestError, match=r"a\.csv has no column TEXT; it has alt, image_url; name another one"):
        manifest_of(paths, caption_col="TEXT")


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    """A file of URLs with commas is CSV if the operator says so, or its name does."""
    lines = b"http://a.example/1,a cat\nhttp://a.example/2,a dog\n"
    assert samples_of(bound(tmp_path, lines))[0].row["caption"] == "a cat"
    urls = b"http://a.example/1,cat\nhttp://a.example/2,dog\n"
    assert samples_of(bound(tmp_path, urls))[0].urls == ("http://a.example/1,cat",)
    assert samples_of(bound(tmp_path, urls, input_format=InputFormat.CSV))[0].urls == ("http://a.example/1",)
    assert samples_of(bound(tmp_path, urls, "list.csv"))[0].urls == ("http://a.example/1",)
    assert samples_of(bound(tmp_path, b"x\ny\n", input_format=InputFormat.TXT))[0].urls == ("x",)
    commented = b"http://a.example/1\n# a comment\n\n \nhttp://a.example/2\n"
    assert [sample.urls[0] for sample in samples_of(bound(tmp_path, commented))][::3] == [url(1)[:-4], url(2)[:-4]]
    below_a_header = samples_of(bound(tmp_path, b"url\n" + urls))
    assert [sample.urls for sample in below_a_header] == [("http://a.example/1,cat",), ("http://a.example/2,dog",)]
    assert [list(sample.row) for sample in samples_of(bound(tmp_path, b"url\n" + urls, "list.csv"))] == [[BAD_LINE]] * 2


def test_a_stray_quote_in_a_file_with_tabs_changes_no_other_row(tmp_path: Path) -> None:
    """Most fields with quotes are quoted as a whole, so all are read as a writer of CSV wrote them."""
    lines = b"".join(b'http://a.example/%d\t"say ""hi""\tto %d"\n' % (number, number) for number in range(9))
    lines = b'url\tcaption\nhttp://a.example/x\ta 6" screen\n' + lines
    captions = [sample.row["caption"] for sample in samples_of(bound(tmp_path, lines))]
    assert captions == ['a 6" screen', *[f'say "hi"\tto {number}' for number in range(9)]]


def test_rows_that_cannot_be_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first ten, with the reason; the others are only counted."""
    lines = b"url,caption\n" + b"http://a.example/1,one,too many\n" * 12 + b"http://a.example/2,two\n"
    with caplog.at_level("WARNING", logger="datafetch"):
        assert len(samples_of(bound(tmp_path, lines, "list.csv"))) == 13
    assert len(caplog.messages) == 10
    assert "list.csv, row 0: it has more fields, where the header has 2" in caplog.messages[0]
    assert ["further ones" in message for message in caplog.messages] == [False] * 9 + [True]


def test_a_column_of_urls_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """It is said that it is there twice, and not that there are no URLs."""
    with pytest.raises(ManifestError, match="has several columns named url"):
        bound(tmp_path, b"url,url,n\nhttp://a.example/1,http://a.example/2,3\n", "list.csv")


def test_files_with_tabs_may_have_no_quotes(tmp_path: Path) -> None:
    """A quote is a character like any other, unless fields are quoted as a writer of CSV does it."""
    lines = b'url\tcaption\nhttp://a.example/1\t"half quoted\nhttp://a.example/2\t5" wide\n'
    assert [sample.row["caption"] for sample in samples_of(bound(tmp_path, lines))] == ['"half quoted', '5" wide']
    headless = b"http://a.example/1\ta cat\nhttp://a.example/2\ta dog\n"
    assert [sample.row["caption"] for sample in samples_of(bound(tmp_path, headless))] == ["a cat", "a dog"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Another file in its place gives no other rows under the same numbers."""
    for kind in KINDS:
        content = next(forms(kind, ROWS))
        manifest = bound(tmp_path, content)
        shards = manifest.shards()
        (tmp_path / "list").write_bytes(content.replace(b"example", b"exxmple"))
        with pytest.raises(ManifestError, match="has changed since it was opened"):
            list(manifest.samples(shards[0]))


def test_a_compressed_file_can_t_have_any_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kilobytes that expand to endless rows are refused; memory holds one bit a row."""
    monkeypatch.setattr(text_table, "_MIN_ROW_LIMIT", 50_000)
    with pytest.raises(ManifestError, match=r"has more than 50,000 rows in [0-9,]+ bytes"):
        bound(tmp_path, gzip.compress(b"http://a.example/\n" * 60_000)).shards()


def test_streams_one_behind_the_other_are_one_content(tmp_path: Path) -> None:
    """As parallel compressors write them; xz may also have zeros between them."""
    for compress, padding in (
        (gzip.compress, b""),
        (bz2.compress, b""),
        (lzma.compress, bytes(8)),
        (COMPRESSIONS["zstd"], b""),
    ):
        content = compress(b"http://a.example/1\n") + padding + compress(b"http://a.example/2\n")
        urls = [sample.urls[0] for sample in samples_of(bound(tmp_path, content))]
        assert urls == ["http://a.example/1", "http://a.example/2"]


def test_a_header_of_xz_can_t_claim_gigabytes(tmp_path: Path) -> None:
    """A decoder that would need more memory than is accepted is not made."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    content = lzma.compress(b"http://a.example/1\n", filters=filters)
    with pytest.raises(ManifestError, match="Memory usage limit exceeded"):
        bound(tmp_path, content)


@pytest.mark.parametrize("what", ["folder", "FIFO", "device", "link"])
def test_what_is_no_file_is_refused(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing waits for a writer, and nothing reads without an end."""
    path = tmp_path / "list.csv"
    match what:
        case "folder":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.symlink_to("list.csv")
    assert main(["get", str(path), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in line
    assert re.search("no files of a list|not a regular file|there is no file", line)


TEXT_TYPES = {
    "large": pa.large_string(),
    "bytes": pa.binary(),
    "a dictionary": pa.dictionary(pa.int32(), pa.string()),
    "views": pa.string_view(),
}


@pytest.mark.parametrize("name", TEXT_TYPES)
def test_texts_of_parquet_may_be_stored_in_any_way(tmp_path: Path, name: str) -> None:
    """As various writers have them: the same samples, and the same rows that meet a condition."""
    columns = {"url": [url(1), url(2), None], "caption": ["x", None, "y"], "lang": ["ja", "en", "ja"]}
    content = parquet_of(**{key: pa.array(values).cast(TEXT_TYPES[name]) for key, values in columns.items()})
    options: dict[str, Any] = {"url_col": "url", "caption_col": "caption", "keep_col": ("lang",)}
    samples = samples_of(bound(tmp_path, content, where=("lang = ja",), **options))
    kept = "amE=" if name == "bytes" else "ja"  # which are kept as base64
    assert [sample.urls for sample in samples] == [(url(1),), ("",)]
    assert [sample.row["caption"] for sample in samples] == ["x", "y"]
    assert [kept_of(sample) for sample in samples] == [[kept], [kept]]
    assert [sample.row["id"] for sample in samples] == [0, 2]


def test_a_column_may_have_the_name_of_another_one_and_more(tmp_path: Path) -> None:
    """Arrow takes ``width.x`` for a part of ``width``; each keeps its own values, and its own statistics."""
    content = parquet_of(
        **{
            "width.x": [1, 2],
            "url.x": ["a", "b"],
            "url": [url(1), url(2)],
            "width": [10, 20],
            "": [5, 6],
            "url.": [7, 8],
        }
    )
    samples = samples_of(bound(tmp_path, content, where=("width > 15",), keep_col=("all",)))
    assert [sample.urls for sample in samples] == [(url(2),)]
    assert [kept_of(sample) for sample in samples] == [["2", "b", "20", "6", "8"]]


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
