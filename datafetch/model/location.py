"""Where something lies: a path on this machine, or a URL, which may have a secret in it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Whether a location is on a server."""
    return _URL.match(location) is not None


def without_secrets(location: str) -> str:
    """A location as it may stand in files, logs and messages: a URL without credentials, query and fragment."""
    if not is_url(location):
        return location
    try:
        parts = urlsplit(location)
    except ValueError:
        return "the URL of --source"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
