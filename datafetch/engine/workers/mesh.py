"""Mesh: the connections of a worker with all others, and what hosts and URLs are shared through them.

Theory of operation. Each worker listens on a socket of this machine whose address the kernel chooses, and has each of
the others as a client (``PeerService``); and it is a client of each of them (``Peer``). The coordinator tells every
worker where the others listen, and tells it again when one was replaced. A worker is complete when it has all of these
connections; only then does it process samples, or grant anything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from datafetch.engine.dedup import Location, OwnUrl, ReadableSpools, UrlTable
from datafetch.engine.workers.channel import Channel, refuse_other_user
from datafetch.engine.workers.messages import FromOwner, ToOwner
from datafetch.engine.workers.owner import owner_of_host, owner_of_url
from datafetch.engine.workers.peer import Peer, UrlOfPeer
from datafetch.engine.workers.service import Owned, PeerService
from datafetch.fetch.hosts import Hosts
from datafetch.fetch.shared_hosts import HostOwner, SharedHosts
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult

_BACKLOG = 256  # connections that are not yet accepted; as many as there may be workers
_CONNECT_TIMEOUT_S = 30.0  # a machine under load may take seconds to let the other process accept

_log = logging.getLogger(__name__)


class Mesh:
    """The connections of one worker; a context manager.

    Args:
        worker: Its number, from 1.
        workers: The number of workers.
        spools: The spools that it writes.
        group: The group of tasks that the connections belong to.

    Attributes:
        address: The abstract address of its socket.
    """

    def __init__(self, worker: int, workers: int, spools: ReadableSpools, group: asyncio.TaskGroup) -> None:
        self.worker = worker
        self._workers = workers
        self._spools = spools
        self._group = group
        self._urls = UrlTable()
        self._peers = {number: Peer(number, worker) for number in range(1, workers + 1) if number != worker}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # the kernel chooses an abstract address that no other socket has
        self._listener.listen(_BACKLOG)
        self.address: bytes = self._listener.getsockname()
        self._owned: asyncio.Future[Owned] = asyncio.get_running_loop().create_future()
        self._connected: set[int] = set()
        self._clients: set[int] = set()
        self._has_all_clients = asyncio.Event()
        self._is_complete = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._check_complete()
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()

    def share_hosts(self, own: Hosts, on_wait: Callable[[], None]) -> SharedHosts:
        """Make the slots of hosts shared with all other workers."""
        self._owned.set_result(Owned(own, self._urls, self._spools))
        return SharedHosts(own, self._owner_of, on_wait)

    def lock(self, url: str) -> OwnUrl | UrlOfPeer:
        """Wait until no task of any worker requests this URL, and keep others from requesting it."""
        owner = owner_of_url(url, self._workers)
        if owner == self.worker:
            return OwnUrl(url, self._urls, self._spools, self._read)
        return UrlOfPeer(url, self._peers[owner], self._spools, self._read)

    async def retain(self, spool: Spool) -> None:
        """Keep the spool of a published shard open, and release the oldest ones where that exceeds the bounds."""
        await self._spools.retain(spool)

    def close(self) -> None:
        """Release all spools."""
        self._spools.close()

    def connect(self, worker: int, address: bytes) -> None:
        """Connect to another worker, or to the one that has replaced it."""
        self._start(self._talk(self._peers[worker], address))

    async def wait_until_complete(self) -> None:
        """Wait until there is a connection from and to each other worker."""
        await self._is_complete.wait()

    def stop_waiting(self) -> None:
        """Let ``wait_until_complete`` return: there is nothing to do, and others may have ended already."""
        self._is_complete.set()

    def _owner_of(self, host: str) -> HostOwner | None:
        return self._peers.get(owner_of_host(host, self._workers))

    async def _read(self, location: Location) -> ImageResult | None:
        if location.worker == self.worker:
            return await self._spools.read(location)
        peer = self._peers.get(location.worker)
        return None if peer is None else await peer.read(location)

    async def _talk(self, peer: Peer, address: bytes) -> None:
        try:
            connection = await asyncio.to_thread(_connect, address)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError as error:  # it has ended since; the coordinator will tell of the one that replaces it
            _log.debug("worker %d does not accept connections: %s", peer.worker, error)
            return
        self._connected.add(peer.worker)
        self._check_complete()
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
        service = PeerService(await self._owned, Channel(reader, writer, ToOwner), self._has_all_clients)
        await service.run(self._greet)

    def _greet(self, worker: int) -> None:
        self._clients.add(worker)
        self._check_complete()

    def _check_complete(self) -> None:
        if self._clients.issuperset(self._peers):
            self._has_all_clients.set()
            if self._connected.issuperset(self._peers):
                self._is_complete.set()

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
