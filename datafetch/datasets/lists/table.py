"""Table: one file of a list, as rows with named columns, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.where import Condition
from datafetch.datasets.readers import BadRow, Int64s

ListRow: TypeAlias = Mapping[str, Any]
"""A row: names of columns → values, which Python's JSON or Arrow make."""

SNIFFED_ROWS = 100
"""How many rows at most show what a column has."""
TYPED_ROWS = 1000
"""How many rows at most show which columns there are, and of which types, where only the rows say that."""
_SNIFFED_CHARACTERS = 1 << 24  # of their texts; a row may have megabytes


class InputFormat(StrEnum):
    """The format of the files of a list."""

    TXT = "txt"
    """A URL a line."""
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    """A list of objects, or of URLs."""
    JSONL = "jsonl"
    """An object a line."""
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its name.
        may_be_text: Whether it may have texts.
        may_be_lists: Whether it may have lists of texts.
    """

    name: str
    may_be_text: bool = True
    may_be_lists: bool = True


def first_of(rows: Iterable[ListRow], max_rows: int = SNIFFED_ROWS) -> list[ListRow]:
    """The first rows, at most so many, and fewer where they are large."""
    found: list[ListRow] = []
    characters = 0
    for row in rows:
        found.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if len(found) == max_rows or characters > _SNIFFED_CHARACTERS:
            break
    return found


class Table(Protocol):
    """One file.

    Attributes:
        name: The file in messages.
        path: The file; it can be opened only if it is on this machine.
        size_bytes: Its size.
        fingerprint: Identifies its content.
        scan_criteria: Whatever else the result of a scan depends on.
        input_format: Its format.
        columns: Its columns with names of their own, in order.
        repeated: The names that several columns have.
        types: The types that the values of columns have in an output, as far as they are known
            (``output.formats.column_types``).
    """

    name: str
    path: Path
    size_bytes: int
    fingerprint: str
    scan_criteria: str
    input_format: InputFormat
    columns: Sequence[Column]
    repeated: frozenset[str]
    types: Mapping[str, str]

    def first_rows(self, columns: Sequence[str]) -> list[ListRow]:
        """The first rows that can be read, at most ``SNIFFED_ROWS``.

        Raises:
            ManifestError: The file is damaged.
        """
        ...

    def check(self, conditions: Sequence[Condition]) -> None:
        """Check that conditions can be compared with its columns, which there are.

        Raises:
            ManifestError: They can't.
        """
        ...

    def scan(self, conditions: Sequence[Condition], keeper: ScanKeeper) -> FileScan:
        """Read the file once, and find out how many rows it has and which of them meet all conditions.

        Raises:
            ManifestError: The file is damaged, or has more rows than one of its size may have.
        """
        ...

    def rows(self, scan: FileScan, numbers: Int64s, columns: Sequence[str]) -> Iterator[ListRow | BadRow]:
        """The rows with these numbers, in order; a row that can't be read is a ``BadRow``.

        Args:
            scan: What the scan has found.
            numbers: Row numbers in the file, counted from 0, ascending.
            columns: The columns to read.

        Raises:
            ManifestError: The file is damaged, or has changed.
        """
        ...
