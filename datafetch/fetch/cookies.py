"""Cookies, kept for one attempt only.

Some sites set a cookie, redirect to the same URL, and serve the image to clients that send the cookie back. So cookies
are kept over the redirects of one attempt, and sent only where RFC 6265 would have them sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from datafetch.fetch.headers import Headers
from datafetch.fetch.urls import WebUrl

if TYPE_CHECKING:
    from aiohttp import CookieJar
    from yarl import URL

_MAX_HEADER_CHARS = 8192  # servers accept no longer header, so a site that sets more gets none back


class Cookies:
    """The cookies of one attempt."""

    def __init__(self) -> None:
        self._jar: CookieJar | None = None  # most images need none

    async def store(self, headers: Headers, url: WebUrl) -> None:
        """Store the cookies that the response to a URL sets."""
        fields = headers.get("set-cookie")
        if not fields:
            return
        if self._jar is None:
            # "unsafe" is aiohttp's word for hosts that are addresses; a cookie then goes back to that very address.
            self._jar = (await asyncio.to_thread(_load_aiohttp))(unsafe=True)
        self._jar.update_cookies_from_headers(fields, _in_yarl(url))

    def header(self, url: WebUrl) -> str:
        """The value of the Cookie header of a request for a URL, printable ASCII; empty if there are no cookies."""
        if self._jar is None:
            return ""
        pairs = [f"{name}={morsel.coded_value}" for name, morsel in self._jar.filter_cookies(_in_yarl(url)).items()]
        header = "; ".join(pair for pair in pairs if pair.isprintable() and pair.isascii())
        return header if len(header) <= _MAX_HEADER_CHARS else ""


def _load_aiohttp() -> type[CookieJar]:
    """Load what most runs never need: it takes a tenth of a second, and reads the authorities of the system."""
    from aiohttp import CookieJar  # noqa: PLC0415 - see above

    return CookieJar


def _in_yarl(url: WebUrl) -> URL:
    """A URL for aiohttp, which has been loaded."""
    from yarl import URL  # noqa: PLC0415 - aiohttp loads it

    return URL(url.href, encoded=True)
