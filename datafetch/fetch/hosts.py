"""Hosts: the slots of each host, the pauses that hosts ask for, and a circuit breaker for hosts that are down.

Theory of operation. A request enters its host's slot before anything else and leaves it with its outcome. A host is in
one of three states:

* Open. Up to ``limit`` requests are in flight, and others wait. A failure halves the limit and each answer returns a
  little of it, because a host that fails may just be slow.
* Paused, after a 429 or a 503. Nothing is sent until ``resume_at_s``. The pause is the one that the host asks for, or
  else an exponential back-off. All answers to requests sent before the pause began count as one refusal.
* Down: the circuit is open. ``_MAX_CONSECUTIVE_FAILURES`` failures or ``_MAX_CONSECUTIVE_REFUSALS`` refusals with no
  answer in between lead here. All waiting requests fail at once with HostDownError, and so do new ones until
  ``retry_at_s``. Then one request is let through as a probe. If it is answered, the host is open again with all counts
  at zero; if it fails, the host stays down for twice as long.

Any answer that is no refusal, even 404, shows that the host is there, so it resets the counts of failures and refusals.
Outcomes arrive in another order than their requests were sent in, and clocks tick too slowly to tell which came first.
So slots and state changes draw serial numbers from one counter: what happened to a request with a lower serial than
the state it meets is old news and changes nothing.

Requests of one host go in the order in which their images came, retries included, so that no image waits for ever.
The one exception is an image that the host has refused twice: it goes behind all others, so that they can show whether
the host answers at all.

Pauses of all lengths together are bounded by ``_MAX_DELAY_S`` for each host, because open shards wait for their images;
every answer returns a second of that. A host that has used it up is no longer paused for, and ``may_wait_for`` tells
the fetcher not to retry what it refuses.

Rules: a request that waits here has sent nothing and holds no slot among the requests in flight, so that a slow host
costs the others nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from types import TracebackType
from typing import NamedTuple, Self

from datafetch.model.wording import counted

_MAX_CONSECUTIVE_FAILURES = 5  # an image has three attempts by default, so it takes at least two images
_MAX_CONSECUTIVE_REFUSALS = 6  # about a minute, with the pauses between them
_RECOVERY_PER_ANSWER = 1 / 8  # of a slot that a host lost when it failed or refused
_DOWN_S = 30.0
_MAX_DOWN_S = 300.0
_MAX_DOUBLINGS = 8
RECENT_ANSWER_S = 60.0
"""Within this time after an answer, timeouts don't count as failures of the host."""
_JITTER = 1.2
_LOW_PRIORITY_OFFSET = 1 << 60  # more than there are images
_MAX_PAUSE_S = 60.0  # the longest Retry-After that is obeyed; beyond it a later run is the better retry
_MAX_DELAY_S = 300.0
_DELAY_RETURNED_PER_ANSWER_S = 1.0
_MAX_KNOWN_HOSTS = 20_000  # remembered while no request is in flight; about 10 MB
_MAX_REFUSED_IMAGES = 1000  # remembered for one host
_EVICTION_CANDIDATES = 64  # least recently used hosts that are searched for an idle one


class HostDownError(OSError):
    """The host failed repeatedly a moment ago, so nothing was sent to it.

    Args:
        reason: What it did, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the host {reason}; no request is sent to it for a while")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HostStatistics:
    """A snapshot of the hosts.

    Attributes:
        known: Number of hosts with requests in flight, or with a history that is still needed.
        waiting: Number of requests that wait for a slot at their host.
        paused: Number of hosts that are paused because they asked for it.
        down: Number of hosts that are down.
    """

    known: int
    waiting: int
    paused: int
    down: int


@dataclass(frozen=True, slots=True)
class Suspension:
    """Why nothing is sent to a host for a while; another process that counts its requests from now on has to know it.

    Attributes:
        pause_s: How long it is paused from now on; 0 if it is not.
        refusal: How it asked for the pause, in words.
        refusals: How many pauses it has asked for since its last answer.
        delay_s: How much of the time for which it may be paused has been used up.
        down_s: How long it is down from now on, until a probe is sent; 0 if it is not.
        outages: How often it was found to be down since its last answer.
        reason: Why it is down, in words.
    """

    pause_s: float = 0.0
    refusal: str = ""
    refusals: int = 0
    delay_s: float = 0.0
    down_s: float = 0.0
    outages: int = 0
    reason: str = ""

    def after(self, passed_s: float) -> Suspension | None:
        """What is left of it after a time, in seconds; None if it has ended."""
        pause_s, down_s = max(0.0, self.pause_s - passed_s), max(0.0, self.down_s - passed_s)
        return replace(self, pause_s=pause_s, down_s=down_s) if pause_s or down_s else None


class _Waiter(NamedTuple):
    """A request that waits for a slot; the lowest priority number goes first, then the lowest serial.

    It is a tuple because a heap compares its elements often, and tuples compare in C; no two have the same serial.
    """

    priority: int
    serial: int
    granted: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Host:
    """The state of one host. Times are the event loop's, in seconds; see the module for serials.

    Attributes:
        name: Host and port.
        limit: Slots that it has now; fractions count up to a whole one.
        open: Slots that are taken.
        consecutive_failures: Failures since its last answer.
        consecutive_refusals: Pauses it asked for since its last answer.
        consecutive_outages: How often its circuit has opened since its last answer; 0 unless it is down.
        paused_at_serial: Serial of its latest refusal.
        resume_at_s: When the pause ends.
        refusal: How it asked for its latest pause, such as "HTTP 503".
        delay_s: How much of ``_MAX_DELAY_S`` its pauses have used up.
        down_at_serial: Serial of the moment in which its circuit last opened.
        retry_at_s: From when on a probe may be sent.
        answered_at_s: When it last answered.
        reason: Why it is down, in words.
        waiting: A heap of the requests that wait for a slot.
        refused: For each image that it refused and has not answered since, how often.
        timer: Runs while requests wait for the end of a pause.
    """

    name: str
    limit: float
    open: int = 0
    consecutive_failures: int = 0
    consecutive_refusals: int = 0
    consecutive_outages: int = 0
    paused_at_serial: int = -1
    resume_at_s: float = 0.0
    refusal: str = ""
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
    """All hosts that one fetcher deals with, for any number of tasks of one event loop.

    Args:
        per_host: Number of requests in flight to one host at once.
        backoff_s: Length of the first pause after a 429 or 503 that names none; it doubles with each further one.
        on_wait: Called when a request begins to wait for a slot.

    Attributes:
        waiting: Number of requests that wait for a slot at their host.
    """

    def __init__(self, per_host: int, backoff_s: float, on_wait: Callable[[], None] = lambda: None) -> None:
        self._per_host = per_host
        self._backoff_s = backoff_s
        self._on_wait = on_wait
        self.waiting = 0
        self._on_suspend: Callable[[str], None] = lambda _: None
        self._hosts: dict[str, _Host] = {}  # in order of use, the most recently used one last
        self._waited_for: dict[str, _Host] = {}  # those with requests that wait for a slot
        self._serials = count()
        self._loop = asyncio.get_running_loop()

    @property
    def per_host(self) -> int:
        """How many requests may be in flight to one host."""
        return self._per_host

    def limit_to(self, per_host: int) -> None:
        """Set how many requests may be in flight to one host; those that are beyond it end first."""
        is_raised = per_host > self._per_host
        for host in self._hosts.values():
            # A host that had all of its slots gets all of the new ones; one that has failed earns them as before.
            has_all = host.limit >= self._per_host
            host.limit = float(per_host) if is_raised and has_all else min(host.limit, per_host)
            self._admit(host)
        self._per_host = per_host

    @property
    def are_within_limit(self) -> bool:
        """Whether no host has more requests in flight than may be, as after the number was lowered."""
        return all(host.open <= self._per_host for host in self._hosts.values())

    def watch_suspensions(self, on_suspend: Callable[[str], None]) -> None:
        """Let a function be called with the host whenever a host is suspended, or for longer, or answers again."""
        self._on_suspend = on_suspend

    def suspension(self, name: str) -> Suspension | None:
        """Why nothing is sent to a host now; None if it is not suspended."""
        host = self._hosts.get(name)
        if host is None:
            return None
        now_s = self._loop.time()
        return Suspension(
            pause_s=host.resume_at_s - now_s,
            refusal=host.refusal,
            refusals=host.consecutive_refusals,
            delay_s=host.delay_s,
            down_s=host.retry_at_s - now_s if host.consecutive_outages else 0.0,
            outages=host.consecutive_outages,
            reason=host.reason,
        ).after(0.0)

    def suspensions(self) -> Iterator[tuple[str, Suspension]]:
        """All hosts that are suspended now."""
        for name in tuple(self._hosts):
            if (suspension := self.suspension(name)) is not None:
                yield name, suspension

    def suspend(self, name: str, suspension: Suspension) -> None:
        """Suspend a host as another process had, which counted its requests before."""
        host, now_s = self._get_or_create(name), self._loop.time()
        if suspension.pause_s:
            host.resume_at_s = max(host.resume_at_s, now_s + min(suspension.pause_s, _MAX_PAUSE_S))
            host.refusal = suspension.refusal
            host.consecutive_refusals = max(host.consecutive_refusals, suspension.refusals)
            host.delay_s = max(host.delay_s, min(suspension.delay_s, _MAX_DELAY_S))
            host.paused_at_serial = next(self._serials)
        if suspension.down_s:
            host.retry_at_s = max(host.retry_at_s, now_s + min(suspension.down_s, _MAX_DOWN_S))
            host.consecutive_outages = max(host.consecutive_outages, suspension.outages)
            host.reason = suspension.reason
            host.down_at_serial = next(self._serials)

    def slot(self, host: str, number: int) -> OwnSlot:
        """Make a slot at a host: ``async with hosts.slot(host, number) as slot: …`` waits until it is granted.

        Entering raises HostDownError while the host is down.

        Args:
            host: Host and port.
            number: The image's number; images with lower ones go first.
        """
        return OwnSlot(self, self._get_or_create(host), number)

    def statistics(self) -> HostStatistics:
        """Take a snapshot."""
        now_s = self._loop.time()
        return HostStatistics(
            known=len(self._hosts),
            waiting=self.waiting,
            paused=sum(host.resume_at_s > now_s for host in self._hosts.values()),
            down=sum(host.consecutive_outages > 0 for host in self._hosts.values()),
        )

    def waiting_by_host(self) -> Iterator[tuple[str, int]]:
        """Each host with requests that wait for a slot, and how many."""
        for name, host in self._waited_for.items():
            if host.waiting:
                yield name, len(host.waiting)

    def why_waiting(self, name: str) -> tuple[str, float | None]:
        """Why requests wait for a host, and when its pause ends by the loop's clock; None if it is not paused."""
        host = self._hosts.get(name)
        if host is None:
            return "", None
        if self._loop.time() < host.resume_at_s:
            return host.refusal, host.resume_at_s
        return f"{counted(int(host.limit), 'request')} at a time", None

    async def acquire(self, slot: OwnSlot) -> None:
        """Wait until a slot is granted.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        if not self.try_acquire(slot):
            host = slot.host
            # An image that was refused once keeps its place at the front; one refused again lets all others go first.
            is_last = host.refused.get(slot.number, 0) > 1
            await self._wait(host, slot.number + _LOW_PRIORITY_OFFSET if is_last else slot.number)
            slot.serial = next(self._serials)

    def try_acquire(self, slot: OwnSlot) -> bool:
        """Take a slot if it can be had without waiting; return whether it was taken.

        Raises:
            HostDownError: The host is down.
        """
        host, now_s = slot.host, self._loop.time()
        is_down = host.consecutive_outages > 0
        if is_down and (host.open or now_s < host.retry_at_s):
            raise HostDownError(host.reason)
        if not is_down and (host.waiting or host.open >= int(host.limit) or now_s < host.resume_at_s):
            return False
        self.adopt(slot)
        return True

    def adopt(self, slot: OwnSlot) -> None:
        """Count a slot as taken without asking whether there is room: its request was sent before anybody counted."""
        slot.host.open += 1
        slot.serial = next(self._serials)

    def release(self, slot: OwnSlot) -> None:
        """Give a slot back, to the next request that waits."""
        self._leave(slot.host)

    def answered(self, slot: OwnSlot) -> None:
        """Record that the host answered, whatever it said, and did not ask for a pause."""
        host = slot.host
        was_down = host.consecutive_outages > 0
        host.consecutive_failures = host.consecutive_refusals = host.consecutive_outages = 0
        if was_down:
            self._on_suspend(host.name)
        host.answered_at_s = self._loop.time()
        host.refused.pop(slot.number, None)
        host.limit = min(host.limit + _RECOVERY_PER_ANSWER, self._per_host)
        host.delay_s = max(0.0, host.delay_s - _DELAY_RETURNED_PER_ANSWER_S)

    def timed_out(self, slot: OwnSlot, reason: str) -> None:
        """Record that no answer came in time. While the host answers others, that is the fault of the URL alone."""
        if not self.answered_recently(slot):
            self.failed(slot, reason)

    def answered_recently(self, slot: OwnSlot) -> bool:
        """Whether the host has answered within the last minute."""
        return self._loop.time() - slot.host.answered_at_s < RECENT_ANSWER_S

    def failed(self, slot: OwnSlot, reason: str) -> None:
        """Record that the host could not be connected to, or did not behave as a web server.

        Args:
            slot: The request's slot.
            reason: What happened, in words.
        """
        host = slot.host
        host.consecutive_failures += 1
        host.limit = max(1.0, host.limit / 2)  # it may just be slow; if it is dead, one request finds out as well
        is_probe = host.consecutive_outages > 0 and slot.serial > host.down_at_serial
        if is_probe or (not host.consecutive_outages and host.consecutive_failures >= _MAX_CONSECUTIVE_FAILURES):
            self._open_circuit(host, f"failed {_MAX_CONSECUTIVE_FAILURES} times in a row ({reason})")

    def throttled(self, slot: OwnSlot, pause_s: float | None, refusal: str = "") -> None:
        """Record that the host asked for a pause (429 or 503).

        The first refusal of an image is answered by waiting. When the host refuses the same image again, it had too
        many requests at once, and gets only one at a time.

        Args:
            slot: The request's slot.
            pause_s: How long a pause the host asked for, if it said.
            refusal: How it asked, in words.
        """
        host, now_s = slot.host, self._loop.time()
        host.consecutive_failures = 0
        if len(host.refused) > _MAX_REFUSED_IMAGES:
            host.refused.clear()
        times = host.refused[slot.number] = host.refused.get(slot.number, 0) + 1
        if times > 1:
            host.limit = 1.0
        if slot.serial > host.paused_at_serial:  # requests sent before the pause are one refusal together
            host.consecutive_refusals += times == 1  # an image that is always refused says nothing about the others
            host.paused_at_serial = next(self._serials)
            if host.consecutive_outages or host.consecutive_refusals >= _MAX_CONSECUTIVE_REFUSALS:
                self._open_circuit(host, f"refused {_MAX_CONSECUTIVE_REFUSALS} times in a row")
                return
        if not self.may_wait_for(host.name):
            return
        if not pause_s:  # "Retry-After: 0" counts as none: a request was sent just now, and refused
            pause_s = self._backoff_s * 2 ** max(0, host.consecutive_refusals - 1)
        pause_s *= random.uniform(1.0, _JITTER)  # noqa: S311 - no secret
        paused_until_s = max(host.resume_at_s, now_s)
        host.resume_at_s = max(paused_until_s, now_s + min(pause_s, _MAX_PAUSE_S))
        host.refusal = refusal
        host.delay_s += host.resume_at_s - paused_until_s
        self._on_suspend(host.name)

    def is_healthy(self, host: str) -> bool:
        """Whether a host has not failed since its last answer."""
        known = self._hosts.get(host)
        return known is None or not known.consecutive_failures

    def answered_ago_s(self, host: str) -> float | None:
        """How long ago a host last answered; None if that is not known."""
        known = self._hosts.get(host)
        ago_s = math.inf if known is None else self._loop.time() - known.answered_at_s
        return None if ago_s == math.inf else ago_s

    def may_wait_for(self, host: str) -> bool:
        """Whether a request that a host refuses may be repeated after a pause: it has not caused too much delay yet."""
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

    async def _wait(self, host: _Host, priority: int) -> None:
        """Wait for a slot, which is counted as open when this returns."""
        waiter = _Waiter(priority, next(self._serials), self._loop.create_future())
        heapq.heappush(host.waiting, waiter)
        self._admit(host)
        self.waiting += 1
        self._waited_for[host.name] = host
        self._on_wait()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in host.waiting:
                host.waiting.remove(waiter)
                heapq.heapify(host.waiting)
            elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self._leave(host)  # the slot was granted in the same iteration of the loop
            raise
        finally:
            self.waiting -= 1
            if not host.waiting:
                self._waited_for.pop(host.name, None)

    def _leave(self, host: _Host) -> None:
        host.open -= 1
        self._admit(host)
        has_failed = host.consecutive_failures or host.consecutive_refusals or host.consecutive_outages
        if host.is_idle and not (has_failed or host.refused or host.delay_s):
            self._hosts.pop(host.name, None)

    def _admit(self, host: _Host) -> None:
        """Grant free slots to requests that wait, or set a timer to do so when the host's pause ends."""
        if host.waiting and self._loop.time() < host.resume_at_s:
            if host.timer is None:
                host.timer = self._loop.call_at(host.resume_at_s, self._end_pause, host)
            return
        while host.waiting and host.open < int(host.limit):
            waiter = heapq.heappop(host.waiting)
            if not waiter.granted.done():  # otherwise its task was cancelled, and has yet to notice
                host.open += 1
                waiter.granted.set_result(None)

    def _end_pause(self, host: _Host) -> None:
        host.timer = None
        self._admit(host)

    def _open_circuit(self, host: _Host, reason: str) -> None:
        down_s = min(_DOWN_S * 2 ** min(host.consecutive_outages, _MAX_DOUBLINGS), _MAX_DOWN_S)
        host.retry_at_s = self._loop.time() + down_s
        host.consecutive_outages += 1
        host.down_at_serial = next(self._serials)
        host.reason = reason
        for waiter in host.waiting:
            if not waiter.granted.done():
                waiter.granted.set_exception(HostDownError(reason))
        host.waiting.clear()
        self._on_suspend(host.name)


class OwnSlot:
    """A slot at a host whose requests are counted in this process."""

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
        """Whether the host has not failed since its last answer."""
        return not self.host.consecutive_failures

    @property
    def host_answered_recently(self) -> bool:
        """Whether the host has answered within the last minute."""
        return self._hosts.answered_recently(self)

    def answered(self) -> None:
        """Report an answer that is no refusal."""
        self._hosts.answered(self)

    def failed(self, reason: str) -> None:
        """Report that there was no connection, or that what answered is no web server."""
        self._hosts.failed(self, reason)

    def timed_out(self, reason: str) -> None:
        """Report that no answer came in time."""
        self._hosts.timed_out(self, reason)

    def throttled(self, pause_s: float | None, refusal: str = "") -> None:
        """Report that the host asked for a pause, for how long if it said, and how it asked, in words."""
        self._hosts.throttled(self, pause_s, refusal)
