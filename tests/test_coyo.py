"""COYO: which rows are selected, in which order, and the rows that are written."""

import base64
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.datasets import find_dataset
from datafetch.datasets.coyo import Coyo, CoyoOptions
from datafetch.datasets.payload import pack
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.model.kinds import Payload
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import BAD_LINE, IdListResult, Record, Sample

COYO = Coyo()


def write(path: Path, ids: list[int | None], similarities: list[float] | None = None) -> None:
    """Write a COYO-shaped file with these ids, whose URLs tell the row number."""
    half = pa.array([similarity / 2 for similarity in similarities or [0.8] * len(ids)], pa.float32())
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "url": pa.array([f"http://example.org/{row}.jpg" for row in range(len(ids))], pa.string()),
            "text": pa.array([f"text {row}" for row in range(len(ids))], pa.string()),
            "clip_similarity_vitb32": half,
            "clip_similarity_vitl14": half,
        }
    )
    pq.write_table(table, path, row_group_size=3)


def write_ids(path: Path, ids: list[int]) -> Path:
    """Write an id list."""
    path.write_text("".join(f"{number}\n" for number in ids))
    return path


def test_rows_with_a_listed_id_are_selected(tmp_path: Path) -> None:
    """They come in the order of each file. Ids that are listed twice, or in no file, are counted."""
    write(tmp_path / "part-00000-17da.snappy.parquet", [30, 10, 20, 50])
    write(tmp_path / "part-00001-17da.snappy.parquet", [70, 60])
    manifest = COYO.bind(tmp_path, write_ids(tmp_path / "ids", [60, 10, 99, 30, 10, 60]))
    shards = manifest.shards()
    assert [(shard.name, shard.size) for shard in shards] == [("part-00000", 4), ("part-00001", 2)]
    samples = [list(manifest.samples(shard)) for shard in shards]
    assert [[sample.key for sample in part] for part in samples] == [["30", "10"], ["60"]]
    assert [[sample.position for sample in part] for part in samples] == [[0, 1], [0]]
    assert samples[0][1] == Sample(
        1,
        "10",
        ("http://example.org/1.jpg",),
        {"id": 10, "url": "http://example.org/1.jpg", "text": "text 1", "clip_sim": float(np.float32(0.8))},
    )
    assert manifest.expected_samples() == 4
    assert manifest.id_list_result(["30", "10", "60"], {}) == IdListResult(wanted=4, duplicates=2, not_found=1)


def test_the_first_of_several_rows_with_the_same_id_is_selected(tmp_path: Path) -> None:
    """Keys are unique in a shard, however often and wherever a file repeats an id."""
    write(tmp_path / "a.parquet", [5, 7, 5, 5, 6, 7, 5])
    manifest = COYO.bind(tmp_path, write_ids(tmp_path / "ids", [5, 7]))
    samples = list(manifest.samples(manifest.shards()[0]))
    assert [(sample.key, sample.urls[0]) for sample in samples] == [
        ("5", "http://example.org/0.jpg"),
        ("7", "http://example.org/1.jpg"),
    ]


def test_without_ids_the_published_selection_is_made(tmp_path: Path) -> None:
    """It is the fifth of the file's rows with the highest similarity, in the file's order."""
    similarities = [0.61, 0.9, 0.5, 0.7, 0.8, 0.62, 0.63, 0.1, 0.2, 0.3]
    write(tmp_path / "a.parquet", list(range(10)), similarities)
    manifest = COYO.bind(tmp_path, None)
    assert [sample.key for sample in manifest.samples(manifest.shards()[0])] == ["1", "4"]
    assert manifest.expected_samples() is None
    assert manifest.id_list_result([], {}) is None


@pytest.mark.rotating
@settings(max_examples=50)
@given(st.lists(st.integers(50, 70), max_size=60))
def test_the_published_selection_for_any_similarities(
    tmp_path_factory: pytest.TempPathFactory, hundredths: list[int]
) -> None:
    """No row at or below 0.6 is selected, never more than a fifth, and no better row is left out."""
    folder = tmp_path_factory.mktemp("coyo")
    similarities = [number / 100 for number in hundredths]
    write(folder / "a.parquet", list(range(len(similarities))), similarities)
    manifest = COYO.bind(folder, None)
    samples = manifest.samples(manifest.shards()[0])
    chosen = [int(sample.key) for sample in samples]
    above = [row for row, number in enumerate(similarities) if np.float32(number / 2) * 2 > np.float32(0.6)]
    assert len(samples) == len(chosen) == min(len(above), int(len(similarities) * 0.2))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(above)
    left_out = [similarities[row] for row in set(above) - set(chosen)]
    assert not chosen or not left_out or min(similarities[row] for row in chosen) >= max(left_out)


def test_files_with_other_names_are_numbered(tmp_path: Path) -> None:
    """Shards get names that sort as the manifest does, whatever the files are called."""
    for name in ("b.parquet", "a.parquet"):
        write(tmp_path / name, [1])
    manifest = COYO.bind(tmp_path, None)
    assert [(shard.name, shard.source.name) for shard in manifest.shards()] == [
        ("part-00000", "a.parquet"),
        ("part-00001", "b.parquet"),
    ]


def test_a_row_without_an_id_is_refused(tmp_path: Path) -> None:
    """Without an id a row can't be told from another; the error names the row and says what to do."""
    write(tmp_path / "a.parquet", [1, 2, 3, 4, None])
    reason = r"a\.parquet, row 4 \(counted from 0\): column id is empty; .*--skip-bad-lines"
    manifest = COYO.bind(tmp_path, write_ids(tmp_path / "ids", [1]))
    with pytest.raises(ManifestError, match=reason):
        manifest.samples(manifest.shards()[0])
    write(tmp_path / "a.parquet", [1, 2, 3, 4, None], [0.7, 0.7, 0.7, 0.7, 0.9])
    manifest = COYO.bind(tmp_path, None)
    with pytest.raises(ManifestError, match=reason):
        list(manifest.samples(manifest.shards()[0]))


def test_a_row_without_an_id_is_skipped_and_counted(tmp_path: Path) -> None:
    """This takes an option, and works with an id list and without one."""
    coyo = Coyo(options=CoyoOptions(skip_bad_lines=True))
    write(tmp_path / "a.parquet", [1, 2, 3, None, 1], [0.7, 0.8, 0.7, 0.9, 0.7])
    manifest = coyo.bind(tmp_path, write_ids(tmp_path / "ids", [1, 3]))
    samples = manifest.samples(manifest.shards()[0])
    assert [sample.key for sample in samples] == ["1", "3"]
    assert samples.notes == {"repeated_ids": 1, "bad_lines": 1}
    write(tmp_path / "a.parquet", [1, 2, 3, None, 1] * 2, [0.7, 0.8, 0.7, 0.9, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1])
    manifest = coyo.bind(tmp_path, None)
    assert [(one.key, one.row.keys() == {BAD_LINE}) for one in manifest.samples(manifest.shards()[0])] == [
        ("2", False),
        ("row 3", True),
    ]


@pytest.mark.parametrize(
    ("text", "outcome", "is_kept"),
    [
        ("a cat", Encoded(b"jpeg", 1, 1, "PNG"), True),
        ("", Encoded(b"jpeg", 1, 1, "PNG"), True),
        (None, Encoded(b"jpeg", 1, 1, "PNG"), False),
        ("a cat", Failure(FailureKind.TIMEOUT), False),
        (None, Failure(FailureKind.TIMEOUT), False),
    ],
)
def test_a_row_has_the_form_that_the_loader_reads(text: str | None, outcome: Outcome, is_kept: bool) -> None:
    """A row has the pair's facts and the JPEG, as text or as bytes; a pair without image or text is dropped."""
    metadata = {"id": 17, "url": "http://example.org/", "text": text, "clip_sim": 0.7}
    record = Record(Sample(0, "17", ("http://example.org/",), metadata), (outcome,))
    as_text = {**metadata, "image": base64.b64encode(b"jpeg").decode()}
    assert COYO.to_row(record, Payload.BASE64) == (as_text if is_kept else None)
    assert COYO.to_row(record, Payload.BYTES) == ({**metadata, "rawbytes": b"jpeg"} if is_kept else None)


@given(st.binary(max_size=300))
def test_base64_is_the_standard_librarys(jpeg: bytes) -> None:
    """The fast encoder gives the very text, and so the very pickle, that the recipe's script gives."""
    text = pack(jpeg, Payload.BASE64)
    expected = base64.b64encode(jpeg).decode("ascii")
    assert text == expected
    assert pickle.dumps({"image": text}, 3) == pickle.dumps({"image": expected}, 3)


def test_the_registry() -> None:
    """Datasets are found by name and can be pickled. The error for an unknown one lists the names."""
    dataset = find_dataset("coyo")
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    with pytest.raises(ConfigurationError, match="coyo"):
        find_dataset("imagenet")
