"""Commit: a finished shard goes from its spool to the files that the trainer reads.

Rules: it runs in a process of its own, for it is CPU work of many seconds. What it writes is a function of the spool
alone (and, after a retry, of what the shard was), so doing it again after a crash gives the same bytes. A shard's files
are written, checked and on disk before the folder they lie in is renamed to ``ready``; from then on the shard is
committed, and this process or the next run puts the rest in place: the rows first, then the count, the ledger last.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import pickle
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import orjson

from datafetch.errors import (
    ConfigurationError,
    ConservationError,
    DatafetchError,
    ManifestError,
    ResourceError,
    is_want,
)
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.formats import format_of
from datafetch.output.merge import CommittedSample, Output, merge_retry, merge_spool
from datafetch.output.row import OutputRow
from datafetch.process.child import child_command, why_not_started
from datafetch.store.atomic import make_folder, publish, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import LedgerWriter, ShardSummary, read_shard_counts
from datafetch.store.spool import SpoolWriter

_BEGUN = b"\n"  # in front of the answer, which is JSON
_AGAIN = "free resources or raise the limit ('ulimit -a' shows them), and run the same command again"
_ERRORS = {error.__name__: error for error in (ConfigurationError, ConservationError, ManifestError, ResourceError)}


@dataclass(frozen=True, slots=True)
class Commit:
    """Which shard to commit.

    Attributes:
        output: How records become rows, and where they go.
        shard: Its name.
        samples: How many it must have: all that the manifest gives it, retried or not.
        notes: What was counted when its manifest was looked through; a retry keeps what was.
        row_numbers: Which of its rows are wanted, counted from 0 in their order; None is all.
    """

    output: Output
    shard: str
    samples: int
    notes: Mapping[str, int] = field(default_factory=dict)
    row_numbers: frozenset[int] | None = None


CommitShard: TypeAlias = Callable[[Commit], Awaitable[ShardCounts]]
"""Writes a finished shard and returns its counts; raises what ``commit_shard`` raises."""


async def commit_in_process(commit: Commit) -> ShardCounts:
    """Commit a shard in a process of its own and return its books.

    Raises:
        ResourceError: The disk is full or can't be written.
        ConservationError: The books do not balance; nothing was published.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *child_command("datafetch.output.commit"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for the parent alone
        )
    except OSError as error:
        raise ResourceError(
            f"cannot start the process that writes shards: {why_not_started(error)}; {_AGAIN}"
        ) from error
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
    try:
        # Standard input stays open: its end tells the child that its parent is gone.
        order = pickle.dumps(commit)
        process.stdin.write(len(order).to_bytes(4, "little") + order)
        answer = await process.stdout.read()
    finally:
        if process.returncode is None and not process.stdout.at_eof():
            process.kill()
        process.stdin.close()
        await process.wait()
    return _decode_answer(answer, process.returncode)


def _decode_answer(answer: bytes, status: int | None) -> ShardCounts:
    if answer in (b"", _BEGUN) and status is not None and status < 0:
        raise ResourceError(
            f"the process that writes shards was killed by signal {-status}; if it ran out of memory, "
            "free some and run the same command again"
        )
    if not answer:  # not even the sign that it has started
        raise ResourceError(f"the process that writes shards could not start (see the messages above); {_AGAIN}")
    if answer == _BEGUN:
        raise RuntimeError(f"the process that writes shards ended with status {status}; its traceback is above")
    fields: dict[str, Any] = orjson.loads(answer)
    if "error" in fields:
        raise _ERRORS[fields["error"]](fields["message"])
    return ShardCounts(**fields)


def main() -> None:
    """Commit the shard that standard input names, and answer on standard output."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent alone, also where all of its processes get them
        signal.signal(number, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    length = int.from_bytes(stdin.read(4), "little")
    order = stdin.read(length)
    if not order or len(order) < length:  # the parent is gone already
        return
    commit: Commit = pickle.loads(order)  # noqa: S301 - our parent's
    with suppress(BrokenPipeError):  # the parent is gone, and this process about to be
        os.write(sys.stdout.fileno(), _BEGUN)
        os.write(sys.stdout.fileno(), _answer(commit))


def _answer(commit: Commit) -> bytes:
    """Commit, and say in JSON what came of it."""
    try:
        # Not threading.Thread, whose start waits for ever for a thread that finds no memory for its first step.
        _thread.start_new_thread(_end_with_parent, ())
        return orjson.dumps(commit_shard(commit))
    except DatafetchError as error:
        failure = error
    except Exception as error:
        if not is_want(error):
            raise
        failure = ResourceError.of_want(error)
    return orjson.dumps(_refusal(failure))


def _refusal(error: DatafetchError) -> dict[str, str]:
    """An error as its parent raises it again: of the kind that decides the exit code."""
    kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
    return {"error": kind, "message": str(error)}


def _end_with_parent() -> None:
    # Unbuffered: a thread that holds the lock of sys.stdin would trip the interpreter's shutdown.
    while os.read(0, 1):
        pass
    os._exit(1)


def commit_shard(commit: Commit) -> ShardCounts:
    """Write a finished shard from its spool, check the books, and publish it.

    A shard without a row leaves nothing but its ledger: the trainer would count an empty pickle as a shard.

    Raises:
        ResourceError: The disk is full or can't be written. The spool is untouched.
        ConservationError: The books do not balance. Nothing is published.
    """
    layout = commit.output.layout
    try:
        folder = layout.unpublished / commit.shard
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        totals = _write(commit, folder)
        if not totals.rows:
            for path in format_of(layout).files_of(layout, commit.shard):  # of an earlier run, whose ledger is gone
                path.unlink(missing_ok=True)
        for path in folder.iterdir():
            sync(path)
        sync(folder)
        make_folder(layout.ready)
        folder.rename(layout.ready / commit.shard)
        sync(layout.ready)
        put_in_place(layout, commit.shard)
    except OSError as error:
        raise ResourceError.of_disk(error, f"write shard {commit.shard} to {layout.out}") from error
    return totals


def put_in_place(layout: OutputLayout, shard: str) -> None:
    """Publish what is ready of a shard, the ledger last: all of it, or what a run that was killed here left of it."""
    ready = layout.ready / shard
    rows = layout.added if layout.equal.exists() else layout.out
    format_of(layout).publish(layout, shard, ready, rows)
    for name, path in ((f"{shard}.spool", layout.failed(shard)), (f"{shard}.parquet", layout.ledger(shard))):
        if (ready / name).exists():
            make_folder(path.parent)
            publish(ready / name, path)
    ready.rmdir()


def complete_commits(layout: OutputLayout, shards: Collection[str] | None = None) -> None:
    """Put in place what runs that were killed had ready of these shards; None is all."""
    if layout.ready.exists():
        for folder in sorted(layout.ready.iterdir()):
            if shards is None or folder.name in shards:
                put_in_place(layout, folder.name)


def _write(commit: Commit, folder: Path) -> ShardCounts:
    output, shard = commit.output, commit.shard
    wanted = output.retry and output.retry.wanted
    samples = merge_retry(output, shard, wanted) if wanted else merge_spool(output, shard)
    bookkeeper = _Bookkeeper(commit)
    writer = format_of(output.layout).open_writer(output.layout, shard, folder, is_retry=output.retry is not None)
    with (
        closing(writer),
        LedgerWriter(folder / f"{shard}.parquet", shard) as ledger,
        SpoolWriter(folder / f"{shard}.spool") as failed,
    ):
        for committed in _wanted(samples, commit.row_numbers):
            bookkeeper.enter(committed)
            ledger.write(committed.lines)
            failed.write(*committed.failed)
            if isinstance(committed.row, OutputRow):
                writer.write_row(committed.row)
            elif committed.row is not None:
                writer.copy_row(committed.row)
        writer.finish()
        writer.check(bookkeeper.own_rows)
        books = bookkeeper.balance(writer.written_bytes, ledger.lines)
        ledger.finish(books)
    return books.totals


def _wanted(samples: Iterable[CommittedSample], row_numbers: frozenset[int] | None) -> Iterator[CommittedSample]:
    """The samples, those without a row whose rows are not wanted."""
    if row_numbers is None:
        yield from samples
        return
    rows = 0
    for committed in samples:
        is_wanted = not committed.has_row or rows in row_numbers
        rows += committed.has_row
        yield committed if is_wanted else replace(committed, row=None, has_row=False, failed=())


class _Bookkeeper:
    """Counts samples and images as they are settled, and sees that nothing was lost and nothing counted twice."""

    def __init__(self, commit: Commit) -> None:
        self.own_rows = 0
        self._commit = commit
        self._has_row: list[bool] = []
        self._is_own: list[bool] = []
        self._lines = 0
        self._skipped = 0
        self._bad_lines = 0
        self._outcomes: Counter[str] = Counter()

    def enter(self, committed: CommittedSample) -> None:
        """Take the next sample into the books."""
        position = len(self._has_row)
        if committed.position != position:
            raise ConservationError(f"shard {self._commit.shard}: sample {position} is missing or there twice")
        self._has_row.append(committed.has_row)
        self._is_own.append(committed.row is not None)
        self.own_rows += committed.row is not None
        self._lines += len(committed.lines)
        self._outcomes.update(line.outcome for line in committed.lines)
        self._skipped += sum(line.is_skipped for line in committed.lines)
        self._bad_lines += committed.is_bad_line

    def balance(self, written_bytes: int, ledger_lines: int) -> ShardSummary:
        """Close the books.

        Raises:
            ConservationError: They do not balance: samples or images were lost or counted twice.
        """
        shard, expected = self._commit.shard, self._commit.samples
        totals = ShardCounts(len(self._has_row), sum(self._has_row), dict(self._outcomes), written_bytes, self._notes())
        if totals.samples != expected:
            raise ConservationError(f"shard {shard}: {totals.samples} samples ended of {expected} in the manifest")
        if not totals.images == totals.ok + totals.failed == self._lines == ledger_lines:
            raise ConservationError(
                f"shard {shard}: {totals.images} images ended, {totals.ok} arrived, {totals.failed} failed, "
                f"{ledger_lines} lines in the ledger"
            )
        retry = self._commit.output.retry
        number = 0 if retry is None else retry.number
        return ShardSummary(totals, np.array(self._has_row, np.bool_), np.array(self._is_own, np.bool_), number)

    def _notes(self) -> dict[str, int]:
        """What was counted besides; a retry has not looked through the manifest again."""
        output, notes = self._commit.output, self._commit.notes
        if output.retry is not None:
            notes = read_shard_counts(output.layout.ledger(self._commit.shard)).notes
        counted = Counter({name: count for name, count in notes.items() if name != CounterName.NOT_ASKED})
        counted[CounterName.NOT_ASKED.value] = self._skipped
        counted[CounterName.BAD_LINES.value] += self._bad_lines
        return {str(name): count for name, count in counted.items() if count}
