"""Bounds the length of URLs, before they are stored in samples."""

from __future__ import annotations

from datafetch.model.sample import MAX_URL_CHARS


def bounded_url(value: object) -> str:
    """Turn the URL field of a record into a string that a sample may hold.

    The fetcher rejects what can't be requested, as ``bad_url``, so that the ledger says what became of it.

    Args:
        value: The field's value, of any type.

    Returns:
        The URL itself. Of one that is too long, its beginning, one character longer than the limit so that it is still
        rejected. An empty string, which is also rejected, for anything but a string.
    """
    return value[: MAX_URL_CHARS + 1] if isinstance(value, str) else ""


def is_too_long(url: str) -> bool:
    """Whether a URL is too long to be requested."""
    return len(url) > MAX_URL_CHARS
