"""Closed lists that several packages know: loaders, payloads, kinds of output, what is counted."""

from __future__ import annotations

from enum import StrEnum


class Loader(StrEnum):
    """Which of the trainer's loaders reads a dataset, and so what it demands."""

    COYO = "coyo"
    """Pairs: shards of rows with a text and an image."""
    MMC4 = "mmc4"
    """Documents: shards of rows with texts and images."""
    TORCH = "torch"
    """A JSON list, and a folder of images."""


class Payload(StrEnum):
    """How a row holds an image."""

    BASE64 = "base64"
    """As text, for loaders that know nothing else."""
    BYTES = "bytes"
    """As it is, a quarter smaller."""


class CounterName(StrEnum):
    """What is counted besides samples and images. Reports and ledgers use these very strings."""

    BAD_LINES = "bad_lines"
    """Lines or rows of a manifest that are no sample, skipped because that was asked for."""
    FILTERED = "filtered"
    """Records that a filter left out."""
    FILLED_SIMILARITY = "filled_similarity"
    """Documents without similarities, which got zeros because that was asked for."""
    RECORDS = "records"
    """Records of a shard, wanted or not, where an id list counts them."""
    REPEATED_IDS = "repeated_ids"
    """Rows that were left out because an earlier one has the same id, in the same file or in another."""
    NOT_ASKED = "not_asked"
    """Images that were not requested, or whose request was cancelled, because their document was lost already."""
