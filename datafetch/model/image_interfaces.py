"""Interfaces of what an image passes through: a fetcher and a transcoder, as the engine sees them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from datafetch.model.outcome import Fetched, Outcome
from datafetch.model.request import Request
from datafetch.model.statistics import Waiting

_Reservation_contra = TypeVar("_Reservation_contra", contravariant=True)


class FetchActivity(Protocol):
    """A snapshot of what is being fetched: the part of the fetcher's statistics that progress and report show."""

    @property
    def attempts(self) -> int:
        """Number of attempts that have ended, retries included."""
        ...

    @property
    def peak_open_requests(self) -> int:
        """The largest number of requests that were in flight at once."""
        ...

    @property
    def fetched_bytes(self) -> int:
        """Body bytes received so far, before decompression."""
        ...

    @property
    def connections(self) -> int:
        """Number of requests that may be in flight now, hanging ones not counted."""
        ...

    @property
    def open_requests(self) -> int:
        """Number of requests in flight now."""
        ...

    @property
    def waiting(self) -> Waiting | None:
        """What most calls wait for before they can send their next request; None if no call waits for its host."""
        ...


class Fetch(Protocol[_Reservation_contra]):
    """Fetches URLs, from any number of tasks of one event loop.

    Generic in the type of the memory reservation that bodies are counted against.
    """

    @property
    def retries(self) -> int:
        """Number of further attempts after a failure that may pass."""
        ...

    @property
    def max_connections(self) -> int:
        """Number of requests that may be in flight at any time."""
        ...

    @property
    def unused_proxy(self) -> str:
        """The environment variable that names a proxy which is not used; empty if there is none."""
        ...

    @property
    def used_proxies(self) -> str:
        """The proxies that are used, with the environment variables that name them; empty if there are none."""
        ...

    def call_limiter(self, calls_per_connection: int) -> AbstractAsyncContextManager[None]:
        """Make a limiter that admits this many calls for each connection; enter it around each call."""
        ...

    def statistics(self) -> FetchActivity:
        """Take a snapshot."""
        ...

    async def __call__(
        self, request: str | Request, *, memory: _Reservation_contra | None = None, until_s: float | None = None
    ) -> Fetched:
        """Fetch one file, or one range of its bytes.

        Args:
            request: A URL as published, or a ``Request`` for a part of a file or for an unchanged one.
            memory: The reservation that the body is counted against, for a caller that holds the body after the call.
            until_s: When the call ends at the latest, by the event loop's clock; None lets it end by itself.

        Returns:
            The body, or the failure of the last attempt; faults of the web are never raised.

        Raises:
            ResourceError: This machine has no descriptors or no memory for connections, or no name server that
                answers, no network or no proxy.
        """
        ...


class ImageTranscoder(Protocol):
    """Encodes response bodies as JPEGs, several at a time."""

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it as JPEG; a failure to fetch it is returned unchanged.

        Raises:
            ResourceError: This machine can no longer transcode images.
        """
        ...
