"""Requests as they are written to a connection: HTTP/1.1, GET, and a proxy's CONNECT.

Rules: a URL from ``parse_url`` is ASCII without blanks or line breaks, so it can't smuggle a second request in.
"""

from __future__ import annotations

from base64 import b64encode
from importlib.metadata import version

from yarl import URL

PROJECT_URL = "https://github.com/datafetch/datafetch"
_VERSION = version("vlm-datafetch")  # read once, while nothing is waiting for a loop: it opens a file


def user_agent(contact: str = "") -> str:
    """The User-Agent header: who we are, where to read about us, whom to ask."""
    return f"datafetch/{_VERSION} (+{PROJECT_URL}{'; ' + contact if contact else ''})"


class RequestWriter:
    """Writes requests for images, all with the same manners.

    Args:
        contact: Whom a site's owner may ask.
    """

    def __init__(self, contact: str) -> None:
        self._manners = f"User-Agent: {user_agent(contact)}\r\nAccept: image/*\r\nAccept-Encoding: identity\r\n"

    def get(self, url: URL, proxy: URL | None, cookie: str = "") -> bytes:
        """The request for an image.

        Args:
            url: Where it is; credentials in it become a header.
            proxy: What it is sent to instead of the host, if that is to read it.
            cookie: The value of its Cookie header, printable ASCII; nothing for none.
        """
        target = url.raw_path_qs
        credentials = _basic("Authorization", url)
        if proxy is not None and url.scheme == "http":
            target = f"http://{url.host_port_subcomponent}{target}"
            credentials += _basic("Proxy-Authorization", proxy)
        cookies = f"Cookie: {cookie}\r\n" if cookie else ""
        return (
            f"GET {target} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{self._manners}{credentials}{cookies}\r\n"
        ).encode()


def connect_request(host: str, port: int, proxy: URL) -> bytes:
    """The request to a proxy to connect on to a host."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    credentials = _basic("Proxy-Authorization", proxy)
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n".encode()


def _basic(header: str, url: URL) -> str:
    if url.raw_user is None and url.raw_password is None:
        return ""
    credentials = f"{url.user or ''}:{url.password or ''}"
    return f"{header}: Basic {b64encode(credentials.encode()).decode()}\r\n"
