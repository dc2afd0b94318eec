"""The pickle shards that VILA's loaders read: ``<name>.pkl``, a list of dicts, and ``<name>.count``, its length."""

from __future__ import annotations

import pickle
from pathlib import Path

from datafetch.errors import ManifestError, ResourceError
from datafetch.model import Row
from datafetch.sinks.pickle_form import BETWEEN, END, PREAMBLE, ROWS_AT_ONCE, encode_row
from datafetch.sinks.pickle_rows import decode_row, read_frames


class PickleSink:
    """Writes one shard as ``<name>.pkl`` and ``<name>.count`` in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.files = (folder / f"{name}.pkl", folder / f"{name}.count")
        self._rows = 0
        self._file = self.files[0].open("wb", buffering=1 << 20)
        self._file.write(PREAMBLE)

    def write(self, row: Row) -> None:
        """Append one row."""
        self.write_frame(encode_row(row))

    def write_frame(self, frame: bytes) -> None:
        """Append a row as it stands in another shard."""
        if self._rows % ROWS_AT_ONCE == 0:
            self._file.write(BETWEEN if self._rows else pickle.MARK)
        self._file.write(frame)
        self._rows += 1

    def finish(self) -> None:
        """Complete both files."""
        self._file.write(END if self._rows else pickle.STOP)
        self._file.flush()
        self.files[1].write_text(str(self._rows), encoding="ascii")

    def check(self, rows: int) -> None:
        """Read the shard back, as the trainer will; without a row there are no files, for it would count them.

        Raises:
            ResourceError: It is not what was written.
        """
        path = self.files[0]
        if not rows:
            for file in self.files:
                file.unlink()
            return
        try:
            found = sum(1 for frame in read_frames(path) if decode_row(frame))
        except (ManifestError, ValueError) as error:
            raise ResourceError(f"{path.name} was not written as it should be ({error}); check the disk") from error
        if found != rows:
            raise ResourceError(f"{path.name} has {found} rows of {rows} that were written; check the disk")

    @property
    def written_bytes(self) -> int:
        """Of both files, as they are."""
        return sum(path.stat().st_size for path in self.files if path.exists())

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()
