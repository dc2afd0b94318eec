"""Choices: what may be asked of a dataset's manifest besides its source, as a value.

Rules: each dataset says which of them it takes; anything else that was said is refused by name. What only permits
something that would otherwise stop a run (``fill_similarity``, ``skip_bad_lines``) does not change what a run without
it has made, and so may differ from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from datafetch.errors import ConfigurationError, refuse_outside

_MOST = 2**31 - 1


class IdsIndex(StrEnum):
    """What the index in an id list counts."""

    DOCUMENT = "document"
    """The documents of a shard, as published."""
    KEPT = "kept"
    """Those of them that became a row."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What is chosen of a dataset. Checked when made; it pickles.

    Attributes:
        ids_index: What the index in the id list counts; None is the documents as published.
        keep_at_least: Keep documents with so many images or more, without those that did not arrive; None asks for all.
        fill_similarity: Whether documents without a similarity matrix get one of zeros.
        max_images: Leave out documents with more images.
        min_similarity: Leave out documents with an image whose ``matched_sim`` is lower, or NaN.
        max_tokens: Leave out documents with more tokens: those of the text, and 729 an image.
        tokenizer: File that counts them (``tokenizer.json``).
        url_key: Where a record has its URL; None finds out.
        text_key: Where a record has its text; None finds out.
        skip_bad_lines: Whether lines that are no record are skipped and counted.
        only_referenced: JSON list of the training; only the images that it names are fetched.
    """

    ids_index: IdsIndex | None = None
    keep_at_least: int | None = None
    fill_similarity: bool = False
    max_images: int | None = None
    min_similarity: float | None = None
    max_tokens: int | None = None
    tokenizer: str | None = None
    url_key: str | None = None
    text_key: str | None = None
    skip_bad_lines: bool = False
    only_referenced: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read; a choice may be given as its plain word."""
        if self.ids_index is not None and self.ids_index not in tuple(IdsIndex):
            raise ConfigurationError(f"--ids-index must be {' or '.join(IdsIndex)}, not {self.ids_index!r}")
        for option in ("keep_at_least", "max_images", "max_tokens"):
            value = getattr(self, option)
            if value is not None:
                refuse_outside(option_name(option), value, 1, _MOST)
        if self.min_similarity is not None and not math.isfinite(self.min_similarity):
            raise ConfigurationError(f"--min-similarity must be a number, not {self.min_similarity}")
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise ConfigurationError("--max-tokens and --tokenizer are given together: what counts, and how many")

    def said(self) -> Iterator[str]:
        """The names of those that were chosen."""
        for choice in fields(self):
            if getattr(self, choice.name) != choice.default:
                yield choice.name


def option_name(field: str) -> str:
    """A field as it is called on the command line."""
    return f"--{field.replace('_', '-')}"
