"""llm-jp's Japanese interleaved documents: JSON lines in MMC4's form, each file of them a pickle.

Source: gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-interleaved-data. Under which key an image has its URL is not
published, so they are detected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from datafetch.datasets.dataset_defaults import DatasetDefaults
from datafetch.datasets.documents import DocumentFormat, DocumentOptions, document_row, is_document_lost
from datafetch.datasets.jsonl_manifest import JsonObject, LinesManifest, first_records, open_folder
from datafetch.datasets.key_detection import URL_KEYS, choose_key, log_keys
from datafetch.datasets.shared_options import URL_KEY
from datafetch.model.kinds import Loader, Payload
from datafetch.model.options import option
from datafetch.model.sample import Record, Row, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpInterleavedOptions(DocumentOptions):
    """What may be set for ``llm-jp-interleaved``.

    Attributes:
        url_key: Where an image has its URL; None detects it.
    """

    url_key: str | None = option(None, URL_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpInterleaved(DatasetDefaults):
    """The dataset ``llm-jp-interleaved``."""

    name: str = "llm-jp-interleaved"
    summary: str = "llm-jp's Japanese interleaved documents: 6M, step 1."
    path: str = "interleaved_ja/pkl-limit-tokens"
    loader: Loader = Loader.MMC4
    options: LlmJpInterleavedOptions = field(default_factory=LlmJpInterleavedOptions)

    def bind(self, source: Path, ids: Path | None) -> LinesManifest:  # noqa: ARG002 - it takes none
        """Open the files of a folder.

        Raises:
            ManifestError: No file of JSON lines, one that can't be read, or images without URLs.
        """
        files = open_folder(source)
        first = first_records(files.values())
        url_key = choose_key("url", self.options.url_key, URL_KEYS, _images(first.records) or first.records)
        log_keys({"url": url_key})
        form = DocumentFormat.load(url_key, self.options)
        identity_fields = {"keys": {"url": url_key}, **form.identity_fields()}
        return LinesManifest(files, form, identity_fields, self.options.skip_bad_lines, first.line_bytes)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - the loader knows one alone
        """The document as published with its images, or None where too few of them arrived."""
        return document_row(record, self.options.keep_at_least)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether too few of a document's images may still arrive."""
        return is_document_lost(sample, failed, self.options.keep_at_least)


def _images(records: list[JsonObject]) -> list[JsonObject]:
    lists = [record.get("image_info") for record in records]
    return [image for images in lists if isinstance(images, list) for image in images if isinstance(image, dict)]
