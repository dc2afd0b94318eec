"""Decides which file names from untrusted data may be written, and which would collide.

Rules: a name must stay inside the output folder, and be valid and unambiguous on every common filesystem. Names are
never repaired, because two repairs could give the same name; what would need a repair is refused. The reasons are
stored, and don't quote the name, so that equal ones are equal texts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

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

    Of several that clash, the first is accepted, and refused names clash with nothing. Memory holds 16 bytes for each
    name, twice a hash of the name as a filesystem sees it that ignores case and Unicode composition, and some 110 for
    each folder.

    Args:
        names: All names, in order; None for those that are refused for another reason.
    """

    def __init__(self, names: Iterable[str | None]) -> None:
        self._first_below: dict[int, int] = {}  # folder → number of the first name below it
        digests = np.fromiter((self._add(number, name) for number, name in enumerate(names)), np.int64)
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
        folders = np.fromiter(self._first_below, np.int64)
        both = folders[np.isin(folders, self._sorted_digests)]
        numbers = order[np.searchsorted(self._sorted_digests, both)]
        # Those folders whose name an earlier name has, so that nothing can lie in them: folder → number of that name.
        self._files = {
            folder: number
            for folder, number in zip(both.tolist(), numbers.tolist(), strict=True)
            if number < self._first_below[folder]
        }

    def __len__(self) -> int:
        return len(self._digests)

    def has_namesake(self, number: int) -> bool:
        """Whether another name would be the same file as the name with this number."""
        return _is_in(self._with_namesakes, number) and int(self._digests[number]) != _NONE

    def would_clash(self, name: str) -> bool:
        """Whether a further name would be the same file as one of the names, or the folder of one, or below one."""
        own = _digest(name)
        return own in self._first_below or any(
            _is_in(self._sorted_digests, digest) for digest in (own, *_folder_digests(name))
        )

    def why_refused(self, number: int, name: str) -> str:
        """Return why a name collides with an earlier one that is accepted; an empty string if it does not.

        Args:
            number: The number of the name.
            name: The name itself.
        """
        digest = int(self._digests[number])
        if digest == _NONE:
            return ""
        if _is_in(self._repeated, number):
            return "an earlier record has the name of its file, but perhaps for the case of letters"
        if self._first_below.get(digest, number) < number:
            return "an earlier record has the name of its file as a folder"
        if self._files and any(self._files.get(folder, number) < number for folder in _folder_digests(name)):
            return "an earlier record has the name of its folder as a file"
        return ""

    def _add(self, number: int, name: str | None) -> int:
        """Add the folders of a name, and return its digest."""
        if name is None:
            return _NONE
        for folder in _folder_digests(name):
            self._first_below.setdefault(folder, number)
        return _digest(name)


_NONE = -1


def _is_in(ordered: npt.NDArray[np.int64], value: int) -> bool:
    """Whether a sorted array has a value."""
    index = int(np.searchsorted(ordered, value))
    return index < len(ordered) and int(ordered[index]) == value


def _folder_digests(name: str) -> Iterator[int]:
    """The digests of the folders that a name lies in."""
    parts = name.split("/")
    return (_digest("/".join(parts[:end])) for end in range(1, len(parts)))


def _digest(name: str) -> int:
    """Hash a name as filesystems that ignore case see it. The result is never negative, and so never ``_NONE``."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little") >> 1
