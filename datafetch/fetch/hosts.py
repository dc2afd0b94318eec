"""Hosts: how many requests each gets at once, when it wants us to wait, and whether it is there at all.

Rules: whoever waits here has sent nothing and holds no place among the open requests, so a slow host costs the others
nothing. The image that came first is asked for first, its retries included. A host that keeps failing is left alone for
a while; then one request finds out whether it is back.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, islice
from types import TracebackType
from typing import Self

_MAX_CONSECUTIVE_FAILURES = (
    5  # one image alone has three attempts by default, so it takes two of them to give up a host
)
_MAX_CONSECUTIVE_REFUSALS = 6  # with the pauses between them about a minute
_RECOVERY_PER_ANSWER = 1 / 8  # of the requests open at once that a host lost when it failed or refused
_DOWN_S = 30.0
_MAX_DOWN_S = 300.0
_MAX_DOUBLINGS = 8
_RECENT_ANSWER_S = 60.0  # so long after an answer a host counts as there, whatever times out
_JITTER = 1.2
_LOW_PRIORITY_OFFSET = 1 << 60  # more than there are images
_MAX_PAUSE_S = 60.0  # what Retry-After may ask for; past that, a later run is the better retry
_MAX_DELAY_S = 300.0  # by all pauses of one host together, for an open shard waits for them …
_DELAY_RETURNED_PER_ANSWER_S = 1.0  # … and so much more for each image that it answered
_MAX_KNOWN_HOSTS = 20_000  # that are remembered although nothing is under way: some 10 MB
_MAX_REFUSED_IMAGES = 1000  # that are remembered of a host
_EVICTION_CANDIDATES = 64  # of those used the longest ago, for one that is idle


class HostDownError(OSError):
    """The host failed repeatedly a moment ago, so it was not asked."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host} {reason}; not asked again for a while")


@dataclass(frozen=True, slots=True)
class HostStatistics:
    """A snapshot of the hosts.

    Attributes:
        known: Hosts with requests under way, or with something to remember.
        waiting: Requests that wait for their host's turn.
        paused: Hosts that asked us to wait.
        down: Hosts that are left alone because they failed.
    """

    known: int
    waiting: int
    paused: int
    down: int


@dataclass(order=True, slots=True)
class _Waiter:
    number: int
    tie: int
    granted: asyncio.Future[None] = field(compare=False)


@dataclass(slots=True, eq=False)
class _Host:
    """What is known of one host. Times are the loop's, in seconds; turns have serials, for clocks tick too slowly."""

    name: str
    limit: float
    open: int = 0
    consecutive_failures: int = 0
    consecutive_refusals: int = 0
    consecutive_outages: int = 0
    paused_at_serial: int = -1
    resume_at_s: float = 0.0
    delay_s: float = 0.0
    down_at_serial: int = -1
    retry_at_s: float = 0.0
    answered_at_s: float = -math.inf
    reason: str = ""
    waiting: list[_Waiter] = field(default_factory=list)
    refused: dict[int, int] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return not self.open and not self.waiting


class Hosts:
    """All hosts there are, to one fetcher; from any number of tasks of one event loop.

    Args:
        per_host: Requests open at once to one host.
        backoff_s: The first pause after a 429 or 503 that names none; it doubles from one to the next.
        on_wait: Told when a request begins to wait for its host's turn.

    Attributes:
        waiting: Requests that wait for their host's turn.
    """

    def __init__(self, per_host: int, backoff_s: float, on_wait: Callable[[], None] = lambda: None) -> None:
        self._per_host = per_host
        self._backoff_s = backoff_s
        self._on_wait = on_wait
        self.waiting = 0
        self._hosts: dict[str, _Host] = {}  # the one used last stands last
        self._serials = count()
        self._loop = asyncio.get_running_loop()

    def slot(self, host: str, number: int) -> HostSlot:
        """A turn to ask a host: ``async with hosts.turn(host, number) as turn: …``.

        Entering raises HostDownError while the host is left alone.

        Args:
            host: Name and port.
            number: Of the image; lower ones come first.
        """
        return HostSlot(self, self._get_or_create(host), number)

    def statistics(self) -> HostStatistics:
        """How it stands now."""
        now_s = self._loop.time()
        return HostStatistics(
            known=len(self._hosts),
            waiting=self.waiting,
            paused=sum(host.resume_at_s > now_s for host in self._hosts.values()),
            down=sum(host.consecutive_outages > 0 for host in self._hosts.values()),
        )

    async def acquire(self, slot: HostSlot) -> None:
        """Wait until it is this turn."""
        host, now_s = slot.host, self._loop.time()
        if host.consecutive_outages and (host.open or now_s < host.retry_at_s):
            raise HostDownError(host.name, host.reason)
        if not host.consecutive_outages and (host.waiting or host.open >= int(host.limit) or now_s < host.resume_at_s):
            # Who was refused once is the first to be asked for again; who was refused again lets all others go before.
            await self._wait(
                host, slot.number + _LOW_PRIORITY_OFFSET if host.refused.get(slot.number, 0) > 1 else slot.number
            )
        else:
            host.open += 1
        slot.serial = next(self._serials)

    def release(self, slot: HostSlot) -> None:
        """Let others have their turn."""
        self._leave(slot.host)

    def answered(self, slot: HostSlot) -> None:
        """The host gave this image its answer: it is there, and content."""
        host = slot.host
        host.consecutive_failures = host.consecutive_refusals = host.consecutive_outages = 0
        host.answered_at_s = self._loop.time()
        host.refused.pop(slot.number, None)
        host.limit = min(host.limit + _RECOVERY_PER_ANSWER, self._per_host)
        host.delay_s = max(0.0, host.delay_s - _DELAY_RETURNED_PER_ANSWER_S)

    def timed_out(self, slot: HostSlot, reason: str) -> None:
        """The answer did not come in time. That is a matter of the URL, as long as the host answers others."""
        if not self.answered_recently(slot):
            self.failed(slot, reason)

    def answered_recently(self, slot: HostSlot) -> bool:
        """Whether the host has answered a moment ago."""
        return self._loop.time() - slot.host.answered_at_s < _RECENT_ANSWER_S

    def failed(self, slot: HostSlot, reason: str) -> None:
        """There was no connection; the reason in words."""
        host = slot.host
        host.consecutive_failures += 1
        host.limit = max(1.0, host.limit / 2)  # it may be no more than slow, and is found dead with fewer requests
        is_probe = host.consecutive_outages > 0 and slot.serial > host.down_at_serial
        if is_probe or (not host.consecutive_outages and host.consecutive_failures >= _MAX_CONSECUTIVE_FAILURES):
            self._open_circuit(host, f"failed {host.consecutive_failures} times in a row ({reason})")

    def throttled(self, slot: HostSlot, pause_s: float | None) -> None:
        """The host asked us to come back later (429, 503): so much later, where it says so.

        Once, that is a matter of waiting; when it refuses the same image again, there were too many of us.
        """
        host, now_s = slot.host, self._loop.time()
        host.consecutive_failures = 0
        if len(host.refused) > _MAX_REFUSED_IMAGES:
            host.refused.clear()
        times = host.refused[slot.number] = host.refused.get(slot.number, 0) + 1
        if times > 1:
            host.limit = 1.0
        if slot.serial > host.paused_at_serial:  # the answers to requests of before the pause are one refusal together
            host.consecutive_refusals += times == 1  # one image that is always refused says nothing of the others
            host.paused_at_serial = next(self._serials)
            if host.consecutive_outages or host.consecutive_refusals >= _MAX_CONSECUTIVE_REFUSALS:
                self._open_circuit(host, f"refused {host.consecutive_refusals} times in a row")
                return
        if not self.may_wait_for(host.name):
            return
        if not pause_s:  # "now" was not true a moment ago
            pause_s = self._backoff_s * 2 ** max(0, host.consecutive_refusals - 1)
        pause_s *= random.uniform(1.0, _JITTER)  # noqa: S311 - no secret
        began_s = max(host.resume_at_s, now_s)
        host.resume_at_s = max(began_s, now_s + min(pause_s, _MAX_PAUSE_S))
        host.delay_s += host.resume_at_s - began_s

    def may_wait_for(self, host: str) -> bool:
        """Whether an image that a host refuses is worth a wait: it has not held us up for too long already."""
        known = self._hosts.get(host)
        return known is None or known.delay_s < _MAX_DELAY_S

    def _get_or_create(self, name: str) -> _Host:
        host = self._hosts.pop(name, None) or _Host(name, self._per_host)
        self._hosts[name] = host
        if len(self._hosts) > _MAX_KNOWN_HOSTS:
            for oldest in islice(self._hosts.values(), _EVICTION_CANDIDATES):
                if oldest.is_idle:
                    del self._hosts[oldest.name]
                    break
        return host

    async def _wait(self, host: _Host, number: int) -> None:
        """Wait for a turn; at the end it is counted among the open ones."""
        waiter = _Waiter(number, next(self._serials), self._loop.create_future())
        heapq.heappush(host.waiting, waiter)
        self._admit(host)
        self.waiting += 1
        self._on_wait()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in host.waiting:
                host.waiting.remove(waiter)
                heapq.heapify(host.waiting)
            elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self._leave(host)  # the turn came in the same instant
            raise
        finally:
            self.waiting -= 1

    def _leave(self, host: _Host) -> None:
        host.open -= 1
        self._admit(host)
        if host.is_idle and not (
            host.consecutive_failures
            or host.consecutive_refusals
            or host.consecutive_outages
            or host.refused
            or host.delay_s
        ):
            self._hosts.pop(host.name, None)

    def _admit(self, host: _Host) -> None:
        """Let in who may, and come back when a pause ends."""
        if host.waiting and self._loop.time() < host.resume_at_s:
            if host.timer is None:
                host.timer = self._loop.call_at(host.resume_at_s, self._wake, host)
            return
        while host.waiting and host.open < int(host.limit):
            waiter = heapq.heappop(host.waiting)
            if not waiter.granted.done():  # cancelled, and about to leave
                host.open += 1
                waiter.granted.set_result(None)

    def _wake(self, host: _Host) -> None:
        host.timer = None
        self._admit(host)

    def _open_circuit(self, host: _Host, reason: str) -> None:
        host.retry_at_s = self._loop.time() + min(
            _DOWN_S * 2 ** min(host.consecutive_outages, _MAX_DOUBLINGS), _MAX_DOWN_S
        )
        host.consecutive_outages += 1
        host.down_at_serial = next(self._serials)
        host.reason = reason
        for waiter in host.waiting:
            if not waiter.granted.done():
                waiter.granted.set_exception(HostDownError(host.name, reason))
        host.waiting.clear()


class HostSlot:
    """One request's turn at its host, and what came of it."""

    __slots__ = ("_hosts", "host", "number", "serial")

    def __init__(self, hosts: Hosts, host: _Host, number: int) -> None:
        self._hosts = hosts
        self.host = host
        self.number = number
        self.serial = -1

    async def __aenter__(self) -> Self:
        await self._hosts.acquire(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hosts.release(self)

    @property
    def host_was_healthy(self) -> bool:
        """Whether the host has not failed of late."""
        return not self.host.consecutive_failures

    @property
    def host_answered_recently(self) -> bool:
        """Whether the host has answered a moment ago."""
        return self._hosts.answered_recently(self)

    def answered(self) -> None:
        """The host gave an answer."""
        self._hosts.answered(self)

    def failed(self, reason: str) -> None:
        """There was no connection."""
        self._hosts.failed(self, reason)

    def timed_out(self, reason: str) -> None:
        """The answer did not come in time."""
        self._hosts.timed_out(self, reason)

    def throttled(self, pause_s: float | None) -> None:
        """The host asked us to come back later."""
        self._hosts.throttled(self, pause_s)
