"""Checks of names and texts that come from elsewhere."""

from __future__ import annotations

import re

PLAIN_NAME = r"\A(?!\.{0,2}\Z)[^/\0]+\Z"
"""A regular expression for the name of a file that leads nowhere else."""
_PLAIN_NAME = re.compile(PLAIN_NAME)


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file and leads nowhere else."""
    return isinstance(name, str) and _PLAIN_NAME.search(name) is not None


def is_utf8(name: str) -> bool:
    """Whether a text can be written: JSON can hold a lone surrogate."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
