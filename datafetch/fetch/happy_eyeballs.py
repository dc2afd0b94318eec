"""Connects to a host that has several addresses, some of which may not respond ("Happy Eyeballs", RFC 8305).

Theory of operation. The first address keeps its socket until it succeeds or fails. If it takes longer than a moment, a
second socket tries the next address at the same time. If that takes longer than a second, it is given up for the
address after it, and so on. So the preferred address has all the time there is, every other one gets its chance, and a
request holds at most two descriptors however many addresses swallow packets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from datafetch.errors import is_exhaustion

MAX_SOCKETS = 2
"""Number of sockets that one call holds at most."""

_MAX_ADDRESSES = 4  # tried at most; a host that can be reached at none of them counts as down
_NEXT_ADDRESS_DELAY_S = 0.25  # RFC 8305, 8
_SECOND_SOCKET_S = 1.0  # for each address on the second socket; a round trip to anywhere takes less

_Connection = TypeVar("_Connection")


async def connect_to_first(
    addresses: Sequence[str],
    connect: Callable[[str], Coroutine[Any, Any, _Connection]],
    drop: Callable[[_Connection], None],
) -> _Connection:
    """Connect to the first of several addresses that answers.

    Args:
        addresses: IPv4 and IPv6 addresses, at least one, in order of preference.
        connect: Connects to one address.
        drop: Closes a connection that turns out not to be needed.

    Raises:
        OSError: All addresses failed. It is the first error, unless another says that this machine is out of
            descriptors or memory.
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
        self._trying: list[asyncio.Task[_Connection]] = []  # the one that keeps its socket comes first
        self._errors: list[OSError] = []

    async def run(self) -> _Connection:
        """Try the addresses until one is connected."""
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
        raise next(filter(is_exhaustion, self._errors), self._errors[0])

    def close(self) -> None:
        """Cancel all attempts that are still in progress."""
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
    """Alternate between the address families, starting with that of the first address (RFC 8305, 4)."""
    families: dict[bool, list[str]] = {}  # in order of first appearance
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    longest = max(map(len, families.values()))
    return [family[index] for index in range(longest) for family in families.values() if index < len(family)]
