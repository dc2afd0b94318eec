"""How many requests to have open at once: as many as the operator says, or as many as serve best.

Rules: only what is ours to mend slows us down: descriptors that run out, connections that time out and names that don't
resolve on hosts that had done nothing wrong. The number never exceeds what this process may open.
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
_COARSE_STEP = 2.0  # while it is sought; the knee is then known within a factor that _FINE_STEP narrows
_FINE_STEP = 1.25
_BACK_OFF_FACTOR = 0.7
_MIN_GAIN_SHARE = (
    0.4  # a step is kept when it brings this share of what it would bring if every request counted the same
)
_MIN_WINDOW_S = 0.5
_MAX_WINDOW_S = 4.0
_MIN_WINDOW_REQUESTS = 50
_WINDOW_REQUESTS = 200  # fewer say nothing: the web's noise is as large as what a step brings
_HOLD_WINDOWS = 5  # after a step that brought nothing; it doubles with each such step
_MAX_HOLD_WINDOWS = 40
_EXCESS_OVERLOAD_SHARE = 0.1  # of the requests, beyond what was usual before
_BASELINE_WEIGHT = 0.1
_IMPROVEMENT_RATIO = 3 / 4  # of the share before is left, or less
HANGING_S = 2.0
"""Most answers begin within a second; what takes longer uses neither our CPU nor our bandwidth."""

_SHORTAGE_S = 0.5
_RECOVERY_PER_REQUEST = 1 / 64  # of the connections that a shortage took
_DESCRIPTORS_PER_REQUEST = happy_eyeballs.MAX_SOCKETS
_RESERVED_DESCRIPTORS = 384  # idle connections 128, spools in progress 128 and held 32, the codec's pipes, manifests


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request under way.

    Attributes:
        started_s: When, by the clock.
        was_saturated: Whether others waited for a place when it began.
        has_ended: Whether it is over.
        is_hanging: Whether it has been counted as one that hangs.
    """

    started_s: float
    was_saturated: bool
    has_ended: bool = False
    is_hanging: bool = False


@dataclass(slots=True)
class _Window:
    """What was seen since the last decision."""

    started_s: float
    requests: int = 0
    answers: int = 0
    overloads: int = 0
    was_saturated: bool = False


class Concurrency:
    """The number of requests to have open: ``connections``.

    Found by climbing: it doubles as long as that brings more answers a second, goes back when it did not, and tries the
    neighbourhood again now and then, for the web changes. While the places are not all taken, something else is the
    limit (the codec, the hosts), and nothing is learnt. A request that hangs has its place filled by another.

    Args:
        wanted: A fixed number; None to find one.
        hanging_s: When a request that has not ended counts as one that hangs.
        clock: In seconds, monotonic.

    Attributes:
        most: What ``connections`` never exceeds.
        is_fixed: Whether the number is the operator's.
    """

    def __init__(
        self, wanted: int | None, hanging_s: float = HANGING_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_connections = affordable_connections(wanted or _MAX_CONNECTIONS)
        self.is_fixed = wanted is not None
        self._target = self.max_connections if self.is_fixed else min(_INITIAL_CONNECTIONS, self.max_connections)
        self._ceiling = float(self.max_connections)
        self._shortage_until_s = -math.inf
        self._hanging_s = hanging_s
        self._clock = clock
        self._recent: deque[OpenRequest] = deque()
        self._hanging = 0
        self._window = _Window(clock())
        self._baseline_overload_share = 0.0
        self._step = _COARSE_STEP
        self._before_step: tuple[int, float] | None = None  # connections and answers a second before the last step
        self._before_back_off: tuple[int, float] | None = None  # connections, and the share of our own failures
        self._skips_window = False
        self._hold_windows = 0
        self._next_hold_windows = _HOLD_WINDOWS

    @property
    def connections(self) -> int:
        """How many requests may be open now, those that hang not counted."""
        return max(1, min(self._target, int(self._ceiling)))

    @property
    def slots(self) -> int:
        """How many requests may be open now, those that hang counted."""
        if self.is_fixed:
            return self.connections
        oldest_s = self._clock() - self._hanging_s
        while self._recent and (self._recent[0].has_ended or self._recent[0].started_s <= oldest_s):
            request = self._recent.popleft()
            if not request.has_ended:
                request.is_hanging = True
                self._hanging += 1
        return max(1, min(self.connections + self._hanging, self.max_connections, int(self._ceiling)))

    def request_started(self, *, is_saturated: bool) -> OpenRequest:
        """Count a request that begins.

        Args:
            is_saturated: Somebody else waits for a place.
        """
        request = OpenRequest(self._clock(), is_saturated)
        if not self.is_fixed:
            self._recent.append(request)
        return request

    def request_ended(self, request: OpenRequest, *, is_answered: bool, is_overload: bool) -> None:
        """Count a request that is over.

        Args:
            request: Which one.
            is_answered: The host said something, whatever it was.
            is_overload: It failed in a way that speaks of us rather than of its host.
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
        passed_s = self._clock() - window.started_s
        is_enough = window.requests >= max(_WINDOW_REQUESTS, 2 * self._target) and passed_s >= _MIN_WINDOW_S
        if is_enough or passed_s >= _MAX_WINDOW_S:
            self._decide(window, window.answers / passed_s)
            self._window = _Window(self._clock())

    def lookup_failed(self) -> None:
        """Count a name that no name server answered for."""
        self._window.requests += 1
        self._window.overloads += 1

    def sockets_exhausted(self) -> None:
        """Descriptors, or memory for sockets, ran out: fewer, at once. What fails in one moment is one shortage."""
        now_s = self._clock()
        if now_s >= self._shortage_until_s:
            self._shortage_until_s = now_s + _SHORTAGE_S
            self._ceiling = max(1.0, self.connections * _BACK_OFF_FACTOR)

    def _decide(self, window: _Window, answers_per_s: float) -> None:
        if self._skips_window:  # this window saw the step happen, not yet what it brings
            self._skips_window = False
            return
        share = window.overloads / window.requests
        if self._before_back_off is not None:
            self._judge_back_off(*self._before_back_off, share)
        elif share > self._baseline_overload_share + _EXCESS_OVERLOAD_SHARE:
            self._before_back_off = self._target, share
            self._target = max(min(_MIN_CONNECTIONS, self.max_connections), int(self._target * _BACK_OFF_FACTOR))
            self._before_step = None
            self._skips_window = True
            return
        self._baseline_overload_share += (share - self._baseline_overload_share) * _BASELINE_WEIGHT
        if self._before_step is not None:
            self._judge_step(*self._before_step, answers_per_s)
        if self._hold_windows:
            self._hold_windows -= 1
        elif window.was_saturated and self._target < self.max_connections:
            self._before_step = self._target, answers_per_s
            self._target = min(self.max_connections, int(self._target * self._step) + 1)
            self._skips_window = True

    def _judge_step(self, connections: int, answers_per_s_before: float, answers_per_s: float) -> None:
        """Keep the last step, or take it back."""
        self._before_step = None
        gain_if_all_count = self._target / connections - 1
        if answers_per_s >= answers_per_s_before * (1 + gain_if_all_count * _MIN_GAIN_SHARE):
            self._next_hold_windows = _HOLD_WINDOWS
        else:
            self._target = connections
            self._hold()

    def _judge_back_off(self, connections: int, share_before: float, share: float) -> None:
        """Keep the last back-off if it helped; if not, it is the web that is so, and not we who are too many."""
        self._before_back_off = None
        if share < share_before * _IMPROVEMENT_RATIO:
            self._hold()
        else:
            self._target = connections
            self._baseline_overload_share = share

    def _hold(self) -> None:
        self._hold_windows = self._next_hold_windows
        self._next_hold_windows = min(2 * self._next_hold_windows, _MAX_HOLD_WINDOWS)
        self._step = _FINE_STEP


def affordable_connections(wanted: int) -> int:
    """How many of the wanted connections this process has descriptors for.

    Raises the soft limit on open files towards the hard one where that is needed; it is not lowered again.

    Raises:
        ResourceError: There is no room for even one.
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
            f"only {soft:,} files may be open at once ('ulimit -n'), and a run needs "
            f"{_RESERVED_DESCRIPTORS + _DESCRIPTORS_PER_REQUEST:,} at least, and {_DESCRIPTORS_PER_REQUEST} for each "
            f"further one of --connections; raise the limit, to {needed:,} for all {wanted:,}"
        )
    return min(wanted, affordable)
