"""What the libraries that formats for lists are meant for make of them: the samples, their captions and columns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from list_samples import GONE, SHARD, ListOutput, ListSample, mixed_samples, picture

from datafetch.model.outcome import Outcome

READER = Path(__file__).with_name("read_by_ecosystem.py")
KEYS = [f"{SHARD}{number:04d}" for number in range(4)]
CAPTIONS = ["a 猫", "", "", "the last"]


def read(reader: str, output: ListOutput) -> list[dict[str, Any]]:
    """Read a shard in a process of its own; returns its samples."""
    library = reader.partition(".")[0].split()[0]
    if (library := "datasets" if library == "image" else library) != "pyarrow" and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, str(READER), reader, str(output.layout.out), SHARD]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=200).stdout
    samples: list[dict[str, Any]] = json.loads(printed)
    return samples


def pairs(folder: Path, output_format: str, suffixes: Sequence[str] = ("JPEG", "JPEG")) -> ListOutput:
    """Return an output of pairs, of which the second has failed, and the third has no caption."""
    output = ListOutput(folder, output_format)
    outcomes: list[Outcome] = [picture(0, suffixes[0]), GONE, picture(2, suffixes[1]), picture(3, is_original=False)]
    captions = [CAPTIONS[0], "of a failure", None, CAPTIONS[3]]
    columns = {"similarity": 0.25, "tags": ["a", "b"]}
    types = {"similarity": "double", "tags": "list<string>"}
    output.commit(
        [
            ListSample([outcome], values={"caption": caption, "columns": columns, "types": types})
            for outcome, caption in zip(outcomes, captions, strict=True)
        ]
    )
    return output


def several(folder: Path, output_format: str) -> ListOutput:
    """Return an output with a sample of several images, of which one has failed."""
    output = ListOutput(folder, output_format)
    output.commit([ListSample([picture(0), GONE, picture(2)], are_several=True, values={"caption": "x"})])
    return output


@pytest.mark.parametrize(("reader", "dot"), [("webdataset", ""), ("wids", "."), ("datasets of tars", "")])
def test_readers_of_tars_see_samples(tmp_path: Path, reader: str, dot: str) -> None:
    """They group members by key, in the order of the list, and decode images and metadata."""
    output = pairs(tmp_path, "webdataset")
    samples = read(reader, output)
    assert [sample["__key__"] for sample in samples] == [KEYS[0], *KEYS[2:]]
    assert [sample[f"{dot}jpg"][1:] for sample in samples] == [[8, 6]] * 3
    assert [sample[f"{dot}txt"] for sample in samples] == [CAPTIONS[0], *CAPTIONS[2:]]
    rows = [row for row in output.rows() if row["status"] == "success"]
    assert [sample[f"{dot}json"] for sample in samples] == rows


@pytest.mark.parametrize(("reader", "dot"), [("webdataset", ""), ("wids", ".")])
def test_readers_of_tars_see_other_formats(tmp_path: Path, reader: str, dot: str) -> None:
    """The suffix is that of the content, by which they decode it."""
    first, second, third = read(reader, pairs(tmp_path, "webdataset", ["PNG", "JPEG"]))
    assert first[f"{dot}png"][1:] == second[f"{dot}jpg"][1:] == third[f"{dot}jpg"][1:] == [8, 6]


@pytest.mark.parametrize(("reader", "dot"), [("webdataset", ""), ("wids", "."), ("datasets of tars", "")])
def test_readers_of_tars_see_several_images(tmp_path: Path, reader: str, dot: str) -> None:
    """They are fields of one sample, with the numbers of their URLs."""
    (sample,) = read(reader, several(tmp_path, "webdataset"))
    images = {name: value for name, value in sample.items() if name.endswith("jpg")}
    assert images.keys() == {f"{dot}0.jpg", f"{dot}2.jpg"}
    assert {tuple(image[1:]) for image in images.values()} == {(8, 6)}
    assert sample[f"{dot}json"]["status"] == ["success", "failed_to_download", "success"]


def test_webdataset_reads_a_shard_without_images(tmp_path: Path) -> None:
    """It has no samples; alone, unlike with others, ``webdataset`` takes it for a mistake unless told otherwise."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit([ListSample([GONE])])
    assert read("webdataset", output) == []


def test_webdataset_reads_long_and_unicode_keys(tmp_path: Path) -> None:
    """Their headers have extensions."""
    output = ListOutput(tmp_path, "webdataset")
    keys = ["猫" * 50, "k" * 150]
    output.commit([ListSample([picture(n)], key) for n, key in enumerate(keys)])
    assert [sample["__key__"] for sample in read("webdataset", output)] == keys


def test_datasets_reads_images_of_parquet(tmp_path: Path) -> None:
    """The schema says which column they are in, and a failed sample has none."""
    output = pairs(tmp_path, "parquet", ["JPEG", "PNG"])
    samples = read("datasets", output)
    images = [sample.pop("image") for sample in samples]
    assert images == [["JPEG", 8, 6], None, ["PNG", 8, 6], ["JPEG", 8, 6]]
    assert samples == output.rows()


def test_datasets_reads_several_images_of_parquet(tmp_path: Path) -> None:
    """The column is a list of images, with nulls for those that failed."""
    (sample,) = read("datasets", several(tmp_path, "parquet"))
    assert sample["image"] == [["JPEG", 8, 6], None, ["JPEG", 8, 6]]


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")
def test_the_features_are_those_that_datasets_makes_of_the_types(tmp_path: Path) -> None:
    """So it casts nothing."""
    output = ListOutput(tmp_path, "parquet")
    output.commit(mixed_samples(3))
    path = output.layout.out / f"{SHARD}.parquet"
    code = (
        "import sys, datasets, pyarrow.parquet as pq; schema = pq.read_schema(sys.argv[1]); "
        "features = datasets.Features.from_arrow_schema(schema); "
        "plain = datasets.Features.from_arrow_schema(schema.remove_metadata()); "
        "assert features.arrow_schema.remove_metadata().equals(schema.remove_metadata()), features.arrow_schema; "
        "assert {**plain, 'image': datasets.Image()} == features, (plain, features)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=100)


@pytest.mark.parametrize("output_format", ["webdataset", "parquet", "files"])
def test_arrow_reads_all_shards_as_one_dataset(tmp_path: Path, output_format: str) -> None:
    """It filters by the status, as users of img2dataset do."""
    output = pairs(tmp_path, output_format)
    samples = read("pyarrow.dataset", output)
    assert [sample["key"] for sample in samples] == [KEYS[0], *KEYS[2:]]
    if output_format == "parquet":
        assert [sample.pop("image") for sample in samples] == [f"{key}.jpg" for key in (KEYS[0], *KEYS[2:])]
    assert samples == [row for row in output.rows() if row["status"] == "success"]
    schema = pq.read_schema(output.layout.out / f"{SHARD}.parquet")
    assert (b"huggingface" in (schema.metadata or {})) == (output_format == "parquet")


def test_datasets_reads_a_folder_of_files(tmp_path: Path) -> None:
    """As a folder of images."""
    samples = read("image folder", pairs(tmp_path, "files"))
    assert [sample["image"] for sample in samples] == [["JPEG", 8, 6]] * 3
