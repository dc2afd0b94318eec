"""BodyBudget: bounds the memory that bodies take, from their first byte until the codec is done with them.

Theory of operation. Each body has a ``Reservation``, which grows before the bytes it is for are read and is released
when the body is no longer needed. While a reservation waits to grow, its body is not read; TCP's flow control then
holds the sender back, so what does not fit stays in the network. Two things are regulated separately:

* New requests. ``wait_for_room`` holds them back while anything waits to grow or the budget is used up, because every
  further response would only add another half-read body.
* Growth. Waiting reservations are served oldest first. If many bodies are half-read and all of the budget is taken,
  none could ever be completed. So the oldest waiting reservation becomes the over-budget holder: it may grow beyond the
  budget until it is released or empty, and only then may another one. There is never more than one such holder, so
  at most the budget and one body are held, and every body is completed in the end.

Reservations are numbered in the order in which they were made, and "oldest" means the lowest number.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Self


@dataclass(order=True, slots=True)
class _Waiter:
    """A reservation that waits for bytes."""

    number: int
    size_bytes: int = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)
    reservation: Reservation = field(compare=False)


class BodyBudget:
    """Bounds the memory that bodies take.

    Args:
        budget_bytes: Bytes that all bodies together may take; one of them may go beyond that.
        numbers: The numbers of reservations, in ascending order; by default from 0. Processes that share hosts have
            different ones.
    """

    def __init__(self, budget_bytes: int, numbers: Iterator[int] | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._numbers = count() if numbers is None else numbers
        self._waiters: list[_Waiter] = []  # a heap, the oldest reservation first, so that bodies get completed
        self._over_budget_holder: Reservation | None = None
        self._room = asyncio.Event()
        self._room.set()

    @property
    def held_bytes(self) -> int:
        """Bytes that reservations hold, whether they have been received yet or not."""
        return self._held_bytes

    @property
    def waiting(self) -> int:
        """Number of bodies whose transfer is held up until there are bytes for them."""
        return len(self._waiters)

    def reservation(self) -> Reservation:
        """Make a reservation, which holds nothing at first."""
        return Reservation(self, next(self._numbers))

    async def wait_for_room(self) -> None:
        """Wait until another request makes sense: no reservation waits for bytes, and some are left."""
        await self._room.wait()

    def try_acquire(self, size_bytes: int, reservation: Reservation) -> bool:
        """Take bytes if there are enough, or if this reservation may go over the budget; else return False."""
        if not (self._fits(size_bytes) and not self._waiters) and reservation is not self._over_budget_holder:
            return False
        self._change(size_bytes)
        return True

    async def acquire(self, size_bytes: int, reservation: Reservation) -> None:
        """Wait for bytes, and take them."""
        waiter = _Waiter(reservation.number, size_bytes, asyncio.get_running_loop().create_future(), reservation)
        heapq.heappush(self._waiters, waiter)
        self._grant()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)
            elif not waiter.granted.cancelled():  # the bytes were granted in the same iteration of the loop
                self._change(-size_bytes)
            self._grant()
            raise

    def release(self, size_bytes: int, reservation: Reservation, *, is_empty: bool) -> None:
        """Return bytes.

        Args:
            size_bytes: How many.
            reservation: Which one held them.
            is_empty: It holds nothing any more, so that another reservation may go over the budget.
        """
        if is_empty and reservation is self._over_budget_holder:
            self._over_budget_holder = None
        self._change(-size_bytes)
        self._grant()

    def _fits(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= self._budget_bytes

    def _grant(self) -> None:
        while self._waiters:
            oldest = self._waiters[0]
            if oldest.granted.done():  # its task was cancelled, and has yet to notice
                heapq.heappop(self._waiters)
                continue
            if not self._fits(oldest.size_bytes):
                if self._over_budget_holder is None:
                    self._over_budget_holder = oldest.reservation
                if oldest.reservation is not self._over_budget_holder:
                    break
            heapq.heappop(self._waiters)
            self._change(oldest.size_bytes)
            oldest.granted.set_result(None)
        self._change(0)

    def _change(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        if self._held_bytes < self._budget_bytes and not self._waiters:
            self._room.set()
        else:
            self._room.clear()


class Reservation:
    """The bytes that one body holds: ``with budget.reservation() as memory: …`` returns them all at the end.

    Attributes:
        number: Its place in the order in which reservations were made.
    """

    __slots__ = ("_budget", "_held_bytes", "number")

    def __init__(self, budget: BodyBudget, number: int) -> None:
        self.number = number
        self._budget = budget
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held_bytes, self._held_bytes = self._held_bytes, 0
        self._budget.release(held_bytes, self, is_empty=True)

    @property
    def held_bytes(self) -> int:
        """Bytes that this reservation holds."""
        return self._held_bytes

    async def wait_for_room(self) -> None:
        """Wait until a request for this body makes sense."""
        await self._budget.wait_for_room()

    def try_grow(self, to_bytes: int) -> bool:
        """Hold at least this many bytes if that is possible without waiting; else return False."""
        missing_bytes = to_bytes - self._held_bytes
        if missing_bytes > 0:
            if not self._budget.try_acquire(missing_bytes, self):
                return False
            self._held_bytes = to_bytes
        return True

    async def grow(self, to_bytes: int) -> None:
        """Hold at least this many bytes, waiting until there are enough."""
        if not self.try_grow(to_bytes):
            await self._budget.acquire(to_bytes - self._held_bytes, self)
            self._held_bytes = to_bytes

    def shrink(self, to_bytes: int) -> None:
        """Hold at most this many bytes: the body turned out smaller than reserved for, or its attempt failed."""
        excess_bytes = self._held_bytes - to_bytes
        if excess_bytes > 0:
            self._held_bytes = to_bytes
            self._budget.release(excess_bytes, self, is_empty=to_bytes == 0)
