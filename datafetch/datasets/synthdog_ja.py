"""synthdog-ja: rendered Japanese texts from parquet files, as images and a list that asks for their texts.

The published rows have an image and its text. Image ``r`` of file ``f`` becomes ``fff/rrrrr.jpg``, encoded as the
recipe does. The list is made here: each record asks for the text in one of six ways, taken in turn by row, with the
image before the first question, behind the second, and so on.

Source: huggingface.co/datasets/naver-clova-ix/synthdog-ja; llm-jp-VILA's ``data_prepare`` for the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.named_images import SAMPLES_PER_SHARD, image_file_row
from datafetch.datasets.readers import BadRow, ColumnType, ParquetFile, explain_digit_limit, list_files
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.options import DatasetOptions, Option, option
from datafetch.model.sample import Record, Row, Sample, Shard
from datafetch.model.untrusted import is_utf8

PUBLISHED_COUNT = 101_953
_FOLDER = "synthdog-ja/image"
_IMAGE, _TEXT = "image.bytes", "ground_truth"
_MAX_TEXT_BYTES = 64 * 1024  # a rendered page has some hundred characters; the list has the text of each row
_MIN_ROWS = 6000  # of a published file; they have some 6,024
_NUMBERED = re.compile(r"-(\d{5})-of-\d{5}\b")
_FENCE = "\n```\n"
_QUESTIONS = (
    ("写真に写っている文字をすべて書き出してください。", "この写真に写っている文字を以下に示します。"),
    ("画像の中の文字をすべて出力してください。", "入力された画像内の文字は以下の通りです。"),
    ("この画像には何と書かれていますか？", "この画像に書かれているテキストを以下に表示します。"),  # noqa: RUF001 - as published
    ("画像に書かれているテキストを全て出力しなさい。", "この画像に書かれているテキストを以下に示します。"),
    ("与えられた画像中のテキストを全て出力しなさい。", "画像中のテキストは以下の通りです。"),
    ("この写真内の全てのテキストを抜き出してください。", "この写真内のテキストを以下に表示します。"),
)
"""The ways to ask for the text, each with how the answer begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthdogJaOptions(DatasetOptions):
    """The options of ``synthdog-ja``.

    Attributes:
        count: The number of rows to take, from the first of the first file.
    """

    count: int = option(PUBLISHED_COUNT, Option(help="Take this many rows.", metavar="N", minimum=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthdogJa(DatasetDefaults):
    """The dataset ``synthdog-ja``."""

    name: str = "synthdog-ja"
    summary: str = "synthdog-ja: 102K rendered texts, step 2, as files."
    path: str = _FOLDER
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    list_name: str | None = "synthdog_ja_102k.json"
    list_root: str = "../.."
    lists_images: bool = True
    makes_list: bool = True
    options: SynthdogJaOptions = field(default_factory=SynthdogJaOptions)

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options, which decide the name of its list.

        Raises:
            ConfigurationError: The options belong to another dataset.
        """
        if not isinstance(options, SynthdogJaOptions):
            raise ConfigurationError(f"{self.name} takes SynthdogJaOptions, not {type(options).__name__}")
        return replace(self, options=options, list_name=f"synthdog_ja_{round(options.count / 1000)}k.json")

    def options_for_limit(self, limit: int) -> SynthdogJaOptions:
        """The options for the first rows alone, with which no more are required."""
        return replace(self.options, count=min(self.options.count, limit))

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """As many of the files as the rows need, each of which has at least ``_MIN_ROWS``."""
        files = [name for name in names if PurePosixPath(name).match("data/train-*.parquet")]
        return files[: -(-self.options.count // _MIN_ROWS)]

    def bind(self, source: Path, ids: Path | None) -> Manifest:  # noqa: ARG002 - it takes no id list
        """Open as many of the parquet files in a folder as the rows need.

        Raises:
            ManifestError: There are too few rows, or a file is not of the published form.
        """
        return SynthdogManifest(source, self.options.count)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one image; None if it does not decode."""
        return image_file_row(record)

    def list_images(self, record: object) -> list[str]:
        """The key of a record's image: its id."""
        assert isinstance(record, dict), "the list was made here"
        return [str(record["id"])]

    def refuse_retry(self) -> None:
        """Refuse every retry, because images that don't decode never will.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"the images of {self.name} are not fetched, so there is nothing to retry; to read them again, "
            "use prepare with --fresh"
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive rows of a file, which become a shard.

    Attributes:
        file: The file.
        number: The file's number, counted from 0.
        start: Its first row.
        stop: The row behind its last.
    """

    file: ParquetFile
    number: int
    start: int
    stop: int


class SynthdogManifest(Manifest):
    """The first rows of the files, in shards of ``SAMPLES_PER_SHARD``.

    Args:
        source: The folder of the files.
        count: The number of rows.

    Raises:
        ManifestError: There are too few rows, or a file is not of the published form.
    """

    def __init__(self, source: Path, count: int) -> None:
        self._count = count
        self._parts: list[_Part] = []
        left = count
        for number, path in enumerate(_published_files(source)):
            file = ParquetFile(path, {_IMAGE: ColumnType.BINARY, _TEXT: ColumnType.STRING})
            rows = min(left, file.rows)
            for start in range(0, rows, SAMPLES_PER_SHARD):
                self._parts.append(_Part(file, number, start, min(rows, start + SAMPLES_PER_SHARD)))
            left -= rows
            if not left:
                return
        raise ManifestError(
            f"the train-*.parquet in {source} have {count - left:,} rows, and {count:,} are needed; add the next "
            "files, or give a smaller --count (with several datasets, --limit)"
        )

    def shards(self) -> list[Shard]:
        """Slices of the files."""
        return [
            Shard(_part_name(part), part.file.path, part.stop - part.start, part.file.fingerprint)
            for part in self._parts
        ]

    def expected_samples(self) -> int | None:
        """The number of rows."""
        return self._count

    def samples(self, shard: Shard) -> Samples:
        """The samples of one slice."""
        return _Slice(next(part for part in self._parts if _part_name(part) == shard.name))

    def write_list(self, path: Path) -> None:
        """Write the list with a record for each row."""
        with path.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for number, record in enumerate(self._records()):
                text = json.dumps(record(number), ensure_ascii=False, indent=2)
                file.write(separator + "  " + text.replace("\n", "\n  "))
                separator = ",\n"
            file.write("\n]")

    def _records(self) -> Iterator[Callable[[int], dict[str, object]]]:
        """For each row what makes its record, given the number of the row in all files."""
        for part in self._parts:
            for position, values in _rows(part, [_TEXT]):
                yield partial(_make_record, id_=_id(part, position), text=_text(part, position, values[_TEXT]))


class _Slice(Samples):
    def __init__(self, part: _Part) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.stop - self._part.start

    def __iter__(self) -> Iterator[Sample]:
        part = self._part
        for number, (position, values) in enumerate(_rows(part, [_IMAGE])):
            name = f"{part.number:03d}/{position:05d}.jpg"
            content = (values["image"] or {}).get("bytes") or b""
            url = f"{part.file.path.name}#{position}"
            yield Sample(number, _id(part, position), (url,), {"image": name}, content)


def _published_files(source: Path) -> list[Path]:
    """The files with the rows, in order; those for validation are left out.

    Raises:
        ManifestError: One is missing between others, so that all that follow would get other names.
    """
    folder = source / "data" if (source / "data").is_dir() else source
    files = [path for path in list_files(folder, ".parquet") if not path.name.startswith("validation-")]
    for number, path in enumerate(files):
        numbered = _NUMBERED.search(path.name)
        if numbered and int(numbered[1]) != number:
            raise ManifestError(f"{folder} lacks file {number} of the published ones, and has {path.name}; add it")
    return files


def _rows(part: _Part, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a part, each with its number in the file.

    Raises:
        ManifestError: The file is damaged.
    """
    wanted = np.arange(part.start, part.stop, dtype=np.int64)
    for position, values in zip(wanted.tolist(), part.file.select(wanted, columns), strict=True):
        if isinstance(values, BadRow):
            raise ManifestError(f"{part.file.path} row {values.number}: {values.reason}; download the file again")
        yield position, values


def _text(part: _Part, position: int, ground_truth: object) -> str:
    """The text of a row.

    Raises:
        ManifestError: It has none.
    """
    try:
        text = json.loads(str(ground_truth))["gt_parse"]["text_sequence"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = isinstance(error, ValueError) and explain_digit_limit(error)
        reason = why or "its ground_truth has no gt_parse.text_sequence"
        raise ManifestError(f"{part.file.path} row {position}: {reason}; download the file again") from error
    if not isinstance(text, str) or not is_utf8(text):
        raise ManifestError(f"{part.file.path} row {position}: its text is not a text; download the file again")
    if len(text.encode()) > _MAX_TEXT_BYTES:
        raise ManifestError(
            f"{part.file.path} row {position}: its text is over {_MAX_TEXT_BYTES:,} bytes; download the file again"
        )
    return text.replace(" ", "\n")


def _make_record(row: int, *, id_: str, text: str) -> dict[str, object]:
    question, beginning = _QUESTIONS[row % len(_QUESTIONS)]
    asked = f"<image>\n{question}" if row % 2 == 0 else f"{question}\n<image>"
    answer = f"{beginning}{_FENCE}{text}{_FENCE}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": id_, "image": f"{id_}.jpg", "conversations": turns}


def _id(part: _Part, position: int) -> str:
    return f"{_FOLDER}/{part.number:03d}/{position:05d}"


def _part_name(part: _Part) -> str:
    return f"part-{part.number:05d}-{part.start:05d}"
