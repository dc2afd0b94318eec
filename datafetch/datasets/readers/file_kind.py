"""What a file is that is not what it should be, told by its first bytes."""

from __future__ import annotations

_SHOWN_BYTES = 40
_CHARACTER_BYTES = 4  # the last one may be cut
_SPACE = b" \t\r\n"


def describe_non_data(start: bytes) -> str:
    """What a file is, by its first bytes, where that is no data: nothing where it may be.

    Servers answer with a page that says why there is no file, and that is saved under the file's name.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if not start:
        return "it is empty (0 bytes)"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS ('git lfs pull' gets the file itself)"
    if text.startswith(b"<"):
        return f"it is a page of HTML or XML that begins with {_shown(text)}"
    return ""


def describe_text(start: bytes) -> str:
    """What a file is, by its first bytes, that should be no text and is one."""
    kind = "JSON" if start.lstrip(_SPACE).startswith((b"{", b"[")) else "text"
    return describe_non_data(start) or f"it is {kind} that begins with {_shown(start.lstrip(_SPACE))}"


def describe_non_parquet(start: bytes) -> str:
    """What a file is, by its first bytes, that should be parquet; nothing where that can't be told."""
    if start.startswith(b"PAR"):
        return ""
    text = start.decode("utf-8", "ignore")
    is_text = len(text.encode()) > len(start) - _CHARACTER_BYTES and not any(ord(one) < ord("\t") for one in text)
    return describe_text(start) if is_text else ""


def _shown(start: bytes) -> str:
    text = start[:_SHOWN_BYTES].decode("utf-8", "replace")
    return repr("".join(character if character.isprintable() else " " for character in text))
