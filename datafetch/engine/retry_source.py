"""What failed, as a manifest: the samples of which an image is to be tried again.

Rules: nothing is asked of the source that the run was made from; what a retry needs was kept when the shard was
committed. A shard's spool begins with those images that are not tried again, so that the pipeline sees what a run sees
that goes on: samples of which some images have ended.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError
from datafetch.model.interfaces import Samples
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Failure, FailureKind
from datafetch.model.sample import Sample, Shard
from datafetch.output.merge import Output, could_have_row
from datafetch.store.atomic import publish
from datafetch.store.ledger import read_outcomes, read_samples, read_shard_summary
from datafetch.store.retry_filter import Retry
from datafetch.store.spool_format import MARKER_BYTES, ImageResult, StoredImage
from datafetch.store.spool_reader import SpooledSample, SpoolReader
from datafetch.store.spool_writer import has_marker, write_spool


class FailedSamples:
    """Where the samples of a retry come from.

    Args:
        output: Whose failures; its state knows the spools of this retry.
        retry: Which one, and of what.
        shards: Names of all shards of the output, in order.
    """

    def __init__(self, output: Output, retry: Retry, shards: Iterable[str]) -> None:
        self._output = output
        self._retry = retry
        self._shards = [shard for shard in map(self._shard_of, shards) if shard is not None]

    def shards(self) -> Sequence[Shard]:
        """Shards with failures to retry that this retry has not completed yet."""
        return self._shards

    def expected_samples(self) -> int | None:
        """Not known before the shards are opened."""
        return None

    def samples(self, shard: Shard) -> RetriedSamples:
        """The samples of one shard of which an image is tried again; its spool is begun where it was not."""
        spool = self._output.layout.spool(shard.name)
        samples = RetriedSamples(self._output, self._retry, shard)
        marker = _marker(self._retry, shard.source)
        if not has_marker(spool, marker):
            begun = spool.with_suffix(".begun")
            write_spool(begun, samples.images_to_keep(), marker)
            publish(begun, spool)
        return samples

    def _shard_of(self, name: str) -> Shard | None:
        ledger = self._output.layout.ledger(name)
        if not ledger.exists():
            return None
        books = read_shard_summary(ledger)
        failures = (
            Failure(FailureKind(outcome), status=status) for outcome, status in read_outcomes(ledger) if outcome != OK
        )
        if books.retry == self._retry.number or not any(map(self._retry.retry_filter.matches, failures)):
            return None
        return Shard(name, ledger, books.totals.samples, "")


def _marker(retry: Retry, ledger: Path) -> bytes:
    """What the spool of a shard has as its marker when it was begun by this retry and from this very ledger.

    So a spool tells for itself whether the shard was made again since, whatever the clocks say. Like any marker it
    can't be foreseen, for the retry's token is random.
    """
    with ledger.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(retry.token.encode())
    return digest.digest()[:MARKER_BYTES]


@dataclass(frozen=True, slots=True)
class _Failed:
    """A sample with a failed image, what was kept of it, and what its ledger says."""

    kept: SpooledSample
    lines: tuple[LedgerLine, ...]


class RetriedSamples(Samples):
    """The samples of one shard that are tried again; memory holds 8 bytes for each."""

    def __init__(self, output: Output, retry: Retry, shard: Shard) -> None:
        self._output = output
        self._retry = retry
        self._shard = shard.name
        self._all_samples = shard.size
        self._positions = array("q", (failed.kept.sample.position for failed in self._wanted()))

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Sample]:
        wanted = set(self._positions)
        for spooled in SpoolReader(self._output.layout.failed(self._shard)).samples():
            if spooled.sample.position in wanted:
                yield spooled.sample

    @property
    def committed_before(self) -> int:
        """How many samples of the shard are not tried again."""
        return self._all_samples - len(self)

    def images_to_keep(self) -> Iterator[ImageResult | StoredImage]:
        """Those of their images that are not tried again."""
        for failed in self._wanted():
            yield from self._retry.retry_filter.images_to_keep(failed.kept, failed.lines)

    def _wanted(self) -> Iterator[_Failed]:
        wanted = self._retry.retry_filter
        for failed in self._failed():
            sample, lines = failed.kept.sample, failed.lines
            if wanted.matches_any(lines) and could_have_row(self._output.dataset, sample, lines, wanted.matches):
                yield failed

    def _failed(self) -> Iterator[_Failed]:
        """All samples of the shard with a failed image.

        Raises:
            ConfigurationError: They were not kept as the ledger has them.
        """
        path = self._output.layout.failed(self._shard)
        try:
            kept = (spooled for spooled in SpoolReader(path).samples() if spooled.sample.urls)
        except (FileNotFoundError, IsADirectoryError, ConfigurationError) as error:
            raise self._not_as_kept(path) from error
        for lines in read_samples(self._output.layout.ledger(self._shard)):
            if all(line.outcome == OK for line in lines):
                continue
            spooled = next(kept, None)
            if spooled is None or spooled.sample.position != lines[0].sample:
                raise self._not_as_kept(path)
            yield _Failed(spooled, lines)

    def _not_as_kept(self, path: Path) -> ConfigurationError:
        layout = self._output.layout
        cure = (
            ""
            if layout.reshard_record.exists()
            else (
                f"delete {layout.ledger(self._shard)} and run 'datafetch prepare' as before, which fetches the images "
                "of that shard again; or "
            )
        )
        return ConfigurationError(
            f"{path} does not hold what failed in that shard, so it can't be tried again; put back a copy, or {cure}"
            "start over with --fresh"
        )
