"""The crash-safe log of a shard in progress: samples and images, in the order in which they end.

Rules: append only, one writer. Every entry carries its length and checksum, so that after a crash everything up to the
last whole entry counts and a torn tail is cut off. Nothing is decided here: what the entries say is what happened.

The file is a line ``datafetch spool 1``, then entries::

    u32 length of the payload · u32 CRC-32 of the payload · payload
    payload: u8 kind · u32 length of head · head (JSON) · JPEG bytes

Kind ``I`` is an image that ended, its head a ``LedgerLine``; kind ``S`` a sample all of whose images ended.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import aiofiles
import numpy as np
import orjson
from aiofiles.threadpool.binary import AsyncFileIO

from datafetch.errors import ConfigurationError, ConservationError, ResourceError
from datafetch.model import LedgerLine, Record, Sample

_MAGIC = b"datafetch spool 1\n"
_LENGTH_AND_CRC = struct.Struct("<II")
_KIND_AND_HEAD_LENGTH = struct.Struct("<BI")
_IMAGE = ord("I")
_SAMPLE = ord("S")
_SAMPLE_ENTRY = -1  # in the index, where an image has its place in the sample; sorts before them


@dataclass(frozen=True, slots=True)
class ImageEnd:
    """An image that ended: what the ledger will say, and the JPEG (empty where it did not arrive)."""

    line: LedgerLine
    jpeg: bytes


@dataclass(slots=True)
class Recovered:
    """What a spool held when it was opened.

    Attributes:
        samples: Positions of the samples that ended.
        images: Samples that have not ended → the images of theirs that have.
        outcomes: Images by outcome.
        end: Bytes up to the end of the last whole entry.
    """

    samples: set[int] = field(default_factory=set)
    images: dict[int, set[int]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    end: int = 0


class Spool:
    """The writing end, for one shard and any number of tasks of one event loop."""

    def __init__(self, path: Path, file: AsyncFileIO, recovered: Recovered) -> None:
        self.path = path
        self.recovered = recovered
        self._file = file
        self._pending: list[bytes] = []
        self._writing = asyncio.Lock()
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
            return cls(path, await aiofiles.open(path, "ab", buffering=0), recovered)
        except OSError as error:
            raise ResourceError.of_disk(error, f"open the spool {path}") from error

    async def append(self, *ended: ImageEnd | Sample) -> None:
        """Append entries and return when the operating system has them.

        Whoever holds the lock writes for everybody who came meanwhile; a caller waits for at most two writes, so
        what is pending is bounded by the number of callers.

        Raises:
            ResourceError: The disk refused them.
        """
        for one in ended:
            self._pending += _encode(one)
        async with self._writing:
            await self._flush()

    async def close(self) -> None:
        """Write what is pending and let go of the file, which stays."""
        async with self._writing:
            try:
                await self._flush()
            finally:
                await self._file.close()

    async def _flush(self) -> None:
        if self._failure is not None:  # a torn entry may be the last; nothing behind it would be found again
            raise self._failure
        unwritten = memoryview(b"".join(self._pending))
        self._pending.clear()
        try:
            while unwritten:
                unwritten = unwritten[await self._file.write(unwritten) :]
        except OSError as error:
            self._failure = ResourceError.of_disk(error, f"write the spool {self.path}")
            raise self._failure from error


def _recover(path: Path) -> Recovered:
    path.parent.mkdir(parents=True, exist_ok=True)
    recovered = Recovered()
    with path.open("a+b") as file:
        file.seek(0)
        magic = file.read(len(_MAGIC))
        if _MAGIC.startswith(magic) and magic != _MAGIC:
            # New, or torn in its very first bytes.
            file.truncate(0)
            file.write(_MAGIC)
        elif magic != _MAGIC:
            raise ConfigurationError(f"{path} is not a spool of this version of datafetch; --fresh starts over")
        recovered.end = len(_MAGIC)
        for payload in _payloads(file):
            _note(recovered, *_decode_head(payload))
            recovered.end += _LENGTH_AND_CRC.size + len(payload)
        file.truncate(recovered.end)
    return recovered


def _note(recovered: Recovered, kind: int, head: bytes) -> None:
    if kind == _SAMPLE:
        position = _decode_sample(head).position
        recovered.samples.add(position)
        recovered.images.pop(position, None)
    else:
        line = _decode_line(head)
        recovered.images.setdefault(line.sample, set()).add(line.image)
        recovered.outcomes[line.outcome] += 1


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """A record as the spool tells it, with the ledger's lines of its images."""

    record: Record
    lines: tuple[LedgerLine, ...]


class SpoolReader:
    """The reading end, for a shard all of whose samples have ended; 8 bytes an entry, and 56 while it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        samples, images, offsets = array("q"), array("q"), array("q")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ConservationError(f"{path} is not a spool of this version of datafetch")
            offset = len(_MAGIC)
            for payload in _payloads(file):
                kind, head = _decode_head(payload)
                if kind == _SAMPLE:
                    sample, image = _decode_sample(head).position, _SAMPLE_ENTRY
                else:
                    line = _decode_line(head)
                    sample, image = line.sample, line.image
                samples.append(sample)
                images.append(image)
                offsets.append(offset)
                offset += _LENGTH_AND_CRC.size + len(payload)
        order = np.lexsort((np.array(images, np.int64), np.array(samples, np.int64)))
        self._offsets = np.array(offsets, np.int64)[order]

    def records(self) -> Iterator[SpooledRecord]:
        """Every sample with its images, in manifest order.

        Raises:
            ConservationError: An image or a sample is missing or there twice.
        """
        with self._path.open("rb") as file:
            sample: Sample | None = None
            ended: list[ImageEnd] = []
            for offset in self._offsets:
                file.seek(int(offset))
                payload = next(_payloads(file))
                kind, head = _decode_head(payload)
                if kind == _SAMPLE:
                    if sample is not None:
                        yield _join(sample, ended)
                    sample, ended = _decode_sample(head), []
                else:
                    ended.append(ImageEnd(_decode_line(head), payload[_KIND_AND_HEAD_LENGTH.size + len(head) :]))
            if sample is not None:
                yield _join(sample, ended)


def _join(sample: Sample, ended: list[ImageEnd]) -> SpooledRecord:
    places = [(end.line.sample, end.line.image) for end in ended]
    expected = [(sample.position, image) for image in range(len(sample.urls))]
    if places != expected:
        raise ConservationError(f"the spool has images {places} for sample {sample.position}, not {expected}")
    outcomes = tuple(end.line.to_outcome(end.jpeg) for end in ended)
    return SpooledRecord(Record(sample, outcomes), tuple(end.line for end in ended))


def _encode(ended: ImageEnd | Sample) -> tuple[bytes, ...]:
    """One entry, in pieces."""
    if isinstance(ended, ImageEnd):
        kind, head, jpeg = _IMAGE, orjson.dumps(ended.line), ended.jpeg
    else:
        kind, head, jpeg = _SAMPLE, orjson.dumps(ended), b""
    start = _KIND_AND_HEAD_LENGTH.pack(kind, len(head)) + head
    crc = zlib.crc32(jpeg, zlib.crc32(start))
    return _LENGTH_AND_CRC.pack(len(start) + len(jpeg), crc), start, jpeg


def _payloads(file: BinaryIO) -> Iterator[bytes]:
    """The payloads from here to the last whole entry."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left >= _LENGTH_AND_CRC.size:
        length, crc = _LENGTH_AND_CRC.unpack(file.read(_LENGTH_AND_CRC.size))
        left -= _LENGTH_AND_CRC.size + length
        if left < 0:
            return
        payload = file.read(length)
        if len(payload) < _KIND_AND_HEAD_LENGTH.size or zlib.crc32(payload) != crc:
            return
        yield payload


def _decode_head(payload: bytes) -> tuple[int, bytes]:
    kind, length = _KIND_AND_HEAD_LENGTH.unpack_from(payload)
    return kind, payload[_KIND_AND_HEAD_LENGTH.size : _KIND_AND_HEAD_LENGTH.size + length]


def _decode_sample(head: bytes) -> Sample:
    fields = orjson.loads(head)
    return Sample(fields["position"], fields["key"], tuple(fields["urls"]), fields["row"])


def _decode_line(head: bytes) -> LedgerLine:
    return LedgerLine(**orjson.loads(head))
