"""Files of lines: a URL a line, records with fields (CSV, TSV), or a JSON object a line; plain or compressed.

A scan reads a file once, and notes at which offset each block begins and how many records there are before it. So a run
that is resumed goes on at the block with its next row: it seeks there in a plain file, and decompresses a compressed
one up to there.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from datafetch.datasets.jsonl_manifest import BadRecordError, parse_json_line
from datafetch.datasets.lists.kept_columns import STRING, types_of_rows
from datafetch.datasets.lists.record_blocks import Block, FieldSplitter, RecordSplitter, RecordTooLongError
from datafetch.datasets.lists.row_bits import Bools
from datafetch.datasets.lists.scan import FileScan, ScanKeeper
from datafetch.datasets.lists.table import TYPED_ROWS, Column, InputFormat, ListRow, first_of
from datafetch.datasets.lists.text_file import TextFile, path_time_ns
from datafetch.datasets.lists.where import Condition
from datafetch.datasets.readers import MAX_LINE_BYTES, BadRow, Int64s
from datafetch.errors import STARTS_OVER, ManifestError
from datafetch.model.untrusted import is_utf8
from datafetch.model.wording import counted

_MIN_ROW_LIMIT = 1 << 24  # accepted in a file of any size: 2 MiB of bits
_MAX_COLUMNS = 10_000
_URL_COLUMN = "url"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records of a block meet all conditions.

    Attributes:
        are_selected: Of each record, whether it does.
        unreadable: How many can't be read, which meet none.
    """

    are_selected: Bools
    unreadable: int = 0


class RecordParser(Protocol):
    """How the records of a file become rows.

    Attributes:
        splitter: Finds where records end.
        columns: The names of the columns, in order; one may be repeated.
        types: The types of their values.
        start_offset: The offset of the first record in the content.
    """

    splitter: RecordSplitter
    columns: Sequence[str]
    types: Mapping[str, str]
    start_offset: int

    def parse(self, record: bytes) -> ListRow:
        """Parse a record.

        Raises:
            BadRecordError: It can't be read.
        """
        ...

    def select(self, block: Block, conditions: Sequence[Condition]) -> Selection:
        """Which records of a block meet all conditions."""
        ...


class TextTable:
    """A file of lines or records.

    Args:
        file: The file.
        parser: How its records become rows.
        input_format: Its format.
    """

    def __init__(self, file: TextFile, parser: RecordParser, input_format: InputFormat) -> None:
        self._file = file
        self._parser = parser
        self.input_format = input_format
        self.name, self.path = str(file.path), file.path
        self.size_bytes, self.fingerprint = file.size_bytes, file.fingerprint
        counts = Counter(parser.columns)
        self.scan_criteria = (
            f"{parser.columns} {parser.start_offset} {parser.splitter.delimiter!r} {path_time_ns(file.path)}"
        )
        self.repeated = frozenset(name for name, count in counts.items() if count > 1)
        self.columns: Sequence[Column] = [Column(name) for name in counts if name not in self.repeated]
        self.types = parser.types

    def first_rows(self, columns: Sequence[str]) -> list[ListRow]:
        """The first rows that can be read."""
        del columns
        with closing(self._blocks(self._parser.start_offset)) as blocks:
            return first_of(_readable(self._parser, (record for block in blocks for record in block.records())))

    def check(self, conditions: Sequence[Condition]) -> None:
        """Accept all conditions: a text may be a number."""

    def scan(self, conditions: Sequence[Condition], keeper: ScanKeeper) -> FileScan:
        """Count the records, and find out which of them meet all conditions."""
        scan = keeper.begin()
        if scan.is_complete:
            return scan
        max_rows = max(_MIN_ROW_LIMIT, self.size_bytes)
        for block in self._blocks(scan.position or self._parser.start_offset, scan.rows):
            scan.starts.append(block.offset)
            scan.first_rows.append(scan.rows)
            if scan.bits is not None:
                selection = self._parser.select(block, conditions)
                scan.bits.add(selection.are_selected)
                scan.rows, scan.unreadable = scan.bits.rows, scan.unreadable + selection.unreadable
            else:
                scan.rows += block.count()
            scan.position = block.offset + len(block.content)
            if scan.rows > max_rows:
                raise ManifestError(
                    f"{self.name} has more than {max_rows:,} rows in {self.size_bytes:,} bytes, the limit for a file "
                    "of its size; divide it, or leave it out"
                )
            keeper.advance(0 if self._file.is_compressed else len(block.content))
            keeper.save_sometimes(scan)
        scan.is_complete = True
        keeper.save(scan)
        return scan

    def rows(self, scan: FileScan, numbers: Int64s, columns: Sequence[str]) -> Iterator[ListRow | BadRow]:
        """The rows with these numbers."""
        del columns
        if not len(numbers):
            return
        first_rows = np.array(scan.first_rows, np.int64)
        # Of several blocks before which there are as many rows, the last one has some.
        indices = np.searchsorted(first_rows, numbers, "right") - 1
        bounds = [*scan.starts, scan.position]
        offset = bounds[indices[0]]
        with self._file.opened_at(offset) as content:
            for index in np.unique(indices).tolist():
                self._file.move(content, offset, bounds[index])
                offset = bounds[index + 1]
                block = self._parser.splitter.block_at(content, bounds[index], offset - bounds[index])
                stop = scan.first_rows[index + 1] if index + 1 < len(scan.first_rows) else scan.rows
                if block.count() != stop - scan.first_rows[index]:
                    raise ManifestError(f"{self.name} has changed since it was opened; {STARTS_OVER}")
                wanted = numbers[indices == index]
                records = block.records_at(wanted - scan.first_rows[index])
                for number, record in zip(wanted.tolist(), records, strict=True):
                    yield self._row(number, record)

    def _row(self, number: int, record: bytes) -> ListRow | BadRow:
        try:
            return self._parser.parse(record)
        except BadRecordError as error:
            return BadRow(number, str(error))

    def _blocks(self, offset: int, rows_before: int = 0) -> Generator[Block]:
        try:
            with self._file.opened_at(offset) as content:
                yield from self._parser.splitter.blocks(content, offset)
        except RecordTooLongError as error:
            reason = "; a quote in it may never be closed" if self.input_format is InputFormat.CSV else ""
            raise ManifestError(
                f"{self.name}: the record after record {rows_before + error.record:,} is longer than "
                f"{MAX_LINE_BYTES:,} bytes{reason}; correct it, or leave that file out"
            ) from error


class UrlParser:
    """Lines that are URLs."""

    def __init__(self, file: TextFile) -> None:
        self.splitter = RecordSplitter()
        self.columns: Sequence[str] = (_URL_COLUMN,)
        self.types: Mapping[str, str] = {_URL_COLUMN: STRING}
        self.start_offset = file.start_offset

    def parse(self, record: bytes) -> ListRow:
        """The URL."""
        return {_URL_COLUMN: _decode(record, _URL_COLUMN)}

    def select(self, block: Block, conditions: Sequence[Condition]) -> Selection:
        """Which URLs meet all conditions."""
        return _select(block, conditions, self)


class JsonParser:
    """Lines that are JSON objects, or URLs as JSON texts.

    Args:
        file: The file.

    Raises:
        ManifestError: The objects have too many keys.
    """

    def __init__(self, file: TextFile) -> None:
        self.splitter = RecordSplitter()
        self.start_offset = file.start_offset
        with file.opened_at(self.start_offset) as content:
            lines = (record for block in self.splitter.blocks(content) for record in block.records())
            rows = first_of(_readable(self, islice(lines, TYPED_ROWS)), TYPED_ROWS)
        self.columns: Sequence[str] = keys_of(rows)
        self.types: Mapping[str, str] = types_of_rows(rows)
        refuse_many(file.path, self.columns)

    def parse(self, record: bytes) -> ListRow:
        """The object."""
        if record.lstrip().startswith(b'"'):
            return as_row(_parse_text(record))
        return parse_json_line(record)

    def select(self, block: Block, conditions: Sequence[Condition]) -> Selection:
        """Which objects meet all conditions."""
        return _select(block, conditions, self)


class FieldParser:
    """Records of fields.

    Args:
        file: The file.
        delimiter: What separates fields.
        is_quoted: Whether fields may be quoted.
        header: The names of the columns; None takes them from the first record.

    Raises:
        ManifestError: The first record can't be a header.
    """

    def __init__(self, file: TextFile, delimiter: bytes, *, is_quoted: bool, header: Sequence[str] | None) -> None:
        self.splitter = RecordSplitter(delimiter if is_quoted else b"")
        self.start_offset = file.start_offset
        self._delimiter = delimiter
        self._is_quoted = is_quoted
        if header is None:
            fields = FieldSplitter(delimiter, is_quoted=is_quoted, max_fields=_MAX_COLUMNS)
            with file.opened_at(self.start_offset) as content:
                first, self.start_offset = _first_record(self.splitter.blocks(content, self.start_offset))
            try:
                header = [_decode(field, "its header").strip() for field in fields.split(first)]
            except BadRecordError as error:
                raise ManifestError(f"{file.path}: {error}; write it as UTF-8") from error
        refuse_many(file.path, header)
        self.columns: Sequence[str] = tuple(header)
        self.types: Mapping[str, str] = dict.fromkeys(self.columns, STRING)
        self._fields = FieldSplitter(delimiter, is_quoted=is_quoted, max_fields=len(header))

    def parse(self, record: bytes) -> ListRow:
        """The fields by column; an empty field has no value."""
        fields, is_open = self._fields.parse(record)
        columns = len(self.columns)
        if is_open:
            raise BadRecordError("a quote in it is never closed")
        if len(fields) != columns:
            count = "more fields" if len(fields) > columns else counted(len(fields), "field")
            raise BadRecordError(f"it has {count}, where the header has {columns:,}")
        return {
            name: _decode(field, f"column {name}") if field else None
            for name, field in zip(self.columns, fields, strict=True)
        }

    def select(self, block: Block, conditions: Sequence[Condition]) -> Selection:
        """Which records meet all conditions: by Arrow's parser, where it finds the same records."""
        names = [f"{number}" for number in range(len(self.columns))]
        needed = {one.column: names[self.columns.index(one.column)] for one in conditions}
        try:
            table = self._parse_block(block, names, list(dict.fromkeys(needed.values())))
        except pa.ArrowException:
            return self._select(block, conditions)
        if table.num_rows != block.count():
            return self._select(block, conditions)
        values = {name: table.column(number).combine_chunks() for name, number in needed.items()}
        return Selection(_meet_all(values, conditions, table.num_rows))

    def _select(self, block: Block, conditions: Sequence[Condition]) -> Selection:
        """Which records meet all conditions: by their fields, one by one. What can't be read meets none."""
        indices = {one.column: self.columns.index(one.column) for one in conditions}
        records = [fields if not is_open else [] for fields, is_open in map(self._fields.parse, block.records())]
        are_whole = np.array([len(fields) == len(self.columns) for fields in records], np.bool_)
        values = {
            name: pa.array(
                (fields[index] if is_whole else None for fields, is_whole in zip(records, are_whole, strict=True)),
                pa.large_binary(),
            )
            for name, index in indices.items()
        }
        return Selection(_meet_all(values, conditions, len(records)), int(np.count_nonzero(~are_whole)))

    def _parse_block(self, block: Block, names: list[str], needed: list[str]) -> Any:
        from pyarrow import csv  # noqa: PLC0415 - few jobs have a filter on such files

        return csv.read_csv(
            io.BytesIO(block.content),
            read_options=csv.ReadOptions(use_threads=False, block_size=len(block.content) + 1, column_names=names),
            parse_options=csv.ParseOptions(
                delimiter=self._delimiter.decode(),
                quote_char='"' if self._is_quoted else False,
                newlines_in_values=self._is_quoted,
            ),
            convert_options=csv.ConvertOptions(
                include_columns=needed,
                column_types=dict.fromkeys(needed, pa.binary()),
                check_utf8=False,
                null_values=[],
                strings_can_be_null=False,
            ),
        )


def _readable(parser: RecordParser, records: Iterable[bytes]) -> Iterator[ListRow]:
    """The rows of the records that can be read."""
    for record in records:
        with suppress(BadRecordError):
            yield parser.parse(record)


def _first_record(blocks: Iterable[Block]) -> tuple[bytes, int]:
    """The first record that is not empty, and the offset behind it; an empty one if there is none."""
    offset = 0
    for block in blocks:
        if stop := block.end_of_first():
            return block.content[:stop].strip(b"\r\n"), block.offset + stop
        offset = block.offset + len(block.content)
    return b"", offset


def keys_of(rows: Iterable[ListRow]) -> tuple[str, ...]:
    """The keys of objects, each once, in the order in which they are met; without those that no output can have."""
    return tuple(filter(is_utf8, dict.fromkeys(key for row in rows for key in row)))


def refuse_many(path: Path, columns: Sequence[str]) -> None:
    """Check that a file does not have any number of columns.

    Raises:
        ManifestError: It has more than are accepted.
    """
    if len(columns) > _MAX_COLUMNS:
        raise ManifestError(f"{path} has more than {_MAX_COLUMNS:,} columns; leave some out")


def as_row(value: object) -> ListRow:
    """A JSON value as a row: an object, or a URL.

    Raises:
        BadRecordError: It is neither.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {_URL_COLUMN: value}
    raise BadRecordError("neither a JSON object nor a URL")


def _parse_text(record: bytes) -> object:
    try:
        value: object = json.loads(record)
    except ValueError as error:
        raise BadRecordError(f"not JSON ({error})") from error
    return value


def _select(block: Block, conditions: Sequence[Condition], parser: RecordParser) -> Selection:
    records = block.records()
    are_selected = np.zeros(len(records), np.bool_)
    unreadable = 0
    for number, record in enumerate(records):
        try:
            row = parser.parse(record)
        except BadRecordError:
            unreadable += 1
        else:
            are_selected[number] = all(one.passes(row.get(one.column)) for one in conditions)
    return Selection(are_selected, unreadable)


def _meet_all(values: Mapping[str, Any], conditions: Sequence[Condition], rows: int) -> Bools:
    """Which fields meet all conditions; an empty field has no value."""
    selected = np.ones(rows, np.bool_)
    for condition in conditions:
        found = values[condition.column]
        selected &= condition.select(found) & _have_value(found)
    return selected


def _have_value(values: Any) -> Bools:
    import pyarrow.compute as pc  # noqa: PLC0415 - few jobs have a filter on such files

    return np.asarray(pc.greater(pc.binary_length(values), 0).fill_null(False).to_numpy(zero_copy_only=False))


def _decode(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError(f"{what} is not UTF-8 at byte {error.start:,} of its text") from error
