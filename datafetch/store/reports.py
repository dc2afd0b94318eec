"""report.json, and the history of the reports before it.

Rules: ``report.json`` exists if and only if the run is complete. It is the report of the last run that did something;
one that found nothing to do leaves it as it is. Reports are never overwritten: earlier ones lie in ``reports/``, named
by the time at which they were written.

Theory of operation: a run moves the report to the history when it begins (``set_report_aside``), because the output is
no longer complete. At its end it writes one of its own, or, if it did nothing, moves the latest back. So whenever it is
killed, each report is in one of the two places. A retry, during which the output stays complete, does both at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import orjson

from datafetch.model.bounds import Count
from datafetch.model.report import Report
from datafetch.store.atomic import make_folder, publish, sync, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound

_MAX_REPORTS = 100  # in the history
_NS_PER_S = 10**9


class _Samples(msgspec.Struct, frozen=True):
    total: Count
    rows: Count


class _Images(msgspec.Struct, frozen=True):
    total: Count
    ok: Count
    by_kind: Mapping[str, Count]


class _State(msgspec.Struct, frozen=True):
    """What a report says of the output as it stands."""

    samples: _Samples
    images: _Images
    shards: Count
    equal: Mapping[str, Count] | None = None


def set_report_aside(layout: OutputLayout) -> None:
    """Move the report to the history, if there is one, and delete the oldest of more than a hundred."""
    with suppress(FileNotFoundError):  # there is none, or another process that fetches shards was faster
        written_ns = layout.report.stat().st_mtime_ns
        make_folder(layout.reports)
        while (path := layout.reports / _name(written_ns)).exists():
            written_ns += 1
        layout.report.rename(path)
        sync(layout.reports)
        sync(layout.state_folder)
    for path in _history(layout)[:-_MAX_REPORTS]:
        path.unlink(missing_ok=True)


def write_report(layout: OutputLayout, report: Report) -> None:
    """Write the report, unless the run did nothing and there is one already; from then on the run is complete."""
    summary = orjson.dumps(report.summary(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    has_worked = report.requests or report.fetched_bytes or report.written_bytes
    latest = next(filter(Path.exists, (layout.report, *reversed(_history(layout)))), None)
    if latest is None or has_worked or read_if_sound(latest, _State) != msgspec.json.decode(summary, type=_State):
        set_report_aside(layout)
        write_atomically(layout.report, summary)
    elif latest != layout.report:
        publish(latest, layout.report)


def _name(written_ns: int) -> str:
    written = datetime.fromtimestamp(written_ns // _NS_PER_S, UTC)
    return f"{written:%Y-%m-%dT%H-%M-%S}.{written_ns % _NS_PER_S:09d}Z.json"


def _history(layout: OutputLayout) -> list[Path]:
    """The reports in the history, the oldest first."""
    return sorted(path for path in layout.reports.glob("*Z.json") if path.is_file())
