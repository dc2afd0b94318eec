"""The pickle shards that VILA's loaders read: ``<name>.pkl``, a list of dicts, and ``<name>.count``, its length.

Rules: never more than one row in memory. A pickle of a list can be written as it grows: header, then for every few rows
MARK, each row's own pickle without header and stop, APPENDS; then STOP (pickletools documents the opcodes).
"""

from __future__ import annotations

import pickle
from pathlib import Path

from datafetch.model import Row

# Protocol 3 numbers its memo explicitly and has no frames, so pickles made one by one can be joined; from protocol 4 on
# memo numbers are implied by position and a frame's length covers its STOP.
_PROTOCOL = 3
_HEADER = pickle.PROTO + bytes([_PROTOCOL])
_ROWS_AT_ONCE = 1000  # as the standard library does: the reader's stack holds this many before they join the list


class PickleSink:
    """Writes one shard as ``<name>.pkl`` and ``<name>.count`` in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.files = (folder / f"{name}.pkl", folder / f"{name}.count")
        self._rows = 0
        self._file = self.files[0].open("wb", buffering=1 << 20)
        self._file.write(_HEADER + pickle.EMPTY_LIST)

    def write(self, row: Row) -> None:
        """Append one row."""
        if self._rows % _ROWS_AT_ONCE == 0:
            self._file.write(pickle.APPENDS + pickle.MARK if self._rows else pickle.MARK)
        self._file.write(pickle.dumps(dict(row), _PROTOCOL)[len(_HEADER) : -len(pickle.STOP)])
        self._rows += 1

    def finish(self) -> None:
        """Complete both files."""
        self._file.write(pickle.APPENDS + pickle.STOP if self._rows else pickle.STOP)
        self._file.flush()
        self.files[1].write_text(str(self._rows), encoding="ascii")

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()
