"""Which worker counts the requests to a host, and knows the results of a URL.

Rules: it follows from the host's name and the number of workers alone, so that all processes agree without asking, and
a worker that replaces another has its hosts. A host and the URLs on it have the same owner.
"""

from __future__ import annotations

import zlib

_AUTHORITY_ENDS = ("/", "?", "#", "\\")


def owner_of_host(authority: str, workers: int) -> int:
    """The number of the worker that owns a host, from 1.

    Args:
        authority: Host and port.
        workers: The number of workers.
    """
    host, _, port = authority.rpartition(":")
    if not port.isdecimal():
        host = authority
    return zlib.crc32(host.strip("[]").lower().encode("utf-8", "surrogatepass")) % workers + 1


def owner_of_url(url: str, workers: int) -> int:
    """The number of the worker that owns a URL as published, which need not be valid.

    For nearly all URLs it is that of their host, so that one worker has both.
    """
    _, _, rest = url.partition("//")
    for end in _AUTHORITY_ENDS:
        rest = rest.partition(end)[0]
    return owner_of_host(rest.rpartition("@")[2].strip(), workers)
