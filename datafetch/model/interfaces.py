"""What the rooms promise one another, as types: where samples come from, what a dataset is, where rows go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import Fetched, Outcome
from datafetch.model.sample import IdListResult, Record, Row, Sample, Shard


class ImageTranscoder(Protocol):
    """Turns bodies into JPEGs, several at a time."""

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it as JPEG; a failure comes straight back.

        Raises:
            ResourceError: This machine can't transcode any more.
        """
        ...


class Samples(Protocol):
    """The samples of one shard: their number is known, they themselves are read as they are asked for.

    A dataset with nothing to note that wants every row inherits the two properties.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    @property
    def notes(self) -> Mapping[str, int]:
        """What was counted when they were looked through, by ``CounterName``."""
        return {}

    @property
    def row_numbers(self) -> frozenset[int] | None:
        """Which of the rows that they become are wanted, counted from 0 in their order; None is all."""
        return None


class ShardSource(Protocol):
    """Where shards and their samples come from."""

    def shards(self) -> Sequence[Shard]:
        """All shards, in order; their names sort the same way."""
        ...

    def expected_samples(self) -> int | None:
        """How many samples there are about to be, as far as is known without reading everything."""
        ...

    def samples(self, shard: Shard) -> Samples:
        """The samples of one shard; the same ones on every call.

        Raises:
            ManifestError: The shard's file is not what it should be.
        """
        ...


class Manifest(ShardSource, Protocol):
    """A dataset bound to a source folder."""

    def max_samples(self) -> int:
        """About how many samples there may be at most; known without reading everything."""
        ...

    def identity_fields(self) -> Mapping[str, object]:
        """What decides the rows besides the files and the id list, as JSON: how they are read."""
        ...

    def selection(self, keys: Iterable[str], books: Mapping[str, ShardCounts]) -> IdListResult | None:
        """What became of the id list; None without a list.

        Args:
            keys: Of every sample there was, some perhaps several times.
            books: Of every shard that is published.
        """
        ...


class Dataset(Protocol):
    """What one published dataset is, and what was chosen of it. Instances are stateless and pickle."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def path(self) -> str:
        """Where the trainer expects it, under the root."""
        ...

    @property
    def loader(self) -> Loader:
        """Which of the trainer's loaders reads it."""
        ...

    @property
    def output_format(self) -> str:
        """The name of the format of its output (``datafetch.output.formats``)."""
        ...

    @property
    def list_name(self) -> str | None:
        """The JSON list beside the output folder that the trainer reads, where there is one."""
        ...

    @property
    def payloads(self) -> frozenset[Payload]:
        """How a row may hold images."""
        ...

    @property
    def supported_options(self) -> frozenset[str]:
        """What may be chosen of it: fields of ``Choices``, and ``ids``."""
        ...

    @property
    def short_side_px(self) -> int | None:
        """The recipe's limit for an image's short side; None leaves sizes alone."""
        ...

    @property
    def keeps_bodies(self) -> bool:
        """Whether images are kept as received, whatever their format."""
        ...

    @property
    def least_pixels(self) -> int:
        """Images with fewer are stand-ins for images that are gone."""
        ...

    def bind(self, source: Path, ids: Path | None) -> Manifest:
        """Open a manifest.

        Raises:
            ManifestError: Something that every run would trip over: no files, wrong files, missing columns.
        """
        ...

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row, whatever its other images come to.

        It is true exactly where ``to_row`` gives None though all other images arrive.

        Args:
            sample: Which one.
            failed: Positions of its images that cannot be had.
        """
        ...

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row for a finished sample, or None to drop it. Total: defined for every mix of outcomes.

        Args:
            record: The sample with its outcomes.
            payload: How the row holds its images.
        """
        ...
