"""TLS between the socket of a connection and the protocol that receives its responses.

Theory of operation. ``TlsConnection`` takes the place of the protocol at the socket and makes the handshake. From then
on it decrypts whatever arrives, at once and completely, and passes it on; what is written goes through the
``TlsTransport``. A failed handshake, a close_notify, and bytes that are no TLS all end the connection, and the protocol
learns of it as of the end of any other.

asyncio and uvloop have TLS of their own. It parses each server's certificate into a dictionary that is not used here,
reserves a quarter of a megabyte for each connection, passes on each TLS record by itself, and discards what it holds
back when the server closes the connection (docs/performance.md).

Rules: OpenSSL alone decides whether a server is who it says it is, as the context demands. No byte stays here: flow
control happens at the socket.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

from datafetch.fetch.tls_sessions import TlsServer

READ_BYTES = 128 * 1024
"""Decrypted bytes that are passed on at once; most images are smaller."""
# Tickets of sessions take a few kB. Requests for new keys cost far more CPU time than data of their size: without a
# bound, a server that sent nothing else held up the event loop for 25 s; with it, for 0.1 s.
_MAX_BYTES_WITHOUT_DATA = 64 * 1024


class TlsConnection(asyncio.Protocol):
    """Receives what comes from the socket, and hands the decrypted bytes to another protocol.

    Args:
        protocol: Receives the decrypted bytes, and the end of the connection.
        context: Says how servers are verified.
        server_name: The host name or address that the server's certificate must be valid for.
        buffer: Room for ``READ_BYTES``, which any number of connections of one event loop share: it holds nothing from
            one call to the next.
        server: Has the session to resume, and learns of the new one; None if the server is not verified.

    Attributes:
        secured: Is done once the handshake is. Raises ``ssl.SSLError`` where it failed, and ``OSError`` where the
            connection ended before.
        offers_session: Whether an earlier session is to be resumed.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        server_name: str,
        *,
        buffer: memoryview,
        server: TlsServer | None = None,
    ) -> None:
        self.secured: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._protocol = protocol
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._offered = None if server is None else server.session_to_resume()
        self.offers_session = self._offered is not None
        self._server = server
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=self._offered)
        self._buffer = buffer
        self._socket: asyncio.Transport | None = None
        self._is_secured = False
        self._failure: ssl.SSLError | None = None
        self._bytes_without_data = 0  # received since data was last passed on

    def start(self, socket: asyncio.Transport) -> None:
        """Take over an open connection, and send the first message of the handshake."""
        self._socket = socket
        socket.set_protocol(self)
        self._shake_hands(socket)

    def transport(self) -> TlsTransport:
        """The transport to write to once the handshake is done."""
        assert self._socket is not None, "it has been started"
        return TlsTransport(self._socket, self._tls, self._outgoing)

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or decrypt what has arrived and pass it on; the event loop calls this."""
        socket = self._socket
        if socket is None or socket.is_closing():
            return
        self._incoming.write(data)
        if self._is_secured:
            self._bytes_without_data += len(data)
        else:
            self._shake_hands(socket)
        if self._is_secured:
            self._pass_on(socket)
            if self._bytes_without_data > _MAX_BYTES_WITHOUT_DATA:
                self._fail(socket, ssl.SSLError(ssl.SSL_ERROR_SSL, "the server sends TLS messages without data"))

    def eof_received(self) -> None:
        """The server will send no more; ``connection_lost`` follows."""
        self._protocol.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the handshake or tell the protocol; the event loop calls this."""
        self._socket = None
        error = self._failure or exc
        if not self.secured.done():
            self.secured.set_exception(error or ConnectionResetError("the connection was closed in the TLS handshake"))
        self._protocol.connection_lost(cast("Exception | None", error))

    def _shake_hands(self, socket: asyncio.Transport) -> None:
        """Continue the handshake with the bytes that have arrived."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail(socket, error)
            return
        else:
            self._is_secured = True
            if not self.secured.done():
                self.secured.set_result(None)
        self._send(socket)

    def _pass_on(self, socket: asyncio.Transport) -> None:
        """Decrypt everything that has arrived whole."""
        tls, incoming, buffer = self._tls, self._incoming, self._buffer
        read_into = cast("Callable[[int, memoryview], int]", tls.read)  # with a buffer, it returns the number of bytes
        length, is_over = 0, False
        try:
            # An exception for the lack of data takes longer than to decrypt a record, so it is avoided where possible.
            while not is_over and (incoming.pending or tls.pending()):
                count = read_into(len(buffer) - length, buffer[length:])
                is_over = not count
                length += count
                self._bytes_without_data = 0
                if length == len(buffer):
                    self._protocol.data_received(bytes(buffer))
                    length = 0
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            is_over = True
        except ssl.SSLError as error:
            self._fail(socket, error)
        if length:
            if self._server is not None:
                self._server.learn_from(tls, self._offered)
                self._server = self._offered = None
            self._protocol.data_received(bytes(buffer[:length]))
        self._send(socket)
        if is_over:
            self._protocol.eof_received()
            socket.close()

    def _send(self, socket: asyncio.Transport) -> None:
        """Send what TLS has to say by itself: the handshake, and answers to requests for new keys."""
        if self._outgoing.pending and not socket.is_closing():
            socket.write(self._outgoing.read())

    def _fail(self, socket: asyncio.Transport, error: ssl.SSLError) -> None:
        self._failure = error
        if not self.secured.done():
            self.secured.set_exception(error)
        socket.abort()


class TlsTransport(asyncio.Transport):
    """Encrypts what is written.

    Args:
        socket: The connection below.
        tls: Encrypts, once the handshake is done.
        outgoing: What ``tls`` has encrypted.
    """

    def __init__(self, socket: asyncio.Transport, tls: ssl.SSLObject, outgoing: ssl.MemoryBIO) -> None:
        super().__init__()
        self._socket = socket
        self._tls = tls
        self._outgoing = outgoing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data; the connection ends where TLS can't."""
        try:
            self._tls.write(data)
        except ssl.SSLError:  # the server has ended TLS, or begun another handshake
            self._socket.abort()
        else:
            self._socket.write(self._outgoing.read())

    def abort(self) -> None:
        """Close the connection at once."""
        self._socket.abort()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._socket.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport below knows."""
        return self._socket.get_extra_info(name, default)
