"""Mesh: the connections of a worker with all others.

Theory of operation. Each worker listens on a socket of this machine whose address the kernel chooses, and has each of
the others as a client (``PeerService``); and it is a client of each of them (``Peer``). The coordinator tells every
worker where the others listen, and tells it again when one was replaced. A worker is connected when it has all of these
connections; only then does it process samples, or grant anything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from datafetch.engine.dedup import ReadableSpools, UrlTable
from datafetch.engine.workers.channel import Channel, refuse_other_user
from datafetch.engine.workers.messages import FromOwner, ToOwner
from datafetch.engine.workers.owner import owner_of_host
from datafetch.engine.workers.peer import Peer
from datafetch.engine.workers.service import Owned, PeerService
from datafetch.fetch.hosts import Hosts
from datafetch.fetch.shared_hosts import HostOwner, SharedHosts

_BACKLOG = 256  # connections that are not yet accepted; as many as there may be workers
_CONNECT_TIMEOUT_S = 30.0  # the backlog has room for all workers, so this is for a machine that hardly moves

_log = logging.getLogger(__name__)


class Mesh:
    """The connections of one worker; a context manager.

    Args:
        worker: Its number, from 1.
        workers: The number of workers.
        urls: The URLs that it owns.
        spools: The spools that it writes.
        group: The group of tasks that the connections belong to; it ends with their errors.

    Attributes:
        worker: Its number.
        workers: The number of workers.
        address: The abstract address of its socket.
    """

    def __init__(
        self, worker: int, workers: int, urls: UrlTable, spools: ReadableSpools, group: asyncio.TaskGroup
    ) -> None:
        self.worker = worker
        self.workers = workers
        self._urls = urls
        self._spools = spools
        self._group = group
        self._peers = {number: Peer(number, worker) for number in range(1, workers + 1) if number != worker}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # the kernel chooses an abstract address that no other socket has
        self._listener.listen(_BACKLOG)
        self.address: bytes = self._listener.getsockname()
        self._owned: asyncio.Future[Owned] = asyncio.get_running_loop().create_future()
        self._reached: set[int] = set()
        self._greeted: set[int] = set()
        self._all_have_greeted = asyncio.Event()
        self._is_connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._services: set[PeerService] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._check_connected()
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()

    def peer(self, worker: int) -> Peer | None:
        """Another worker, by its number; None if that is this one's."""
        return self._peers.get(worker)

    def share_hosts(self, own: Hosts, on_wait: Callable[[], None]) -> SharedHosts:
        """Make the slots of hosts shared with all other workers."""
        shared = SharedHosts(own, self._owner_of, on_wait)
        own.watch_suspensions(self._tell_suspension)
        self._owned.set_result(Owned(shared, self._urls, self._spools))
        return shared

    def connect(self, worker: int, address: bytes) -> None:
        """Connect to another worker, or to the one that has replaced it."""
        self._start(self._talk(self._peers[worker], address))

    async def wait_until_connected(self) -> None:
        """Wait until there is a connection from and to each other worker."""
        await self._is_connected.wait()

    def stop_waiting(self) -> None:
        """Let ``wait_until_connected`` return: there is nothing to do, and others may have ended already."""
        self._is_connected.set()

    def _owner_of(self, host: str) -> HostOwner | None:
        return self.peer(owner_of_host(host, self.workers))

    async def _talk(self, peer: Peer, address: bytes) -> None:
        try:
            connection = await asyncio.to_thread(_connect, address)
        except ConnectionRefusedError:  # it has ended since; the coordinator will tell of the one that replaces it
            return
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        self._reached.add(peer.worker)
        self._check_connected()
        await peer.serve(Channel(reader, writer, FromOwner))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            refuse_other_user(writer.get_extra_info("socket"))
        except PermissionError as error:
            _log.warning("%s; the connection was closed", error)
            writer.close()
        else:
            self._start(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        owned = await self._owned
        service = PeerService(owned, Channel(reader, writer, ToOwner), self._all_have_greeted, self._group)
        self._services.add(service)
        try:
            await service.run(self._greet)
        finally:
            self._services.remove(service)

    def _tell_suspension(self, host: str) -> None:
        for service in self._services:
            service.tell_suspension(host)

    def _greet(self, worker: int) -> None:
        self._greeted.add(worker)
        self._check_connected()

    def _check_connected(self) -> None:
        if self._greeted.issuperset(self._peers):
            self._all_have_greeted.set()
            if self._reached.issuperset(self._peers):
                self._is_connected.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _connect(address: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        connection.connect(address)
        refuse_other_user(connection)
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection
