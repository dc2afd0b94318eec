"""The proxies that environment variables name, for operators who turn on ``--trust-env``."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from yarl import URL

from datafetch.errors import ConfigurationError, ResourceError, is_exhaustion, raise_if_exhausted
from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError
from datafetch.fetch.means import Means

_HOSTS_FILE = Path("/etc/hosts")
_REMEDY = "correct the variable that names it (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), or leave out --trust-env"
_PROBE_S = 5.0
_LOOPBACK_DOMAIN = ".localhost"  # RFC 6761, 6.3
_LOOPBACK_NAMES = frozenset(  # by convention in /etc/hosts; the proxy's own file may have them even if ours does not
    {
        *("localhost", "localhost.localdomain", "localhost4", "localhost4.localdomain4"),
        *("localhost6", "localhost6.localdomain6", "ip6-localhost", "ip6-loopback"),
    }
)


class Proxies:
    """Knows which proxy a URL goes through. The environment is read once, when this is made.

    Attributes:
        addresses: The addresses of each proxy, once ``resolve`` has been awaited. By naming a proxy, the operator has
            allowed its address, public or not.
        means: Each proxy, as something that this machine needs; likewise.
    """

    def __init__(self) -> None:
        self._environment: dict[str, str] = getproxies_environment()
        self.addresses: dict[URL, Sequence[str]] = {}
        self.means: dict[URL, Means] = {}
        self._hosts: Mapping[str, Sequence[str]] = {}
        self._by_scheme: dict[str, URL] = {}
        for scheme in ("http", "https"):
            text = self._environment.get(scheme) or self._environment.get("all")
            if text:
                self._by_scheme[scheme] = _proxy_url(scheme, text)

    async def resolve(self) -> None:
        """Find the addresses of all proxies by the system's resolver, and read /etc/hosts.

        Raises:
            ResourceError: One of the proxies has no address.
        """
        loop = asyncio.get_running_loop()
        self._hosts = await asyncio.to_thread(_read_hosts)
        for url in set(self._by_scheme.values()):
            try:
                answers = await loop.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise_if_exhausted(error)
                raise ResourceError(
                    f"the proxy {_place(url)} of the environment has no address ({error.strerror}); {_REMEDY}"
                ) from error
            self.addresses[url] = tuple(dict.fromkeys(str(endpoint[0]) for *_, endpoint in answers))
            self.means[url] = Means(
                partial(self._accepts, url),
                problem=partial(_unreachable, url),
                remedy=_REMEDY,
            )

    async def close(self) -> None:
        """Stop probing."""
        for means in self.means.values():
            await means.close()

    async def _accepts(self, url: URL) -> bool:
        """Whether a proxy accepts a connection."""
        for address in self.addresses[url]:
            try:
                async with asyncio.timeout(_PROBE_S):
                    _, writer = await asyncio.open_connection(address, url.port)
            except OSError as error:
                if is_exhaustion(error):
                    raise
            else:
                writer.transport.abort()
                return True
        return False

    def proxy_for(self, url: URL) -> URL | None:
        """The proxy for a URL, or None to connect directly."""
        proxy = self._by_scheme.get(url.scheme)
        if proxy is None or proxy_bypass_environment(f"{url.raw_host}:{url.port}", self._environment):
            return None
        return proxy

    def check(self, name: str, guard: AddressGuard) -> None:
        """Raise if a name is known to lead to an address that may not be connected to, before a proxy is asked for it.

        Args:
            name: A host name in lower case, without a trailing dot.
            guard: Judges the addresses that /etc/hosts has for the name.

        Raises:
            BlockedAddressError: The name means the proxy itself, or /etc/hosts has such an address for it.
        """
        if name in _LOOPBACK_NAMES or name.endswith(_LOOPBACK_DOMAIN):
            raise BlockedAddressError(name)
        for address in self._hosts.get(name, ()):
            guard.check(address)


def unused_proxy() -> str:
    """The environment variable that names a proxy which ``--trust-env`` would use; empty if there is none."""
    environment = getproxies_environment()
    for scheme in ("https", "http", "all"):
        text = environment.get(scheme)
        with suppress(ConfigurationError, ValueError):
            if text and _proxy_url(scheme, text):
                return f"{scheme}_proxy".upper()
    return ""


def _read_hosts() -> Mapping[str, Sequence[str]]:
    """The names in /etc/hosts and their addresses; empty if the file can't be read."""
    hosts: dict[str, list[str]] = {}
    try:
        lines = _HOSTS_FILE.read_bytes().decode("ascii", "replace").splitlines()
    except OSError as error:
        raise_if_exhausted(error)
        return {}
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            hosts.setdefault(name.lower().removesuffix("."), []).append(address)
    return hosts


def _unreachable(url: URL) -> str:
    return f"the proxy {_place(url)} of the environment can't be reached"


def _place(url: URL) -> str:
    """Host and port, without the credentials that the URL may have."""
    return f"{url.raw_host}:{url.port}"


def _proxy_url(scheme: str, text: str) -> URL:
    url = URL(text if "://" in text else f"http://{text}")
    if url.scheme != "http" or not url.raw_host:
        raise ConfigurationError(
            f"{scheme.upper()}_PROXY must be the http:// URL of a proxy, not {text!r}; --trust-env reads it"
        )
    return url
