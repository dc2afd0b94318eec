"""Images of published shards, by their samples: in rows of pickles, resharded or not, and as files."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from datafetch.datasets.payload import unpack_image
from datafetch.errors import ManifestError, raise_if_exhausted
from datafetch.model.kinds import Loader
from datafetch.output.formats.image_files import published_files
from datafetch.output.formats.output_format import size_bytes
from datafetch.output.formats.pickle_form import FrameOffsets
from datafetch.output.formats.pickle_rows import decode_row, frame_sizes, read_frame
from datafetch.output.reshard.after_run import locate_rows
from datafetch.store.layout import OutputLayout
from datafetch.store.shard_summary import read_shard_counts

_log = logging.getLogger(__name__)
_OFFSET_BITS = 44  # of a file, 16 TB
_MAX_ROWS_BYTES = 64 * 1024 * 1024  # of rows in memory, besides one: all images of a document are asked for together
_MAX_SHARDS = 8  # whose files are in memory


class PublishedImages(Protocol):
    """The images of the published shards of one output."""

    def read(self, shard: int, sample: int, rank: int) -> bytes | None:
        """Read an image.

        Args:
            shard: The number of its shard.
            sample: The position of its sample in the shard.
            rank: How many images before it in the sample arrived.

        Returns:
            The image; None if its sample has no row.

        Raises:
            OSError: A file can't be read.
            ManifestError: A file is damaged.
            ValueError, LookupError, TypeError: A row is damaged.
        """
        ...


class PickledImages:
    """The images in rows of pickles. Memory holds 8 bytes for each sample.

    Args:
        layout: The paths of the output.
        shards: Names of its published shards, in order.
        loader: Which of the trainer's loaders reads the rows.

    Raises:
        ConfigurationError: It is not known which rows the files hold.
    """

    def __init__(self, layout: OutputLayout, shards: Sequence[str], loader: Loader | None) -> None:
        self._loader = loader
        samples = [read_shard_counts(layout.ledger(shard)).samples for shard in shards]
        self._starts = np.concatenate(([0], np.cumsum(samples, dtype=np.int64)))
        self._row_at = np.zeros(int(self._starts[-1]), np.uint64)  # file and offset of the row; 0 for none
        self._files: list[Path] = []
        self._recent: OrderedDict[int, tuple[dict[str, Any], int]] = OrderedDict()
        self._recent_bytes = 0
        for source in locate_rows(layout, shards):
            offsets = _frame_offsets(source.path, source.rows)
            if offsets is not None:
                is_current = source.positions >= 0
                places = np.uint64(len(self._files) << _OFFSET_BITS) | offsets[is_current].astype(np.uint64)
                self._row_at[source.positions[is_current]] = places
                self._files.append(source.path)

    def read(self, shard: int, sample: int, rank: int) -> bytes | None:
        """Read an image from its row, which is kept for a while for its other images."""
        place = int(self._row_at[self._starts[shard] + sample])
        return unpack_image(self._row(place), rank, self._loader) if place else None

    def _row(self, place: int) -> dict[str, Any]:
        if place not in self._recent:
            file, offset = divmod(place, 1 << _OFFSET_BITS)
            frame = read_frame(self._files[file], offset)
            self._recent[place] = decode_row(frame), len(frame)
            self._recent_bytes += len(frame)
            while self._recent_bytes > _MAX_ROWS_BYTES and len(self._recent) > 1:
                _, (_, frame_bytes) = self._recent.popitem(last=False)
                self._recent_bytes -= frame_bytes
        return self._recent[place][0]


class SavedImages:
    """The images that are files, by the indices of their shards."""

    def __init__(self, layout: OutputLayout, shards: Sequence[str], loader: Loader | None) -> None:
        del loader
        self._layout = layout
        self._shards = shards
        self._recent: OrderedDict[int, dict[int, Path]] = OrderedDict()

    def read(self, shard: int, sample: int, rank: int) -> bytes | None:
        """Read a file, if it has the size that the index says; a sample has one image."""
        del rank
        if shard not in self._recent:
            self._recent[shard] = dict(_intact_files(self._layout, self._shards[shard]))
            if len(self._recent) > _MAX_SHARDS:
                self._recent.popitem(last=False)
        path = self._recent[shard].get(sample)
        return None if path is None else path.read_bytes()


def _intact_files(layout: OutputLayout, shard: str) -> Iterator[tuple[int, Path]]:
    for path, file in published_files(layout, shard):
        if not file.is_adopted and size_bytes(path) == file.size_bytes:
            yield file.sample, path


def _frame_offsets(path: Path, rows: int) -> npt.NDArray[np.int64] | None:
    """The offsets of a file's rows; None if it does not have this number, or can't be read."""
    try:
        sizes = np.fromiter(frame_sizes(path), np.int64)
    except (OSError, ManifestError) as error:
        raise_if_exhausted(error)
        _log.warning("%s can't be read (%s): its images are requested again", path, error)
        return None
    if len(sizes) != rows:
        _log.warning("%s has %s rows, not %s: its images are requested again", path, len(sizes), rows)
        return None
    return FrameOffsets(sizes).offsets if rows else None
