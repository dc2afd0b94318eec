"""TLS for the farm: who its hosts are, and connections that end as those of web servers do.

Rules: the end of a connection follows at once behind the last byte and TLS's goodbye, as with nginx, without waiting
for the client's goodbye. asyncio's and uvloop's own TLS wait for it, and a client that loses what it has not read yet
when the connection ends would lose nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import trustme

_HOSTS_PER_CERTIFICATE = 256  # the network of them: one each would cost the server more than their handshakes do
_READ_BYTES = 1 << 16


class Identities:
    """What the hosts prove who they are by: TLS 1.3, and certificates of an authority that is made here.

    Args:
        authority: Where to leave the certificate that clients must trust.
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
        """Send, as the socket takes it."""
        self._tls.write(data)
        self.flush()

    def flush(self) -> None:
        """Send what TLS itself has to say."""
        self._socket.write(self._encrypted.read())

    def close(self) -> None:
        """Say goodbye behind what was written, and end the connection."""
        with suppress(ssl.SSLWantReadError):  # the client's goodbye
            self._tls.unwrap()
        self.flush()
        self._socket.close()

    def abort(self) -> None:
        """End the connection, whatever is not sent yet."""
        self._socket.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the socket."""
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
        """Take the connection; its address says who is to prove its identity."""
        encrypted = ssl.MemoryBIO()
        context = self._identities.of(transport.get_extra_info("sockname")[0])
        self._tls = context.wrap_bio(self._received, encrypted, server_side=True)
        self._transport = TlsTransport(cast("asyncio.Transport", transport), self._tls, encrypted)
        self._inner.connection_made(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        """It has ended."""
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take some of the handshake, or of what the client says."""
        assert self._tls is not None, "the connection comes first"
        assert self._transport is not None, "the same"
        self._received.write(data)
        plain = b""
        try:
            plain = self._tls.read(_READ_BYTES)  # shakes hands first
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # the client refuses this identity, or takes its leave
            self._transport.abort()
            return
        self._transport.flush()
        if plain:
            self._inner.data_received(plain)
