"""What every format for lists of URLs does: order, bytes, retries in place, odd keys, captions and columns."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_samples import BROKEN, FORMATS_OF_LISTS, GONE, LATE, SHARD, ListOutput, ListSample, mixed_samples, picture

from datafetch.errors import ManifestError
from datafetch.model.outcome import Encoded
from datafetch.model.sample import BAD_LINE, Row
from datafetch.output.commit import complete_commits
from datafetch.output.formats import format_of, parquet_rows
from datafetch.output.formats.image_suffix import image_suffix
from datafetch.output.formats.parquet_rows import ROW_GROUP_BYTES
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.ledger_reader import read_samples
from datafetch.verify import Check, run_check

KILLING = Path(__file__).with_name("killing.py")
COUNT = 20


@pytest.fixture(params=FORMATS_OF_LISTS)
def output(tmp_path: Path, request: pytest.FixtureRequest) -> ListOutput:
    """An output of each format."""
    return ListOutput(tmp_path, request.param)


def another(output: ListOutput, name: str) -> ListOutput:
    """Return another output of the same format."""
    return ListOutput(output.layout.out.parent / name, output.output_format)


def test_samples_are_in_the_order_of_the_list(output: ListOutput) -> None:
    """Images, captions and columns are those of the samples, in whatever order images arrived."""
    samples = mixed_samples(COUNT)
    counts = output.commit(samples)
    assert (counts.samples, counts.rows, counts.ok) == (COUNT, COUNT, COUNT * 3 // 5)
    rows = output.rows()
    assert [row["key"] for row in rows] == [f"{SHARD}{number:04d}" for number in range(COUNT)]
    suffixes = {0: ".jpg", 2: ".png", 4: ".webp"}
    arrived = [number for number in range(COUNT) if number % 5 in suffixes]
    expected = [(f"{SHARD}{number:04d}{suffixes[number % 5]}", _content(samples[number])) for number in arrived]
    assert output.images() == expected
    if output.output_format != "parquet":
        for number in arrived:
            texts, name = output.texts(), f"{SHARD}{number:04d}"
            caption = samples[number].values["caption"]
            assert texts[f"{name}.txt"].decode() == (caption or "")
            of_json = json.loads(texts[f"{name}.json"])
            assert of_json == rows[number] | {"m": {"x": 1}}
            assert list(of_json) == list(rows[number])
        assert len(output.texts()) == 2 * len(arrived)


def test_columns_are_those_of_img2dataset(output: ListOutput) -> None:
    """Names, order, types and values are its own, so that what reads its output reads this one."""
    output.commit(mixed_samples(5))
    schema = pq.read_schema(output.layout.out / f"{SHARD}.parquet")
    fields = [(field.name, str(field.type)) for field in schema if field.name != "image"]
    assert fields == [
        ("similarity", "float"),
        ("n", "int64"),
        ("tags", "list<element: string>"),
        ("is_safe", "bool"),
        ("m", "string"),
        *((name, "string") for name in ("caption", "url", "key", "status", "error_message")),
        *((name, "int32") for name in ("width", "height", "original_width", "original_height")),
        *((name, "string") for name in ("exif", "sha256")),
    ]
    first, gone, _, late, encoded = output.rows()
    sizes = {"width": 8, "height": 6, "original_width": 8, "original_height": 6}
    assert first.items() >= {"status": "success", "error_message": None, "sha256": f"{0:064x}", **sizes}.items()
    assert encoded.items() >= {"width": 8, "original_width": 80, "sha256": f"{4:064x}"}.items()
    nothing = dict.fromkeys((*sizes, "exif", "sha256"))
    assert gone.items() >= {"status": "failed_to_download", "error_message": "HTTP 404", **nothing}.items()
    assert late.items() >= {"status": "failed_to_download", "error_message": "timeout", **nothing}.items()


def test_statistics_count_images(output: ListOutput) -> None:
    """They have img2dataset's keys; parquet has none, as there."""
    output.commit([*mixed_samples(5), ListSample([BROKEN])])
    if output.output_format == "parquet":
        assert not list(output.layout.out.glob("*_stats.json"))
        return
    assert output.stats() == {
        "count": 6,
        "successes": 3,
        "failed_to_download": 2,
        "failed_to_resize": 1,
        "status_dict": {"success": 3, "HTTP 404": 1, "timeout": 1, "truncated": 1},
    }


def test_the_same_samples_give_the_same_bytes(output: ListOutput) -> None:
    """In whatever order images arrived, and however many workers had fetched them, or if it is committed again."""
    output.commit(mixed_samples(COUNT))
    files = output.files()
    for number, (seed, spools) in enumerate([(1, 1), (2, 3)]):
        other = another(output, f"other-{number}")
        other.commit(mixed_samples(COUNT), seed, spools)
        assert other.files() == files
    output.commit(mixed_samples(COUNT), 4)
    assert output.files() == files


def test_a_retry_adds_images_to_the_shard(output: ListOutput) -> None:
    """The output is that of a run in which they had arrived at once, and what failed again says why now."""
    samples = mixed_samples(COUNT)
    output.commit(samples)
    again = [number for number in range(COUNT) if number % 5 == 3]
    arrived = {(number, 0): picture(100 + number) for number in again[:-1]}
    counts = output.retry(arrived)
    assert (counts.ok, counts.rows) == (COUNT * 3 // 5 + len(arrived), COUNT)
    undisturbed = another(output, "undisturbed")
    ended = [
        ListSample([arrived.get((n, 0), GONE if n in again else s.outcomes[0])], values=s.values)
        for n, s in enumerate(samples)
    ]
    undisturbed.commit(ended)
    assert output.files() == undisturbed.files()
    assert format_of(output.layout).is_intact(output.layout, SHARD)
    output.retry({(again[-1], 0): picture(1), (1, 0): picture(2)}, RetryFilter.all())
    assert output.rows()[1]["status"] == output.rows()[again[-1]]["status"] == "success"
    assert format_of(output.layout).is_intact(output.layout, SHARD)


def test_lines_that_are_no_samples_have_no_row(output: ListOutput) -> None:
    """The rows of the others stay theirs, also in a retry."""
    bad = ListSample([], values={BAD_LINE: "no URL"})
    output.commit([bad, ListSample([picture(1)]), bad, ListSample([LATE]), bad, ListSample([picture(5)])])
    keys = [f"{SHARD}{number:04d}" for number in (1, 3, 5)]
    assert [row["key"] for row in output.rows()] == keys
    counts = output.retry({(3, 0): picture(3)})
    assert (counts.samples, counts.rows, counts.ok) == (6, 3, 3)
    assert [row["key"] for row in output.rows()] == keys
    assert output.images() == [
        (f"{key}.jpg", picture(number).jpeg) for key, number in zip(keys, (1, 3, 5), strict=True)
    ]


def test_a_retry_keeps_columns_whose_types_nobody_gave(output: ListOutput) -> None:
    """The columns of the shard stay as they are, although the first row of its file may now be another."""
    values: list[Row] = [{"columns": {"x": None}}, {"columns": {"x": 0.5}}, {"columns": {"x": 2}}]
    output.commit([ListSample([LATE], values=one) for one in values])
    before = pq.read_schema(output.layout.out / f"{SHARD}.parquet")
    output.retry({(0, 0): picture(0), (2, 0): picture(2)})
    assert pq.read_schema(output.layout.out / f"{SHARD}.parquet") == before
    assert [row["x"] for row in output.rows()] == [None, 0.5, 2.0]


def test_a_shard_of_failures_has_rows_and_no_image(output: ListOutput) -> None:
    """Nothing but the parquet and the statistics says so; the tar is empty, and can be read."""
    output.commit([ListSample([GONE]), ListSample([LATE])])
    assert [row["error_message"] for row in output.rows()] == ["HTTP 404", "timeout"]
    if output.output_format != "files":  # which makes no folder
        assert output.images() == []
    output.retry({(1, 0): picture(1)})
    assert [row["status"] for row in output.rows()] == ["failed_to_download", "success"]
    assert len(output.images()) == 1


@pytest.mark.parametrize("key", ["猫-0001", "k" * 200, "ключ" * 25], ids=["unicode", "long", "long and unicode"])
def test_keys_may_be_long_and_unicode(output: ListOutput, key: str) -> None:
    """They are in names of files and members as they are, also where a header of tar has no room for them."""
    output.commit([ListSample([picture(0)], key, values={"caption": "one"}), ListSample([LATE], f"{key}x")])
    output.retry({(1, 0): picture(1)})
    assert [name for name, _ in output.images()] == [f"{key}.jpg", f"{key}x.jpg"]
    assert [row["key"] for row in output.rows()] == [key, f"{key}x"]


@pytest.mark.parametrize("key", ["../x", "a.b", "a/b", "", "__a", "a\n"])
def test_a_key_that_is_no_name_stops_the_commit(output: ListOutput, key: str) -> None:
    """A dataset makes keys, so this is a bug; nothing is written outside of the output."""
    with pytest.raises(AssertionError):
        output.commit([ListSample([picture(0)], values={"key": key})])
    assert not output.layout.out.exists()


def test_captions_may_have_ten_megabytes(output: ListOutput) -> None:
    """They come back whole, and again after a retry."""
    captions = ["é" * 5_000_000, "x" * 10_000_000, "\ud800" * 1_000_000]
    output.commit([ListSample([LATE if n == 1 else picture(n)], values={"caption": c}) for n, c in enumerate(captions)])
    output.retry({(1, 0): picture(1)})
    expected = [*captions[:2], "\\ud800" * 1_000_000]
    assert [row["caption"] for row in output.rows()] == expected
    if output.output_format != "parquet":
        assert [text.decode() for name, text in output.texts().items() if name.endswith(".txt")] == expected
        of_json = [json.loads(text) for name, text in output.texts().items() if name.endswith(".json")]
        assert [one["caption"] for one in of_json] == captions
    groups = pq.ParquetFile(output.layout.out / f"{SHARD}.parquet").metadata
    assert max(groups.row_group(n).total_byte_size for n in range(groups.num_row_groups)) < 1.1 * ROW_GROUP_BYTES


def test_columns_with_names_of_the_format_are_kept(output: ListOutput) -> None:
    """They get other names, so neither they nor the columns of the format are lost."""
    columns = {"key": 1, "url": 2, "image": 3, "input_key": 4, "width": 5}
    output.commit([ListSample([picture(0)], values={"columns": columns, "types": {"key": "int32"}})])
    (row,) = output.rows()
    assert (
        row.items() >= {"key": f"{SHARD}0000", "width": 8, "input_url": 2, "input_image": 3, "input_width": 5}.items()
    )
    assert sorted(value for name, value in row.items() if name.startswith("input_") and "key" in name) == [1, 4]


def test_a_sample_may_have_several_images(output: ListOutput) -> None:
    """They are numbered as their URLs are, with gaps for those that failed; what is said of an image is a list."""
    samples = [
        ListSample([picture(0), GONE, picture(2, "PNG")], are_several=True, values={"caption": "x"}),
        ListSample([LATE, GONE], are_several=True, values={"caption": "y"}),
        ListSample([], are_several=True, values={"caption": "z"}),
        ListSample([picture(3)], are_several=True, values={"caption": None}),
    ]
    output.commit(samples)
    key = f"{SHARD}000"
    assert [name for name, _ in output.images()] == [f"{key}0.0.jpg", f"{key}0.2.png", f"{key}3.0.jpg"]
    rows = output.rows()
    assert rows[0]["status"] == ["success", "failed_to_download", "success"]
    assert rows[0]["width"] == [8, None, 8]
    assert rows[2]["url"] == rows[2]["status"] == []
    if output.output_format != "parquet":
        assert output.stats()["count"] == 6
    output.retry({(1, 0): picture(1)})
    assert [name for name, _ in output.images()][2] == f"{key}1.0.jpg"
    assert [name for name, _ in output.images()][3] == f"{key}3.0.jpg"
    undisturbed = another(output, "undisturbed")
    ended = ListSample([picture(1), GONE], are_several=True, values={"caption": "y"})
    undisturbed.commit([samples[0], ended, *samples[2:]])
    assert output.files() == undisturbed.files()


def test_a_shard_may_have_lists_of_urls_and_none(output: ListOutput) -> None:
    """Rows whose list is null are as rows whose list has one URL, in whatever order they come."""
    samples = [
        ListSample([GONE], values={"caption": "null"}),
        ListSample([picture(1), picture(2)], are_several=True, values={"caption": "a list"}),
    ]
    output.commit(samples)
    assert [row["status"] for row in output.rows()] == [["failed_to_download"], ["success", "success"]]
    assert [name for name, _ in output.images()] == [f"{SHARD}0001.{number}.jpg" for number in range(2)]
    assert run_check(Check(str(output.layout.out), processes=1)).is_sound


def test_a_list_behind_many_single_urls_stops_nothing(output: ListOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    """The types are those of the first rows, so its row has the URLs as text, and the first image."""
    monkeypatch.setattr(parquet_rows, "_MAX_ROWS", 1)
    several = [ListSample([picture(1), GONE], are_several=True), ListSample([], are_several=True)]
    output.commit([ListSample([picture(0)]), *several])
    rows = output.rows()
    assert [row["status"] for row in rows] == ["success", "success", "failed_to_download"]
    assert json.loads(rows[1]["url"])["url"] == ["http://example.org/1/0", "http://example.org/1/1"]
    assert len(output.images()) == 2
    output.retry({(1, 1): picture(2)}, RetryFilter.all())
    assert [row["status"] for row in output.rows()] == ["success", "success", "failed_to_download"]


def test_values_of_columns_that_do_not_fit_are_null(output: ListOutput) -> None:
    """Types are given, or those of the first rows. The metadata of the image has the value as it is."""
    columns: list[dict[str, Any]] = [
        {"n": 1, "text": "a", "list": [1], "any": {"b": [1, "\ud800"]}, "big": 2**70, "nan": math.nan},
        {"n": "x", "text": 7, "list": ["x", 2], "any": "\ud800", "big": 2, "nan": math.inf},
        {"n": 2**53 + 1, "text": None, "list": None, "any": None, "big": None, "nan": None},
    ]
    types = {"n": "int32", "text": "string", "list": "list<int64>", "any": "json", "big": "double", "nan": "nonsense"}
    output.commit([ListSample([picture(n)], values={"columns": one, "types": types}) for n, one in enumerate(columns)])
    rows = output.rows()
    assert [row["n"] for row in rows] == [1, None, None]
    assert [row["text"] for row in rows] == ["a", "7", None]
    assert [row["list"] for row in rows] == [[1], [None, 2], None]
    assert [None if row["any"] is None else json.loads(row["any"]) for row in rows] == [one["any"] for one in columns]
    assert [row["big"] for row in rows] == [2.0**70, 2.0, None]
    assert str(rows[0]["nan"]) == "nan"
    assert rows[1]["nan"] == math.inf
    for name, text in output.texts().items():
        number = int(name.split(".")[0][-4:])
        wanted = {"nan": None, "any": columns[number]["any"], "n": columns[number]["n"], "big": columns[number]["big"]}
        found = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
        assert found.items() >= wanted.items()


def test_memory_does_not_grow_with_the_shard(output: ListOutput) -> None:
    """A shard of 96 MB takes what a row group of 16 MB takes, a few times."""
    image = Encoded(b"\xff\xd8\xff" + os.urandom(1 << 20), 8, 6, "JPEG", "ab")
    samples = [ListSample([LATE if n == 5 else image], values={"caption": "x" * 1000}) for n in range(96)]
    pool = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(counted)
    tracemalloc.start()
    try:
        output.commit(samples)
        output.retry({(5, 0): image})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)
    assert peak_bytes < 4 * ROW_GROUP_BYTES
    assert 0 < counted.max_memory() < 6 * ROW_GROUP_BYTES


def test_row_groups_are_bounded_in_bytes(tmp_path: Path) -> None:
    """A row that is larger alone is a group of its own."""
    output = ListOutput(tmp_path, "parquet")
    sizes = [ROW_GROUP_BYTES // 2, ROW_GROUP_BYTES // 3, ROW_GROUP_BYTES // 3, 2 * ROW_GROUP_BYTES, 5, 6]
    output.commit([ListSample([Encoded(b"x" * size, 8, 6, "JPEG")]) for size in sizes])
    with pq.ParquetFile(output.layout.out / f"{SHARD}.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 1, 1, 2]
    assert [len(content) for _, content in output.images()] == sizes
    assert output.images()[0][0].endswith(".img")


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        (b"\xff\xd8\xff\xe0", ".jpg"),
        (b"II+\0", ".tif"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", ".avif"),
        (b"BM, as a text may begin", ".img"),
        (b"", ".img"),
    ],
)
def test_suffixes_are_those_of_the_formats_that_are_kept(start: bytes, suffix: str) -> None:
    """Also of variants that few programs write."""
    assert image_suffix(start) == suffix


def test_a_damaged_shard_is_made_again_of_what_is_left(output: ListOutput) -> None:
    """Of a tar that is whole all images are taken, of files those of intact samples, of a parquet none."""
    samples = mixed_samples(COUNT)
    output.commit(samples)
    out, damaged_format = output.layout.out, format_of(output.layout)
    victim = f"{SHARD}{5:04d}"
    {
        "webdataset": out / f"{SHARD}.parquet",
        "parquet": out / f"{SHARD}.parquet",
        "files": out / SHARD / f"{victim}.jpg",
    }[output.output_format].write_bytes(b"x")
    assert not damaged_format.is_intact(output.layout, SHARD)
    salvaged = damaged_format.salvage(output.layout, SHARD)
    if output.output_format == "parquet":
        assert salvaged is None
        return
    assert salvaged is not None
    found = {(result.line.sample, result.jpeg) for result in salvaged}
    arrived = {(n, _content(sample)) for n, sample in enumerate(samples) if isinstance(sample.outcomes[0], Encoded)}
    if output.output_format == "files":
        arrived.discard((5, _content(samples[5])))
        assert not list((out / SHARD).glob(f"{victim}.*"))
    assert found == arrived


def test_a_damaged_tar_is_not_salvaged(tmp_path: Path) -> None:
    """Nothing says which of its members are as they were written."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    (output.layout.out / f"{SHARD}.parquet").unlink()
    assert format_of(output.layout).salvage(output.layout, SHARD) is None


@pytest.mark.parametrize("name", [f"{SHARD}.parquet", f"{SHARD}.tar"])
def test_a_retry_of_a_changed_shard_is_refused(tmp_path: Path, name: str) -> None:
    """One line names the file; what is published stays."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / name
    content = path.read_bytes()
    path.write_bytes(content[:1024] + bytes(len(content) - 1024) if name.endswith(".tar") else b"PAR1" * 30)
    before = output.files()
    with pytest.raises(ManifestError, match=name):
        output.retry({(3, 0): picture(3)})
    assert output.files() == before


@pytest.mark.parametrize(("output_format", "suffix"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_a_retry_copies_no_damage(tmp_path: Path, output_format: str, suffix: str) -> None:
    """A bit of an image that has changed would get a new checksum, and no one would ever know."""
    output = ListOutput(tmp_path, output_format)
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.{suffix}"
    content = bytearray(path.read_bytes())
    content[content.index(picture(0).jpeg) + 300] ^= 1
    path.write_bytes(content)
    before = output.files()
    with pytest.raises(ManifestError, match=rf"{SHARD}.{suffix} has other bytes than it was written with"):
        output.retry({(3, 0): picture(3)})
    assert output.files() == before


def test_publishing_can_be_killed_anywhere(output: ListOutput, tmp_path: Path) -> None:
    """The next process puts everything in place, and before that no file is there in part."""
    prepared = ListOutput(tmp_path / "prepared", output.output_format)
    prepared.commit(mixed_samples(4))
    files, layout = prepared.files(), prepared.layout
    ready = layout.ready / SHARD
    ready.mkdir(parents=True)
    if output.output_format == "files":
        index = layout.image_index(SHARD)
        for line in map(json.loads, index.read_text().splitlines()):
            (layout.out / line["name"]).rename(ready / line["number"])
        index.rename(ready / index.name)
    else:
        for path in [*layout.out.iterdir()]:
            path.rename(ready / path.name)
    layout.kept_for_retry(SHARD).rename(ready / layout.kept_for_retry(SHARD).name)
    layout.ledger(SHARD).rename(ready / f"{SHARD}.ledger")
    folder = tmp_path / "killed"
    subprocess.run(
        [sys.executable, str(KILLING), "publish", str(tmp_path / "prepared"), str(folder), "1", output.output_format],
        check=True,
        timeout=100,
    )
    killed = sorted(folder.iterdir(), key=lambda run: int(run.name))
    assert len(killed) > 5
    for run in killed:
        after = ListOutput(run, output.output_format)
        assert after.files().items() <= files.items()
        assert not after.layout.ledger(SHARD).exists() or after.files() == files
        complete_commits(after.layout)
        assert after.files() == files
        assert format_of(after.layout).is_intact(after.layout, SHARD)


def test_the_ledger_has_a_line_for_each_image(output: ListOutput) -> None:
    """As for every format."""
    output.commit(mixed_samples(5))
    outcomes = [line.outcome for lines in read_samples(output.layout.ledger(SHARD)) for line in lines]
    assert outcomes == ["ok", "http_status", "ok", "timeout", "ok"]


def _content(sample: ListSample) -> bytes:
    (outcome,) = sample.outcomes
    assert isinstance(outcome, Encoded)
    return outcome.jpeg
