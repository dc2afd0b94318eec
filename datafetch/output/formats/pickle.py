"""The pickle shards that VILA's loaders read: ``<name>.pkl``, a list of dicts, and ``<name>.count``, its length."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from datafetch.errors import ManifestError, ResourceError
from datafetch.output.formats.output_format import ShardFormat
from datafetch.output.formats.pickle_form import BETWEEN, END, PREAMBLE, ROWS_AT_ONCE, row_frame
from datafetch.output.formats.pickle_rows import frame_sizes, read_count, stream_frames
from datafetch.output.row import OutputRow
from datafetch.store.layout import OutputLayout

_PIECE_BYTES = 1 << 20


class PickleFormat(ShardFormat):
    """Pickle shards."""

    name = "pickle"
    suffixes = (".pkl", ".count")
    can_be_resharded = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> PickleShardWriter:
        """Begin a shard; one that a retry adds to is written as a whole."""
        del layout, is_retry
        return PickleShardWriter(folder, shard)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[Iterable[bytes]]:
        """The rows of a shard, each in pieces; none where they have become part of equal shards, and stay there."""
        return iter(()) if layout.equal.exists() else stream_frames(layout.out / f"{shard}.pkl")


class PickleShardWriter:
    """Writes one shard as ``<name>.pkl`` and ``<name>.count`` in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.files = (folder / f"{name}.pkl", folder / f"{name}.count")
        self._rows = 0
        self._file = self.files[0].open("wb", buffering=1 << 20)
        self._checksum = 0
        self._put(PREAMBLE)

    def write_row(self, row: OutputRow) -> None:
        """Append a row, its images one at a time."""
        self.copy_row(row_frame(row))

    def copy_row(self, row: Iterable[bytes]) -> None:
        """Append a row in the form in which it stands in a shard, piece by piece."""
        if self._rows % ROWS_AT_ONCE == 0:
            self._put(BETWEEN if self._rows else pickle.MARK)
        for piece in row:
            self._put(piece)
        self._rows += 1

    def finish(self) -> None:
        """Complete both files."""
        self._put(END if self._rows else pickle.STOP)
        self._file.flush()
        self.files[1].write_text(str(self._rows), encoding="ascii")

    def check(self, rows: int) -> None:
        """Read the shard back, which is to hold so many rows; without a row there are no files, for they would count.

        A row may be larger than memory has room for, so it is not loaded: the bytes are compared by their checksum.

        Raises:
            ResourceError: It is not what was written.
        """
        path = self.files[0]
        if not rows:
            for file in self.files:
                file.unlink()
            return
        try:
            found, counted = sum(1 for _ in frame_sizes(path)), read_count(self.files[1])
        except ManifestError as error:
            raise ResourceError(f"{path.name} was not written as it should be ({error}); check the disk") from error
        if found != rows:
            raise ResourceError(f"{path.name} has {found} rows of {rows} that were written; check the disk")
        if counted != rows:
            raise ResourceError(f"{self.files[1].name} says {counted} and not {rows}; check the disk")
        if _checksum(path) != self._checksum:
            raise ResourceError(f"{path.name} has other bytes than were written; check the disk")

    @property
    def written_bytes(self) -> int:
        """Of both files, as they are."""
        return sum(path.stat().st_size for path in self.files if path.exists())

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()

    def _put(self, piece: bytes) -> None:
        self._file.write(piece)
        self._checksum = zlib.crc32(piece, self._checksum)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return checksum
