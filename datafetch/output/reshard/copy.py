"""Rows of some pickle shards into others, equal ones, in another order, without ever holding a shard.

Rules: sources are read once to measure their rows and once to copy them, in order, and are never changed. Where a row
goes follows from the lengths of all rows, so each is written to its place at once, whatever comes before it. Memory
holds 20 bytes a row and one buffer. A journal says which sources are in; what a killed process wrote after that is
written again, byte for byte. All of it happens in ``state.resharding``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from datafetch.errors import ConservationError, ManifestError, ResourceError
from datafetch.model.bounds import Count
from datafetch.model.observers import SafeObserver
from datafetch.model.statistics import Progress, Stage
from datafetch.output.formats import MOST_FRAME_BYTES, decode_row, frame_sizes, read_frames
from datafetch.output.reshard.ranks import Ranks, equal_sizes
from datafetch.output.reshard.shard_writer import Int64s, ShardWriter, UInt32s
from datafetch.output.reshard.swap import RECORD, SHARDS, decide, finish
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound

_BUFFER_BYTES = 32 << 20  # rows of half the shards of a large set at once, so that files are not opened for one row
_LOOK_ROWS = 10_000  # between two looks at whether to stop, while rows are measured


@dataclass(frozen=True, slots=True)
class ProgressMonitor:
    """Who looks on from outside.

    Attributes:
        tell: Is called with every buffer, from the thread that works; when it raises something, that is logged as an
            error, and it is not called any more.
        stop: Once it is set, the work ends with the buffer in hand; what is done is kept.
        journal_interval_s: Between two notes in the journal, at least: for each, all shards are brought to disk.
    """

    tell: Callable[[Progress], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    journal_interval_s: float = 10.0
    _unheeded: SafeObserver = field(
        default_factory=lambda: SafeObserver("an observer"), init=False, repr=False, compare=False
    )

    def look(self, progress: Progress) -> None:
        """Tell how far it is.

        Raises:
            _StoppedError: It is to end here.
        """
        if not self._unheeded.has_failed:
            with self._unheeded:
                self.tell(progress)
        if self.stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """The caller asked to stop."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A pickle shard to read.

    Attributes:
        path: The ``.pkl`` file.
        rows: How many it must hold.
        places: For each row, where it goes, from 0 among all rows of all sources; -1 passes it over.
    """

    path: Path
    rows: int
    places: Int64s

    @property
    def taken_rows(self) -> int:
        """How many of them go anywhere."""
        return int((self.places >= 0).sum())


@dataclass(frozen=True, slots=True)
class Plan:
    """What the equal shards are to be.

    Attributes:
        ranks: Who will read them.
        shuffle: Seed of the order that the places were made with; None where rows kept theirs.
    """

    ranks: Ranks
    shuffle: int | None

    def identity_fields(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "world_size": self.ranks.world_size,
            "batch": self.ranks.batch,
            "group": self.ranks.group,
            "shuffle": self.shuffle,
        }


def order(rows: int, seed: int | None) -> Int64s:
    """The place of each row: its own, or with a seed a random one.

    The same for ever: NumPy promises the raw numbers of a bit generator, and what a stable sort makes of them; of
    ``Generator.permutation`` it promises nothing (NEP 19).
    """
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    return np.argsort(np.random.PCG64(seed).random_raw(rows), kind="stable")


def fingerprint(path: Path) -> list[str | int]:
    """What tells a source from another, for JSON: name, size, and time of the last change in nanoseconds."""
    status = path.stat()
    name = os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")
    return [name, status.st_size, status.st_mtime_ns]


def rearrange(
    layout: OutputLayout,
    sources: Sequence[Source],
    *,
    plan: Plan,
    record: Mapping[str, object],
    watch: ProgressMonitor | None = None,
) -> bool:
    """Make equal shards of all rows, and let them take the place of the output.

    Args:
        layout: Of the output; its lock is held, and ``takeover.finish`` was called.
        sources: What to read. They may be the output's own shards. Their places together are 0 to N - 1.
        plan: What to make.
        record: JSON-able, written to ``state.equal`` beside the plan, ``rows``, and ``files``: of each shard's name
            its rows and the bytes of its ``.pkl``.
        watch: Is told how far it is, and may stop it.

    Returns:
        Whether it is done; False if it was stopped. The same call resumes it.

    Raises:
        ConfigurationError: There are too few rows for so many ranks.
        ManifestError: A source is damaged, or does not hold as many rows as it should.
        ResourceError: The disk is full or can't be written; the same call resumes it.
    """
    watch = watch or ProgressMonitor()
    equal_sizes(sum(source.taken_rows for source in sources), plan.ranks)  # refused before all rows are measured
    try:
        made_of = _made_of(sources, plan)
        targets = ShardWriter(layout.resharding / SHARDS, _measure(sources, watch), plan.ranks)
        journal = _Journal(layout.resharding, made_of)
        _refuse_full_disk(layout, targets)
        targets.lay_out()
        _copy(sources, targets, journal, watch)
        _check(targets, journal, watch)
        replaces = [source.path.stem for source in sources if source.path.parent == layout.out]
        identity_fields = {
            **record,
            **plan.identity_fields(),
            "rows": targets.rows,
            "files": targets.files(),
            "replaces": replaces,
        }
        write_atomically(layout.resharding / RECORD, orjson.dumps(identity_fields, option=orjson.OPT_INDENT_2))
        decide(layout)
    except _StoppedError:
        return False
    except OSError as error:
        raise ResourceError.of_disk(error, "make equal shards") from error
    finish(layout)
    return True


def _measure(sources: Sequence[Source], watch: ProgressMonitor) -> UInt32s:
    """The length of each row as it will be written, by its place."""
    total_rows = sum(source.rows for source in sources)
    frame_bytes = np.zeros(sum(source.taken_rows for source in sources), np.uint32)
    measured = 0
    for source in sources:
        lengths = np.fromiter(_looking(source, measured, total_rows, watch), np.int64)
        if len(lengths) != source.rows:
            raise ManifestError(f"{source.path} holds {len(lengths):,} rows, its .count says {source.rows:,}")
        if source.rows and lengths.max() > MOST_FRAME_BYTES:
            raise ManifestError(f"{source.path} holds a row of more than 4 GiB")
        is_taken = source.places >= 0
        frame_bytes[source.places[is_taken]] = lengths[is_taken]
        measured += source.rows
    if not frame_bytes.all():
        raise ConservationError("two rows were given the same place in the equal shards")
    return frame_bytes


def _looking(source: Source, before: int, total_rows: int, watch: ProgressMonitor) -> Iterator[int]:
    with _naming(source.path):
        for row, length in enumerate(frame_sizes(source.path)):
            if row % _LOOK_ROWS == 0:
                watch.look(Progress(Stage.MEASURE, before + row, total_rows))
            yield length


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Faults of a source that only show when its rows are rewritten become errors that name it."""
    try:
        yield
    except (ValueError, RecursionError, OverflowError, pickle.PicklingError) as error:
        raise ManifestError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _JournalFile:
    """What the journal holds: what decides every byte, and how many sources are in."""

    made_of: dict[str, Any]
    done: Count


class _Journal:
    """Which sources are in. Work that was started with other sources or another plan is thrown away."""

    def __init__(self, folder: Path, made_of: dict[str, Any]) -> None:
        self._path = folder / "journal.json"
        self.made_of = made_of
        done = self._read()
        self.done = done or 0
        if done is None:
            if folder.exists():
                shutil.rmtree(folder)
            self.note(0)

    def _read(self) -> int | None:
        before = read_if_sound(self._path, _JournalFile)
        return before.done if before is not None and before.made_of == self.made_of else None

    def note(self, done: int) -> None:
        """So many sources, the first ones, are in and on disk."""
        self.done = done
        write_atomically(self._path, orjson.dumps(_JournalFile(self.made_of, done)))


def _made_of(sources: Sequence[Source], plan: Plan) -> dict[str, Any]:
    """What decides every byte that is written."""
    places = hashlib.sha256()
    for source in sources:
        places.update(np.ascontiguousarray(source.places).data)
    return {
        "format": 1,
        **plan.identity_fields(),
        "sources": [fingerprint(source.path) for source in sources],
        "places": places.hexdigest(),
    }


def _refuse_full_disk(layout: OutputLayout, targets: ShardWriter) -> None:
    _refuse_too_small(layout.folder, targets.total_bytes - _taken_bytes(targets.folder))
    if layout.out.exists() and layout.out.stat().st_dev != layout.folder.stat().st_dev:
        _refuse_too_small(layout.out, targets.total_bytes - _taken_bytes(layout.out))


def _taken_bytes(folder: Path) -> int:
    """What the files in a folder take of the disk: shards that are being made have holes."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*"))


def _refuse_too_small(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"equal shards need {needed_bytes:,} bytes more in {folder}, where {free_bytes:,} are free; "
            "make room, or choose an output on another filesystem, and run the same command again"
        )


def _copy(sources: Sequence[Source], targets: ShardWriter, journal: _Journal, watch: ProgressMonitor) -> None:
    rows = sum(source.taken_rows for source in sources[: journal.done])
    copied_bytes = 0
    noted_s = time.monotonic()
    for number, source in enumerate(sources[journal.done :], journal.done):
        for frames, places in _buffers(source):
            if not targets.have_lengths(places, frames):
                raise _changed(source)
            targets.write(frames, places)
            rows += len(frames)
            copied_bytes += sum(map(len, frames))
            watch.look(Progress(Stage.COPY, rows, targets.rows, copied_bytes))
        if fingerprint(source.path) != journal.made_of["sources"][number]:
            raise _changed(source)
        if time.monotonic() - noted_s >= watch.journal_interval_s:
            targets.sync()
            journal.note(number + 1)
            noted_s = time.monotonic()
    targets.sync()
    journal.note(len(sources))


def _changed(source: Source) -> ManifestError:
    return ManifestError(
        f"{source.path} changed while it was read; wait until it is complete, and run the same command again"
    )


def _buffers(source: Source) -> Iterator[tuple[list[bytes], Int64s]]:
    """The rows of a source that go anywhere, some at a time, each with its place."""
    places = source.places[source.places >= 0]
    frames: list[bytes] = []
    first = held_bytes = 0
    with _naming(source.path):
        for frame, place in zip(read_frames(source.path), source.places, strict=True):
            if place < 0:
                continue
            decode_row(frame)  # the trainer will load it: a row that is none, or calls something, goes no further
            frames.append(frame)
            held_bytes += len(frame)
            if held_bytes >= _BUFFER_BYTES:
                yield frames, places[first : first + len(frames)]
                first += len(frames)
                frames, held_bytes = [], 0
    if frames:
        yield frames, places[first:]


def _check(targets: ShardWriter, journal: _Journal, watch: ProgressMonitor) -> None:
    """See that the shards are as planned, by reading what was written.

    Raises:
        ResourceError: One is not.
    """
    rows = 0
    for target in range(len(targets)):
        if not targets.is_right(target):
            journal.note(0)
            raise ResourceError(
                f"{targets.folder} does not hold what was written to it; see whether its disk is sound, and run the "
                "same command again"
            )
        rows += targets.rows_of(target)
        watch.look(Progress(Stage.CHECK, rows, targets.rows))
