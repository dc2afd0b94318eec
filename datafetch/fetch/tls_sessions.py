"""TLS sessions of servers, so that a further connection to one takes half the CPU time of the first.

Theory of operation. Whoever resumes a session proves that it knows a secret of an earlier connection, and so needs no
certificate: the one that was verified then counts. A session belongs to one server and one way of verifying. Storing
one takes a third of the time of a handshake, so it is done for servers that are connected to a second time; most hosts
of a web dataset have one image. A server that does not resume its sessions is not asked again, nor is one where a
handshake with a session failed: not every server, or device on the way to it, falls back to a full one.

Rules: a session is kept for an hour at most, also where the server allows days, so that a certificate is verified
anew at least that often.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Hashable

_MAX_SERVERS = 1024  # about 10 kB each, where there is a session
_MAX_AGE_S = 3600.0


class TlsServer:
    """What is known of the sessions of one server."""

    __slots__ = ("_connections", "_is_without", "_loop", "_session", "_stored_at_s")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = 0
        self._is_without = False
        self._session: ssl.SSLSession | None = None
        self._stored_at_s = 0.0

    def session_to_resume(self) -> ssl.SSLSession | None:
        """Count a new connection, and return the session that it is to resume; None if it is to begin one."""
        self._connections += 1
        if self._session is not None and self._loop.time() > self._stored_at_s + _MAX_AGE_S:
            self._session = None
        return self._session

    def learn_from(self, tls: ssl.SSLObject, offered: ssl.SSLSession | None) -> None:
        """Learn from a connection over which data has arrived; the tickets of its session arrive right before the data.

        Args:
            tls: The connection.
            offered: The session that it was to resume.
        """
        if offered is not None:
            if not tls.session_reused:
                self._session, self._is_without = None, True
        elif self._connections > 1 and self._session is None and not self._is_without:
            session = tls.session
            if session is None or not (session.has_ticket or session.id):
                self._is_without = True
            else:
                self._session, self._stored_at_s = session, self._loop.time()

    def refuse(self) -> None:
        """Offer no session any more, since a handshake with one has failed."""
        self._session, self._is_without = None, True


class TlsSessions:
    """The servers that were connected to most recently, all verified by the same TLS context."""

    def __init__(self) -> None:
        self._servers: OrderedDict[Hashable, TlsServer] = OrderedDict()

    def of(self, server: Hashable) -> TlsServer:
        """What is known of a server, which is remembered from now on."""
        known = self._servers.get(server)
        if known is None:
            known = self._servers[server] = TlsServer()
            if len(self._servers) > _MAX_SERVERS:
                self._servers.popitem(last=False)
        else:
            self._servers.move_to_end(server)
        return known
