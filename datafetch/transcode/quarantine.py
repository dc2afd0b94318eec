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
        self._is_full = False

    def keep(self, body: bytes, sha256: str) -> Path | None:
        """Keep a body, and say where; None where it lies there already, or has no room. Blocks while it writes."""
        path = self._folder / f"{sha256}.body"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sizes = [entry.stat().st_size for entry in self._folder.iterdir()]
            if path.exists():
                return None
            if len(sizes) >= _MAX_BODIES or sum(sizes) + len(body) > _MAX_BYTES:
                self._say_full()
                return None
            path.write_bytes(body)
        except OSError as error:
            _log.warning("cannot keep the body %s for a look in %s: %s", sha256, self._folder, error.strerror)
            return None
        return path

    def _say_full(self) -> None:
        if not self._is_full:
            self._is_full = True
            _log.warning(
                "no room in %s for more bodies that end codec processes; from now on the ledger alone names them",
                self._folder,
            )
