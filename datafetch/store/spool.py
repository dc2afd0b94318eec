"""The crash-safe log of a shard in progress: results of images and samples, in the order in which they end.

Rules: append-only, one writer. Nothing is decided here; the log records what happened, and ``output.merge`` decides
what becomes of it. ``spool_format`` defines the bytes.

Theory of operation: ``Spool.append`` returns once the operating system has the entry, so everything that it has
confirmed survives the death of the process. ``Spool.sync``, called every few seconds, brings the entries to disk, so if
the machine loses power, only the last few seconds are lost. Entries are in no particular order, and a sample may have
two entries of its own: if the entry of one of its images is damaged, the next run fetches that image again and
ends the sample again. Recovery (``_recover``) reads the file from start to end:

* every intact entry counts, and a damaged one is skipped, so that its image is fetched again;
* bytes after the last intact entry are a torn write and are cut off, so that new entries follow intact ones;
* a sample has ended if and only if its own entry and those of all of its images are intact. An image of a sample that
  has not ended is not fetched again if its entry is intact.

A shard may have several spools, as each worker process writes its own. What they hold counts together, whichever of
them it is in; an entry is in one of them alone.

An incomplete file header means that the machine died while the spool was created: it is written again. A write that
fails may leave half an entry, so a spool refuses all writes after it; the next run recovers the spool.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Self

from datafetch.errors import ResourceError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import make_folder, sync, sync_open
from datafetch.store.spool_format import (
    FILE_HEADER_BYTES,
    ImageResult,
    SpoolRecord,
    encode,
    file_header,
    is_torn_file_header,
    read_entries,
    read_entry,
    read_marker,
)

_MAX_WRITE_BYTES = 4 * 1024 * 1024  # in one go, so that callers don't all wait for all, and then all begin again
_MAX_WRITE_PIECES = os.sysconf("SC_IOV_MAX")  # that the system takes in one call


@dataclass(slots=True)
class Recovered:
    """What a spool held when it was opened.

    Attributes:
        samples: Positions of the samples that have ended.
        images: For each other sample, by position: image number → ledger line of the images that have a result.
        jpeg_bytes: For each other sample, by position: the size of the JPEGs of these images.
        outcomes: Number of images by outcome.
    """

    samples: set[int] = field(default_factory=set)
    images: dict[int, dict[int, LedgerLine]] = field(default_factory=dict)
    jpeg_bytes: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    _image_counts: dict[int, int] = field(default_factory=dict)
    """Number of images of the samples whose own entry has been read but which have not ended, by position."""

    def of_sample(self, sample: Sample) -> tuple[Mapping[int, LedgerLine], int]:
        """The lines of those images of a sample that have a result, by their number, and the size of their JPEGs."""
        return self.images.get(sample.position, {}), self.jpeg_bytes[sample.position]

    def add(self, record: SpoolRecord) -> None:
        """Take the record of an intact entry into account."""
        if isinstance(record, Sample):
            position = record.position
            self._image_counts[position] = len(record.urls)
        else:
            position = record.line.sample
            self.images.setdefault(position, {})[record.line.image] = record.line
            self.jpeg_bytes[position] += record.jpeg_bytes
            self.outcomes[record.line.outcome] += 1
        # The sample's own entry does not prove that its images are there: their entries may be damaged.
        if len(self.images.get(position, ())) == self._image_counts.get(position):
            self.samples.add(position)
            self.images.pop(position, None)
            self.jpeg_bytes.pop(position, None)
            del self._image_counts[position]


class Spool:
    """A spool of one shard, open for appending; shared by any number of tasks of one event loop.

    Attributes:
        path: The file.
        recovered: What the spools of the shard held when this one was opened.
        entries: Reads what was written to this one.
    """

    def __init__(self, path: Path, file: io.FileIO, recovered: Recovered, marker: bytes, end_offset: int) -> None:
        self.path = path
        self.recovered = recovered
        self.entries = WrittenEntries(path, marker)
        self._marker = marker
        self._file = file
        self._end_offset = end_offset
        self._pending: deque[Sequence[bytes]] = deque()  # the pieces of each entry
        self._appended = self._written = 0  # entries that were appended, and those of them whose write has ended
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._is_on_disk = False
        self._failure: ResourceError | None = None

    @classmethod
    async def open(cls, path: Path, others: Sequence[Path] = ()) -> Self:
        """Open a spool of a shard or create it, and recover what it holds.

        Args:
            path: The file.
            others: Further spools of the shard, which nothing writes to now; what they hold is recovered, too.

        Raises:
            ConfigurationError: The file is not a spool of this version.
            ResourceError: The file can't be read or written.
        """
        opened: list[Self] = []
        try:
            await run_in_thread(lambda: opened.append(cls._open(path, others)))
        except OSError as error:
            raise ResourceError.from_disk_error(error, f"open {path}, which has images in progress") from error
        except asyncio.CancelledError:
            for spool in opened:
                await spool.close()
            raise
        return opened[0]

    @classmethod
    def _open(cls, path: Path, others: Sequence[Path]) -> Self:
        make_folder(path.parent)
        recovered = Recovered()
        for other in others:
            _recover(other, recovered)
        marker, end_offset = _recover(path, recovered)
        file = path.open("ab", buffering=0)
        try:
            return cls(path, file, recovered, marker, end_offset)
        except BaseException:
            file.close()
            raise

    async def append(self, *records: SpoolRecord) -> int:
        """Append entries and return when the operating system has them.

        The caller that holds the lock writes the entries of callers that arrived in the meantime as well, and of those
        that arrive in the same iteration of the event loop, as the images of a codec process do: each write takes a
        thread. It writes some megabytes at once, the oldest entries first, and callers get the lock in their order. So
        those whose entries are written can go on with other images while the rest is written.

        Returns:
            The offset of the first entry, for ``entries.image``.

        Raises:
            ResourceError: They can't be written, for example because the disk is full.
        """
        offset = self._end_offset
        for record in records:
            pieces = encode(record, self._marker)
            self._pending.append(pieces)
            self._end_offset += sum(map(len, pieces))
        self._appended += len(records)
        number = self._appended
        async with self._writing:
            if number > self._written:
                await asyncio.sleep(0)
            while number > self._written:
                await self._write_next()
            if self._failure is not None:
                raise self._failure
        return offset

    async def sync(self) -> None:
        """Return when everything that was appended before is on disk.

        Raises:
            ResourceError: It can't be written.
        """
        async with self._syncing:
            if self._is_on_disk or self._file.closed:
                return
            self._is_on_disk = True
            try:
                await asyncio.to_thread(sync_open, self._file.fileno(), self.path)
            except OSError as error:
                self._failure = ResourceError.from_disk_error(error, f"write {self.path}, which has images in progress")
                raise self._failure from error

    async def close(self) -> None:
        """Write what is pending and close the file, which stays on disk.

        Raises:
            ResourceError: That, or something before it, can't be written.
        """
        async with self._syncing, self._writing:
            try:
                while self._pending:
                    await self._write_next()
                if self._failure is not None:  # also of a write whose caller was cancelled
                    raise self._failure
            finally:
                await asyncio.to_thread(self._file.close)
                self.entries.release()

    async def _write_next(self) -> None:
        """Write the next entries that are pending.

        Raises:
            ResourceError: They, or earlier ones, can't be written.
        """
        if self._failure is not None:  # the last entry may be torn, so nothing may be appended after it
            raise self._failure
        pieces: list[bytes] = []
        size_bytes = 0
        while self._pending and size_bytes < _MAX_WRITE_BYTES and len(pieces) < _MAX_WRITE_PIECES:
            entry = self._pending.popleft()
            pieces += entry
            size_bytes += sum(map(len, entry))
            self._written += 1
        try:
            await run_in_thread(self._write, pieces)  # to its end: what is written next must follow it
        finally:
            self._is_on_disk = False  # a ``sync`` that began meanwhile may have missed some of it

    def _write(self, pieces: Sequence[bytes]) -> None:
        try:
            _write_all(self._file.fileno(), pieces)
        except OSError as error:
            self._failure = ResourceError.from_disk_error(error, f"write {self.path}, which has images in progress")
            raise self._failure from error


def _write_all(fd: int, pieces: Iterable[bytes]) -> None:
    """Write pieces one after another, without joining them."""
    unwritten = deque(memoryview(piece) for piece in pieces if piece)
    while unwritten:
        written = os.writev(fd, [*islice(unwritten, _MAX_WRITE_PIECES)])
        while written:
            first = unwritten.popleft()
            if written < len(first):
                unwritten.appendleft(first[written:])
                break
            written -= len(first)


class WrittenEntries:
    """Random access to the entries of a spool, reference-counted.

    The entries remain readable after the spool has been deleted, until the last reference is released: the file stays
    on disk for as long as it is open.
    """

    def __init__(self, path: Path, marker: bytes) -> None:
        self._file = path.open("rb", buffering=0)
        self._marker = marker
        self._references = 1

    def retain(self) -> None:
        """Add a reference."""
        self._references += 1

    def release(self) -> None:
        """Drop a reference, and close the file with the last one."""
        self._references -= 1
        if not self._references:
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """The size of the spool."""
        return os.fstat(self._file.fileno()).st_size

    async def image(self, offset: int) -> ImageResult | None:
        """The image whose entry is at an offset; None if there is none, or if the file has been closed."""
        if not self._references:
            return None
        self.retain()
        try:
            return await asyncio.to_thread(self._read, offset)
        finally:
            self.release()

    def _read(self, offset: int) -> ImageResult | None:
        # A descriptor of its own, because concurrent readers would share the position of this one.
        with os.fdopen(os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY), "rb") as file:
            entry = read_entry(file, self._marker, offset)
        return entry.record if entry is not None and isinstance(entry.record, ImageResult) else None


@dataclass(slots=True)
class FoundResults:
    """What a spool has of one sample.

    Attributes:
        lines: The ledger lines of its images, by their number.
        jpeg_bytes: The sizes of their JPEGs.
        has_ended: Whether the sample's own entry is there.
    """

    lines: dict[int, LedgerLine] = field(default_factory=dict)
    jpeg_bytes: dict[int, int] = field(default_factory=dict)
    has_ended: bool = False


async def find_results(path: Path, positions: Collection[int]) -> dict[int, FoundResults]:
    """What the spool of a process that was killed has of some samples, by position; nothing if there is no such file.

    Raises:
        ConfigurationError: The file is not a spool of this version.
        ResourceError: The file can't be read.
    """
    try:
        return await run_in_thread(_find_results, path, positions)
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"read {path}, which has images in progress") from error


def _find_results(path: Path, positions: Collection[int]) -> dict[int, FoundResults]:
    found: dict[int, FoundResults] = {}
    if not path.exists():
        return found
    with path.open("rb") as file:
        if is_torn_file_header(file.read(FILE_HEADER_BYTES)):
            return found
        file.seek(0)
        for entry in read_entries(file, read_marker(file)):
            record = entry.record
            position = record.position if isinstance(record, Sample) else record.line.sample
            if position not in positions:
                continue
            results = found.setdefault(position, FoundResults())
            if isinstance(record, Sample):
                results.has_ended = True
            else:
                results.lines[record.line.image] = record.line
                results.jpeg_bytes[record.line.image] = record.jpeg_bytes
    return found


def _recover(path: Path, recovered: Recovered) -> tuple[bytes, int]:
    """Recover a spool, or create it.

    Args:
        path: The file.
        recovered: What the spools of the shard hold; updated.

    Returns:
        The spool's marker, and the end of its last intact entry, in bytes.
    """
    with path.open("a+b") as file:
        file.seek(0)
        if is_torn_file_header(file.read(FILE_HEADER_BYTES)):
            file.truncate(0)
            file.write(file_header())
            file.flush()
            sync_open(file.fileno(), path)
            sync(path.parent)
        file.seek(0)
        marker = read_marker(file)
        end_offset = file.tell()
        for entry in read_entries(file, marker):
            recovered.add(entry.record)
            end_offset = entry.end_offset
        file.truncate(end_offset)
    return marker, end_offset
