"""The output format of image files: each image is a file with a name of its own.

The files of a shard are first written under numbers, with an index that has the final name of each. When the whole
shard is on disk, they are renamed, and the index goes to the state folder.

Rules: a row is ``{"name": …, "content": …, "sample": …}`` with a name that ``datasets.filenames`` accepts; the content
is empty if the file is in its place already, and there is none if that place is outside of the output. An index is a
file of the state folder and not trusted: a name that leads out of the output folder is refused, but for a file that is
only looked at.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import orjson

from datafetch.errors import STARTS_OVER, ConfigurationError, ResourceError
from datafetch.model.bounds import Count, Crc32
from datafetch.model.checksum import crc32
from datafetch.model.outcome import OK
from datafetch.model.regular_file import open_regular
from datafetch.output.formats.output_format import (
    OutputFormat,
    PublishedFile,
    PublishedRow,
    ShardWriter,
    size_bytes,
)
from datafetch.output.row import OutputRow
from datafetch.store.atomic import make_folder, move, publish, refuse_links_above, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.spool_format import ImageResult

INDEX_SUFFIX = ".files"
_SUFFIX = ".image"


class ImageFilesFormat(OutputFormat):
    """One file per image."""

    name = "image_files"
    allows_other_files = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> ShardWriter:
        """Open a writer; files that a retried shard has already published stay where they are."""
        index = layout.image_index(shard)
        return ImageFilesWriter(folder, shard, index if is_retry and index.exists() else None)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[PublishedRow]:
        """No rows, because published files stay where they are."""
        del layout, shard
        return iter(())

    def refuse_other_files(self, layout: OutputLayout, shard: str, folder: Path) -> None:
        """Compare each file with the one that is there already; nothing is written to a set that others share."""
        for file in read_index(folder / f"{shard}{INDEX_SUFFIX}"):
            if file.is_elsewhere:
                continue
            numbered, final = folder / file.number, _final_path(layout, file)
            if numbered.exists() and layout.out.is_symlink():
                raise ConfigurationError(
                    f"{layout.out} is a symbolic link, and datafetch does not write through links; "
                    "replace it by a folder"
                )
            if not numbered.exists() or not (final.exists() or final.is_symlink()):
                continue
            if final.is_symlink() or not filecmp.cmp(numbered, final, shallow=False):
                raise ConfigurationError(
                    f"{final} has appeared since its image was fetched, and is another file; move it away, or use "
                    "--fresh, which replaces such files"
                )

    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Rename the files to their final names, then publish the index."""
        del folder
        index = ready / f"{shard}{INDEX_SUFFIX}"
        if index.exists():
            publish_image_files(layout, ready, index)
            make_folder(layout.image_index_folder)
            publish(index, layout.image_index(shard))

    def files_of(self, layout: OutputLayout, shard: str) -> list[Path]:
        """The files of a shard that datafetch has written; none if it has no index."""
        return [path for path, file in published_files(layout, shard) if not file.is_adopted]

    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether all files exist with the sizes with which they were written."""
        return all(size_bytes(path) == file.size_bytes for path, file in published_files(layout, shard))

    def published_files(self, layout: OutputLayout, shard: str) -> Iterator[PublishedFile]:
        """All files, also those that were in their place already, whose size alone is known."""
        for path, file in published_files(layout, shard):
            yield PublishedFile(path, file.size_bytes, file.crc32, is_elsewhere=file.is_elsewhere)

    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Delete the index; the files stay until they are replaced one by one."""
        layout.image_index(shard).unlink(missing_ok=True)

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The images whose files still have the size with which they were written; damaged files are deleted."""
        return _salvage(layout, shard) if layout.image_index(shard).exists() else None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A line of an index: one file of a shard. Field names are those of the index.

    Attributes:
        name: Its path, relative to the output folder.
        size_bytes: Its size.
        number: Its file name before it is published.
        sample: Position of its sample in the shard.
        is_adopted: Whether it was in its place already, so that it is not datafetch's to replace or to delete.
        is_elsewhere: Whether it is adopted, and outside of the output, as an image of a list is; it is only looked at.
        crc32: Its CRC-32; None if it is adopted, and in an index of an earlier version.
    """

    name: str
    size_bytes: Count
    number: str
    sample: int
    is_adopted: bool = False
    is_elsewhere: bool = False
    crc32: Crc32 | None = None


_index_lines = msgspec.json.Decoder(ImageFile)


class ImageFilesWriter:
    """Writes a shard as numbered files, and their index ``<shard>.files``, which has a line of JSON for each file.

    Args:
        folder: The folder to write to.
        shard: The shard's name.
        published_index: The index of files that are published already; they are listed again and stay where they are.
    """

    def __init__(self, folder: Path, shard: str, published_index: Path | None = None) -> None:
        self._index_path = folder / f"{shard}{INDEX_SUFFIX}"
        self.written_bytes = 0
        self._folder = folder
        self._count = 0
        self._adopted = 0
        self._index = self._index_path.open("wb")
        for file in read_index(published_index) if published_index is not None else ():
            self._add_to_index(file)

    def write_row(self, row: OutputRow) -> None:
        """Write the file of a row."""
        values = row.load()
        name, content, sample = values["name"], values.get("content"), values["sample"]
        assert isinstance(name, str), "names are text"
        assert isinstance(sample, int), "samples are numbered"
        number = f"{self._count}{_SUFFIX}"
        if not content:  # the file was in its place already
            self._adopted += 1
            (image,) = row.images
            is_elsewhere = "content" not in values
            size = image.line.body_bytes
            self._add_to_index(ImageFile(name, size, number, sample, is_adopted=True, is_elsewhere=is_elsewhere))
            return
        assert isinstance(content, bytes), "files have bytes"
        with (self._folder / number).open("wb") as file:
            file.write(content)
            file.flush()
            # Starts writing it to the disk, so that bringing all of them there in the end is four times as fast.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._add_to_index(ImageFile(name, len(content), number, sample, crc32=crc32(content)))

    def copy_row(self, row: PublishedRow) -> None:
        """Never called, because ``read_rows`` returns no rows."""
        raise AssertionError(row)

    def finish(self) -> None:
        """Complete the index."""
        self._index.flush()

    def check(self, rows: int) -> None:
        """Check that the new files exist with the sizes that the index has.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The files are not what was written.
        """
        numbered = {path.name: path.stat().st_size for path in self._folder.glob(f"*{_SUFFIX}")}
        indexed = {file.number: file.size_bytes for file in read_index(self._index_path) if file.number in numbered}
        if len(indexed) + self._adopted != rows or indexed != numbered:
            raise ResourceError(
                f"{rows} files were written, and {len(numbered)} were found when they were read back; check the disk"
            )

    def checksums(self) -> dict[str, int]:
        """None: the index has them."""
        return {}

    def close(self) -> None:
        """Close the index, finished or not."""
        self._index.close()

    def _add_to_index(self, file: ImageFile) -> None:
        self._index.write(encode_index_line(file))
        self._count += 1
        self.written_bytes += 0 if file.is_elsewhere else file.size_bytes


def encode_index_line(file: ImageFile) -> bytes:
    """A line of an index."""
    return orjson.dumps(file, option=orjson.OPT_APPEND_NEWLINE)


def read_index(path: Path) -> Iterator[ImageFile]:
    """The files that an index lists.

    Raises:
        ConfigurationError: The file is not an index.
    """
    with open_regular(path) as lines:
        for line in lines:
            try:
                yield _index_lines.decode(line)
            except ValueError as error:
                raise ConfigurationError(f"{path} is damaged; {STARTS_OVER}") from error


def _salvage(layout: OutputLayout, shard: str) -> Iterator[ImageResult]:
    intact = {}
    for path, file in published_files(layout, shard):
        if file.is_adopted:
            continue
        if size_bytes(path) == file.size_bytes:
            intact[file.sample] = path
        elif path.exists():
            refuse_links_above([path], layout.out)
            path.unlink(missing_ok=True)
    for lines in read_samples(layout.ledger(shard)):
        for line in lines:
            if line.outcome == OK and line.sample in intact:
                yield ImageResult(line, intact[line.sample].read_bytes())


def published_files(layout: OutputLayout, shard: str) -> Iterator[tuple[Path, ImageFile]]:
    """The files of a published shard, each with its final path; none if the shard has no index."""
    if layout.image_index(shard).exists():
        for file in read_index(layout.image_index(shard)):
            if file.is_elsewhere:
                yield Path(os.path.normpath(layout.out / file.name)), file  # the output folder itself need not exist
            else:
                yield _final_path(layout, file), file


def publish_image_files(layout: OutputLayout, ready: Path, index: Path) -> None:
    """Move the numbered files of a shard to their final paths; files that are no longer there are skipped.

    Args:
        layout: The paths of the output.
        ready: The folder of the numbered files.
        index: The index with their final names.

    Raises:
        ConfigurationError: A name leads out of the output folder, or one of its folders is a link.
    """
    files = [(ready / file.number, _final_path(layout, file)) for file in read_index(index) if not file.is_elsewhere]
    refuse_links_above([final for numbered, final in files if numbered.exists()], layout.out)
    folders = set()
    for numbered, final in files:
        if numbered.exists():
            if final.parent not in folders:
                make_folder(final.parent)
            move(numbered, final)
            folders.add(final.parent)
    for folder in folders:
        sync(folder)


def _final_path(layout: OutputLayout, file: ImageFile) -> Path:
    parts = PurePosixPath(file.name).parts
    if not parts or ".." in parts or parts[0] == "/" or "\0" in file.name or "/" in file.number:
        raise ConfigurationError(f"{layout.image_index_folder} names a file outside of {layout.out}; {STARTS_OVER}")
    return layout.out.joinpath(*parts)
