"""The memory that manifests make a reader take is bounded, whatever a file claims."""

from pathlib import Path

import pytest
from bombs import (
    grown_mib,
    write_blank_lines,
    write_constant_rows,
    write_covers,
    write_long_lines,
    write_repeated_ids,
    write_shared_text,
    write_some_long_texts,
    write_zip_of_many,
)

from datafetch.datasets import find_dataset
from datafetch.datasets.readers import LineFile, ParquetFile, limits, read_ids
from datafetch.errors import ManifestError
from datafetch.model.sample import MAX_URL_CHARS

_READ = """
manifest = find_dataset({name!r}).bind(path, None)
print(sum(1 for shard in manifest.shards() for _ in manifest.samples(shard)))
"""

_RUN = """
from datafetch import Job
job = Job("mmc4-core", str(path), str(path.parent / "root" / "out"), processes=1, fresh=True)
report = datafetch.engine.runner.run(job)
assert report.totals.outcomes == {"blocked_address": report.totals.samples}, report
"""

_IDS = """
from datafetch.datasets.readers import read_ids
assert read_ids(path).ids.tolist() == [7]
"""


@pytest.fixture(autouse=True)
def _children_without_coverage(without_coverage: None) -> None:
    """Measure the memory of datafetch alone."""


@pytest.mark.rotating
@pytest.mark.parametrize("rows", [256, pytest.param(8192, marks=pytest.mark.slow)])
def test_rows_that_share_a_long_text_are_read_a_few_at_a_time(tmp_path: Path, rows: int) -> None:
    """With a dictionary of one URL of 4 MiB, kilobytes expand to gigabytes. Only the start of such a URL is kept."""
    path = tmp_path / "part-00000-a.parquet"
    write_shared_text(path, rows, 4 << 20)
    assert path.stat().st_size < 64_000
    assert grown_mib(_READ.format(name="coyo"), path) < 160
    manifest = find_dataset("coyo").bind(path, None)
    first = next(iter(manifest.samples(manifest.shards()[0])))
    assert [len(url) for url in first.urls] == [MAX_URL_CHARS + 1]


@pytest.mark.rotating
@pytest.mark.slow
def test_the_maximum_number_of_rows_takes_little_memory(tmp_path: Path) -> None:
    """Similarities are counted, not held. Each selected row takes 8 bytes."""
    path = tmp_path / "part-00000-a.parquet"
    write_constant_rows(path, 16_000_000)
    assert grown_mib(_READ.format(name="coyo"), path) < 300


@pytest.mark.rotating
def test_more_rows_than_a_file_of_its_size_can_have_are_refused(tmp_path: Path) -> None:
    """A file of a few kilobytes can claim any number of rows."""
    path = tmp_path / "part-00000-a.parquet"
    write_constant_rows(path, 20_000_000)
    with pytest.raises(ManifestError, match=r"claims to have 20,000,000 rows in [\d,]+ bytes"):
        find_dataset("coyo").bind(path, None)


@pytest.mark.rotating
def test_an_oversized_page_is_refused(tmp_path: Path) -> None:
    """One text may be larger than a batch should be, and memory is allocated for a page before it is read."""
    path = tmp_path / "part-00000-a.parquet"
    write_shared_text(path, 10, 65 << 20)
    manifest = find_dataset("coyo").bind(path, None)
    with pytest.raises(ManifestError, match=r"column url has a page of [\d,]+ bytes, more than is accepted"):
        list(manifest.samples(manifest.shards()[0]))


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY"])
def test_long_texts_among_many_short_ones_are_read_a_few_at_a_time(tmp_path: Path, encoding: str) -> None:
    """Some rows are thousands of times as long as the mean, or share their beginnings."""
    path = tmp_path / "part-00000-a.parquet"
    write_some_long_texts(path, 150, 2 << 20, encoding)
    assert path.stat().st_size < 2_000_000
    assert grown_mib(_READ.format(name="coyo"), path) < 160


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize(("lines", "text_bytes"), [(32, 8_000_000), (8, 60_000_000)])
def test_reading_long_lines_ahead_is_bounded_in_bytes(tmp_path: Path, lines: int, text_bytes: int) -> None:
    """A whole run holds as many samples as fit into some megabytes; test_fetch_sample.py has a quick case."""
    path = tmp_path / "docs_shard_0_v3.jsonl.zst"
    write_long_lines(path, lines, text_bytes)
    assert path.stat().st_size < 512_000
    # Samples in progress (128 MiB and one sample), and two lines while they are read and spooled.
    assert grown_mib(_RUN, path) < 128 + 8 * text_bytes // (1 << 20) + 64


def test_a_line_that_would_take_gigabytes_as_objects_is_refused(tmp_path: Path) -> None:
    """A line of 64 MiB is accepted, but not one whose empty lists would take thirty times that."""
    path = tmp_path / "docs_shard_0_v3.jsonl"
    path.write_bytes(b'{"x":[' + b"[]," * 10_000_000 + b"0]}\n")
    manifest = find_dataset("mmc4-core").bind(path, None)
    with pytest.raises(ManifestError, match=r"line 1: it may take more than 536,870,912 bytes of memory"):
        manifest.samples(manifest.shards()[0])


def test_more_lines_than_a_file_of_its_size_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte is held for each, and blank lines are compressed to nothing."""
    monkeypatch.setattr(limits, "_MAX_ROWS", 1 << 16)
    path = tmp_path / "a.jsonl.zst"
    write_blank_lines(path, 70_000)
    with pytest.raises(ManifestError, match=r"a\.jsonl\.zst has more than 65,536 lines in [\d,]+ bytes"):
        sum(1 for _ in LineFile(path).lines())


@pytest.mark.rotating
@pytest.mark.parametrize("covers", [60_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_a_list_of_covers_is_read_cover_by_cover(tmp_path: Path, covers: int) -> None:
    """Memory holds a chunk of the file, and a few bytes for each cover."""
    path = tmp_path / "dataset.json"
    write_covers(path, covers)
    assert grown_mib(_READ.format(name="ocr-vqa"), path) < 32 + covers // 20_000


@pytest.mark.rotating
@pytest.mark.slow
def test_a_repeated_id_is_held_once(tmp_path: Path) -> None:
    """A gzipped list of a few kilobytes can have any number of lines."""
    path = tmp_path / "ids.txt.gz"
    write_repeated_ids(path, 5_000_000)
    assert path.stat().st_size < 64_000
    assert grown_mib(_IDS, path) < 64
    assert read_ids(path).duplicates == 4_999_999


@pytest.mark.rotating
def test_the_directory_of_a_zip_with_many_members_is_not_read(tmp_path: Path) -> None:
    """The list of members would take twenty times its size in memory."""
    path = tmp_path / "a.jsonl.zip"
    write_zip_of_many(path, 25_000)
    with pytest.raises(
        ManifestError, match=r"a\.jsonl\.zip: its central directory is too large for a zip with one file"
    ):
        LineFile(path)


def test_an_oversized_footer_is_refused(tmp_path: Path) -> None:
    """Arrow would take ten times its size in memory."""
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(17 << 20) + (17 << 20).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ManifestError, match=r"has a footer of 17,825,792 bytes"):
        ParquetFile(path, {})
