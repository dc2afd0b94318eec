"""Names of files that come from the web's data: which of them may be written, and which would clash.

Rules: a name leads to a place inside the output folder by its own words, on any filesystem: nothing is normalised, and
what would need that is refused.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from datafetch.model.untrusted import is_utf8

_MAX_NAME_BYTES = 240  # of 255, so that a temporary name has room
_MAX_PATH_BYTES = 1000
_MAX_FOLDERS = 8
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_FORBIDDEN = frozenset('\\:*?"<>|')


def why_refused(name: object) -> str:
    """Why no file may have this name; nothing where one may. Slashes part folders."""
    if not isinstance(name, str) or not name:
        return "the name of its file is not text"
    if not name.isprintable() or not is_utf8(name):
        return "the name of its file has characters that can't be printed"
    parts = name.split("/")
    if {"", ".", ".."} & set(parts):
        return "the name of its file leads out of the folder, or nowhere"
    if len(name.encode()) > _MAX_PATH_BYTES or len(parts) > _MAX_FOLDERS + 1:
        return "the name of its file is too long"
    return next(filter(None, map(_why_part_refused, parts)), "")


def _why_part_refused(part: str) -> str:
    if len(part.encode()) > _MAX_NAME_BYTES:
        return "the name of its file is too long"
    if _FORBIDDEN & set(part) or part[-1] in ". " or part[0] == " ":
        return "the name of its file can't be had on every filesystem"
    is_reserved = part.split(".", 1)[0].rstrip().casefold() in _RESERVED
    return "the name of its file is reserved on some systems" if is_reserved else ""


class DuplicateNames:
    """Which of many names lead to one and the same file on some filesystem, or to a folder of another; 8 bytes each.

    Args:
        names: All names, in order; those that were refused as None.
    """

    def __init__(self, names: Iterable[str | None]) -> None:
        folders: set[int] = set()
        digests = np.fromiter((_NONE if name is None else _digest_and_note(name, folders) for name in names), np.int64)
        self._folders = folders
        order = np.argsort(digests, kind="stable")
        is_again = np.concatenate(([False], digests[order][1:] == digests[order][:-1])) if len(order) else np.empty(0)
        self._again = np.sort(order[is_again.astype(bool)])
        self._digests = digests

    def why_refused(self, number: int) -> str:
        """Why the name of this number can't be had beside the others; nothing where it can, as the first can."""
        digest = int(self._digests[number])
        if digest == _NONE:
            return ""
        place = int(np.searchsorted(self._again, number))
        if place < len(self._again) and int(self._again[place]) == number:
            return "an earlier record has the name of its file, but perhaps for the case of letters"
        return "the name of its file is that of another's folder" if digest in self._folders else ""


_NONE = -1


def _digest_and_note(name: str, folders: set[int]) -> int:
    parts = name.split("/")
    for end in range(1, len(parts)):
        folders.add(_digest("/".join(parts[:end])))
    return _digest(name)


def _digest(name: str) -> int:
    """Of a name as filesystems without case see it; never ``_NONE``."""
    same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "little") >> 1
