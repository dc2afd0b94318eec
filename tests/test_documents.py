"""Documents: which of them are selected, what their rows are, and that images keep their similarities."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from datafetch.datasets import find_dataset
from datafetch.datasets.documents import DocumentFormat, DocumentOptions, document_row
from datafetch.datasets.jsonl_manifest import BadRecordError
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.datasets.token_count import TokenCounter
from datafetch.errors import ConfigurationError, ManifestError, ResourceError
from datafetch.fetch.urls import BadUrlError, parse_url
from datafetch.model.kinds import CounterName, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Manifest
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import Record, Sample
from datafetch.verify.rows import examine_document

GONE = Failure(FailureKind.HTTP_STATUS, "404", 404, 1)


def document(images: int, texts: int = 3, **more: object) -> dict[str, Any]:
    """Return a document; each image's similarities identify it."""
    info = [
        {
            "image_name": f"{n}.jpg",
            "raw_url": f"http://e.org/{n}.jpg",
            "matched_text_index": n % texts,
            "matched_sim": 0.3,
        }
        for n in range(images)
    ]
    matrix = [[float(n)] * texts for n in range(images)]
    return {
        "image_info": info,
        "similarity_matrix": matrix,
        "text_list": ["text"] * texts,
        "url": "http://e.org/",
        **more,
    }


def read(record: dict[str, Any], options: DocumentOptions | None = None) -> Any:
    """Parse a record as a sample, or return None."""
    record_format = DocumentFormat.load("raw_url", options or DocumentOptions())
    return record_format.parse_record(record) if record_format.selects(record) else None


def sample_of(record: dict[str, Any], options: DocumentOptions | None = None) -> Sample:
    """Parse a record as the first sample of its shard."""
    parsed = read(record, options)
    return Sample(0, "0", parsed.urls, parsed.row)


@given(
    outcomes=st.lists(st.booleans(), min_size=1, max_size=15),
    least=st.none() | st.integers(1, 16),
    is_filled=st.booleans(),
    texts=st.integers(1, 40),
)
def test_an_image_takes_its_similarities_with_it(
    outcomes: list[bool], least: int | None, is_filled: bool, texts: int
) -> None:
    """Whichever images arrive, they keep their order, each with its own matrix row and an existing text."""
    record = document(len(outcomes), texts)
    if is_filled:
        del record["similarity_matrix"]
    sample = sample_of(record, DocumentOptions(keep_at_least=least, fill_similarity=is_filled))
    mix: list[Outcome] = [Encoded(str(n).encode(), 1, 1, "PNG") if ok else GONE for n, ok in enumerate(outcomes)]
    row = document_row(Record(sample, tuple(mix[: len(sample.urls)])), least)
    arrived = [n for n, ok in enumerate(outcomes) if ok]
    is_enough = len(arrived) >= (len(outcomes) if least is None else least) and bool(arrived)
    assert (row is not None) == is_enough
    if row is None:
        return
    info: Any = row["image_info"]
    assert [image["image_name"] for image in info] == [f"{n}.jpg" for n in arrived]
    assert [base64.b64decode(image["image_base64"]) for image in info] == [str(n).encode() for n in arrived]
    assert row["similarity_matrix"] == [[0.0 if is_filled else float(n)] * texts for n in arrived]
    assert row["text_list"] == record["text_list"]
    assert not [part.problem for part in examine_document(row) if part.problem]
    assert {key: row[key] for key in row if key not in ("image_info", "similarity_matrix")} == {
        "text_list": record["text_list"],
        "url": "http://e.org/",
    }


def test_a_complete_document_is_unchanged() -> None:
    """Only the images are added, and the published record is not changed."""
    record = document(2, could_have_url_duplicate=0)
    before = json.dumps(record)
    row = find_dataset("mmc4-core").to_row(
        Record(sample_of(record), (Encoded(b"a", 1, 1, "PNG"), Encoded(b"b", 1, 1, "PNG"))), Payload.BASE64
    )
    assert row is not None
    assert json.dumps(record) == before
    images: Any = row["image_info"]
    for image in images:
        del image["image_base64"]
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("base", "url", "joined"),
    [
        ("http://a.org/x/y.html", "img/1.jpg", "http://a.org/x/img/1.jpg"),
        ("https://a.org/x/y.html", "/1.jpg", "https://a.org/1.jpg"),
        ("https://a.org/x", "//cdn.org/1.jpg", "https://cdn.org/1.jpg"),
        ("https://a.org/x", "http://b.org/1.jpg?a=1&amp;b=2", "http://b.org/1.jpg?a=1&amp;b=2"),
        ("https://a.org/x", " http://b.org/ä b.jpg ", "http://b.org/ä b.jpg"),
        (None, "1.jpg", "1.jpg"),
        ("https://a.org/x", "http://[::1/1.jpg", "http://[::1/1.jpg"),
        ("https://a.org/x", None, ""),
        ("https://a.org/x", " ", ""),
    ],
)
def test_urls_start_from_their_document(base: object, url: object, joined: str) -> None:
    """Relative URLs are resolved. What is not a URL is left to the fetcher to reject."""
    record = document(1, url=base)
    record["image_info"][0]["raw_url"] = url
    assert sample_of(record).urls == (joined,)


def broken(**changes: object) -> dict[str, Any]:
    """Return a document with some fields changed; None removes a field."""
    record = document(2) | changes
    return {key: value for key, value in record.items() if value is not None}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (broken(text_list=None), "text_list"),
        (broken(text_list=["a", 1]), "text_list"),
        (broken(image_info=None), "image_info"),
        (broken(image_info=["a"]), "image_info"),
        (broken(image_info=[{}] * 257), "257 images are more"),
        (broken(text_list=["only"]), "matched_text_index of image 1"),
        (broken(image_info=[{"matched_text_index": True}] * 2), "matched_text_index of image 0"),
        (broken(similarity_matrix=[[1.0]]), "one row for each of the 2 images"),
        (broken(similarity_matrix=[[1.0], None]), "one row for each of the 2 images"),
        (broken(similarity_matrix={}), "one row for each of the 2 images"),
    ],
)
def test_a_document_that_the_loader_cannot_read_is_refused(record: dict[str, Any], reason: str) -> None:
    """The error says what is wrong with the document."""
    with pytest.raises(BadRecordError, match=reason):
        read(record)


def test_nan_passes_no_filter() -> None:
    """NaN is neither lower nor higher than any threshold."""
    record = document(2)
    record["image_info"][1]["matched_sim"] = float("nan")
    assert not read(record, DocumentOptions(min_similarity=-1.0))
    assert read(record)


def test_a_document_without_similarities_is_refused_or_gets_zeros() -> None:
    """Zeros are filled in only with the option, and counted."""
    record = broken(similarity_matrix=None)
    with pytest.raises(ManifestError, match=r"no similarity_matrix.*--fill-similarity"):
        read(record)
    parsed = read(record, DocumentOptions(fill_similarity=True))
    assert parsed.row["similarity_matrix"] == [[0.0] * 3] * 2
    assert parsed.notes == (CounterName.FILLED_SIMILARITY,)


def test_a_document_of_too_few_images_is_not_requested() -> None:
    """It becomes a sample without URLs, and so without a row."""
    assert read(document(2), DocumentOptions(keep_at_least=3)).urls == ()
    assert read(document(0)).urls == ()


@pytest.mark.parametrize(
    ("options", "is_wanted"),
    [
        (DocumentOptions(max_images=3), True),
        (DocumentOptions(max_images=2), False),
        (DocumentOptions(min_similarity=0.3), True),
        (DocumentOptions(min_similarity=0.31), False),
    ],
)
def test_filters_leave_out_whole_documents(options: DocumentOptions, is_wanted: bool) -> None:
    """A filter never changes a document."""
    record = document(3)
    parsed = read(record, options)
    assert (parsed is not None) == is_wanted
    if parsed is not None:
        assert parsed.row == record


def test_filtering_by_a_missing_similarity_is_refused() -> None:
    """The error says so, instead of leaving out all documents."""
    record = document(1)
    del record["image_info"][0]["matched_sim"]
    with pytest.raises(BadRecordError, match="matched_sim"):
        read(record, DocumentOptions(min_similarity=0.2))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A tokenizer that makes a token of each word."""
    tokens = Tokenizer(WordLevel({"[UNK]": 0, "text": 1}, unk_token="[UNK]"))  # noqa: S106 - no password
    tokens.pre_tokenizer = Whitespace()
    tokens.enable_truncation(4)  # as a model's file may say; it must not count
    tokens.enable_padding(length=4000)
    tokens.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(("most", "is_wanted"), [(729 * 2 + 5, True), (729 * 2 + 4, False), (100, False)])
def test_documents_fit_a_number_of_tokens(tokenizer: str, most: int, is_wanted: bool) -> None:
    """An image counts 729 tokens, and a text the number that the tokenizer gives."""
    record = document(2) | {"text_list": ["one two", "three four", "five"]}
    assert (read(record, DocumentOptions(max_tokens=most, tokenizer=tokenizer)) is not None) == is_wanted


def test_texts_that_a_tokenizer_refuses_are_counted(tokenizer: str) -> None:
    """A text with a lone surrogate is refused, and one of megabytes has too many tokens without being tokenized."""
    options = DocumentOptions(max_tokens=729 + 3, tokenizer=tokenizer)
    assert read(document(1, 1) | {"text_list": ["one \ud83d two"]}, options) is not None
    assert read(document(1, 1) | {"text_list": ["one" * 10_000_000]}, options) is None


def test_too_little_memory_for_a_tokenizer_is_not_a_fault_of_its_file(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is fine, and the run can be repeated with more memory."""
    monkeypatch.setattr("tokenizers.Tokenizer", Mock(from_str=Mock(side_effect=MemoryError)))
    with pytest.raises(ResourceError, match="out of memory"):
        TokenCounter(Path(tokenizer))


def test_similarities_are_filled_in_within_reason() -> None:
    """A line can have millions of texts, and each image has a similarity to each of them."""
    record = document(256, 5_000)
    del record["similarity_matrix"]
    with pytest.raises(BadRecordError, match="5,000 texts and 256 images are too many"):
        read(record, DocumentOptions(fill_similarity=True))


@pytest.mark.parametrize(("base", "url"), [("http://e.org/" + "a" * 70_000, "1.jpg"), (None, "http://" + "a" * 70_000)])
def test_urls_that_are_too_long_are_not_requested(base: str | None, url: str) -> None:
    """The document's URL is part of that of each image. The beginning that is kept shows why it is refused."""
    record = document(1) | {"url": base}
    record["image_info"][0]["raw_url"] = url
    (url_of_sample,) = sample_of(record).urls
    assert url_of_sample == url[: 65_536 + 1]
    with pytest.raises(BadUrlError, match="not an http" if base else "longer than 65,536 characters"):
        parse_url(url_of_sample)


def test_the_tokenizer_is_part_of_the_identity(tokenizer: str, tmp_path: Path) -> None:
    """The content of its file counts. A file that is not a tokenizer is refused in one line."""
    identity_fields = DocumentFormat.load(
        "raw_url", DocumentOptions(max_tokens=9, tokenizer=tokenizer)
    ).identity_fields()
    assert len(str(identity_fields["tokenizer"])) == 64
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"none\.json is not a tokenizer\.json"):
        DocumentFormat.load("raw_url", DocumentOptions(max_tokens=9, tokenizer=str(tmp_path / "none.json")))
    with pytest.raises(ConfigurationError, match="cannot read the tokenizer"):
        DocumentFormat.load("raw_url", DocumentOptions(max_tokens=9, tokenizer=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    "wrong",
    [{"keep_at_least": 0}, {"max_images": -1}, {"max_tokens": 5}, {"tokenizer": "x"}, {"min_similarity": float("nan")}],
)
def test_options_that_can_not_work_are_refused(wrong: dict[str, Any]) -> None:
    """The error names the field, before anything is read."""
    with pytest.raises(ConfigurationError, match=f"\\b{next(iter(wrong))}\\b"):
        DocumentOptions(**wrong)


def write_shards(folder: Path, shards: dict[int, int], name: str = "docs_shard") -> None:
    """Write files of mmc4-core: number → documents."""
    folder.mkdir(exist_ok=True)
    for number, documents in shards.items():
        lines = [json.dumps(document(1, url=f"http://e.org/{number}/{n}")) for n in range(documents)]
        (folder / f"{name}_{number}_v3.jsonl").write_text("\n".join(lines) + "\n")


def bind(folder: Path, ids: Sequence[str] | None = None, **options: Any) -> Manifest:
    """Open files of mmc4-core as a manifest."""
    path = folder.with_suffix(".csv")
    path.write_text("\n".join(ids or ()))
    return find_dataset("mmc4-core", Mmc4CoreOptions(**options)).bind(folder, path if ids else None)


def counts_of(manifest: Manifest) -> dict[str, ShardCounts]:
    """Return the counts of the shards as if all were published, with only the rows that the list selects."""
    return {shard.name: ShardCounts(notes=manifest.samples(shard).notes) for shard in manifest.shards()}


def keys(manifest: Manifest) -> list[str]:
    """Return the keys of all samples, in order."""
    return [sample.key for shard in manifest.shards() for sample in manifest.samples(shard)]


def test_documents_are_selected_by_an_id_list(tmp_path: Path) -> None:
    """They come from the listed files, in published order, and listed documents that are missing are counted."""
    write_shards(tmp_path / "docs", {2: 4, 10: 3, 11: 2})
    manifest = bind(tmp_path / "docs", ["10,2", "2,0", "2,3", "10,2", "2,4", "3,0", "3,1"])
    assert [shard.name for shard in manifest.shards()] == ["docs_shard_00002_v3", "docs_shard_00010_v3"]
    assert keys(manifest) == ["2,0", "2,3", "10,2"]
    selection = manifest.id_list_result(["2,0", "2,3", "10,2", "10,2"], counts_of(manifest))
    assert selection is not None
    assert (selection.wanted, selection.duplicates, selection.not_found, selection.missing_files) == (6, 1, 3, 1)
    assert (selection.out_of_range, selection.remark) == (1, "")


def test_indices_of_kept_documents_select_rows(tmp_path: Path) -> None:
    """All documents are fetched, and the indices count the rows."""
    write_shards(tmp_path / "docs", {2: 4})
    manifest = bind(tmp_path / "docs", ["2,0", "2,2"], ids_index="kept")
    (shard,) = manifest.shards()
    assert keys(manifest) == ["2,0", "2,1", "2,2", "2,3"]
    assert manifest.samples(shard).row_numbers == frozenset({0, 2})
    selection = manifest.id_list_result([], {shard.name: ShardCounts(rows=1)})
    assert selection is not None
    assert (selection.wanted, selection.not_found) == (2, 1)
    assert manifest.identity_fields()["ids_index"] == "kept"


@pytest.mark.parametrize(
    ("most", "ids_index", "hint"),
    [(100, None, ""), (60, None, "--ids-index kept"), (100, "kept", "--ids-index document"), (60, "kept", "")],
)
def test_indices_that_look_like_the_other_kind_are_reported(
    tmp_path: Path, most: int, ids_index: str | None, hint: str
) -> None:
    """Indices that end long before their shards count only the documents that were kept."""
    write_shards(tmp_path / "docs", dict.fromkeys(range(6), 100))
    ids = [f"{shard},{index}" for shard in range(6) for index in range(0, most, 2)]
    manifest = bind(tmp_path / "docs", ids, ids_index=ids_index)
    selection = manifest.id_list_result([], counts_of(manifest))
    assert selection is not None
    assert hint in selection.remark
    assert bool(hint) == bool(selection.remark)


def test_the_variant_with_fewer_faces_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its name is in the shards' names and in a message."""
    write_shards(tmp_path / "docs", {3: 1}, "docs_no_face_shard")
    with caplog.at_level("INFO"):
        manifest = bind(tmp_path / "docs")
    assert [shard.name for shard in manifest.shards()] == ["docs_no_face_shard_00003_v3"]
    assert "mmc4-core-ff, the variant with fewer faces" in caplog.text
    assert "3 shards are missing: 0, 1, 2" in caplog.text


def test_a_folder_with_a_duplicate_shard_or_none_is_refused(tmp_path: Path) -> None:
    """The error names both files, since it is unknown which of them is meant."""
    write_shards(tmp_path / "docs", {3: 1})
    write_shards(tmp_path / "docs", {3: 1}, "docs_no_face_shard")
    with pytest.raises(ManifestError, match="are both shard 3; move one of them away"):
        bind(tmp_path / "docs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jsonl").write_text("{}\n")
    with pytest.raises(ManifestError, match="has no file docs_shard_<number>_v3"):
        bind(tmp_path / "other")
    write_shards(tmp_path / "docs2", {3: 1})
    with pytest.raises(ManifestError, match="has none of the shards that"):
        bind(tmp_path / "docs2", ["4,0"])
