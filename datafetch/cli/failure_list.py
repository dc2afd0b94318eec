"""What ``datafetch failures`` prints: a table for people, CSV for spreadsheets, or JSON lines for programs.

Rules: lines are printed as they come, since there may be millions. Text from the web can control neither a terminal
nor a spreadsheet: characters that can't be printed become U+FFFD, or escapes in JSON, which loses nothing.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import chain, islice
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from datafetch.cli.render import write_pieces
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.untrusted import escape_unprintable, to_printable
from datafetch.monitor.failures import FailedImage
from datafetch.store.ledger_format import SCHEMA

_TITLES = ("key", "image", "kind", "status", "URL", "detail")
_SHORT_TITLES = ("key", "image", "kind", "status", "host", "detail")
_KEY, _IMAGE, _KIND, _STATUS, _HOST, _DETAIL = range(6)  # the numbers of the columns
_MOST_CELLS = {_KEY: 16, _IMAGE: 5, _KIND: 18, _STATUS: 6, _HOST: 24}
"""The width of each column on a terminal, at most, but for that of the detail."""
_USUAL = {_IMAGE: "0", _STATUS: ""}
"""Values that say nothing: a column that has no other is left out on a terminal."""
_LEAST_HOST_CELLS = 12
_LEAST_DETAIL_CELLS = 16
_MEASURED = 100  # failures by which the columns' widths are chosen
_GAP = "  "
_COLUMNS = ("key", *(name for name in SCHEMA.names if name != "key"))
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_MS_DIGITS = 3


class ListForm(Enum):
    """How failures are listed."""

    TABLE = auto()
    CSV = auto()
    JSON_LINES = auto()


def show_failures(failures: Iterable[FailedImage], form: ListForm) -> bool:
    """Print failures, a line each; returns whether there were any.

    A table is printed at the width of the terminal: it has hosts in place of URLs, details are wrapped, and columns
    that say nothing are left out. Elsewhere it has whole lines, with all columns.
    """
    counted = _Counted(failures)
    match form:
        case ListForm.TABLE:
            write_pieces(_fitted_lines(counted, Console()) if sys.stdout.isatty() else _whole_lines(counted))
        case ListForm.CSV:
            write_pieces(_csv(counted))
        case ListForm.JSON_LINES:
            write_pieces(f"{to_json_text(columns_of(one.shard, one.line))}\n" for one in counted)
    return counted.has_any


class _Counted:
    """Failures, and whether there was one."""

    def __init__(self, failures: Iterable[FailedImage]) -> None:
        self.has_any = False
        self._failures = failures

    def __iter__(self) -> Iterator[FailedImage]:
        for failure in self._failures:
            self.has_any = True
            yield failure


def columns_of(shard: str, line: LedgerLine) -> dict[str, Any]:
    """All columns of the ledger for an image, the key first."""
    values = {name: getattr(line, name) for name in _COLUMNS if name != "shard"} | {"shard": shard}
    values["fetch_ms"] = round(values["fetch_ms"], _MS_DIGITS)
    return {name: values[name] for name in _COLUMNS}


def to_json_text(value: object) -> str:
    """A value as JSON on one line, in which what can't be printed is escaped."""
    return escape_unprintable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _whole_lines(failures: Iterable[FailedImage]) -> Iterator[str]:
    """The lines of the table, with all columns; none if nothing failed. The first failures decide the widths."""
    rows = (_cells(one, is_short=False) for one in failures)
    first = list(islice(rows, _MEASURED))
    if not first:
        return
    widths = [max(map(cell_len, column)) for column in zip(_TITLES, *first, strict=True)][:-1]
    for row in chain([_TITLES], first, rows):
        padded = [_padded(text, cells) for text, cells in zip(row, widths, strict=False)]
        yield f"{_GAP.join([*padded, row[-1]]).rstrip()}\n"


def _fitted_lines(failures: Iterable[FailedImage], console: Console) -> Iterator[str]:
    """The lines of the table on a terminal; none if nothing failed. The first failures decide columns and widths.

    The table begins again, with its titles, at a failure that says something in a column that was left out.
    """
    rows = (_cells(one, is_short=True) for one in failures)
    shown: set[int] = set()
    block = list(islice(rows, _MEASURED))
    while block:
        shown |= {number for number in range(len(_SHORT_TITLES)) if any(_says_something(row, number) for row in block)}
        columns = sorted(shown)
        cells = _cells_at(console.width, columns, block)
        ready, block = chain([_SHORT_TITLES], block, rows), []
        for row in ready:
            if row is not _SHORT_TITLES and any(_says_something(row, number) for number in _USUAL.keys() - shown):
                block = [row, *islice(rows, _MEASURED - 1)]
                break
            yield from _wrapped([row[number] for number in columns], cells, console)


def _says_something(row: Sequence[str], number: int) -> bool:
    return row[number] != _USUAL.get(number)


def _cells_at(width: int, columns: Sequence[int], rows: Sequence[Sequence[str]]) -> list[int]:
    """The widths of columns on a terminal: the host makes room for the detail, which takes what is left."""
    measured = {number: max(cell_len(row[number]) for row in (_SHORT_TITLES, *rows)) for number in columns}
    cells = {number: min(measured[number], most) for number, most in _MOST_CELLS.items() if number in measured}
    left = width - sum(cells.values()) + cells[_HOST] - len(cells) * len(_GAP)
    cells[_HOST] = max(_LEAST_HOST_CELLS, min(cells[_HOST], left - min(measured[_DETAIL], _LEAST_DETAIL_CELLS)))
    return [*cells.values(), max(_LEAST_DETAIL_CELLS, left - cells[_HOST])]


def _wrapped(texts: Sequence[str], cells: Sequence[int], console: Console) -> Iterator[str]:
    """The lines of a row: as many as the detail needs, which is the last text; all others are cut.

    On a terminal that is too narrow for the least width of each column, it is one line, and cut.
    """
    *others, detail = texts
    start = "".join(f"{_fit(text, room)}{_GAP}" for text, room in zip(others, cells, strict=False))
    indent_cells = cell_len(start)
    if indent_cells + cells[-1] > console.width:
        yield f"{_fit(start + detail, console.width).rstrip()}\n"
        return
    pieces = [detail]
    if cell_len(detail) > cells[-1]:
        pieces = [line.plain for line in Text(detail).wrap(console, cells[-1])]
    for piece in pieces:
        yield f"{start}{piece}".rstrip() + "\n"
        start = " " * indent_cells


def _cells(failure: FailedImage, *, is_short: bool) -> tuple[str, ...]:
    line = failure.line
    status = "" if line.status is None else str(line.status)
    place = failure.host if is_short else line.url
    return tuple(map(to_printable, (line.key, str(line.image), line.outcome, status, place, line.detail)))


def _padded(text: str, cells: int) -> str:
    """A text of at least this many cells."""
    return text + " " * (cells - cell_len(text))


def _fit(text: str, cells: int) -> str:
    """A text of exactly this many cells, cut if it has more."""
    if cell_len(text) <= cells:
        return _padded(text, cells)
    return set_cell_size(f"{set_cell_size(text, cells - 1).rstrip()}…", cells)


def _csv(failures: Iterable[FailedImage]) -> Iterator[str]:
    yield f"{','.join(_COLUMNS)}\n"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for failure in failures:
        writer.writerow([_csv_cell(value) for value in columns_of(failure.shard, failure.line).values()])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _csv_cell(value: Any) -> object:
    if isinstance(value, tuple):
        value = " ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    return to_printable(f"'{value}" if value.startswith(_FORMULA_STARTS) else value)
