"""ReceiveRate: a cap on how many bytes all connections together receive in a second.

Theory of operation. It is a token bucket: it fills at the rate, up to what a quarter of a second brings, and whatever
is received is taken out of it. Two things wait until there is something in it, each kind in the order in which it came:

* A request, before it is sent, when its deadline does not run yet. It pays in advance for as many bytes as requests
  usually bring; the difference to what it did bring is settled at its end. So responses are spaced out however many
  connections there are, and most of them never wait once they are on their way.
* A body that turns out longer than was paid for, before more of it is read. The attempt's deadline stands still
  meanwhile, the read buffer fills, reading from the socket pauses, and TCP's flow control holds the server back.

Bodies go before requests: what has begun is completed before its server loses patience. One that waits is charged when
its turn comes, which may overdraw the bucket; the next turn comes when that is made up for.

Rules: all bytes of responses count, TLS taken off, heads and unwanted bodies included. Time that is spent waiting here
never counts against a host.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from datafetch.fetch.policy import FetchPolicy

_BURST_S = 0.25
_FIRST_GUESS_BYTES = 64 * 1024
_WEIGHT = 1 / 16  # of the latest request, in what requests usually bring


def rate_of(policy: FetchPolicy) -> ReceiveRate | None:
    """The cap that a policy sets, for the running event loop; None if it sets none."""
    return None if policy.max_rate_bytes_per_s is None else ReceiveRate(policy.max_rate_bytes_per_s)


@dataclass(slots=True, eq=False)
class _Waiter:
    size_bytes: float
    granted: asyncio.Future[None]


class ReceiveRate:
    """Bounds the bytes that are received in a second, for any number of fetchers of one event loop.

    Args:
        bytes_per_s: How many, on average; above that, at most a quarter of them at once, and what is on its way.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._bytes_per_s = bytes_per_s
        self._level_bytes = bytes_per_s * _BURST_S
        self._filled_at_s = self._loop.time()
        self._usual_bytes = float(_FIRST_GUESS_BYTES)
        self._bodies: deque[_Waiter] = deque()
        self._requests: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def bytes_per_s(self) -> int:
        """How many bytes may be received in a second, on average."""
        return self._bytes_per_s

    def limit_to(self, bytes_per_s: int) -> None:
        """Set how many bytes may be received in a second, on average."""
        self._grant()  # at the rate that has held until now
        self._bytes_per_s = bytes_per_s
        self._grant()

    async def begin(self) -> Transfer:
        """Wait until another request may be sent; its ``Transfer`` is to be ended."""
        usual_bytes = self._usual_bytes
        await self._take(usual_bytes, self._requests)
        return Transfer(self, usual_bytes)

    async def take(self, size_bytes: float) -> None:
        """Wait until the turn of a body comes, and take what it has received out of the bucket."""
        await self._take(size_bytes, self._bodies)

    def settle(self, paid_bytes: float, received_bytes: int) -> None:
        """Take out of the bucket, or put back, what a request has brought more or less than was paid for."""
        self._usual_bytes += (received_bytes - self._usual_bytes) * _WEIGHT
        self._level_bytes += paid_bytes - received_bytes
        self._grant()

    async def _take(self, size_bytes: float, queue: deque[_Waiter]) -> None:
        waiter = _Waiter(size_bytes, self._loop.create_future())
        queue.append(waiter)
        self._grant()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if not waiter.granted.cancelled():  # its turn came in the same iteration of the loop
                self._level_bytes += size_bytes
                self._grant()
            raise

    def _grant(self) -> None:
        """Let those go on whose turn has come, or set a timer for the next one."""
        now_s = self._loop.time()
        filled_bytes = self._level_bytes + (now_s - self._filled_at_s) * self._bytes_per_s
        self._level_bytes = min(filled_bytes, self._bytes_per_s * _BURST_S)
        self._filled_at_s = now_s
        while self._level_bytes >= 0 and (queue := self._bodies or self._requests):
            waiter = queue.popleft()
            if not waiter.granted.done():  # otherwise its task was cancelled
                self._level_bytes -= waiter.size_bytes
                waiter.granted.set_result(None)
        if self._timer is not None:
            self._timer.cancel()  # its time is that of an earlier level, which may have been lower
            self._timer = None
        if self._bodies or self._requests:
            self._timer = self._loop.call_later(-self._level_bytes / self._bytes_per_s, self._grant)


class Transfer:
    """What one request receives.

    Args:
        rate: The cap.
        paid_bytes: What was taken out of the bucket for it already.

    Attributes:
        received_bytes: What has come over its connection; the connection counts it.
    """

    __slots__ = ("_paid_bytes", "_rate", "received_bytes")

    def __init__(self, rate: ReceiveRate, paid_bytes: float) -> None:
        self.received_bytes = 0
        self._rate = rate
        self._paid_bytes = paid_bytes

    @property
    def owes(self) -> bool:
        """Whether more has been received than was paid for."""
        return self.received_bytes > self._paid_bytes

    async def pay(self) -> None:
        """Wait until what has been received is paid for."""
        received_bytes = self.received_bytes
        await self._rate.take(received_bytes - self._paid_bytes)
        self._paid_bytes = received_bytes

    def end(self) -> None:
        """Settle what was paid with what was received."""
        self._rate.settle(self._paid_bytes, self.received_bytes)
