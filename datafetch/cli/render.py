"""What commands print on standard output: lines for people, or one JSON object.

Rules: nothing is computed here. Text from the web, such as the name of a host, can't control the terminal.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datafetch.cli.dry_run import dry_run_text
from datafetch.cli.exit_code import one_line
from datafetch.cli.progress_line import waiting_text
from datafetch.datasets import DATASETS
from datafetch.errors import ResourceError
from datafetch.model.advice import ADVICE
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.outcome import OK, FailureKind, may_kind_pass
from datafetch.model.report import Report
from datafetch.model.sample import IdListResult
from datafetch.model.untrusted import to_printable
from datafetch.model.wording import clock, counted, lasting, sized
from datafetch.monitor.host_failures import FailingHost
from datafetch.monitor.recipe_status import DatasetStatus
from datafetch.monitor.status import RunState, Status
from datafetch.output.reshard.folder import Resharded
from datafetch.store.layout import OutputLayout
from datafetch.store.lock_holder import LockHolder
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
    CounterName.REFUSED: ("record", "refused for a file name or a form that can't be used"),
    CounterName.REPEATED_IDS: ("row", "left out because an earlier row has the same id"),
    CounterName.SKIPPED: ("image", "not requested because its document was lost"),
}
"""By name of the counter: what it counts, in the singular, and what happened to that."""

_HOST_COLUMNS = 40
_FILE_COLUMNS = 10_000  # of what is not a terminal: lines are whole
_SHOWN_CHOICES = 3
_SHOWN_PROCESSES = 4
_SHOWN_HOSTS = 5
_SHOWN_STATUSES = 8


def show_report(report: Report, *, as_json: bool) -> None:
    """Print the report of a run."""
    if as_json:
        _print(orjson.dumps(report.summary()).decode())
        return
    totals = report.totals
    lines = [
        (
            f"{report.dataset}: {totals.rows:,} of {counted(totals.samples, 'sample')}, "
            f"{counted(report.shards, 'shard')} in {report.out}"
        ),
        _images(totals),
        _this_run(report),
    ]
    if report.retried:
        lines.append(f"retried {report.retried:,}, {report.retried_arrived or 0:,} arrived")
    last = []
    if totals.lost is not None and totals.lost.count:
        lines.append(_lost_documents(totals.lost, report.rows_by_keep_at_least))
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
        lines += _ids(report.id_list_result)
    if totals.failed:
        last = [f"'datafetch failures {shlex.quote(report.out)}' lists {counted(totals.failed, 'failed image')}"]
    _print_lines([*lines, *_advice(report), *last])


def _images(totals: ShardCounts) -> str:
    """How many images arrived and failed, and why."""
    why = _most_first({kind: count for kind, count in totals.outcomes.items() if kind != OK})
    counts = [f"{totals.ok:,} ok"] if totals.ok else []
    if totals.failed:
        counts.append(f"{totals.failed:,} failed ({why})")
    return f"images: {', '.join(counts) or 'none'}"


def _this_run(report: Report) -> str:
    """What this run did; nothing is said of what it did not do."""
    arrived = report.totals.ok - report.reused
    parts = [f"{counted(arrived, 'image') if arrived else 'no image'} arrived in {lasting(report.elapsed_s)}"]
    if arrived:
        parts.append(f"{report.images_per_s:,.1f} images/s")
    if report.requests:
        parts.append(f"{counted(report.requests, 'request')}, at most {report.peak_open_requests:,} open")
    if report.reused:
        repeated = f" ({report.repeated:,} of URLs that were already requested)" if report.repeated else ""
        parts.append(f"{counted(report.reused, 'image')} reused{repeated}")
    return f"this run: {', '.join(parts)}"


def _ids(found: IdListResult) -> Iterator[str]:
    """How the ids of the list were found."""
    counts = [f"{found.wanted:,} wanted"]
    if found.not_found is None:
        counts.append("missing ones not counted (--limit)")
    elif found.not_found:
        counts.append(f"{found.not_found:,} not found")
    else:
        counts.append("all found")
    if found.missing_files:
        counts.append(f"{counted(found.missing_files, 'file')} missing")
    if found.out_of_range:
        counts.append(f"{found.out_of_range:,} beyond the end of their files")
    if found.duplicates:
        counts.append(counted(found.duplicates, "duplicate line"))
    yield f"ids: {', '.join(counts)}"
    if found.remark:
        yield f"ids: {found.remark}"


def _lost_documents(lost: LostDocuments, rows_by_keep_at_least: Mapping[int, int]) -> str:
    """Why documents were lost, and what another choice of the images that a row needs would give."""
    line = f"documents lost: {lost.count:,} ({_most_first(lost.by_kind)})"
    shown = list(rows_by_keep_at_least.items())[:_SHOWN_CHOICES]
    if not shown:
        return line
    (images, rows), *others = shown
    more = "".join(f", {images}: {rows:,}" for images, rows in others)
    return f"{line}; with --keep-at-least {images} there would be at least {counted(rows, 'row')}{more}"


def _most_first(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first."""
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def _advice(report: Report) -> Iterator[str]:
    """Say why the trainer's list lacks records, and how failed images can still be fetched."""
    retry = _retry_command(report.out)
    dataset = DATASETS.get(report.dataset)
    if dataset is not None and dataset.list_name is not None and report.totals.rows < report.totals.samples:
        yield f"why the trainer's list lacks records: {OutputLayout(Path(report.out)).dropped}"
    failed = sorted(kind for kind in report.totals.outcomes if kind not in (OK, FailureKind.NOT_REQUESTED))
    if report.has_open_retry:
        yield f"a retry was interrupted: '{retry}' completes it"
    if report.retried == 0 and failed:
        yield (
            "this retry had nothing to request, because all failures are of other kinds; "
            f"--kinds {','.join(failed)}{' (or some of them)' if len(failed) > 1 else ''} requests those as well"
        )
    missing = report.totals.outcomes.get(FailureKind.MISSING_MEMBER, 0)
    root = None if dataset is None else dataset.image_root
    if missing and root is not None:
        folder = os.path.normpath(Path(report.out) / root)
        yield (
            f"{counted(missing, 'image')} {'is' if missing == 1 else 'are'} not in {folder}: prepare the image sets "
            "with the same --root, or 'datafetch retry' those where images failed, and run the same command again"
        )
    alike = report.failed_alike
    if alike is not None and not report.permittable.get(alike.kind):
        yield alike.sentence(is_over=True)
    for kind, advice in ADVICE.items():
        count = report.permittable.get(kind, 0)
        if count:
            fix = alike.advice or advice if alike is not None and alike.kind is kind else advice
            yield f"{counted(count, 'image')} failed as {kind}: '{retry} {fix.option}' {fix.effect}"


def _retry_command(out: str) -> str:
    return f"datafetch retry {shlex.quote(out)}"


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
                f"{sized(made.total_bytes)}{'' if made.is_new else ', which existed already'}"
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


def show_status(status: Status, *, as_json: bool, shows_all_hosts: bool = False) -> None:
    """Print the status of a run; for people with the few hosts that have the most failures, or all that are known."""
    if as_json:
        _print(orjson.dumps(status.summary()).decode())
        return
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(_facts(status))
        if status.by_kind:
            console.print(Padding(_kinds(status), (1, 0, 0, 0)))
        if status.hosts:
            shown = status.hosts if shows_all_hosts else status.hosts[:_SHOWN_HOSTS]
            console.print(Padding(_hosts(shown, is_pruned=status.is_pruned), (1, 0, 0, 0)))
            if status.is_pruned:
                console.print("at least, as hosts with few failures are no longer counted when there are very many")
            if len(shown) < len(status.hosts):
                console.print(f"the next {len(status.hosts) - len(shown)} of them: --hosts")
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
        size = "unknown" if answer.size_bytes is None else sized(answer.size_bytes)
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
            lines.append(f"    {_most_first(kinds)}; 'datafetch status {shlex.quote(one.out)}' shows at which hosts")
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
    is_over = status.expected_images is None or status.state is RunState.COMPLETE
    expected = "" if is_over else f" of about {status.expected_images:,}"
    left = f", {status.open_images:,} open" if status.open_images and not is_over else ""
    table.add_row("images", f"{status.ended:,}{expected}: {status.ok:,} ok, {status.failed:,} failed{left}")
    table.add_row(
        "samples",
        f"{status.samples:,} ended; published shards have {status.rows:,} rows, {status.dropped:,} were dropped",
    )
    table.add_row(
        "shards", f"{status.shards_published:,} of {status.shards:,} published, {status.shards_open:,} in progress"
    )
    if status.equal is not None:
        epoch = status.equal
        table.add_row(
            "ranks",
            f"{epoch.world_size:,}, of {counted(epoch.samples_per_rank, 'sample')} each; an epoch uses {epoch.used:,}",
        )
    table.add_row(
        "bytes",
        f"{sized(status.fetched_bytes)} fetched, {sized(status.published_bytes)} published, "
        f"{sized(status.spooled_bytes)} spooled",
    )
    if status.images_per_s is not None and status.elapsed_s is not None:
        table.add_row("pace", _pace(status, status.images_per_s, status.elapsed_s))
    if status.waiting is not None:
        table.add_row("waiting", _plain(waiting_text(status.waiting)))
    return table


def _state(status: Status) -> Text:
    if status.at_work:
        processes = [f"process {one.pid} on {one.host}" for one in status.at_work[:_SHOWN_PROCESSES]]
        others = len(status.at_work) - len(processes)
        return _plain(f"{status.state} ({', '.join(processes)}{f' and {others:,} others' if others else ''})")
    parts = [f"{status.state}"]
    if status.state is RunState.INTERRUPTED and status.has_open_retry:
        parts[0] += " in a retry; 'datafetch retry' completes it"
    if status.holder is not None:
        parts.append(_holder_text(status.state, status.holder))
    if status.missing_shards:
        number, first = len(status.missing_shards), status.missing_shards[0]
        parts.append(
            f"{counted(number, 'shard')} of the output {'is' if number == 1 else 'are'} missing or changed, "
            f"{'the first is ' if number > 1 else ''}{first}"
        )
    if status.problem:
        parts.append(status.problem)
    return _plain("; ".join(parts))


def _holder_text(state: RunState, holder: LockHolder) -> str:
    text = f"{holder.name} has had the lock for {holder.held_for}"
    match state:
        case RunState.STARTING:
            return f"{text}, and has written no heartbeat yet"
        case RunState.UNRESPONSIVE:
            return f"{text}, but writes no heartbeat any more"
    return text if holder.is_here else f"{text}, unless it was killed, which can't be told from here"


def _pace(status: Status, images_per_s: float, elapsed_s: float) -> str:
    parts = [
        f"{images_per_s:,.1f} images/s",
        f"{lasting(elapsed_s)} {'so far' if status.at_work else 'in the last run'}",
    ]
    if status.at_work:
        if status.left_s is not None:
            parts.append(f"ETA {clock(status.left_s)}")
        open_requests = sum(one.statistics.open_requests for one in status.at_work)
        parts.append(f"{counted(open_requests, 'request')} open" if open_requests else "no request open")
    return ", ".join(parts)


def _kinds(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("why images failed")
    table.add_column("images", justify="right")
    table.add_column("of all", justify="right")
    table.add_column("" if not status.by_status else "HTTP status", overflow="fold")
    for kind, count in status.by_kind.items():
        codes = _codes(status) if kind == FailureKind.HTTP_STATUS else ""
        table.add_row(_plain(kind), f"{count:,}", f"{count / status.ended:.1%}", codes)
    return table


def _codes(status: Status) -> str:
    """How often each HTTP status came, the most frequent first."""
    codes = [f"{code} {count:,}" for code, count in status.by_status.items()]
    others = len(codes) - _SHOWN_STATUSES
    return " · ".join([*codes[:_SHOWN_STATUSES], *([counted(others, "other")] if others > 0 else [])])


def _hosts(hosts: Sequence[FailingHost], *, is_pruned: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("where most failed", no_wrap=True, overflow="ellipsis", max_width=_HOST_COLUMNS)
    table.add_column("at least" if is_pruned else "images", justify="right")
    table.add_column("why", overflow="fold")
    for host in hosts:
        table.add_row(Text(host.host or "(no host)"), f"{host.failed:,}", _why(host))
    return table


def _why(host: FailingHost) -> Text:
    return _plain(", ".join(f"{kind} {count:,}" for kind, count in host.by_kind.items()))


def _plain(text: str) -> Text:
    """Text without markup and control characters."""
    return Text(to_printable(text))


def _print_lines(lines: Iterable[str]) -> None:
    _print("\n".join(map(one_line, lines)))


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
