"""What is said of a report: what came of a run, why images failed, and what helps.

Rules: nothing is computed here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from datafetch.datasets import DATASETS
from datafetch.model.advice import ADVICE
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.outcome import OK, FailureKind, may_kind_pass
from datafetch.model.report import Report
from datafetch.model.sample import IdListResult
from datafetch.model.wording import counted, lasting
from datafetch.store.layout import OutputLayout

_COUNTERS: dict[str, tuple[str, str]] = {
    CounterName.BAD_LINES: ("bad line", "skipped"),
    CounterName.FILTERED: ("record", "left out by filters"),
    CounterName.FILLED_SIMILARITY: ("document", "got similarities of zero"),
    CounterName.RECORDS: ("document", "in the shards of the list"),
    CounterName.REFUSED: ("record", "refused for a file name or a form that can't be used"),
    CounterName.REPEATED_IDS: ("row", "left out because an earlier row has the same id"),
}
"""By name of the counter: what it counts, in the singular, and what happened to that."""

_SHOWN_CHOICES = 3


def report_lines(report: Report) -> list[str]:
    """What a run or a retry did, and what its output holds, as lines for people."""
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
    # images that were not requested are among the failed ones already
    if notes := [(name, count) for name, count in sorted(totals.notes.items()) if name != CounterName.SKIPPED]:
        lines.append(", ".join(_counter_text(name, count) for name, count in notes))
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
    return [*lines, *advice_lines(report), *last]


def _images(totals: ShardCounts) -> str:
    """How many images arrived and failed, and why."""
    why = most_first({kind: count for kind, count in totals.outcomes.items() if kind != OK})
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
    line = f"documents lost: {lost.count:,} ({most_first(lost.by_kind)})"
    shown = list(rows_by_keep_at_least.items())[:_SHOWN_CHOICES]
    if not shown:
        return line
    (images, rows), *others = shown
    more = "".join(f", {images}: {rows:,}" for images, rows in others)
    return f"{line}; with --keep-at-least {images} there would be at least {counted(rows, 'row')}{more}"


def most_first(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first."""
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def advice_lines(report: Report) -> Iterator[str]:
    """Say why the trainer's list lacks records, and how failed images can still be fetched."""
    retry = retry_command(report.out)
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
    if not report.totals.samples:
        yield "nothing was selected: check the source, the list of ids and the options that leave out records"
    if missing and root is not None:
        folder = os.path.normpath(Path(report.out) / root)
        yield (
            f"{counted(missing, 'image')} {'is' if missing == 1 else 'are'} not in {folder}: prepare the image sets "
            "with the same --root, or 'datafetch retry' those where images failed, and run the same command again"
        )
    yield from _lines_about_permissions(report, retry)
    is_retried = report.retried is not None or report.has_open_retry
    if not is_retried and root is None and any(map(may_kind_pass, failed)):
        yield f"'{retry}' requests again what may have been temporary"


def _lines_about_permissions(report: Report, retry: str) -> Iterator[str]:
    """Say which images failed for lack of a permission, and how they are fetched with it; or how all images failed."""
    alike = report.failed_alike
    if alike is not None and not report.permittable.get(alike.kind):
        yield alike.sentence(is_over=True)
    since = report.permitted_since
    if since is not None:
        kinds, options = ",".join(since.images), " ".join(since.options)
        images = counted(sum(since.images.values()), "image")
        yield f"{images} had failed before {options} was given: '{retry} --kinds {kinds} {options}' requests them again"
    for kind, advice in ADVICE.items():
        count = report.permittable.get(kind, 0) - (0 if since is None else since.images.get(kind, 0))
        if count > 0:
            fix = alike.advice or advice if alike is not None and alike.kind is kind else advice
            again = f"; '{retry} --kinds {kind}' asks whether they still are" if kind is FailureKind.OPTED_OUT else ""
            yield f"{counted(count, 'image')} failed as {kind}: '{retry} {fix.option}' {fix.effect}{again}"


def retry_command(out: str) -> str:
    """The command that requests failed images of an output again, quoted for the shell."""
    return f"datafetch retry {shlex.quote(out)}"


def _counter_text(name: str, count: int) -> str:
    if name not in _COUNTERS:
        return f"{count:,} {name}"
    thing, fate = _COUNTERS[name]
    return f"{counted(count, thing)} {fate}"
