"""Interfaces between packages: where samples come from, what a dataset is, and where rows go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, Self, TypeVar

from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import DatasetOptions
from datafetch.model.outcome import Fetched, Outcome
from datafetch.model.request import Request
from datafetch.model.sample import IdListResult, Record, Row, Sample, Shard

_Reservation_contra = TypeVar("_Reservation_contra", contravariant=True)


class FetchActivity(Protocol):
    """A snapshot of what is being fetched, as far as a run shows it."""

    @property
    def fetched_bytes(self) -> int:
        """Body bytes received so far, before decompression."""
        ...

    @property
    def connections(self) -> int:
        """Number of requests that may be in flight now, hanging ones not counted."""
        ...

    @property
    def open_requests(self) -> int:
        """Number of requests in flight now."""
        ...


class Fetch(Protocol[_Reservation_contra]):
    """Fetches URLs, from any number of tasks of one event loop.

    It is generic in the kind of memory reservation that it counts bodies against.
    """

    @property
    def retries(self) -> int:
        """Number of further attempts after a failure that may pass."""
        ...

    @property
    def max_connections(self) -> int:
        """Number of requests that may be in flight at any time."""
        ...

    def call_limiter(self, calls_per_connection: int) -> AbstractAsyncContextManager[None]:
        """Make a limiter that admits this many calls for each connection; enter it around each call."""
        ...

    def statistics(self) -> FetchActivity:
        """Take a snapshot."""
        ...

    async def __call__(self, request: str | Request, *, memory: _Reservation_contra | None = None) -> Fetched:
        """Fetch one file, or one range of its bytes.

        Args:
            request: A URL as published, or a request with more to say than a URL.
            memory: The reservation that the body is counted against, for a caller who holds the body after the call.

        Returns:
            The body, or the failure of the last attempt; faults of the web are never raised.

        Raises:
            ResourceError: This machine has no descriptors or no memory for connections.
        """
        ...


class ImageTranscoder(Protocol):
    """Encodes response bodies as JPEGs, several at a time."""

    async def __call__(self, body: Fetched | bytes) -> Outcome:
        """Decode one image and encode it as JPEG; a failure to fetch it is returned unchanged.

        Raises:
            ResourceError: This machine can no longer transcode images.
        """
        ...


class Samples(Protocol):
    """The samples of one shard: their number is known, and they are read on demand.

    A dataset with nothing to note that wants every row inherits the properties.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    @property
    def notes(self) -> Mapping[str, int]:
        """What was counted while the manifest was scanned, by ``CounterName``."""
        return {}

    @property
    def row_numbers(self) -> frozenset[int] | None:
        """Which of the rows that they become are selected, counted from 0 in their order; None selects all."""
        return None

    @property
    def committed_before(self) -> int:
        """How many other samples the shard has, which were committed before and stay as they are."""
        return 0


class ShardSource(Protocol):
    """A source of shards and their samples."""

    def shards(self) -> Sequence[Shard]:
        """All shards, in order; their names sort the same way."""
        ...

    def expected_samples(self) -> int | None:
        """The approximate number of samples; None if it is not known without reading everything."""
        ...

    def samples(self, shard: Shard) -> Samples:
        """The samples of one shard; the same on every call.

        Raises:
            ManifestError: The manifest file is damaged, or not of the expected form.
        """
        ...


class Manifest(ShardSource, Protocol):
    """A dataset bound to a source folder. It inherits what it has nothing of its own to say about."""

    def expected_samples(self) -> int | None:
        """How many samples there are about to be; None where that is not known without reading everything."""
        return None

    def max_samples(self) -> int:
        """About how many samples there may be at most; known without reading everything.

        That is as many as are expected, or the sizes of all shards; a manifest whose shards are measured in bytes
        estimates it.
        """
        expected = self.expected_samples()
        return sum(shard.size for shard in self.shards()) if expected is None else expected

    def identity_fields(self) -> Mapping[str, object]:
        """What decides the rows besides the files, the id list and the values of options, as JSON.

        Of each option whose effect is ``Effect.MANIFEST`` that is what it came to: the key that was detected, the hash
        of the file that was named.
        """
        return {}

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - for those with a list
        """What became of the id list; None without a list.

        Args:
            keys: Of every sample there was, some perhaps several times.
            counts: Of every shard that is published.
        """
        return None


class Dataset(Protocol):
    """What one published dataset is, with its options. Instances are stateless and pickle."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def path(self) -> str:
        """Where the trainer expects it, under the root."""
        ...

    @property
    def summary(self) -> str:
        """What it is, in a line of help."""
        ...

    @property
    def loader(self) -> Loader | None:
        """Which of the trainer's loaders reads it; None where that is not known, and nothing is done for it."""
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
    def id_list(self) -> str | None:
        """What a line of its id list holds; None where it takes no list."""
        ...

    @property
    def options(self) -> DatasetOptions:
        """What was set for it; the class says what can be."""
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

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options.

        Raises:
            ConfigurationError: They are another dataset's.
        """
        ...

    def refuse_retry(self) -> None:
        """See that failed images may be fetched again and added to the rows that there are.

        Raises:
            ConfigurationError: An option makes other rows depend on them.
        """
        ...

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """The row for a finished sample, or None to drop it. Total: defined for every mix of outcomes.

        Args:
            record: The sample with its outcomes.
            payload: How the row holds its images.
        """
        ...
