"""A folder of pickle shards as the trainer's loader sees it, in which every file and every row matters.

Rules: of shards written by datafetch, one row at a time is in memory. Nothing in a shard is trusted or called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datafetch.errors import ConfigurationError, ManifestError, raise_if_exhausted
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.kinds import Loader
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, decode_row, read_count, read_frames
from datafetch.store.atomic import LINK_ADVICE, leads_out
from datafetch.verify.findings import Examination, ImageToDecode, Location, Problem
from datafetch.verify.rows import EXAMINERS, detect_loader, row_key


class ShardFolder:
    """The files of a folder of shards.

    Args:
        folder: The folder.
        loader: The loader whose requirements are checked; None determines it from the first row.
        at_hand: Has the content of a file of rows on this machine while it is read.

    Attributes:
        row_counts: The number of rows of each shard examined so far, in the order of the names.

    Raises:
        ConfigurationError: The folder is empty, or can't be read.
    """

    def __init__(self, folder: Path, loader: Loader | None = None, at_hand: AtHand = is_at_hand) -> None:
        self._folder = folder
        self._at_hand = at_hand
        try:
            paths = sorted(folder.iterdir(), key=lambda path: path.name)
        except OSError as error:
            raise_if_exhausted(error)
            raise ConfigurationError(f"can't read {folder}: {error.strerror or error}") from error
        if not paths:
            raise ConfigurationError(f"{folder} is empty; give a folder of shards")
        real_folder = os.path.realpath(folder)
        self._outside_links = [path.name for path in paths if leads_out(path, real_folder)]
        outside_links = set(self._outside_links)
        inside = [path for path in paths if path.name not in outside_links]
        suffixes = {ROWS_SUFFIX, COUNT_SUFFIX}
        self._foreign = [path.name for path in inside if path.suffix not in suffixes or not _is_file(path)]
        names = {path.name for path in inside} - set(self._foreign)
        self._unpaired = sorted(name for name in names if _counterpart(name) not in names)
        self._shards = [Path(name).stem for name in sorted(names - set(self._unpaired)) if name.endswith(ROWS_SUFFIX)]
        self.loader = loader or self._loader_of_first_row()
        self.row_counts: list[int] = []

    @property
    def shards(self) -> int:
        """The number of complete shards: pairs of a rows file and a count."""
        return len(self._shards)

    @property
    def total_bytes(self) -> int:
        """The size of all rows files."""
        return sum((self._folder / f"{shard}{ROWS_SUFFIX}").stat().st_size for shard in self._shards)

    def examine(self) -> Iterator[Examination]:
        """Examine the folder, then the shards in order, row by row."""
        for name in self._outside_links:
            yield _file_problem(name, f"is a link that leads out of its folder and is not followed; {LINK_ADVICE}")
        for name in self._foreign:
            yield _file_problem(name, "does not belong to a shard, but the trainer's loader counts every file")
        for name in self._unpaired:
            yield _file_problem(name, f"has no counterpart {_counterpart(name)}")
        if not self._shards:
            yield _file_problem(
                "", f"there is no shard, which is a {ROWS_SUFFIX} file and a {COUNT_SUFFIX} file of the same name"
            )
        for shard in self._shards:
            with self._at_hand(self._folder / f"{shard}{ROWS_SUFFIX}"):
                yield from self._examine_shard(shard)

    def _examine_shard(self, shard: str) -> Iterator[Examination]:
        rows, file = 0, f"{shard}{ROWS_SUFFIX}"
        is_whole = True
        try:
            for frame in _frames(self._folder / file):
                yield self._examine_row(file, rows, frame)
                rows += 1
        except ManifestError as error:
            is_whole = False
            yield _file_problem(file, f"{error}; {rows:,} rows could be read")
        else:
            if not rows:
                yield _file_problem(file, "has no rows")
        count = rows
        try:
            count = self._read_count(shard)
        except ManifestError as error:
            yield _file_problem(f"{shard}{COUNT_SUFFIX}", str(error))
        if is_whole and count != rows:
            yield _file_problem(f"{shard}{COUNT_SUFFIX}", f"says {count:,}, but {file} has {rows:,} rows")
        # The loader uses the count, so the missing rows of a damaged shard must not cause a second problem.
        self.row_counts.append(rows if is_whole else max(rows, count))

    def _examine_row(self, file: str, number: int, frame: bytes) -> Examination:
        try:
            row = decode_row(frame)
        except ValueError as error:
            return Examination(1, (Problem(Location(file, number), str(error)),), read_bytes=len(frame))
        key = row_key(row)

        problems: list[Problem] = []
        images: list[ImageToDecode] = []
        for part in EXAMINERS[self.loader](row):
            location = Location(file, number, part.image, key)
            if part.body is None:
                problems.append(Problem(location, part.problem))
            else:
                images.append(ImageToDecode(location, part.body))
        return Examination(1, tuple(problems), tuple(images), read_bytes=len(frame))

    def _read_count(self, shard: str) -> int:
        """Read a shard's ``.count`` file.

        Raises:
            ManifestError: It can't be read, or is not a number; the message does not contain the path.
        """
        path = self._folder / f"{shard}{COUNT_SUFFIX}"
        try:
            return read_count(path)
        except ManifestError as error:
            raise ManifestError("is not a number") from error
        except OSError as error:
            raise_if_exhausted(error)
            raise ManifestError(f"can't be read: {error.strerror or error}") from error

    def _loader_of_first_row(self) -> Loader:
        """Determine the loader by the first readable row. Without one it does not matter."""
        for shard in self._shards:
            path = self._folder / f"{shard}{ROWS_SUFFIX}"
            try:
                with self._at_hand(path):
                    for frame in _frames(path):
                        return detect_loader(decode_row(frame))
            except (ManifestError, ValueError):
                continue
        return Loader.COYO


def _frames(path: Path) -> Iterator[bytes]:
    """Yield the rows of a shard, each still pickled.

    Raises:
        ManifestError: The shard can't be read; the message does not contain the path.
    """
    try:
        yield from read_frames(path)
    except ManifestError as error:
        raise ManifestError(str(error).removeprefix(str(path)).lstrip(": ")) from error
    except OSError as error:
        raise_if_exhausted(error)
        raise ManifestError(f"can't be read: {error.strerror or error}") from error


def _is_file(path: Path) -> bool:
    """Return whether it is a regular file, or a link to one; opening anything else may block for ever."""
    try:
        return path.is_file()
    except OSError:
        return False


def _counterpart(name: str) -> str:
    path = Path(name)
    return f"{path.stem}{COUNT_SUFFIX if path.suffix == ROWS_SUFFIX else ROWS_SUFFIX}"


def _file_problem(file: str, message: str) -> Examination:
    return Examination(problems=(Problem(Location(file), message),))
