"""``--finish-by``: when a run is to finish, by the clock of its event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from datafetch.model.wording import lasting

_TIME_IS_UP = (
    "it is time to finish (--finish-by): all images that are missing fail as timeout; 'retry' fetches them later"
)

_log = logging.getLogger(__name__)


def loop_time_of(finish_by: datetime | None) -> float | None:
    """A time by the clock of the running event loop."""
    if finish_by is None:
        return None
    return asyncio.get_running_loop().time() + finish_by.timestamp() - time.time()


@asynccontextmanager
async def announced(finish_by: datetime | None) -> AsyncIterator[None]:
    """Log from when on nothing is waited for any more, and when that time has come."""
    until_s = loop_time_of(finish_by)
    if until_s is None or finish_by is None:
        yield
        return
    left_s = max(0.0, until_s - asyncio.get_running_loop().time())
    _log.info("will finish by %s, in %s", finish_by.astimezone().strftime("%Y-%m-%d %H:%M"), lasting(left_s))
    timer = asyncio.get_running_loop().call_at(until_s, _log.info, _TIME_IS_UP)
    try:
        yield
    finally:
        timer.cancel()
