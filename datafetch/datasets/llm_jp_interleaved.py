"""llm-jp's Japanese interleaved documents: JSON lines in MMC4's form, each file of them a pickle.

Source: gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-interleaved-data. Under which key an image has its URL is not
published, so they are detected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from datafetch.datasets.description import Description
from datafetch.datasets.documents import TAKES, DocumentReader, document_row, is_document_lost
from datafetch.datasets.jsonl_manifest import JsonObject, LinesManifest, first_records, open_folder
from datafetch.datasets.key_detection import URL_KEYS, choose_key, say_keys
from datafetch.model.kinds import Loader, Payload
from datafetch.model.sample import Record, Row, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmJpInterleaved(Description):
    """The dataset ``llm-jp-interleaved``."""

    name: str = "llm-jp-interleaved"
    path: str = "interleaved_ja/pkl-limit-tokens"
    loader: Loader = Loader.MMC4
    supported_options: frozenset[str] = TAKES | {"url_key"}

    def bind(self, source: Path, ids: Path | None) -> LinesManifest:  # noqa: ARG002 - it takes none
        """Open the files of a folder.

        Raises:
            ManifestError: No file of JSON lines, one that can't be read, or images without URLs.
        """
        files = open_folder(source)
        first = first_records(files.values())
        url_key = choose_key("url", self.choices.url_key, URL_KEYS, _images(first.records) or first.records)
        say_keys({"url": url_key})
        form = DocumentReader.of(url_key, self.choices)
        identity_fields = {"keys": {"url": url_key}, **form.identity_fields()}
        return LinesManifest(files, form, identity_fields, self.choices.skip_bad_lines, first.line_bytes)

    def to_row(self, record: Record, payload: Payload) -> Row | None:  # noqa: ARG002 - the loader knows one alone
        """The document as published with its images, or None where too few of them arrived."""
        return document_row(record, self.choices.keep_at_least)

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether too few of a document's images may still arrive."""
        return is_document_lost(sample, failed, self.choices.keep_at_least)


def _images(records: list[JsonObject]) -> list[JsonObject]:
    lists = [record.get("image_info") for record in records]
    return [image for images in lists if isinstance(images, list) for image in images if isinstance(image, dict)]
