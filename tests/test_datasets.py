"""What holds for every dataset of the registry, shown by its tiny source and the rows that must result from it.

``data/<dataset>/expected.json`` has every sample in order: its shard, its key, and its row when all images arrive (null
if there is none), in which each image is the URL that it came from.
"""

from __future__ import annotations

import base64
import itertools
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from sources import DATA, TinySource, place_source, tiny_options
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from datafetch.datasets import DATASETS, find_dataset
from datafetch.datasets.documents import DocumentOptions
from datafetch.datasets.llm_jp_interleaved import LlmJpInterleavedOptions
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.engine.job import Job, dataset_of, identify, own_spec
from datafetch.errors import ConfigurationError
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest
from datafetch.model.options import DatasetOptions, Effect, OptionField, options_of
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome
from datafetch.model.sample import Record, Sample
from datafetch.verify.rows import EXAMINERS

_GONE = Failure(FailureKind.HTTP_STATUS, "404", 404, 1)
_MAX_MIXED = 6

FIRST_IMAGES = {
    "coco-train2017": "000000000009.jpg",
    "gqa": "2327515.jpg",
    "textvqa": "0054c91397f2fe05.jpg",
    "visual-genome": "VG_100K/2.jpg",
}
IMAGE_SETS = [(name, DATASETS[name]) for name in FIRST_IMAGES]

every_dataset = pytest.mark.parametrize("name", sorted(DATASETS))


def bind(name: str, folder: Path) -> tuple[Dataset, Manifest]:
    """Return a dataset, and its tiny source as a manifest."""
    dataset = find_dataset(name, tiny_options(name))
    source = place_source(name, folder)
    return dataset, dataset.bind(source.folder, source.ids)


def samples(manifest: Manifest) -> Iterator[tuple[str, Sample]]:
    """Yield all samples, each with its shard's name."""
    for shard in manifest.shards():
        for sample in manifest.samples(shard):
            yield shard.name, sample


def arrived(url: str) -> Encoded:
    """Return an image whose bytes are the URL that it came from."""
    return Encoded(url.encode(), 2, 2, "PNG")


def outcomes(url: str) -> tuple[Outcome, Outcome]:
    """Return an image that arrived, and one that did not."""
    return arrived(url), _GONE


def shown(row: object) -> Any:
    """Return a row in which each image is decoded to its URL."""
    if isinstance(row, bytes):
        return row.decode()
    if isinstance(row, dict):
        return {
            key: base64.b64decode(value).decode() if key == "image_base64" else shown(value)
            for key, value in row.items()
        }
    return [shown(value) for value in row] if isinstance(row, list) else row


def test_each_has_a_tiny_source() -> None:
    """Every registered dataset has a source, and every source a dataset."""
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
    expected = DATA / name / "expected.json"
    assert expected.exists(), f"if these rows are right, write them to {expected}:\n{json.dumps(found, indent=1)}"
    assert found == json.loads(expected.read_text())


@every_dataset
def test_its_samples_are_the_same_each_time(name: str, tmp_path: Path) -> None:
    """Keys are unique, positions count up, and reading again gives the same, even in another process."""
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
def test_its_rows_can_be_read_by_the_loader(name: str, tmp_path: Path) -> None:
    """Whichever images arrive, in whichever form, there is either no row or one that the loader can read."""
    dataset, manifest = bind(name, tmp_path)
    usual = dataset.options
    partly = [replace(usual, keep_at_least=1)] if isinstance(usual, DocumentOptions) else []
    for options in (usual, *partly):
        chosen = find_dataset(name, options)
        for (_, sample), payload in itertools.product(samples(manifest), sorted(dataset.payloads)):
            assert len(sample.urls) <= _MAX_MIXED
            mixes = itertools.product(*(outcomes(url) for url in sample.urls))
            rows = [chosen.to_row(Record(sample, mix), payload) for mix in mixes]
            check(chosen, rows, sample)


@every_dataset
def test_a_sample_is_lost_exactly_where_it_gives_no_row(name: str, tmp_path: Path) -> None:
    """This is tested for each set of failed images, when all others arrived."""
    dataset, manifest = bind(name, tmp_path)
    usual = dataset.options
    partly = [replace(usual, keep_at_least=1)] if isinstance(usual, DocumentOptions) else []
    for options in (usual, *partly):
        chosen = find_dataset(name, options)
        for _, sample in samples(manifest):
            for mix in itertools.product(*(outcomes(url) for url in sample.urls)):
                failed = [number for number, outcome in enumerate(mix) if isinstance(outcome, Failure)]
                row = chosen.to_row(Record(sample, mix), min(dataset.payloads))
                assert chosen.is_lost(sample, failed) == (row is None)


def check(dataset: Dataset, rows: list[Any], sample: Sample) -> None:
    """The first has all images, the last none."""
    if sample.urls:
        assert rows[0] is not None or sample.row.get("text", "") is None
    assert rows[-1] is None
    for row in filter(None, rows):
        assert pickle.loads(pickle.dumps(row)) == row
        if dataset.output_format == "pickle" and dataset.loader is not None:
            assert not [part.problem for part in EXAMINERS[dataset.loader](row) if part.problem]
        elif dataset.image_root is None:
            assert set(row) == {"name", "content", "sample"}
        else:
            assert set(row) == {"name", "sample"}


@every_dataset
def test_it_can_be_pickled_and_its_identity_is_json(name: str, tmp_path: Path) -> None:
    """It is sent to the commit process, and how its manifest is read is part of the job's identity."""
    dataset, manifest = bind(name, tmp_path)
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert orjson.loads(orjson.dumps(manifest.identity_fields())) == manifest.identity_fields()
    assert dataset.output_format == "pickle" or dataset.loader is Loader.TORCH


def test_unsupported_options_are_refused() -> None:
    """An option that would have no effect is not ignored silently."""
    with pytest.raises(ConfigurationError, match="coyo takes CoyoOptions, not Mmc4CoreOptions"):
        find_dataset("coyo", Mmc4CoreOptions())
    with pytest.raises(ConfigurationError, match="ocr-vqa does not take ids"):
        dataset_of(Job("ocr-vqa", "", "", ids="list"))
    with pytest.raises(ConfigurationError, match="there is no dataset 'mmc4'; did you mean 'mmc4-core'"):
        find_dataset("mmc4")


def set_option(one: OptionField, folder: Path) -> dict[str, Any]:
    """Return options in which one field has another value than in ``usual_options``."""
    if one.field == "count":
        return {one.field: 1}  # the tiny source has no more rows than usual
    if isinstance(one.default, bool):
        return {one.field: not one.default}
    if isinstance(one.default, int | float):
        return {one.field: one.default + 1}
    tokenizer, training = folder / "other-tokenizer.json", folder / "training.json"
    write_tokenizer(tokenizer, "other")
    names = ("ocr_vqa/images/140031996X.jpg", *(f"{dataset.path}/{FIRST_IMAGES[name]}" for name, dataset in IMAGE_SETS))
    training.write_text(json.dumps([{"image": name} for name in names]))
    values: dict[str, Any] = {
        "keep_at_least": 2,
        "max_images": 2,
        "min_similarity": 0.1,
        "max_tokens": 8000,
        "tokenizer": str(tokenizer),
        "ids_index": "kept",
        "url_key": "other",
        "text_key": "other",
        "only_referenced": str(training),
        "archive": str(folder),
    }
    assert one.field in values, f"set_option does not know another value of {one.flag}"
    value = values[one.field]
    return {one.field: (value,) if isinstance(one.default, tuple) else value}


def usual_options(options: DatasetOptions, folder: Path) -> DatasetOptions:
    """Return the default options, with a tokenizer if the dataset can have one, since its limit requires one."""
    if not isinstance(options, DocumentOptions):
        return options
    write_tokenizer(folder / "tokenizer.json", "text")
    return replace(options, max_tokens=9000, tokenizer=str(folder / "tokenizer.json"))


def write_tokenizer(path: Path, word: str) -> None:
    """Write a tokenizer that knows one word."""
    Tokenizer(WordLevel({"[UNK]": 0, word: 1}, unk_token="[UNK]")).save(str(path))  # noqa: S106 - no password


def rename_keys(folder: Path, before: str) -> None:
    """Rename a key of all records in a source."""
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(f'"{before}":'.encode(), b'"other":'))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        pytest.param(name, one, id=f"{name}-{one.name}")
        for name, dataset in sorted(DATASETS.items())
        for one in options_of(type(dataset.options))
    ],
)
def test_an_option_that_decides_rows_is_part_of_the_identity(name: str, option: OptionField, tmp_path: Path) -> None:
    """An option that only permits something is not, so that a run can be resumed with it. Every option is checked."""
    usual = find_dataset(name, usual_options(find_dataset(name, tiny_options(name)).options, tmp_path))
    other = usual.with_options(replace(usual.options, **set_option(option, tmp_path)))
    source = place_source(name, tmp_path / "usual")
    identities = [identity_of(usual, source)]
    if option.name.endswith("_key"):
        rename_keys(source.folder, identities[0]["keys"][option.name.removesuffix("_key")])
    identities.append(identity_of(other, source))
    assert (identities[0] == identities[1]) == (option.option.effect in (Effect.PERMITS, Effect.NONE))


def identity_of(dataset: Dataset, source: TinySource) -> dict[str, Any]:
    """Return the part of the identity that does not depend on the content of files."""
    job = Job(
        dataset.name, str(source.folder), "out", ids=str(source.ids) if source.ids else None, options=dataset.options
    )
    manifest = dataset.bind(source.folder, source.ids)
    return {**identify(job, manifest, own_spec(dataset)), "shards": None}


def test_numbers_out_of_bounds_are_refused() -> None:
    """The error names the option, whichever dataset has it."""
    with pytest.raises(ConfigurationError, match=r"keep_at_least must be from 1 to 2,147,483,647, not 0"):
        Mmc4CoreOptions(keep_at_least=0)
    with pytest.raises(ConfigurationError, match=r"min_similarity must be a number, not inf"):
        LlmJpInterleavedOptions(min_similarity=float("inf"))
    with pytest.raises(ConfigurationError, match=r"ids_index must be document or kept or None, not 'rows'"):
        Mmc4CoreOptions(ids_index="rows")  # type: ignore[arg-type]  # as a caller without a type checker may do


def test_an_empty_value_of_an_option_is_refused() -> None:
    """An empty path to a tokenizer must not mean that documents are not counted."""
    with pytest.raises(ConfigurationError, match="tokenizer is empty; give a value, or leave it out"):
        LlmJpInterleavedOptions(max_tokens=10, tokenizer="")
