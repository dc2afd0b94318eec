"""Interfaces between packages: how images are fetched and transcoded, where samples come from, what a dataset is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, Self, TypeVar

from datafetch.model.kinds import Loader, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import DatasetOptions
from datafetch.model.outcome import Fetched, Outcome
from datafetch.model.request import Request
from datafetch.model.sample import IdListResult, Record, Row, Sample, Shard
from datafetch.model.statistics import Waiting

_Reservation_contra = TypeVar("_Reservation_contra", contravariant=True)


class FetchActivity(Protocol):
    """A snapshot of what is being fetched: the part of the fetcher's statistics that a run's progress shows."""

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

    @property
    def waiting(self) -> Waiting | None:
        """What most calls wait for before they can send their next request; None if no call waits for its host."""
        ...


class Fetch(Protocol[_Reservation_contra]):
    """Fetches URLs, from any number of tasks of one event loop.

    Generic in the type of the memory reservation that bodies are counted against.
    """

    @property
    def retries(self) -> int:
        """Number of further attempts after a failure that may pass."""
        ...

    @property
    def max_connections(self) -> int:
        """Number of requests that may be in flight at any time."""
        ...

    @property
    def unused_proxy(self) -> str:
        """The environment variable that names a proxy which is not used; empty if there is none."""
        ...

    @property
    def used_proxies(self) -> str:
        """The proxies that are used, with the environment variables that name them; empty if there are none."""
        ...

    def call_limiter(self, calls_per_connection: int) -> AbstractAsyncContextManager[None]:
        """Make a limiter that admits this many calls for each connection; enter it around each call."""
        ...

    def statistics(self) -> FetchActivity:
        """Take a snapshot."""
        ...

    async def __call__(
        self, request: str | Request, *, memory: _Reservation_contra | None = None, until_s: float | None = None
    ) -> Fetched:
        """Fetch one file, or one range of its bytes.

        Args:
            request: A URL as published, or a ``Request`` for a part of a file or for an unchanged one.
            memory: The reservation that the body is counted against, for a caller that holds the body after the call.
            until_s: When the call ends at the latest, by the event loop's clock; None lets it end by itself.

        Returns:
            The body, or the failure of the last attempt; faults of the web are never raised.

        Raises:
            ResourceError: This machine has no descriptors or no memory for connections, or no name server that
                answers, no network or no proxy.
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


class RemoteFile(Protocol):
    """A file on a server, of which ranges are read where it is; from any thread but that of the event loop.

    Each result comes as a future. It has a ``ManifestError`` if the file can't be read or has changed, and is cancelled
    when the job ends.
    """

    @property
    def name(self) -> str:
        """The file in messages: without secrets."""
        ...

    def find_size(self) -> Future[int]:
        """Request the size of the file in bytes, as the server claims it."""
        ...

    def read(self, start: int, stop: int) -> Future[bytes]:
        """Request a range of its bytes, which lies within the file.

        Args:
            start: Offset of the first byte.
            stop: Offset behind the last byte.
        """
        ...


class ScanCache(Protocol):
    """Keeps what scans of a job's manifest files found, for a run that resumes the job."""

    def read(self, key: str, max_bytes: int) -> bytes | None:
        """Return what was kept; None if there is nothing, or more than this. It may be damaged.

        Args:
            key: Names the scan, and everything that its result depends on: a hash in hexadecimal.
            max_bytes: The size of the largest possible result.
        """
        ...

    def write(self, key: str, content: bytes) -> None:
        """Keep the result of a scan.

        Raises:
            OSError: It can't be written.
        """
        ...


class Samples(Protocol):
    """The samples of one shard: their number is known, and they are read on demand.

    A class that counts nothing and selects every row inherits the properties.
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
    def published_before(self) -> int:
        """How many other samples the shard has, which are published already and stay as they are."""
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
    """A dataset bound to a source folder. Methods with a default need not be implemented."""

    def expected_samples(self) -> int | None:
        """The approximate number of samples; None if it is not known without reading everything."""
        return None

    def max_samples(self) -> int:
        """An approximate upper bound of the number of samples, known without reading everything.

        By default it is the expected number, or else the sum of the sizes of all shards. A manifest whose shards are
        measured in bytes overrides it with an estimate.
        """
        expected = self.expected_samples()
        return sum(shard.size for shard in self.shards()) if expected is None else expected

    def identity_fields(self) -> Mapping[str, object]:
        """Everything that decides the rows besides the files, the id list and the values of options, as JSON values.

        For each option whose effect is ``Effect.MANIFEST``, this is its result: the key that was detected, or the hash
        of the file that was given.
        """
        return {}

    def choices(self) -> Sequence[str]:
        """What it takes because no id list, or whatever else could select, was given; a sentence for each choice."""
        return ()

    def keep_scans(self, cache: ScanCache) -> None:  # noqa: ARG002 - for those that are slow to scan
        """Use what earlier runs found where scanning files takes long, and keep what this one finds.

        Args:
            cache: Where it is kept; it belongs to the same job.
        """
        return  # without it, type checkers take the method for abstract

    def write_list(self, path: Path) -> None:
        """Write the JSON list of a dataset that makes it (``Dataset.makes_list``); others are never asked to.

        Args:
            path: The file to write.

        Raises:
            ManifestError: A manifest file is damaged.
        """
        raise AssertionError(path)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - for those with a list
        """How the ids of the id list were found in the manifest; None without a list.

        Args:
            keys: The keys of all samples; a key may be repeated.
            counts: The counts of all published shards, by name.
        """
        return None


class Dataset(Protocol):
    """A published dataset with its options. Instances are stateless and can be pickled."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def path(self) -> str:
        """The path at which the trainer expects it, below its data root."""
        ...

    @property
    def summary(self) -> str:
        """A one-line description for the help."""
        ...

    @property
    def loader(self) -> Loader | None:
        """The trainer's loader that reads it; None if it is unknown, and the output is not adapted to one."""
        ...

    @property
    def output_format(self) -> str:
        """The name of the format of its output (``datafetch.output.formats``)."""
        ...

    @property
    def list_name(self) -> str | None:
        """File name of the JSON list next to the output folder that the trainer reads; None if there is none."""
        ...

    def select_published(self, names: Sequence[str]) -> Sequence[str]:
        """Which files of the repository in which it is published have to be downloaded.

        Args:
            names: The paths of all of its files, in order.

        Returns:
            Those that are needed; none if it can't be read from there.
        """
        ...

    @property
    def list_root(self) -> str:
        """The folder to which the paths in its list are relative, relative to the output."""
        ...

    @property
    def lists_images(self) -> bool:
        """Whether its samples are the images that the records of its list name, and not the records."""
        ...

    @property
    def makes_list(self) -> bool:
        """Whether its list is made from its manifest, because none is published."""
        ...

    @property
    def kept_list(self) -> str:
        """The path of a copy of its published list, to be read in place of the one in the source; mostly empty."""
        ...

    @property
    def payloads(self) -> frozenset[Payload]:
        """The ways in which its rows may hold images."""
        ...

    @property
    def id_list(self) -> str | None:
        """What a line of its id list contains; None if it takes no list."""
        ...

    @property
    def options(self) -> DatasetOptions:
        """The values of its options; their class declares which options it has."""
        ...

    @property
    def short_side_px(self) -> int | None:
        """The recipe's limit for the short side of an image; None keeps the sizes."""
        ...

    @property
    def keeps_bodies(self) -> bool:
        """Whether images are kept as received, in any format."""
        ...

    @property
    def min_pixels(self) -> int:
        """Images with fewer pixels are placeholders that sites serve for images that are gone."""
        ...

    @property
    def archives(self) -> tuple[str, ...]:
        """File names of the zip archives that hold its images; empty if it has none."""
        ...

    @property
    def adopts_files(self) -> bool:
        """Whether files that have the right content already are taken as they are, instead of being fetched."""
        ...

    @property
    def image_root(self) -> str | None:
        """The folder with the images that its records name, relative to the output; None if they are fetched."""
        ...

    def bind(self, source: Path, ids: Path | None) -> Manifest:
        """Open the manifest in a source folder.

        Args:
            source: The source folder or file.
            ids: The id list; None without one.

        Raises:
            ManifestError: No run with it could succeed, because files or columns are missing or wrong.
        """
        ...

    @property
    def reads_in_place(self) -> bool:
        """Whether its files on the hub are read where they are, as much of them as is needed, and not downloaded."""
        ...

    def bind_in_place(self, files: Sequence[RemoteFile], ids: Path | None) -> Manifest:
        """Open the manifest of a dataset that is read where it is. Blocks, and not in the event loop's thread.

        Args:
            files: The files that ``select_published`` selects, in order.
            ids: The id list; None without one.

        Raises:
            ManifestError: No run with it could succeed, because files or columns are missing or wrong.
        """
        ...

    def archive_location(self, source: str) -> str:
        """Where its archives are: one of them, or the folder or URL of all.

        Args:
            source: What the job gives as its source.
        """
        ...

    def bind_archives(self, source: Path, copies: Sequence[Path]) -> Manifest:
        """Open the manifest of a dataset with archives.

        Args:
            source: The source folder or file, for a dataset that has more than archives.
            copies: Copies of the directories of its archives, in order.

        Raises:
            ManifestError: No run with it could succeed, because something is missing or damaged.
        """
        ...

    def with_kept_list(self, path: Path) -> Self:
        """The same dataset, which reads its published list from this path, and all else from the source."""
        ...

    def options_for_limit(self, limit: int) -> DatasetOptions:
        """The options for a miniature of the recipe, of which only the first samples are fetched.

        Args:
            limit: The number of samples.

        Returns:
            Its options, changed if it otherwise requires a number of samples.
        """
        ...

    def options_for_lists(self, lists: Sequence[str]) -> DatasetOptions:
        """The options with which only those images are fetched that training lists name.

        Args:
            lists: The paths of the lists; none for all images.

        Returns:
            Its options, changed if it is a set of images that lists name.
        """
        ...

    def list_images(self, record: object) -> Sequence[str]:
        """The names of the images of a record of its published list, which are keys of samples.

        Args:
            record: The record.

        Returns:
            The names; none for a record that is text only.

        Raises:
            ValueError: The trainer can't use the record; the message is the reason.
        """
        ...

    def list_text(self, text: str, record: object) -> str:
        """A record as the list that the trainer reads has it.

        Args:
            text: The record as it stands in the published list.
            record: The same record, parsed.
        """
        ...

    def is_lost(self, sample: Sample, failed: Collection[int]) -> bool:
        """Whether a sample can no longer become a row, even if all of its other images arrive.

        This is true if and only if ``to_row`` returns None when all other images have arrived.

        Args:
            sample: The sample.
            failed: The positions of its images that failed.
        """
        ...

    def with_options(self, options: DatasetOptions) -> Self:
        """The same dataset with other options.

        Raises:
            ConfigurationError: The options belong to another dataset.
        """
        ...

    def refuse_retry(self) -> None:
        """Check that a retry can add failed images without changing other rows.

        Raises:
            ConfigurationError: With one of the options, other rows depend on which images arrived.
        """
        ...

    def to_row(self, record: Record, payload: Payload) -> Row | None:
        """Build the row of a sample; None drops the sample. Defined for every combination of outcomes.

        Args:
            record: The sample with its outcomes.
            payload: How the row holds its images.
        """
        ...
