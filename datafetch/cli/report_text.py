"""What is said of a report: what came of a run, why images failed, and what helps.

Rules: nothing is computed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from datafetch.datasets import DATASETS
from datafetch.datasets.recipes import RECIPE
from datafetch.model.advice import ADVICE, advice_against
from datafetch.model.dataset import Dataset
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.lost_documents import LostDocuments
from datafetch.model.outcome import OK, FailureKind
from datafetch.model.report import Report
from datafetch.model.sample import IdListResult
from datafetch.model.wording import command_for, counted, lasting
from datafetch.output.formats import FORMATS, ShardFormat
from datafetch.output.training_list import list_name_of, trainers_list
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
_SHOWN_REASONS = 4


def report_lines(report: Report, *, is_demo: bool = False) -> list[str]:
    """What a run or a retry did, and what its output holds, as lines for people.

    Args:
        report: What it did.
        is_demo: Whether it was a demo, whose server has ended, so that nothing can be requested again.
    """
    totals = report.totals
    lines = [
        f"{report.dataset}: {totals.rows:,} of {counted(totals.samples, 'sample')}{_place(report)}",
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
        last = [failures_line(report)]
    return [*lines, *advice_lines(report, is_demo=is_demo), *last]


def _place(report: Report) -> str:
    """In how many shards they are, and where; of images in files only where, and of a list alone nothing."""
    dataset = DATASETS.get(report.dataset)
    if dataset is None or isinstance(FORMATS[dataset.output_format], ShardFormat):
        return f", {counted(report.shards, 'shard')} in {report.out}"
    return f" in {report.out}" if dataset.image_root is None else ""


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


def failures_line(report: Report) -> str:
    """How the failed images of an output are listed."""
    failed = report.totals.failed
    which = "the failed image" if failed == 1 else f"all {failed:,} failed images"
    return f"to list {which}: {command_for('failures', report.out)}"


def most_first(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first."""
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def advice_lines(report: Report, *, is_demo: bool = False) -> Iterator[str]:
    """Say where the trainer's list is, why it lacks records, and how failed images can still be fetched."""
    dataset = DATASETS.get(report.dataset)
    if dataset is not None and dataset.list_name is not None:
        yield _trainers_list(report, dataset)
    if not report.totals.samples:
        yield "nothing was selected: check the source, the list of ids and the options that leave out records"
    missing = report.totals.outcomes.get(FailureKind.MISSING_MEMBER, 0)
    root = None if dataset is None else dataset.image_root
    if missing and root is not None:
        folder = os.path.normpath(Path(report.out) / root)
        sets = [part.name for part in RECIPE if report.dataset in part.lists]
        yield (
            f"{counted(missing, 'image')} {'is' if missing == 1 else 'are'} not in {folder}: prepare "
            f"{', '.join(sets)} with the same --root ('datafetch retry' what failed there), and run the same command "
            "again; what their archives lack stays missing"
        )
    if root is None and not is_demo:
        yield from _lines_about_retries(report)


def _lines_about_retries(report: Report) -> Iterator[str]:
    """Say which failed images a retry requests again, and by which command; or why one had nothing to request."""
    retry = command_for("retry", report.out)
    failed = sorted(kind for kind in report.totals.outcomes if kind not in (OK, FailureKind.NOT_REQUESTED))
    if report.has_open_retry:
        yield f"a retry was interrupted; to complete it: {retry}"
    if report.retried == 0 and failed:
        yield (
            f"nothing was requested, because this retry leaves alone what failed ({_reasons(report.failures.failed)}); "
            f"to request it all the same: {retry} --kinds {','.join(failed)}"
        )
    alike = report.failed_alike
    is_for_lack_of_permission = alike is not None and bool(report.permittable.get(alike.kind))
    if alike is not None and not is_for_lack_of_permission:
        yield alike.sentence(is_over=True)
    yield from _lines_about_permissions(report, retry)
    if alike is not None and not is_for_lack_of_permission and alike.what_to_check:
        yield f"to request them again after that: {f'{retry} {alike.retry_options}'.rstrip()}"
        return
    retriable = report.failures.retriable
    if not report.has_open_retry and retriable:
        count = sum(retriable.values())
        images = "1 failed image again, which" if count == 1 else f"{count:,} failed images again, of which some"
        yield f"to request {images} may arrive later ({_reasons(retriable)}): {retry}"


def _trainers_list(report: Report, dataset: Dataset) -> str:
    """Where the trainer's list is, how many records it lacks, and where the reasons are."""
    layout, totals = OutputLayout(Path(report.out)), report.totals
    path = trainers_list(layout, list_name_of(layout, dataset))
    lacking = totals.samples - totals.rows
    if not lacking:
        return f"the trainer's list: {path}"
    records = f"{lacking:,} of {counted(totals.samples, 'record')}"
    if dataset.lists_images:  # of which a record may name several, and several records the same
        records = f"the records of {counted(lacking, 'image')}"
    return f"the trainer's list: {path}; it lacks {records}, reasons: {layout.dropped}"


def _lines_about_permissions(report: Report, retry: str) -> Iterator[str]:
    """Say which images failed for lack of a permission or of a way to the web, and how they are fetched with it."""
    since = report.permitted_since
    if since is not None:
        kinds, options = ",".join(since.images), " ".join(since.options)
        images = counted(sum(since.images.values()), "image")
        again = f"{retry} --kinds {kinds} {options}"
        yield f"{images} had failed before {options} was given; to request them again: {again}"
    for kind, advice in ADVICE.items():
        count = report.permittable.get(kind, 0) - (0 if since is None else since.images.get(kind, 0))
        if count > 0:
            fix = advice_against(kind, report.networks) or advice
            images = f"{counted(count, 'image')} failed as {kind}"
            yield f"{images}; {fix.option} {fix.effect}: {retry} {fix.option}"
            if kind is FailureKind.BLOCKED_ADDRESS and fix is advice:
                addresses = f"{command_for('failures', report.out)} --kinds {kind}"
                yield f"to see the networks that --allow-net would have to name: {addresses}"
            if kind is FailureKind.OPTED_OUT:
                yield f"{images}; to ask whether they still are: {retry} --kinds {kind}"


def _reasons(counts: Mapping[str, int]) -> str:
    """Counts of failures by reason, the most frequent first; of many reasons the first few."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    others = sum(count for _, count in ordered[_SHOWN_REASONS:])
    shown = [f"{reason}: {count:,}" for reason, count in ordered[:_SHOWN_REASONS]]
    return ", ".join([*shown, *([f"others: {others:,}"] if others else [])])


def _counter_text(name: str, count: int) -> str:
    if name not in _COUNTERS:
        return f"{count:,} {name}"
    thing, fate = _COUNTERS[name]
    return f"{counted(count, thing)} {fate}"
