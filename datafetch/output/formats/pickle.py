"""The pickle shards that VILA's loaders read: ``<name>.pkl``, a list of dicts, and ``<name>.count``, its length."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

from datafetch.errors import ManifestError, ResourceError
from datafetch.model.checksum import crc32
from datafetch.output.formats.checksummed_file import ChecksummedFile
from datafetch.output.formats.output_format import ShardFormat
from datafetch.output.formats.pickle_form import BATCH_SEPARATOR, LIST_END, PREAMBLE, ROWS_PER_BATCH, row_frame
from datafetch.output.formats.pickle_rows import frame_sizes, read_count, stream_frames
from datafetch.output.row import OutputRow
from datafetch.store.layout import OutputLayout

ROWS_SUFFIX, COUNT_SUFFIX = ".pkl", ".count"


class PickleFormat(ShardFormat):
    """Pickle shards."""

    name = "pickle"
    suffixes = (ROWS_SUFFIX, COUNT_SUFFIX)
    can_be_resharded = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> PickleShardWriter:
        """Open a writer; a retried shard is written again as a whole."""
        del layout, is_retry
        return PickleShardWriter(folder, shard)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[Iterable[bytes]]:
        """The rows of a shard, each as pieces of its frame; of a resharded output those that were added since.

        All others stay where they are.
        """
        is_resharded = layout.reshard_record.exists()
        path = (layout.added if is_resharded else layout.out) / f"{shard}{ROWS_SUFFIX}"
        return iter(()) if is_resharded and not path.exists() else stream_frames(path)


class PickleShardWriter:
    """Writes one shard as ``<name>.pkl`` and ``<name>.count``; rows are written as they come and never held."""

    def __init__(self, folder: Path, name: str) -> None:
        self._rows_path, self._count_path = (folder / f"{name}{suffix}" for suffix in PickleFormat.suffixes)
        self._rows = 0
        self._file = ChecksummedFile(self._rows_path)
        self._file.write(PREAMBLE)

    def write_row(self, row: OutputRow) -> None:
        """Append a row, loading its images one at a time."""
        self.copy_row(row_frame(row))

    def copy_row(self, row: Iterable[bytes]) -> None:
        """Append the pieces of a row's frame."""
        if self._rows % ROWS_PER_BATCH == 0:
            self._file.write(BATCH_SEPARATOR if self._rows else pickle.MARK)
        for piece in row:
            self._file.write(piece)
        self._rows += 1

    def finish(self) -> None:
        """Complete both files."""
        self._file.write(LIST_END if self._rows else pickle.STOP)
        self._file.finish()
        self._count_path.write_text(str(self._rows), encoding="ascii")

    def check(self, rows: int) -> None:
        """Read the shard back and compare it with what was written.

        Without rows, both files are deleted, because the trainer would count them as a shard.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The shard is not what was written.
        """
        if not rows:
            self._rows_path.unlink()
            self._count_path.unlink()
            return
        name = self._rows_path.name
        try:
            found, counted = sum(1 for _ in frame_sizes(self._rows_path)), read_count(self._count_path)
        except ManifestError as error:
            raise ResourceError(f"{name} can't be read back after it was written ({error}); check the disk") from error
        if found != rows:
            raise ResourceError(f"{name} has {found} of the {rows} rows that were written; check the disk")
        if counted != rows:
            raise ResourceError(f"{self._count_path.name} says {counted} and not {rows}; check the disk")
        self._file.check()

    @property
    def written_bytes(self) -> int:
        """The size of both files."""
        return sum(path.stat().st_size for path in (self._rows_path, self._count_path) if path.exists())

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of both files."""
        return {**self._file.checksums(), self._count_path.name: crc32(str(self._rows).encode())}

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
