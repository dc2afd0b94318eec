"""What commands print on standard output: lines for people, or one JSON object.

Rules: nothing is computed here. Text from the web, such as the name of a host, can't control the terminal.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datafetch.cli.dry_run import dry_run_text
from datafetch.cli.exit_code import one_line
from datafetch.datasets import DATASETS
from datafetch.errors import ResourceError
from datafetch.model.kinds import CounterName
from datafetch.model.outcome import OK, FailureKind, may_kind_pass
from datafetch.model.report import Report
from datafetch.model.untrusted import to_printable
from datafetch.monitor.host_failures import FailingHost
from datafetch.monitor.recipe_status import DatasetStatus
from datafetch.monitor.status import Status
from datafetch.output.reshard.folder import Resharded
from datafetch.verify import Verdict

if TYPE_CHECKING:
    from datafetch.engine.dry_run import DryRun
    from datafetch.engine.recipe import BuiltDataset  # which would load the network stack
    from datafetch.engine.source_check import SourceAnswer

_COUNTERS: dict[str, tuple[str, str]] = {
    CounterName.BAD_LINES: ("bad line", "skipped"),
    CounterName.FILTERED: ("record", "left out by filters"),
    CounterName.FILLED_SIMILARITY: ("document", "got similarities of zero"),
    CounterName.RECORDS: ("document", "in the shards of the list"),
    CounterName.REPEATED_IDS: ("row", "left out because an earlier row has the same id"),
    CounterName.SKIPPED: ("image", "skipped because its document was lost"),
}
"""By name of the counter: what it counts, in the singular, and what happened to that."""

_ADVICE: dict[FailureKind, str] = {
    FailureKind.TLS: "'{retry} --insecure' also accepts invalid certificates and outdated TLS",
    FailureKind.BLOCKED_ADDRESS: "'{retry} --allow-net CIDR' fetches those in a network that you trust",
    FailureKind.OPTED_OUT: "'{retry} --opt-out ignore' fetches them too",
    FailureKind.TOO_LARGE: "'{retry} --max-body BYTES' (or --max-sample) fetches them with a higher limit",
    FailureKind.TOO_MANY_PIXELS: "'{retry} --max-pixels N' fetches them with a higher limit",
}
_HOST_COLUMNS = 40
_FILE_COLUMNS = 10_000  # of what is not a terminal: lines are whole
_SHOWN_PROCESSES = 4
_MAX_S = 1e9  # thirty years; an ETA may be any number of them when the pace is close to zero


def show_report(report: Report, *, as_json: bool) -> None:
    """Print the report of a run."""
    if as_json:
        _print(orjson.dumps(report.summary()).decode())
        return
    totals = report.totals
    failures = ", ".join(
        f"{kind} {count:,}"
        for kind, count in sorted(totals.outcomes.items(), key=lambda pair: (-pair[1], pair[0]))
        if kind != OK
    )
    lines = [
        (
            f"{report.dataset}: {totals.rows:,} of {counted(totals.samples, 'sample')}, "
            f"{counted(report.shards, 'shard')} in {report.out}"
        ),
        f"images: {totals.ok:,} ok, {totals.failed:,} failed" + (f" ({failures})" if failures else ""),
        (
            f"this run: {counted(totals.ok - report.reused, 'image')} arrived in "
            f"{timedelta(seconds=round(report.elapsed_s))}, {report.images_per_s:.1f} images/s, "
            f"{counted(report.requests, 'request')}, up to {report.connections:,} at once, "
            f"{counted(report.reused, 'image')} reused"
            + (f" ({report.repeated:,} of URLs that were already requested)" if report.repeated else "")
        ),
    ]
    if totals.notes:
        lines.append(", ".join(_counter_text(name, count) for name, count in sorted(totals.notes.items())))
    if report.resharded is not None:
        epoch = report.resharded
        samples, used_share = counted(epoch.samples_per_rank, "sample"), epoch.used / totals.rows
        lines.append(
            f"resharded for {counted(epoch.world_size, 'rank')} of {samples} each: "
            f"an epoch uses {used_share:.3%} of all rows"
        )
    if report.id_list_result is not None:
        found = report.id_list_result
        missing = "missing ones not counted (--limit)" if found.not_found is None else f"{found.not_found:,} not found"
        files = f", {counted(found.missing_files, 'file')} missing" if found.missing_files else ""
        beyond = f", {found.out_of_range:,} beyond the end of their files" if found.out_of_range else ""
        duplicates = counted(found.duplicates, "duplicate line")
        lines.append(f"ids: {found.wanted:,} wanted, {missing}{files}{beyond}, {duplicates}")
        if found.remark:
            lines.append(f"ids: {found.remark}")
    _print_lines([*lines, *_advice(report)])


def _advice(report: Report) -> Iterator[str]:
    """Say how failed images can still be fetched."""
    retry = _retry_command(report.out)
    failed = sorted(kind for kind in report.totals.outcomes if kind != OK)
    if report.has_open_retry:
        yield f"a retry was interrupted: '{retry}' completes it"
    if report.retried == 0 and failed:
        yield (
            "this retry had nothing to request, because all failures are of other kinds; "
            f"--kinds {','.join(failed)}{' (or some of them)' if len(failed) > 1 else ''} requests those as well"
        )
    missing = report.totals.outcomes.get(FailureKind.MISSING_MEMBER, 0)
    dataset = DATASETS.get(report.dataset)
    root = None if dataset is None else dataset.image_root
    if missing and root is not None:
        folder = os.path.normpath(Path(report.out) / root)
        yield (
            f"{counted(missing, 'image')} {'is' if missing == 1 else 'are'} not in {folder}: prepare the image sets "
            "with the same --root, or 'datafetch retry' those where images failed, and run the same command again"
        )
    for kind, fix in _ADVICE.items():
        count = report.permittable.get(kind, 0)
        if count:
            yield f"{counted(count, 'image')} failed as {kind}: {fix.format(retry=retry)}"


def _retry_command(out: str) -> str:
    return f"datafetch retry {shlex.quote(out)}"


def counted(count: int, thing: str) -> str:
    """Format a count with its noun: ``1 shard``, ``2 shards``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _counter_text(name: str, count: int) -> str:
    if name not in _COUNTERS:
        return f"{count:,} {name}"
    thing, fate = _COUNTERS[name]
    return f"{counted(count, thing)} {fate if count == 1 else fate.replace('its document', 'their document')}"


def show_resharded(made: Resharded, *, as_json: bool) -> None:
    """Print how an output was resharded."""
    if as_json:
        _print(orjson.dumps(made.summary()).decode())
        return
    ranks, epoch = made.plan.ranks, made.epoch
    _print_lines(
        [
            (
                f"{made.out}: {counted(epoch.samples, 'row')} in {counted(made.shards, 'shard')}, "
                f"{decimal(made.total_bytes)}{'' if made.is_new else ', which existed already'}"
            ),
            (
                f"{counted(ranks.world_size, 'rank')} of {counted(epoch.groups * ranks.group, 'sample')} each; "
                f"an epoch uses {1 - epoch.lost_share:.3%} of all rows"
            ),
        ]
    )


def show_verdict(verdict: Verdict, *, as_json: bool) -> None:
    """Print the verdict of a verification."""
    if as_json:
        _print(orjson.dumps(verdict.summary()).decode())
        return
    _print_lines(verdict.lines())


def show_status(status: Status, *, as_json: bool) -> None:
    """Print the status of a run."""
    if as_json:
        _print(orjson.dumps(status.summary()).decode())
        return
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(_facts(status))
        if status.by_kind:
            console.print(Padding(_kinds(status), (1, 0, 0, 0)))
        if status.hosts:
            console.print(Padding(_hosts(status), (1, 0, 0, 0)))
    _print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_datasets(statuses: Sequence[DatasetStatus], root: Path, *, as_json: bool) -> None:
    """Print the recipe's datasets, and how much of each is there."""
    if as_json:
        _print(orjson.dumps([status.summary() for status in statuses]).decode())
        return
    width = max(len(status.part.name) for status in statuses)
    lines = [f"step  {'dataset':<{width}}  {'images':>9}  {'there':>9}  state"]
    for status in statuses:
        name, images = status.part.name, f"{status.part.images:,}"
        lines.append(f"{status.part.step:>4}  {name:<{width}}  {images:>9}  {status.present:>9,}  {status.state}")
    lines += ["", f"in {root}, and from where:"]
    for status in statuses:
        gate = f"; {status.part.gate}" if status.part.gate else ""
        lines += [f"{status.path}", f"    {status.part.published}{gate}"]
    _print("\n".join(map(_safe, lines)))


def show_sources(answers: Sequence[SourceAnswer], *, as_json: bool) -> None:
    """Print what the sources of datasets answered: a line for each, and below it where it is, or what to do."""
    if as_json:
        _print(orjson.dumps([answer.summary() for answer in answers]).decode())
        return
    width = max(len(answer.name) for answer in answers)
    lines = [f"{'dataset':<{width}}  {'files':>7}  {'size':>9}"]
    for answer in answers:
        size = "unknown" if answer.size_bytes is None else decimal(answer.size_bytes)
        problem = "can't be read" if answer.place else "needs a --source"
        found = problem if answer.problem else f"{answer.files:>7,}  {size:>9}"
        lines += [f"{answer.name:<{width}}  {found}", f"    {answer.problem or answer.place}"]
    _print("\n".join(map(_safe, lines)))


def show_dry_runs(found: Sequence[DryRun], *, as_json: bool) -> None:
    """Print what runs would do, a block of lines each."""
    if as_json:
        summaries = [one.summary() for one in found]
        _print(orjson.dumps(summaries[0] if len(summaries) == 1 else {"datasets": summaries}).decode())
        return
    columns = None if sys.stdout.isatty() else _FILE_COLUMNS
    _print("\n\n".join(dry_run_text(one, columns) for one in found))


def show_built(built: Sequence[BuiltDataset], *, as_json: bool) -> None:
    """Print what became of several datasets: a line for each, and below it what is missing and how to get it."""
    if as_json:
        _print(
            orjson.dumps(
                {
                    "complete": all(one.report is not None for one in built),
                    "datasets": [one.summary() for one in built],
                }
            ).decode()
        )
        return
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
            most = ", ".join(f"{kind} {kinds[kind]:,}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)))
            lines.append(f"    {most}; 'datafetch status {shlex.quote(one.out)}' shows at which hosts")
        lines += [f"    {advice}" for advice in _advice(one.report)]
        if any(map(may_kind_pass, kinds)) and DATASETS[one.part.name].image_root is None:
            lines.append(f"    '{_retry_command(one.out)}' requests again what may have been temporary")
    _print("\n".join(_safe(line) for line in lines))


def _safe(line: str) -> str:
    """A line that may be indented, without control characters."""
    indent = line[: len(line) - len(line.lstrip())]
    return indent + to_printable(line.strip())


def _facts(status: Status) -> Table:
    """A table of single numbers, with one line for each thing that is counted."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(_plain(status.dataset), _plain(str(status.out)))
    table.add_row("state", _state(status))
    expected = "" if status.expected_images is None else f" of about {status.expected_images:,}"
    left = "" if status.open_images is None else f", {status.open_images:,} open"
    table.add_row("images", f"{status.ended:,}{expected}: {status.ok:,} ok, {status.failed:,} failed{left}")
    table.add_row(
        "samples",
        f"{status.samples:,} ended; published shards have {status.rows:,} rows, {status.dropped:,} were dropped",
    )
    table.add_row(
        "shards", f"{status.shards_published:,} of {status.shards:,} published, {status.shards_open:,} in progress"
    )
    table.add_row(
        "bytes",
        f"{decimal(status.fetched_bytes)} fetched, {decimal(status.published_bytes)} published, "
        f"{decimal(status.spooled_bytes)} spooled",
    )
    if status.images_per_s is not None and status.elapsed_s is not None:
        table.add_row("pace", _pace(status, status.images_per_s, status.elapsed_s))
    return table


def _state(status: Status) -> Text:
    if not status.at_work and status.has_open_retry:
        return Text(f"{status.state} in a retry; 'datafetch retry' completes it")
    if not status.at_work:
        return Text(status.state)
    processes = [f"process {one.pid} on {one.host}" for one in status.at_work[:_SHOWN_PROCESSES]]
    others = len(status.at_work) - len(processes)
    return _plain(f"{status.state} ({', '.join(processes)}{f' and {others:,} others' if others else ''})")


def _pace(status: Status, images_per_s: float, elapsed_s: float) -> str:
    parts = [f"{images_per_s:.1f} images/s", f"{_clock(elapsed_s)} {'so far' if status.at_work else 'in the last run'}"]
    if status.at_work:
        if status.open_images is not None and images_per_s > 0:
            parts.append(f"ETA {_clock(status.open_images / images_per_s)}")
        statistics = [one.statistics for one in status.at_work]
        open_requests, connections = (
            sum(one.open_requests for one in statistics),
            sum(one.connections for one in statistics),
        )
        parts.append(f"{open_requests:,}/{connections:,} requests open")
    return ", ".join(parts)


def _kinds(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("why images failed")
    table.add_column("images", justify="right")
    table.add_column("of all", justify="right")
    for kind, count in status.by_kind.items():
        table.add_row(_plain(kind), f"{count:,}", f"{count / status.ended:.1%}")
    return table


def _hosts(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("where most failed", no_wrap=True, overflow="ellipsis", max_width=_HOST_COLUMNS)
    table.add_column("at least" if status.is_pruned else "images", justify="right")
    table.add_column("why", overflow="fold")
    for host in status.hosts:
        table.add_row(Text(host.host or "(no host)"), f"{host.failed:,}", _why(host))
    return table


def _why(host: FailingHost) -> Text:
    return _plain(", ".join(f"{kind} {count:,}" for kind, count in host.by_kind.items()))


def _plain(text: str) -> Text:
    """Text without markup and control characters."""
    return Text(to_printable(text))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, min(seconds, _MAX_S)))))


def _print_lines(lines: Iterable[str]) -> None:
    _print("\n".join(map(one_line, lines)))


def _print(text: str) -> None:
    """Write to standard output. That its reader has exited is no error, because the work is done."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # closing it would fail and print an error
    except OSError as error:
        raise ResourceError.from_disk_error(error, "write the summary to standard output") from error
