"""Connecting to a host that has several addresses, some of which may lead nowhere (RFC 8305).

The first address keeps its socket until it fails. A moment later the next one is tried beside it, on a second socket,
which the others take turns at. So a request holds two descriptors at most, however many addresses swallow packets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from datafetch.errors import is_want

SOCKETS = 2
"""That one call holds at most."""

_MAX_ADDRESSES = 4  # that are tried; a host that can be reached at none of them is down
_NEXT_ADDRESS_DELAY_S = 0.25  # RFC 8305, 8
_TURN_S = 1.0  # at the second socket; one round trip to anywhere takes less

_Made = TypeVar("_Made")


async def connect_to_first(
    addresses: Sequence[str],
    connect: Callable[[str], Coroutine[Any, Any, _Made]],
    drop: Callable[[_Made], None],
) -> _Made:
    """Connect to whichever of some addresses answers first.

    Args:
        addresses: IPv4 and IPv6, at least one, the preferred ones first. For one alone there is nothing to race.
        connect: Connects to one.
        drop: Ends a connection that is not needed after all.

    Raises:
        OSError: What the first one failed with, when all have failed; where this machine lacked something, that.
    """
    race = _Race(addresses, connect, drop)
    try:
        return await race.run()
    finally:
        race.end()


class _Race(Generic[_Made]):
    """One call of ``connect_to_first``."""

    def __init__(
        self,
        addresses: Sequence[str],
        connect: Callable[[str], Coroutine[Any, Any, _Made]],
        drop: Callable[[_Made], None],
    ) -> None:
        self._waiting = deque(mix_families(addresses)[:_MAX_ADDRESSES])
        self._connect = connect
        self._drop = drop
        self._trying: list[asyncio.Task[_Made]] = []  # the one that keeps its socket first
        self._errors: list[OSError] = []

    async def run(self) -> _Made:
        """Try them until one is connected."""
        while self._waiting or self._trying:
            if self._waiting and len(self._trying) < SOCKETS:
                self._trying.append(asyncio.create_task(self._connect(self._waiting.popleft())))
            done, _ = await asyncio.wait(self._trying, timeout=self._patience_s(), return_when=asyncio.FIRST_COMPLETED)
            if not done and len(self._trying) == SOCKETS:
                self._give_up(self._trying.pop())
            for task in [task for task in self._trying if task in done]:
                self._trying.remove(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                self._errors.append(error)
        raise next(filter(is_want, self._errors), self._errors[0])

    def end(self) -> None:
        """Give up what is still being tried."""
        for task in self._trying:
            self._give_up(task)

    def _patience_s(self) -> float | None:
        if not self._waiting:
            return None
        return _NEXT_ADDRESS_DELAY_S if len(self._trying) < SOCKETS else _TURN_S

    def _give_up(self, task: asyncio.Task[_Made]) -> None:
        task.cancel()
        task.add_done_callback(self._drop_late)

    def _drop_late(self, task: asyncio.Task[_Made]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._drop(task.result())


def mix_families(addresses: Sequence[str]) -> list[str]:
    """Addresses of both families in turn, the first one's family first, each in its order (RFC 8305, 4)."""
    families: dict[bool, list[str]] = {}  # in the order in which they come
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    longest = max(map(len, families.values()))
    return [family[place] for place in range(longest) for family in families.values() if place < len(family)]
