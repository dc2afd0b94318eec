"""The TLS contexts that all connections share.

Both read files or take a while, so they are not made on the event loop.
"""

from __future__ import annotations

import ssl

_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, which Python has a name for from 3.12 on


def tls_context() -> ssl.SSLContext:
    """Make the context for servers that prove who they are, as browsers ask for it."""
    context = ssl.create_default_context()
    # Servers without secure renegotiation (RFC 5746) are old and not rare; browsers still talk to them. What it guards
    # against is somebody else's request in front of ours, and ours ask for public pictures.
    context.options |= _LEGACY_SERVER_CONNECT
    context.set_alpn_protocols(["http/1.1"])
    return context


def lax_tls_context() -> ssl.SSLContext:
    """Make the context for servers that prove nothing, or that speak TLS as it was spoken long ago.

    It takes TLS 1.0 and 1.1, hashes by SHA-1 and keys of any length, which security level 0 of OpenSSL stands for, as
    far as the OpenSSL at hand has them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= _LEGACY_SERVER_CONNECT
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["http/1.1"])
    return context
