"""What an output format is: how the rows of a shard become files, and how they are found, checked and read again.

To add one, write a module with a subclass of ``ShardFormat`` (suffixes, ``open_writer``, ``read_rows``) and list it in
``datafetch.output.formats``; a dataset names the format that its output has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from datafetch.output.row import OutputRow
from datafetch.store.atomic import make_folder, publish
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_counts
from datafetch.store.spool_format import ImageResult

PublishedRow: TypeAlias = Any
"""A row of a published shard, in a form that only its format knows; taken back by ``ShardWriter.copy_row``."""


class ShardWriter(Protocol):
    """Writes one shard to files that are not published yet."""

    @property
    def written_bytes(self) -> int:
        """The size of what will be published, known once it is finished; what an earlier commit left is included."""
        ...

    def write_row(self, row: OutputRow) -> None:
        """Append a row. Rows come in manifest order."""
        ...

    def copy_row(self, row: PublishedRow) -> None:
        """Append a row of the shard as it was before a retry, which ``OutputFormat.read_rows`` gave."""
        ...

    def finish(self) -> None:
        """Complete the files."""
        ...

    def check(self, rows: int) -> None:
        """See that the files can be read and hold this number of rows; without a row there are none.

        Raises:
            ResourceError: They are not what was written.
        """
        ...

    def close(self) -> None:
        """Close the files, finished or not. May be called twice."""
        ...


class OutputFormat(ABC):
    """How rows become files. Instances are stateless.

    Attributes:
        name: What datasets and job files call it.
        allows_other_files: Whether files of others may lie in the output folder; the trainer counts those of shards.
        can_be_resharded: Whether ``datafetch.output.reshard`` can make equal shards of it.
    """

    name: ClassVar[str]
    allows_other_files: ClassVar[bool]
    can_be_resharded: ClassVar[bool] = False

    @abstractmethod
    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> ShardWriter:
        """Begin to write a shard.

        Args:
            layout: Of the output.
            shard: Its name.
            folder: Where to write; nothing else is in it.
            is_retry: Whether the shard is published, and rows are added to it.
        """

    @abstractmethod
    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[PublishedRow]:
        """The rows of a published shard, each to be used before the next; none where published rows stay in place."""

    @abstractmethod
    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Move what is ready of a shard to where it belongs: all of it, or what an interrupted call left.

        Args:
            layout: Of the output.
            shard: Its name.
            ready: Where its finished files lie.
            folder: Where the trainer reads them.
        """

    @abstractmethod
    def files_of(self, layout: OutputLayout, shard: str) -> list[Path]:
        """All files of a published shard, in the order in which they may be deleted."""

    @abstractmethod
    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether the files of a published shard are there with the sizes that they were written with."""

    @abstractmethod
    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Delete what would be published of a shard a second time when it is made again."""

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The images that can be kept of a published shard that lost a file, damaged files being deleted; or None."""
        del layout, shard
        return None


@dataclass(frozen=True, slots=True)
class ShardFormat(OutputFormat):
    """A format with a fixed number of files for each shard, ``<shard><suffix>``.

    Attributes:
        suffixes: Of a shard's files, in the order in which they are published.
    """

    suffixes: ClassVar[Sequence[str]]
    allows_other_files: ClassVar[bool] = False

    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Publish one file after the other.

        When the first is replaced, the later ones are gone already: files of different commits never lie together.
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
        """The files of a shard, the one published last first."""
        return [layout.out / f"{shard}{suffix}" for suffix in reversed(self.suffixes)]

    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Delete all files of the shard."""
        for path in self.files_of(layout, shard):
            path.unlink(missing_ok=True)

    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether its files have the size that the ledger says."""
        found_bytes = sum(size_bytes(path) for path in self.files_of(layout, shard))
        return read_shard_counts(layout.ledger(shard)).written_bytes == found_bytes


def size_bytes(path: Path) -> int:
    """The size of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
