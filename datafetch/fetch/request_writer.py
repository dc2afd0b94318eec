"""Writes requests in the form in which they are sent: HTTP/1.1, GET, and CONNECT to a proxy.

Rules: a URL from ``parse_url`` is ASCII without blanks or line breaks, so it can't smuggle a second request in.
"""

from __future__ import annotations

from base64 import b64encode
from importlib.metadata import version
from urllib.parse import unquote_to_bytes

from datafetch.fetch.hop import Hop
from datafetch.fetch.urls import WebUrl
from datafetch.model.request import Request

PROJECT_URL = "https://github.com/datafetch/datafetch"
_VERSION = version("vlm-datafetch")  # read when the module is imported and not on the event loop: it opens a file
_ACCEPT_IMAGES = "Accept: image/*\r\n"


def user_agent(contact: str = "") -> str:
    """The User-Agent header: who is fetching, where to read about it, and whom to write to."""
    return f"datafetch/{_VERSION} (+{PROJECT_URL}{'; ' + contact if contact else ''})"


class RequestWriter:
    """Writes GET requests that all present themselves alike.

    Args:
        contact: Whom the owner of a site may write to.
    """

    def __init__(self, contact: str) -> None:
        self._common_headers = f"User-Agent: {user_agent(contact)}\r\nAccept-Encoding: identity\r\n"

    def request(self, hop: Hop, proxy: WebUrl | None) -> bytes:
        """Write the request of a hop.

        Credentials in the URL become a header. A request for a whole file accepts images alone; a byte range may be
        part of any file, such as an archive.

        Args:
            hop: What to request.
            proxy: The proxy that the request is sent to instead of the host, or through which the host is reached.
        """
        url = hop.url
        target = url.target
        headers = _basic("Authorization", url)
        if proxy is not None and url.scheme == "http":
            target = f"http://{url.host_field}{target}"
            headers += _basic("Proxy-Authorization", proxy)
        if cookie := hop.cookies.header(url):
            headers += f"Cookie: {cookie}\r\n"
        headers += _ACCEPT_IMAGES if hop.request.byte_range is None else _range_headers(hop.request)
        return f"GET {target} HTTP/1.1\r\nHost: {url.host_field}\r\n{self._common_headers}{headers}\r\n".encode()


def connect_request(host: str, port: int, proxy: WebUrl) -> bytes:
    """Write the request that makes a proxy connect to a host."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = _basic("Proxy-Authorization", proxy)
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n".encode()


def get_from_proxy(host: str, proxy: WebUrl) -> bytes:
    """Write the shortest request that makes a proxy fetch a file of a host."""
    credentials = _basic("Proxy-Authorization", proxy)
    return f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{credentials}\r\n".encode()


def _range_headers(request: Request) -> str:
    assert request.byte_range is not None, "only such a request has these headers"
    condition = f"If-Range: {request.if_range}\r\n" if request.if_range else ""
    # RFC 9110, 14.1.2: the last position is part of the range.
    return f"Accept: */*\r\nRange: bytes={request.byte_range.start}-{request.byte_range.stop - 1}\r\n{condition}"


def _basic(header: str, url: WebUrl) -> str:
    if not url.login:
        return ""
    user, _, password = map(unquote_to_bytes, url.login.partition(":"))
    return f"{header}: Basic {b64encode(user + b':' + password).decode()}\r\n"
