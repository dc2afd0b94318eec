"""Samples and shards of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from datafetch.model.outcome import (
    Outcome,
)

Row: TypeAlias = Mapping[str, object]
"""The row that is written for a sample, or a sample's metadata: names → JSON-like values."""

BAD_LINE = "bad_line"
"""The only key in the metadata of a sample whose line could not be read and was skipped; its value is the reason."""

REFUSED = "refused"
"""The key in the metadata of a sample without URLs under which a dataset stores why it refuses the record, as text."""

MEMBER = "member"
"""The key in the metadata of a sample whose image is a member of an archive; its value is ``Member.to_json``'s."""

FILE = "file"
"""The key in the metadata of a sample whose images are files of a folder; its value lists their relative paths."""

FAILURE = "failure"
"""The key in the metadata of a sample whose image can't be fetched: a list of the failure's kind and the reason."""

FALLBACK = "fallback"
"""The key in the metadata of a sample whose image may be elsewhere, too: in its place, or at the URL that is its value.

The URL is requested if the first way fails; it may be empty.
"""

HASHES = "hashes"
"""The key in the metadata of a sample that says which bodies its images have to be, if its dataset has such
(``Dataset.has_hashes``): for each image, None or the hashes of its body in lower-case hexadecimal, by algorithm."""

MAX_URL_CHARS = 65_536
"""The length limit for URLs. No server accepts longer ones, and spools and ledgers store each URL several times."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a manifest.

    Attributes:
        position: 0-based position in its shard.
        key: The dataset's own id, as text.
        urls: The image URLs, as published; empty if the sample can't become a row whatever arrives.
        row: The metadata that ``Dataset.to_row`` needs; JSON-like values only, because it is stored in the spool.
        content: The image itself, where the manifest has it; it is stored nowhere with the sample.
    """

    position: int
    key: str
    urls: tuple[str, ...]
    row: Row
    content: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Record:
    """A sample with the outcomes of its images, in the order of ``sample.urls``."""

    sample: Sample
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A named, ordered slice of samples: the unit of commit and resume.

    Attributes:
        name: File name without suffix; names sort as the manifest orders them.
        source: The manifest file that it is a part of.
        size: The size of its part of the manifest, whether samples are selected or not: in rows, or in bytes if rows
            are not counted in advance. The unit is the same for all shards of a manifest.
        fingerprint: Identifies the content of the source, as well as possible without reading all of it.
    """

    name: str
    source: Path
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class IdListResult:
    """How the ids of an id list were found in the manifest.

    Attributes:
        wanted: The number of distinct ids in the list.
        duplicates: The number of lines that repeat an earlier one.
        not_found: The number of distinct ids that no manifest file has; None if a limit kept the run from searching.
        missing_files: The number of manifest files that ids refer to and that do not exist.
        out_of_range: The number of ids beyond the end of their manifest files.
        remark: An observation about the list for the operator; empty if there is none.
    """

    wanted: int
    duplicates: int
    not_found: int | None
    missing_files: int = 0
    out_of_range: int = 0
    remark: str = ""
