"""Images as files under names of their own: written under numbers, with an index that says what each is to be called.

Rules: a row is ``{"name": …, "content": …, "sample": …}``, its name one that ``datasets.filenames`` lets pass. Nothing
has its own name before its whole shard is on disk. The index lies in the state folder, and anything may be in it by the
time it is read: no name of an index leads out of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import orjson

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.outcome import OK
from datafetch.output.formats.output_format import OutputFormat, PublishedRow, size_bytes
from datafetch.output.row import OutputRow
from datafetch.store.atomic import make_folder, move, publish, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_samples
from datafetch.store.spool_format import ImageResult

INDEX_SUFFIX = ".files"
_SUFFIX = ".image"


class ImageFilesFormat(OutputFormat):
    """Images as files."""

    name = "image_files"
    allows_other_files = True

    def open_writer(self, layout: OutputLayout, shard: str, folder: Path, *, is_retry: bool) -> ImageFilesWriter:
        """Begin a shard; the files that it has already stay where they are."""
        before = layout.saved(shard)
        return ImageFilesWriter(folder, shard, before if is_retry and before.exists() else None)

    def read_rows(self, layout: OutputLayout, shard: str) -> Iterator[PublishedRow]:
        """None: published files stay where they are."""
        del layout, shard
        return iter(())

    def publish(self, layout: OutputLayout, shard: str, ready: Path, folder: Path) -> None:
        """Give the files their names, and then the index its place."""
        del folder
        index = ready / f"{shard}{INDEX_SUFFIX}"
        if index.exists():
            put_files_in_place(layout, ready, index)
            make_folder(layout.saved_folder)
            publish(index, layout.saved(shard))

    def files_of(self, layout: OutputLayout, shard: str) -> list[Path]:
        """The files of a shard that has an index."""
        return [place for place, _ in _saved_files(layout, shard)]

    def is_intact(self, layout: OutputLayout, shard: str) -> bool:
        """Whether all files are there with the sizes that they were written with."""
        return all(size_bytes(place) == saved.size_bytes for place, saved in _saved_files(layout, shard))

    def unpublish(self, layout: OutputLayout, shard: str) -> None:
        """Forget which files are the shard's; they stay, and are replaced one by one."""
        layout.saved(shard).unlink(missing_ok=True)

    def salvage(self, layout: OutputLayout, shard: str) -> Iterator[ImageResult] | None:
        """The images whose files are still there as they were written; the others are deleted."""
        return _salvaged(layout, shard) if layout.saved(shard).exists() else None


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file of a shard.

    Attributes:
        name: What it is called, under the output folder.
        size_bytes: Its size.
        number: What it is called before it is published.
        sample: Whose image it is, by its position in the shard.
    """

    name: str
    size_bytes: int
    number: str
    sample: int


class ImageFilesWriter:
    """Writes one shard as numbered files in a folder, and ``<shard>.files``, which has a line of JSON for each.

    Args:
        folder: Where to.
        shard: Which one.
        before: The index of an earlier commit of the shard, whose files stay where they are.
    """

    def __init__(self, folder: Path, shard: str, before: Path | None = None) -> None:
        self.files = (folder / f"{shard}{INDEX_SUFFIX}",)
        self.written_bytes = 0
        self._folder = folder
        self._count = 0
        self._index = self.files[0].open("wb")
        for saved in read_index(before) if before is not None else ():
            self._enter(saved)

    def write_row(self, row: OutputRow) -> None:
        """Write one file, of a row with one image."""
        values = row.load()
        name, content, sample = values["name"], values["content"], values["sample"]
        assert isinstance(name, str), "names are text"
        assert isinstance(content, bytes), "files have bytes"
        assert isinstance(sample, int), "samples are numbered"
        number = f"{self._count}{_SUFFIX}"
        (self._folder / number).write_bytes(content)
        self._enter(SavedFile(name, len(content), number, sample))

    def copy_row(self, row: PublishedRow) -> None:
        """Never called, for files that are published stay where they are."""
        raise AssertionError(row)

    def finish(self) -> None:
        """Complete the index."""
        self._index.flush()

    def check(self, rows: int) -> None:
        """See that the files are there as they were written.

        Raises:
            ResourceError: They are not.
        """
        numbered = {path.name: path.stat().st_size for path in self._folder.glob(f"*{_SUFFIX}")}
        own = {saved.number: saved.size_bytes for saved in read_index(self.files[0]) if saved.number in numbered}
        if len(own) != rows or own != numbered:
            raise ResourceError(f"{len(numbered)} files of {rows} were written as they should be; check the disk")

    def close(self) -> None:
        """Let go of the index, finished or not."""
        self._index.close()

    def _enter(self, saved: SavedFile) -> None:
        self._index.write(orjson.dumps(saved, option=orjson.OPT_APPEND_NEWLINE))
        self._count += 1
        self.written_bytes += saved.size_bytes


def read_index(path: Path) -> Iterator[SavedFile]:
    """The files of a shard.

    Raises:
        ConfigurationError: It is no index.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield SavedFile(**orjson.loads(line))
            except (ValueError, TypeError) as error:
                raise ConfigurationError(f"{path} is damaged; --fresh starts over") from error


def _salvaged(layout: OutputLayout, shard: str) -> Iterator[ImageResult]:
    sound = {}
    for place, saved in _saved_files(layout, shard):
        if size_bytes(place) == saved.size_bytes:
            sound[saved.sample] = place
        else:
            place.unlink(missing_ok=True)
    for lines in read_samples(layout.ledger(shard)):
        for line in lines:
            if line.outcome == OK and line.sample in sound:
                yield ImageResult(line, sound[line.sample].read_bytes())


def _saved_files(layout: OutputLayout, shard: str) -> Iterator[tuple[Path, SavedFile]]:
    """The files of a shard, each with its place; none where it has no index."""
    if layout.saved(shard).exists():
        for saved in read_index(layout.saved(shard)):
            yield _place(layout, saved), saved


def put_files_in_place(layout: OutputLayout, ready: Path, index: Path) -> None:
    """Give files their names: all of them, or those that a run that was killed here left.

    Args:
        layout: Of the output.
        ready: Where they lie, under their numbers.
        index: What each is called.
    """
    folders = set()
    for saved in read_index(index):
        numbered = ready / saved.number
        if numbered.exists():
            place = _place(layout, saved)
            if place.parent not in folders:
                _refuse_links_above(place, layout.out)
                make_folder(place.parent)
            move(numbered, place)
            folders.add(place.parent)
    for folder in folders:
        sync(folder)


def _refuse_links_above(place: Path, out: Path) -> None:
    """Check that a file's folders in the output are folders, and not links that lead out of it."""
    for folder in place.parents:
        if folder == out:
            return
        if folder.is_symlink():
            raise ConfigurationError(
                f"{folder} is a symbolic link, and datafetch does not write through links; replace it by a folder"
            )


def _place(layout: OutputLayout, saved: SavedFile) -> Path:
    parts = PurePosixPath(saved.name).parts
    if not parts or ".." in parts or parts[0] == "/" or "\0" in saved.name or "/" in saved.number:
        raise ConfigurationError(f"{layout.saved_folder} names a file outside of {layout.out}; --fresh starts over")
    return layout.out.joinpath(*parts)
