"""Foreign exceptions to failures, in one place."""

from __future__ import annotations

import errno
import os

import aiohttp
from aiohttp.http import HttpProcessingError

from datafetch.errors import ResourceError
from datafetch.fetch.address import BlockedAddressError
from datafetch.fetch.client import ProtocolError
from datafetch.fetch.coding import CodingError
from datafetch.fetch.connections import NoConnectionError, TlsError
from datafetch.fetch.hosts import HostDownError
from datafetch.fetch.resolver import NameNotFoundError, NameServerError
from datafetch.fetch.urls import BadUrlError
from datafetch.model import Failure, FailureKind

WEB_FAULTS = (aiohttp.ClientError, HttpProcessingError, OSError, BadUrlError, CodingError, ProtocolError)
"""What is raised for faults of the web."""

# Not EADDRNOTAVAIL: it is also what a machine without IPv6 says about an address of IPv6.
_OUR_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_MAX_DETAIL_CHARS = 200

# In order: the first class that fits decides, so subclasses stand before their bases.
_KIND_BY_EXCEPTION: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (BlockedAddressError, FailureKind.BLOCKED_ADDRESS),
    (NameNotFoundError, FailureKind.DNS_NOT_FOUND),
    (NameServerError, FailureKind.DNS_FAILED),
    (HostDownError, FailureKind.HOST_DOWN),
    (BadUrlError, FailureKind.BAD_URL),
    (CodingError, FailureKind.DISCONNECTED),
    (ProtocolError, FailureKind.DISCONNECTED),
    (TlsError, FailureKind.TLS),
    (NoConnectionError, FailureKind.CONNECT),
    (TimeoutError, FailureKind.TIMEOUT),
    (aiohttp.ClientError, FailureKind.DISCONNECTED),
    (HttpProcessingError, FailureKind.DISCONNECTED),
    (OSError, FailureKind.DISCONNECTED),
)
_WORDS: dict[type[BaseException], str] = {TimeoutError: "the deadline passed before the last byte"}
_WORDED = (
    *(BlockedAddressError, NameNotFoundError, NameServerError, HostDownError, BadUrlError, CodingError),
    *(ProtocolError, TlsError, NoConnectionError),
)
"""Ours: their text needs no class's name before it."""


class PressureError(ResourceError):
    """This machine has no descriptor, or no memory, for another socket. That passes when requests end."""


def classify(error: BaseException) -> Failure:
    """Name the kind of failure behind an exception of aiohttp, aiodns or the operating system.

    Args:
        error: One of ``WEB_FAULTS``, as raised by a request.

    Returns:
        A failure without attempts, URL or time; the caller knows those.

    Raises:
        PressureError: The fault is this machine's, and no image is to blame.
    """
    for number in _OUR_ERRNOS:
        # Several addresses tried in vain become one error without a number, whose text tells theirs (aiohappyeyeballs).
        if isinstance(error, OSError) and (error.errno == number or f"[Errno {number}]" in str(error)):
            raise PressureError(
                f"this machine ran out of sockets or memory for them ({os.strerror(number)}); "
                "lower --connections or raise 'ulimit -n', then run the same command again"
            ) from error
    for exception, kind in _KIND_BY_EXCEPTION:
        if isinstance(error, exception):
            return Failure(kind, describe(error))
    raise error


def describe(error: BaseException) -> str:
    """An exception in at most 200 printable characters; it may quote the web."""
    if isinstance(error, _WORDED):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else _WORDS.get(type(error), type(error).__name__)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:_MAX_DETAIL_CHARS]
