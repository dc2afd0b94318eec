"""What scans of manifest files found, kept in the state folder until the run is complete.

Some scans are made before a run may write to its output. They are kept in the cache folder, and later in the state
folder, too, where other machines find them.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path

from datafetch.model.regular_file import open_regular
from datafetch.store.atomic import make_folder, publish
from datafetch.store.downloads import cache_folder
from datafetch.store.layout import OutputLayout

_MAX_AGE_S = 30 * 24 * 3600.0  # of scans in the cache folder


class StateFolderCache:
    """Keeps results of scans; several processes may do so at the same time.

    Args:
        layout: The paths of the output, whose lock is held.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self._layout = layout

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """Return what was kept; None if there is nothing, or more than this."""
        return _read(self._layout.scans / key, max_bytes)

    def write(self, key: str, content: bytes) -> None:
        """Keep the result of a scan."""
        for folder in (self._layout.unpublished, self._layout.scans):
            make_folder(folder)
        unfinished = self._layout.unpublished / f"{key}-{secrets.token_hex(8)}"  # not that of another process
        unfinished.write_bytes(content)
        publish(unfinished, self._layout.scans / key)


class CacheFolderScans:
    """Scans made before a run owns its output, kept in the cache folder; those in the state folder are read first.

    Args:
        layout: The paths of the output, to which nothing is written.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self._kept = StateFolderCache(layout)
        self._folder = cache_folder() / "scans"

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """Return what was kept; None if there is nothing, or more than this."""
        kept = self._kept.read(key, max_bytes)
        return _read(self._folder / key, max_bytes) if kept is None else kept

    def write(self, key: str, content: bytes) -> None:
        """Keep the result of a scan, and delete those of more than a month ago. Without space for it, do nothing."""
        unfinished = self._folder / f"unfinished-{secrets.token_hex(8)}"
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(self._folder / key)
            for path in self._folder.iterdir():
                if path.stat().st_mtime < time.time() - _MAX_AGE_S:
                    path.unlink()
        unfinished.unlink(missing_ok=True)


def _read(path: Path, max_bytes: int) -> bytes | None:
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except OSError:
        return None
    return content if len(content) <= max_bytes else None
