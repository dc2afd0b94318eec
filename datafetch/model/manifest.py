"""Interfaces of what samples come from: a dataset's manifest, its shards, and what it reads where that is published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Protocol

from datafetch.model.ledger_line import ShardCounts
from datafetch.model.sample import IdListResult, Sample, Shard


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

    def starting_at(self, position: int) -> Iterator[Sample]:
        """The samples from a position on. By default those before it are read and skipped."""
        return islice(iter(self), position, None)

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
