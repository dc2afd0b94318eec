"""What becomes of one image: a body, an encoded image, or why there is none.

A failure of the web is a value here; ``errors`` has everything that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


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
        is_skipped: Whether it was not tried, or given up, because its document could no longer become a row.
    """

    kind: FailureKind
    detail: str = ""
    status: int | None = None
    attempts: int = 0
    final_url: str = ""
    fetch_ms: float = 0.0
    sha256: str = ""
    permitted: Permissions = ()
    is_skipped: bool = False

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
        """The failure of another image of the same document, which is skipped because of this one.

        It has the same kind and status, and so is retried if and only if this one is.

        Args:
            image: 0-based position in the sample of the image that failed.
        """
        detail = f"skipped: without image {image}, the document cannot become a row"
        return Failure(self.kind, detail, self.status, is_skipped=True)


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


@dataclass(frozen=True, slots=True)
class Body:
    """A response body that arrived whole.

    Attributes:
        content: The bytes, decompressed.
        final_url: Where redirects ended.
        attempts: Requests made for it, at least 1.
        fetch_ms: Wall-clock milliseconds of the attempt that succeeded, without queueing.
        permitted: What was taken by the operator's permission alone.
        part: Which bytes of the file it holds, where a byte range was requested; None for a whole file.
    """

    content: bytes
    final_url: str = ""
    attempts: int = 1
    fetch_ms: float = 0.0
    permitted: Permissions = ()
    part: PartialContent | None = None


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
