"""Commit: a finished shard goes from its spool to the files that the trainer reads.

Rules: it runs in a process of its own, for it is CPU work of many seconds. What it writes is a function of the spool
alone, so doing it again after a crash gives the same bytes. Files are complete and on disk before they are renamed, the
rows first, the count after them, the ledger last: a ledger is there if and only if everything else is.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from datafetch.child import child_command
from datafetch.durable import publish
from datafetch.errors import ConservationError, DatafetchError, ResourceError
from datafetch.ledger import LedgerWriter
from datafetch.model import Dataset, Payload, Sink, Totals
from datafetch.sinks import PickleSink
from datafetch.spool import SpoolReader
from datafetch.state import State


@dataclass(frozen=True, slots=True)
class Output:
    """What all shards of a run have in common: how records become rows, and where they go."""

    dataset: Dataset
    state: State
    payload: Payload = Payload.BASE64


@dataclass(frozen=True, slots=True)
class Commit:
    """Which shard to commit, and how many samples it must have."""

    output: Output
    shard: str
    samples: int


async def commit_in_process(commit: Commit) -> Totals:
    """Commit a shard in a process of its own and return its books.

    Raises:
        ResourceError: The disk is full or can't be written.
        ConservationError: The books do not balance; nothing was published.
    """
    process = await asyncio.create_subprocess_exec(
        *child_command("datafetch.commit"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is for the parent alone,
    )
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


def _decode_answer(answer: bytes, status: int | None) -> Totals:
    if not answer and status is not None and status < 0:
        raise ResourceError(
            f"the process that writes shards was killed by signal {-status}; if that was for want of memory, "
            "free some and run the same command again"
        )
    if not answer:
        raise RuntimeError(f"the process that writes shards ended with status {status}; its traceback is above")
    fields: dict[str, Any] = orjson.loads(answer)
    match fields.pop("error", None):
        case None:
            return Totals(**fields)
        case "ResourceError":
            raise ResourceError(fields["message"])
        case _:
            raise ConservationError(fields["message"])


def main() -> None:
    """Commit the shard that standard input names, and answer on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    commit: Commit = pickle.loads(stdin.read(int.from_bytes(stdin.read(4), "little")))  # noqa: S301 - our parent's
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = orjson.dumps(commit_shard(commit))
    except DatafetchError as error:
        answer = orjson.dumps({"error": type(error).__name__, "message": str(error)})
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    # Unbuffered: a thread that holds the lock of sys.stdin would trip the interpreter's shutdown.
    while os.read(0, 1):
        pass
    os._exit(1)


def commit_shard(commit: Commit) -> Totals:
    """Write a finished shard from its spool, check the books, and publish it.

    A shard without a row leaves nothing but its ledger: the trainer would count an empty pickle as a shard.

    Raises:
        ResourceError: The disk is full or can't be written. The spool is untouched.
        ConservationError: The books do not balance. Nothing is published.
    """
    try:
        return _commit(commit)
    except OSError as error:
        raise ResourceError.of_disk(error, f"write shard {commit.shard}") from error


def _commit(commit: Commit) -> Totals:
    state = commit.output.state
    for folder in (state.unpublished, state.ledgers, state.out):
        folder.mkdir(parents=True, exist_ok=True)
    ledger_path = state.unpublished / f"{commit.shard}.parquet"
    sink: Sink = PickleSink(state.unpublished, commit.shard)
    with closing(sink):
        with LedgerWriter(ledger_path, commit.shard) as ledger:
            totals = _write(commit, sink, ledger)
        if totals.rows:
            for path in sink.files:
                publish(path, state.out / path.name)
        else:
            for path in sink.files:
                path.unlink()
                (state.out / path.name).unlink(missing_ok=True)
    publish(ledger_path, state.ledger(commit.shard))
    return totals


def _write(commit: Commit, sink: Sink, ledger: LedgerWriter) -> Totals:
    output = commit.output
    samples = rows = dropped = 0
    outcomes: Counter[str] = Counter()
    for spooled in SpoolReader(output.state.spool(commit.shard)).samples():
        if spooled.sample.position != samples:
            raise ConservationError(f"shard {commit.shard}: sample {samples} is missing or there twice")
        samples += 1
        ledger.write(spooled.lines)
        outcomes.update(line.outcome for line in spooled.lines)
        row = output.dataset.to_row(spooled.record(), output.payload)
        if row is None:
            dropped += 1
        else:
            rows += 1
            sink.write(row)
    sink.finish()
    written_bytes = sum(path.stat().st_size for path in sink.files) if rows else 0
    totals = Totals(samples, rows, dict(outcomes), written_bytes)
    _check_conservation(commit, totals, dropped=dropped, ledger_lines=ledger.lines)
    ledger.finish(totals)
    return totals


def _check_conservation(commit: Commit, totals: Totals, *, dropped: int, ledger_lines: int) -> None:
    """Nothing was lost, nothing was counted twice: not samples, not images."""
    if not commit.samples == totals.samples == totals.rows + dropped:
        raise ConservationError(
            f"shard {commit.shard}: {commit.samples} samples in the manifest, {totals.samples} ended, "
            f"{totals.rows} rows, {dropped} dropped"
        )
    if not totals.images == totals.ok + totals.failed == ledger_lines:
        raise ConservationError(
            f"shard {commit.shard}: {totals.images} images ended, {totals.ok} arrived, {totals.failed} failed, "
            f"{ledger_lines} lines in the ledger"
        )
