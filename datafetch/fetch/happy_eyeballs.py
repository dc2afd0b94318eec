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

MAX_SOCKETS = 2
"""That one call holds at most."""

_MAX_ADDRESSES = 4  # that are tried; a host that can be reached at none of them is down
_NEXT_ADDRESS_DELAY_S = 0.25  # RFC 8305, 8
_SECOND_SOCKET_S = 1.0  # at the second socket; one round trip to anywhere takes less

_Connection = TypeVar("_Connection")


async def connect_to_first(
    addresses: Sequence[str],
    connect: Callable[[str], Coroutine[Any, Any, _Connection]],
    drop: Callable[[_Connection], None],
) -> _Connection:
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
        race.close()


class _Race(Generic[_Connection]):
    """One call of ``connect_to_first``."""

    def __init__(
        self,
        addresses: Sequence[str],
        connect: Callable[[str], Coroutine[Any, Any, _Connection]],
        drop: Callable[[_Connection], None],
    ) -> None:
        self._waiting = deque(interleave_families(addresses)[:_MAX_ADDRESSES])
        self._connect = connect
        self._drop = drop
        self._trying: list[asyncio.Task[_Connection]] = []  # the one that keeps its socket first
        self._errors: list[OSError] = []

    async def run(self) -> _Connection:
        """Try them until one is connected."""
        while self._waiting or self._trying:
            if self._waiting and len(self._trying) < MAX_SOCKETS:
                self._trying.append(asyncio.create_task(self._connect(self._waiting.popleft())))
            done, _ = await asyncio.wait(self._trying, timeout=self._timeout_s(), return_when=asyncio.FIRST_COMPLETED)
            if not done and len(self._trying) == MAX_SOCKETS:
                self._cancel(self._trying.pop())
            for task in [task for task in self._trying if task in done]:
                self._trying.remove(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                self._errors.append(error)
        raise next(filter(is_want, self._errors), self._errors[0])

    def close(self) -> None:
        """Give up what is still being tried."""
        for task in self._trying:
            self._cancel(task)

    def _timeout_s(self) -> float | None:
        if not self._waiting:
            return None
        return _NEXT_ADDRESS_DELAY_S if len(self._trying) < MAX_SOCKETS else _SECOND_SOCKET_S

    def _cancel(self, task: asyncio.Task[_Connection]) -> None:
        task.cancel()
        task.add_done_callback(self._drop_late)

    def _drop_late(self, task: asyncio.Task[_Connection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._drop(task.result())


def interleave_families(addresses: Sequence[str]) -> list[str]:
    """Addresses of both families in turn, the first one's family first, each in its order (RFC 8305, 4)."""
    families: dict[bool, list[str]] = {}  # in the order in which they come
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    longest = max(map(len, families.values()))
    return [family[index] for index in range(longest) for family in families.values() if index < len(family)]
