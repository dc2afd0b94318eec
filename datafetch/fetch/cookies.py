"""Cookies, for as long as the redirects of one image take.

Some sites set a cookie, redirect to the same URL, and give the image to whoever brings the cookie. Nothing is kept
beyond that image, and no cookie goes where the rules of RFC 6265 would not have it go.
"""

from __future__ import annotations

from aiohttp import CookieJar
from multidict import CIMultiDictProxy
from yarl import URL

_MAX_HEADER_CHARS = 8192  # servers take no more; what a site sets beyond that is not sent


class Cookies:
    """The cookies of one image."""

    def __init__(self) -> None:
        self._jar: CookieJar | None = None  # made for the few images that need one

    def note(self, headers: CIMultiDictProxy[str], url: URL) -> None:
        """Take the cookies that a response sets."""
        fields = headers.getall("Set-Cookie", ())
        if fields:
            # Unsafe is aiohttp's word for hosts that are addresses; a cookie then goes back to that very address.
            self._jar = self._jar or CookieJar(unsafe=True)
            self._jar.update_cookies_from_headers(list(fields), url)

    def header(self, url: URL) -> str:
        """What a request for a URL has in its Cookie header; nothing without cookies for it."""
        if self._jar is None:
            return ""
        pairs = [f"{name}={morsel.coded_value}" for name, morsel in self._jar.filter_cookies(url).items()]
        header = "; ".join(pair for pair in pairs if pair.isprintable() and pair.isascii())
        return header if len(header) <= _MAX_HEADER_CHARS else ""
