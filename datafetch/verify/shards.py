"""A folder of pickle shards, as the trainer's loader sees it: every file counts, and every row.

Rules: one row in memory at a time, of shards written by datafetch. Nothing in a shard is trusted or called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datafetch.errors import ConfigurationError, ManifestError, raise_want
from datafetch.model.kinds import Loader
from datafetch.output.formats import decode_row, read_count, read_frames
from datafetch.store.atomic import LINK_ADVICE, leads_out
from datafetch.verify.findings import Examined, FoundImage, Place, Problem
from datafetch.verify.rows import EXAMINERS, key_of, loader_of

_ROWS, _COUNT = ".pkl", ".count"


class ShardFolder:
    """What lies in a folder.

    Args:
        folder: With the shards.
        loader: Whose demands are looked at; None takes what the first row is like.

    Attributes:
        row_counts: Rows of each shard that was examined so far, in the order of the names.

    Raises:
        ConfigurationError: There is nothing in it, or it can't be looked into.
    """

    def __init__(self, folder: Path, loader: Loader | None = None) -> None:
        self._folder = folder
        try:
            paths = sorted(folder.iterdir(), key=lambda path: path.name)
        except OSError as error:
            raise_want(error)
            raise ConfigurationError(f"{folder} can't be looked into: {error.strerror or error}") from error
        if not paths:
            raise ConfigurationError(f"{folder} is empty; give a folder of shards")
        real_folder = os.path.realpath(folder)
        self._leading_out = [path.name for path in paths if leads_out(path, real_folder)]
        leading_out = set(self._leading_out)
        inside = [path for path in paths if path.name not in leading_out]
        self._strange = [path.name for path in inside if path.suffix not in {_ROWS, _COUNT} or not _is_file(path)]
        names = {path.name for path in inside} - set(self._strange)
        self._halves = sorted(name for name in names if _other_half(name) not in names)
        self._shards = [Path(name).stem for name in sorted(names - set(self._halves)) if name.endswith(_ROWS)]
        self.loader = loader or self._loader_of_first_row()
        self.row_counts: list[int] = []

    @property
    def shards(self) -> int:
        """Pairs of files."""
        return len(self._shards)

    @property
    def total_bytes(self) -> int:
        """The size of all rows' files."""
        return sum((self._folder / f"{shard}{_ROWS}").stat().st_size for shard in self._shards)

    def examine(self) -> Iterator[Examined]:
        """Examine the folder, then the shards in order, row by row."""
        for name in self._leading_out:
            yield _file_problem(name, f"is a link that leads out of its folder, and is not followed; {LINK_ADVICE}")
        for name in self._strange:
            yield _file_problem(name, "is no file of a shard, and the trainer counts it")
        for name in self._halves:
            yield _file_problem(name, f"stands alone, there is no {_other_half(name)}")
        if not self._shards:
            yield _file_problem("", "there is no shard, that is a .pkl and a .count of the same name")
        for shard in self._shards:
            yield from self._examine_shard(shard)

    def _examine_shard(self, shard: str) -> Iterator[Examined]:
        rows, file = 0, f"{shard}{_ROWS}"
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
            count = self._count(shard)
        except ManifestError as error:
            yield _file_problem(f"{shard}{_COUNT}", str(error))
        if is_whole and count != rows:
            yield _file_problem(f"{shard}{_COUNT}", f"says {count:,}, {file} has {rows:,} rows")
        # That a damaged shard has few rows is to be no second problem: the loader goes by what the count says.
        self.row_counts.append(rows if is_whole else max(rows, count))

    def _examine_row(self, file: str, number: int, frame: bytes) -> Examined:
        try:
            row = decode_row(frame)
        except ValueError as error:
            return Examined(1, (Problem(Place(file, number), str(error)),), read_bytes=len(frame))
        key = key_of(row)
        parts = list(EXAMINERS[self.loader](row))
        return Examined(
            samples=1,
            problems=tuple(
                Problem(Place(file, number, part.image, key), part.fault) for part in parts if part.body is None
            ),
            images=tuple(
                FoundImage(Place(file, number, part.image, key), part.body) for part in parts if part.body is not None
            ),
            read_bytes=len(frame),
        )

    def _count(self, shard: str) -> int:
        """What a shard's ``.count`` says.

        Raises:
            ManifestError: It says nothing; the message says why, without the path.
        """
        path = self._folder / f"{shard}{_COUNT}"
        try:
            return read_count(path)
        except ManifestError as error:
            raise ManifestError("is not a number") from error
        except OSError as error:
            raise_want(error)
            raise ManifestError(f"can't be read: {error.strerror or error}") from error

    def _loader_of_first_row(self) -> Loader:
        """What the first row that can be read is like; of a folder without one, nothing depends on it."""
        for shard in self._shards:
            try:
                for frame in _frames(self._folder / f"{shard}{_ROWS}"):
                    return loader_of(decode_row(frame))
            except (ManifestError, ValueError):
                continue
        return Loader.COYO


def _frames(path: Path) -> Iterator[bytes]:
    """The rows as they stand in a shard.

    Raises:
        ManifestError: It can't be read; the message says why, without the path.
    """
    try:
        yield from read_frames(path)
    except ManifestError as error:
        raise ManifestError(str(error).removeprefix(str(path)).lstrip(": ")) from error
    except OSError as error:
        raise_want(error)
        raise ManifestError(f"can't be read: {error.strerror or error}") from error


def _is_file(path: Path) -> bool:
    """Whether it is an ordinary file, or leads to one; opening anything else may never return."""
    try:
        return path.is_file()
    except OSError:
        return False


def _other_half(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{_COUNT if dot + suffix == _ROWS else _ROWS}"


def _file_problem(file: str, what: str) -> Examined:
    return Examined(problems=(Problem(Place(file), what),))
