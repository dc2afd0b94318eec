"""Enumerations that several packages use: loaders, payloads, names of counters, and states of outputs."""

from __future__ import annotations

from enum import StrEnum


class Loader(StrEnum):
    """The trainer's loader that reads a dataset, which decides what the output must look like."""

    COYO = "coyo"
    """Pairs: shards of rows with a text and an image."""
    MMC4 = "mmc4"
    """Documents: shards of rows with texts and images."""
    TORCH = "torch"
    """A JSON list, and a folder of images."""


class Payload(StrEnum):
    """How a row holds an image."""

    BASE64 = "base64"
    """As base64 text, the only form that some loaders accept."""
    BYTES = "bytes"
    """As bytes, a quarter smaller."""


class CounterName(StrEnum):
    """What is counted besides samples and images. The strings are part of the formats of reports and ledgers."""

    BAD_LINES = "bad_lines"
    """Lines or rows of a manifest that are not valid samples, skipped because an option permits it."""
    FILTERED = "filtered"
    """Records that a filter excluded."""
    FILLED_SIMILARITY = "filled_similarity"
    """Documents without similarities, which were filled with zeros because an option permits it."""
    RECORDS = "records"
    """All records of a shard, selected or not, in datasets whose id list numbers them."""
    REFUSED = "refused"
    """Records that the trainer could not use, or whose file can't have its name, so that nothing was requested."""
    REPEATED_IDS = "repeated_ids"
    """Rows that were skipped because an earlier row, in the same file or in another, has the same id."""
    SKIPPED = "not_asked"
    """Images that were not requested, or whose request was cancelled, because their document was lost: as many as
    failed as ``not_requested``, which earlier versions counted here alone."""


class OutputState(StrEnum):
    """What a run would do with an output."""

    NEW = "new"
    RESUMED = "resumed"
    STARTED_OVER = "started over"
    REUSED = "reused"
    COMPLETE = "complete"
    REPAIRED = "repaired"
    RESHARDED = "resharded"
    REFUSED = "refused"
