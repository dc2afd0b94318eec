"""Published data with its odd values: these come out unchanged, and what can't be read is reported and counted."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import retry, run
from jobs import POLICY, read_ledger, read_rows

from datafetch import FailureKind, Job, RetryFilter
from datafetch.datasets import find_dataset
from datafetch.datasets.coyo import CoyoOptions
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.origin import Origin
from datafetch.errors import ManifestError
from datafetch.model.manifest import Manifest
from datafetch.model.sample import Sample
from datafetch.verify import Check, run_check

Pictures = tuple[Path, list[str]]

# Fields that a line may have in addition to those of a document.
ODD = (
    '"a": NaN, "b": [Infinity, -Infinity, null], "c": 12345678901234567890123, "d": -9223372036854775809, '
    '"e": "half \\ud83d of a character", "f\\udc00": 1e400, "g": 18446744073709551615, "h": -0.0, "i": 0.1, '
    '"j": "\\u0000\\u001b", "k": ' + "[" * 190 + "]" * 190 + ", "
    '"file": "x", "member": 7, "failure": {}, "fallback": "http://127.0.0.1:1/", "bad_line": 1, '
    '"refused": "", "image": 0'
)


@pytest.fixture
def own_origin(pictures: Pictures) -> Iterator[Origin]:
    """A server that only this test uses, for its counts of requests."""
    with Origin(pictures[0]) as running:
        yield running


def document(url: str, odd: str) -> str:
    """Return a document of one image, as a line."""
    return (
        f'{{"text_list": ["a \\ud83d b"], "url": "http://e.org/", {odd}, "similarity_matrix": [[NaN]], '
        f'"image_info": [{{"raw_url": "{url}", "matched_text_index": 0, "matched_sim": NaN}}]}}\n'
    )


def without_image(row: dict[str, Any]) -> str:
    """Return a published document without its images, in a form that distinguishes NaN from other values."""
    images = [{name: value for name, value in image.items() if name != "image_base64"} for image in row["image_info"]]
    return repr({**row, "image_info": images})


@pytest.mark.rotating
def test_odd_values_are_unchanged(tmp_path: Path, own_origin: Origin, pictures: Pictures) -> None:
    """All values that Python's json reads survive spool, ledger, failed samples, retry and resharding."""
    name = next(name for name in pictures[1] if name.endswith(".jpg"))
    urls = [own_origin.url("flaky" if number == 1 else "well", name, f"odd-{number}") for number in range(3)]
    lines = [document(url, ODD) for url in (*urls, "http://e.org/\\ud800.jpg")]
    (tmp_path / "docs_shard_0_v3.jsonl").write_text("".join(lines))
    job = Job("mmc4-core", str(tmp_path), str(tmp_path / "root" / "out"), fetch=POLICY, processes=1, world_size=None)
    assert run(job).totals.rows == 2
    assert [line["outcome"] for line in read_ledger(job)] == ["ok", "http_status", "ok", "bad_url"]
    assert retry(job.out, RetryFilter.all()).totals.rows == 3
    expected = [without_image(json.loads(line)) for line in lines[:3]]
    assert [without_image(row) for row in read_rows(job)] == expected
    assert read_ledger(job)[3]["url"] == "http://e.org/\\ud800.jpg"
    resharded = replace(job, out=str(tmp_path / "resharded" / "out"), world_size=1)
    run(resharded)
    assert sorted(map(without_image, read_rows(resharded))) == sorted(expected)
    assert run_check(Check(resharded.out, world_size=1, batch=1)).problems == ()


def test_covers_with_odd_titles_are_fetched(tmp_path: Path, own_origin: Origin, pictures: Pictures) -> None:
    """An odd title does not affect other covers."""
    url = own_origin.url("well", pictures[1][0], "cover")
    (tmp_path / "dataset.json").write_text(
        f'{{"100": {{"imageURL": "{url}", "title": "a\\ud83d", "split": NaN}}, "\\ud83d": {{"imageURL": "{url}"}}, '
        f'"101": {{"imageURL": "{url}", "n": 99999999999999999999}}, "102": {{"imageURL": "http://e.org/\\ud83d"}}}}'
    )
    job = Job("ocr-vqa", str(tmp_path), str(tmp_path / "root" / "out"), fetch=POLICY, processes=1)
    report = run(job)
    assert (report.totals.samples, report.totals.rows) == (4, 2)
    assert {path.name for path in Path(job.out).iterdir()} == {"100.jpg", "101.jpg"}


def pairs(path: Path, **columns: Any) -> None:
    """Write a COYO-shaped file, some of whose columns are replaced."""
    usual = {
        "id": pa.array([10, 11, 12], pa.int64()),
        "url": pa.array([f"http://127.0.0.1:1/{number}" for number in range(3)]),
        "text": pa.array(["a", "b", "c"]),
        "clip_similarity_vitb32": pa.array([0.5, 0.5, 0.5], pa.float32()),
        "clip_similarity_vitl14": pa.array([0.25, 0.25, 0.25], pa.float32()),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({**usual, **columns}), path)


def bind(folder: Path, *ids: int, **options: Any) -> Manifest:
    """Open the files of a folder; without ids, the most similar rows are selected."""
    listed = folder.parent / "ids.txt"
    listed.write_text("".join(f"{id_}\n" for id_ in ids))
    return find_dataset("coyo", CoyoOptions(**options)).bind(folder, listed if ids else None)


def samples(manifest: Manifest) -> list[Sample]:
    """Return all samples, in order."""
    return [sample for shard in manifest.shards() for sample in manifest.samples(shard)]


def test_similarities_equal_those_of_the_published_script(tmp_path: Path) -> None:
    """NaN stays NaN, a missing number becomes NaN, and nothing becomes zero."""
    similarities = pa.array([math.nan, math.inf, None], pa.float32())
    pairs(tmp_path / "data" / "a.parquet", clip_similarity_vitb32=similarities)
    found = samples(bind(tmp_path / "data", 10, 11, 12))
    assert [repr(sample.row["clip_sim"]) for sample in found] == ["nan", "inf", "nan"]
    opposite = pa.array([-math.inf] * 3, pa.float32())
    pairs(tmp_path / "data" / "a.parquet", clip_similarity_vitb32=similarities, clip_similarity_vitl14=opposite)
    assert all(repr(sample.row["clip_sim"]) in ("nan", "-inf") for sample in samples(bind(tmp_path / "data", 11)))


def test_a_missing_similarity_is_not_selected_and_an_infinite_one_is(tmp_path: Path) -> None:
    """The published script compares in the same way."""
    values = [math.nan, None, math.inf, 0.9, 0.1, 0.8, None, 0.2, 0.95, 0.3]
    pairs(
        tmp_path / "data" / "a.parquet",
        id=pa.array(range(10), pa.int64()),
        url=pa.array(["u"] * 10),
        text=pa.array(["t"] * 10),
        clip_similarity_vitb32=pa.array(values, pa.float32()),
        clip_similarity_vitl14=pa.array([0.0] * 10, pa.float32()),
    )
    assert [sample.key for sample in samples(bind(tmp_path / "data"))] == ["2", "8"]


def test_odd_similarities_reach_the_pickle(tmp_path: Path, own_origin: Origin, pictures: Pictures) -> None:
    """NaN, infinite and missing similarities survive the spool and a retry."""
    name = next(name for name in pictures[1] if name.endswith(".jpg"))
    urls = [own_origin.url("flaky" if number else "well", name, f"similar-{number}") for number in range(3)]
    odd = pa.array([math.nan, math.inf, None], pa.float32())
    pairs(tmp_path / "data" / "a.parquet", url=pa.array(urls), clip_similarity_vitb32=odd)
    (tmp_path / "ids.txt").write_text("10\n11\n12\n")
    job = Job(
        "coyo",
        str(tmp_path / "data"),
        str(tmp_path / "root" / "out"),
        ids=str(tmp_path / "ids.txt"),
        fetch=POLICY,
        processes=1,
        world_size=None,
    )
    assert run(job).totals.rows == 1
    retry(job.out, RetryFilter.all())
    assert [repr(row["clip_sim"]) for row in read_rows(job)] == ["nan", "inf", "nan"]


@pytest.mark.parametrize("ids", [(10, 11, 12, 13), ()])
def test_a_repeated_id_is_selected_from_the_first_file(tmp_path: Path, ids: tuple[int, ...]) -> None:
    """Each row of a file and its copies comes once, and the others are counted, in whatever order shards are opened."""
    folder = tmp_path / "data"
    high = pa.array([0.9] * 20, pa.float32())
    many = {"url": pa.array(["u"] * 20), "text": pa.array(["t"] * 20)}
    similar = {"clip_similarity_vitb32": high, "clip_similarity_vitl14": high}
    for name, first in (("part-00000-a (1).parquet", 10), ("part-00000-a.parquet", 10), ("part-00001-a.parquet", 12)):
        pairs(folder / name, id=pa.array(range(first, first + 20), pa.int64()), **many, **similar)
    manifest = bind(folder, *ids)
    expected = [["10", "11", "12", "13"], [], []] if ids else [["10", "11", "12", "13"], [], ["14", "15"]]
    repeated = [0, 4, 2]
    for number in (2, 0, 1, 2):
        found = manifest.samples(manifest.shards()[number])
        assert [sample.key for sample in found] == expected[number]
        assert found.notes.get("repeated_ids", 0) == repeated[number]
    assert [sample.key for sample in samples(manifest)] == list(chain.from_iterable(expected))


def test_rows_with_the_same_id_are_counted_in_the_summary(tmp_path: Path) -> None:
    """The sums of the report agree without them."""
    for name in ("a.parquet", "b.parquet"):
        pairs(tmp_path / "data" / name, id=pa.array([10, 11, 10], pa.int64()))
    (tmp_path / "ids.txt").write_text("10\n11\n")
    job = Job(
        "coyo", str(tmp_path / "data"), str(tmp_path / "out"), ids=str(tmp_path / "ids.txt"), fetch=POLICY, processes=1
    )
    report = run(job)
    assert report.totals.samples == 2
    assert report.summary()["notes"] == {"repeated_ids": 4}


def test_ids_above_63_bits_are_kept(tmp_path: Path) -> None:
    """None is taken for a negative id of a list, and a row has it unchanged."""
    large = 2**64 - 5
    pairs(tmp_path / "data" / "a.parquet", id=pa.array([large, 11, 2**63], pa.uint64()))
    assert [sample.key for sample in samples(bind(tmp_path / "data", -5, 11, -(2**63)))] == ["11"]
    with pytest.raises(ManifestError, match=r"ids\.txt, line 1: '18446744073709551611' is not an id"):
        bind(tmp_path / "data", large)
    many = {
        "id": pa.array(range(2**63, 2**63 + 10), pa.uint64()),
        "url": pa.array(["u"] * 10),
        "text": pa.array(["t"] * 10),
    }
    similar = pa.array(np.linspace(0.5, 0.6, 10), pa.float32())
    pairs(tmp_path / "data" / "a.parquet", **many, clip_similarity_vitb32=similar, clip_similarity_vitl14=similar)
    assert [sample.row["id"] for sample in samples(bind(tmp_path / "data"))] == [2**63 + 8, 2**63 + 9]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """The error says so, since it is unknown which of the two is meant."""
    pairs(tmp_path / "data" / "a.parquet")
    table = pq.read_table(tmp_path / "data" / "a.parquet")
    pq.write_table(table.append_column("url", table["url"]), tmp_path / "data" / "a.parquet")
    with pytest.raises(ManifestError, match=r"a\.parquet has several columns named url; leave one of each"):
        bind(tmp_path / "data", 10)


def not_utf8(*texts: bytes) -> pa.Array:
    """Return texts that are not decoded before they are written."""
    return pa.array(texts, pa.binary()).cast(pa.string(), safe=False)


def test_a_text_that_is_not_utf8_is_named_by_its_row(tmp_path: Path) -> None:
    """The error names the file and says what to do. The rows before it are fetched."""
    pairs(tmp_path / "data" / "a.parquet", text=not_utf8(b"a", b"caf\xe9", b"c"))
    manifest = bind(tmp_path / "data", 10, 11, 12)
    found = iter(manifest.samples(manifest.shards()[0]))
    assert next(found).key == "10"
    reason = r"a\.parquet, row 1 \(counted from 0\): column text is not UTF-8 at byte 3 of its text; .*--skip-bad-lines"
    with pytest.raises(ManifestError, match=reason):
        next(found)


def test_rows_that_are_not_utf8_are_skipped_and_counted(tmp_path: Path) -> None:
    """With the option they are skipped and counted, also when a run is resumed, and in a retry."""
    pairs(tmp_path / "data" / "a.parquet", text=not_utf8(b"a", b"caf\xe9", b"c"), url=not_utf8(b"u", b"v", b"\xff"))
    (tmp_path / "ids.txt").write_text("10\n11\n12\n")
    job = Job(
        "coyo",
        str(tmp_path / "data"),
        str(tmp_path / "out"),
        ids=str(tmp_path / "ids.txt"),
        fetch=POLICY,
        processes=1,
        world_size=None,
    )
    with pytest.raises(ManifestError, match="row 1"):
        run(job)
    report = run(replace(job, options=CoyoOptions(skip_bad_lines=True)))
    assert (report.totals.samples, report.totals.rows, report.totals.images) == (3, 0, 1)
    assert report.totals.notes == {"bad_lines": 2}
    assert retry(job.out, RetryFilter(frozenset({FailureKind.BAD_URL}))).totals.notes == {"bad_lines": 2}


PAGE = b"\n <!DOCTYPE html>\n<html><title>404 Not Found</title></html>"
JSON_PAGE = b'{\n "error": "Repository not found"\n}'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("docs_shard_0_v3.jsonl.zip", b"", "it is empty (0 bytes); download it again, or move it away"),
        ("docs_shard_0_v3.jsonl.gz", b"", "it is empty (0 bytes)"),
        ("docs_shard_0_v3.jsonl.zip", PAGE, "it is a page of HTML or XML that begins with '<!DOCTYPE html> <html>"),
        ("docs_shard_0_v3.jsonl", PAGE, "it is a page of HTML or XML"),
        ("docs_shard_0_v3.jsonl", POINTER, "it is a pointer of Git LFS"),
        ("docs_shard_0_v3.jsonl.zip", JSON_PAGE, """not compressed as its name says: it is JSON that begins with '{"""),
        ("docs_shard_0_v3.jsonl.zst", b'{"error": "gone"}', "not compressed as its name says: it is JSON"),
        ("docs_shard_0_v3.jsonl.zip", b"Not Found", "it is text that begins with 'Not Found'; download it again"),
    ],
)
def test_an_error_page_in_place_of_lines_is_reported(
    tmp_path: Path, name: str, content: bytes, reason: str, skips: bool
) -> None:
    """The error says what the file is, and what to do. Its lines are never skipped one by one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        samples(find_dataset("mmc4-core", Mmc4CoreOptions(skip_bad_lines=skips)).bind(tmp_path, None))
    assert name in str(caught.value)
    assert reason in str(caught.value)
    assert "--skip-bad-lines" not in str(caught.value)


def test_plain_lines_under_the_name_of_a_compressed_file_are_read(tmp_path: Path) -> None:
    """The content of a file decides. An empty file is accepted."""
    (tmp_path / "docs_shard_0_v3.jsonl.zip").write_text(document("http://e.org/1.jpg", '"x": 1'))
    (tmp_path / "docs_shard_1_v3.jsonl").touch()
    assert [sample.key for sample in samples(find_dataset("mmc4-core").bind(tmp_path, None))] == ["0,0"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty (0 bytes)"),
        (PAGE, "it is a page of HTML or XML that begins with '<!DOCTYPE html>"),
        (JSON_PAGE, "it is JSON that begins with '{"),
        (POINTER, "it is a pointer of Git LFS"),
        (b"Not Found", "it is text that begins with 'Not Found'"),
        ("Zugriff verweigert \x1b[2J: gehört".encode(), "it is text that begins with 'Zugriff verweigert  [2J"),
        (b"PAR1" + bytes(100), "it has no footer"),
    ],
)
def test_an_error_page_in_place_of_parquet_is_reported(tmp_path: Path, content: bytes, reason: str) -> None:
    """The error says what the file is, and what to do, without control characters from the file."""
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        find_dataset("coyo").bind(tmp_path, None)
    assert str(tmp_path / "a.parquet") in str(caught.value)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_line_that_is_not_utf8_is_named_or_counted(tmp_path: Path) -> None:
    """The error names the offending byte; with the option, the line is skipped and counted."""
    line = document("http://e.org/1.jpg", '"x": "caf?"').encode().replace(b"?", b"\xe9")
    (tmp_path / "docs_shard_0_v3.jsonl").write_bytes(b"\n" + line)
    with pytest.raises(ManifestError, match=r"line 2: not UTF-8 at byte \d+; .*--skip-bad-lines"):
        samples(find_dataset("mmc4-core").bind(tmp_path, None))
    manifest = find_dataset("mmc4-core", Mmc4CoreOptions(skip_bad_lines=True)).bind(tmp_path, None)
    assert manifest.samples(manifest.shards()[0]).notes == {"bad_lines": 1}
