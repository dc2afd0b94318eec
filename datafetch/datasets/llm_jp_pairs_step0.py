"""llm-jp's Japanese pairs of step 0: a JSON list in LLaVA's form, whose images become files with the names it gives.

The trainer's loader crashes on the first image that is missing or does not decode. So the list that the trainer reads
has only the records whose image arrived (``output.training_list``). Of a record, the loader requires exactly two turns,
with ``<image>`` in the first.

Source: gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-image-text-pairs, ``llm-jp_mm_pair_step0_558k.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datafetch.datasets.conversations import why_no_pair
from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.filenames import DuplicateNames, why_refused
from datafetch.datasets.key_detection import URL_KEYS, choose_key, log_keys
from datafetch.datasets.named_images import SAMPLES_PER_SHARD, find_file, image_file_row, slice_name
from datafetch.datasets.readers import LineFile, RecordReader
from datafetch.datasets.shared_options import URL_KEY
from datafetch.datasets.url_length import bounded_url
from datafetch.errors import ManifestError, unreadable
from datafetch.model.kinds import Loader, Payload
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.options import DatasetOptions, option
from datafetch.model.sample import REFUSED, Record, Row, Sample, Shard
from datafetch.model.untrusted import is_utf8, to_printable

_LIST = "llm-jp_mm_pair_step0_558k.json"
_SNIFFED_RECORDS = 100
_MAX_KEY_CHARS = 200
_MAX_QUOTED_CHARS = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpPairsStep0Options(DatasetOptions):
    """The options of ``llm-jp-pairs-step0``.

    Attributes:
        url_key: The key under which a record has its URL; None detects it.
    """

    url_key: str | None = option(None, URL_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpPairsStep0(DatasetDefaults):
    """The dataset ``llm-jp-pairs-step0``."""

    name: str = "llm-jp-pairs-step0"
    summary: str = "llm-jp's Japanese pairs: 558K, step 0, as files."
    path: str = "alt_pair_ja/image_step0"
    loader: Loader = Loader.TORCH
    output_format: str = "image_files"
    list_name: str | None = _LIST
    keeps_bodies: bool = True
    options: LlmJpPairsStep0Options = field(default_factory=LlmJpPairsStep0Options)

    def bind(self, source: Path, ids: Path | None) -> Step0Manifest:  # noqa: ARG002 - it takes no id list
        """Open the published list, given as a file or as the folder that holds it, and read all of it once.

        Raises:
            ManifestError: There is no such file, it is not a JSON list, or its records have no URLs.
        """
        path = find_file(source, _LIST)
        records = [record for record in islice(_read(path), _SNIFFED_RECORDS) if isinstance(record, dict)]
        url_key = choose_key("url", self.options.url_key, URL_KEYS, records)
        log_keys({"url": url_key})
        return Step0Manifest(path, url_key)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - files hold bytes
        """The file of one record; None if its image did not arrive, or the record was refused."""
        return image_file_row(record)


class Step0Manifest(Manifest):
    """The published list, in shards of ``SAMPLES_PER_SHARD`` records.

    The list is read once when it is opened, to find names that collide and where each shard begins in the file. Memory
    holds 8 bytes for each record.

    Args:
        path: The published list.
        url_key: The key under which a record has its URL.

    Raises:
        ManifestError: The file is not a JSON list, or is empty.
    """

    def __init__(self, path: Path, url_key: str) -> None:
        self._path = path
        self._url_key = url_key
        self._fingerprint = LineFile(path).fingerprint
        self._offsets: list[int] = []
        self._records = 0
        self._duplicates = DuplicateNames(self._names())
        if not self._records:
            raise ManifestError(f"{path} has no records; --source takes the published list")

    def shards(self) -> list[Shard]:
        """Slices of the list."""
        return [
            Shard(slice_name(number), self._path, self._size(number), self._fingerprint)
            for number in range(len(self._offsets))
        ]

    def expected_samples(self) -> int | None:
        """The number of records."""
        return self._records

    def identity_fields(self) -> Mapping[str, object]:
        """The key under which a record has its URL."""
        return {"keys": {"url": self._url_key}}

    def samples(self, shard: Shard) -> _Slice:
        """The samples of one slice."""
        number = int(shard.name.rpartition("-")[2])
        return _Slice(self, number * SAMPLES_PER_SHARD, self._offsets[number], shard.size)

    def read(self, first: int, start_bytes: int, count: int) -> Iterator[Sample]:
        """Read consecutive records as samples.

        A record that the trainer can't use becomes a sample without URLs, with the reason in its metadata.

        Args:
            first: The number of the first record in the list.
            start_bytes: The offset in the file at which it begins.
            count: The number of records.
        """
        for position, record in enumerate(islice(_read(self._path, start_bytes), count)):
            fields: Mapping[str, Any] = record if isinstance(record, dict) else {}
            reason = _why_unusable(record)
            if not reason and (clash := self._duplicates.why_refused(first + position, fields["image"])):
                reason = _quote(clash, fields["image"])
            key = _key(fields.get("id"), first + position)
            if reason:
                yield Sample(position, key, (), {REFUSED: reason})
            else:
                url = bounded_url(fields.get(self._url_key))
                urls = (url if is_utf8(url) else "",)
                yield Sample(position, key, urls, {"image": fields["image"]})

    def _size(self, number: int) -> int:
        return min(SAMPLES_PER_SHARD, self._records - number * SAMPLES_PER_SHARD)

    def _names(self) -> Iterator[str | None]:
        """Read the file names of all records, None for unusable ones, and store the offsets at which shards begin."""
        reader = RecordReader(self._path)
        records = _records(self._path, reader)
        while True:
            offset = reader.offset_bytes() if self._records else 0
            chunk = list(islice(records, SAMPLES_PER_SHARD))
            if not chunk:
                return
            self._offsets.append(offset)
            self._records += len(chunk)
            for record in chunk:
                yield None if _why_unusable(record) else record["image"]  # type: ignore[index]  # it was just checked


@dataclass(frozen=True, slots=True)
class _Slice(Samples):
    manifest: Step0Manifest
    first: int
    start_bytes: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return self.manifest.read(self.first, self.start_bytes, self.count)


def _read(path: Path, start_bytes: int = 0) -> Iterator[object]:
    return _records(path, RecordReader(path, start_bytes=start_bytes))


def _records(path: Path, reader: RecordReader) -> Iterator[object]:
    """The records of a reader; errors name the file.

    Raises:
        ManifestError: The file can't be read, or is not a JSON list.
    """
    try:
        yield from reader
    except ManifestError as error:
        raise ManifestError(f"{path} {error}; --source takes the published list") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _why_unusable(record: object) -> str:
    """Return why the trainer can't use a record, or no file may have its name; an empty string if it is usable."""
    if reason := why_no_pair(record):
        return reason
    name = record.get("image") if isinstance(record, dict) else None
    reason = why_refused(name)
    return _quote(reason, name) if reason and name and isinstance(name, str) else reason


def _quote(reason: str, name: str) -> str:
    """A reason with the name of the file that it is about."""
    return f"{reason}: {to_printable(name[:_MAX_QUOTED_CHARS])}{'…' if len(name) > _MAX_QUOTED_CHARS else ''}"


def _key(value: object, number: int) -> str:
    """The record's own id if it can be printed, and otherwise its number in the list."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        text = str(value) if isinstance(value, str) or abs(value) < 2**63 else ""
        if text and text.isprintable():
            return text[:_MAX_KEY_CHARS]
    return str(number)
