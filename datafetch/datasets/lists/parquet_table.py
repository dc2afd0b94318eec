"""Parquet files of a list, on this machine or on a server.

Of a row group that may have rows that meet all conditions, by its statistics, the columns of the conditions are read;
and then of those that have such a row, when its samples are fetched, the columns that these need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from datafetch.datasets.lists.kept_columns import JSON, SCALARS, STRING
from datafetch.datasets.lists.row_bits import Bools
from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.table import SNIFFED_ROWS, Column, InputFormat, ListRow, first_of
from datafetch.datasets.lists.where import Condition, columns_of, possible_groups
from datafetch.datasets.readers import BadRow, Int64s, ParquetFile
from datafetch.model.manifest import RemoteFile

_MIN_ROW_LIMIT = 1 << 28  # accepted in a file of any size: 32 MiB of bits


class ParquetTable:
    """A parquet file.

    Args:
        file: The file, on this machine or on a server.

    Raises:
        ManifestError: It can't be read, is not parquet, or claims to have more rows than is accepted.
    """

    input_format = InputFormat.PARQUET

    def __init__(self, file: Path | RemoteFile) -> None:
        self._file = ParquetFile(file, None, row_limit=lambda size_bytes: max(_MIN_ROW_LIMIT, size_bytes))
        self.name, self.path = self._file.name, self._file.path
        self.size_bytes, self.fingerprint = self._file.size_bytes, self._file.fingerprint
        self.scan_criteria = ""
        self.repeated = frozenset(self._file.repeated)
        self.types: Mapping[str, str] = {name: _kept_type(found) for name, found in self._file.types.items()}
        self.columns: Sequence[Column] = [
            _column(name, found) for name, found in self._file.types.items() if name not in self.repeated
        ]

    def first_rows(self, columns: Sequence[str]) -> list[ListRow]:
        """The first rows."""
        count = min(SNIFFED_ROWS, self._file.rows)
        rows = self._file.select(np.arange(count, dtype=np.int64), list(columns))
        return first_of(row for row in rows if not isinstance(row, BadRow))

    def check(self, conditions: Sequence[Condition]) -> None:
        """Check that conditions can be compared with the types of the columns."""
        for condition in conditions:
            condition.refuse_type(self.name, self._file.types[condition.column])

    def scan(self, conditions: Sequence[Condition], keeper: ScanKeeper) -> FileScan:
        """Find out which rows meet all conditions; without conditions, nothing needs to be read."""
        if not conditions:
            scan = FileScan(selects=False)
            scan.rows, scan.is_complete = self._file.rows, True
            return scan
        scan = keeper.begin()
        if scan.is_complete:
            return scan
        assert scan.bits is not None, "there are conditions"
        bounds = [0, *accumulate(self._file.group_rows)]
        groups = [group for group in possible_groups(self._file, conditions) if group >= scan.position]
        columns = columns_of(conditions)
        left = iter(groups)
        group = next(left, None)
        for batch in self._file.batches(columns, groups):
            while group is not None and scan.bits.rows >= bounds[group + 1]:
                group = next(left, None)
            assert group is not None, "each batch belongs to a group"
            scan.bits.add_unselected(bounds[group] - scan.bits.rows)
            scan.bits.add(_meet_all(batch, conditions))
            scan.rows = scan.bits.rows
            keeper.advance(self.size_bytes * batch.num_rows // max(1, self._file.rows))
            if scan.rows == bounds[group + 1]:
                scan.position = group + 1
                keeper.save_sometimes(scan)
        scan.bits.add_unselected(self._file.rows - scan.bits.rows)
        scan.rows, scan.position, scan.is_complete = self._file.rows, len(self._file.group_rows), True
        keeper.save(scan)
        return scan

    def rows(self, scan: FileScan, numbers: Int64s, columns: Sequence[str]) -> Iterator[ListRow | BadRow]:
        """The rows with these numbers."""
        del scan
        return self._file.select(numbers, list(columns))


def _meet_all(batch: pa.RecordBatch, conditions: Sequence[Condition]) -> Bools:
    selected = np.ones(batch.num_rows, np.bool_)
    for condition in conditions:
        selected &= condition.select(batch.column(condition.column))
    return selected


def _column(name: str, found: pa.DataType) -> Column:
    kind = found.value_type if pa.types.is_dictionary(found) else found
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    is_text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    return Column(name, is_text and not is_list, is_text and is_list)


def _kept_type(found: pa.DataType) -> str:
    """The type of a column's values in an output: an Arrow type's name, ``list`` of one, or ``json`` for all others."""
    if pa.types.is_dictionary(found):
        return _kept_type(found.value_type)
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        inner = _kept_type(found.value_type)
        return f"list<{inner}>" if inner in SCALARS else JSON
    if str(found) in SCALARS:
        return str(found)
    is_text = pa.types.is_temporal(found) or pa.types.is_decimal(found) or pa.types.is_large_string(found)
    is_bytes = pa.types.is_binary(found) or pa.types.is_large_binary(found)
    return STRING if is_text or is_bytes else JSON
