"""llm-jp's Japanese pairs of step 1: files of JSON lines with a URL and a text each, each of which becomes a shard.

The keys of URL and text are not documented, so they are detected from the first records. A row is the record as
published, with the image under ``image``, which replaces a field of that name.

Source: gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-image-text-pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.jsonl_manifest import (
    SUFFIXES,
    BadRecordError,
    JsonObject,
    LinesManifest,
    ParsedRecord,
    RecordFormat,
    first_records,
    open_folder,
)
from datafetch.datasets.key_detection import TEXT_KEYS, URL_KEYS, choose_key, log_keys
from datafetch.datasets.payload import pair_row
from datafetch.datasets.shared_options import SKIP_BAD_LINES, URL_KEY
from datafetch.datasets.url_length import bounded_url
from datafetch.model.kinds import Loader, Payload
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.sample import Record, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpPairsStep1Options(DatasetOptions):
    """The options of ``llm-jp-pairs-step1``.

    Attributes:
        url_key: The key under which a record has its URL; None detects it.
        text_key: The key under which a record has its text; None detects it.
        skip_bad_lines: Whether lines that are not valid records are skipped and counted.
    """

    url_key: str | None = option(None, URL_KEY)
    text_key: str | None = option(
        None,
        Option(help="Key of the text in a record.", metavar="KEY", unset="detected", effect=Effect.MANIFEST),
    )
    skip_bad_lines: bool = option(False, SKIP_BAD_LINES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpPairsStep1(DatasetDefaults):
    """The dataset ``llm-jp-pairs-step1``."""

    name: str = "llm-jp-pairs-step1"
    summary: str = "llm-jp's Japanese pairs: 6M, step 1."
    path: str = "alt_pair_ja/pkl02"
    loader: Loader = Loader.COYO
    payloads: frozenset[Payload] = frozenset(Payload)
    manifest_suffixes: tuple[str, ...] = SUFFIXES
    options: LlmJpPairsStep1Options = field(default_factory=LlmJpPairsStep1Options)

    def bind(self, source: Path, ids: Path | None) -> LinesManifest:  # noqa: ARG002 - it takes no id list
        """Open the files of a folder.

        Raises:
            ManifestError: There is no file of JSON lines, one can't be read, or records have no URLs or no texts.
        """
        files = open_folder(source)
        first = first_records(files.values())
        records = first.must_be_some()
        url_key = choose_key("url", self.options.url_key, URL_KEYS, records)
        text_key = choose_key("text", self.options.text_key, TEXT_KEYS, records)
        keys = {"url": url_key, "text": text_key}
        log_keys(keys)
        return LinesManifest(
            files,
            _PairFormat(url_key, text_key),
            {"keys": keys},
            self.options.skip_bad_lines,
            first.line_bytes,
        )

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row of one pair; None if its image did not arrive, or was not requested for want of a text."""
        return pair_row(record, payload)


@dataclass(frozen=True, slots=True)
class _PairFormat(RecordFormat):
    url_key: str
    text_key: str

    def parse_record(self, record: JsonObject) -> ParsedRecord:
        """Turn a record into a pair; one without a text can't become a row, so its image is not requested."""
        url, text = record.get(self.url_key), record.get(self.text_key)
        if url is not None and not isinstance(url, str):
            raise BadRecordError(f"{self.url_key} is {type(url).__name__}, not text")
        if text is None:
            return ParsedRecord((), record)
        if not isinstance(text, str):
            raise BadRecordError(f"{self.text_key} is {type(text).__name__}, not text")
        # The trainer's loader takes ``text`` if the row has it, and otherwise ``caption``.
        key_of_loader = "text" if "text" in record else "caption"
        row = record if key_of_loader == self.text_key else {**record, "text": text}
        return ParsedRecord((bounded_url(url),), row)
