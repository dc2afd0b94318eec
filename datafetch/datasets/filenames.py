"""Decides which file names from untrusted data may be written, and which would collide.

Rules: a name must stay inside the output folder, and be valid and unambiguous on every common filesystem. Names are
never repaired, because two repairs could give the same name; what would need a repair is refused. The reasons are part
of ``dropped.jsonl``.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from datafetch.model.untrusted import is_utf8

_MAX_NAME_BYTES = 240  # filesystems allow 255, and a temporary name is a little longer
_MAX_PATH_BYTES = 1000
_MAX_FOLDERS = 8
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_FORBIDDEN = frozenset('\\:*?"<>|')


def why_refused(name: object) -> str:
    """Return why no file may have this name, a relative path with slashes; an empty string if one may."""
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
    """Finds names that would be the same file on some filesystem, or the folder of another file.

    Memory holds 16 bytes for each name, twice a hash of the name as a filesystem sees it that ignores case and Unicode
    composition, and some 60 for each folder.

    Args:
        names: All names, in order; None for those that are refused for another reason.
    """

    def __init__(self, names: Iterable[str | None]) -> None:
        folders: set[int] = set()
        digests = np.fromiter((_NONE if name is None else _add_name(name, folders) for name in names), np.int64)
        self._folders = folders
        order = np.argsort(digests, kind="stable")
        is_repeated = (
            np.concatenate(([False], digests[order][1:] == digests[order][:-1])) if len(order) else np.empty(0)
        )
        is_repeated = is_repeated.astype(bool)
        self._repeated = np.sort(order[is_repeated])
        # The first of several with one name is not among those that are repeated.
        self._with_namesakes = np.union1d(self._repeated, order[np.roll(is_repeated, -1)] if len(order) else ())
        self._digests = digests
        self._sorted_digests = digests[order]

    def __len__(self) -> int:
        return len(self._digests)

    def has_namesake(self, number: int) -> bool:
        """Whether another name would be the same file as the name with this number."""
        index = int(np.searchsorted(self._with_namesakes, number))
        is_found = index < len(self._with_namesakes) and int(self._with_namesakes[index]) == number
        return is_found and int(self._digests[number]) != _NONE

    def would_clash(self, name: str) -> bool:
        """Whether a further name would be the same file as one of the names, or the folder of one, or below one."""
        parts = name.split("/")
        own = _digest(name)
        above = (_digest("/".join(parts[:end])) for end in range(1, len(parts)))
        return own in self._folders or any(self._has_digest(digest) for digest in (own, *above))

    def _has_digest(self, digest: int) -> bool:
        index = int(np.searchsorted(self._sorted_digests, digest))
        return index < len(self._sorted_digests) and int(self._sorted_digests[index]) == digest

    def why_refused(self, number: int) -> str:
        """Return why the name with this number collides with another; an empty string if it does not.

        Of several names for the same file, the first one is accepted.
        """
        digest = int(self._digests[number])
        if digest == _NONE:
            return ""
        index = int(np.searchsorted(self._repeated, number))
        if index < len(self._repeated) and int(self._repeated[index]) == number:
            return "an earlier record has the name of its file, but perhaps for the case of letters"
        return "the name of its file is that of another's folder" if digest in self._folders else ""


_NONE = -1


def _add_name(name: str, folders: set[int]) -> int:
    """Return the digest of a name, and add those of its folders."""
    parts = name.split("/")
    for end in range(1, len(parts)):
        folders.add(_digest("/".join(parts[:end])))
    return _digest(name)


def _digest(name: str) -> int:
    """Hash a name as filesystems that ignore case see it. The result is never negative, and so never ``_NONE``."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little") >> 1
