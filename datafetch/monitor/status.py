"""Where a run stands, read from what it leaves: while it is at work, between two runs, and at the end.

Rules: a run is never disturbed. No lock is taken and nothing is written, and files may come and go while they are read.
A shard that has a ledger counts by it alone, whatever of its spool is still there, so that no image counts twice. What
lies in the state folder is files, and anything may be in them.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datafetch.datasets import find_dataset
from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.bounds import Amount
from datafetch.model.outcome import OK
from datafetch.model.sample import Sample
from datafetch.monitor.heartbeat import ProgressSnapshot, read_beats
from datafetch.monitor.host_failures import FailingHost, FailingHosts
from datafetch.output.formats import format_of
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout, output_of
from datafetch.store.ledger import not_a_ledger, read_columns, read_shard_counts, without_skipped
from datafetch.store.spool_format import SpoolRecord, read_marker, scan_records
from datafetch.store.state_file import read_if_sound

_MAX_HOSTS = 20
_LINES_AT_A_TIME = 16_384  # of a spool, in memory


class RunState(StrEnum):
    """What a run is doing."""

    RUNNING = "running"
    """It is at work."""
    INTERRUPTED = "interrupted"
    """It is not, and there is something left to do."""
    COMPLETE = "complete"
    """There is not."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands.

    Attributes:
        dataset: What is fetched.
        out: Where to.
        state: What the run is doing.
        shards: Of the manifest.
        shards_published: Of them, those that are where the trainer reads them.
        shards_open: Of them, those that are in progress: they have a spool.
        samples: That ended, those of open shards included.
        rows: Of published shards.
        dropped: Samples of published shards that became no row.
        outcomes: Images that ended, by outcome.
        expected_images: About how many there will be; None while that is unknown.
        hosts: Those with the most failures, most first.
        is_pruned: Whether there were too many hosts to count them all; what is said of one is then the least it had.
        published_bytes: Size of what lies in the output.
        spooled_bytes: Size of the open shards' spools.
        fetched_bytes: Of the bodies of all images that ended.
        images_per_s: Of the last moments of the run at work, of all its processes together; else of the last run that
            came to its end.
        elapsed_s: Of that run; of several processes, of the one that began first.
        at_work: What each process at work said last: that of a run, or those that fetch shards apart.
        has_open_retry: Whether a retry is at work, or was interrupted.
    """

    dataset: str
    out: Path
    state: RunState
    shards: int
    shards_published: int
    shards_open: int
    samples: int
    rows: int
    dropped: int
    outcomes: dict[str, int]
    expected_images: int | None
    hosts: tuple[FailingHost, ...]
    is_pruned: bool
    published_bytes: int
    spooled_bytes: int
    fetched_bytes: int
    images_per_s: float | None
    elapsed_s: float | None
    at_work: tuple[ProgressSnapshot, ...]
    has_open_retry: bool = False

    @property
    def done(self) -> int:
        """Images that ended, well or not."""
        return sum(self.outcomes.values())

    @property
    def ok(self) -> int:
        """Images that arrived."""
        return self.outcomes.get(OK, 0)

    @property
    def failed(self) -> int:
        """Images that did not arrive."""
        return self.done - self.ok

    @property
    def open_images(self) -> int | None:
        """Images that have not ended; None while it is unknown how many there will be."""
        return None if self.expected_images is None else self.expected_images - self.done

    @property
    def by_kind(self) -> dict[str, int]:
        """Failures by kind, most first."""
        failures = ((kind, count) for kind, count in self.outcomes.items() if kind != OK)
        return dict(sorted(failures, key=lambda pair: (-pair[1], pair[0])))

    def summary(self) -> dict[str, object]:
        """The status as the JSON object that ``--json`` prints."""
        return {
            "dataset": self.dataset,
            "out": os.fsencode(self.out).decode(errors="replace"),
            "state": self.state,
            **({"retry": True} if self.has_open_retry else {}),
            "shards": {"total": self.shards, "published": self.shards_published, "open": self.shards_open},
            "samples": {"rows": self.rows, "dropped": self.dropped, "ended": self.samples},
            "images": {
                "expected": self.expected_images,
                "done": self.done,
                "ok": self.ok,
                "failed": self.failed,
                "open": self.open_images,
                "by_kind": dict(sorted(self.by_kind.items())),
            },
            "hosts": [{"host": host.host, "failed": host.failed, "by_kind": host.by_kind} for host in self.hosts],
            "bytes": {
                "published": self.published_bytes,
                "spooled": self.spooled_bytes,
                "fetched": self.fetched_bytes,
            },
            "images_per_s": None if self.images_per_s is None else round(self.images_per_s, 1),
            "elapsed_s": None if self.elapsed_s is None else round(self.elapsed_s, 3),
        }


def read_status(out: Path | str) -> Status:
    """Where the run stands that writes to a folder.

    Args:
        out: The output folder, or its state folder.

    Raises:
        ConfigurationError: There is no run, or what should be its job or a ledger is something else.
    """
    state = OutputLayout(output_of(Path(out)))
    job = _read_job(state)
    state = replace(state, output_format=find_dataset(job.dataset).output_format)
    beats = read_beats(state)
    at_work = tuple(beat for beat in beats if beat.is_at_work())
    counted = _count(state, job, beats)
    # Shards may be published and a step still be missing: equal shards, or what a retry was to bring.
    has_open_retry = state.retry.exists()
    has_ended = state.report.exists() and not has_open_retry
    is_complete = has_ended and _is_done(job, counted.shards_published, counted.rows + counted.dropped)
    run_state = RunState.RUNNING if at_work else RunState.COMPLETE if is_complete else RunState.INTERRUPTED
    rate = _rate(state, at_work, beats)
    books = counted.books
    return Status(
        dataset=job.dataset,
        out=state.out,
        state=run_state,
        shards=len(job.shards),
        shards_published=counted.shards_published,
        shards_open=counted.shards_open,
        samples=books.samples,
        rows=counted.rows,
        dropped=counted.dropped,
        outcomes=dict(books.outcomes),
        expected_images=_expected(state, len(job.shards), books.outcomes.total(), run_state, beats),
        hosts=books.hosts.top(_MAX_HOSTS),
        is_pruned=books.hosts.is_pruned,
        published_bytes=_published_bytes(state, counted),
        spooled_bytes=books.spool_bytes,
        fetched_bytes=books.fetched_bytes,
        images_per_s=rate.images_per_s if rate else None,
        elapsed_s=rate.elapsed_s if rate else None,
        at_work=at_work,
        has_open_retry=has_open_retry,
    )


@dataclass(slots=True)
class _ShardsOnDisk:
    """What was counted of one shard, or of several."""

    samples: int = 0
    rows: int = 0
    written_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    fetched_bytes: int = 0
    spool_bytes: int = 0
    hosts: FailingHosts = field(default_factory=FailingHosts)

    def add(self, other: _ShardsOnDisk) -> None:
        """Take another shard into account."""
        self.samples += other.samples
        self.rows += other.rows
        self.written_bytes += other.written_bytes
        self.outcomes.update(other.outcomes)
        self.fetched_bytes += other.fetched_bytes
        self.spool_bytes += other.spool_bytes
        self.hosts.merge(other.hosts)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What was counted of all shards; ``rows`` and ``dropped`` of the published ones, the others having none yet."""

    books: _ShardsOnDisk
    shards_published: int
    shards_open: int
    rows: int
    dropped: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class _Rate:
    images_per_s: Amount
    elapsed_s: Amount


def _published_bytes(state: OutputLayout, counted: _Counted) -> int:
    """What the output takes; of half a million files by the books, for each of them was looked at already."""
    if state.image_index_folder.exists():
        return counted.written_bytes
    return sum(_size_bytes(path) for path in _files(state.out))


def _read_job(state: OutputLayout) -> JobFile:
    job = read_job_file(state)
    if job is None:
        raise ConfigurationError(
            f"there is no run in {state.out}: {state.job} is missing; give the folder that a run writes to"
        )
    return job


def _is_done(job: JobFile, published: int, samples: int) -> bool:
    """Whether nothing is left to do; what lies beyond the limit is never begun."""
    return published == len(job.shards) or (job.limit is not None and samples >= job.limit)


def _count(state: OutputLayout, job: JobFile, beats: Sequence[ProgressSnapshot]) -> _Counted:
    # Spools before ledgers: a shard that is published meanwhile is then seen twice, and counted once. The other way
    # round it might be seen nowhere.
    looks = dict(_look_at_spools(state, job, beats))
    books, published = _read_ledgers(state, job)
    rows, dropped = books.rows, books.samples - books.rows
    still_open = [look for shard, look in looks.items() if shard not in published]
    for look in still_open:
        books.add(look)
    return _Counted(books, len(published), len(still_open), rows, dropped, books.written_bytes)


def _look_at_spools(
    state: OutputLayout, job: JobFile, beats: Sequence[ProgressSnapshot]
) -> Iterator[tuple[str, _ShardsOnDisk]]:
    """Shards in progress, each with what its spool says."""
    shards = set(job.shards)
    folders = {Path(beat.spools) for beat in beats} or {path for path in _files(state.all_spools) if path.is_dir()}
    for folder in sorted(folders):
        for path in _files(folder):
            if path.suffix == ".spool" and path.stem in shards and path.is_file():
                look = _look(path)
                if look is not None:
                    yield path.stem, look


def _look(path: Path) -> _ShardsOnDisk | None:
    """What a spool says that may be written to meanwhile, or vanish; None where it is not there, or not a spool."""
    books = _ShardsOnDisk()
    try:
        with path.open("rb") as file:
            marker = read_marker(file)
            books.spool_bytes = os.fstat(file.fileno()).st_size
            _count_heads(books, scan_records(file, marker))
    except (OSError, ConfigurationError) as error:
        raise_if_exhausted(error)
        return None
    except (ValueError, TypeError, KeyError, struct.error):
        pass  # these bytes were not checked; what came before them counts
    return books


def _count_heads(books: _ShardsOnDisk, heads: Iterator[SpoolRecord]) -> None:
    urls: list[str] = []
    outcomes: list[str] = []
    for ended in heads:
        if isinstance(ended, Sample):
            books.samples += 1
            continue
        line = ended.line
        books.outcomes[str(line.outcome)] += 1
        books.fetched_bytes += line.body_bytes
        if line.outcome != OK and not line.is_skipped:
            urls.append(line.url)
            outcomes.append(line.outcome)
        if len(urls) == _LINES_AT_A_TIME:
            books.hosts.count(pa.array(urls, pa.string()), pa.array(outcomes, pa.string()))
            urls, outcomes = [], []
    books.hosts.count(pa.array(urls, pa.string()), pa.array(outcomes, pa.string()))


def _read_ledgers(state: OutputLayout, job: JobFile) -> tuple[_ShardsOnDisk, set[str]]:
    """What all ledgers say, and of which shards there is one."""
    books, published = _ShardsOnDisk(), set()
    there = {path.stem for path in _files(state.ledgers) if path.suffix == ".parquet"}
    for shard in job.shards:
        read = _read_ledger(state, shard) if shard in there else None
        if read is not None:
            books.add(read)
            published.add(shard)
    return books, published


def _read_ledger(state: OutputLayout, shard: str) -> _ShardsOnDisk | None:
    """What one ledger says; None where it has just been taken away, or the shard's files are not those it speaks of."""
    path = state.ledger(shard)
    books = _ShardsOnDisk()
    try:
        totals = read_shard_counts(path)
        if not _is_in_place(state, shard):
            return None
        books.samples, books.rows, books.outcomes = totals.samples, totals.rows, Counter(totals.outcomes)
        books.written_bytes = totals.written_bytes
        for batch in read_columns(path, ("url", "outcome", "body_bytes", "detail", "is_skipped")):
            body_bytes: Any = pc.sum(batch["body_bytes"])
            books.fetched_bytes += body_bytes.as_py() or 0
            tried = without_skipped(batch)
            books.hosts.count(tried["url"], tried["outcome"])
    except (ConfigurationError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
            return None
        raise_if_exhausted(error)
        raise not_a_ledger(path) from error
    return books


def _is_in_place(state: OutputLayout, shard: str) -> bool:
    """Whether the shard's files are there, or are on their way, or have become part of equal shards."""
    output_format = format_of(state)
    if output_format.is_intact(state, shard):
        return True
    if output_format.allows_other_files:
        return False
    moving = (state.equal, state.resharded, state.replaced, state.retry, state.ready / shard)
    return any(path.exists() for path in moving)


def _expected(
    state: OutputLayout, shards: int, done: int, run_state: RunState, beats: Sequence[ProgressSnapshot]
) -> int | None:
    """How many images there will be; what was said while shards had not been counted may have been too few.

    Of processes that fetch shards apart, each speaks of its own shards alone: it is known while they speak of all.
    """
    if run_state is RunState.COMPLETE:
        return done
    expected = [beat.statistics.expected_images for beat in beats if beat.statistics.expected_images is not None]
    if not expected or len(expected) < len(beats):
        return None
    if state.shard_progress_folder.exists() and sum(beat.statistics.shards for beat in beats) != shards:
        return None
    return max(done, sum(expected))


def _rate(state: OutputLayout, at_work: Sequence[ProgressSnapshot], beats: Sequence[ProgressSnapshot]) -> _Rate | None:
    """Of the run at work, else of the last that came to its end, else of the last that did not."""
    if not at_work:
        reported = read_if_sound(state.report, _Rate)
        if reported is not None:
            return reported
    said = at_work or beats
    if not said:
        return None
    return _Rate(sum(beat.images_per_s for beat in said), max(beat.statistics.elapsed_s for beat in said))


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, if it is there."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
