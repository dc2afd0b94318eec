"""Checks of names and texts from untrusted sources."""

from __future__ import annotations

import re

PLAIN_NAME = r"\A(?!\.{0,2}\Z)[^/\0]+\Z"
"""A regular expression for the name of a file that leads nowhere else."""
_PLAIN_NAME = re.compile(PLAIN_NAME)
_MAX_PART_BYTES = 240  # file systems take 255, and while a file is written its name is longer
_MAX_PATH_BYTES = 1024  # as of a key in an object store; systems take 4,096 with the folder it is in
_LAST_OF_PLANE_0 = 0xFFFF
_MAX_REPR_CHARS = 100
MAX_LINE_CHARS = 2000
"""The length of a message, at most."""
_END_CHARS = 500  # kept from the end of a longer message, where it says what to do


def is_plain_name(name: object) -> bool:
    """Whether this is a file name that does not lead to another folder."""
    return isinstance(name, str) and _PLAIN_NAME.search(name) is not None


def is_plain_path(path: str) -> bool:
    """Whether this is a path to a file below a folder, and nowhere else, of a length that a file system takes.

    Args:
        path: The path, relative to the folder, with slashes.
    """
    if not is_utf8(path) or len(path.encode()) > _MAX_PATH_BYTES:
        return False
    return all(is_plain_name(part) and len(part.encode()) <= _MAX_PART_BYTES for part in path.split("/"))


def is_utf8(name: str) -> bool:
    """Whether a text can be encoded as UTF-8; JSON may contain lone surrogates, which can't."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def short_repr(value: object) -> str:
    """``repr`` of a value, of which no more than 100 characters are kept."""
    text = repr(value[: _MAX_REPR_CHARS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_REPR_CHARS else f"{text[: _MAX_REPR_CHARS - 1]}…"


def to_printable(text: str) -> str:
    """A text that can't control a terminal: each character that is not printable becomes U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def one_line(text: str) -> str:
    """Make text safe for one line on a terminal: without control characters, and of bounded length.

    Messages quote file names, columns, keys and names in pickles, which are untrusted. None of them may move the
    cursor, hide the text before it, or bury it under a megabyte. The end is kept, because it says what to do.
    """
    words = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    if len(words) <= MAX_LINE_CHARS:
        return words
    return f"{words[: MAX_LINE_CHARS - _END_CHARS - 3]} … {words[-_END_CHARS:]}"


def escape_unprintable(json_text: str) -> str:
    """JSON on one line that can't control a terminal: in its texts, what is not printable becomes an escape.

    Args:
        json_text: The JSON, in which such characters occur in texts alone.
    """
    if json_text.isprintable():
        return json_text
    return "".join(one if one.isprintable() else _json_escape(one) for one in json_text)


def _json_escape(character: str) -> str:
    code = ord(character)
    if code > _LAST_OF_PLANE_0:  # as JSON has it: two surrogates
        code -= _LAST_OF_PLANE_0 + 1
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
