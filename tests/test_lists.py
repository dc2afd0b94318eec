"""Lists of URLs: how columns are found, and what rows become. All kinds of input are in test_list_inputs.py."""

from __future__ import annotations

import logging
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_files import as_csv, as_jsonl, as_parquet, bound, manifest_of, samples_of

from datafetch.datasets import find_dataset
from datafetch.datasets.lists.list_dataset import ListFormat, ListOptions
from datafetch.engine.list_inputs import find_local
from datafetch.errors import ManifestError
from datafetch.model.kinds import Payload
from datafetch.model.outcome import Encoded, Failure, FailureKind
from datafetch.model.sample import BAD_LINE, HASHES, REFUSED, Record


def test_a_row_of_several_images_has_a_list_of_urls(tmp_path: Path) -> None:
    """It is a row whatever became of its images."""
    urls = ["http://a.example/1", "http://a.example/2"]
    dataset = find_dataset("list", ListOptions(format=ListFormat.WEBDATASET))
    sample = samples_of(bound(tmp_path, as_parquet([{"images": urls, "text": "x"}])))[0]
    outcomes = (Encoded(b"jpeg", 1, 1, "JPEG"), Failure(FailureKind.TIMEOUT, "late"))
    row = dataset.to_row(Record(sample, outcomes), Payload.BYTES)
    assert row is not None
    assert (row["key"], row["url"], row["caption"]) == ("000000000", urls, "x")
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
