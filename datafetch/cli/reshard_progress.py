"""The progress of making equal shards on standard error: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from datafetch.model.statistics import Progress

_LIVE_INTERVAL_S = 0.25
_PLAIN_INTERVAL_S = 10.0


def reshard_line(now: Progress, elapsed_s: float) -> str:
    """One line: what is being done, rows of all rows, and while copying how fast."""
    parts = [f"{now.stage} {now.rows:,}/{now.total_rows:,} rows"]
    if now.copied_bytes and elapsed_s > 0:
        parts.append(f"{now.copied_bytes / elapsed_s / 1e6:.0f} MB/s")
    return "  ".join(parts)


@contextmanager
def show_resharding(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show what the given function is told, now and then; the last state stays on the screen.

    Args:
        console: Where to; its being a terminal decides the form.
    """
    if not console.is_terminal:
        yield _Teller(lambda line: console.print(Text(line), soft_wrap=True, highlight=False), _PLAIN_INTERVAL_S)
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        tell = _Teller(lambda line: live.update(Text(line, no_wrap=True), refresh=True), _LIVE_INTERVAL_S)
        try:
            yield tell
        finally:
            tell.show()


class _Teller:
    """Shows a state when the last one has stood for a while."""

    def __init__(self, write: Callable[[str], None], interval_s: float) -> None:
        self._write = write
        self._interval_s = interval_s
        self._shown_s = time.monotonic()
        self._stage_began_s = self._shown_s
        self._last: Progress | None = None

    def __call__(self, now: Progress) -> None:
        if self._last is None or self._last.stage != now.stage:
            self._stage_began_s = time.monotonic()
        self._last = now
        if time.monotonic() - self._shown_s >= self._interval_s:
            self.show()

    def show(self) -> None:
        """Show the last state there was."""
        self._shown_s = time.monotonic()
        if self._last is not None:
            self._write(reshard_line(self._last, self._shown_s - self._stage_began_s))
