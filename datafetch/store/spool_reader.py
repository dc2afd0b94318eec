"""Reads the spools of a shard whose samples have all ended: samples in manifest order, with results of their images."""

from __future__ import annotations

import errno
import io
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datafetch.errors import ConservationError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.regular_file import require_regular
from datafetch.model.sample import Record, Sample
from datafetch.store.spool_format import (
    FILE_HEADER_BYTES,
    SpooledImage,
    StoredImage,
    is_torn_file_header,
    read_marker,
    read_positions,
    read_stored,
)


@dataclass(frozen=True, slots=True)
class SpooledSample:
    """A sample and the results of its images that a spool holds, in the order of the images."""

    sample: Sample
    images: tuple[SpooledImage, ...]

    @property
    def lines(self) -> tuple[LedgerLine, ...]:
        """The ledger lines of these images."""
        return tuple(image.line for image in self.images)

    def record(self, jpeg: Callable[[SpooledImage], bytes]) -> Record:
        """The sample with the outcomes of all of its images.

        Args:
            jpeg: Returns what the record is to hold as the JPEG of an image that arrived.

        Raises:
            ConservationError: An image is missing, or the spool has it twice.
        """
        found = [(image.line.sample, image.line.image) for image in self.images]
        expected = [(self.sample.position, image) for image in range(len(self.sample.urls))]
        if found != expected:
            raise ConservationError(f"the spool has images {found} for sample {self.sample.position}, not {expected}")
        return Record(self.sample, tuple(image.line.to_outcome(jpeg(image)) for image in self.images))


class SpoolReader:
    """Reads the spools of a shard in manifest order, once all of its samples have ended.

    Memory holds 10 bytes per entry, and 58 while the spools are opened. JPEGs, of which a sample may have hundreds,
    stay in their spool until they are loaded; the files remain open until neither this reader nor any of its images is
    referenced.

    Args:
        paths: The spools, at least one.

    Raises:
        FileNotFoundError: None was given, or one is missing.
    """

    def __init__(self, *paths: Path) -> None:
        if not paths:
            raise FileNotFoundError(errno.ENOENT, "there is no spool")
        self._spools: list[tuple[_FileOfImages, bytes]] = []
        samples, images, offsets, numbers = array("q"), array("q"), array("q"), array("H")
        for path in paths:
            require_regular(path)
            file = _FileOfImages(io.FileIO(path))
            if is_torn_file_header(file.read(FILE_HEADER_BYTES)):  # its process was killed before it wrote anything
                continue
            file.seek(0)
            marker = read_marker(file)
            self._spools.append((file, marker))
            for offset, sample, image in read_positions(file, marker):
                samples.append(sample)
                images.append(image)
                offsets.append(offset)
                numbers.append(len(self._spools) - 1)
        order = np.lexsort((np.array(images, np.int64), np.array(samples, np.int64)))
        self._offsets = np.array(offsets, np.int64)[order]
        self._numbers = np.array(numbers, np.uint16)[order]

    def samples(self) -> Iterator[SpooledSample]:
        """All samples with the results of their images, in manifest order.

        Raises:
            ConservationError: There are images without the entry of their sample.
        """
        current: SpooledSample | None = None
        images: list[StoredImage] = []
        for record in self._in_order():
            if isinstance(record, StoredImage):
                if current is None or current.sample.position != record.line.sample:
                    raise ConservationError(f"the spool has images, but no entry, of sample {record.line.sample}")
                images.append(record)
                continue
            # A sample has two entries if the entry of one of its images was damaged and the image was fetched again.
            if current is not None and current.sample.position != record.position:
                yield SpooledSample(current.sample, tuple(images))
            current, images = SpooledSample(record, ()), []
        if current is not None:
            yield SpooledSample(current.sample, tuple(images))

    def _in_order(self) -> Iterator[Sample | StoredImage]:
        for number, offset in zip(self._numbers, self._offsets, strict=True):
            file, marker = self._spools[number]
            record = read_stored(file, marker, int(offset))
            if record is None:
                raise ConservationError(f"{file.name} changed while it was read")
            yield record


class _FileOfImages(io.BufferedReader):
    """A file that closes itself when it is no longer referenced, as the last of its images may outlive the reader."""

    def __del__(self) -> None:
        self.close()
