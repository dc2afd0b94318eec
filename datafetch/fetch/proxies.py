"""The proxies that environment variables name, for operators who turn on ``--trust-env``.

A proxy that doesn't accept its login answers everything with status 407. Over plain HTTP a web server could do the
same, so the proxy is asked for a name that no web server can have (RFC 6761, 6.4) before that is believed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from datafetch.errors import ConfigurationError, ResourceError, is_exhaustion, raise_if_exhausted
from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError
from datafetch.fetch.means import Means
from datafetch.fetch.request_writer import connect_request, get_from_proxy
from datafetch.fetch.urls import BadUrlError, WebUrl, parse_exact_url

_HOSTS_FILE = Path("/etc/hosts")
_LOGIN = re.compile(r"^([a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)  # up to the last "@", whatever it has
_REMEDY = "correct the variable that names it (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), or leave out --trust-env"
_NOWHERE = "datafetch.invalid"
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
        logins: Being let in by each proxy, as another such thing; likewise.
    """

    def __init__(self) -> None:
        self._environment: dict[str, str] = getproxies_environment()
        self.addresses: dict[WebUrl, Sequence[str]] = {}
        self.means: dict[WebUrl, Means] = {}
        self.logins: dict[WebUrl, Means] = {}
        self._hosts: Mapping[str, Sequence[str]] = {}
        self._by_scheme: dict[str, WebUrl] = {}
        self._variables: dict[WebUrl, list[str]] = {}
        for scheme in ("http", "https"):
            named = scheme if self._environment.get(scheme) else "all"
            text = self._environment.get(named)
            if text:
                url = self._by_scheme[scheme] = _proxy_url(scheme, text)
                self._variables.setdefault(url, []).append(f"{named}_proxy".upper())

    def __str__(self) -> str:
        """All proxies with the variables that name them, in words; empty if there are none."""
        return " and ".join(f"{url.authority} ({self._named_by(url)})" for url in self._variables)

    async def resolve(self) -> None:
        """Find the addresses of all proxies by the system's resolver, and read /etc/hosts.

        Raises:
            ResourceError: One of the proxies has no address.
        """
        loop = asyncio.get_running_loop()
        self._hosts = await asyncio.to_thread(_read_hosts)
        for url in set(self._by_scheme.values()):
            try:
                answers = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise_if_exhausted(error)
                raise ResourceError(
                    f"the proxy {url.authority} of the environment has no address ({error.strerror}); {_REMEDY}"
                ) from error
            self.addresses[url] = tuple(dict.fromkeys(str(endpoint[0]) for *_, endpoint in answers))
            self.means[url] = Means(
                partial(self._accepts, url),
                problem=partial(_unreachable, url),
                remedy=_REMEDY,
            )
            self.logins[url] = Means(
                partial(self._lets_in, url),
                problem=partial(_not_let_in, url),
                remedy=f"correct user and password in {self._named_by(url)}, or leave out --trust-env",
            )

    async def close(self) -> None:
        """Stop probing."""
        for means in (*self.means.values(), *self.logins.values()):
            await means.close()

    def _named_by(self, url: WebUrl) -> str:
        return ", ".join(dict.fromkeys(self._variables[url]))

    async def _accepts(self, url: WebUrl) -> bool:
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

    async def _lets_in(self, url: WebUrl) -> bool:
        """Whether a proxy asks for no login, neither for a tunnel nor for a file; also if it can't be reached."""
        for request in (connect_request(_NOWHERE, 443, url), get_from_proxy(_NOWHERE, url)):
            for address in self.addresses[url]:
                status = await _status_of(request, address, url.port)
                if status is not None:
                    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                        return False
                    break
        return True

    def proxy_for(self, url: WebUrl) -> WebUrl | None:
        """The proxy for a URL, or None to connect directly."""
        proxy = self._by_scheme.get(url.scheme)
        if proxy is None or proxy_bypass_environment(url.authority, self._environment):
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
        with suppress(ConfigurationError):
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


async def _status_of(request: bytes, address: str, port: int) -> int | None:
    """The status with which a proxy answers a request; None if it answers with none."""
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(request)
                return int((await reader.readline()).split()[1])
            finally:
                writer.transport.abort()
    except (OSError, ValueError, IndexError) as error:
        if isinstance(error, OSError) and is_exhaustion(error):
            raise
        return None


def _not_let_in(url: WebUrl) -> str:
    status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
    return f"the proxy {url.authority} of the environment asks for a login, or refuses the one it has (HTTP {status:d})"


def _unreachable(url: WebUrl) -> str:
    return f"the proxy {url.authority} of the environment can't be reached"


def _proxy_url(scheme: str, text: str) -> WebUrl:
    r"""Parse the URL of a proxy, with or without its scheme.

    What browsers correct in URLs of web pages is refused: with "DOMAIN\user" as a login it would lead to another host.
    """
    whole = text if "://" in text else f"http://{text}"
    with suppress(BadUrlError):
        if "\\" not in whole and not whole.partition("://")[2].startswith("/"):
            url = parse_exact_url(whole)
            if url.scheme == "http":
                return url
    shown = _LOGIN.sub(r"\1…@", text)
    raise ConfigurationError(
        f"{scheme.upper()}_PROXY must be the http:// URL of a proxy, not {shown!r} (in a login, characters other than"
        " letters and digits are percent-encoded); --trust-env reads it"
    )
