"""PeerService: what a worker does for the others, as the owner of hosts and URLs.

Rules: what a client has of a worker is released when the client is gone, however it ended. A worker that replaces
another grants nothing before all others have told it what the one before had granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from datafetch.engine.dedup import ReadableSpools, ResultLocation, UrlTable
from datafetch.engine.workers.channel import Channel
from datafetch.engine.workers.messages import (
    AcquireSlot,
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
from datafetch.fetch.hosts import HostDownError, OwnSlot
from datafetch.fetch.shared_hosts import SharedHosts, SlotReport, state_of
from datafetch.store.spool_format import to_payload

_MAX_READS = 2  # results of spools that are in memory for one client, as it has not taken them yet


@dataclass(frozen=True, slots=True)
class Owned:
    """What a worker owns, and serves to others.

    Attributes:
        hosts: The slots of hosts, of which it serves those of its own.
        urls: The URLs that it owns.
        spools: The spools that it has written.
    """

    hosts: SharedHosts
    urls: UrlTable
    spools: ReadableSpools


class PeerService:
    """Serves one other worker.

    Args:
        owned: What is served.
        channel: The connection.
        may_grant: Set once all others have said what they hold.
        group: The group of tasks that waiting and reading belong to; it ends with their errors.
    """

    def __init__(
        self,
        owned: Owned,
        channel: Channel[FromOwner, ToOwner],
        may_grant: asyncio.Event,
        group: asyncio.TaskGroup,
    ) -> None:
        self._owned = owned
        self._hosts = owned.hosts.own
        self._channel = channel
        self._may_grant = may_grant
        self._group = group
        self._reading = asyncio.Semaphore(_MAX_READS)
        self._slots: dict[int, OwnSlot] = {}
        self._urls: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by the id of what they wait for or read

    async def run(self, on_greeted: Callable[[int], None]) -> None:
        """Serve the client until it is gone.

        Args:
            on_greeted: Called with the client's number when it has said what it holds.
        """
        try:
            while messages := await self._channel.receive():
                for message in messages:
                    if isinstance(message, Hello):
                        for host, suspension in self._hosts.suspensions():
                            self._channel.send(IsSuspended(host, suspension))
                        on_greeted(message.worker)
                    else:
                        self._take(message)
        finally:
            self._release_all()
            self._channel.close()

    def tell_suspension(self, host: str) -> None:
        """Tell the client that a host is suspended, or no longer is."""
        self._channel.send(IsSuspended(host, self._hosts.suspension(host)))

    def _take(self, message: ToOwner) -> None:
        match message:
            case WasSuspended():
                self._hosts.suspend(message.host, message.suspension)
            case AcquireSlot():
                self._acquire_slot(message)
            case ReportSlot():
                if message.id in self._slots:
                    _report(self._slots[message.id], message)
            case ReleaseSlot():
                if message.id in self._slots:
                    self._hosts.release(self._slots.pop(message.id))
                else:
                    self._cancel(message.id)
            case LockUrl():
                self._lock_url(message)
            case UnlockUrl():
                self._unlock_url(message)
            case ReadSpool():
                self._start(message.id, self._read(message))

    def _acquire_slot(self, asked: AcquireSlot) -> None:
        if asked.is_held:
            slot = self._slots[asked.id] = self._hosts.slot(asked.host, asked.number)
            self._hosts.adopt(slot)
            return
        try:
            if self._may_grant.is_set():
                slot = self._hosts.slot(asked.host, asked.number)
                if self._hosts.try_acquire(slot):
                    self._grant_slot(asked, slot)
                    return
        except HostDownError as error:
            self._channel.send(HostIsDown(asked.id, error.reason))
            return
        self._start(asked.id, self._wait_for_slot(asked))

    async def _wait_for_slot(self, asked: AcquireSlot) -> None:
        await self._may_grant.wait()
        slot = self._hosts.slot(asked.host, asked.number)
        try:
            await self._owned.hosts.acquire_for_other(slot)
        except HostDownError as error:
            self._channel.send(HostIsDown(asked.id, error.reason))
        else:
            self._grant_slot(asked, slot)

    def _grant_slot(self, asked: AcquireSlot, slot: OwnSlot) -> None:
        self._slots[asked.id] = slot
        state = state_of(self._hosts, asked.host)
        self._channel.send(SlotGranted(asked.id, state.was_healthy, state.answered_ago_s, state.may_wait))

    def _lock_url(self, asked: LockUrl) -> None:
        url = asked.url.decode("utf-8", "surrogatepass")
        may_lock = asked.is_held or self._may_grant.is_set()
        if may_lock and self._owned.urls.try_acquire(url):
            self._urls[asked.id] = url
            if not asked.is_held:
                self._tell_result(asked.id, url)
            return
        self._start(asked.id, self._wait_for_url(asked, url))

    async def _wait_for_url(self, asked: LockUrl, url: str) -> None:
        await self._may_grant.wait()
        await self._owned.urls.acquire(url)
        self._urls[asked.id] = url
        self._tell_result(asked.id, url)

    def _tell_result(self, id_: int, url: str) -> None:
        location = self._owned.urls.find(url)
        self._channel.send(UrlLocked(id_, 0 if location is None else location.pack()))

    def _unlock_url(self, message: UnlockUrl) -> None:
        url = self._urls.pop(message.id, None)
        if url is None:
            self._cancel(message.id)
            return
        if message.location:
            self._owned.urls.record(url, ResultLocation.unpack(message.location))
        self._owned.urls.release(url)

    async def _read(self, asked: ReadSpool) -> None:
        async with self._reading:
            result = await self._owned.spools.read(ResultLocation.unpack(asked.location))
            self._channel.send(ResultRead(asked.id, None if result is None else to_payload(result)))
            await self._channel.drain()

    def _start(self, id_: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[id_] = self._group.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(id_, None))

    def _cancel(self, id_: int) -> None:
        task = self._tasks.get(id_)
        if task is not None:
            task.cancel()

    def _release_all(self) -> None:
        for task in tuple(self._tasks.values()):
            task.cancel()
        for slot in self._slots.values():
            self._hosts.release(slot)
        for url in self._urls.values():
            self._owned.urls.release(url)
        self._slots.clear()
        self._urls.clear()


def _report(slot: OwnSlot, message: ReportSlot) -> None:
    match message.what:
        case SlotReport.ANSWERED:
            slot.answered()
        case SlotReport.FAILED:
            slot.failed(message.reason)
        case SlotReport.TIMED_OUT:
            slot.timed_out(message.reason)
        case SlotReport.THROTTLED:
            slot.throttled(message.pause_s, message.reason)
