"""How many requests are in flight at once: as many as the operator sets, or as many as serve best.

Theory of operation. Without a fixed number, ``connections`` is found by hill climbing. Outcomes of requests are
counted over a window, and each window ends in a decision (``_decide``):

* Step up. If requests had to wait for a slot, the number is raised, and the next full window shows what that brings. It
  doubles at first; once it has been held, further steps add a quarter.
* Judge the step. It is kept if the rate of answers rose by at least ``_MIN_GAIN_SHARE`` of what it would have risen by
  if every request contributed equally; else the number goes back, and is held for some windows. That number of windows
  doubles with each step that fails in a row. It never stays held for good, because the web changes.
* Back off. If the share of overloads (see below) exceeds its running average by ``_EXCESS_OVERLOAD_SHARE``, the number
  is cut by a third. The next full window shows whether that helped. If it did not, the failures come from the web and
  not from us, so the number goes back and their share becomes the new average.

The window after a step up or a back-off is skipped, for it contains requests from before the change. While no request
waits for a slot, something else is the bottleneck (the codec, the hosts), the rate says nothing about the number, and
it is left alone.

An overload is a failure that speaks of this machine or its network rather than of a host: a connection that times out
although its host had been healthy, or a name that no name server answers for. Descriptors that run out are certain to
be our fault and not judged by shares: they lower ``_ceiling`` at once, also under a fixed number, and each request that
ends raises it again by a little.

A request that hangs uses neither CPU nor bandwidth. So ``slots``, the number of requests that may be open, is larger
than ``connections`` by the number of requests that have been open for longer than ``hanging_s``.

Rules: the number never exceeds what this process has descriptors for.
"""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from datafetch.errors import ResourceError
from datafetch.fetch import happy_eyeballs

_INITIAL_CONNECTIONS = 64
_MAX_CONNECTIONS = 1024
_MIN_CONNECTIONS = 8
_COARSE_STEP = 2.0  # the knee is then known within a factor of two, which the fine steps narrow
_FINE_STEP = 1.25
_BACK_OFF_FACTOR = 0.7
_MIN_GAIN_SHARE = 0.4
_MIN_WINDOW_S = 0.5
_MAX_WINDOW_S = 4.0
_MIN_WINDOW_REQUESTS = 50
_WINDOW_REQUESTS = 200  # with fewer, the web's noise is as large as the effect of a step
_HOLD_WINDOWS = 5
_MAX_HOLD_WINDOWS = 40
_EXCESS_OVERLOAD_SHARE = 0.1
_BASELINE_WEIGHT = 0.1  # of the latest window in the running average
_IMPROVEMENT_RATIO = 3 / 4  # a back-off has helped if at most this much of the overload share is left
HANGING_S = 2.0
"""Most answers begin within a second; what takes longer uses neither our CPU nor our bandwidth."""

_SHORTAGE_S = 0.5  # requests that run out of descriptors within this time report one shortage
_RECOVERY_PER_REQUEST = 1 / 64  # of a connection that a shortage took
_DESCRIPTORS_PER_REQUEST = happy_eyeballs.MAX_SOCKETS
_RESERVED_DESCRIPTORS = 384  # 128 idle connections, 128 spools in progress and 32 kept, the codec's pipes, manifests


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request in flight.

    Attributes:
        started_s: When it began, by the clock.
        was_saturated: Whether other requests waited for a slot when it began.
        has_ended: Whether it is over.
        is_hanging: Whether it is counted among the hanging ones.
    """

    started_s: float
    was_saturated: bool
    has_ended: bool = False
    is_hanging: bool = False


@dataclass(slots=True)
class _Window:
    """Counts of what ended since the last decision."""

    started_s: float
    requests: int = 0
    answers: int = 0
    overloads: int = 0
    was_saturated: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """The state before a step up: connections, and the rate of answers that they brought."""

    connections: int
    answers_per_s: float


@dataclass(frozen=True, slots=True)
class _BackOff:
    """The state before a back-off: connections, and the share of requests that were overloads."""

    connections: int
    overload_share: float


class Concurrency:
    """Decides how many requests may be in flight.

    Args:
        connections: A fixed number; None to find one.
        hanging_s: How long a request is open before it counts as one that hangs.
        clock: In seconds, monotonic.

    Attributes:
        max_connections: The most that ``connections`` can become.
        is_fixed: Whether the operator set the number.
    """

    def __init__(
        self, connections: int | None, hanging_s: float = HANGING_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_connections = affordable_connections(connections or _MAX_CONNECTIONS)
        self.is_fixed = connections is not None
        self._target = self.max_connections if self.is_fixed else min(_INITIAL_CONNECTIONS, self.max_connections)
        self._ceiling = float(self.max_connections)
        self._shortage_until_s = -math.inf
        self._hanging_s = hanging_s
        self._clock = clock
        self._not_hanging: deque[OpenRequest] = deque()  # the oldest first; ended ones are removed when they get there
        self._hanging = 0
        self._window = _Window(clock())
        self._baseline_overload_share = 0.0
        self._growth = _COARSE_STEP
        self._last_step: _Step | None = None
        self._last_back_off: _BackOff | None = None
        self._skips_window = False
        self._hold_windows = 0
        self._next_hold_windows = _HOLD_WINDOWS

    @property
    def connections(self) -> int:
        """Number of requests that may be in flight now, hanging ones not counted."""
        return self._target if self._target <= self._ceiling else max(1, int(self._ceiling))

    @property
    def slots(self) -> int:
        """Number of requests that may be in flight now, hanging ones included."""
        if self.is_fixed:
            return self.connections
        hanging_since_s = self._clock() - self._hanging_s
        oldest_first = self._not_hanging
        while oldest_first and (oldest_first[0].has_ended or oldest_first[0].started_s <= hanging_since_s):
            request = oldest_first.popleft()
            if not request.has_ended:
                request.is_hanging = True
                self._hanging += 1
        return max(1, min(self.connections + self._hanging, self.max_connections, int(self._ceiling)))

    def request_started(self, *, is_saturated: bool) -> OpenRequest:
        """Count a request that begins.

        Args:
            is_saturated: Whether other requests wait for a slot.
        """
        request = OpenRequest(self._clock(), is_saturated)
        if not self.is_fixed:
            self._not_hanging.append(request)
        return request

    def request_ended(self, request: OpenRequest, *, is_answered: bool, is_overload: bool) -> None:
        """Count a request that is over.

        Args:
            request: What ``request_started`` returned for it.
            is_answered: Whether the host sent a response, whatever it said.
            is_overload: Whether it failed in a way that speaks of this machine rather than of its host.
        """
        request.has_ended = True
        self._hanging -= request.is_hanging
        self._ceiling = min(self._ceiling + _RECOVERY_PER_REQUEST, self.max_connections)
        window = self._window
        window.requests += 1
        window.answers += is_answered
        window.overloads += is_overload
        window.was_saturated |= request.was_saturated
        if self.is_fixed or window.requests < _MIN_WINDOW_REQUESTS:
            return
        elapsed_s = self._clock() - window.started_s
        is_full = window.requests >= max(_WINDOW_REQUESTS, 2 * self._target) and elapsed_s >= _MIN_WINDOW_S
        if is_full or elapsed_s >= _MAX_WINDOW_S:
            self._decide(window, window.answers / elapsed_s)
            self._window = _Window(self._clock())

    def lookup_failed(self) -> None:
        """Count a name that no name server answered for, as an overload."""
        self._window.requests += 1
        self._window.overloads += 1

    def sockets_exhausted(self) -> None:
        """Lower the number at once, because there was no descriptor or no memory for a socket."""
        now_s = self._clock()
        if now_s >= self._shortage_until_s:
            self._shortage_until_s = now_s + _SHORTAGE_S
            self._ceiling = max(1.0, self.connections * _BACK_OFF_FACTOR)

    def _decide(self, window: _Window, answers_per_s: float) -> None:
        """Change the number, or leave it, by what a window has shown."""
        if self._skips_window:
            self._skips_window = False
            return
        overload_share = window.overloads / window.requests
        if self._last_back_off is not None:
            self._judge_back_off(self._last_back_off, overload_share)
        elif overload_share > self._baseline_overload_share + _EXCESS_OVERLOAD_SHARE:
            self._last_back_off = _BackOff(self._target, overload_share)
            self._target = max(min(_MIN_CONNECTIONS, self.max_connections), int(self._target * _BACK_OFF_FACTOR))
            self._last_step = None
            self._skips_window = True
            return
        self._baseline_overload_share += (overload_share - self._baseline_overload_share) * _BASELINE_WEIGHT
        if self._last_step is not None:
            self._judge_step(self._last_step, answers_per_s)
        if self._hold_windows:
            self._hold_windows -= 1
        elif window.was_saturated and self._target < self.max_connections:
            self._last_step = _Step(self._target, answers_per_s)
            self._target = min(self.max_connections, int(self._target * self._growth) + 1)
            self._skips_window = True

    def _judge_step(self, step: _Step, answers_per_s: float) -> None:
        """Keep the last step up, or take it back."""
        self._last_step = None
        proportional_gain = self._target / step.connections - 1
        if answers_per_s >= step.answers_per_s * (1 + proportional_gain * _MIN_GAIN_SHARE):
            self._next_hold_windows = _HOLD_WINDOWS
        else:
            self._target = step.connections
            self._hold()

    def _judge_back_off(self, back_off: _BackOff, overload_share: float) -> None:
        """Keep the last back-off if it helped; otherwise the failures are not our doing, and it is taken back."""
        self._last_back_off = None
        if overload_share < back_off.overload_share * _IMPROVEMENT_RATIO:
            self._hold()
        else:
            self._target = back_off.connections
            self._baseline_overload_share = overload_share

    def _hold(self) -> None:
        """Make no further step for some windows."""
        self._hold_windows = self._next_hold_windows
        self._next_hold_windows = min(2 * self._next_hold_windows, _MAX_HOLD_WINDOWS)
        self._growth = _FINE_STEP


def affordable_connections(wanted: int) -> int:
    """How many of the wanted connections this process has descriptors for.

    Raises the soft limit on open files towards the hard limit if necessary; it is not lowered again.

    Raises:
        ResourceError: There are not enough descriptors for even one connection.
    """
    needed = wanted * _DESCRIPTORS_PER_REQUEST + _RESERVED_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    affordable = (soft - _RESERVED_DESCRIPTORS) // _DESCRIPTORS_PER_REQUEST
    if affordable < 1:
        raise ResourceError(
            f"only {soft:,} files may be open at once ('ulimit -n'), and a run needs at least "
            f"{_RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_REQUEST:,}, and {_DESCRIPTORS_PER_REQUEST} for each further "
            f"one of --connections; raise the limit, to {needed:,} for all {wanted:,}"
        )
    return min(wanted, affordable)
