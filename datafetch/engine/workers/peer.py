"""Peer: another worker, as the client of the hosts and URLs that it owns.

Theory of operation. What is asked for, and what has been granted, is kept until it is given back. If the other worker
dies, another process takes its number, and is told all of that again: what was granted counts as granted, and what was
asked for is asked for again. So a task notices nothing of it but a wait.

Which of its hosts are paused or down, a worker tells the others as it happens (``Suspension``), and they tell it to the
process that replaces it. Everything else that the dead worker knew is lost: the limits of its hosts start from scratch,
and URLs whose results it knew are requested once more. A location in one of its spools may be asked for at its
replacement, whose spools have other numbers. There the entry's marker and checksum or the URL does not match, which is
as if it were no longer kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Self, TypeAlias

import msgspec

from datafetch.engine.dedup import ReadableSpools, ReadResult, ResultLocation, is_to_be_recorded, of_url
from datafetch.engine.workers.channel import Channel
from datafetch.engine.workers.messages import (
    AcquireSlot,
    Answer,
    FromOwner,
    Hello,
    HostIsDown,
    IsSuspended,
    LockUrl,
    ReadSpool,
    ReleaseSlot,
    ReportSlot,
    ResultRead,
    SlotGranted,
    ToOwner,
    UnlockUrl,
    UrlLocked,
    WasSuspended,
)
from datafetch.fetch.hosts import HostDownError, Suspension
from datafetch.fetch.shared_hosts import HostState, SlotReport
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult, from_payload

_MAX_SUSPENDED_HOSTS = 20_000  # that are remembered

_Asked: TypeAlias = AcquireSlot | LockUrl | ReadSpool


@dataclass(slots=True, eq=False)
class _Question:
    """What is asked for, or was granted and is held.

    Attributes:
        asked: The message that asks for it.
        answer: The answer, as soon as there is one.
    """

    asked: _Asked
    answer: asyncio.Future[Answer]

    @property
    def is_held(self) -> bool:
        """Whether it was granted, and is to be given back."""
        return not self.answer.cancelled() and isinstance(self.answer.result(), SlotGranted | UrlLocked)


class Peer:
    """Another worker.

    Args:
        worker: Its number.
        own_worker: The number of this one.
    """

    def __init__(self, worker: int, own_worker: int) -> None:
        self.worker = worker
        self._own_worker = own_worker
        self._channel: Channel[ToOwner, FromOwner] | None = None
        self._ids = count()
        self._questions: dict[int, _Question] = {}
        self._suspended: dict[str, tuple[float, Suspension]] = {}  # with the time when it was heard of

    async def serve(self, channel: Channel[ToOwner, FromOwner]) -> None:
        """Talk to the worker until it is gone."""
        self._channel = channel
        for question in self._questions.values():
            if not question.answer.done():
                channel.send(question.asked)
            elif question.is_held:
                channel.send(msgspec.structs.replace(question.asked, is_held=True))
        for host, left in self._left_suspensions():
            channel.send(WasSuspended(host, left))
        channel.send(Hello(self._own_worker))  # behind what is held, which the other then knows
        try:
            while messages := await channel.receive():
                for message in messages:
                    self._take(message)
        finally:
            if self._channel is channel:
                self._channel = None
            channel.close()

    async def acquire(self, host: str, number: int) -> SlotOfPeer:
        """Wait until the worker grants a slot at a host that it owns.

        Raises:
            HostDownError: The host is down, or goes down while the slot is waited for.
        """
        id_ = next(self._ids)
        answer = await self._ask(AcquireSlot(id_, host, number))
        if isinstance(answer, HostIsDown):
            del self._questions[id_]
            raise HostDownError(answer.reason)
        assert isinstance(answer, SlotGranted), "the answer to this question"
        return SlotOfPeer(self, id_, HostState(answer.was_healthy, answer.answered_ago_s, answer.may_wait))

    def report_slot(self, id_: int, what: SlotReport, reason: str, pause_s: float | None) -> None:
        """Report what became of the request in a slot."""
        self._send(ReportSlot(id_, what, reason, pause_s))

    def release_slot(self, id_: int) -> None:
        """Give a slot back."""
        del self._questions[id_]
        self._send(ReleaseSlot(id_))

    async def lock_url(self, url: str) -> tuple[int, ResultLocation | None]:
        """Wait until the worker grants the lock of a URL that it owns.

        Returns:
            What the lock is released with, and where the result of the URL may be.
        """
        id_ = next(self._ids)
        answer = await self._ask(LockUrl(id_, url.encode("utf-8", "surrogatepass")))
        assert isinstance(answer, UrlLocked), "the answer to this question"
        return id_, ResultLocation.unpack(answer.location) if answer.location else None

    def unlock_url(self, id_: int, location: ResultLocation | None) -> None:
        """Release the lock of a URL, and tell where its result is; None if there is nothing to remember."""
        del self._questions[id_]
        self._send(UnlockUrl(id_, 0 if location is None else location.pack()))

    async def read(self, location: ResultLocation) -> ImageResult | None:
        """A result that the worker has in one of its spools; None if it is no longer kept."""
        if self._channel is None:  # it died, and what replaces it has not written anything yet
            return None
        id_ = next(self._ids)
        answer = await self._ask(ReadSpool(id_, location.pack()))
        del self._questions[id_]
        assert isinstance(answer, ResultRead), "the answer to this question"
        record = None if answer.payload is None else from_payload(answer.payload)
        return record if isinstance(record, ImageResult) else None

    async def _ask(self, asked: _Asked) -> Answer:
        question = _Question(asked, asyncio.get_running_loop().create_future())
        self._questions[asked.id] = question
        self._send(asked)
        try:
            return await question.answer
        except asyncio.CancelledError:
            del self._questions[asked.id]
            if isinstance(asked, AcquireSlot):
                self._send(ReleaseSlot(asked.id))
            elif isinstance(asked, LockUrl):
                self._send(UnlockUrl(asked.id, 0))
            raise

    def _send(self, message: ToOwner) -> None:
        if self._channel is not None:  # otherwise what is held and asked for is sent when there is one again
            self._channel.send(message)

    def _take(self, message: FromOwner) -> None:
        if isinstance(message, IsSuspended):
            self._remember(message)
            return
        question = self._questions.get(message.id)
        if question is not None and not question.answer.done():  # otherwise it is no longer wanted
            question.answer.set_result(message)

    def _remember(self, message: IsSuspended) -> None:
        self._suspended.pop(message.host, None)
        if message.suspension is not None:
            self._suspended[message.host] = (time.monotonic(), message.suspension)
            if len(self._suspended) > _MAX_SUSPENDED_HOSTS:
                del self._suspended[next(iter(self._suspended))]

    def _left_suspensions(self) -> Iterator[tuple[str, Suspension]]:
        """What is left now of the suspensions that were heard of."""
        now_s = time.monotonic()
        for host, (heard_s, suspension) in self._suspended.items():
            if (left := suspension.after(now_s - heard_s)) is not None:
                yield host, left


class SlotOfPeer:
    """A slot at a host that another worker owns and has granted."""

    __slots__ = ("_id", "_peer", "state")

    def __init__(self, peer: Peer, id_: int, state: HostState) -> None:
        self._peer = peer
        self._id = id_
        self.state = state

    def report(self, what: SlotReport, reason: str = "", pause_s: float | None = None) -> None:
        """Report what became of the request."""
        self._peer.report_slot(self._id, what, reason, pause_s)

    def release(self) -> None:
        """Give the slot back."""
        self._peer.release_slot(self._id)


class UrlOfPeer:
    """A URL that another worker owns; a context manager, in which it is locked.

    Args:
        url: The URL.
        peer: Its owner.
        spools: The spools of this process.
        read: Reads a result, whichever worker has it.
    """

    def __init__(self, url: str, peer: Peer, spools: ReadableSpools, read: ReadResult) -> None:
        self._url = url
        self._peer = peer
        self._spools = spools
        self._read = read
        self._id = -1
        self._found: ResultLocation | None = None
        self._recorded: ResultLocation | None = None

    async def __aenter__(self) -> Self:
        self._id, self._found = await self._peer.lock_url(self._url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peer.unlock_url(self._id, self._recorded)

    async def lookup(self) -> ImageResult | None:
        """The recorded result of the URL; None where there is none, or it is no longer kept."""
        return None if self._found is None else of_url(await self._read(self._found), self._url)

    def record(self, result: ImageResult, spool: Spool, offset: int) -> None:
        """Record where its result was written."""
        if is_to_be_recorded(result):
            self._recorded = self._spools.location(spool, offset)
