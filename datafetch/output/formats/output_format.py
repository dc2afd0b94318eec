"""The interface of output formats: how the rows of a shard become files, and how these are found, checked and read.

To add a format, write a module with a subclass of ``ShardFormat`` (``suffixes``, ``open_writer``, ``read_rows``) and
list it in ``datafetch.output.formats``. A dataset selects its format by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from datafetch.errors import ManifestError
from datafetch.model.wording import command_that_made
from datafetch.output.formats.checksummed_file import crc32_of
from datafetch.output.row import OutputRow
from datafetch.store.atomic import make_folder, publish
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_file_checks, read_shard_counts
from datafetch.store.spool_format import ImageResult

PublishedRow: TypeAlias = Any
"""A row of a published shard, as its format reads it; opaque to everyone but ``ShardWriter.copy_row``."""


class ShardWriter(Protocol):
    """Writes one shard to files that are not published yet."""

    @property
    def written_bytes(self) -> int:
        """The size of the shard's files, including those that an earlier commit published; valid after ``finish``."""
        ...

    def write_row(self, row: OutputRow) -> None:
        """Append a row. Rows come in manifest order."""
        ...

    def copy_row(self, row: PublishedRow) -> None:
        """Append a row that ``OutputFormat.read_rows`` has read from the shard that is replaced."""
        ...

    def finish(self) -> None:
        """Complete the files."""
        ...

    def check(self, rows: int) -> None:
        """Read the finished files back and check that they hold what was written.

        Without rows, files that the trainer would count are deleted instead.

        Args:
            rows: The number of rows that were written.

        Raises:
            ResourceError: The files do not hold what was written.
        """
        ...

    def checksums(self) -> Mapping[str, int]:
        """The CRC-32 of the finished files, by name, without those that have theirs in an index; after ``finish``."""
        ...

    def close(self) -> None:
        """Close the files, finished or not. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a published shard, as it was written.

    Attributes:
        path: Its path.
        size_bytes: Its size; None if that was not recorded.
        crc32: Its checksum; None if that was not recorded.
        is_elsewhere: Whether it is outside of the output, where datafetch has found it.
    """

    path: Path
    size_bytes: int | None
    crc32: int | None
    is_elsewhere: bool = False


class OutputFormat(ABC):
    """How rows become files. Instances are stateless.

    Attributes:
        name: Its name in datasets and job files.
        allows_other_files: Whether the output folder may contain files that datafetch did not write. With shards it
            may not, because the trainer counts the files of the folder.
        can_be_resharded: Whether ``datafetch.output.reshard`` can reshard it.
        rows_have_outcomes: Whether a row says what became of its images, so that a sample has one even if none arrived,
            and it is written again after each retry of the sample.
    """

    name: ClassVar[str]
    allows_other_files: ClassVar[bool]
    can_be_resharded: ClassVar[bool] = False
    rows_have_outcomes: ClassVar[bool] = False

    @abstractmethod
    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> ShardWriter:
        """Open a writer for the files of a shard.

        Args:
            layout: The paths of the output.
            shard: The shard's name.
            folder: An empty folder to write to.
            is_retry: Whether the shard is already published and the retry's rows are added to it.
        """

    @abstractmethod
    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[PublishedRow]:
        """The rows of a published shard, each valid until the next is read; none if they stay where they are."""

    def refuse_other_files(self, layout: OutputLayout, shard: str, folder: Path) -> None:
        """Check that publishing a shard would replace no file that has another content.

        Args:
            layout: The paths of the output.
            shard: The shard's name.
            folder: The folder of its finished files.

        Raises:
            ConfigurationError: It would.
        """
        del layout, shard, folder

    @abstractmethod
    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Move the finished files of a shard to their final paths; files that are no longer there are skipped.

        Args:
            layout: The paths of the output.
            shard: The shard's name.
            ready: The folder of its finished files.
            folder: The folder to move them to.
        """

    @abstractmethod
    def files_of(self, layout: OutputLayout, shard: str) -> list[Path]:
        """The files of a published shard, in an order in which they can be deleted safely."""

    @abstractmethod
    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether all files of a published shard exist with the sizes with which they were written."""

    @abstractmethod
    def published_files(self, layout: OutputLayout, shard: str) -> Iterator[PublishedFile]:
        """All files of a published shard as they were written, wherever they are now.

        Raises:
            ConfigurationError: The ledger or the index is damaged.
        """

    @abstractmethod
    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Delete what a published shard would leave behind if it were committed again."""

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The intact images of a published shard that lost a file, its damaged files being deleted; or None."""
        del layout, shard
        return None


class ShardFormat(OutputFormat):
    """A format with a fixed number of files for each shard, ``<shard><suffix>``.

    Attributes:
        suffixes: The suffixes of a shard's files, in the order in which they are published.
    """

    suffixes: ClassVar[Sequence[str]]
    allows_other_files: ClassVar[bool] = False

    def file_with_rows(self, shard: str) -> str:
        """The name of the file that has a row for each sample that became one."""
        return f"{shard}{self.suffixes[0]}"

    def refuse_changed(self, layout: OutputLayout, shard: str, paths: Iterable[Path]) -> None:
        """Check that files of a shard that are to be copied have the bytes with which they were written.

        Raises:
            ManifestError: One has others, which a copy would make the recorded ones.
        """
        checks = read_file_checks(layout.ledger(shard))
        for path in paths:
            check = checks.get(path.name)
            if check is not None and path.exists() and crc32_of(path) != check.crc32:
                raise ManifestError(
                    f"{path} has other bytes than it was written with; put back a copy, or delete it and run the "
                    f"command that made the output, which fetches what it needs; {command_that_made(layout.out)}"
                )

    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Publish the files one after another.

        The later files are deleted before the first is replaced, so files of different commits are never combined.
        """
        del layout
        names = [f"{shard}{suffix}" for suffix in self.suffixes]
        if (ready / names[0]).exists():
            for name in reversed(names[1:]):
                (folder / name).unlink(missing_ok=True)
        for name in names:
            if (ready / name).exists():
                make_folder(folder)
                publish(ready / name, folder / name)

    def files_of(self, layout: OutputLayout, shard: str) -> list[Path]:
        """The files of a shard, in the reverse order of publication."""
        return [layout.out / f"{shard}{suffix}" for suffix in reversed(self.suffixes)]

    def published_files(self, layout: OutputLayout, shard: str) -> Iterator[PublishedFile]:
        """The files of the shard; none if it has no row. Earlier versions recorded their total size alone."""
        counts, checks = read_shard_counts(layout.ledger(shard)), read_file_checks(layout.ledger(shard))
        if not counts.rows:
            return
        first, *others = (layout.out / f"{shard}{suffix}" for suffix in self.suffixes)
        if all(path.name in checks for path in (first, *others)):
            for path in (first, *others):
                yield PublishedFile(path, *checks[path.name])
            return
        is_size_known = all(path.exists() for path in others)
        first_bytes = counts.written_bytes - sum(map(size_bytes, others))
        yield PublishedFile(first, first_bytes if is_size_known else None, None)
        for path in others:
            yield PublishedFile(path, None, None)

    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Delete all files of the shard."""
        for path in self.files_of(layout, shard):
            path.unlink(missing_ok=True)

    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether the files have the total size that the ledger recorded."""
        found_bytes = sum(size_bytes(path) for path in self.files_of(layout, shard))
        return read_shard_counts(layout.ledger(shard)).written_bytes == found_bytes


def size_bytes(path: Path) -> int:
    """The size of a file; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
