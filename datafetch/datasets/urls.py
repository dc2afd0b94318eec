"""URLs as they are asked for, for every dataset alike."""

from __future__ import annotations

MOST_URL_CHARS = 65_536
"""No server takes a longer one, and a spool and a ledger would have it several times."""


def askable(url: object) -> str:
    """The URL itself; nothing, which fails as ``bad_url``, where it is no text or longer than any can be."""
    return url if isinstance(url, str) and len(url) <= MOST_URL_CHARS else ""
