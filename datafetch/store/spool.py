"""The crash-safe log of a shard in progress: samples and images, in the order in which they end.

Rules: append only, one writer. What has been appended, the operating system has, so that a killed process loses nothing
of it; every few seconds it is put on disk, so that a machine that dies loses no more than those. After a crash each
whole entry counts, a torn tail is cut off, and what is damaged is skipped and made again. Nothing is decided here:
what the entries say is what happened. How they lie on disk is the matter of ``entries``.
"""

from __future__ import annotations

import asyncio
import io
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiofiles
import numpy as np
from aiofiles.threadpool.binary import AsyncFileIO

from datafetch.errors import ConservationError, ResourceError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Record, Sample
from datafetch.store.atomic import make_folder, sync, sync_open
from datafetch.store.spool_format import (
    START_BYTES,
    ImageResult,
    SpoolRecord,
    Stored,
    StoredImage,
    begin,
    encode,
    is_torn_beginning,
    read_entries,
    read_entry,
    read_marker,
    read_stored,
)

_SAMPLE_ENTRY = -1  # in the index, where an image has its place in the sample; sorts before them


@dataclass(slots=True)
class Recovered:
    """What a spool held when it was opened.

    Attributes:
        samples: Positions of the samples that ended, all their images being there.
        images: Samples that have not ended → the images of theirs that have, and what became of them.
        jpeg_bytes: The same samples → what these images take together.
        outcomes: Images by outcome.
        marker: What entries begin with.
        end: Bytes up to the end of the last whole entry.
    """

    samples: set[int] = field(default_factory=set)
    images: dict[int, dict[int, LedgerLine]] = field(default_factory=dict)
    jpeg_bytes: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    marker: bytes = b""
    end: int = 0


class Spool:
    """The writing end, for one shard and any number of tasks of one event loop."""

    def __init__(self, path: Path, file: AsyncFileIO, recovered: Recovered) -> None:
        self.path = path
        self.recovered = recovered
        self.entries = WrittenEntries(path, recovered.marker)
        self._file = file
        self._end = recovered.end
        self._pending: list[bytes] = []
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._is_on_disk = False
        self._failure: ResourceError | None = None

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open a shard's spool, or begin it; a torn tail is cut off.

        Raises:
            ConfigurationError: The file is not a spool of this version.
            ResourceError: The disk refused it.
        """
        try:
            recovered = await asyncio.to_thread(_recover, path)
            file = await aiofiles.open(path, "ab", buffering=0)
            return await asyncio.to_thread(cls, path, file, recovered)
        except OSError as error:
            raise ResourceError.of_disk(error, f"open the spool {path}") from error

    async def append(self, *ended: SpoolRecord) -> int:
        """Append entries and return when the operating system has them.

        Whoever holds the lock writes for everybody who came meanwhile; a caller waits for at most two writes, so
        what is pending is bounded by the number of callers.

        Returns:
            Where the first of them lies, for ``entries``.

        Raises:
            ResourceError: The disk refused them.
        """
        offset = self._end
        for one in ended:
            pieces = encode(one, self.recovered.marker)
            self._pending += pieces
            self._end += sum(map(len, pieces))
        async with self._writing:
            await self._flush()
        return offset

    async def sync(self) -> None:
        """Return when everything that was appended before is on disk.

        Raises:
            ResourceError: The disk refused it.
        """
        async with self._syncing:
            if self._is_on_disk or self._file.closed:
                return
            self._is_on_disk = True
            try:
                await asyncio.to_thread(sync_open, self._file.fileno(), self.path)
            except OSError as error:
                self._failure = ResourceError.of_disk(error, f"write the spool {self.path}")
                raise self._failure from error

    async def close(self) -> None:
        """Write what is pending and let go of the file, which stays."""
        async with self._syncing, self._writing:
            try:
                await self._flush()
            finally:
                await self._file.close()
                self.entries.release()

    async def _flush(self) -> None:
        if self._failure is not None:  # a torn entry may be the last, and what the disk has of the others is unknown
            raise self._failure
        unwritten = memoryview(b"".join(self._pending))
        self._pending.clear()
        if unwritten:
            self._is_on_disk = False
        try:
            while unwritten:
                unwritten = unwritten[await self._file.write(unwritten) :]
        except OSError as error:
            self._failure = ResourceError.of_disk(error, f"write the spool {self.path}")
            raise self._failure from error


class WrittenEntries:
    """What a spool holds, for whoever asks for an entry again: readable as long as somebody holds it.

    It outlives the name of its file: what was unlinked meanwhile is on disk until the last holder lets go.
    """

    def __init__(self, path: Path, marker: bytes) -> None:
        self._file = path.open("rb", buffering=0)
        self._marker = marker
        self._holders = 1

    def retain(self) -> None:
        """Keep it readable until ``release``."""
        self._holders += 1

    def release(self) -> None:
        """Let go of it."""
        self._holders -= 1
        if not self._holders:
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """What it takes of the disk."""
        return os.fstat(self._file.fileno()).st_size

    async def image(self, offset: int) -> ImageResult | None:
        """The image at this place; None where there is none, or nobody holds this any more."""
        if not self._holders:
            return None
        self.retain()
        try:
            return await asyncio.to_thread(self._read, offset)
        finally:
            self.release()

    def _read(self, offset: int) -> ImageResult | None:
        # A descriptor of its own: the file's place is shared by all who read.
        with os.fdopen(os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY), "rb") as file:
            entry = read_entry(file, self._marker, offset)
        return entry.ended if entry is not None and isinstance(entry.ended, ImageResult) else None


def _recover(path: Path) -> Recovered:
    make_folder(path.parent)
    recovered = Recovered()
    with path.open("a+b") as file:
        file.seek(0)
        if is_torn_beginning(file.read(START_BYTES)):
            file.truncate(0)
            file.write(begin())
            file.flush()
            sync_open(file.fileno(), path)
            sync(path.parent)
        file.seek(0)
        recovered.marker = read_marker(file)
        recovered.end = file.tell()
        urls: dict[int, int] = {}
        for entry in read_entries(file, recovered.marker):
            _note(recovered, urls, entry.ended)
            recovered.end = entry.end
        file.truncate(recovered.end)
    return recovered


def _note(recovered: Recovered, urls: dict[int, int], ended: SpoolRecord) -> None:
    """Take an entry into account; ``urls``: samples that said to have ended → how many images they have."""
    if isinstance(ended, Sample):
        position = ended.position
        urls[position] = len(ended.urls)
    else:
        position = ended.line.sample
        recovered.images.setdefault(position, {})[ended.line.image] = ended.line
        recovered.jpeg_bytes[position] += ended.jpeg_bytes
        recovered.outcomes[ended.line.outcome] += 1
    # An image may be missing all the same, where its entry was damaged.
    if len(recovered.images.get(position, ())) == urls.get(position):
        recovered.samples.add(position)
        recovered.images.pop(position, None)
        recovered.jpeg_bytes.pop(position, None)
        del urls[position]


class SpoolWriter:
    """Makes a whole spool at once; use it as a context manager, and it is on disk afterwards.

    Args:
        path: Of the file.
        marker: What its entries begin with, ``MARKER_BYTES`` that nobody on the web can know; None makes one.
    """

    def __init__(self, path: Path, marker: bytes | None = None) -> None:
        make_folder(path.parent)
        self._path = path
        self._file = path.open("w+b", buffering=1 << 20)
        self._file.write(begin(marker))
        self._file.seek(0)
        self._marker = read_marker(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.flush()
            sync_open(self._file.fileno(), self._path)
        finally:
            self._file.close()

    def write(self, *ended: Stored) -> None:
        """Append entries; a JPEG that lies in another spool is in memory while it is copied."""
        for one in ended:
            self._file.writelines(encode(one, self._marker))


def write_spool(path: Path, ended: Iterable[Stored], marker: bytes | None = None) -> None:
    """Make a spool of these entries, as ``SpoolWriter`` does; it is on disk when this returns."""
    with SpoolWriter(path, marker) as spool:
        for one in ended:
            spool.write(one)


def has_marker(path: Path, marker: bytes) -> bool:
    """Whether there is a spool at this path, with this marker.

    Raises:
        ConfigurationError: The file is not a spool of this version.
    """
    try:
        with path.open("rb") as file:
            if is_torn_beginning(file.read(START_BYTES)):
                return False
            file.seek(0)
            return read_marker(file) == marker
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class SpooledSample:
    """A sample as a spool has it, with those of its images that are there, in their order."""

    sample: Sample
    images: tuple[ImageResult | StoredImage, ...]

    @property
    def lines(self) -> tuple[LedgerLine, ...]:
        """What the ledger will say of them."""
        return tuple(end.line for end in self.images)

    def record(self, jpeg: Callable[[ImageResult | StoredImage], bytes]) -> Record:
        """The finished sample.

        Args:
            jpeg: What the record is to have as the JPEG of an image that arrived.

        Raises:
            ConservationError: An image is missing or there twice.
        """
        places = [(end.line.sample, end.line.image) for end in self.images]
        expected = [(self.sample.position, image) for image in range(len(self.sample.urls))]
        if places != expected:
            raise ConservationError(f"the spool has images {places} for sample {self.sample.position}, not {expected}")
        return Record(self.sample, tuple(end.line.to_outcome(jpeg(end)) for end in self.images))


class SpoolReader:
    """The reading end, for a shard all of whose samples have ended; 8 bytes an entry, and 56 while it is made.

    JPEGs stay in the spool, of which a sample may have hundreds, until somebody loads one. The file is open as long as
    there is anybody who may.
    """

    def __init__(self, path: Path) -> None:
        self._file = _HeldFile(io.FileIO(path))
        self._marker = read_marker(self._file)
        samples, images, offsets = array("q"), array("q"), array("q")
        for entry in read_entries(self._file, self._marker):
            sample, image = _place(entry.ended)
            samples.append(sample)
            images.append(image)
            offsets.append(entry.offset)
        order = np.lexsort((np.array(images, np.int64), np.array(samples, np.int64)))
        self._offsets = np.array(offsets, np.int64)[order]

    def samples(self) -> Iterator[SpooledSample]:
        """Every sample that ended with those of its images that are there, in manifest order.

        Raises:
            ConservationError: There are images of a sample that has not ended.
        """
        current: SpooledSample | None = None
        images: list[StoredImage] = []
        for ended in self._in_order():
            if isinstance(ended, StoredImage):
                if current is None or current.sample.position != ended.line.sample:
                    raise ConservationError(f"the spool has an image of sample {ended.line.sample} alone")
                images.append(ended)
                continue
            # A sample is there twice where it ended again because an image of it was damaged.
            if current is not None and current.sample.position != ended.position:
                yield SpooledSample(current.sample, tuple(images))
            current, images = SpooledSample(ended, ()), []
        if current is not None:
            yield SpooledSample(current.sample, tuple(images))

    def _in_order(self) -> Iterator[Sample | StoredImage]:
        for offset in self._offsets:
            ended = read_stored(self._file, self._marker, int(offset))
            if ended is None:
                raise ConservationError(f"{self._file.name} changed while it was read")
            yield ended


class _HeldFile(io.BufferedReader):
    """A file that is closed when nobody holds it any more."""

    def __del__(self) -> None:
        self.close()


def _place(ended: SpoolRecord) -> tuple[int, int]:
    if isinstance(ended, Sample):
        return ended.position, _SAMPLE_ENTRY
    return ended.line.sample, ended.line.image
