"""Makes the TLS contexts that all connections share.

Making one reads files and takes a while, so it must not be done on the event loop.
"""

from __future__ import annotations

import ssl

_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, which has a name in Python from 3.12 on


def tls_context() -> ssl.SSLContext:
    """Make the context that verifies servers as browsers do."""
    context = ssl.create_default_context()
    # Servers without secure renegotiation (RFC 5746) are old but not rare, and browsers accept them. It protects
    # against an attacker who prepends a request of his own to ours, which matters little where all images are public.
    context.options |= _LEGACY_SERVER_CONNECT
    context.set_alpn_protocols(["http/1.1"])
    return context


def lax_tls_context() -> ssl.SSLContext:
    """Make the context that verifies nothing and accepts outdated TLS.

    It accepts TLS 1.0 and 1.1, SHA-1 and keys of any length (OpenSSL's security level 0), if the installed OpenSSL
    still supports them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= _LEGACY_SERVER_CONNECT
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["http/1.1"])
    return context
