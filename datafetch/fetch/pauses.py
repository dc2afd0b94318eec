"""Pauses: which calls wait before their next attempt, for whoever asks what a run is waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """One call's wait before its next attempt.

    Attributes:
        reason: Why the last attempt failed, in a few words.
        until_s: When it ends, by the event loop's clock.
    """

    reason: str
    until_s: float


class Pauses:
    """The pauses of all calls of a fetcher; there are at most as many as calls."""

    def __init__(self) -> None:
        self._by_host: dict[str, set[Pause]] = {}

    async def pause(self, seconds: float, host: str, reason: str) -> None:
        """Wait before the next attempt.

        Args:
            seconds: How long.
            host: The host and port that the last attempt failed at.
            reason: Why it failed, in a few words.
        """
        one = Pause(reason, asyncio.get_running_loop().time() + seconds)
        of_host = self._by_host.setdefault(host, set())
        of_host.add(one)
        try:
            await asyncio.sleep(seconds)
        finally:
            of_host.discard(one)
            if not of_host:
                self._by_host.pop(host, None)

    def by_host(self) -> Iterator[tuple[str, int]]:
        """Each host with calls that pause, and how many."""
        for host, pauses in self._by_host.items():
            yield host, len(pauses)

    def first_of(self, host: str) -> Pause | None:
        """The pause at a host that ends first; None if there is none."""
        return min(self._by_host.get(host, ()), key=lambda one: one.until_s, default=None)
