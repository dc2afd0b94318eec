"""The words of the project as types: samples, outcomes, shards.

Rules: standard library only, frozen values, no behaviour beyond what a value knows about itself. A failure of the web
is a value here; see ``errors`` for everything that is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, object]
"""What is written for one sample, or a sample's metadata: names to JSON-like values."""


class FailureKind(StrEnum):
    """Why an image could not be had. The list is closed; ledgers and reports use these very strings."""

    BAD_URL = "bad_url"
    BLOCKED_ADDRESS = "blocked_address"
    DNS_NOT_FOUND = "dns_not_found"
    DNS_FAILED = "dns_failed"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    HTTP_STATUS = "http_status"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    OPTED_OUT = "opted_out"
    HOST_DOWN = "host_down"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    CORRUPT = "corrupt"
    PLACEHOLDER = "placeholder"
    WORKER_CRASHED = "worker_crashed"


class Permission(StrEnum):
    """Options by which an operator accepts images that are refused by default. Ledgers use these very strings."""

    INSECURE = "insecure"
    """The server's TLS, or its certificate, would have been refused."""
    OPT_OUT = "opt-out"
    """The response forbids the use of its image."""
    ALLOW_NET = "allow-net"
    """It came from an address that is not public, or a redirect to it did."""
    MAX_BODY = "max-body"
    """The body is larger than is taken by default."""
    MAX_PIXELS = "max-pixels"
    """The image has more pixels than are taken by default."""
    MAX_SAMPLE = "max-sample"
    """With it the images of its sample take more together than they may by default."""

    @property
    def cures(self) -> FailureKind:
        """What an image fails as that this permission may bring."""
        return _CURES[self]


_CURES = {
    Permission.INSECURE: FailureKind.TLS,
    Permission.OPT_OUT: FailureKind.OPTED_OUT,
    Permission.ALLOW_NET: FailureKind.BLOCKED_ADDRESS,
    Permission.MAX_BODY: FailureKind.TOO_LARGE,
    Permission.MAX_PIXELS: FailureKind.TOO_MANY_PIXELS,
    Permission.MAX_SAMPLE: FailureKind.TOO_LARGE,
}

Permissions: TypeAlias = tuple[Permission, ...]
"""Each at most once, in alphabetical order."""

OK = "ok"
"""The outcome of an image that arrived, as ledgers and reports spell it."""

HTTP_OK = 200

KEPT_AS_RECEIVED = "kept as received"
"""What a ledger says in ``detail`` of an image that was not encoded again."""

NOT_ASKED = "not asked for: "
"""What a ledger says in ``detail``, first, of an image that was not asked for since its document was lost already."""

BAD_LINE = "bad_line"
"""The only key in the row of a sample whose line or row could not be read and was skipped; it has the reason."""

MOST_URL_CHARS = 65_536
"""Of a URL that is requested: no server takes a longer one, and a spool and a ledger would have it several times."""

_MOST_DETAIL_CHARACTERS = 1000  # a reason may quote what a server said, which may be a URL of 60 KB

_KINDS_THAT_MAY_PASS = frozenset(
    {
        FailureKind.DNS_FAILED,
        FailureKind.CONNECT,
        FailureKind.TIMEOUT,
        FailureKind.DISCONNECTED,
        FailureKind.EMPTY,
        FailureKind.HOST_DOWN,
        FailureKind.TRUNCATED,
    }
)
_STATUSES_THAT_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})


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


class Holds(StrEnum):
    """What an output folder holds."""

    SHARDS = "shards"
    """Pickle shards and nothing else: the trainer counts every file."""
    FILES = "files"
    """Images under names of their own; others may lie beside them."""


class Note(StrEnum):
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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one image could not be had.

    Attributes:
        kind: Which of the closed list.
        detail: The reason in words, for a human; its form may change.
        status: The final HTTP status, where a response arrived.
        attempts: Requests made for this image.
        final_url: Where redirects ended, where a response arrived.
        fetch_ms: Wall-clock milliseconds of the last attempt, without queueing.
        sha256: Of the body, hex, where one arrived whole.
        permitted: What was taken by the operator's permission alone, as far as the image came.
    """

    kind: FailureKind
    detail: str = ""
    status: int | None = None
    attempts: int = 0
    final_url: str = ""
    fetch_ms: float = 0.0
    sha256: str = ""
    permitted: Permissions = ()

    @property
    def may_pass(self) -> bool:
        """Whether the same URL may well succeed later."""
        if self.kind is FailureKind.HTTP_STATUS:
            return self.status in _STATUSES_THAT_MAY_PASS
        return self.kind in _KINDS_THAT_MAY_PASS

    def is_as_damaged_as(self, before: Failure) -> bool:
        """Whether an image came damaged twice, with the same bytes: then it lies damaged where it comes from."""
        is_damaged = self.kind is before.kind is FailureKind.TRUNCATED
        return is_damaged and bool(self.sha256) and self.sha256 == before.sha256

    def for_sibling(self, image: int) -> Failure:
        """Why another image of the same document is not asked for, when this failure of an image has lost it.

        It has the same kind and status, and so is tried again if and only if this one is.

        Args:
            image: 0-based place in the sample of the image that failed.
        """
        detail = f"{NOT_ASKED}the document was lost with image {image}"
        return Failure(self.kind, detail, self.status)


@dataclass(frozen=True, slots=True)
class Body:
    """A response body that arrived whole.

    Attributes:
        content: The bytes, decompressed.
        final_url: Where redirects ended.
        attempts: Requests made for it, at least 1.
        fetch_ms: Wall-clock milliseconds of the attempt that succeeded, without queueing.
        permitted: What was taken by the operator's permission alone.
    """

    content: bytes
    final_url: str = ""
    attempts: int = 1
    fetch_ms: float = 0.0
    permitted: Permissions = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image as it will be written.

    Attributes:
        jpeg: The JPEG file.
        width_px: Width as written.
        height_px: Height as written.
        source_format: Format as received, in Pillow's names (``JPEG``, ``WEBP`` …).
        sha256: Of the body it came from, hex.
        is_original: Whether the file is the body itself, byte for byte.
        permitted: What was taken by the operator's permission alone.
    """

    jpeg: bytes
    width_px: int
    height_px: int
    source_format: str
    sha256: str = ""
    is_original: bool = False
    permitted: Permissions = ()


Outcome: TypeAlias = Encoded | Failure
Fetched: TypeAlias = Body | Failure


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

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LedgerLine:
        """The line as a ledger or a spool has it; those of earlier versions say nothing of permissions."""
        permitted = tuple(map(Permission, fields.get("permitted") or ()))
        return cls(**{**fields, "permitted": permitted})

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
            detail=_detail(outcome)[:_MOST_DETAIL_CHARACTERS],
            permitted=tuple(sorted({*fetched.permitted, *outcome.permitted})),
        )

    @property
    def is_asked(self) -> bool:
        """Whether the image was asked for, as far as its document was not lost before."""
        return not self.detail.startswith(NOT_ASKED)

    def to_outcome(self, jpeg: bytes) -> Outcome:
        """The outcome that this line tells of, given the JPEG kept beside it (empty for a failure)."""
        if self.outcome == OK:
            is_original = self.detail == KEPT_AS_RECEIVED
            size_px = self.width or 0, self.height or 0
            return Encoded(jpeg, *size_px, self.format, self.sha256, is_original, self.permitted)
        return Failure(
            FailureKind(self.outcome),
            self.detail,
            self.status,
            self.attempts,
            self.final_url,
            self.fetch_ms,
            self.sha256,
            self.permitted,
        )


def _detail(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return outcome.detail
    return KEPT_AS_RECEIVED if outcome.is_original else ""


@dataclass(frozen=True, slots=True)
class Totals:
    """The books of one shard, or of several added up.

    Attributes:
        samples: Samples that ended, each as a row or dropped.
        rows: Samples that became a row.
        outcomes: Images by outcome: ``ok`` or a failure kind.
        written_bytes: Size of the published files.
        notes: What else was counted, by ``Note``.
    """

    samples: int = 0
    rows: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    written_bytes: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)

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
    def sum(cls, parts: Iterable[Totals]) -> Totals:
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


@dataclass(frozen=True, slots=True)
class Selection:
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
