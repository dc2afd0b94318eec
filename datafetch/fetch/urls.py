"""URLs as published to URLs that can be asked, as a browser would read them.

Rules: the WHATWG's URL standard decides, through ada; what is encoded already is never encoded again. Manifests are cut
out of pages, so an ampersand may still be written as HTML writes it.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

import ada_url
from yarl import URL

from datafetch.model.sample import MOST_URL_CHARS

_SCHEMES = ("http://", "https://")
_AMPERSAND = re.compile(r"&(?:(?:amp|#0{0,5}38|#x0{0,5}26);)+", re.IGNORECASE)
_ASCII = bytes(range(128))


class BadUrlError(ValueError):
    """This is no URL of a web server."""


def parse_url(text: str) -> URL:
    """Read a URL as a manifest has it.

    Surrounding blanks and a fragment are dropped; ``&amp;`` is read as ``&``; backslashes, blanks, IDN and non-ASCII
    paths become what a browser would send. ``//host/…`` is asked over http: a host that only speaks TLS redirects from
    there, and one that speaks none answers nowhere else.

    Raises:
        BadUrlError: Not http or https, no host, not to be parsed, or longer than ``MOST_URL_CHARS``.
    """
    if len(text) > MOST_URL_CHARS:
        raise BadUrlError(f"longer than {MOST_URL_CHARS:,} characters")
    text = _AMPERSAND.sub("&", text.strip())
    if text.startswith("//"):
        text = f"http:{text}"
    try:
        return _web_url(ada_url.normalize_url(text))
    except ValueError as error:
        raise BadUrlError("not an http or https URL with a host") from error


def join_url(base: URL, location: str) -> URL:
    """Where a redirect leads.

    Credentials of the base go along only while the location is relative, and so on the same host (WHATWG URL, "relative
    state").

    Args:
        base: The URL that was asked.
        location: The header's value as aiohttp gives it: bytes that are not UTF-8 are surrogates.

    Raises:
        BadUrlError: It leads to something other than a web server.
    """
    try:
        raw = location.encode("utf-8", "surrogateescape")
        return _web_url(ada_url.join_url(str(base), quote_from_bytes(raw, safe=_ASCII)))
    except ValueError as error:
        raise BadUrlError(f"redirected to something other than an http or https URL: {location[:100]!a}") from error


def authority(url: URL) -> str:
    """Host and port: what per-host limits are about."""
    return f"{url.raw_host}:{url.port}"


def _web_url(href: str) -> URL:
    if not href.startswith(_SCHEMES):
        raise ValueError(href)
    return URL(href.partition("#")[0], encoded=True)
