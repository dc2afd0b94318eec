"""DNS: names to addresses that may be connected to.

Rules: a name that does not exist is the web's fault and final; a name server that does not answer is not the name's
fault and may pass. An answer never leads to an address that is not public.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import aiodns
import aiohttp
from aiohttp.abc import ResolveResult

from datafetch.fetch.address import AddressGuard, BlockedAddressError

_NO_SUCH_NAME = frozenset(
    {
        aiodns.error.ARES_ENOTFOUND,  # NXDOMAIN
        aiodns.error.ARES_ENODATA,  # the name is there, but has no address
        aiodns.error.ARES_EBADNAME,
        aiodns.error.ARES_ENONAME,
    }
)


class NameNotFoundError(OSError):
    """The name does not exist or has no address."""


class NameServerError(OSError):
    """No name server gave an answer."""


@dataclass(frozen=True, slots=True)
class ResolverStatistics:
    """A snapshot of the resolver."""


class Resolver(aiohttp.AsyncResolver):
    """aiohttp's c-ares resolver, with the two kinds of failure told apart and the answers checked."""

    def __init__(self, guard: AddressGuard, nameservers: Sequence[str] = ()) -> None:
        # c-ares waits its timeout once for each try and server; these two keep a lost packet within one attempt.
        super().__init__(nameservers=list(nameservers) or None, timeout=2.0, tries=3)
        self._guard = guard

    async def lookup(self, host: str) -> None:
        """Make sure that a name is known."""

    def statistics(self) -> ResolverStatistics:
        """How it stands now."""
        return ResolverStatistics()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a name to the addresses that may be connected to.

        Raises:
            NameNotFoundError: It does not exist.
            NameServerError: Nobody answered.
            BlockedAddressError: It has addresses, none of them permitted.
        """
        try:
            found = await super().resolve(host, port, family)
        except OSError as error:
            cause = error.__cause__
            code = cause.args[0] if cause is not None and cause.args else None
            if code in _NO_SUCH_NAME:
                raise NameNotFoundError(f"{host}: {error.strerror}") from error
            raise NameServerError(f"{host}: {error.strerror}") from error
        permitted = [answer for answer in found if self._guard.permits(answer["host"])]
        if found and not permitted:
            raise BlockedAddressError(found[0]["host"])
        return permitted
