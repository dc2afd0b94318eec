"""JSON files of a list: one list of objects, or of URLs; plain or compressed.

A scan reads a file once, and notes where every thousandth record begins, so that a run that is resumed goes on there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO

import numpy as np

from datafetch.datasets.jsonl_manifest import BadRecordError
from datafetch.datasets.lists.kept_columns import types_of_rows
from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.table import SNIFFED_ROWS, TYPED_ROWS, Column, InputFormat, ListRow, first_of
from datafetch.datasets.lists.text_file import TextFile, path_time_ns
from datafetch.datasets.lists.text_table import as_row, keys_of, refuse_many
from datafetch.datasets.lists.where import Condition
from datafetch.datasets.readers import BadRow, Int64s, JsonListError, RecordReader
from datafetch.errors import STARTS_OVER, ManifestError

_INDEXED_RECORDS = 1000
_MIN_ROW_LIMIT = 1 << 24  # accepted in a file of any size: 2 MiB of bits


class JsonTable:
    """A file with a JSON list.

    Args:
        file: The file.

    Raises:
        ManifestError: It is not a JSON list, or its objects have too many keys.
    """

    input_format = InputFormat.JSON

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self.name, self.path = str(file.path), file.path
        self.size_bytes, self.fingerprint = file.size_bytes, file.fingerprint
        self.scan_criteria = f"{path_time_ns(file.path)}"
        self.repeated: frozenset[str] = frozenset()
        rows = self._first_rows(TYPED_ROWS)
        names = keys_of(rows)
        refuse_many(self.path, names)
        self.columns: Sequence[Column] = [Column(name) for name in names]
        self.types: Mapping[str, str] = types_of_rows(rows)

    def first_rows(self, columns: Sequence[str]) -> list[ListRow]:
        """The first rows that can be read."""
        del columns
        return self._first_rows(SNIFFED_ROWS)

    def check(self, conditions: Sequence[Condition]) -> None:
        """Accept all conditions: a value may be of any type."""

    def scan(self, conditions: Sequence[Condition], keeper: ScanKeeper) -> FileScan:
        """Count the records, and find out which of them meet all conditions."""
        scan = keeper.begin()
        if scan.is_complete:
            return scan
        reader = self._reader(scan.position)
        passed: list[bool] = []
        if not scan.starts:
            scan.starts, scan.first_rows = [0], [0]
        with self._reading():
            for value in reader:
                row = _row(0, value)
                scan.unreadable += bool(conditions) and isinstance(row, BadRow)
                passed.append(
                    not isinstance(row, BadRow) and all(one.passes(row.get(one.column)) for one in conditions)
                )
                if len(passed) == _INDEXED_RECORDS:
                    scan.rows += len(passed)
                    if scan.bits is not None:
                        scan.bits.add(np.array(passed, np.bool_))
                    passed.clear()
                    scan.position = reader.offset_bytes()
                    scan.starts.append(scan.position)
                    scan.first_rows.append(scan.rows)
                    keeper.advance(0 if self._file.is_compressed else reader.pop_read_bytes())
                    keeper.save_sometimes(scan)
        scan.rows += len(passed)
        if scan.bits is not None:
            scan.bits.add(np.array(passed, np.bool_))
        scan.is_complete = True
        keeper.save(scan)
        return scan

    def rows(self, scan: FileScan, numbers: Int64s, columns: Sequence[str]) -> Iterator[ListRow | BadRow]:
        """The rows with these numbers."""
        del columns
        wanted = iter(numbers.tolist())
        number = next(wanted, None)
        if number is None:
            return
        index = bisect_right(scan.first_rows, number) - 1
        with self._reading():
            for found, value in enumerate(self._reader(scan.starts[index]), scan.first_rows[index]):
                if found == number:
                    yield _row(found, value)
                    number = next(wanted, None)
                    if number is None:
                        return
        raise ManifestError(f"{self.name} has changed since it was opened; {STARTS_OVER}")

    def _first_rows(self, max_rows: int) -> list[ListRow]:
        with self._reading():
            rows = (_row(number, value) for number, value in enumerate(self._reader()))
            return first_of((row for row in rows if not isinstance(row, BadRow)), max_rows)

    def _reader(self, start_bytes: int = 0) -> RecordReader:
        return RecordReader(
            self.path,
            start_bytes=start_bytes,
            open_at=self._open_at,
            max_records=max(_MIN_ROW_LIMIT, self.size_bytes),
        )

    def _open_at(self, offset: int) -> AbstractContextManager[IO[bytes]]:
        return self._file.opened_at(offset + self._file.start_offset)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except JsonListError as error:
            raise ManifestError(f"{self.name} {error}") from error


def _row(number: int, value: object) -> ListRow | BadRow:
    try:
        return as_row(value)
    except BadRecordError as error:
        return BadRow(number, str(error))
