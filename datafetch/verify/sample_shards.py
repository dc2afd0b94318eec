"""Shards of a list's samples, as ``webdataset``, ``parquet`` or ``files``: all that is said of a sample must agree.

A shard has a row for each sample in its parquet. Its images, captions and metadata are in the same file, in a tar, or
in a folder; and its statistics count what the rows say.

Rules: nothing is trusted. Memory holds a batch of rows of the parquet, the names in a folder, and one member of a tar
at a time; what is larger than a bound is a problem and not read. No link is followed out of the output. Samples of a
tar must come in the order of the rows, as everything that writes both writes them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.datasets.readers import BadRow, ParquetFile
from datafetch.datasets.readers.limits import max_parsed_bytes
from datafetch.errors import ConfigurationError, ManifestError, raise_if_exhausted
from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.regular_file import open_regular, require_regular
from datafetch.output.formats import FORMATS, FilesFormat, ParquetFormat, ShardFormat, WebDatasetFormat
from datafetch.output.formats.parquet_rows import PARQUET_SUFFIX
from datafetch.output.formats.sample_columns import ERROR_MESSAGE, IMAGE, KEY, STATUS, SampleValues, Status
from datafetch.output.formats.shard_stats import STATS_SUFFIX
from datafetch.output.formats.tar_file import TarMember, read_members
from datafetch.output.formats.webdataset import TAR_SUFFIX
from datafetch.store.atomic import LINK_ADVICE, leads_out
from datafetch.store.layout import OutputLayout
from datafetch.verify.findings import Examination, ImageToDecode, Location, Problem
from datafetch.verify.record_list import read_image
from datafetch.verify.sample_parts import MAX_PARSED_BYTES, MAX_PART_BYTES, SampleParts, SampleRow, problem

FORMATS_OF_SAMPLES = frozenset({WebDatasetFormat.name, ParquetFormat.name, FilesFormat.name})
_OF_SHARD = (PARQUET_SUFFIX, STATS_SUFFIX)
_NEEDED = (KEY, STATUS, ERROR_MESSAGE)
_MAX_STATS_BYTES = 64 << 20
_COUNTS = ("count", "successes", "failed_to_download", "failed_to_resize")
_MAX_MEMBERS = 100_000  # of a sample


def format_of_samples(folder: Path, at_hand: AtHand = is_at_hand) -> str | None:
    """Which format for lists the shards of a folder have, by what is there; None if it is none of them.

    Args:
        folder: The folder.
        at_hand: Has the content of a file of rows on this machine while it is read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise_if_exhausted(error)
        return None
    if any(name.endswith(TAR_SUFFIX) for name in names):
        return WebDatasetFormat.name
    columns = next((_columns(folder / name, at_hand) for name in names if name.endswith(PARQUET_SUFFIX)), ())
    if IMAGE in columns and STATUS in columns:
        return ParquetFormat.name
    shards = {name.removesuffix(suffix) for name in names for suffix in _OF_SHARD if name.endswith(suffix)}
    has_index = OutputLayout(folder.absolute()).image_index_folder.is_dir()
    if shards and (has_index or any((folder / shard).is_dir() for shard in shards)):
        return FilesFormat.name
    return WebDatasetFormat.name if STATUS in columns else None


def _columns(path: Path, at_hand: AtHand) -> Collection[str]:
    """The columns of a parquet; none if it can't be read."""
    try:
        require_regular(path)
        with at_hand(path):
            return frozenset(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise_if_exhausted(error)
        return ()


class SampleShards:
    """The shards of a folder.

    Args:
        folder: The folder.
        output_format: The name of their format.
        at_hand: Has the content of a file of rows on this machine while it is read.

    Attributes:
        shards: How many there are.
    """

    loader = None

    def __init__(self, folder: Path, output_format: str, at_hand: AtHand = is_at_hand) -> None:
        self.output_format = output_format
        self._at_hand = at_hand
        self._folder = folder
        real_folder = os.path.realpath(folder)
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
        self._outside = [path.name for path in paths if leads_out(path, real_folder)]
        self._names = {path.name for path in paths} - set(self._outside)
        known_format = FORMATS[output_format]
        self._suffixes = known_format.suffixes if isinstance(known_format, ShardFormat) else _OF_SHARD
        self._shards = sorted(
            {
                name.removesuffix(suffix)
                for name in self._names
                for suffix in self._suffixes
                if name.endswith(suffix) and name != suffix
            }
        )

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    @property
    def total_bytes(self) -> int:
        """The size of the files that hold the images; 0 if each is a file, whose sizes are not read beforehand."""
        if self.output_format == FilesFormat.name:
            return 0
        return sum(
            (self._folder / name).stat().st_size
            for name in self._names
            if name.endswith(self._suffixes[0]) and (self._folder / name).is_file()
        )

    def examine(self) -> Iterator[Examination]:
        """Examine the folder, then the shards in order, sample by sample."""
        for name in self._outside:
            message = f"is a link that leads out of its folder and is not followed; {LINK_ADVICE}"
            yield problem(Location(name), message)
        for shard in self._shards:
            missing = [suffix for suffix in self._suffixes if shard + suffix not in self._names]
            for suffix in missing:
                yield problem(Location(shard + suffix), "is missing")
            with ExitStack() as opened:
                for suffix in (one for one in self._suffixes if one not in missing):
                    opened.enter_context(self._at_hand(self._folder / f"{shard}{suffix}"))
                yield from self._examine_shard(_Shard(self._folder, shard), set(missing))

    def _examine_shard(self, shard: _Shard, missing: set[str]) -> Iterator[Examination]:
        rows = iter(()) if PARQUET_SUFFIX in missing else shard.rows()
        if self.output_format == ParquetFormat.name:
            yield from shard.examine_parquet(rows)
        elif self.output_format == FilesFormat.name:
            yield from shard.examine_files(rows)
        elif TAR_SUFFIX in missing:
            yield from shard.examine_rows(rows)
        else:
            yield from shard.examine_tar(rows, has_rows=PARQUET_SUFFIX not in missing)
        if shard.is_whole and not missing & {STATS_SUFFIX, PARQUET_SUFFIX} and STATS_SUFFIX in self._suffixes:
            yield from shard.examine_stats()


@dataclass(slots=True)
class _Shard:
    """One shard, while it is examined.

    Attributes:
        folder: The folder of the output.
        name: Its name.
        counts: How many images have each status, by the rows so far.
        is_whole: Whether all rows could be read.
    """

    folder: Path
    name: str
    counts: Counter[str] = field(default_factory=Counter)
    is_whole: bool = True

    def rows(self) -> Iterator[SampleRow | Problem]:
        """The rows of the parquet; a problem if one can't be read."""
        path, number = self.folder / f"{self.name}{PARQUET_SUFFIX}", 0
        try:
            for values in _read_rows(path):
                row = SampleRow(Location(path.name, number, key=str(values.get(KEY))), values)
                for status, _ in row.statuses:
                    self.counts[status] += 1
                yield row
                number += 1
        except (OSError, pa.ArrowException, ManifestError, ValueError, KeyError) as error:
            raise_if_exhausted(error)
            self.is_whole = False
            text = str(error) if isinstance(error, ManifestError) else "can't be read"
            yield Problem(Location(path.name), f"{text.removeprefix(str(path)).strip()}; {number:,} rows could be read")

    def examine_rows(self, rows: Iterator[SampleRow | Problem]) -> Iterator[Examination]:
        """Only count the rows, since what they are compared with is missing."""
        for row in rows:
            yield Examination(problems=(row,)) if isinstance(row, Problem) else Examination(1)

    def examine_parquet(self, rows: Iterator[SampleRow | Problem]) -> Iterator[Examination]:
        """Examine the images in the rows of a parquet."""
        for row in rows:
            if isinstance(row, Problem):
                yield Examination(problems=(row,))
                continue
            stored = row.values.get(IMAGE)
            images = stored if isinstance(stored, list) else [stored]
            bodies = {n: image["bytes"] for n, image in enumerate(images) if image and image.get("bytes") is not None}
            yield from row.compare_images(bodies.keys())
            yield Examination(1, read_bytes=sum(map(len, bodies.values())))
            for number, body in bodies.items():
                yield Examination(images=(ImageToDecode(row.location_of(number), body, row.size_px(number)),))

    def examine_tar(self, rows: Iterator[SampleRow | Problem], *, has_rows: bool) -> Iterator[Examination]:
        """Examine the samples of a tar, each with its row, as long as they come in the same order."""
        path = self.folder / f"{self.name}{TAR_SUFFIX}"
        problems: list[Examination] = []
        expected = self._with_image(rows if has_rows else iter(()), problems)
        number = 0
        try:
            with open_regular(path) as file:
                for key, members in _samples(read_members(file)):
                    row = next(expected, None)
                    yield from _taken(problems)
                    location = Location(path.name, number, key=key)
                    if has_rows and (row is None or row.values[KEY] != key):
                        there = "no further one" if row is None else f"{row.values[KEY]!r}"
                        yield problem(location, f"is not the next sample of the parquet, which has {there}")
                        has_rows, self.is_whole = False, False
                    sample = SampleParts(location, row if has_rows else None)
                    for member in members:
                        yield from sample.add(member.name, _read_member(file, member))
                    yield from sample.examine()
                    number += 1
        except (OSError, ValueError) as error:
            raise_if_exhausted(error)
            self.is_whole = False
            text = f"can't be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            yield problem(Location(path.name), f"{text}; {number:,} samples could be read")
            has_rows = False
        for row in expected:
            if has_rows:
                yield problem(replace(row.location, file=path.name), "is in the parquet, and missing here")
        yield from _taken(problems)

    def _with_image(self, rows: Iterator[SampleRow | Problem], problems: list[Examination]) -> Iterator[SampleRow]:
        """The rows with an image; the others are counted."""
        for row in rows:
            if isinstance(row, Problem):
                problems.append(Examination(problems=(row,)))
            elif row.has_image:
                yield row
            else:
                problems.append(Examination(1))

    def examine_files(self, rows: Iterator[SampleRow | Problem]) -> Iterator[Examination]:
        """Examine the files of each sample, and what else is in the folder."""
        folder = self.folder / self.name
        real_folder = os.path.realpath(self.folder)
        names = _names_by_key(folder)
        for row in rows:
            if isinstance(row, Problem):
                yield Examination(problems=(row,))
                continue
            own = names.pop(str(row.values[KEY]), [])
            if not row.has_image:
                problems = (Problem(row.location, "has files, and no status is success"),) if own else ()
                yield Examination(1, problems)
                continue
            sample = SampleParts(Location(self.name, row.location.row, key=row.location.key), row)
            for name in own:
                try:
                    content = read_image(folder / name, real_folder)
                except (OSError, ValueError) as error:
                    raise_if_exhausted(error)
                    reason = (isinstance(error, OSError) and error.strerror) or str(error)
                    yield problem(Location(f"{self.name}/{name}"), f"can't be read: {reason}")
                else:
                    yield from sample.add(name, content)
            yield from sample.examine()
        if self.is_whole:
            for name in sorted(name for own in names.values() for name in own):
                yield problem(Location(f"{self.name}/{name}"), "does not belong to a sample of the parquet")

    def examine_stats(self) -> Iterator[Examination]:
        """Compare the statistics with the rows."""
        path = self.folder / f"{self.name}{STATS_SUFFIX}"
        found_counts = (
            self.counts.total(),
            *(self.counts[one] for one in (Status.SUCCESS, Status.FAILED_TO_DOWNLOAD, Status.FAILED_TO_RESIZE)),
        )
        try:
            with open_regular(path) as file:
                text = file.read(_MAX_STATS_BYTES)  # longer ones end too early to be JSON
            stats = json.loads(text) if max_parsed_bytes(text) <= MAX_PARSED_BYTES else {}
            said = {name: stats[name] for name in _COUNTS}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise_if_exhausted(error)
            yield problem(Location(path.name), "is not the statistics of a shard")
            return
        for name, count in zip(_COUNTS, found_counts, strict=True):
            if said[name] != count:
                yield problem(Location(path.name), f"says {name} {said[name]!r}, and the parquet has {count:,}")


def _read_rows(path: Path) -> Iterator[SampleValues]:
    """The rows of a parquet file that may be anyone's, in batches whose size in memory is bounded.

    Raises:
        ManifestError: It is damaged, lacks a column, or has a row group that does not fit into memory.
    """
    require_regular(path)
    file = ParquetFile(path, None)
    if missing := [name for name in _NEEDED if name not in file.types or name in file.repeated]:
        raise ManifestError(
            f"lacks the column {', '.join(missing)} of a shard of samples; write it again, or leave it out"
        )
    columns = [name for name in file.types if name not in file.repeated]
    for row in file.select(np.arange(file.rows, dtype=np.int64), columns):
        if isinstance(row, BadRow):
            raise ManifestError(f"row {row.number:,} can't be read: {row.reason}")
        yield row


def _samples(members: Iterator[TarMember]) -> Iterator[tuple[str, Sequence[TarMember]]]:
    """The members of a tar sample by sample: a key, which ends at the first dot, and its members.

    Raises:
        ValueError: The tar is damaged.
    """
    key = ""
    found: list[TarMember] = []
    for member in members:
        folder, _, name = member.name.rpartition("/")
        own_key, dot, _ = name.partition(".")
        if not dot:
            continue
        own_key = f"{folder}/{own_key}" if folder else own_key
        if found and own_key != key:
            yield key, found
            found = []
        key = own_key
        found.append(member)
        if len(found) > _MAX_MEMBERS:
            raise ValueError(f"has more than {_MAX_MEMBERS:,} members of one sample")
    if found:
        yield key, found


def _read_member(file: BinaryIO, member: TarMember) -> bytes | None:
    return None if member.size_bytes > MAX_PART_BYTES else member.read(file)


def _names_by_key(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    try:
        found = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:  # no image of the shard arrived
        return names
    except OSError as error:
        raise_if_exhausted(error)
        raise ConfigurationError(f"can't read {folder}: {error.strerror or error}") from error
    for name in found:
        names.setdefault(name.partition(".")[0], []).append(name)
    return names


def _taken(examinations: list[Examination]) -> Iterator[Examination]:
    while examinations:
        yield examinations.pop(0)
