"""Where something lies: a path on this machine, or a URL, which may have a secret in it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_URL = re.compile(r"https?://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Whether a location is on a server."""
    return _URL.match(location) is not None


def without_secrets(location: str) -> str:
    """A location as it may stand in files, logs and messages: a URL without credentials, query and fragment.

    What looks like a URL and is none is not shown at all, for it can't be told what of it is a secret.
    """
    if not _ANY_SCHEME.match(location):
        return location
    try:
        parts = urlsplit(location)
        _ = parts.port  # of a password with a slash it is no number
    except ValueError:
        return "the URL"
    if not is_url(location):
        return "the URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
