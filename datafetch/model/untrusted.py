"""Checks of names and texts that come from elsewhere."""

from __future__ import annotations


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def is_utf8(name: str) -> bool:
    """Whether a text can be written: JSON can hold a lone surrogate."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
