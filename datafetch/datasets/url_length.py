"""URLs as they are asked for, for every dataset alike."""

from __future__ import annotations

from datafetch.model.sample import MAX_URL_CHARS


def bounded_url(url: object) -> str:
    """The URL itself; nothing, which fails as ``bad_url``, where it is no text.

    Of one that is too long, the first characters, one more than a URL can have: it fails as ``bad_url`` for its length,
    and the ledger tells which it was.
    """
    return url[: MAX_URL_CHARS + 1] if isinstance(url, str) else ""


def is_too_long(url: str) -> bool:
    """Whether it is longer than a URL that is requested."""
    return len(url) > MAX_URL_CHARS
