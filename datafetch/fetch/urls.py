"""Parses URLs as published into URLs that can be requested, as a browser would.

Rules: the WHATWG URL standard decides, implemented by ada. What is percent-encoded already is never encoded again.
Manifests are extracted from HTML pages, so an ampersand may still be escaped as in HTML.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

import ada_url
from yarl import URL

from datafetch.model.sample import MAX_URL_CHARS

_SCHEMES = ("http://", "https://")
_AMPERSAND = re.compile(r"&(?:(?:amp|#0{0,5}38|#x0{0,5}26);)+", re.IGNORECASE)
_ASCII = bytes(range(128))


class BadUrlError(ValueError):
    """It is not the URL of a web server."""


def parse_url(text: str) -> URL:
    """Parse a URL as it stands in a manifest.

    Surrounding blanks and the fragment are dropped, and ``&amp;`` is read as ``&``. Backslashes, blanks, international
    host names and non-ASCII paths become what a browser would send. ``//host/…`` becomes http: a host that only speaks
    TLS redirects from there, and a host without TLS can't be reached otherwise.

    Raises:
        BadUrlError: It is not http or https, has no host, can't be parsed, or is longer than ``MAX_URL_CHARS``.
    """
    if len(text) > MAX_URL_CHARS:
        raise BadUrlError(f"longer than {MAX_URL_CHARS:,} characters")
    text = _AMPERSAND.sub("&", text.strip())
    if text.startswith("//"):
        text = f"http:{text}"
    try:
        return _web_url(ada_url.normalize_url(text))
    except ValueError as error:
        raise BadUrlError("not an http or https URL with a host") from error


def join_url(base: URL, location: str) -> URL:
    """Find the URL that a redirect leads to.

    Credentials of the base are kept only if the location is relative, and so on the same host (WHATWG URL, "relative
    state").

    Args:
        base: The URL that was requested.
        location: The value of the Location header, in which bytes that are not UTF-8 are escaped as surrogates.

    Raises:
        BadUrlError: It leads to something other than a web server.
    """
    try:
        raw = location.encode("utf-8", "surrogateescape")
        return _web_url(ada_url.join_url(str(base), quote_from_bytes(raw, safe=_ASCII)))
    except ValueError as error:
        raise BadUrlError("redirected to something other than an http or https URL") from error


def authority(url: URL) -> str:
    """The host and port of a URL, which per-host limits apply to."""
    return f"{url.raw_host}:{url.port}"


def _web_url(href: str) -> URL:
    if not href.startswith(_SCHEMES):
        raise ValueError(href)
    return URL(href.partition("#")[0], encoded=True)
