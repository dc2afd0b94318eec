"""RelayedLog: logs what workers log."""

from __future__ import annotations

import logging
import time

from datafetch.engine.workers.messages import Logged

_SAME_LINE_S = 60.0  # what one worker logs that long after another is no repetition
_MAX_REMEMBERED_LINES = 1000


class RelayedLog:
    """Logs what workers log. What several of them say at the same time, as all lack the same, is logged once."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, float]] = {}

    def log(self, worker: int, message: Logged) -> None:
        """Log a message of a worker, unless another one has just logged the same."""
        key, now_s = (message.logger, message.text), time.monotonic()
        last_worker, last_s = self._last.get(key, (worker, now_s))
        if last_worker != worker and now_s - last_s < _SAME_LINE_S:
            return
        if len(self._last) >= _MAX_REMEMBERED_LINES:
            self._last.clear()
        self._last[key] = worker, now_s
        logging.getLogger(message.logger).log(message.level, "%s", message.text)
