"""Writes a spool whose records are all known, from start to end: what a retry begins with, or one without failures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from datafetch.model.regular_file import open_regular
from datafetch.store.atomic import make_folder, publish, sync_open
from datafetch.store.spool_format import (
    FILE_HEADER_BYTES,
    SAMPLE_ENTRY,
    ImageResult,
    LazySpoolRecord,
    SpoolRecord,
    encode,
    file_header,
    has_file_header,
    is_torn_file_header,
    read_entries,
    read_marker,
    read_positions,
)


class SpoolWriter:
    """Writes a spool from start to end; a context manager, after which the spool is on disk.

    Args:
        path: The file, which is replaced.
        marker: The spool's marker, ``MARKER_BYTES`` that can't be predicted from outside; None chooses one.
    """

    def __init__(self, path: Path, marker: bytes | None = None) -> None:
        make_folder(path.parent)
        self._path = path
        self._file = path.open("w+b", buffering=1 << 20)
        self._file.write(file_header(marker))
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

    def write(self, *records: LazySpoolRecord) -> None:
        """Append entries. JPEGs that are still in another spool are loaded one at a time."""
        for record in records:
            self._file.writelines(encode(record, self._marker))


def write_spool(path: Path, records: Iterable[LazySpoolRecord], marker: bytes | None = None) -> None:
    """Create or replace a spool in one step, with these records; it is on disk when this returns."""
    unfinished = path.with_suffix(".begun")
    with SpoolWriter(unfinished, marker) as spool:
        for record in records:
            spool.write(record)
    publish(unfinished, path)


def drop_failures(path: Path, kinds: Collection[str]) -> int:
    """Drop the images of a spool that failed in one of these ways, in one step, so that they are requested again.

    Args:
        path: The spool; nobody has it open.
        kinds: Failure kinds.

    Returns:
        The number of images that were dropped; 0 if there is no spool, which is then not written either.

    Raises:
        ConfigurationError: There is a file that is not a spool of this version.
    """
    dropped = 0

    def kept(file: BinaryIO, marker: bytes) -> Iterator[LazySpoolRecord]:
        nonlocal dropped
        for entry in read_entries(file, marker):
            if isinstance(entry.record, ImageResult) and entry.record.line.outcome in kinds:
                dropped += 1
            else:
                yield entry.record

    try:
        with open_regular(path) as file:
            if is_torn_file_header(file.read(FILE_HEADER_BYTES)):
                return 0
            file.seek(0)
            write_spool(path, kept(file, read_marker(file)))
    except FileNotFoundError:
        return 0
    return dropped


@dataclass(frozen=True, slots=True)
class SpoolPart:
    """A spool that becomes a part of another one.

    Attributes:
        path: The file. If its beginning is missing, it has nothing.
        dropped: Failure kinds; images that failed in one of these ways are left out.
    """

    path: Path
    dropped: frozenset[str] = frozenset()


def merge_spools(path: Path, parts: Iterable[SpoolPart], besides: Iterable[Path] = ()) -> None:
    """Write one spool with what several have, in one step.

    Args:
        path: The new spool, which is replaced.
        parts: Those that it is made of. Of two results of an image the first one is taken.
        besides: Other spools of the shard, whose results are left out.
    """
    known: set[tuple[int, int]] = set()
    for other in besides:
        with open_regular(other) as file:
            if _has_entries(file):
                known.update((sample, image) for _, sample, image in read_positions(file, read_marker(file)))

    def records() -> Iterator[SpoolRecord]:
        for part in parts:
            with open_regular(part.path) as file:
                if not _has_entries(file):
                    continue
                for entry in read_entries(file, read_marker(file)):
                    if isinstance(entry.record, ImageResult):
                        place = entry.record.line.sample, entry.record.line.image
                        is_dropped = entry.record.line.outcome in part.dropped
                    else:
                        place, is_dropped = (entry.record.position, SAMPLE_ENTRY), False
                    if place not in known and not is_dropped:
                        known.add(place)
                        yield entry.record

    write_spool(path, records())


def _has_entries(file: BinaryIO) -> bool:
    """Whether a file begins as a spool; it is left at its start."""
    start = file.read(FILE_HEADER_BYTES)
    file.seek(0)
    return has_file_header(start)


def has_marker(path: Path, marker: bytes) -> bool:
    """Whether there is a spool with this marker at a path.

    Raises:
        ConfigurationError: There is a file that is not a spool of this version.
    """
    try:
        with open_regular(path) as file:
            if is_torn_file_header(file.read(FILE_HEADER_BYTES)):
                return False
            file.seek(0)
            return read_marker(file) == marker
    except FileNotFoundError:
        return False
