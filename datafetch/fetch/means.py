"""Means: what this machine itself needs for requests (name servers, a route, a proxy), and how to tell that one fails.

Theory of operation. Without a name server, a route or its proxy, every request of this machine fails, and each failure
looks like one of the web: a name that no server answers for, a host that can't be reached. Such a failure is *suspect*,
and ``was_missing`` judges it before it becomes an outcome:

* If the means has been missing since the request was begun, the request is made again.
* If the means has worked within the last second, the failure is the web's, and stands.
* Otherwise one probe asks the means for something that it must be able to do whatever the state of the web: name
  servers are asked for the servers of the root zone, a proxy for a connection (or, if it asked for a login, for a
  name that can't exist), the system for a route. If that succeeds, the failure stands, too. So a dead zone, a dead
  host and an address of a family that this machine lacks remain failures of the web, also where nothing else is
  requested.
* If the probe fails, the means is missing. All suspect requests wait, and nothing but the probe is repeated, with
  pauses. When it succeeds, they are sent again, and end as usual.
* If the probe has failed for ``_PATIENCE_S``, ResourceError is raised for all of them. None of their images has an
  outcome, so the next run requests them again.

Rules: whatever the number of suspect requests, one probe at a time is under way. A request that waits here holds no
connection and no slot among the open requests, and its host is not told that it failed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import time
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_delay, wait_exponential

from datafetch.errors import ResourceError

LATELY_S = 1.0  # a suspect failure takes longer to come about, so the means worked while it did
_PATIENCE_S = 30.0  # a router restarts, a VPN reconnects, a laptop changes networks
_PATIENCE_AT_START_S = 5.0  # what has never worked is more likely to be set up wrongly
_PAUSE = wait_exponential(multiplier=0.25, max=4.0)

_log = logging.getLogger(__name__)


class Means:
    """One thing that this machine needs for requests, for any number of tasks of one event loop.

    Args:
        probe: Tries whether it works; raises OSError if that can't be tried for lack of descriptors.
        problem: Returns what is wrong when it does not work, in words.
        remedy: What the operator can do about that, in words.
        remembers: Whether it counts as working for a moment after it has worked; not if the probe costs nothing.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[bool]], *, problem: Callable[[], str], remedy: str, remembers: bool = True
    ) -> None:
        self._probe = probe
        self._problem = problem
        self._remedy = remedy
        self._lately_s = LATELY_S if remembers else -1.0
        self._worked_at_s = -math.inf
        self._was_missing_at_s = -math.inf
        self._probing: asyncio.Task[bool] | None = None

    @property
    def has_worked(self) -> bool:
        """Whether it has ever worked."""
        return self._worked_at_s > -math.inf

    def worked(self) -> None:
        """Record that it works, because a request has just used it."""
        self._worked_at_s = time.monotonic()

    async def was_missing(self, since_s: float) -> bool:
        """Judge a suspect failure. If the means is missing now, wait until it is back.

        Args:
            since_s: When the request was begun that failed, by ``time.monotonic``.

        Returns:
            Whether it was missing, so that the request should be sent again; otherwise the failure is the web's.

        Raises:
            ResourceError: It is missing, and has not come back.
            OSError: This process has no descriptors left to try it.
        """
        if self._probing is None:
            if self._was_missing_at_s > since_s:
                return True
            if time.monotonic() - self._worked_at_s <= self._lately_s:
                return False
            self._probing = asyncio.create_task(self._probe_until_it_works())
            self._probing.add_done_callback(self._end_probing)
        probing = self._probing
        try:
            return await asyncio.shield(probing)
        except asyncio.CancelledError:
            if _is_being_cancelled() or not probing.cancelled():
                raise
            return False  # this object was closed

    async def close(self) -> None:
        """Stop probing; failures that are being judged stand."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _probe_until_it_works(self) -> bool:
        """Probe until it works; return whether it did not at first."""
        began_s = time.monotonic()
        patience_s = _PATIENCE_S if self.has_worked else _PATIENCE_AT_START_S

        async def works() -> bool:
            if self._worked_at_s > began_s or await self._probe():
                return True
            self._was_missing_at_s = time.monotonic()
            return False

        def warn(state: RetryCallState) -> None:
            if state.attempt_number == 1:
                _log.warning("%s; trying again for %g s", self._problem(), patience_s)

        retrying = AsyncRetrying(
            stop=stop_after_delay(patience_s),
            wait=_PAUSE,
            retry=retry_if_result(operator.not_),
            before_sleep=warn,
            retry_error_callback=lambda _: False,
        )
        is_back: bool = await retrying(works)
        if not is_back:
            raise ResourceError(
                f"{self._problem()}; {self._remedy}, and run the same command again (nothing written so far is lost)"
            )
        self.worked()
        was_missing = bool(retrying.statistics["attempt_number"] > 1)
        if was_missing:
            _log.info("that has passed, after %.0f s; what waited is requested again", time.monotonic() - began_s)
        return was_missing

    def _end_probing(self, task: asyncio.Task[bool]) -> None:
        self._probing = None
        if not task.cancelled():
            task.exception()  # whoever waited for it has raised it; if all were cancelled, nobody has


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
