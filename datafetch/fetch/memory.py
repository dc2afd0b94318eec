"""BodyBudget: how many bytes of bodies are in hand, received or on their way.

Rules: bytes are asked for before they are read, so what is over the budget stays in the network. The oldest image that
had to wait may go over it, so that bodies which are all half there can't block one another: the most that is ever held
is the budget and one body.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Self


@dataclass(order=True, slots=True)
class _Waiter:
    number: int
    size_bytes: int = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)
    reservation: Reservation = field(compare=False)


class BodyBudget:
    """Bounds the bytes of bodies from their first byte until the codec is done with them.

    Args:
        budget_bytes: How many there may be.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._numbers = count()
        self._wishes: list[_Waiter] = []  # a heap: the oldest image first, so that bodies get finished
        self._over_budget_holder: Reservation | None = None
        self._room = asyncio.Event()
        self._room.set()

    @property
    def held_bytes(self) -> int:
        """Bytes in hand, promised ones included."""
        return self._held_bytes

    @property
    def waiting(self) -> int:
        """Bodies that wait for room in the middle of their transfer."""
        return len(self._wishes)

    def reservation(self) -> Reservation:
        """One image's part of the budget, nothing at first."""
        return Reservation(self, next(self._numbers))

    async def wait_for_room(self) -> None:
        """Wait until another request makes sense: nobody waits for bytes, and there are some left."""
        await self._room.wait()

    def take_at_once(self, size_bytes: int, reservation: Reservation) -> bool:
        """Take bytes if there is room, or if this image may go over the budget."""
        if not (self._fits(size_bytes) and not self._wishes) and reservation is not self._over_budget_holder:
            return False
        self._change(size_bytes)
        return True

    async def take(self, size_bytes: int, reservation: Reservation) -> None:
        """Wait for bytes, and take them."""
        wish = _Waiter(reservation.number, size_bytes, asyncio.get_running_loop().create_future(), reservation)
        heapq.heappush(self._wishes, wish)
        self._grant()
        try:
            await wish.granted
        except asyncio.CancelledError:
            if wish in self._wishes:
                self._wishes.remove(wish)
                heapq.heapify(self._wishes)
            elif not wish.granted.cancelled():  # granted in the same instant
                self._change(-size_bytes)
            self._grant()
            raise

    def give_back(self, size_bytes: int, reservation: Reservation, *, ended: bool) -> None:
        """Return bytes; an image that has ended, or begins anew, lets the next one go over the budget."""
        if ended and reservation is self._over_budget_holder:
            self._over_budget_holder = None
        self._change(-size_bytes)
        self._grant()

    def _fits(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= self._budget_bytes

    def _grant(self) -> None:
        while self._wishes:
            oldest = self._wishes[0]
            if oldest.granted.done():  # cancelled, and about to leave
                heapq.heappop(self._wishes)
                continue
            if not self._fits(oldest.size_bytes):
                if self._over_budget_holder is None:
                    self._over_budget_holder = oldest.reservation
                if oldest.reservation is not self._over_budget_holder:
                    break
            heapq.heappop(self._wishes)
            self._change(oldest.size_bytes)
            oldest.granted.set_result(None)
        self._change(0)

    def _change(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        if self._held_bytes < self._budget_bytes and not self._wishes:
            self._room.set()
        else:
            self._room.clear()


class Reservation:
    """The bytes that one image holds: ``with budget.allotment() as memory: …`` returns them all at the end."""

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
        self._budget.give_back(held_bytes, self, ended=True)

    @property
    def held_bytes(self) -> int:
        """Bytes that this image holds."""
        return self._held_bytes

    async def wait_for_room(self) -> None:
        """Wait until a request for this image makes sense."""
        await self._budget.wait_for_room()

    def grow_at_once(self, to_bytes: int) -> bool:
        """Hold this many bytes, or more as before, if that can be had without waiting."""
        missing_bytes = to_bytes - self._held_bytes
        if missing_bytes > 0:
            if not self._budget.take_at_once(missing_bytes, self):
                return False
            self._held_bytes = to_bytes
        return True

    async def grow(self, to_bytes: int) -> None:
        """Hold this many bytes, waiting until there is room for them."""
        if not self.grow_at_once(to_bytes):
            await self._budget.take(to_bytes - self._held_bytes, self)
            self._held_bytes = to_bytes

    def shrink(self, to_bytes: int) -> None:
        """Hold no more than this many bytes: what was promised for a body turned out smaller, or came to nothing."""
        excess_bytes = self._held_bytes - to_bytes
        if excess_bytes > 0:
            self._held_bytes = to_bytes
            self._budget.give_back(excess_bytes, self, ended=to_bytes == 0)
