"""Translates exceptions of the network into failures. This is the only place that does."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from datafetch.errors import ResourceError
from datafetch.fetch.connection import ConnectionLostError
from datafetch.fetch.connections import NoConnectionError, TlsError
from datafetch.fetch.content_encoding import CodingError
from datafetch.fetch.dns.address_guard import BlockedAddressError
from datafetch.fetch.dns.resolver import NameNotFoundError, NameServerError
from datafetch.fetch.hosts import HostDownError
from datafetch.fetch.response_body import FramingTooLargeError
from datafetch.fetch.response_head import ProtocolError
from datafetch.fetch.urls import BadUrlError
from datafetch.model.outcome import Failure, FailureKind

WEB_FAULTS = (OSError, BadUrlError, CodingError, FramingTooLargeError, ProtocolError)
"""The exceptions by which faults of the web are raised."""

# EADDRNOTAVAIL is not among them: a machine without IPv6 reports it for every IPv6 address.
_OUR_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_MAX_DETAIL_CHARS = 200

_OURS: Mapping[type[Exception], FailureKind] = {
    BlockedAddressError: FailureKind.BLOCKED_ADDRESS,
    NameNotFoundError: FailureKind.DNS_NOT_FOUND,
    NameServerError: FailureKind.DNS_FAILED,
    HostDownError: FailureKind.HOST_DOWN,
    BadUrlError: FailureKind.BAD_URL,
    CodingError: FailureKind.DISCONNECTED,
    FramingTooLargeError: FailureKind.TOO_LARGE,
    ProtocolError: FailureKind.DISCONNECTED,
    TlsError: FailureKind.TLS,
    NoConnectionError: FailureKind.CONNECT,
    ConnectionLostError: FailureKind.DISCONNECTED,
}
"""Exceptions of this package; their messages say enough without the name of the class."""

# The first class that fits decides, so subclasses come before their bases.
_KINDS: Mapping[type[Exception], FailureKind] = {
    **_OURS,
    TimeoutError: FailureKind.TIMEOUT,
    OSError: FailureKind.DISCONNECTED,
}
_WORDS: Mapping[type[Exception], str] = {TimeoutError: "the deadline passed before the last byte"}


class SocketsExhaustedError(ResourceError):
    """This machine has no descriptor, or no memory, for another socket. That passes as other requests end."""


def classify(error: Exception) -> Failure:
    """Make a failure of an exception that the operating system or this package raised.

    Args:
        error: One of ``WEB_FAULTS``, as raised by a request.

    Returns:
        A failure without attempts, URL or time, which the caller adds.

    Raises:
        SocketsExhaustedError: The fault is this machine's, so no image may be blamed for it.
    """
    if isinstance(error, OSError) and error.errno in _OUR_ERRNOS:
        raise SocketsExhaustedError(
            f"this machine ran out of sockets or memory for them ({os.strerror(error.errno)}); "
            "lower --connections or raise 'ulimit -n', then run the same command again"
        ) from error
    for exception, kind in _KINDS.items():
        if isinstance(error, exception):
            networks = error.networks if isinstance(error, BlockedAddressError) else ()
            return Failure(kind, _describe(error), networks=networks)
    raise error


def _describe(error: Exception) -> str:
    """Describe an exception, which may quote a server, in at most 200 printable characters."""
    text = str(error)
    if not isinstance(error, tuple(_OURS)):
        text = f"{type(error).__name__}: {text}" if text else _WORDS.get(type(error), type(error).__name__)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:_MAX_DETAIL_CHARS]
