"""One line of a ledger, and the sums of a shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datafetch.model.bounds import Count
from datafetch.model.outcome import (
    HTTP_OK,
    OK,
    Body,
    Encoded,
    Failure,
    FailureKind,
    Fetched,
    Outcome,
    Permission,
    Permissions,
)
from datafetch.model.sample import Sample

SKIPPED_BEFORE = "not asked for: "
"""How ``detail`` began of a skipped image, in ledgers and spools from before there was ``is_skipped``."""
_ORIGINAL_BEFORE = "kept as received"  # what it was of an original image, likewise
_MOST_DETAIL_CHARACTERS = 1000  # a reason may quote what a server said, which may be a URL of 60 KB


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """What became of one image, for ever. Field names are the ledger's columns (docs/files.md)."""

    sample: int
    key: str
    image: int
    url: str
    final_url: str
    outcome: str
    status: int | None
    attempts: int
    body_bytes: int
    width: int | None
    height: int | None
    format: str
    sha256: str
    fetch_ms: float
    detail: str
    permitted: Permissions = ()
    is_original: bool = False
    is_skipped: bool = False

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LedgerLine:
        """The line as a ledger or a spool has it; earlier ones lack the last columns, and told two in ``detail``."""
        later = {
            "permitted": tuple(map(Permission, fields.get("permitted") or ())),
            "is_original": fields.get("is_original", fields["detail"] == _ORIGINAL_BEFORE),
            "is_skipped": fields.get("is_skipped", fields["detail"].startswith(SKIPPED_BEFORE)),
        }
        return cls(**{**fields, **later})

    @classmethod
    def of(cls, sample: Sample, image: int, fetched: Fetched, outcome: Outcome) -> LedgerLine:
        """The line for one image.

        Args:
            sample: The sample it belongs to.
            image: 0-based place in ``sample.urls``.
            fetched: What the fetcher brought.
            outcome: What became of it; the same failure again when nothing was fetched.
        """
        encoded = outcome if isinstance(outcome, Encoded) else None
        failure = outcome if isinstance(outcome, Failure) else None
        return cls(
            sample=sample.position,
            key=sample.key,
            image=image,
            url=sample.urls[image],
            final_url=fetched.final_url,
            outcome=failure.kind.value if failure else OK,
            status=HTTP_OK if isinstance(fetched, Body) else fetched.status,
            attempts=fetched.attempts,
            body_bytes=len(fetched.content) if isinstance(fetched, Body) else 0,
            width=encoded.width_px if encoded else None,
            height=encoded.height_px if encoded else None,
            format=encoded.source_format if encoded else "",
            sha256=outcome.sha256,
            fetch_ms=fetched.fetch_ms,
            detail=failure.detail[:_MOST_DETAIL_CHARACTERS] if failure else "",
            permitted=tuple(sorted({*fetched.permitted, *outcome.permitted})),
            is_original=encoded is not None and encoded.is_original,
            is_skipped=failure is not None and failure.is_skipped,
        )

    @property
    def failure(self) -> Failure | None:
        """Why the image could not be had; None where it arrived."""
        if self.outcome == OK:
            return None
        return Failure(
            FailureKind(self.outcome),
            self.detail,
            self.status,
            self.attempts,
            self.final_url,
            self.fetch_ms,
            self.sha256,
            self.permitted,
            self.is_skipped,
        )

    def to_outcome(self, jpeg: bytes) -> Outcome:
        """The outcome that this line records.

        Args:
            jpeg: The file of an image that arrived; of no account for a failure.
        """
        size_px = self.width or 0, self.height or 0
        return self.failure or Encoded(jpeg, *size_px, self.format, self.sha256, self.is_original, self.permitted)


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """The books of one shard, or of several added up.

    Attributes:
        samples: Samples that ended, each as a row or dropped.
        rows: Samples that became a row.
        outcomes: Images by outcome: ``ok`` or a failure kind.
        written_bytes: Size of the published files.
        notes: What else was counted, by ``CounterName``.
    """

    samples: Count = 0
    rows: Count = 0
    outcomes: Mapping[str, Count] = field(default_factory=dict)
    written_bytes: Count = 0
    notes: Mapping[str, Count] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images that ended, well or not."""
        return sum(self.outcomes.values())

    @property
    def ok(self) -> int:
        """Images that arrived."""
        return self.outcomes.get(OK, 0)

    @property
    def failed(self) -> int:
        """Images that did not arrive."""
        return self.images - self.ok

    @classmethod
    def sum(cls, parts: Iterable[ShardCounts]) -> ShardCounts:
        """Add up the books of several shards."""
        total = cls()
        for part in parts:
            total = cls(
                samples=total.samples + part.samples,
                rows=total.rows + part.rows,
                outcomes=Counter(total.outcomes) + Counter(part.outcomes),
                written_bytes=total.written_bytes + part.written_bytes,
                notes=Counter(total.notes) + Counter(part.notes),
            )
        return total
