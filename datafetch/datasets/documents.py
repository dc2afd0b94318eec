"""Interleaved documents in the form of MMC4: a list of texts, a list of images, and a matrix of their similarities.

Each image refers to a text by ``matched_text_index``, and has one row of ``similarity_matrix``. VILA's loader, which
decides what a row must look like (docs/files.md), iterates over images and matrix rows in parallel. So when an image is
left out of a document, its matrix row is left out as well. Texts are never left out, so indices into them stay valid.

Source: github.com/allenai/mmc4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from datafetch.datasets.jsonl_manifest import BadRecordError, JsonObject, ParsedRecord, RecordFormat
from datafetch.datasets.payload import BASE64_FIELD, IMAGES_FIELD, pack
from datafetch.datasets.shared_options import SKIP_BAD_LINES
from datafetch.datasets.token_count import TokenCounter
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.errors import ManifestError
from datafetch.model.fields import invalid
from datafetch.model.kinds import CounterName, Payload
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row, Sample

_MAX_ZEROS = 2**20  # published documents have a few hundred similarities
# No token is longer, so a text with more characters for each permitted token has too many tokens. It is not tokenized,
# because that would take fifty times its memory.
_MAX_TOKEN_CHARS = 1000
_MAX_IMAGES = 256  # published documents have up to 15; the cost of a lost document grows with the square of the number


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentOptions(DatasetOptions):
    """The options of every dataset of documents.

    Attributes:
        keep_at_least: The number of images that have to arrive for a document to become a row, which is then without
            the others; None requires all of them.
        fill_similarity: Whether documents without a similarity matrix get one of zeros.
        max_images: Leave out documents with more images than this; None keeps them.
        min_similarity: Leave out documents with an image whose ``matched_sim`` is lower, or NaN; None keeps them.
        max_tokens: Leave out documents with more tokens than this: those of the texts, and 729 for each image. None
            keeps them.
        tokenizer: The path of the ``tokenizer.json`` that counts the tokens.
        skip_bad_lines: Whether lines that are not valid records are skipped and counted.
    """

    keep_at_least: int | None = option(
        None,
        Option(
            help="Keep documents of which K images arrive, without the others.", metavar="K", unset="all", minimum=1
        ),
    )
    fill_similarity: bool = option(
        False, Option(help="Give documents without a similarity matrix one of zeros.", effect=Effect.PERMITS)
    )
    max_images: int | None = option(
        None, Option(help="Leave out documents with more images.", metavar="N", unset="none", minimum=1)
    )
    min_similarity: float | None = option(
        None, Option(help="Leave out documents with an image of lower similarity.", metavar="S", unset="none")
    )
    max_tokens: int | None = option(
        None,
        Option(
            help="Leave out documents with more tokens: those of the text, and 729 an image.",
            metavar="N",
            unset="none",
            minimum=1,
        ),
    )
    tokenizer: str | None = option(
        None,
        Option(
            help="A tokenizer.json, for --max-tokens.",
            metavar="FILE",
            unset="none",
            effect=Effect.MANIFEST,
            is_file=True,
        ),
    )
    skip_bad_lines: bool = option(False, SKIP_BAD_LINES)

    def __post_init__(self) -> None:
        """Check the options before anything is read.

        Raises:
            ConfigurationError: A number is out of its bounds, or only one of two options that belong together is given.
        """
        DatasetOptions.__post_init__(self)  # super() does not work in dataclasses with slots
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise invalid(self, "{max_tokens} and {tokenizer} must be given together")


@dataclass(frozen=True, slots=True)
class DocumentFormat(RecordFormat):
    """How records become samples in datasets of documents.

    Attributes:
        url_key: The key under which an image has its URL.
        options: The options of the dataset, which decide which documents are selected.
        tokens: Counts a document's tokens; None if they are not limited.
    """

    url_key: str
    options: DocumentOptions
    tokens: TokenCounter | None

    @classmethod
    def load(cls, url_key: str, options: DocumentOptions) -> DocumentFormat:
        """Create a format, and load the tokenizer if the options name one.

        Raises:
            ConfigurationError: The tokenizer can't be loaded.
        """
        return cls(url_key, options, TokenCounter(Path(options.tokenizer)) if options.tokenizer else None)

    def parse_record(self, record: JsonObject) -> ParsedRecord:
        """Turn a document into a sample; one with too few images gets no URLs, and so nothing is requested for it.

        Raises:
            BadRecordError: The record is not a document, or is one that the trainer's loader can't read.
            ManifestError: The document has no similarities, and ``--fill-similarity`` is not given.
        """
        texts, images = _texts(record), _images(record)
        if (self.options.keep_at_least or 1) > len(images):
            return ParsedRecord((), record)
        urls = tuple(_url(record, image.get(self.url_key)) for image in images)
        similarities = record.get("similarity_matrix")
        if similarities is not None:
            is_matrix = isinstance(similarities, list) and all(isinstance(row, list) for row in similarities)
            if not is_matrix or len(similarities) != len(images):
                raise BadRecordError(f"similarity_matrix is not a list of one row for each of the {len(images)} images")
            return ParsedRecord(urls, record)
        if not self.options.fill_similarity:
            raise ManifestError(
                "the document has no similarity_matrix, which the trainer's loader needs; give --fill-similarity to "
                "fill in zeros"
            )
        if len(texts) * len(images) > _MAX_ZEROS:
            raise BadRecordError(
                f"{len(texts):,} texts and {len(images):,} images are too many for filling in similarities"
            )
        zeros = [[0.0] * len(texts) for _ in images]
        return ParsedRecord(urls, {**record, "similarity_matrix": zeros}, (CounterName.FILLED_SIMILARITY,))

    def identity_fields(self) -> dict[str, object]:
        """The hash of the tokenizer; the other options are part of a job's identity by their values."""
        return {} if self.tokens is None else {"tokenizer": self.tokens.sha256}

    def selects(self, record: JsonObject) -> bool:
        """Whether all filters select a document.

        Raises:
            BadRecordError: The record is not a document, or lacks a value that a filter needs.
        """
        texts, images, options = _texts(record), _images(record), self.options
        if options.max_images is not None and len(images) > options.max_images:
            return False
        if options.min_similarity is not None:
            similarities = [image.get("matched_sim") for image in images]
            if not all(isinstance(value, float | int) for value in similarities):
                raise BadRecordError("an image has no matched_sim, which --min-similarity needs")
            # Not written as any(value < …), so that NaN passes no filter, as in COYO's published script.
            if not all(value >= options.min_similarity for value in similarities if value is not None):
                return False
        return options.max_tokens is None or self.tokens is None or self._fits(texts, images, options.max_tokens)

    def _fits(self, texts: Sequence[str], images: Sequence[JsonObject], max_tokens: int) -> bool:
        assert self.tokens is not None, "the caller has checked this"
        if sum(map(len, texts)) > max_tokens * _MAX_TOKEN_CHARS:
            return False
        return self.tokens.count(texts, len(images)) <= max_tokens


def document_row(record: Record, keep_at_least: int | None) -> Row | None:
    """Build the row of a document: the document as published, with the images that arrived.

    Args:
        record: The document with the outcomes of its images.
        keep_at_least: The number of images that have to arrive; None requires all of them.

    Returns:
        The row, without the images that did not arrive; None if too few did.
    """
    outcomes, document = record.outcomes, record.sample.row
    arrived = [(position, outcome) for position, outcome in enumerate(outcomes) if isinstance(outcome, Encoded)]
    if not arrived or len(arrived) < (len(outcomes) if keep_at_least is None else keep_at_least):
        return None
    images, similarities = _list(document[IMAGES_FIELD]), _list(document["similarity_matrix"])
    return {
        **document,
        IMAGES_FIELD: [
            {**images[position], BASE64_FIELD: pack(outcome.jpeg, Payload.BASE64)} for position, outcome in arrived
        ],
        "similarity_matrix": [similarities[position] for position, _ in arrived],
    }


def is_document_lost(sample: Sample, failed: Collection[int], keep_at_least: int | None) -> bool:
    """Whether too many images of a document failed, so that ``document_row`` returns None even if all others arrive.

    Args:
        sample: The document.
        failed: The positions of the images that failed.
        keep_at_least: The same as for ``document_row``.
    """
    left = len(sample.urls) - len(failed)
    return left <= 0 or left < (len(sample.urls) if keep_at_least is None else keep_at_least)


def _list(value: object) -> Sequence[Any]:
    assert isinstance(value, list), "parse_record has checked this"
    return value


def _texts(record: JsonObject) -> list[str]:
    texts = record.get("text_list")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError("text_list is not a list of texts")
    return texts


def _images(record: JsonObject) -> list[JsonObject]:
    images, texts = record.get(IMAGES_FIELD), record["text_list"]
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise BadRecordError("image_info is not a list of objects")
    if len(images) > _MAX_IMAGES:
        raise BadRecordError(f"{len(images):,} images are more than a document can have ({_MAX_IMAGES:,})")
    for number, image in enumerate(images):
        index = image.get("matched_text_index")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(texts):
            raise BadRecordError(f"matched_text_index of image {number} does not point into text_list")
    return images


def _url(record: Mapping[str, Any], url: object) -> str:
    """Resolve an image's URL against that of its document. One that can't be resolved is left to the fetcher."""
    url = bounded_url(url)
    if not url.strip():  # it would resolve to the document itself
        return ""
    base = record.get("url")
    if not isinstance(base, str) or is_too_long(base):
        return url
    try:
        # A long URL of a document becomes part of those of all its images, so the result is bounded again.
        return bounded_url(urljoin(base.strip(), url.strip()))
    except ValueError:
        return url
