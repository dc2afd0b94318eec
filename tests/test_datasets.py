"""What holds for every dataset of the registry, shown by its tiny source and the rows that must come of it.

``data/<dataset>/expected.json`` has every sample in order: its shard, its key, and its row when all images arrive (null
where it can't become one), each image standing as the URL it came from.
"""

from __future__ import annotations

import base64
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sources import DATA, place_source

from datafetch.datasets import DATASETS, find_dataset
from datafetch.datasets.choices import Choices
from datafetch.errors import ConfigurationError
from datafetch.model.interfaces import Dataset, Manifest
from datafetch.model.kinds import Loader, Payload
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import Record, Sample
from datafetch.verify.rows import EXAMINERS

_GONE = Failure(FailureKind.HTTP_STATUS, "404", 404, 1)
_MOST_MIXED = 6

every_dataset = pytest.mark.parametrize("name", sorted(DATASETS))


def bind(name: str, folder: Path) -> tuple[Dataset, Manifest]:
    """A dataset, and its tiny source as a manifest."""
    dataset = find_dataset(name)
    source = place_source(name, folder)
    return dataset, dataset.bind(source.folder, source.ids)


def samples(manifest: Manifest) -> Iterator[tuple[str, Sample]]:
    """All samples, each with its shard's name."""
    for shard in manifest.shards():
        for sample in manifest.samples(shard):
            yield shard.name, sample


def arrived(url: str) -> Encoded:
    """An image that tells where it came from."""
    return Encoded(url.encode(), 2, 2, "PNG")


def outcomes(url: str) -> tuple[Outcome, Outcome]:
    """An image that arrived, and one that did not."""
    return arrived(url), _GONE


def shown(row: object) -> Any:
    """A row whose images stand as what they hold."""
    if isinstance(row, bytes):
        return row.decode()
    if isinstance(row, dict):
        return {
            key: base64.b64decode(value).decode() if key == "image_base64" else shown(value)
            for key, value in row.items()
        }
    return [shown(value) for value in row] if isinstance(row, list) else row


def test_each_has_a_tiny_source() -> None:
    """No dataset is registered without one, and none is left over."""
    assert {path.name for path in DATA.iterdir()} == set(DATASETS)


@every_dataset
def test_its_tiny_source_gives_the_expected_rows(name: str, tmp_path: Path) -> None:
    """Every sample, in order, with its key and its row."""
    dataset, manifest = bind(name, tmp_path)
    payload = Payload.BYTES if Payload.BYTES in dataset.payloads else Payload.BASE64
    found = [
        {
            "shard": shard,
            "key": sample.key,
            "row": shown(dataset.to_row(Record(sample, tuple(map(arrived, sample.urls))), payload)),
        }
        for shard, sample in samples(manifest)
    ]
    assert found == json.loads((DATA / name / "expected.json").read_text())


@every_dataset
def test_its_samples_are_the_same_each_time(name: str, tmp_path: Path) -> None:
    """Keys are unique, positions count up, and a second reading, by another process perhaps, gives the same."""
    _, manifest = bind(name, tmp_path / "once")
    _, again = bind(name, tmp_path / "again")
    first = list(samples(manifest))
    assert first == list(samples(manifest)) == list(samples(again))
    keys = [sample.key for _, sample in first]
    assert len(keys) == len(set(keys))
    shards = manifest.shards()
    assert [shard.name for shard in shards] == sorted({shard for shard, _ in first})
    assert [shard.fingerprint for shard in shards] == [shard.fingerprint for shard in again.shards()]
    for shard in shards:
        mine = manifest.samples(shard)
        assert [sample.position for sample in mine] == list(range(len(mine)))
    assert manifest.max_samples() > 0
    assert all(isinstance(sample.row, dict) and orjson.dumps(sample.row) for _, sample in first)


@every_dataset
def test_its_rows_are_total_and_what_the_loader_reads(name: str, tmp_path: Path) -> None:
    """Whatever arrives and in whichever form, there is a row without a fault for the loader, or none."""
    dataset, manifest = bind(name, tmp_path)
    for choices in (Choices(), *([Choices(keep_at_least=1)] if "keep_at_least" in dataset.supported_options else [])):
        chosen = find_dataset(name, choices)
        for (_, sample), payload in itertools.product(samples(manifest), sorted(dataset.payloads)):
            assert len(sample.urls) <= _MOST_MIXED
            mixes = itertools.product(*(outcomes(url) for url in sample.urls))
            rows = [chosen.to_row(Record(sample, mix), payload) for mix in mixes]
            check(chosen, rows, sample)


@every_dataset
def test_a_sample_is_lost_exactly_where_it_gives_no_row(name: str, tmp_path: Path) -> None:
    """For each set of images that failed, the others having arrived."""
    dataset, manifest = bind(name, tmp_path)
    for choices in (Choices(), *([Choices(keep_at_least=1)] if "keep_at_least" in dataset.supported_options else [])):
        chosen = find_dataset(name, choices)
        for _, sample in samples(manifest):
            for failed in itertools.product((False, True), repeat=len(sample.urls)):
                mix = tuple(
                    Failure(FailureKind.TIMEOUT) if is_failed else arrived(url)
                    for is_failed, url in zip(failed, sample.urls, strict=True)
                )
                row = chosen.to_row(Record(sample, mix), min(dataset.payloads))
                numbers = [number for number, is_failed in enumerate(failed) if is_failed]
                assert chosen.is_lost(sample, numbers) == (row is None)


def check(dataset: Dataset, rows: list[Any], sample: Sample) -> None:
    """The first has all images, the last none."""
    if sample.urls:
        assert rows[0] is not None or sample.row.get("text", "") is None
    assert rows[-1] is None
    for row in filter(None, rows):
        assert pickle.loads(pickle.dumps(row)) == row
        if dataset.output_format == "pickle":
            assert not [part.fault for part in EXAMINERS[dataset.loader](row) if part.fault]
        else:
            assert set(row) == {"name", "content", "sample"}


@every_dataset
def test_it_pickles_and_says_what_decides_its_rows(name: str, tmp_path: Path) -> None:
    """It travels to the process that commits; how its manifest is read is JSON, for the job's identity."""
    dataset, manifest = bind(name, tmp_path)
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert orjson.loads(orjson.dumps(manifest.identity_fields())) == manifest.identity_fields()
    assert dataset.output_format == "pickle" or dataset.loader is Loader.TORCH


def test_what_a_dataset_does_not_take_is_refused_by_name() -> None:
    """An option that would do nothing is not passed over in silence."""
    with pytest.raises(ConfigurationError, match="coyo does not take --max-images, --url-key; it takes --ids"):
        find_dataset("coyo", Choices(max_images=3, url_key="u"))
    with pytest.raises(ConfigurationError, match="ocr-vqa does not take --ids"):
        find_dataset("ocr-vqa", Choices(), has_ids=True)
    with pytest.raises(ConfigurationError, match="there is no dataset 'imagenet'"):
        find_dataset("imagenet")
