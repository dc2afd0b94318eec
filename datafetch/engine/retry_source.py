"""FailedSamples: the shard source of a retry, which hands out the samples with a failed image that is fetched again.

To the pipeline, a retry looks like an interrupted run. When a shard is committed, the samples with a failed image are
kept in ``failed/<shard>.spool``, together with those of their images that arrived and may be needed. From them and the
ledger a retry writes the spool of the shard: for each sample that it selects, the results of those images that it does
not fetch again. The feed opens this spool like that of an interrupted run, and the pipeline fetches all images that
have no result in it.

A shard is in one of three states:

* unopened: its spool is absent, or has another marker (``_marker``) than this retry and the present ledger give: then
  the shard was committed again since. The spool is then written again. It gets its name only once it is complete and
  on disk, so an image without a result in it was never fetched by this retry.
* open: its spool has this marker. It is used as it is, with all results that an interrupted retry has added to it.
* published: its ledger has the number of this retry. The shard is not handed out again.

Rules: the manifest is not read; everything that a retry needs was kept when the shard was committed. Which images are
fetched again is decided by ``RetryFilter`` alone, here and in the merge.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datafetch.errors import ConfigurationError
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.manifest import Samples
from datafetch.model.outcome import OK, Failure, FailureKind
from datafetch.model.regular_file import NotRegularFileError, open_regular
from datafetch.model.sample import Sample, Shard
from datafetch.output.merge import Output, could_have_row
from datafetch.output.retry_filter import Retry
from datafetch.store.ledger_reader import read_failures, read_samples
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool_format import MARKER_BYTES, ImageResult, StoredImage
from datafetch.store.spool_reader import SpooledSample, SpoolReader
from datafetch.store.spool_writer import has_marker, write_spool


class FailedSamples:
    """The shards and samples of a retry.

    Args:
        output: The output whose failures are fetched again; its layout has the spools of this retry.
        retry: The retry.
        shards: Names of all shards of the output, in order.
    """

    def __init__(self, output: Output, retry: Retry, shards: Iterable[str]) -> None:
        self._output = output
        self._retry = retry
        self._shards = [shard for shard in map(self._shard_of, shards) if shard is not None]

    def shards(self) -> Sequence[Shard]:
        """The shards with failures that this retry selects and has not fetched again yet."""
        return self._shards

    def expected_samples(self) -> int | None:
        """None: the number is not known before the shards are opened."""
        return None

    def samples(self, shard: Shard) -> RetriedSamples:
        """The samples of one shard of which an image is fetched again; writes its spool unless it is to be resumed."""
        spool = self._output.layout.spool(shard.name)
        samples = RetriedSamples(self._output, self._retry, shard)
        marker = _marker(self._retry, shard.source)
        if not has_marker(spool, marker):
            self._output.layout.delete_spools(shard.name)
            write_spool(spool, samples.images_to_keep(), marker)
        return samples

    def _shard_of(self, name: str) -> Shard | None:
        ledger = self._output.layout.ledger(name)
        if not ledger.exists():
            return None
        summary = read_shard_summary(ledger)
        if summary.retry == self._retry.number or not self._has_selected(read_failures(ledger)):
            return None
        return Shard(name, ledger, summary.totals.samples, "")

    def _has_selected(self, failures: Iterable[Failure]) -> bool:
        """Whether a shard with these failures may have images to fetch; its samples tell whether it has."""
        matches = self._retry.retry_filter.matches
        return any(failure.kind is FailureKind.NOT_REQUESTED or matches(failure) for failure in failures)


def _marker(retry: Retry, ledger: Path) -> bytes:
    """The marker of a shard's spool that this retry has begun from the present content of the ledger.

    So the spool itself shows whether the shard was committed again since, whatever the clocks say. Like any marker it
    can't be foreseen, because the retry's token is random.
    """
    with open_regular(ledger) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(retry.token.encode())
    return digest.digest()[:MARKER_BYTES]


@dataclass(frozen=True, slots=True)
class _FailedSample:
    """A sample with a failed image.

    Attributes:
        kept: The sample, and its images that arrived.
        lines: The ledger lines of all of its images.
    """

    kept: SpooledSample
    lines: tuple[LedgerLine, ...]


class RetriedSamples(Samples):
    """The samples of one shard of which an image is fetched again; 8 bytes of memory for each."""

    def __init__(self, output: Output, retry: Retry, shard: Shard) -> None:
        self._output = output
        self._retry = retry
        self._shard = shard.name
        self._all_samples = shard.size
        self._positions = array("q", (failed.kept.sample.position for failed in self._selected()))

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Sample]:
        positions = set(self._positions)
        for spooled in SpoolReader(self._output.layout.kept_for_retry(self._shard)).samples():
            if spooled.sample.position in positions:
                yield spooled.sample

    @property
    def published_before(self) -> int:
        """The number of samples of the shard that are not fetched again."""
        return self._all_samples - len(self)

    def images_to_keep(self) -> Iterator[ImageResult | StoredImage]:
        """The results of those of their images that are not fetched again."""
        for failed in self._selected():
            yield from self._retry.retry_filter.images_to_keep(failed.kept, failed.lines)

    def _selected(self) -> Iterator[_FailedSample]:
        """The samples with an image that the retry selects, if they could become a row."""
        retry_filter = self._retry.retry_filter
        for failed in self._failed():
            sample, lines = failed.kept.sample, failed.lines
            if retry_filter.select(lines) and could_have_row(self._output.dataset, sample, lines, retry_filter):
                yield failed

    def _failed(self) -> Iterator[_FailedSample]:
        """All samples of the shard with a failed image.

        Raises:
            ConfigurationError: The samples that were kept are not those that failed by the ledger.
        """
        path = self._output.layout.kept_for_retry(self._shard)
        try:
            kept = (spooled for spooled in SpoolReader(path).samples() if spooled.sample.urls)
        except (FileNotFoundError, NotRegularFileError, ConfigurationError) as error:
            raise self._not_as_in_ledger(path) from error
        for lines in read_samples(self._output.layout.ledger(self._shard)):
            if all(line.outcome == OK for line in lines):
                continue
            spooled = next(kept, None)
            if spooled is None or spooled.sample.position != lines[0].sample:
                raise self._not_as_in_ledger(path)
            yield _FailedSample(spooled, lines)

    def _not_as_in_ledger(self, path: Path) -> ConfigurationError:
        layout = self._output.layout
        way_out = (
            ""
            if layout.reshard_record.exists()
            else (
                f"delete {layout.ledger(self._shard)} and run 'datafetch prepare' as before, which fetches the images "
                "of that shard again; or "
            )
        )
        return ConfigurationError(
            f"{path} does not hold what failed in that shard, so it can't be fetched again; "
            f"put back a copy, or {way_out}start over with --fresh, which fetches everything again"
        )
