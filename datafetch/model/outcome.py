"""The outcome of one image: a body, an encoded image, or the reason why there is none.

Failures of the web are values, defined here; faults of this machine or of the operator are exceptions (``errors``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from datafetch.model.untrusted import short_repr


class FailureKind(StrEnum):
    """Why an image failed. The list is closed, and its strings are part of the formats of ledgers and reports."""

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
    NOT_REQUESTED = "not_requested"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    AREA_TOO_LARGE = "area_too_large"
    ASPECT_RATIO_TOO_LARGE = "aspect_ratio_too_large"
    CORRUPT = "corrupt"
    MISSING_MEMBER = "missing_member"
    BAD_MEMBER = "bad_member"
    HASH_MISMATCH = "hash_mismatch"
    PLACEHOLDER = "placeholder"
    WORKER_CRASHED = "worker_crashed"


class Source(StrEnum):
    """Where the bytes of an image came from, or were looked for. The strings are part of the ledger."""

    WEB = "web"
    """Its own URL."""
    ARCHIVE = "archive"
    """A member of an archive, or a file of an unpacked one."""
    HAVE = "have"
    """It was in its place already, and stays as it is."""
    FALLBACK = "fallback"
    """The URL that its record gives besides, because its member of the archive failed."""


class Permission(StrEnum):
    """Options by which an operator accepts images that are refused by default. The strings are part of the ledger."""

    INSECURE = "insecure"
    """The server's TLS version or certificate would have been refused."""
    OPT_OUT = "opt-out"
    """The response forbids the use of its image."""
    ALLOW_NET = "allow-net"
    """The image, or a redirect to it, came from an address that is not public."""
    MAX_BODY = "max-body"
    """The body is larger than the default limit."""
    MAX_PIXELS = "max-pixels"
    """The image has more pixels than the default limit."""
    MAX_SAMPLE = "max-sample"
    """With this image, the images of its sample are larger together than the default limit."""

    @property
    def failure_kind(self) -> FailureKind:
        """The failure kind of images that lack this permission."""
        match self:  # mypy sees when one is forgotten
            case Permission.INSECURE:
                return FailureKind.TLS
            case Permission.OPT_OUT:
                return FailureKind.OPTED_OUT
            case Permission.ALLOW_NET:
                return FailureKind.BLOCKED_ADDRESS
            case Permission.MAX_BODY | Permission.MAX_SAMPLE:
                return FailureKind.TOO_LARGE
            case Permission.MAX_PIXELS:
                return FailureKind.TOO_MANY_PIXELS


Permissions: TypeAlias = tuple[Permission, ...]
"""Each at most once, in alphabetical order."""

OK = "ok"
"""The outcome of an image that arrived, as ledgers and reports spell it."""

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

KINDS_THAT_HOST_DOWN_FOLLOWS = frozenset(
    {FailureKind.CONNECT, FailureKind.TIMEOUT, FailureKind.DISCONNECTED, FailureKind.HTTP_STATUS}
)
"""Kinds with which images of a host fail before others of it are not tried any more (``HOST_DOWN``)."""

_STATUSES_THAT_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})


def may_kind_pass(kind: str) -> bool:
    """Whether some failures of a kind are temporary; of a single one, ``Failure.may_pass`` tells."""
    return kind in {*_KINDS_THAT_MAY_PASS, FailureKind.HTTP_STATUS, FailureKind.BAD_MEMBER}


@dataclass(frozen=True, slots=True, repr=False)
class Failure:
    """Why one image failed.

    Attributes:
        kind: The kind of failure.
        detail: The reason in words, for a human; its form may change.
        status: The final HTTP status, if a response arrived.
        attempts: The number of attempts made for this image.
        final_url: The URL at the end of redirects, if a response arrived.
        fetch_ms: Wall-clock milliseconds of the last attempt, without queueing.
        sha256: Hex digest of the body, if one arrived completely.
        permitted: The permissions that were used before the image failed.
        source: Where its bytes were looked for.
        networks: Of refused addresses, the networks that ``--allow-net`` would have to name; not kept in the ledger.
    """

    kind: FailureKind
    detail: str = ""
    status: int | None = None
    attempts: int = 0
    final_url: str = ""
    fetch_ms: float = 0.0
    sha256: str = ""
    permitted: Permissions = ()
    source: Source = Source.WEB
    networks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = f", {short_repr(self.final_url)}" if self.final_url else ""
        return f"Failure({self.kind}, {short_repr(self.detail)}{where})"

    @property
    def reason(self) -> str:
        """The kind, or which HTTP status it was: ``timeout``, ``HTTP 404``."""
        return f"HTTP {self.status}" if self.kind is FailureKind.HTTP_STATUS and self.status else self.kind.value

    @property
    def may_pass(self) -> bool:
        """Whether the failure is temporary, so that the same URL may succeed later.

        False for an image that was not requested: whether it will be, the other images of its document decide.
        """
        if self.kind is FailureKind.HTTP_STATUS:
            return self.status in _STATUSES_THAT_MAY_PASS
        if self.kind is FailureKind.BAD_MEMBER:
            return bool(self.sha256)  # all of it arrived, with a wrong checksum, so it may have been damaged on its way
        return self.kind in _KINDS_THAT_MAY_PASS

    def is_as_damaged_as(self, before: Failure) -> bool:
        """Whether two downloads were truncated with the same bytes, so that the file on the server must be damaged."""
        is_damaged = self.kind is before.kind and self.kind in (FailureKind.TRUNCATED, FailureKind.BAD_MEMBER)
        return is_damaged and bool(self.sha256) and self.sha256 == before.sha256


NOT_REQUESTED = Failure(FailureKind.NOT_REQUESTED, "its document could no longer become a row")
"""The failure of an image that was not requested, or whose request was cancelled, because its document was lost."""


@dataclass(frozen=True, slots=True)
class PartialContent:
    """Which part of a file a body is.

    Attributes:
        start: Offset of its first byte in the file.
        stop: Offset behind its last byte.
        total_bytes: Size of the whole file; None where the server does not know it.
        etag: The file's strong entity tag, for ``Request.if_range``; empty where the server sent none.
    """

    start: int
    stop: int
    total_bytes: int | None
    etag: str

    @property
    def size_bytes(self) -> int:
        """Number of bytes in the part."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, repr=False)
class Body:
    """A response body that arrived completely.

    Attributes:
        content: The bytes, decompressed.
        final_url: The URL at the end of redirects.
        attempts: The number of attempts, at least 1.
        fetch_ms: Wall-clock milliseconds of the attempt that succeeded, without queueing.
        permitted: The permissions without which it would have been refused.
        part: Which bytes of the file it holds, where a byte range was requested; None for a whole file.
        source: Where the bytes came from.
    """

    content: bytes
    final_url: str = ""
    attempts: int = 1
    fetch_ms: float = 0.0
    permitted: Permissions = ()
    part: PartialContent | None = None
    source: Source = Source.WEB

    def __repr__(self) -> str:
        return f"Body({len(self.content):,} bytes, {short_repr(self.final_url)})"


@dataclass(frozen=True, slots=True, repr=False)
class Encoded:
    """One image as it will be written.

    Attributes:
        jpeg: The file: a JPEG, unless it is kept as received, or ``ImageSpec.image_format`` is another format.
        width_px: Width as written.
        height_px: Height as written.
        source_format: Format of the received image, by Pillow's name (``JPEG``, ``WEBP`` …).
        sha256: Hex digest of the body that it was made from.
        is_original: Whether the file is the received body, byte for byte.
        permitted: The permissions without which it would have been refused.
        received_px: Width and height as received; None if they are those as written.
    """

    jpeg: bytes
    width_px: int
    height_px: int
    source_format: str
    sha256: str = ""
    is_original: bool = False
    permitted: Permissions = ()
    received_px: tuple[int, int] | None = None

    def __repr__(self) -> str:
        size = f"{self.width_px}×{self.height_px} px"
        return f"Encoded({len(self.jpeg):,} bytes, {size}, from {short_repr(self.source_format)})"


Outcome: TypeAlias = Encoded | Failure
"""The end of one image: the JPEG to write, or why there is none."""

Fetched: TypeAlias = Body | Failure
"""The end of one fetch: what was received, or why nothing was."""
