"""Samples as files, in a folder for each shard: ``<shard>/<key>.jpg``, ``<key>.json`` and ``<key>.txt``.

They are what the members of a ``webdataset`` tar are; beside the folder there are ``<shard>.parquet`` and
``<shard>_stats.json``, as there. The files of a shard are written under numbers, with an index, and published one by
one, as in ``image_files``.

Rules: one image at a time is in memory. After a retry, the files of samples that were not fetched again stay where they
are, and their lines of the index are copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from datafetch.errors import ResourceError
from datafetch.model.checksum import crc32
from datafetch.model.outcome import OK
from datafetch.output.formats.checksummed_file import crc32_of
from datafetch.output.formats.image_files import (
    INDEX_SUFFIX,
    ImageFile,
    ImageFilesFormat,
    encode_index_line,
    published_files,
    read_index,
)
from datafetch.output.formats.output_format import size_bytes
from datafetch.output.formats.parquet_rows import PARQUET_SUFFIX, ParquetRowsWriter, read_parquet_rows
from datafetch.output.formats.sample_columns import KEY, SampleValues, kept_types, sample_values
from datafetch.output.formats.sample_files import TEXT_SUFFIXES, named_files
from datafetch.output.formats.shard_stats import STATS_SUFFIX, ShardStats
from datafetch.output.row import OutputRow
from datafetch.store.atomic import refuse_links_above
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.spool_format import ImageResult

_OF_SHARD = -1  # in place of a sample, in the index
_NUMBERED_SUFFIX = ".file"


class FilesFormat(ImageFilesFormat):
    """Samples as files, in a folder for each shard."""

    name = "files"
    rows_have_outcomes = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> FilesWriter:
        """Open a writer; files of samples that are not retried stay where they are."""
        return FilesWriter(folder, shard, layout.out / f"{shard}{PARQUET_SUFFIX}" if is_retry else None)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[StoredSample]:
        """The rows of a shard, with what the index has of their files."""
        files = _by_sample(read_index(layout.image_index(shard)))
        found = next(files, ())
        for row in read_parquet_rows(layout.out / f"{shard}{PARQUET_SUFFIX}"):
            has_files = bool(found) and PurePosixPath(found[0].name).name.startswith(f"{row[KEY]}.")
            yield StoredSample(row, found if has_files else ())
            found = next(files, ()) if has_files else found

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The images of samples whose images are all as they were written; the files of the others are deleted."""
        return _salvage(layout, shard) if layout.image_index(shard).exists() else None


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample of a published shard.

    Attributes:
        row: Its row of the parquet.
        files: Its files.
    """

    row: SampleValues
    files: Sequence[ImageFile]


class FilesWriter:
    """Writes a shard as numbered files, and their index ``<shard>.files``.

    Args:
        folder: The folder to write to.
        shard: The shard's name.
        replaced: The parquet of the shard that is replaced; None for a new one.
    """

    def __init__(self, folder: Path, shard: str, replaced: Path | None = None) -> None:
        self.written_bytes = 0
        self._folder = folder
        self._shard = shard
        self._rows = 0
        self._count = 0
        self._table = ParquetRowsWriter(
            folder / f"table{_NUMBERED_SUFFIX}", replaced=replaced
        )  # first, since it may refuse
        self._index_path = folder / f"{shard}{INDEX_SUFFIX}"
        self._index = self._index_path.open("wb")
        self._stats = ShardStats(folder / f"stats{_NUMBERED_SUFFIX}")

    def write_row(self, row: OutputRow) -> None:
        """Write the files of a sample, loading its images one at a time."""
        values = sample_values(row)
        for name, content in named_files(row, values):
            self._write_file(name, content, row.images[0].line.sample)
        self._add(values, kept_types(row.values))

    def copy_row(self, row: StoredSample) -> None:
        """Append a sample whose files stay where they are."""
        for file in row.files:
            self._add_to_index(replace(file, number=f"{self._count}{_NUMBERED_SUFFIX}"))
        self._add(row.row, {})

    def finish(self) -> None:
        """Complete the files that describe the shard, and the index."""
        self._table.finish()
        self._stats.finish()
        if self._rows:
            for file, suffix in ((self._table, PARQUET_SUFFIX), (self._stats, STATS_SUFFIX)):
                (checksum,) = file.checksums().values()
                name = f"{self._shard}{suffix}"
                line = ImageFile(name, file.written_bytes, file.path.name, _OF_SHARD, crc32=checksum)
                self._add_to_index(line)
        else:
            self._table.path.unlink()
            self._stats.path.unlink()
        self._index.flush()

    def check(self, rows: int) -> None:
        """Read the new files back and compare them with what was written.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The files are not what was written.
        """
        numbered = {path.name for path in self._folder.glob(f"*{_NUMBERED_SUFFIX}")}
        written = 0
        for file in read_index(self._index_path):
            if file.number in numbered:
                path = self._folder / file.number
                written += path.stat().st_size == file.size_bytes and crc32_of(path) == file.crc32
        if self._rows != rows or written != len(numbered) or self._listed_bytes() != self._index.tell():
            raise ResourceError(
                f"{len(numbered)} files of {self._shard} were found when they were read back, and {written} of them "
                "have the bytes that were written; check the disk"
            )

    def checksums(self) -> dict[str, int]:
        """None: the index has them."""
        return {}

    def close(self) -> None:
        """Close the files, finished or not."""
        self._table.close()
        self._index.close()

    def _listed_bytes(self) -> int:
        return self._index_path.stat().st_size

    def _write_file(self, name: str, content: bytes, sample: int) -> None:
        number = f"{self._count}{_NUMBERED_SUFFIX}"
        with (self._folder / number).open("wb") as file:
            file.write(content)
            if not name.endswith(TEXT_SUFFIXES):
                file.flush()
                # Starts writing it to the disk, so that bringing all of them there in the end is faster. For the small
                # texts that costs more than it saves.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        line = ImageFile(f"{self._shard}/{name}", len(content), number, sample, crc32=crc32(content))
        self._add_to_index(line)

    def _add_to_index(self, file: ImageFile) -> None:
        self._index.write(encode_index_line(file))
        self._count += 1
        self.written_bytes += file.size_bytes

    def _add(self, values: SampleValues, types: Mapping[str, str]) -> None:
        self._table.write(values, types)
        self._stats.add(values)
        self._rows += 1


def _by_sample(files: Iterator[ImageFile]) -> Iterator[tuple[ImageFile, ...]]:
    """The files of an index sample by sample, without those that describe the shard."""
    found: list[ImageFile] = []
    for file in files:
        if found and file.sample != found[0].sample:
            yield tuple(found)
            found = []
        if file.sample != _OF_SHARD:
            found.append(file)
    if found:
        yield tuple(found)


def _salvage(layout: OutputLayout, shard: str) -> Iterator[ImageResult]:
    samples = _by_sample(file for _, file in published_files(layout, shard))
    found = next(samples, ())
    for lines in read_samples(layout.ledger(shard)):
        if found and lines[0].sample == found[0].sample:
            paths = [layout.out / file.name for file in found]
            are_intact = [size_bytes(path) == file.size_bytes for path, file in zip(paths, found, strict=True)]
            images = [path for path in paths if path.suffix not in TEXT_SUFFIXES]
            arrived = [line for line in lines if line.outcome == OK]
            if all(are_intact[: len(images)]) and len(images) == len(arrived):
                for line, path in zip(arrived, images, strict=True):
                    yield ImageResult(line, path.read_bytes())
            else:
                refuse_links_above(paths, layout.out)
                for path in paths:
                    path.unlink(missing_ok=True)
            found = next(samples, ())
