"""ListManifest: the files of a list as shards of samples.

Shards are cut from the rows that meet all conditions, in the order of the input, each file beginning a new one. So all
files are scanned before the first shard is known: of parquet without conditions only the footers, of all else the
content. What a scan finds is kept, and where that can't be, the file is scanned again for each of its shards.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from datafetch.datasets.lists.columns import ChosenColumns, WantedColumns, choose_columns
from datafetch.datasets.lists.list_samples import BadValueError, metadata_of, urls_of
from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.table import InputFormat, ListRow, Table
from datafetch.datasets.lists.where import parse_conditions
from datafetch.datasets.readers import BadRow
from datafetch.errors import ManifestError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.manifest import Manifest, Samples, ScanCache
from datafetch.model.sample import BAD_LINE, REFUSED, Sample, Shard
from datafetch.model.wording import counted

_SCAN_VERSION = 2  # of what is kept; to be raised when a scan changes
_SHARD_DIGITS = 5
_MAX_SHARDS = 500_000  # each takes a hundred bytes of job.json, and a file or more of the output
_HELD_SCANS = 4  # of large files; a feed reads one shard at a time
_MAX_BAD_ROWS_SAID = 10  # a file in another encoding may have millions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListRules:
    """What decides the samples of a list besides its files and columns.

    Attributes:
        where: Conditions that rows have to meet, all of them.
        shard_size: The number of samples of a shard.
        output_format: The name of the format of the output.
        has_one_image: Whether a sample may have one image only.
    """

    where: Sequence[str]
    shard_size: int
    output_format: str
    has_one_image: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """A shard as a part of a file.

    Attributes:
        table: The number of the file.
        start: The number of the first row, of those of the file that meet all conditions.
        stop: The number behind the last one.
    """

    table: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What is held of each file's scan: its rows, how many meet all conditions, and how many could not be read."""

    rows: int
    selected: int
    unreadable: int


class ListManifest(Manifest):
    """The files of a list.

    Args:
        tables: The files, in order.
        wanted: The columns that the operator names.
        rules: What else decides the samples.
        refuse_stopped: Called often while files are scanned; it raises an exception to end that.

    Raises:
        ManifestError: A file lacks a column.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        wanted: WantedColumns,
        rules: ListRules,
        refuse_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._tables = tables
        self._rules = rules
        self._conditions = parse_conditions(rules.where)
        self._refuse_stopped = refuse_stopped
        self._cache: ScanCache | None = None
        self._scans: dict[int, FileScan] = {}
        self._found: list[_Found] | None = None
        self._bad_rows_said = 0
        self._columns = [choose_columns(table, wanted, self._conditions) for table in tables]
        self._log_columns()

    def shards(self) -> list[Shard]:
        """All shards, in order; their sizes are in samples. The first call scans the files.

        Raises:
            ManifestError: A file is damaged, no row meets the conditions, or there are too many shards.
        """
        return list(self._shards)

    def expected_samples(self) -> int:
        """The number of samples."""
        return sum(found.selected for found in self._scan_all())

    def identity_fields(self) -> Mapping[str, object]:
        """Which columns have what. Files of the same columns count as one."""
        chosen = [
            {
                "url": one.url,
                "caption": one.caption,
                "keep": list(one.keep),
                "id": one.id,
                "sha256": one.sha256,
                "md5": one.md5,
            }
            for one in dict.fromkeys(self._columns)
        ]
        return {
            "where": list(self._rules.where),
            "output_format": self._rules.output_format,
            "columns": chosen,
            "input_formats": sorted({table.input_format.value for table in self._tables}),
        }

    def choices(self) -> list[str]:
        """What the shards are made of."""
        if not self._conditions:
            return []
        found = self._scan_all()
        rows, unreadable = sum(one.rows for one in found), sum(one.unreadable for one in found)
        left_out = f"; left out, since they can't be read: {counted(unreadable, 'row')}" if unreadable else ""
        return [f"{counted(self.expected_samples(), 'row')} of {rows:,} meet the conditions (--where){left_out}"]

    def keep_scans(self, cache: ScanCache) -> None:
        """Use what earlier runs found, and keep what this one finds and has found."""
        before, self._cache = self._cache, cache
        if before is None and self._found is None:
            return  # nothing was scanned
        for number, table in enumerate(self._tables):
            if self._conditions or table.input_format is not InputFormat.PARQUET:
                self._keeper(number, cache).save(self._scan(number, before))

    def samples(self, shard: Shard) -> Samples:
        """The samples of a shard.

        Raises:
            ManifestError: The file can't be read, or has changed.
        """
        number = int(shard.name)
        part = self._parts[number]
        first_key = number * 10**self._position_digits
        return _ListSamples(self, part, first_key, self._shard_digits + self._position_digits)

    def read(self, part: _Part, first_key: int, key_digits: int, first: int) -> Iterator[Sample]:
        """Read the samples of a part of a file.

        Args:
            part: The part.
            first_key: The key of its first sample, as a number.
            key_digits: The number of digits of keys.
            first: The position of the first sample to read.
        """
        table, columns = self._tables[part.table], self._columns[part.table]
        scan = self._scan(part.table, self._cache)
        rows_before = sum(found.rows for found in self._scan_all()[: part.table])
        numbers = scan.numbers(part.start + first, part.stop)
        rows = table.rows(scan, numbers, columns.needed)
        for position, (number, row) in enumerate(zip(numbers.tolist(), rows, strict=True), first):
            key = f"{first_key + position:0{key_digits}d}"
            if isinstance(row, BadRow):
                yield self._bad_sample(position, key, f"{table.name}, row {row.number:,}: {row.reason}")
            else:
                yield self._sample(table, columns, (position, key, number, rows_before + number), row)

    def _sample(self, table: Table, columns: ChosenColumns, place: tuple[int, str, int, int], row: ListRow) -> Sample:
        position, key, number, number_in_all = place
        try:
            urls = urls_of(row.get(columns.url))
            metadata = metadata_of(row, columns, number_in_all, table.types)
        except BadValueError as error:
            return self._bad_sample(position, key, f"{table.name}, row {number:,}: {error}")
        if self._rules.has_one_image and len(urls) > 1:
            reason = f"{table.name}, row {number:,}: it has {len(urls):,} URLs, and this format one image a sample"
            return Sample(position, key, (), {REFUSED: reason})
        return Sample(position, key, urls, metadata)

    def _bad_sample(self, position: int, key: str, what: str) -> Sample:
        if self._bad_rows_said < _MAX_BAD_ROWS_SAID:
            self._bad_rows_said += 1
            more = ", and further ones are, too, and only counted" if self._bad_rows_said == _MAX_BAD_ROWS_SAID else ""
            _log.warning(
                "%s; this row (they count from 0) is skipped%s; to have it, correct the file, and use another folder",
                what,
                more,
            )
        return Sample(position, key, (), {BAD_LINE: what})

    @property
    def _position_digits(self) -> int:
        return math.ceil(math.log10(self._rules.shard_size))

    def _scan_all(self) -> list[_Found]:
        """What was found in each file; the first call scans them."""
        if self._found is not None:
            return self._found
        total_bytes = sum(table.size_bytes for table in self._tables)
        found = []
        with Activity("reading the list", total_bytes, ActivityUnit.BYTE) as activity:
            for number, table in enumerate(self._tables):
                left_bytes = table.size_bytes

                def advance(read_bytes: int, activity: Activity = activity) -> None:
                    nonlocal left_bytes
                    read_bytes = min(read_bytes, left_bytes)
                    left_bytes -= read_bytes
                    activity.advance(read_bytes)
                    self._refuse_stopped()

                scan = self._scan(number, self._cache, advance)
                activity.advance(left_bytes)
                found.append(_Found(scan.rows, scan.selected, scan.unreadable))
        self._found = found
        return found

    @cached_property
    def _parts(self) -> list[_Part]:
        parts: list[_Part] = []
        for number, found in enumerate(self._scan_all()):
            count = -(-found.selected // self._rules.shard_size)
            if len(parts) + count > _MAX_SHARDS:
                raise ManifestError(
                    f"with --shard-size {self._rules.shard_size} there would be more than {_MAX_SHARDS:,} shards; "
                    "give a larger one, or fewer files"
                )
            bounds = [*range(0, found.selected, self._rules.shard_size), found.selected]
            parts += [_Part(number, start, stop) for start, stop in pairwise(bounds)]
        if not parts:
            rows = sum(found.rows for found in self._scan_all())
            reason = f"none of its {rows:,} rows meets the conditions of --where" if rows else "it has no rows"
            raise ManifestError(
                f"there is nothing to fetch from {self._tables[0].name}{self._more()}: {reason}; give another list "
                "or condition"
            )
        return parts

    @property
    def _shard_digits(self) -> int:
        return max(_SHARD_DIGITS, len(str(len(self._parts) - 1)))

    @cached_property
    def _shards(self) -> list[Shard]:
        return [
            Shard(
                f"{number:0{self._shard_digits}d}",
                self._tables[part.table].path,
                part.stop - part.start,
                self._tables[part.table].fingerprint,
            )
            for number, part in enumerate(self._parts)
        ]

    def _scan(self, number: int, cache: ScanCache | None, advance: Callable[[int], None] | None = None) -> FileScan:
        """The scan of a file, which is read and kept in a cache if it is not held."""
        scan = self._scans.get(number)
        if scan is None:
            scan = self._tables[number].scan(self._conditions, self._keeper(number, cache, advance))
            while len(self._scans) >= _HELD_SCANS:
                del self._scans[next(iter(self._scans))]
            self._scans[number] = scan
        return scan

    def _keeper(self, number: int, cache: ScanCache | None, advance: Callable[[int], None] | None = None) -> ScanKeeper:
        table = self._tables[number]
        criteria = (_SCAN_VERSION, table.input_format, table.fingerprint, table.scan_criteria, self._conditions)
        key = hashlib.sha256(repr(criteria).encode()).hexdigest()
        selects = bool(self._conditions)
        return ScanKeeper(
            key, table.size_bytes, cache, selects=selects, advance=advance or (lambda _: self._refuse_stopped())
        )

    def _log_columns(self) -> None:
        """Log which columns are taken: of each file, or of the first of those that have the same."""
        by_columns: dict[ChosenColumns, list[int]] = {}
        for number, columns in enumerate(self._columns):
            by_columns.setdefault(columns, []).append(number)
        for columns, numbers in by_columns.items():
            more = f" and {counted(len(numbers) - 1, 'other file')}" if len(numbers) > 1 else ""
            table = self._tables[numbers[0]]
            _log.info("%s%s (%s): %s", table.name, more, table.input_format.value, columns.describe())

    def _more(self) -> str:
        return f" and {counted(len(self._tables) - 1, 'other file')}" if len(self._tables) > 1 else ""


class _ListSamples(Samples):
    """The samples of one shard.

    Raises:
        ManifestError: While iterating: the file can't be read, or has changed.
    """

    def __init__(self, manifest: ListManifest, part: _Part, first_key: int, key_digits: int) -> None:
        self._manifest = manifest
        self._part = part
        self._first_key = first_key
        self._key_digits = key_digits

    def __len__(self) -> int:
        return self._part.stop - self._part.start

    def __iter__(self) -> Iterator[Sample]:
        return self.starting_at(0)

    def starting_at(self, position: int) -> Iterator[Sample]:
        """The samples from a position on; what the file has before them is not read."""
        return self._manifest.read(self._part, self._first_key, self._key_digits, position)
