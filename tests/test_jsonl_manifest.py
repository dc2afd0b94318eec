"""Datasets of lines: which lines become samples, under which keys, and what is reported of bad ones."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from datafetch.datasets import find_dataset
from datafetch.datasets.jsonl_manifest import (
    BadRecordError,
    JsonObject,
    LinesManifest,
    ParsedRecord,
    RecordFormat,
    open_folder,
)
from datafetch.datasets.llm_jp_pairs_step1 import LlmJpPairsStep1Options
from datafetch.errors import ManifestError
from datafetch.model.kinds import Payload
from datafetch.model.manifest import Manifest
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Sample
from datafetch.output.formats import decode_row, encode_row
from datafetch.store.spool_format import MARKER_BYTES, encode, read_entries


def bind(folder: Path, files: dict[str, str], **options: Any) -> Manifest:
    """Open files of pairs as a manifest."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return find_dataset("llm-jp-pairs-step1", LlmJpPairsStep1Options(**options)).bind(folder, None)


def samples(manifest: Manifest) -> list[Sample]:
    """Return all samples, in order."""
    return [sample for shard in manifest.shards() for sample in manifest.samples(shard)]


def lines(*records: object) -> str:
    """Return records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize("url_key", ["url", "image_url", "raw_url", "img_url", "src"])
@pytest.mark.parametrize("text_key", ["text", "caption"])
def test_keys_are_detected_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url_key: str, text_key: str
) -> None:
    """The first records decide. The row is the record, with the image in place of a name."""
    record = {url_key: "https://e.org/桜.jpg", text_key: "満開の桜", "image": "x.jpg"}
    with caplog.at_level("INFO"):
        manifest = bind(tmp_path / "s", {"a.jsonl": lines(record)})
    assert f"url key: {url_key}, text key: {text_key}" in caplog.text
    (sample,) = samples(manifest)
    assert sample.urls == ("https://e.org/桜.jpg",)
    row = find_dataset("llm-jp-pairs-step1").to_row(Record(sample, (Encoded(b"j", 1, 1, "PNG"),)), Payload.BASE64)
    assert row == {**record, "image": "ag=="}
    assert manifest.identity_fields() == {"keys": {"url": url_key, "text": text_key}}


def test_the_key_that_most_records_have_is_used(tmp_path: Path) -> None:
    """A key that has other values in most records is not used."""
    records = [{"url": "a page's id", "src": "http://e.org/1.jpg", "text": "a"}] * 3
    assert samples(bind(tmp_path / "s", {"a.jsonl": lines(*records)}))[0].urls == ("http://e.org/1.jpg",)


def test_a_text_under_another_key_is_copied_to_the_key_of_the_loader(tmp_path: Path) -> None:
    """The loader reads ``text``, or ``caption`` if there is none."""
    record = {"url": "http://e.org/1.jpg", "alt": "猫", "caption": None}
    (sample,) = samples(bind(tmp_path / "s", {"a.jsonl": lines(record)}, text_key="alt"))
    assert sample.row == {**record, "text": "猫"}


def test_without_a_suitable_key_the_error_lists_those_that_records_have(tmp_path: Path) -> None:
    """It also names the option that sets the key."""
    files = {"a.jsonl": lines({"link": "http://e.org/1.jpg", "text": "a"})}
    with pytest.raises(ManifestError, match=r"no url under url or .* --url-key; the keys that they have: link, text"):
        bind(tmp_path / "s", files)
    with pytest.raises(
        ManifestError, match=r"no text under caption; .* --text-key; the keys that they have: link, text"
    ):
        bind(tmp_path / "s", files, url_key="link", text_key="caption")
    with pytest.raises(ManifestError, match=r"the keys that they have: �\[2Jlink$"):
        bind(tmp_path / "s", {"a.jsonl": lines({"\x1b[2Jlink": 1})})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"url": "http://e.org/2.jpg", "text"', r"not JSON"),
        ("[1]", "not a JSON object"),
        ('{"url": 7, "text": "a"}', "url is int, not text"),
        ('{"url": "u", "text": "a", "x": ' + "[" * 200 + "]" * 200 + "}", "nested more than 200 levels deep"),
        ('{"url": "u", "text": "a", "x": ' + "[" * 5000 + "]" * 5000 + "}", "nested more than 200 levels deep"),
        ('{"url": "u", "text": "a", "x": ' + "9" * 5000 + "}", "an integer has more than 4,300 digits; fix it"),
        ('{"url": "http://e.org/2.jpg", "text": 7}', "text is int, not text"),
    ],
)
def test_a_bad_line_stops_the_run_or_is_skipped(tmp_path: Path, line: str, reason: str) -> None:
    """The error names file and line, before anything of the file is fetched. If skipped, the line is counted."""
    good = lines({"url": "http://e.org/1.jpg", "text": "a"})
    files = {"a.jsonl": f"{good}\n{line}\n{good}"}
    manifest = bind(tmp_path / "s", files)
    with pytest.raises(ManifestError, match=rf"a\.jsonl, line 3: {reason}.*--skip-bad-lines"):
        manifest.samples(manifest.shards()[0])
    manifest = bind(tmp_path / "s", files, skip_bad_lines=True)
    assert [sample.key for sample in samples(manifest)] == ["a:0", "a:3"]
    assert manifest.samples(manifest.shards()[0]).notes == {"bad_lines": 1}


# The number is one for which the slower of two JSON writers is used.
DEEPEST = '{"url": "http://e.org/1.jpg", "text": "a", "x": ' + "[" * 199 + "9" * 30 + "]" * 199 + "}\n"


def test_a_record_of_the_maximum_depth_passes_every_step(tmp_path: Path) -> None:
    """The spool and the shard can hold what reading accepts, with room to spare in the interpreter's stack."""
    manifest = bind(tmp_path / "s", {"a.jsonl": DEEPEST})
    marker, spool = b"m" * MARKER_BYTES, tmp_path / "spool"
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 500)
    try:
        (sample,) = samples(manifest)
        spool.write_bytes(b"".join(encode(sample, marker)))
        with spool.open("rb") as file:
            (entry,) = read_entries(file, marker)
        assert decode_row(encode_row(sample.row)) == sample.row
    finally:
        sys.setrecursionlimit(before)
    assert entry.record == sample


@pytest.mark.parametrize("later", ['{"url"\n', ""])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, later: str) -> None:
    """The lines are no longer those that were scanned."""
    manifest = bind(tmp_path / "s", {"a.jsonl": lines({"url": "http://e.org/1.jpg", "text": "a"})})
    found = manifest.samples(manifest.shards()[0])
    (tmp_path / "s" / "a.jsonl").write_text(later)
    with pytest.raises(ManifestError, match=r"a\.jsonl, line \d: the file has changed since it was opened"):
        list(found)


def test_the_image_of_a_pair_without_a_text_is_not_requested(tmp_path: Path) -> None:
    """It can't become a row. A pair without a URL fails as any bad URL does."""
    url = "http://e.org/1.jpg"
    records = [{"url": url, "text": "a"}, {"url": url, "text": None}, {"url": url}, {"url": None, "text": "b"}]
    assert [sample.urls for sample in samples(bind(tmp_path / "s", {"a.jsonl": lines(*records)}))] == [
        (url,),
        (),
        (),
        ("",),
    ]


def test_shards_are_named_after_their_files(tmp_path: Path) -> None:
    """Shards are sorted by these names, and two files that would become one shard are refused."""
    good = lines({"url": "http://e.org/1.jpg", "text": "a"})
    manifest = bind(tmp_path / "s", {"b.jsonl": good, "a.b.jsonl": good + good, ".hidden.jsonl": "{", "notes.txt": "{"})
    assert [shard.name for shard in manifest.shards()] == ["a.b", "b"]
    with pytest.raises(ManifestError, match=r"would both become shard b;"):
        bind(tmp_path / "s", {"b.jsonl.gz": good})
    with pytest.raises(ManifestError, match=r"holds no \.jsonl file"):
        bind(tmp_path / "empty", {})


@pytest.mark.parametrize("dataset", ["llm-jp-pairs-step1", "llm-jp-interleaved"])
def test_a_copy_of_a_file_is_refused(tmp_path: Path, dataset: str) -> None:
    """A second download would give every record twice. Empty files are not copies of each other."""
    image = {"url": "http://e.org/1.jpg", "matched_text_index": 0}
    text = lines({"url": "http://e.org/1.jpg", "text": "a", "text_list": ["a"], "image_info": [image]})
    for name, content in {"pairs_00.jsonl": text, "pairs_01.jsonl": text.replace("1.jpg", "2.jpg")}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "pairs_02.jsonl").touch()
    (tmp_path / "pairs_03.jsonl").touch()
    assert len(find_dataset(dataset).bind(tmp_path, None).shards()) == 4
    (tmp_path / "pairs_00 (1).jsonl").write_text(text)
    with pytest.raises(ManifestError) as caught:
        find_dataset(dataset).bind(tmp_path, None)
    message = str(caught.value)
    assert message.isprintable()
    assert all(str(tmp_path / name) in message for name in ("pairs_00.jsonl", "pairs_00 (1).jsonl"))


class Tabbed(RecordFormat):
    """Lines of a URL, a tab and a text."""

    def parse_line(self, line: bytes) -> JsonObject:
        """Return the two halves of a line."""
        url, tab, text = line.decode().partition("\t")
        if not tab:
            raise BadRecordError("there is no tab")
        return {"url": url, "text": text}

    def parse_record(self, record: JsonObject) -> ParsedRecord:
        """Return a pair as a parsed record."""
        return ParsedRecord((record["url"],), record)


class EmptyColumns(Tabbed):
    """The same, but columns may be empty."""

    def is_blank(self, line: bytes) -> bool:
        """Whether there is no column."""
        return not line.strip(b" ")


def test_which_lines_are_blank_depends_on_their_format(tmp_path: Path) -> None:
    """JSON may be surrounded by tabs; where they separate columns, a line of tabs has empty ones."""
    (tmp_path / "a.tsv").write_text("http://e.org/1.jpg\tone\n\t\n \n")
    files = open_folder(tmp_path, (".tsv",))
    assert [sample.key for sample in samples(LinesManifest(files, Tabbed()))] == ["a:0"]
    assert [sample.key for sample in samples(LinesManifest(files, EmptyColumns()))] == ["a:0", "a:1"]


def test_lines_need_not_be_json(tmp_path: Path) -> None:
    """A dataset of other lines only says how a line is parsed; names, keys and errors are the same."""
    (tmp_path / "a.tsv").write_text("http://e.org/1.jpg\tone\n\nhttp://e.org/2.jpg\ttwo\n")
    manifest = LinesManifest(open_folder(tmp_path, (".tsv", ".tsv.gz")), Tabbed())
    assert [shard.name for shard in manifest.shards()] == ["a"]
    assert [(sample.key, sample.urls, sample.row["text"]) for sample in samples(manifest)] == [
        ("a:0", ("http://e.org/1.jpg",), "one"),
        ("a:2", ("http://e.org/2.jpg",), "two"),
    ]
    (tmp_path / "a.tsv").write_text("http://e.org/1.jpg\tone\nhttp://e.org/2.jpg\n")
    with pytest.raises(ManifestError, match=r"a\.tsv, line 2: there is no tab; fix it, or skip such lines with"):
        samples(LinesManifest(open_folder(tmp_path, (".tsv",)), Tabbed()))
