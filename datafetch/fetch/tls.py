"""The TLS context that all connections share."""

from __future__ import annotations

import ssl

_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, which Python has a name for from 3.12 on


def tls_context(*, verify: bool) -> ssl.SSLContext:
    """Make the context. Reads the system's certificates from disk, so not for the event loop.

    Args:
        verify: Whether a server must prove that it is who its name says.
    """
    context = ssl.create_default_context()
    # Servers without secure renegotiation (RFC 5746) are old and not rare; browsers still talk to them. What it guards
    # against is somebody else's request in front of ours, and ours ask for public pictures.
    context.options |= _LEGACY_SERVER_CONNECT
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
