"""Copy the rows of pickle shards into new shards, in a different order, without ever holding a shard in memory.

Rules: the sources are never changed. Memory holds 20 bytes per row and two buffers of rows.

Theory of operation: the caller gives each row of each source its position among all rows of the new set; a row with a
negative position is left out. The sources are read twice, from the first to the last:

1. *Measure*: the lengths of all frames are read. They determine the sizes of the new shards, and with them the file and
   offset of every row (``ReshardWriter``).
2. *Copy*: each row is written directly to its offset, whatever has been written around it. Rows are buffered and
   written shard by shard, so that a file is not opened for each row. While a thread writes one buffer, the next one is
   read and its rows are decoded, which takes as long.
3. *Check*: the new shards are read back and compared with the measured lengths, several at a time, while they are
   brought to disk.

All of this happens in the folder ``resharding``, which the trainer does not see, until ``swap.mark_complete`` renames
it. A journal records how many sources are copied and on disk. After an interruption, the work resumes with the first
source that the journal does not list, and rows that were written already are written again: the same bytes to the same
offsets. The journal also identifies the sources, the plan and the positions. If any of them differs, it is a different
set, and the folder is emptied first; if a source changes while it is copied, the copy stops with an error.
"""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from datafetch.errors import ConservationError, ManifestError, ResourceError, raise_if_exhausted
from datafetch.model.observers import SafeObserver
from datafetch.model.statistics import ReshardProgress, ReshardStage
from datafetch.output.formats import COUNT_SUFFIX, MAX_FRAME_BYTES, decode_row, frame_sizes, read_frames
from datafetch.output.reshard.journal import Journal, copy_identity
from datafetch.output.reshard.plan import Int64s, Plan, Source, fingerprint
from datafetch.output.reshard.ranks import shard_sizes
from datafetch.output.reshard.record import ReshardRecord
from datafetch.output.reshard.shard_writer import ReshardWriter, UInt32s
from datafetch.output.reshard.swap import RECORD, SHARDS, complete_swap, mark_complete
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound

_BUFFER_BYTES = 16 << 20  # rows for a quarter of the shards of a large set, so that few files are opened for one row
_CHECKING_THREADS = 4  # the interpreter's lock is free while a file is read and its checksum is computed
_ROWS_PER_REPORT = 10_000  # between two reports while rows are measured


@dataclass(frozen=True, slots=True)
class ProgressMonitor:
    """Observes the work from outside, and can stop it.

    Attributes:
        on_progress: Called for every buffer, in the thread that calls ``reshard_rows``. If it raises an exception, that
            is logged, and it is not called again.
        stop: Once it is set, the work stops after the current buffer; what has been done is kept.
        journal_interval_s: The least time between two updates of the journal, each of which syncs all shards to disk.
        at_hand: Has the content of a source on this machine while it is read.
    """

    on_progress: Callable[[ReshardProgress], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    journal_interval_s: float = 10.0
    at_hand: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext()
    _observer_guard: SafeObserver = field(
        default_factory=lambda: SafeObserver("an observer"), init=False, repr=False, compare=False
    )

    def report(self, progress: ReshardProgress) -> None:
        """Report progress, and stop if that was requested.

        Raises:
            _StoppedError: ``stop`` is set.
        """
        if not self._observer_guard.has_failed:
            with self._observer_guard:
                self.on_progress(progress)
        if self.stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """The caller asked to stop."""


def reshard_rows(
    layout: OutputLayout,
    sources: Sequence[Source],
    *,
    plan: Plan,
    samples: Mapping[str, str] | None = None,
    made_from: Sequence[list[str | int]] = (),
    monitor: ProgressMonitor | None = None,
) -> bool:
    """Write the rows of all sources as new shards, and replace the output by them.

    Args:
        layout: The paths of the output; its lock is held, and ``swap.complete_swap`` has been called.
        sources: The shards to read, which may be those of the output itself. Together, their positions that are not
            negative are the numbers 0 to N - 1.
        plan: How they are resharded.
        samples: What a run records of the samples (``ReshardRecord.samples``).
        made_from: What the command ``reshard`` records of the source (``ReshardRecord.made_from``).
        monitor: Observes the work, and can stop it.

    Returns:
        True when it is done; False if it was stopped. The same call resumes it.

    Raises:
        ConfigurationError: There are too few rows for this number of ranks.
        ManifestError: A source is damaged, or does not hold as many rows as it should.
        ResourceError: The disk is full or can't be written, or no thread can be started; the same call resumes.
    """
    monitor = monitor or ProgressMonitor()
    shard_sizes(sum(source.copied_rows for source in sources), plan.ranks)  # refuse too few rows early
    try:
        made_of = copy_identity(sources, plan)  # first, to notice if a source changes while it is measured
        writer = ReshardWriter(layout.resharding / SHARDS, _measure(sources, monitor), plan.ranks)
        journal = Journal(layout.resharding, made_of)
        _refuse_full_disk(layout, writer)
        writer.write_opcodes_and_counts()
        _copy(sources, writer, journal, monitor)
        checksums = _check_and_sync(writer, journal, monitor, sources=len(sources))
        record = ReshardRecord(
            **plan.identity_fields(),
            files=writer.files(),
            crc32=checksums,
            samples=dict(samples or {}),
            made_from=list(made_from),
            replaces=_replaced(layout, sources),
        )
        write_atomically(layout.resharding / RECORD, orjson.dumps(record.to_json(), option=orjson.OPT_INDENT_2))
        mark_complete(layout)
    except _StoppedError:
        return False
    except OSError as error:
        raise ResourceError.from_disk_error(error, "reshard the output") from error
    except RuntimeError as error:  # no thread can be started
        raise_if_exhausted(error)
        raise
    complete_swap(layout)
    return True


def _replaced(layout: OutputLayout, sources: Sequence[Source]) -> list[str]:
    """The shards of the output that the new ones replace: the sources, and those that are damaged and can't be one."""
    before = read_if_sound(layout.reshard_record, ReshardRecord)
    names = {source.path.stem for source in sources if source.path.parent == layout.out}
    return sorted(names if before is None else names | before.files.keys())


def _measure(sources: Sequence[Source], monitor: ProgressMonitor) -> UInt32s:
    """The length of each row's frame, by the row's new position."""
    total_rows = sum(source.rows for source in sources)
    frame_bytes = np.zeros(sum(source.copied_rows for source in sources), np.uint32)
    measured = 0
    for source in sources:
        with monitor.at_hand(source.path):
            lengths = np.fromiter(_measured_lengths(source, measured, total_rows, monitor), np.int64)
        if len(lengths) != source.rows:
            raise ManifestError(f"{source.path} holds {len(lengths):,} rows, its {COUNT_SUFFIX} says {source.rows:,}")
        if source.rows and lengths.max() > MAX_FRAME_BYTES:
            raise ManifestError(f"{source.path} holds a row of more than 4 GiB")
        is_copied = source.positions >= 0
        frame_bytes[source.positions[is_copied]] = lengths[is_copied]
        measured += source.rows
    if not frame_bytes.all():
        raise ConservationError("two rows were given the same position in the new shards")
    return frame_bytes


def _measured_lengths(source: Source, before: int, total_rows: int, monitor: ProgressMonitor) -> Iterator[int]:
    with _naming_source(source.path):
        for row, length in enumerate(frame_sizes(source.path)):
            if row % _ROWS_PER_REPORT == 0:
                monitor.report(ReshardProgress(ReshardStage.MEASURE, before + row, total_rows))
            yield length


@contextmanager
def _naming_source(path: Path) -> Iterator[None]:
    """Turn faults of a source that show only when its rows are decoded into errors that name it."""
    try:
        yield
    except (ValueError, RecursionError, OverflowError, pickle.PicklingError) as error:
        raise ManifestError(f"{path}: {error}") from error


def _refuse_full_disk(layout: OutputLayout, writer: ReshardWriter) -> None:
    _refuse_too_small(layout.state_folder, writer.total_bytes - _taken_bytes(writer.folder))
    if layout.out.exists() and layout.out.stat().st_dev != layout.state_folder.stat().st_dev:
        _refuse_too_small(layout.out, writer.total_bytes - _taken_bytes(layout.out))


def _taken_bytes(folder: Path) -> int:
    """The disk space that the files in a folder take; unfinished shards are sparse."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*"))


def _refuse_too_small(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"resharding needs {needed_bytes:,} more bytes in {folder}, where {free_bytes:,} are free; "
            "free some space, or choose an output on another filesystem, and run the same command again"
        )


def _copy(sources: Sequence[Source], writer: ReshardWriter, journal: Journal, monitor: ProgressMonitor) -> None:
    rows = sum(source.copied_rows for source in sources[: journal.done])
    copied_bytes = 0
    journal_time_s = time.monotonic()
    with _threads(1) as thread:
        writing = thread.submit(lambda: None)
        for number, source in enumerate(sources[journal.done :], journal.done):
            with monitor.at_hand(source.path):
                for frames, positions in _buffers(source):
                    if not writer.have_lengths(positions, frames):
                        raise _changed(source)
                    writing.result()  # so there are two buffers at most: one that is written, and one that is filled
                    writing = thread.submit(writer.write, frames, positions)
                    rows += len(frames)
                    copied_bytes += sum(map(len, frames))
                    monitor.report(ReshardProgress(ReshardStage.COPY, rows, writer.rows, copied_bytes))
            if fingerprint(source.path) != journal.made_of["sources"][number]:
                raise _changed(source)
            if time.monotonic() - journal_time_s >= monitor.journal_interval_s:
                writing.result()
                _sync(writer, journal, number + 1)
                journal_time_s = time.monotonic()
        writing.result()


def _sync(writer: ReshardWriter, journal: Journal, done: int) -> None:
    writer.sync()
    journal.record(done)


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads, and wait for them at the end; tasks that have not begun by then are dropped."""
    threads = ThreadPoolExecutor(number)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _changed(source: Source) -> ManifestError:
    return ManifestError(
        f"{source.path} changed while it was read; wait until it is complete, and run the same command again"
    )


def _buffers(source: Source) -> Iterator[tuple[list[bytes], Int64s]]:
    """The frames of a source that are not left out, in buffers, with their positions."""
    positions = source.positions[source.positions >= 0]
    frames: list[bytes] = []
    first = held_bytes = 0
    with _naming_source(source.path):
        for frame, position in zip(read_frames(source.path), source.positions, strict=True):
            if position < 0:
                continue
            decode_row(frame)  # the trainer will unpickle it, so anything but plain values must not get further
            frames.append(frame)
            held_bytes += len(frame)
            if held_bytes >= _BUFFER_BYTES:
                yield frames, positions[first : first + len(frames)]
                first += len(frames)
                frames, held_bytes = [], 0
    if frames:
        yield frames, positions[first:]


def _check_and_sync(
    writer: ReshardWriter, journal: Journal, monitor: ProgressMonitor, *, sources: int
) -> dict[str, int]:
    """Read the new shards back, and check that they are as planned, while they are brought to disk.

    Returns:
        The CRC-32 of each shard's rows file, by the shard's name. By now all shards are on disk, and the journal says
        that all sources are copied.

    Raises:
        ResourceError: One is not as planned; the journal is reset, so that all rows are copied again.
    """
    rows = 0
    checksums = {}
    with _threads(1 + _CHECKING_THREADS) as threads:
        syncing = threads.submit(_sync, writer, journal, sources)
        for shard, checksum in enumerate(threads.map(writer.checksum, range(len(writer)))):
            if not writer.is_correct(shard):
                syncing.result()
                journal.record(0)
                raise ResourceError(
                    f"{writer.folder} does not hold what was written to it; check the disk, and run the same command "
                    "again"
                )
            rows += writer.rows_of(shard)
            checksums[writer.name_of(shard)] = checksum
            monitor.report(ReshardProgress(ReshardStage.CHECK, rows, writer.rows))
        syncing.result()
    return checksums
