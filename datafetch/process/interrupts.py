"""A signal handler that counts: the first signal stops the work, the second is ignored, the third raises.

Rules: ``KeyboardInterrupt`` is raised wherever the interpreter happens to be. Inside an event loop that may be a
callback that a task group or a future depends on; the callback then never completes, and its waiter, or the closing of
the loop, hangs. So the first signal cancels a task instead, and the second does not disturb the shutdown.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENT = 2  # signals; who sends a third has waited long enough


class Interrupts:
    """A signal handler that counts.

    Attributes:
        count: Signals so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stop: Callable[[], object] | None = None

    def __call__(self, *_: object) -> None:
        """Stop the work, the first time; called by Python, in the main thread."""
        self.count += 1
        if self.count > 1:
            self.again()
        elif self._stop is None:
            raise KeyboardInterrupt
        else:
            self._stop()

    def again(self) -> None:
        """Called for each signal after the first: the second has no effect, from the third on all are raised.

        Raises:
            KeyboardInterrupt: From the third on.
        """
        if self.count > _PATIENT:
            raise KeyboardInterrupt

    @contextmanager
    def calling(self, stop: Callable[[], object]) -> Iterator[None]:
        """Within this context the first signal calls ``stop`` instead of raising.

        Args:
            stop: Makes the work stop soon; it may be called at any point of the program and must not raise.

        Raises:
            KeyboardInterrupt: A signal came meanwhile, and the work has ended, complete or not.
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
def in_force() -> Iterator[Interrupts]:
    """The handler that counts signals: the program's, or else one that takes the place of Python's own meanwhile.

    Where neither is in force, or in another thread than the main one, it is one that is never called.
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
    signal.signal(signal.SIGINT, interrupts)  # as asyncio.Runner would put one of its own there, which raises
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
