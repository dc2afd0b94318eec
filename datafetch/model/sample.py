"""Samples and shards, as a manifest has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from datafetch.model.outcome import (
    Outcome,
)

Row: TypeAlias = Mapping[str, object]
"""What is written for one sample, or a sample's metadata: names to JSON-like values."""

BAD_LINE = "bad_line"
"""The only key in the row of a sample whose line or row could not be read and was skipped; it has the reason."""

MOST_URL_CHARS = 65_536
"""Of a URL that is requested: no server takes a longer one, and a spool and a ledger would have it several times."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a manifest.

    Attributes:
        position: 0-based place in its shard.
        key: The dataset's own id, as text.
        urls: One image URL or more, as published; none where the sample can't become a row whatever arrives.
        row: The metadata that ``Dataset.to_row`` needs; JSON-like values only, for the spool keeps it.
    """

    position: int
    key: str
    urls: tuple[str, ...]
    row: Row


@dataclass(frozen=True, slots=True)
class Record:
    """A sample with what became of its images, in the order of ``sample.urls``."""

    sample: Sample
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A named, ordered slice of samples: the unit of commit and resume.

    Attributes:
        name: File name without suffix; names sort as the manifest orders them.
        source: The manifest file it is cut from.
        size: Of its part of the manifest, wanted or not: rows, or bytes where rows are not counted beforehand; all
            shards of a manifest have the same unit.
        fingerprint: Differs for a file with other content, as far as that can be told without reading it all.
    """

    name: str
    source: Path
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class IdListResult:
    """What became of the list of wanted ids.

    Attributes:
        wanted: Distinct ids in the list.
        duplicates: Lines of the list that repeat an earlier one.
        not_found: Distinct ids that no manifest file has; None while a limit keeps the run from looking.
        missing_files: Manifest files that ids name and that are not there.
        out_of_range: Ids that lie beyond the end of their manifest files.
        remark: What the list looks like, for the operator; empty where there is nothing to say.
    """

    wanted: int
    duplicates: int
    not_found: int | None
    missing_files: int = 0
    out_of_range: int = 0
    remark: str = ""
