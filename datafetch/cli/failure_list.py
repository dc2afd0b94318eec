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

from datafetch.cli.render import write_pieces
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.untrusted import escape_unprintable, to_printable
from datafetch.monitor.failures import FailedImage
from datafetch.store.ledger_format import SCHEMA

_TITLES = ("key", "image", "kind", "status", "URL", "detail")
_SHORT_TITLES = ("key", "image", "kind", "status", "host", "detail")
_MOST_CELLS = (16, 5, 18, 6, 24)
"""The width of each column on a terminal, at most, but for that of the detail."""
_LEAST_CELLS = 12  # of the host, and of the detail
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

    A table is printed at the width of the terminal; elsewhere nothing is cut, and it has URLs in place of hosts.
    """
    counted = _Counted(failures)
    match form:
        case ListForm.TABLE:
            write_pieces(_table(counted, Console().width if sys.stdout.isatty() else None))
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


def _table(failures: Iterable[FailedImage], width: int | None) -> Iterator[str]:
    """The lines of the table; none if nothing failed.

    Args:
        failures: The failures; the first of them decide the columns' widths.
        width: The cells of a line; None if nothing is to be cut.
    """
    rest = iter(failures)
    if not (first := list(islice(rest, _MEASURED))):
        return
    is_short = width is not None
    titles = _SHORT_TITLES if is_short else _TITLES
    columns = zip(titles, *(_cells(one, is_short=is_short) for one in first), strict=True)
    cells = [max(map(cell_len, column)) for column in columns][:-1]
    if width is not None:
        cells = _cells_at(width, cells)
    for values in chain([titles], (_cells(one, is_short=is_short) for one in chain(first, rest))):
        fitted = [_fit(text, room, is_cut=is_short) for text, room in zip(values, cells, strict=False)]
        line = _GAP.join([*fitted, *values[len(cells) :]])
        yield f"{(line if width is None else _fit(line, width, is_cut=True)).rstrip()}\n"


def _cells_at(width: int, measured: Sequence[int]) -> list[int]:
    """The widths of all columns on a terminal: the host makes room for the detail, which takes what is left."""
    *others, host = (min(pair) for pair in zip(measured, _MOST_CELLS, strict=True))
    left = width - sum(others) - len(measured) * len(_GAP)
    host = max(_LEAST_CELLS, min(host, left - _LEAST_CELLS))
    return [*others, host, max(_LEAST_CELLS, left - host)]


def _cells(failure: FailedImage, *, is_short: bool) -> tuple[str, ...]:
    line = failure.line
    status = "" if line.status is None else str(line.status)
    place = failure.host if is_short else line.url
    return tuple(map(to_printable, (line.key, str(line.image), line.outcome, status, place, line.detail)))


def _fit(text: str, cells: int, *, is_cut: bool) -> str:
    """A text of at least this many cells, and if it is cut, of exactly as many."""
    missing = cells - cell_len(text)
    if missing >= 0:
        return text + " " * missing
    if not is_cut:
        return text
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
