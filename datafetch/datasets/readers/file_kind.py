"""Recognises files that are not the data their names promise, and describes them by their first bytes.

If a download fails, what the server sent instead, such as an error page, is often saved under the name of the file. A
message that says so helps more than one about the first byte that can't be parsed.
"""

from __future__ import annotations

_SHOWN_BYTES = 40
_MAX_CHARACTER_BYTES = 4  # the first bytes of a file may end within a character
_SPACE = b" \t\r\n"


def describe_non_data(start: bytes) -> str:
    """Describe a file that can't be data of any kind; return an empty string if it may be.

    Args:
        start: The first bytes of the file.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if not start:
        return "it is empty (0 bytes)"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS ('git lfs pull' fetches the file itself)"
    if text.startswith(b"<"):
        return f"it is a page of HTML or XML that begins with {_shown(text)}"
    return ""


def describe_text(start: bytes) -> str:
    """Describe a text file that should be binary.

    Args:
        start: The first bytes of the file.
    """
    kind = "JSON" if start.lstrip(_SPACE).startswith((b"{", b"[")) else "text"
    return describe_non_data(start) or f"it is {kind} that begins with {_shown(start.lstrip(_SPACE))}"


def describe_non_parquet(start: bytes) -> str:
    """Describe a file that should be parquet and is text; return an empty string if it is parquet, or not text.

    Args:
        start: The first bytes of the file.
    """
    if start.startswith(b"PAR"):
        return ""
    text = start.decode("utf-8", "ignore")
    is_text = len(text.encode()) > len(start) - _MAX_CHARACTER_BYTES and not any(ord(one) < ord("\t") for one in text)
    return describe_text(start) if is_text else ""


def _shown(start: bytes) -> str:
    text = start[:_SHOWN_BYTES].decode("utf-8", "replace")
    return repr("".join(character if character.isprintable() else " " for character in text))
