"""Proxies that the environment names, for operators who ask for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from yarl import URL

from datafetch.errors import ConfigurationError, raise_want


class Proxies:
    """Which proxy a URL goes through. The environment is read once, when this is made.

    Attributes:
        addresses: Of each proxy, after ``resolve``. Naming a proxy allows its address, public or not.
    """

    def __init__(self) -> None:
        self._environment: dict[str, str] = getproxies_environment()
        self.addresses: dict[URL, Sequence[str]] = {}
        self._by_scheme: dict[str, URL] = {}
        for scheme in ("http", "https"):
            text = self._environment.get(scheme) or self._environment.get("all")
            if text:
                self._by_scheme[scheme] = _proxy_url(scheme, text)

    async def resolve(self) -> None:
        """Find the addresses of all proxies, by the system's resolver.

        Raises:
            ConfigurationError: One of them has none.
        """
        loop = asyncio.get_running_loop()
        for url in set(self._by_scheme.values()):
            try:
                answers = await loop.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise_want(error)
                raise ConfigurationError(
                    f"the proxy {url.raw_host} of the environment has no address: {error}"
                ) from error
            self.addresses[url] = tuple(dict.fromkeys(str(endpoint[0]) for *_, endpoint in answers))

    def find(self, url: URL) -> URL | None:
        """The proxy for a URL, or None to go straight."""
        proxy = self._by_scheme.get(url.scheme)
        if proxy is None or proxy_bypass_environment(f"{url.raw_host}:{url.port}", self._environment):
            return None
        return proxy


def _proxy_url(scheme: str, text: str) -> URL:
    url = URL(text if "://" in text else f"http://{text}")
    if url.scheme != "http" or not url.raw_host:
        raise ConfigurationError(
            f"{scheme.upper()}_PROXY must be the http:// URL of a proxy, not {text!r}; --trust-env reads it"
        )
    return url
