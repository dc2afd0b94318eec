"""One line of a ledger, and the counts of a shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from datafetch.model.bounds import Count
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.outcome import (
    NOT_REQUESTED,
    OK,
    Body,
    Encoded,
    Failure,
    FailureKind,
    Fetched,
    Outcome,
    Permission,
    Permissions,
    Source,
)
from datafetch.model.sample import Sample

LEGACY_SKIPPED_PREFIX = "not asked for: "
"""The prefix of ``detail`` for an image that was not requested, in ledgers that lack ``is_skipped``."""
_LEGACY_ORIGINAL = "kept as received"  # likewise, the ``detail`` of an image that was not re-encoded
_MAX_DETAIL_CHARACTERS = 1000  # a reason may quote what a server said, which may be a URL of 60 KB


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """The permanent record of one image. Fields and ``is_skipped`` are the ledger's columns (docs/files.md)."""

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
    source: Source = Source.WEB
    received_width: int | None = None
    received_height: int | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LedgerLine:
        """Read a line of a ledger or spool.

        Earlier versions lack the last columns, two of which were in ``detail``. They gave an image that was not
        requested the kind and status of another image of its document; here it gets those of its own.
        """
        detail = fields["detail"]
        later: dict[str, Any] = {
            "permitted": tuple(map(Permission, fields.get("permitted") or ())),
            "is_original": fields.get("is_original", detail == _LEGACY_ORIGINAL),
            "source": Source(fields.get("source") or Source.WEB),
            "received_width": fields.get("received_width"),
            "received_height": fields.get("received_height"),
        }
        if fields.get("is_skipped", detail.startswith(LEGACY_SKIPPED_PREFIX)):
            later |= {"outcome": NOT_REQUESTED.kind.value, "status": None, "detail": NOT_REQUESTED.detail}
        line = {**fields, **later}
        line.pop("is_skipped", None)
        return cls(**line)

    @classmethod
    def of(cls, sample: Sample, image: int, fetched: Fetched, outcome: Outcome) -> LedgerLine:
        """The line for one image.

        Args:
            sample: The sample it belongs to.
            image: 0-based position in ``sample.urls``.
            fetched: The result of fetching.
            outcome: The final outcome; if fetching failed, the same failure.
        """
        encoded = outcome if isinstance(outcome, Encoded) else None
        failure = outcome if isinstance(outcome, Failure) else None
        received_width, received_height = (encoded and encoded.received_px) or (None, None)
        return cls(
            sample=sample.position,
            key=sample.key,
            image=image,
            url=sample.urls[image],
            final_url=fetched.final_url,
            outcome=failure.kind.value if failure else OK,
            status=_status(fetched),
            attempts=fetched.attempts,
            body_bytes=len(fetched.content) if isinstance(fetched, Body) else 0,
            width=encoded.width_px if encoded else None,
            height=encoded.height_px if encoded else None,
            format=encoded.source_format if encoded else "",
            sha256=outcome.sha256,
            fetch_ms=fetched.fetch_ms,
            detail=failure.detail[:_MAX_DETAIL_CHARACTERS] if failure else "",
            permitted=tuple(sorted({*fetched.permitted, *outcome.permitted})),
            is_original=encoded is not None and encoded.is_original,
            source=fetched.source,
            received_width=received_width,
            received_height=received_height,
        )

    @property
    def failure(self) -> Failure | None:
        """Why the image failed; None if it arrived."""
        if self.outcome == OK:
            return None
        return Failure(
            kind=FailureKind(self.outcome),
            detail=self.detail,
            status=self.status,
            attempts=self.attempts,
            final_url=self.final_url,
            fetch_ms=self.fetch_ms,
            sha256=self.sha256,
            permitted=self.permitted,
            source=self.source,
        )

    @property
    def is_skipped(self) -> bool:
        """Whether the image was not requested because its document was lost."""
        return self.outcome == FailureKind.NOT_REQUESTED

    def to_outcome(self, jpeg: bytes) -> Outcome:
        """The outcome that this line records.

        Args:
            jpeg: The JPEG of an image that arrived; ignored for a failure.
        """
        width, height = self.received_width, self.received_height
        return self.failure or Encoded(
            jpeg,
            width_px=self.width or 0,
            height_px=self.height or 0,
            source_format=self.format,
            sha256=self.sha256,
            is_original=self.is_original,
            permitted=self.permitted,
            received_px=None if width is None or height is None else (width, height),
        )


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """The counts of one shard, or the sums of several.

    Attributes:
        samples: The number of samples, whether they became a row or were dropped.
        rows: The number of samples that became a row.
        outcomes: The number of images by outcome: ``ok`` or a failure kind.
        written_bytes: The size of the published files.
        notes: Everything else that was counted, by ``CounterName``.
        lost: The documents that were lost; None for samples that are no documents, and ledgers of earlier versions.
    """

    samples: Count = 0
    rows: Count = 0
    outcomes: Mapping[str, Count] = field(default_factory=dict)
    written_bytes: Count = 0
    notes: Mapping[str, Count] = field(default_factory=dict)
    lost: LostDocuments | None = None

    @property
    def images(self) -> int:
        """The number of images, whether they arrived or failed."""
        return sum(self.outcomes.values())

    @property
    def ok(self) -> int:
        """The number of images that arrived."""
        return self.outcomes.get(OK, 0)

    @property
    def failed(self) -> int:
        """The number of images that failed."""
        return self.images - self.ok

    @classmethod
    def sum(cls, parts: Iterable[ShardCounts]) -> ShardCounts:
        """Add up the counts of several shards."""
        total = cls()
        for part in parts:
            total = cls(
                samples=total.samples + part.samples,
                rows=total.rows + part.rows,
                outcomes=Counter(total.outcomes) + Counter(part.outcomes),
                written_bytes=total.written_bytes + part.written_bytes,
                notes=Counter(total.notes) + Counter(part.notes),
                lost=LostDocuments.sum((total.lost, part.lost)),
            )
        return total


def _status(fetched: Fetched) -> int | None:
    if isinstance(fetched, Failure):
        return fetched.status
    return HTTPStatus.OK.value if fetched.source in (Source.WEB, Source.FALLBACK) else None
