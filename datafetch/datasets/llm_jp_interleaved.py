"""llm-jp's Japanese interleaved documents: files of JSON lines in the form of MMC4, each of which becomes a shard.

The key under which an image has its URL is not documented, so it is detected from the first records.

Source: gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-interleaved-data.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.documents import DocumentFormat, DocumentOptions, document_row, is_document_lost
from datafetch.datasets.jsonl_manifest import SUFFIXES, JsonObject, LinesManifest, first_records, open_folder
from datafetch.datasets.key_detection import URL_KEYS, choose_key, log_keys
from datafetch.datasets.shared_options import URL_KEY
from datafetch.model.kinds import Loader, Payload
from datafetch.model.options import option
from datafetch.model.sample import Record, Row, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpInterleavedOptions(DocumentOptions):
    """The options of ``llm-jp-interleaved``.

    Attributes:
        url_key: The key under which an image has its URL; None detects it.
    """

    url_key: str | None = option(None, URL_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpInterleaved(DatasetDefaults):
    """The dataset ``llm-jp-interleaved``."""

    name: str = "llm-jp-interleaved"
    summary: str = "llm-jp's Japanese interleaved documents: 6M, step 1."
    path: str = "interleaved_ja/pkl-limit-tokens"
    loader: Loader = Loader.MMC4
    manifest_suffixes: tuple[str, ...] = SUFFIXES
    options: LlmJpInterleavedOptions = field(default_factory=LlmJpInterleavedOptions)

    def bind(self, source: Path, ids: Path | None) -> LinesManifest:  # noqa: ARG002 - it takes no id list
        """Open the files of a folder.

        Raises:
            ManifestError: There is no file of JSON lines, one can't be read, or images have no URLs.
        """
        files = open_folder(source)
        first = first_records(files.values())
        records = first.must_be_some()
        url_key = choose_key("url", self.options.url_key, URL_KEYS, _images(records) or records)
        log_keys({"url": url_key})
        document_format = DocumentFormat.load(url_key, self.options)
        identity = {"keys": {"url": url_key}, **document_format.identity_fields()}
        return LinesManifest(files, document_format, identity, self.options.skip_bad_lines, first.line_bytes)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - the loader accepts only one
        """The document as published, with its images; None if too few of them arrived."""
        return document_row(record, self.options.keep_at_least)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether too many of a document's images failed."""
        return is_document_lost(sample, failed, self.options.keep_at_least)


def _images(records: list[JsonObject]) -> list[JsonObject]:
    lists = [record.get("image_info") for record in records]
    return [image for images in lists if isinstance(images, list) for image in images if isinstance(image, dict)]
