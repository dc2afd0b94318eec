"""Parses URLs as published into URLs that can be requested, as a browser would.

Rules: the WHATWG URL standard decides, implemented by ada. What is percent-encoded already is never encoded again.
Manifests are extracted from HTML pages, so an ampersand may still be escaped as in HTML. A URL is parsed once, into
all that requests need of it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import ada_url

from datafetch.model.sample import MAX_URL_CHARS

# An http or https URL as ada writes it: with a host and a path, without an empty login or a default port, and with each
# "@" and "/" of a login percent-encoded.
_NORMAL_FORM = re.compile(
    r"(https?)://(?:([^@/]+)@)?(\[[^\]]+\]|[^:/]+)(?::([0-9]+))?(/[^#]*)"  # scheme, login, host, port, path and query
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_AMPERSAND = re.compile(r"&(?:(?:amp|#0{0,5}38|#x0{0,5}26);)+", re.IGNORECASE)
_ASCII = bytes(range(128))


class BadUrlError(ValueError):
    """It is not the URL of a web server."""


class WebUrl(NamedTuple):
    """An http or https URL, without its fragment. Everything in it is printable ASCII without blanks.

    Attributes:
        href: All of it, in its normal form.
        scheme: ``http`` or ``https``.
        login: User and password as they stand in the URL, percent-encoded and separated by a colon; empty if there are
            none.
        host: A name in lower case, or an address; an IPv6 address without brackets.
        port: That of the URL, or the default of its scheme.
        target: Path and query.
        authority: The host and the port, which per-host limits apply to.
        host_field: The value of the Host header: with brackets around an IPv6 address, without a default port, and
            without the dots at the end of a name.
    """

    href: str
    scheme: str
    login: str
    host: str
    port: int
    target: str
    authority: str
    host_field: str

    def __str__(self) -> str:
        return self.href

    def without_login(self) -> WebUrl:
        """The same URL without user and password."""
        if not self.login:
            return self
        return self._replace(href=f"{self.scheme}://{self.href.partition('@')[2]}", login="")


def parse_url(text: str) -> WebUrl:
    """Parse a URL as it stands in a manifest.

    Surrounding blanks and the fragment are dropped, and ``&amp;`` is read as ``&``. Backslashes, blanks, international
    host names and non-ASCII paths become what a browser would send. ``//host/…`` becomes http: a host that only speaks
    TLS redirects from there, and a host without TLS can't be reached otherwise.

    Raises:
        BadUrlError: It is empty, not http or https, has no host, can't be parsed, or is longer than ``MAX_URL_CHARS``.
    """
    if len(text) > MAX_URL_CHARS:
        raise BadUrlError(f"longer than {MAX_URL_CHARS:,} characters")
    text = text.strip()
    if not text:
        raise BadUrlError("there is no URL")
    if "&" in text:
        text = _AMPERSAND.sub("&", text)
    if text.startswith("//"):
        text = f"http:{text}"
    return parse_exact_url(text)


def parse_exact_url(text: str) -> WebUrl:
    """Parse a URL that does not come from an HTML page: ``&amp;`` stands for itself, and there is a scheme.

    Raises:
        BadUrlError: It is not a URL that HTTP can request.
    """
    try:
        return split_url(ada_url.normalize_url(text))
    except ValueError as error:
        raise BadUrlError("not an http or https URL with a host") from error


def join_url(base: WebUrl, location: str) -> WebUrl:
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
        return split_url(ada_url.join_url(base.href, quote_from_bytes(raw, safe=_ASCII)))
    except ValueError as error:
        raise BadUrlError("redirected to something other than an http or https URL") from error


def split_url(href: str) -> WebUrl:
    """Split a URL that is in its normal form already, as ada writes it and ``WebUrl.href`` holds it.

    Raises:
        BadUrlError: It is not http or https.
    """
    parts = _NORMAL_FORM.match(href)
    if parts is None:
        raise BadUrlError("not an http or https URL with a host")
    scheme, login, host, port, target = parts.groups()
    href = parts[0]
    if href[-1] == "?" and href.find("?") == len(href) - 1:
        href, target = href[:-1], target[:-1]  # an empty query is none
    host_field = host if host[-1] != "." else host.rstrip(".")
    if port:
        host_field += f":{port}"
    else:
        port = _DEFAULT_PORTS[scheme]
    if host[0] == "[":
        host = host[1:-1]
    return WebUrl(href, scheme, login or "", host, int(port), target, f"{host}:{port}", host_field)
