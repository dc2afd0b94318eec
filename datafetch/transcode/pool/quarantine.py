"""Quarantine: a folder for bodies that crashed a worker, so that an operator can inspect them.

Rules: the files are hostile. They are named by their hash, never opened by datafetch, and bounded in number and size.
The folder only helps to investigate a crash, so a disk that refuses a file does not stop the run.
"""

from __future__ import annotations

import logging
from pathlib import Path

_MAX_BODIES = 100
_MAX_BYTES = 256 * 1024 * 1024

_log = logging.getLogger(__name__)


class Quarantine:
    """The folder. The first bodies stay; once it is full, that is logged once and no more are kept.

    Args:
        folder: Created when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_given_up = False

    def keep(self, body: bytes, sha256: str) -> Path | None:
        """Write a body and return its path; None if it is there already, or there is no room. Blocks while it writes.

        Args:
            body: The body.
            sha256: Its hash in hex, which names the file.
        """
        if self._has_given_up:
            return None
        path = self._folder / f"{sha256}.body"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sizes = [entry.stat().st_size for entry in self._folder.iterdir()]
            if path.exists():
                return None
            if sum(sizes) + len(body) > _MAX_BYTES:
                return None
            if len(sizes) >= _MAX_BODIES:
                self._give_up("it is full")
                return None
            path.write_bytes(body)
        except OSError as error:
            self._give_up(str(error.strerror))
            return None
        return path

    def _give_up(self, reason: str) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            _log.warning("bodies that crash codec processes are no longer kept in %s: %s", self._folder, reason)
