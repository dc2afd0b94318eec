"""Interleaved documents, MMC4's form: texts, images that point at them, and a row of similarities an image.

Source: github.com/allenai/mmc4. What the trainer's loader demands of a row is VILA's (docs/files.md): it zips
``image_info`` with ``similarity_matrix``, so an image that goes takes its row with it; ``matched_text_index`` points
into ``text_list``, which nothing is taken from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from datafetch.datasets.jsonl_manifest import BadRecordError, JsonObject, ParsedRecord, RecordFormat
from datafetch.datasets.payload import pack
from datafetch.datasets.shared_options import SKIP_BAD_LINES
from datafetch.datasets.token_count import TokenCounter
from datafetch.datasets.url_length import bounded_url, is_too_long
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.model.kinds import CounterName, Payload
from datafetch.model.options import DatasetOptions, Effect, Option, option
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Record, Row, Sample

_MAX_ZEROS = 2**20  # published documents have some hundred similarities
_MAX_TOKEN_CHARS = 1000  # no tokenizer makes fewer tokens of more; what it holds of a text is fifty times as large
_MAX_IMAGES = 256  # published documents have 15; what a lost one costs grows with their square


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentOptions(DatasetOptions):
    """What may be set for any dataset of documents.

    Attributes:
        keep_at_least: Keep documents with so many images or more, without those that did not arrive; None asks for all.
        fill_similarity: Whether documents without a similarity matrix get one of zeros.
        max_images: Leave out documents with more images.
        min_similarity: Leave out documents with an image whose ``matched_sim`` is lower, or NaN.
        max_tokens: Leave out documents with more tokens: those of the text, and 729 an image.
        tokenizer: File that counts them (``tokenizer.json``).
        skip_bad_lines: Whether lines that are no record are skipped and counted.
    """

    keep_at_least: int | None = option(
        None,
        Option(help="Keep documents of which K images arrive, without the others.", metavar="K", unset="all", least=1),
    )
    fill_similarity: bool = option(
        False, Option(help="Give documents without a similarity matrix one of zeros.", effect=Effect.PERMITS)
    )
    max_images: int | None = option(
        None, Option(help="Leave out documents with more images.", metavar="N", unset="none", least=1)
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
            least=1,
        ),
    )
    tokenizer: str | None = option(
        None, Option(help="A tokenizer.json, for --max-tokens.", metavar="FILE", unset="none", effect=Effect.MANIFEST)
    )
    skip_bad_lines: bool = option(False, SKIP_BAD_LINES)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        DatasetOptions.__post_init__(self)  # not by super(), which dataclasses with slots can't have
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise ConfigurationError("--max-tokens and --tokenizer are given together: what counts, and how many")


@dataclass(frozen=True, slots=True)
class DocumentFormat(RecordFormat):
    """From a record to a sample, for one dataset of documents with its options.

    Attributes:
        url_key: Where an image has its URL.
        options: Which documents are wanted.
        tokens: Counts them; None where they are not limited.
    """

    url_key: str
    options: DocumentOptions
    tokens: TokenCounter | None

    @classmethod
    def load(cls, url_key: str, options: DocumentOptions) -> DocumentFormat:
        """A reader; the tokenizer is loaded.

        Raises:
            ConfigurationError: It can't be.
        """
        return cls(url_key, options, TokenCounter(Path(options.tokenizer)) if options.tokenizer else None)

    def parsed(self, record: JsonObject) -> ParsedRecord:
        """The document as a sample.

        Raises:
            BadRecordError: It is no document, or one that the loader would trip over.
            ManifestError: It has no similarities, and is not to get any.
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
                "the document has no similarity_matrix, and the trainer's loader needs one; "
                "--fill-similarity puts zeros there"
            )
        if len(texts) * len(images) > _MAX_ZEROS:
            raise BadRecordError(
                f"{len(texts):,} texts and {len(images):,} images are too many to fill in similarities"
            )
        zeros = [[0.0] * len(texts) for _ in images]
        return ParsedRecord(urls, {**record, "similarity_matrix": zeros}, (CounterName.FILLED_SIMILARITY,))

    def identity_fields(self) -> dict[str, object]:
        """The hash of the tokenizer; the other options are known by their values."""
        return {} if self.tokens is None else {"tokenizer": self.tokens.sha256}

    def wants(self, record: JsonObject) -> bool:
        """Whether the filters leave a document in."""
        texts, images, options = _texts(record), _images(record), self.options
        if options.max_images is not None and len(images) > options.max_images:
            return False
        if options.min_similarity is not None:
            similarities = [image.get("matched_sim") for image in images]
            if not all(isinstance(value, float | int) for value in similarities):
                raise BadRecordError("an image has no matched_sim, which --min-similarity looks at")
            # Turned around, so that NaN, which is no similarity, passes no filter: as in COYO's published script.
            if not all(value >= options.min_similarity for value in similarities if value is not None):
                return False
        return options.max_tokens is None or self.tokens is None or self._fits(texts, images, options.max_tokens)

    def _fits(self, texts: Sequence[str], images: Sequence[JsonObject], max_tokens: int) -> bool:
        assert self.tokens is not None, "it is asked where there is one"
        if sum(map(len, texts)) > max_tokens * _MAX_TOKEN_CHARS:
            return False
        return self.tokens.count(texts, len(images)) <= max_tokens


def document_row(record: Record, keep_at_least: int | None) -> Row | None:
    """The document with its images, or None where too few of them arrived.

    Args:
        record: The document and what became of its images.
        keep_at_least: So many are enough; None asks for all. Those that did not arrive are left out.
    """
    outcomes, document = record.outcomes, record.sample.row
    arrived = [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, Encoded)]
    if not arrived or len(arrived) < (len(outcomes) if keep_at_least is None else keep_at_least):
        return None
    images, similarities = _list(document["image_info"]), _list(document["similarity_matrix"])
    return {
        **document,
        "image_info": [
            {**images[place], "image_base64": pack(outcome.jpeg, Payload.BASE64)} for place, outcome in arrived
        ],
        "similarity_matrix": [similarities[place] for place, _ in arrived],
    }


def is_document_lost(sample: Sample, failed: Collection[int], keep_at_least: int | None) -> bool:
    """Whether ``document_row`` gives no row for a document, whatever the images that did not fail come to.

    Args:
        sample: The document.
        failed: Positions of the images that failed.
        keep_at_least: As there.
    """
    left = len(sample.urls) - len(failed)
    return left <= 0 or left < (len(sample.urls) if keep_at_least is None else keep_at_least)


def _list(value: object) -> Sequence[Any]:
    assert isinstance(value, list), "a document that is read has it"
    return value


def _texts(record: JsonObject) -> list[str]:
    texts = record.get("text_list")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRecordError("text_list is not a list of texts")
    return texts


def _images(record: JsonObject) -> list[JsonObject]:
    images, texts = record.get("image_info"), record["text_list"]
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
    """An image's URL, from where the document was found; what can't be joined is left for the fetcher to refuse."""
    url = bounded_url(url)
    if not url.strip():  # or the document itself would be asked for
        return ""
    base = record.get("url")
    if not isinstance(base, str) or is_too_long(base):
        return url
    try:
        # Each image has its document's address before its own, so that a long one would be there many times.
        return bounded_url(urljoin(base.strip(), url.strip()))
    except ValueError:
        return url
