"""Parquet shards with images: ``<shard>.parquet``, which ``datasets`` and anything that reads parquet can load.

A row is a sample: ``image`` is ``{"bytes", "path"}``, or null if it failed, and the other columns are those of
img2dataset. For samples whose URLs are a list, ``image`` is a list. The schema's metadata says so to ``datasets``,
which then decodes it.

Rules: the images of one row group are in memory, which is bounded in bytes, or those of one sample if they are larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datafetch.errors import ResourceError
from datafetch.model.outcome import OK
from datafetch.output.formats.image_suffix import image_suffix
from datafetch.output.formats.output_format import ShardFormat
from datafetch.output.formats.parquet_rows import PARQUET_SUFFIX, ParquetRowsWriter, read_parquet_rows
from datafetch.output.formats.sample_columns import (
    IMAGE,
    SampleValues,
    has_several,
    image_name,
    kept_types,
    require_plain_key,
    sample_values,
)
from datafetch.output.row import OutputRow
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_format import SpooledImage


class ParquetFormat(ShardFormat):
    """Parquet shards with images."""

    name = "parquet"
    suffixes = (PARQUET_SUFFIX,)
    rows_have_outcomes = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> ParquetShardWriter:
        """Open a writer; a retried shard is written again as a whole, with the columns that it has."""
        return ParquetShardWriter(folder, shard, layout.out / f"{shard}{PARQUET_SUFFIX}" if is_retry else None)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[SampleValues]:
        """The rows of a shard."""
        path = layout.out / f"{shard}{PARQUET_SUFFIX}"
        self.refuse_changed(layout, shard, [path])
        yield from read_parquet_rows(path)


class ParquetShardWriter:
    """Writes the file of a shard.

    Args:
        folder: The folder to write to.
        shard: The shard's name.
        replaced: The file that is replaced; None for a new shard.
    """

    def __init__(self, folder: Path, shard: str, replaced: Path | None = None) -> None:
        self._table = ParquetRowsWriter(folder / f"{shard}{PARQUET_SUFFIX}", has_images=True, replaced=replaced)

    def write_row(self, row: OutputRow) -> None:
        """Append a sample, with its images in memory."""
        values = sample_values(row)
        key, are_several = require_plain_key(values), has_several(row)
        images = [
            _image(key, number if are_several else None, image) if image.line.outcome == OK else None
            for number, image in enumerate(row.images)
        ]
        values[IMAGE] = images if are_several else images[0] if images else None
        self._table.write(values, kept_types(row.values))

    def copy_row(self, row: SampleValues) -> None:
        """Append a row of the shard that is replaced."""
        self._table.write(row, {})

    def finish(self) -> None:
        """Complete the file."""
        self._table.finish()

    def check(self, rows: int) -> None:
        """Read the file back and compare it with what was written; without rows, delete it.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The file is not what was written.
        """
        if not rows:
            self._table.path.unlink()
            return
        if self._table.rows != rows:
            raise ResourceError(f"{self._table.path.name} has {self._table.rows} of {rows} rows; check the disk")
        self._table.check()

    @property
    def written_bytes(self) -> int:
        """The size of the file."""
        return self._table.path.stat().st_size if self._table.path.exists() else 0

    def checksums(self) -> dict[str, int]:
        """The CRC-32 of the file."""
        return self._table.checksums()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._table.close()


def _image(key: str, number: int | None, image: SpooledImage) -> SampleValues:
    content = image.load().jpeg
    return {"bytes": content, "path": image_name(key, number, image_suffix(content))}
