"""Ranges of the bytes of one large file, on a server or on this machine.

Theory of operation, for a server: a range is read in parts, each by a request of its own. How large a part may be is
learned: it grows while parts arrive in time, and shrinks when one takes long or fails. So a server that closes each
connection after a minute, one that sends no more than a megabyte at a time, and a slow link all lose little, and a fast
link is not held up by the time that a request takes. Each part is requested of the file's own URL: what that
redirects to may be a signed URL that expires within minutes.

Rules: no part of another version of the file is ever returned. That a file is gone, may not be read, or has changed is
the operator's to mend, and so an exception; all else that happens on the way is a ``Failure``.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from datafetch.errors import STARTS_OVER, ManifestError, unreadable
from datafetch.fetch.fetcher import Fetcher
from datafetch.model.location import without_secrets
from datafetch.model.outcome import Body, Failure, FailureKind, Permission, Permissions
from datafetch.model.request import ByteRange, Request

MAX_PART_BYTES = 8 * 1024 * 1024
"""How much one request asks for at most."""
_FIRST_PART_BYTES = 256 * 1024
_MIN_PART_BYTES = 64 * 1024
_MIN_SENT_BYTES = 1024
"""A server that sends less of a longer range is given up: such files have millions of kilobytes."""
_PAUSE_S = 5.0
_MAX_DOWN_S = 120.0  # as long as it takes to restart a server
_MAX_FAILED_RANGES = 16
_PART_S = 8.0  # a part should take no longer, because it is lost when its connection is cut
_MS_PER_S = 1000.0
_CUT = frozenset({FailureKind.DISCONNECTED, FailureKind.TIMEOUT})
"""Failures of a part that a smaller one may not have."""

_FINAL_STATUSES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the server wants a login; give a URL with one, as https://USER:TOKEN@…",
    HTTPStatus.FORBIDDEN: "the server refuses it (HTTP 403); if it is a signed URL, give a new one",
    HTTPStatus.NOT_FOUND: "the server has no such file (HTTP 404); check the URL (that of a folder ends with /)",
    HTTPStatus.GONE: "the server no longer has the file (HTTP 410); give another URL",
}
_RANGES_IGNORED = (
    "the server does not serve parts of the file; download it with a program that resumes, such as curl -C -, and give "
    "its path instead of the URL"
)


class FileChangedError(ManifestError):
    """The file is no longer the one that was read before."""


class RefusedError(ManifestError):
    """The server refuses the file.

    Attributes:
        status: The HTTP status with which it does: 401, 403, 404 or 410.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NoRangesError(ManifestError):
    """The server does not serve parts of the file, or does not say how large it is."""


class Range:
    """What was read of a file.

    Attributes:
        content: The bytes.
        permitted: The permissions that were needed for them.
        attempts: The number of attempts, at least 1.
        fetch_ms: Wall-clock milliseconds that it took.
    """

    __slots__ = ("attempts", "content", "fetch_ms", "permitted")

    def __init__(self, content: bytes, permitted: Permissions = (), attempts: int = 1, fetch_ms: float = 0.0) -> None:
        self.content = content
        self.permitted = permitted
        self.attempts = attempts
        self.fetch_ms = fetch_ms


class RangeReader(Protocol):
    """Reads ranges of the bytes of one file, several at a time.

    Attributes:
        total_bytes: Size of the file; None if it is not known yet.
        etag: Its strong entity tag; empty if a server gives none, or it is on this machine.
    """

    total_bytes: int | None
    etag: str

    @property
    def span_bytes(self) -> int:
        """How much should be read at once now."""
        ...

    async def read(self, start: int, stop: int) -> Range | Failure:
        """Read a range.

        Args:
            start: Offset of the first byte.
            stop: Offset behind the last byte.

        Returns:
            All of the range, or why it could not be read.

        Raises:
            ManifestError: The file can't be read at all, or has changed.
        """
        ...


class RemoteRanges:
    """Ranges of a file on a server.

    Args:
        fetch: Makes the requests.
        url: The file's URL; it may have secrets, which no message repeats.
        max_part_bytes: How much one request asks for at most; never more than ``MAX_PART_BYTES``.
        total_bytes: Size of the file, where it is known; another size means that it has changed.
        etag: Its strong entity tag, where it is known.
        name: The file in messages; empty takes the URL without secrets.

    Attributes:
        total_bytes: Size of the file; None until the first response.
        etag: Its strong entity tag; empty if the server gives none.
    """

    def __init__(
        self,
        fetch: Fetcher,
        url: str,
        *,
        max_part_bytes: int = MAX_PART_BYTES,
        total_bytes: int | None = None,
        etag: str = "",
        name: str = "",
    ) -> None:
        self.total_bytes = total_bytes
        self.etag = etag
        self._fetch = fetch
        self._url = url
        self._name = name or without_secrets(url)
        self._max_part_bytes = min(MAX_PART_BYTES, max_part_bytes)
        self._part_bytes = min(_FIRST_PART_BYTES, self._max_part_bytes)
        self._failed_ranges = 0  # in a row
        self._down_since_s: float | None = None  # when the host was first found to be down, since a range arrived

    @property
    def span_bytes(self) -> int:
        """How much should be read at once now: a part."""
        return self._part_bytes

    async def find_size(self) -> int:
        """Ask for the file's size, and whether it can be read by ranges.

        Raises:
            ManifestError: It can't be read.
        """
        read = await self.read(0, 1)
        if isinstance(read, Failure):
            # The detail of an address that is refused says what would allow it.
            advice = "" if read.kind is FailureKind.BLOCKED_ADDRESS else "; check the URL, or try again later"
            raise ManifestError(f"{self._name} can't be read: {read.detail}{advice}")
        if self.total_bytes is None:
            raise NoRangesError(
                f"{self._name}: the server does not say how large the file is; give another URL, or a copy of the file"
            )
        return self.total_bytes

    async def read(self, start: int, stop: int) -> Range | Failure:
        """Read a range, part by part."""
        pieces: list[bytes] = []
        permitted: set[Permission] = set()
        attempts, position = 0, start
        limit_bytes = self._max_part_bytes  # for this range alone: what others learn must not undo what this one did
        started_s = time.perf_counter()
        while position < stop:
            part_stop = min(stop, position + min(self._part_bytes, limit_bytes))
            part_started_s = time.perf_counter()
            fetched = await self._fetch(self._request(position, part_stop))
            attempts = max(attempts, fetched.attempts)
            if isinstance(fetched, Failure):
                self._refuse_final(fetched)
                if fetched.kind is FailureKind.HOST_DOWN and self._is_worth_waiting():
                    await asyncio.sleep(_PAUSE_S)
                elif fetched.kind in _CUT and part_stop - position > _MIN_PART_BYTES:
                    limit_bytes = max(_MIN_PART_BYTES, (part_stop - position) // 2)
                    self._shrink()
                else:
                    return self._failed(fetched)
                continue
            self._check_unchanged(fetched)
            self._learn(part_stop - position, len(fetched.content), time.perf_counter() - part_started_s)
            permitted.update(fetched.permitted)
            pieces.append(fetched.content)
            position += len(fetched.content)
            if len(fetched.content) < min(part_stop - position, _MIN_SENT_BYTES):
                detail = "the server sends only a few bytes of a range at a time"
                return self._failed(Failure(FailureKind.DISCONNECTED, detail, attempts=attempts))
        self._failed_ranges, self._down_since_s = 0, None
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Range(content, tuple(sorted(permitted)), attempts, (time.perf_counter() - started_s) * _MS_PER_S)

    def _is_worth_waiting(self) -> bool:
        """Whether the host, which is backed off, has been down for so short a time that it may come back."""
        now_s = time.monotonic()
        self._down_since_s = self._down_since_s or now_s
        return now_s - self._down_since_s < _MAX_DOWN_S

    def _failed(self, failure: Failure) -> Failure:
        """The failure of a range, without a URL.

        Raises:
            ManifestError: So many have failed one after the other that the file can't be had now.
        """
        failure = replace(failure, final_url="", detail=describe(failure))
        self._failed_ranges += 1
        if self._failed_ranges >= _MAX_FAILED_RANGES:
            raise ManifestError(
                f"{self._name} can't be read now ({failure.detail}); run the same command again later to resume"
            )
        return failure

    def _request(self, start: int, stop: int) -> Request:
        return Request(self._url, ByteRange(start, stop), self.etag)

    def _check_unchanged(self, body: Body) -> None:
        part = body.part
        assert part is not None, "a range was requested"
        if self.total_bytes is None:
            self.total_bytes, self.etag = part.total_bytes, part.etag
        if part.total_bytes not in (None, self.total_bytes) or (self.etag and part.etag not in ("", self.etag)):
            raise self._changed()

    def _refuse_final(self, failure: Failure) -> None:
        """Stop for what no other request of this file could change.

        Raises:
            ManifestError: The file can't be read, or has changed.
        """
        if failure.kind is not FailureKind.HTTP_STATUS or failure.status is None:
            return
        if failure.status == HTTPStatus.PARTIAL_CONTENT and self.total_bytes is not None:
            raise self._changed()  # it is shorter now, or the server sends other parts than it is asked for
        if failure.status == HTTPStatus.OK:
            raise self._changed() if self.etag else NoRangesError(f"{self._name}: {_RANGES_IGNORED}")
        if failure.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ManifestError(f"{self._name} is empty") if self.total_bytes is None else self._changed()
        reason = _FINAL_STATUSES.get(failure.status)
        if reason is not None:
            raise RefusedError(f"{self._name}: {reason}", failure.status)

    def _changed(self) -> FileChangedError:
        return FileChangedError(f"{self._name} has changed on the server since it was first read; {STARTS_OVER}")

    def _learn(self, requested_bytes: int, received_bytes: int, elapsed_s: float) -> None:
        """Adapt the size of parts to how fast this one came, and to how much the server sent of it."""
        if received_bytes < requested_bytes:
            self._part_bytes = max(min(_MIN_PART_BYTES, self._max_part_bytes), min(self._part_bytes, received_bytes))
        elif elapsed_s > _PART_S:
            self._shrink()
        elif 2 * requested_bytes > self._part_bytes and elapsed_s < _PART_S / 2:
            self._part_bytes = min(self._max_part_bytes, self._part_bytes * 2)

    def _shrink(self) -> None:
        self._part_bytes = max(min(_MIN_PART_BYTES, self._max_part_bytes), self._part_bytes // 2)


class LocalRanges:
    """Ranges of a file on this machine.

    Args:
        path: The file.
        total_bytes: Its size when it was first read.
        max_span_bytes: How much is read at once at most; never more than ``MAX_PART_BYTES``.
    """

    def __init__(self, path: Path, total_bytes: int, max_span_bytes: int = MAX_PART_BYTES) -> None:
        self.total_bytes: int | None = total_bytes
        self.etag = ""
        self.span_bytes = min(MAX_PART_BYTES, max_span_bytes)
        self._path = path

    async def read(self, start: int, stop: int) -> Range | Failure:
        """Read a range."""
        started_s = time.perf_counter()
        content = await asyncio.to_thread(self._read, start, stop)
        return Range(content, fetch_ms=(time.perf_counter() - started_s) * _MS_PER_S)

    def _read(self, start: int, stop: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == self.total_bytes:
                    file.seek(start)
                    content = file.read(stop - start)
                    if len(content) == stop - start:
                        return content
        except OSError as error:
            raise unreadable(self._path, error) from error
        raise FileChangedError(f"{self._path} has changed since it was first read; {STARTS_OVER}")


def describe(failure: Failure) -> str:
    """Describe a failure without any URL, because that of the file may be a secret."""
    if failure.kind is FailureKind.HTTP_STATUS:
        return f"HTTP {failure.status}"
    if failure.kind in (FailureKind.TOO_MANY_REDIRECTS, FailureKind.BAD_URL):
        return failure.kind.value
    return f"{failure.kind.value}: {failure.detail}"[:300]
