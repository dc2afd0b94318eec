"""TLS for the farm: certificates for its hosts, and connections that close as those of web servers do.

Rules: a connection is closed right after the last byte and TLS's close_notify, as nginx does it, without waiting for
the client's close_notify. asyncio's and uvloop's own TLS do wait for it, which would hide the fault of a client that
loses unread data when a connection closes.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import trustme

_HOSTS_PER_CERTIFICATE = 256  # making one for each host would cost the server more than the handshakes do
_READ_BYTES = 1 << 16


class Identities:
    """The TLS contexts of the hosts, for TLS 1.3, with certificates of an authority that is created here.

    Args:
        authority: The file to write the certificate to that clients must trust.
    """

    def __init__(self, authority: Path) -> None:
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(authority)
        self._of_network = cache(self._make)

    def of(self, address: str) -> ssl.SSLContext:
        """The context of the host with this address."""
        return self._of_network(address.rpartition(".")[0])

    def _make(self, network: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        addresses = [f"{network}.{host}" for host in range(_HOSTS_PER_CERTIFICATE)]
        self._authority.issue_cert(*addresses).configure_cert(context)
        return context


class TlsTransport(asyncio.Transport):
    """The transport that the inner protocol writes to; it encrypts."""

    def __init__(self, socket: asyncio.Transport, tls: ssl.SSLObject, encrypted: ssl.MemoryBIO) -> None:
        super().__init__()
        self._socket = socket
        self._tls = tls
        self._encrypted = encrypted

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send data."""
        self._tls.write(data)
        self.flush()

    def flush(self) -> None:
        """Send what TLS has produced, including handshake messages."""
        self._socket.write(self._encrypted.read())

    def close(self) -> None:
        """Send close_notify after what was written, and close the connection."""
        with suppress(ssl.SSLWantReadError):  # the client's close_notify is missing
            self._tls.unwrap()
        self.flush()
        self._socket.close()

    def abort(self) -> None:
        """Close the connection at once, without sending what is buffered."""
        self._socket.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the socket."""
        return self._socket.get_extra_info(name, default)


class TlsConnection(asyncio.Protocol):
    """One connection over TLS, which hands the plain bytes to another protocol.

    Args:
        identities: The certificates of the hosts.
        inner: The protocol that speaks HTTP.
    """

    def __init__(self, identities: Identities, inner: asyncio.Protocol) -> None:
        self._identities = identities
        self._inner = inner
        self._received = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._transport: TlsTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin TLS with the certificate of the host that the client connected to."""
        encrypted = ssl.MemoryBIO()
        context = self._identities.of(transport.get_extra_info("sockname")[0])
        self._tls = context.wrap_bio(self._received, encrypted, server_side=True)
        self._transport = TlsTransport(cast("asyncio.Transport", transport), self._tls, encrypted)
        self._inner.connection_made(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the inner protocol that the connection is closed."""
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """Tell the inner protocol to stop writing."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Tell the inner protocol to write again."""
        self._inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or decrypt what the client sent."""
        assert self._tls is not None, "set by connection_made"
        assert self._transport is not None, "set by connection_made"
        self._received.write(data)
        plain = b""
        try:
            plain = self._tls.read(_READ_BYTES)  # does the handshake first
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # the client rejects the certificate, or closes the connection
            self._transport.abort()
            return
        self._transport.flush()
        if plain:
            self._inner.data_received(plain)
