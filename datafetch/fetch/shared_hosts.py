"""SharedHosts: the slots of hosts whose requests come from several processes, each host being counted by one of them.

Theory of operation. Every host has an owner among the processes, which follows from its name. The owner has the host's
state (``Hosts``), for its own requests and for those of all others: another process asks it for a slot, and reports
through that slot what became of the request. So limits, pauses and the circuit breaker hold for all processes together,
and they mean the same as in one process.

What the owner knows of a host comes with the slot, and is as old as that. A process adds what it has seen since: an
answer that it got itself is known at once. That a host has used up its pauses, a process learns with its next slot
there; until then each of its images that waits for the host may send one request more than in a single process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from datafetch.fetch.host_slots import HostSlot
from datafetch.fetch.hosts import RECENT_ANSWER_S, Hosts, HostStatistics, OwnSlot

_MAX_EXHAUSTED_HOSTS = 20_000  # that are not waited for; remembered


class SlotReport(StrEnum):
    """What became of a request, for its host."""

    ANSWERED = "answered"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class HostState:
    """What the owner of a host knew of it when it granted a slot.

    Attributes:
        was_healthy: Whether it had not failed since its last answer.
        answered_ago_s: How long ago it had last answered; None if it never had.
        may_wait: Whether a request that it refuses may be repeated after a pause.
    """

    was_healthy: bool
    answered_ago_s: float | None
    may_wait: bool


class LentSlot(Protocol):
    """A slot that the owner of a host has granted to another process."""

    @property
    def state(self) -> HostState:
        """What the owner knew of the host by then."""
        ...

    def report(self, what: SlotReport, reason: str = "", pause_s: float | None = None) -> None:
        """Report what became of the request."""
        ...

    def release(self) -> None:
        """Give the slot back."""
        ...


class HostOwner(Protocol):
    """Another process, which counts the requests to some hosts."""

    async def acquire(self, host: str, number: int) -> LentSlot:
        """Wait until a slot is granted.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        ...


class SharedHosts:
    """The slots of all hosts, for any number of tasks of one event loop, and as the owner of some for other processes.

    Args:
        own: Those of the hosts that this process owns.
        owner_of: Returns who owns a host, by host and port; None if this process does.
        on_wait: Called when a request begins to wait for a slot.

    Attributes:
        own: The hosts that this process owns.
    """

    def __init__(
        self, own: Hosts, owner_of: Callable[[str], HostOwner | None], on_wait: Callable[[], None] = lambda: None
    ) -> None:
        self.own = own
        self._owner_of = owner_of
        self._on_wait = on_wait
        self._waiting = 0
        self._waiting_of_others = 0
        self._exhausted: dict[str, None] = {}  # hosts of others that are not waited for
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """Number of requests of this process that wait for a slot at their host, or for the answer of its owner."""
        return self.own.waiting - self._waiting_of_others + self._waiting

    def slot(self, host: str, number: int) -> HostSlot:
        """Make a slot at a host, as ``Hosts.slot`` does."""
        owner = self._owner_of(host)
        return self.own.slot(host, number) if owner is None else _SlotOfOther(self, owner, host, number)

    def may_wait_for(self, host: str) -> bool:
        """Whether a request that a host refuses may be repeated after a pause: it has not caused too much delay yet."""
        return host not in self._exhausted and self.own.may_wait_for(host)

    def statistics(self) -> HostStatistics:
        """Take a snapshot of the hosts that this process owns."""
        return self.own.statistics()

    def waiting_by_host(self) -> Iterator[tuple[str, int]]:
        """Each host that this process owns with requests that wait for a slot, of all processes, and how many."""
        return self.own.waiting_by_host()

    def why_waiting(self, name: str) -> tuple[str, float | None]:
        """Why requests wait for a host, and when its pause ends by the loop's clock; None if it is not paused."""
        return self.own.why_waiting(name)

    async def acquire_for_other(self, slot: OwnSlot) -> None:
        """Wait until a slot is granted at a host that this process owns, for a request of another one.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        self._waiting_of_others += 1
        try:
            await self.own.acquire(slot)
        finally:
            self._waiting_of_others -= 1

    async def acquire(self, owner: HostOwner, host: str, number: int) -> LentSlot:
        """Wait until the owner of a host grants a slot.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        self._waiting += 1
        self._on_wait()
        try:
            slot = await owner.acquire(host, number)
        finally:
            self._waiting -= 1
        if slot.state.may_wait:
            self._exhausted.pop(host, None)
        else:
            if len(self._exhausted) >= _MAX_EXHAUSTED_HOSTS:
                self._exhausted.clear()
            self._exhausted[host] = None
        return slot


class _SlotOfOther:
    """A slot at a host that another process owns."""

    __slots__ = ("_answered_at_s", "_host", "_hosts", "_lent", "_loop", "_number", "_owner")

    _lent: LentSlot

    def __init__(self, hosts: SharedHosts, owner: HostOwner, host: str, number: int) -> None:
        self._hosts = hosts
        self._owner = owner
        self._host = host
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._answered_at_s: float | None = None

    async def __aenter__(self) -> Self:
        self._lent = await self._hosts.acquire(self._owner, self._host, self._number)
        ago_s = self._lent.state.answered_ago_s
        self._answered_at_s = None if ago_s is None else self._loop.time() - ago_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lent.release()

    @property
    def host_was_healthy(self) -> bool:
        """Whether the host had not failed since its last answer."""
        return self._lent.state.was_healthy

    @property
    def host_answered_recently(self) -> bool:
        """Whether the host has answered within the last minute."""
        return self._answered_at_s is not None and self._loop.time() - self._answered_at_s < RECENT_ANSWER_S

    def answered(self) -> None:
        """Report an answer that is no refusal."""
        self._answered_at_s = self._loop.time()
        self._lent.report(SlotReport.ANSWERED)

    def failed(self, reason: str) -> None:
        """Report that there was no connection, or that what answered is no web server."""
        self._lent.report(SlotReport.FAILED, reason)

    def timed_out(self, reason: str) -> None:
        """Report that no answer came in time."""
        self._lent.report(SlotReport.TIMED_OUT, reason)

    def throttled(self, pause_s: float | None, refusal: str = "") -> None:
        """Report that the host asked for a pause, for how long if it said, and how it asked, in words."""
        self._lent.report(SlotReport.THROTTLED, refusal, pause_s)


def state_of(hosts: Hosts, host: str) -> HostState:
    """What the owner of a host tells with a slot."""
    answered_ago_s = hosts.answered_ago_s(host)
    return HostState(hosts.is_healthy(host), answered_ago_s, hosts.may_wait_for(host))
