"""What scans of manifest files found, kept in the state folder until the run is complete."""

from __future__ import annotations

import secrets

from datafetch.model.regular_file import open_regular
from datafetch.store.atomic import make_folder, publish
from datafetch.store.layout import OutputLayout


class StateFolderCache:
    """Keeps results of scans; several processes may do so at the same time.

    Args:
        layout: The paths of the output, whose lock is held.
    """

    def __init__(self, layout: OutputLayout) -> None:
        self._layout = layout

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """Return what was kept; None if there is nothing, or more than this."""
        try:
            with open_regular(self._layout.scans / key) as file:
                content = file.read(max_bytes + 1)
        except OSError:
            return None
        return content if len(content) <= max_bytes else None

    def write(self, key: str, content: bytes) -> None:
        """Keep the result of a scan."""
        for folder in (self._layout.unpublished, self._layout.scans):
            make_folder(folder)
        unfinished = self._layout.unpublished / f"{key}-{secrets.token_hex(8)}"  # not that of another process
        unfinished.write_bytes(content)
        publish(unfinished, self._layout.scans / key)
