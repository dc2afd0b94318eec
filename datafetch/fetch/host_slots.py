"""Interfaces of the slots of hosts, wherever the requests to a host are counted."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from datafetch.fetch.hosts import HostStatistics


class HostSlot(Protocol):
    """One request's slot at its host, through which its outcome is reported."""

    async def __aenter__(self) -> Self:
        """Wait until the slot is granted.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def host_was_healthy(self) -> bool:
        """Whether the host has not failed since its last answer."""
        ...

    @property
    def host_answered_recently(self) -> bool:
        """Whether the host has answered within the last minute."""
        ...

    def answered(self) -> None:
        """Report an answer that is no refusal."""
        ...

    def failed(self, reason: str) -> None:
        """Report that there was no connection, or that what answered is no web server."""
        ...

    def timed_out(self, reason: str) -> None:
        """Report that no answer came in time."""
        ...

    def throttled(self, pause_s: float | None, refusal: str = "") -> None:
        """Report that the host asked for a pause, for how long if it said, and how it asked, in words."""
        ...


class HostSlots(Protocol):
    """The slots of all hosts."""

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot at their host."""
        ...

    def slot(self, host: str, number: int) -> HostSlot:
        """Make a slot at a host, by host and port, for an image, by its number."""
        ...

    def may_wait_for(self, host: str) -> bool:
        """Whether a request that a host refuses may be repeated after a pause: it has not caused too much delay yet."""
        ...

    def statistics(self) -> HostStatistics:
        """Take a snapshot."""
        ...

    def waiting_by_host(self) -> Iterator[tuple[str, int]]:
        """Each host with requests that wait for a slot, and how many."""
        ...

    def why_waiting(self, name: str) -> tuple[str, float | None]:
        """Why requests wait for a host, and when its pause ends by the loop's clock; None if it is not paused."""
        ...
