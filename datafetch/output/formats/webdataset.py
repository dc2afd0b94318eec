"""WebDataset shards as img2dataset lays them out: ``<shard>.tar``, ``<shard>.parquet`` and ``<shard>_stats.json``.

The tar has for each sample with an image ``<key>.jpg`` (or another suffix, by the content), ``<key>.json`` with its
columns, and ``<key>.txt`` with its caption, if the list has captions. The images of samples whose URLs are a list are
``<key>.0.jpg``, ``<key>.1.jpg`` …, numbered as the URLs are, so that readers take them for fields of one sample. The
parquet has a row for each sample, whatever became of its images.

Rules: one image at a time is in memory, and a row group of the parquet. A retry copies the members of samples that it
has not fetched again byte by byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datafetch.errors import ResourceError, raise_if_exhausted
from datafetch.model.outcome import OK
from datafetch.model.regular_file import open_regular
from datafetch.output.formats.checksummed_file import ChecksummedFile, crc32_of
from datafetch.output.formats.output_format import ShardFormat
from datafetch.output.formats.parquet_rows import PARQUET_SUFFIX, ParquetRowsWriter, no_longer_ours, read_parquet_rows
from datafetch.output.formats.sample_columns import KEY, SampleValues, Status, kept_types, sample_values
from datafetch.output.formats.sample_files import TEXT_SUFFIXES, named_files
from datafetch.output.formats.shard_stats import STATS_SUFFIX, ShardStats, statuses
from datafetch.output.formats.tar_file import TarMember, TarWriter, read_members
from datafetch.output.row import OutputRow
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_file_checks
from datafetch.store.spool_format import ImageResult

TAR_SUFFIX = ".tar"
_CHUNK_BYTES = 1 << 20


class WebDatasetFormat(ShardFormat):
    """WebDataset shards."""

    name = "webdataset"
    suffixes = (TAR_SUFFIX, PARQUET_SUFFIX, STATS_SUFFIX)
    rows_have_outcomes = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> WebDatasetWriter:
        """Open a writer; a retried shard is written again as a whole, with the columns that it has."""
        return WebDatasetWriter(folder, shard, layout.out / f"{shard}{PARQUET_SUFFIX}" if is_retry else None)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[StoredSample]:
        """The rows of a shard, each with the bytes of its members, which must be consumed before the next is read."""
        tar, parquet = (layout.out / f"{shard}{suffix}" for suffix in (TAR_SUFFIX, PARQUET_SUFFIX))
        self.refuse_changed(layout, shard, (tar, parquet))
        with open_regular(tar) as file:
            try:
                yield from _stored_samples(file, read_parquet_rows(parquet))
            except ValueError as error:
                raise no_longer_ours(tar) from error

    def file_with_rows(self, shard: str) -> str:
        """The parquet: samples without an image are not in the tar."""
        return f"{shard}{PARQUET_SUFFIX}"

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The images of a shard that has lost its parquet or its statistics, if its tar is as it was written."""
        path = layout.out / f"{shard}{TAR_SUFFIX}"
        check = read_file_checks(layout.ledger(shard)).get(path.name)
        with suppress(OSError):
            if check is not None and path.stat().st_size == check.size_bytes and crc32_of(path) == check.crc32:
                return _salvage(layout, shard, path)
        return None


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample of a published shard.

    Attributes:
        row: Its row of the parquet.
        members: The bytes of its members in the tar, with their headers, in pieces.
    """

    row: SampleValues
    members: Iterable[bytes]


class WebDatasetWriter:
    """Writes the three files of a shard.

    Args:
        folder: The folder to write to.
        shard: The shard's name.
        replaced: The parquet of the shard that is replaced; None for a new one.
    """

    def __init__(self, folder: Path, shard: str, replaced: Path | None = None) -> None:
        self._table = ParquetRowsWriter(
            folder / f"{shard}{PARQUET_SUFFIX}", replaced=replaced
        )  # first, since it may refuse
        self._file = ChecksummedFile(folder / f"{shard}{TAR_SUFFIX}")
        self._tar = TarWriter(self._file)
        self._stats = ShardStats(folder / f"{shard}{STATS_SUFFIX}")

    def write_row(self, row: OutputRow) -> None:
        """Append a sample, loading its images one at a time."""
        values = sample_values(row)
        for name, content in named_files(row, values):
            self._tar.write(name, content)
        self._add(values, kept_types(row.values))

    def copy_row(self, row: StoredSample) -> None:
        """Append a sample of the shard that is replaced."""
        for piece in row.members:
            self._tar.copy(piece)
        self._add(row.row, {})

    def _add(self, values: SampleValues, types: Mapping[str, str]) -> None:
        self._table.write(values, types)
        self._stats.add(values)

    def finish(self) -> None:
        """Complete the files."""
        self._tar.finish()
        self._file.finish()
        self._table.finish()
        self._stats.finish()

    def check(self, rows: int) -> None:
        """Read the files back and compare them with what was written; without rows, delete them.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The files are not what was written.
        """
        if not rows:
            for path in (self._file.path, self._table.path, self._stats.path):
                path.unlink()
            return
        if self._table.rows != rows:
            raise ResourceError(f"{self._table.path.name} has {self._table.rows} of {rows} rows; check the disk")
        self._file.check()
        self._table.check()
        self._stats.check()

    @property
    def written_bytes(self) -> int:
        """The size of the files."""
        paths = (self._file.path, self._table.path, self._stats.path)
        return sum(path.stat().st_size for path in paths if path.exists())

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of the files."""
        return {**self._file.checksums(), **self._table.checksums(), **self._stats.checksums()}

    def close(self) -> None:
        """Close the files, finished or not."""
        self._table.close()
        self._file.close()


def _stored_samples(file: BinaryIO, rows: Iterable[SampleValues]) -> Iterator[StoredSample]:
    """The samples of a shard.

    Raises:
        ValueError: The tar does not have the members that the rows say it has.
    """
    members = read_members(file)
    member = next(members, None)
    for row in rows:
        start = stop = None
        if any(status == Status.SUCCESS for status, _ in statuses(row)):
            while member is not None and member.name.startswith(f"{row[KEY]}."):
                start = member.start if start is None else start
                stop = member.stop
                member = next(members, None)
            if start is None:
                raise ValueError("lacks a sample")
        yield StoredSample(row, () if start is None or stop is None else _pieces(file, range(start, stop)))
    if member is not None:
        raise ValueError("has a sample that the parquet lacks")


def _pieces(file: BinaryIO, span: range) -> Iterator[bytes]:
    for start in span[::_CHUNK_BYTES]:
        piece = os.pread(file.fileno(), min(_CHUNK_BYTES, span.stop - start), start)
        if not piece:
            raise no_longer_ours(Path(file.name))
        yield piece


def _salvage(layout: OutputLayout, shard: str, path: Path) -> Iterator[ImageResult]:
    """The images of a tar that is as it was written: those of its samples, in the order of the ledger."""
    try:
        with open_regular(path) as file:
            images = (member for member in read_members(file) if not member.name.endswith(TEXT_SUFFIXES))
            for lines in read_samples(layout.ledger(shard)):
                for line in lines:
                    if line.outcome == OK and (member := next(images, None)) is not None:
                        yield ImageResult(line, _content(file, member))
    except (OSError, ValueError) as error:
        raise_if_exhausted(error)


def _content(file: BinaryIO, member: TarMember) -> bytes:
    content = member.read(file)
    if len(content) != member.size_bytes:
        raise ValueError("became shorter while it was read")
    return content
