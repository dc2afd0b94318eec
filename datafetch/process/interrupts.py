"""A signal handler that counts: the first signal stops the work, the second is ignored, and the third raises.

Rules: Python raises ``KeyboardInterrupt`` wherever the interpreter happens to be. Within an event loop, that may be a
callback on which a task group or a future depends. The callback then never completes, and the task that waits for it,
or the closing of the loop, hangs. So the first signal cancels a task instead, and the second does not disturb the
shutdown.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLERATED_SIGNALS = 2  # a third one means that the user won't wait any longer


class Interrupts:
    """A signal handler that counts.

    Attributes:
        count: How many signals have been received.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stop: Callable[[], object] | None = None

    def __call__(self, *_: object) -> None:
        """Handle a signal. Python calls this in the main thread."""
        self.count += 1
        if self.count > 1:
            self.on_further_signal()
        elif self._stop is None:
            raise KeyboardInterrupt
        else:
            self._stop()

    def on_further_signal(self) -> None:
        """Handle each signal after the first: ignore the second, and raise from the third on.

        Raises:
            KeyboardInterrupt: This is the third signal or a later one.
        """
        if self.count > _TOLERATED_SIGNALS:
            raise KeyboardInterrupt

    @contextmanager
    def stopping_with(self, stop: Callable[[], object]) -> Iterator[None]:
        """Have the first signal within this context call ``stop`` instead of raising.

        Args:
            stop: Makes the work stop soon. It may be called at any point of the program, and must not raise.

        Raises:
            KeyboardInterrupt: On leaving the context, if a signal was received; the work may be complete or not.
        """
        before, self._stop = self._stop, stop
        count_before = self.count
        try:
            yield
        finally:
            self._stop = before
        if self.count > count_before:
            raise KeyboardInterrupt


@contextmanager
def active_interrupts() -> Iterator[Interrupts]:
    """Provide the counting handler: the program's own, or else one that temporarily replaces Python's default.

    If the program has another handler for Ctrl-C, or this is not the main thread, the handler provided is never called.
    """
    interrupts = next((one for one in map(signal.getsignal, SIGNALS) if isinstance(one, Interrupts)), None)
    if interrupts is not None:
        yield interrupts
        return
    interrupts = Interrupts()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts)  # like asyncio.Runner, whose handler raises, though
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
