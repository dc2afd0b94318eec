"""Quarantine: bodies that ended a codec process, kept for a look.

Rules: what lies here is hostile; it is named by its hash, never opened, and there is a bound to it. It is a help for
whoever looks into a crash, so a disk that won't take it is no reason to stop a run.
"""

from __future__ import annotations

import logging
from pathlib import Path

_MAX_BODIES = 100
_MAX_BYTES = 256 * 1024 * 1024

_log = logging.getLogger(__name__)


class Quarantine:
    """A folder for such bodies. The first ones stay; when there is no room, that is said once, and no more are kept.

    Args:
        folder: Made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_given_up = False

    def keep(self, body: bytes, sha256: str) -> Path | None:
        """Keep a body, and say where; None where it lies there already, or has no room. Blocks while it writes."""
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

    def _give_up(self, why: str) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            _log.warning("bodies that end codec processes are no longer kept in %s: %s", self._folder, why)
