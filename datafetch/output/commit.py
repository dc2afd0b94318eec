"""Commit a shard: turn its complete spool into the files that the trainer reads.

A commit is many seconds of CPU work, so it runs in a process of its own.

Theory of operation: a shard goes through three states, each of which is entered by one rename.

1. *In progress*: the files are written to ``unpublished/<shard>``, checked and brought to disk. They are a function of
   the spool alone (after a retry, of the spool and the published shard), so if the process is killed, the next run
   discards them and writes the same bytes again.
2. *Committed*: the folder is renamed to ``ready/<shard>``. From here on there is no way back: this process, or the next
   run (``complete_commits``), moves its files to their final paths. A file that is no longer in ``ready`` has been
   moved already and is skipped, so this can be interrupted and resumed anywhere.
3. *Published*: all files have been moved, in an order that is safe at each moment: rows before their count, and the
   ledger last. The existence of the ledger marks the shard as published, and only then may its spool be deleted.
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
    is_exhaustion,
)
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.output.formats import format_of
from datafetch.output.merge import CommittedSample, Output, merge_retry, merge_spool
from datafetch.output.row import OutputRow
from datafetch.process.child import child_command, start_failure
from datafetch.store.atomic import make_folder, publish, sync
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import LedgerWriter, ShardSummary, read_shard_counts
from datafetch.store.spool import SpoolWriter

_STARTED = b"\n"  # sent before the result, which is JSON
_ADVICE = "free resources or raise the limit ('ulimit -a' shows them), and run the same command again"
_ERRORS = {error.__name__: error for error in (ConfigurationError, ConservationError, ManifestError, ResourceError)}


@dataclass(frozen=True, slots=True)
class Commit:
    """A shard to commit.

    Attributes:
        output: How records become rows, and where they are written.
        shard: The shard's name.
        samples: The number of samples that the shard must have, whether they are retried or not.
        notes: What was counted while the manifest was scanned, by ``CounterName``; ignored in a retry, which keeps what
            the ledger has.
        row_numbers: Which of the shard's rows are selected, counted from 0; None selects all.
    """

    output: Output
    shard: str
    samples: int
    notes: Mapping[str, int] = field(default_factory=dict)
    row_numbers: frozenset[int] | None = None


CommitShard: TypeAlias = Callable[[Commit], Awaitable[ShardCounts]]
"""Commits a shard and returns its counts; raises the errors of ``commit_shard``."""


async def commit_in_process(commit: Commit) -> ShardCounts:
    """Commit a shard in a process of its own and return its counts.

    Raises:
        ResourceError: The disk is full or can't be written, or the process could not start or was killed.
        ConservationError: Samples or images were lost or counted twice; nothing was published.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *child_command("datafetch.output.commit"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is handled by the parent alone
        )
    except OSError as error:
        reason = start_failure(error)
        raise ResourceError(f"cannot start the process that writes shards: {reason}; {_ADVICE}") from error
    assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - both are pipes
    try:
        # Standard input stays open: when it is closed, the child knows that its parent has ended.
        request = pickle.dumps(commit)
        process.stdin.write(len(request).to_bytes(4, "little") + request)
        response = await process.stdout.read()
    finally:
        if process.returncode is None and not process.stdout.at_eof():
            process.kill()
        process.stdin.close()
        await process.wait()
    return _decode_response(response, process.returncode)


def _decode_response(response: bytes, status: int | None) -> ShardCounts:
    if response in (b"", _STARTED) and status is not None and status < 0:
        raise ResourceError(
            f"the process that writes shards was killed by signal {-status}; if it ran out of memory, "
            "free some and run the same command again"
        )
    if not response:  # it did not even start
        raise ResourceError(f"the process that writes shards could not start (see the messages above); {_ADVICE}")
    if response == _STARTED:
        raise RuntimeError(f"the process that writes shards ended with status {status}; its traceback is above")
    fields: dict[str, Any] = orjson.loads(response)
    if "error" in fields:
        raise _ERRORS[fields["error"]](fields["message"])
    return ShardCounts(**fields)


def main() -> None:
    """Commit the shard that is requested on standard input, and write the result to standard output."""
    for number in (signal.SIGINT, signal.SIGTERM):  # handled by the parent, even if sent to all of its processes
        signal.signal(number, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    length = int.from_bytes(stdin.read(4), "little")
    request = stdin.read(length)
    if not request or len(request) < length:  # the parent has ended
        return
    commit: Commit = pickle.loads(request)  # noqa: S301 - it comes from our parent
    with suppress(BrokenPipeError):  # the parent has ended, and this process is about to
        os.write(sys.stdout.fileno(), _STARTED)
        os.write(sys.stdout.fileno(), _respond(commit))


def _respond(commit: Commit) -> bytes:
    """Commit the shard, and return the result or the error as JSON."""
    try:
        # Not threading.Thread, whose start() blocks forever if the new thread runs out of memory before it signals.
        _thread.start_new_thread(_end_with_parent, ())
        return orjson.dumps(commit_shard(commit))
    except DatafetchError as error:
        failure = error
    except Exception as error:
        if not is_exhaustion(error):
            raise
        failure = ResourceError.from_exhaustion(error)
    return orjson.dumps(_error_fields(failure))


def _error_fields(error: DatafetchError) -> dict[str, str]:
    """An error with the name of its class, which decides the exit code, so that the parent can raise it again."""
    kind = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
    return {"error": kind, "message": str(error)}


def _end_with_parent() -> None:
    # Unbuffered, because the interpreter aborts at shutdown if a daemon thread holds the lock of sys.stdin.
    while os.read(0, 1):
        pass
    os._exit(1)


def commit_shard(commit: Commit) -> ShardCounts:
    """Write a shard from its complete spool, check it, and publish it.

    A shard without rows consists of its ledger alone, because the trainer would count an empty pickle as a shard.

    Raises:
        ResourceError: The disk is full or can't be written. The spool is unchanged.
        ConservationError: Samples or images were lost or counted twice. Nothing is published.
    """
    layout = commit.output.layout
    try:
        folder = layout.unpublished / commit.shard
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        totals = _write(commit, folder)
        if not totals.rows:
            for path in format_of(layout).files_of(layout, commit.shard):  # left over, without a ledger
                path.unlink(missing_ok=True)
        for path in folder.iterdir():
            sync(path)
        sync(folder)
        make_folder(layout.ready)
        folder.rename(layout.ready / commit.shard)
        sync(layout.ready)
        publish_ready(layout, commit.shard)
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"write shard {commit.shard} to {layout.out}") from error
    return totals


def publish_ready(layout: OutputLayout, shard: str) -> None:
    """Publish the files of a committed shard, the ledger last; those that were published before a kill are skipped."""
    ready = layout.ready / shard
    rows = layout.added if layout.reshard_record.exists() else layout.out
    format_of(layout).publish(layout, shard, ready, rows)
    for name, path in ((f"{shard}.spool", layout.failed(shard)), (f"{shard}.parquet", layout.ledger(shard))):
        if (ready / name).exists():
            make_folder(path.parent)
            publish(ready / name, path)
    ready.rmdir()


def complete_commits(layout: OutputLayout, shards: Collection[str] | None = None) -> None:
    """Publish those of these shards that earlier runs had committed when they were killed; None is all."""
    if layout.ready.exists():
        for folder in sorted(layout.ready.iterdir()):
            if shards is None or folder.name in shards:
                publish_ready(layout, folder.name)


def _write(commit: Commit, folder: Path) -> ShardCounts:
    output, shard = commit.output, commit.shard
    retry_filter = output.retry and output.retry.retry_filter
    samples = merge_retry(output, shard, retry_filter) if retry_filter else merge_spool(output, shard)
    tally = _ShardTally(commit)
    writer = format_of(output.layout).open_writer(output.layout, shard, folder, is_retry=output.retry is not None)
    with (
        closing(writer),
        LedgerWriter(folder / f"{shard}.parquet", shard) as ledger,
        SpoolWriter(folder / f"{shard}.spool") as failed,
    ):
        for committed in _select_rows(samples, commit.row_numbers):
            tally.add(committed)
            ledger.write(committed.lines)
            failed.write(*committed.failed)
            if isinstance(committed.row, OutputRow):
                writer.write_row(committed.row)
            elif committed.row is not None:
                writer.copy_row(committed.row)
        writer.finish()
        writer.check(tally.own_rows)
        summary = tally.summarize(writer.written_bytes, ledger.lines)
        ledger.finish(summary)
    return summary.totals


def _select_rows(samples: Iterable[CommittedSample], row_numbers: frozenset[int] | None) -> Iterator[CommittedSample]:
    """All samples, but without the rows that are not selected."""
    if row_numbers is None:
        yield from samples
        return
    rows = 0
    for committed in samples:
        is_selected = not committed.has_row or rows in row_numbers
        rows += committed.has_row
        yield committed if is_selected else replace(committed, row=None, has_row=False, failed=())


class _ShardTally:
    """Counts the samples and images of a shard, and checks that none was lost or counted twice."""

    def __init__(self, commit: Commit) -> None:
        self.own_rows = 0
        self._commit = commit
        self._has_row: list[bool] = []
        self._is_own: list[bool] = []
        self._lines = 0
        self._skipped = 0
        self._bad_lines = 0
        self._outcomes: Counter[str] = Counter()

    def add(self, committed: CommittedSample) -> None:
        """Count the next sample.

        Raises:
            ConservationError: It is not the next sample of the shard.
        """
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

    def summarize(self, written_bytes: int, ledger_lines: int) -> ShardSummary:
        """The summary of the shard, once all samples have been added.

        Args:
            written_bytes: The size of the shard's files.
            ledger_lines: The number of lines that were written to the ledger.

        Raises:
            ConservationError: Samples or images were lost or counted twice.
        """
        shard, expected = self._commit.shard, self._commit.samples
        totals = ShardCounts(len(self._has_row), sum(self._has_row), dict(self._outcomes), written_bytes, self._notes())
        if totals.samples != expected:
            raise ConservationError(
                f"shard {shard}: {totals.samples} of the manifest's {expected} samples were processed"
            )
        if not totals.images == totals.ok + totals.failed == self._lines == ledger_lines:
            raise ConservationError(
                f"shard {shard}: {totals.images} images were processed, {totals.ok} arrived, {totals.failed} failed, "
                f"{ledger_lines} lines in the ledger"
            )
        retry = self._commit.output.retry
        number = 0 if retry is None else retry.number
        return ShardSummary(totals, np.array(self._has_row, np.bool_), np.array(self._is_own, np.bool_), number)

    def _notes(self) -> dict[str, int]:
        """The counts besides samples and images; a retry takes those of the manifest's scan from the ledger."""
        output, notes = self._commit.output, self._commit.notes
        if output.retry is not None:
            notes = read_shard_counts(output.layout.ledger(self._commit.shard)).notes
        counted = Counter({name: count for name, count in notes.items() if name != CounterName.NOT_ASKED})
        counted[CounterName.NOT_ASKED.value] = self._skipped
        counted[CounterName.BAD_LINES.value] += self._bad_lines
        return {str(name): count for name, count in counted.items() if count}
