"""Images as files under names of their own: written under numbers, with an index that says what each is to be called.

Rules: a row is ``{"name": …, "content": …, "sample": …}``, its name one that ``datasets.names`` lets pass. Nothing has
its own name before its whole shard is on disk; ``commit`` moves each to its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.output.formats.pickle_rows import decode_row

INDEX_SUFFIX = ".files"
_SUFFIX = ".image"


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

    def write_frame(self, frame: Iterable[bytes]) -> None:
        """Write one file, of a row in the form in which it would lie in a pickle; it has one image."""
        row = decode_row(b"".join(frame))
        number = f"{self._count}{_SUFFIX}"
        (self._folder / number).write_bytes(row["content"])
        self._enter(SavedFile(row["name"], len(row["content"]), number, row["sample"]))

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
