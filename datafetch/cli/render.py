"""What commands print on standard output: lines for people, or one JSON object.

Rules: nothing is computed here. Text from the web, such as the name of a host, can't control the terminal.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from datafetch.cli.report_targets import SUMMARY
from datafetch.cli.report_text import advice_lines, failures_line, most_first, report_lines
from datafetch.errors import ResourceError
from datafetch.model.outcome import OK
from datafetch.model.report import Report
from datafetch.model.untrusted import one_line, to_printable
from datafetch.model.wording import counted, sized

if TYPE_CHECKING:  # each would load what only one command needs
    from datafetch.engine.dry_run import DryRun
    from datafetch.engine.recipe import BuiltDataset
    from datafetch.engine.source_check import SourceAnswer
    from datafetch.monitor.recipe_status import DatasetStatus
    from datafetch.monitor.status import Status
    from datafetch.output.reshard.folder import Resharded
    from datafetch.verify import Verdict


_log = logging.getLogger(__name__)
_FILE_COLUMNS = 10_000  # of what is not a terminal: lines are whole


def show_report(report: Report, *, as_json: bool, is_demo: bool = False) -> None:
    """Print the report of a run; of a demo's without what can be requested again, since its server has ended."""
    _print_summary(report_lines(report, is_demo=is_demo), report.summary() if as_json else None)


def show_resharded(made: Resharded, *, as_json: bool) -> None:
    """Print how an output was resharded."""
    ranks, epoch = made.plan.ranks, made.epoch
    _print_summary(
        [
            (
                f"{made.out}: {counted(epoch.samples, 'row')} in {counted(made.shards, 'shard')}, "
                f"{sized(made.total_bytes)}{'' if made.is_new else ', which existed already'}"
            ),
            (
                f"{counted(ranks.world_size, 'rank')} of {counted(epoch.groups * ranks.group, 'sample')} each; "
                f"an epoch uses {1 - epoch.lost_share:.3%} of all rows"
            ),
        ],
        made.summary() if as_json else None,
    )


def show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Print the verdict of a verification."""
    _print_summary(verdict.lines(), verdict.summary() if as_json else None)


def show_status(status: Status, *, as_json: bool, shows_all_hosts: bool = False) -> None:
    """Print the status of a run; for people with the few hosts that have the most failures, or all that are known."""
    from datafetch.cli.status_text import status_text  # noqa: PLC0415 - a run does not need it

    if as_json:
        _print(orjson.dumps(status.summary()).decode())
        return
    _print(status_text(status, shows_all_hosts=shows_all_hosts))


def show_datasets(statuses: Sequence[DatasetStatus], root: Path, *, as_json: bool) -> None:
    """Print the recipe's datasets, and how much of each is there."""
    if as_json:
        _print(orjson.dumps([status.summary() for status in statuses]).decode())
        return
    width = max(len(status.part.name) for status in statuses)
    lines = [f"step  {'dataset':<{width}}  {'images':>9}  {'there':>9}  state"]
    for status in statuses:
        name, images = status.part.name, f"{status.part.images:,}"
        there = f"{status.present:>9,}  {_state_of(status)}"
        lines.append(f"{status.part.step:>4}  {name:<{width}}  {images:>9}  {there}")
    lines += ["", f"in {root}, and from where:"]
    for status in statuses:
        gate = f"; {status.part.gate}" if status.part.gate else ""
        lines.append(f"{status.path}")
        if status.rows is not None and (options := _selecting(status)):
            lines.append(f"    {counted(status.rows, 'row')}, selected by {shlex.join(options)}")
        lines.append(f"    {status.part.published}{gate}")
    _print("\n".join(map(_safe, lines)))


def _state_of(status: DatasetStatus) -> str:
    """The state of a dataset, with the options by which a complete run took only some of its samples."""
    options = _selecting(status)
    shown = options if status.ids is None else [option for option in options if option.startswith("--")]
    return f"{status.state} ({' '.join(shown)})" if shown else str(status.state)


def _selecting(status: DatasetStatus) -> list[str]:
    limit = [] if status.limit is None else ["--limit", str(status.limit)]
    return limit + ([] if status.ids is None else ["--ids", status.ids])


def show_sources(answers: Sequence[SourceAnswer], *, as_json: bool) -> None:
    """Print what the sources of datasets answered: a line for each, and below it where it is, or what to do."""
    if as_json:
        _print(orjson.dumps([answer.summary() for answer in answers]).decode())
        return
    width = max(len(answer.name) for answer in answers)
    lines = [f"{'dataset':<{width}}  {'files':>7}  {'size':>9}"]
    for answer in answers:
        size = "unknown" if answer.size_bytes is None else sized(answer.size_bytes)
        problem = "can't be read" if answer.place else "needs a --source"
        found = problem if answer.problem else f"{answer.files:>7,}  {size:>9}"
        lines += [f"{answer.name:<{width}}  {found}", f"    {answer.problem or answer.place}"]
    _print("\n".join(map(_safe, lines)))


def show_dry_runs(found: Sequence[DryRun], *, as_json: bool) -> None:
    """Print what runs would do, a block of lines each."""
    from datafetch.cli.dry_run import dry_run_text  # noqa: PLC0415 - a run does not need it

    if as_json:
        summaries = [one.summary() for one in found]
        _print(orjson.dumps(summaries[0] if len(summaries) == 1 else {"datasets": summaries}).decode())
        return
    columns = None if sys.stdout.isatty() else _FILE_COLUMNS
    _print("\n\n".join(dry_run_text(one, columns) for one in found))


def show_built(built: Sequence[BuiltDataset], *, as_json: bool, is_demo: bool = False) -> None:
    """Print what became of several datasets: a line for each, and below it what is missing and how to get it.

    A demo's server has ended, so that nothing can be requested again.
    """
    width = max(len(one.part.name) for one in built)
    lines = [f"{'dataset':<{width}}  {'expected':>11}  {'there':>11}  {'missing':>11}"]
    for one in built:
        if one.report is None:
            lines.append(f"{one.part.name:<{width}}  {one.part.images:>11,}  {'-':>11}  {'-':>11}")
            lines.append(f"    not built: {one.problem}")
            continue
        totals = one.report.totals
        lines.append(f"{one.part.name:<{width}}  {totals.images:>11,}  {totals.ok:>11,}  {totals.failed:>11,}")
        kinds = {kind: count for kind, count in totals.outcomes.items() if kind != OK}
        if kinds:
            lines += [f"    {most_first(kinds)}", f"    {failures_line(one.report)}"]
        lines += [f"    {advice}" for advice in advice_lines(one.report, is_demo=is_demo)]
    is_complete = all(one.report is not None for one in built)
    values = {"complete": is_complete, "datasets": [one.summary() for one in built]}
    _print_summary(lines, values if as_json else None)


def _safe(line: str) -> str:
    """A line that may be indented, without control characters."""
    return _indent(line) + to_printable(line.strip())


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))]


def _print_summary(lines: Iterable[str], values: Mapping[str, object] | None) -> None:
    """Print what a command did: as lines, or as an object if there is one; the file of ``--log`` gets the lines."""
    safe = [_indent(line) + one_line(line) for line in lines]
    for line in safe:
        _log.info("%s", line, extra={SUMMARY: True})
    _print("\n".join(safe) if values is None else orjson.dumps(values).decode())


def _print(text: str) -> None:
    write_pieces([text, "\n"])


def write_pieces(pieces: Iterable[str]) -> None:
    """Write pieces of text to standard output. That its reader has exited is no error: nobody reads the rest.

    Raises:
        ResourceError: It can't be written.
    """
    try:
        is_read = all(_write(piece) for piece in pieces)
    except BaseException:
        _write("")  # what came before it counts
        raise
    if is_read:
        _write("")


def _write(piece: str) -> bool:
    """Write a piece, or flush all of them if it is empty; False if nobody reads them any more."""
    try:
        sys.stdout.write(piece) if piece else sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # closing it would fail and print an error
        return False
    except OSError as error:
        raise ResourceError.from_disk_error(error, "write the summary to standard output") from error
    return True
