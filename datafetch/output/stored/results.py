"""StoredResults: what became of each image of an output, found by its URL, with its JPEG.

Theory of operation: an output has its images in three places: in the rows or files of published shards, which their
ledgers describe; in spools of shards in progress; and in what was kept for a retry. ``UrlIndex`` has one number for
each of them. With the highest bit, it is the number of a spool and an offset in it, where the whole result is. Without,
it is the number of a line of the ledgers, and which of its sample's images that arrived it is; the line has the sample,
and ``PublishedImages`` finds the image of a sample.

Rules: nothing is changed, and what can't be read is not there. Lines and images are read when they are asked for, by
one thread.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datafetch.errors import ConfigurationError, ManifestError, raise_if_exhausted
from datafetch.model.kinds import Loader
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK
from datafetch.model.regular_file import open_regular
from datafetch.output.formats import FORMATS, PickleFormat
from datafetch.output.formats.image_files import ImageFilesFormat
from datafetch.output.stored.images import PickledImages, PublishedImages, SavedImages
from datafetch.output.stored.ledger_lines import LedgerLines
from datafetch.output.stored.url_index import UrlIndex
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_format import ImageResult, read_entries, read_entry, read_marker

_log = logging.getLogger(__name__)
_IN_SPOOL = 1 << 63
_OFFSET_BITS = 43  # of a spool, 8 TB
_MAX_SPOOLS = 1 << (63 - _OFFSET_BITS)
_RANK_BITS = 16  # a sample has fewer images
_READERS: dict[str, Callable[[OutputLayout, Sequence[str], Loader | None], PublishedImages]] = {
    PickleFormat.name: PickledImages,
    ImageFilesFormat.name: SavedImages,
}


def can_read_images(layout: OutputLayout) -> bool:
    """Whether images can be read from published shards of the output's format."""
    return FORMATS[layout.output_format].name in _READERS


class StoredResults:
    """The results of an output's images by URL.

    Memory holds 16 bytes for each image and 8 for each sample.

    Args:
        layout: The paths of the output, which nobody changes.
        shards: Names of the shards of its job, in order.
        loader: Which of the trainer's loaders reads its rows.
        spool_folders: The folders with spools of shards in progress.
    """

    def __init__(
        self, layout: OutputLayout, shards: Iterable[str], loader: Loader | None, spool_folders: Iterable[Path]
    ) -> None:
        self._layout = layout
        self._has_warned = False
        self._index = UrlIndex()
        self._shards: list[str] = []
        with self._reading(layout.out):
            published = [shard for shard in shards if layout.ledger(shard).is_file()]
            self._lines = LedgerLines([layout.ledger(shard) for shard in published])
            self._images = _READERS[layout.output_format](layout, published, loader)
            self._shards = published
        self._add_ledgers()
        folders = (*spool_folders, layout.kept_for_retry("").parent)
        self._spools = [path for folder in folders for path in sorted(folder.glob("*.spool"))][:_MAX_SPOOLS]
        for number, path in enumerate(self._spools):
            with self._reading(path):
                self._add_spool(number, path)
        self._index.sort()

    def __len__(self) -> int:
        """The number of results."""
        return len(self._index)

    def find(self, url: str, accepts: Callable[[LedgerLine], bool]) -> ImageResult | None:
        """A result of a URL.

        Args:
            url: The URL, as published.
            accepts: Whether a result is wanted, by its line.

        Returns:
            The result, whose line is that of the image that it was; None if there is none that is wanted and whose
            JPEG can be read.
        """
        for number in self._index.find(url):
            result = None
            with self._reading(self._layout.out):
                result = self._read(number, url, accepts)
            if result is not None:
                return result
        return None

    def _add_ledgers(self) -> None:
        number = 0
        for ledger in range(len(self._shards)):
            sample_before, rank = -1, 0
            for sample, url, outcome in self._lines.urls(ledger):
                if sample != sample_before:
                    sample_before, rank = sample, 0
                self._index.add(url, number << _RANK_BITS | rank)
                rank += outcome == OK
                number += 1

    def _add_spool(self, number: int, path: Path) -> None:
        with open_regular(path) as file:
            for entry in read_entries(file, read_marker(file)):
                if isinstance(entry.record, ImageResult):
                    self._index.add(entry.record.line.url, _IN_SPOOL | number << _OFFSET_BITS | entry.offset)

    def _read(self, number: int, url: str, accepts: Callable[[LedgerLine], bool]) -> ImageResult | None:
        if number & _IN_SPOOL:
            result = self._read_spooled(number ^ _IN_SPOOL)
            return result if result is not None and _is_wanted(result.line, url, accepts) else None
        line_number, rank = divmod(number, 1 << _RANK_BITS)
        numbered = self._lines.read(line_number)
        line = numbered.line
        if not _is_wanted(line, url, accepts):
            return None
        if line.outcome != OK:
            return ImageResult(line, b"")
        jpeg = self._images.read(numbered.ledger, line.sample, rank)
        return ImageResult(line, jpeg) if jpeg and _fits(line, jpeg) else None

    def _read_spooled(self, number: int) -> ImageResult | None:
        spool, offset = divmod(number, 1 << _OFFSET_BITS)
        with open_regular(self._spools[spool]) as file:
            entry = read_entry(file, read_marker(file), offset)
        return entry.record if entry is not None and isinstance(entry.record, ImageResult) else None

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Take what can't be read for absent, and say so once."""
        try:
            yield
        except (OSError, ConfigurationError, ManifestError, ValueError, LookupError, TypeError) as error:
            raise_if_exhausted(error)
            if not self._has_warned:
                _log.warning("not all of %s can be read (%s): such images are requested again", path, error)
            self._has_warned = True


def _is_wanted(line: LedgerLine, url: str, accepts: Callable[[LedgerLine], bool]) -> bool:
    return line.url == url and accepts(line)  # two URLs may have the same hash


def _fits(line: LedgerLine, jpeg: bytes) -> bool:
    """Whether an image may be that of a line; of one that is a body as received, this is certain."""
    return not line.is_original or hashlib.sha256(jpeg).hexdigest() == line.sha256
