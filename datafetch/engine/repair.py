"""Repair: fetch again the images whose rows were in a resharded file that is lost, and write these rows again.

Theory of operation: which samples had their rows in a lost file follows from ``equal.json`` and the ledgers
(``find_lost_rows``). To the pipeline, a repair looks like a retry: its source hands out these samples, as the manifest
has them, and a shard's spool begins with those results that need not be fetched again. A commit merges the new rows
with the ledger of their shard, and leaves them in ``added``; an image that can't be fetched any more is then a failure
like any other. After the last shard, the output is resharded from the files that are left and the added rows. If all
images arrive unchanged, the files are byte for byte those that were lost.

Rules: no state says how far a repair is. A row is lost if its file is, its ledger lists it, and it is not in ``added``;
so a shard that was committed has none, whatever was interrupted. A spool is that of this repair if its marker follows
from the shard's ledger, the lost rows, and a random token that lies next to the spools until the repair is complete.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datafetch.engine.bound_job import BoundJob
from datafetch.errors import ConfigurationError
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.regular_file import NotRegularFileError, open_regular
from datafetch.model.sample import Sample, Shard
from datafetch.output.merge import ByPosition, Output
from datafetch.output.repair import images_to_keep
from datafetch.output.reshard.before_repair import keep_for_undo
from datafetch.output.reshard.numbering import find_lost_rows
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.packed_bools import Bools
from datafetch.store.spool_format import MARKER_BYTES, ImageResult, StoredImage
from datafetch.store.spool_reader import SpooledSample, SpoolReader
from datafetch.store.spool_writer import has_marker, write_spool

_log = logging.getLogger(__name__)
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair that has begun.

    Attributes:
        output: How the rows are written again.
        samples: The samples whose rows are lost.
    """

    output: Output
    samples: LostSamples


def begin_repair(bound: BoundJob) -> Repair | None:
    """Begin a repair of an output whose lock is held, or resume it; None if no row is lost.

    Raises:
        ConfigurationError: The record of resharding, or a ledger, is damaged.
    """
    layout = bound.layout
    record = read_reshard_record(layout)
    if record is None:
        return None
    published = [shard for shard in bound.shards if layout.ledger(shard).exists()]
    lost = find_lost_rows(layout, published, record)
    if not lost:
        return None
    rows = sum(int(is_lost.sum()) for is_lost in lost.values())
    _log.info("the images of %s lost rows are fetched again", f"{rows:,}")
    repaired = layout.for_repair()
    token = _read_token(repaired) or secrets.token_bytes(_TOKEN_BYTES)
    write_atomically(repaired.repair_token, token)
    keep_for_undo(layout, lost)
    return Repair(
        replace(bound.output, layout=repaired, is_repair=True), LostSamples(bound.manifest, repaired, lost, token)
    )


def end_repair(layout: OutputLayout) -> None:
    """Delete what a complete repair leaves."""
    folder = layout.for_repair().repair_token.parent
    if folder.exists():
        shutil.rmtree(folder)


def _read_token(layout: OutputLayout) -> bytes:
    """The token of an interrupted repair; empty if there is none, or it is damaged."""
    try:
        with open_regular(layout.repair_token) as file:
            token = file.read(_TOKEN_BYTES + 1)
    except FileNotFoundError:
        return b""
    return token if len(token) == _TOKEN_BYTES else b""


class LostSamples:
    """The shard source of a repair.

    Args:
        manifest: The manifest, which has the samples.
        layout: The paths of the output, with the spools of this repair.
        lost: Shard → for each of its samples, whether its row is lost.
        token: What makes the markers of the spools unpredictable.
    """

    def __init__(self, manifest: Manifest, layout: OutputLayout, lost: Mapping[str, Bools], token: bytes) -> None:
        self._manifest = manifest
        self._layout = layout
        self._lost = lost
        self._token = token
        self._in_manifest = {shard.name: shard for shard in manifest.shards() if shard.name in lost}

    def shards(self) -> Sequence[Shard]:
        """The shards that have a sample whose row is lost. Their source is the ledger: they are published already."""
        return [Shard(name, self._layout.ledger(name), len(is_lost), "") for name, is_lost in self._lost.items()]

    def expected_samples(self) -> int | None:
        """The number of samples whose row is lost."""
        return sum(int(is_lost.sum()) for is_lost in self._lost.values())

    def samples(self, shard: Shard) -> Samples:
        """Those samples of a shard; writes its spool unless it is to be resumed."""
        is_lost, spool = self._lost[shard.name], self._layout.spool(shard.name)
        marker = self._marker(shard.source, is_lost)
        if not has_marker(spool, marker):
            self._layout.delete_spools(shard.name)
            write_spool(spool, self._images_to_keep(shard.name), marker)
        return _SamplesOfShard(self._manifest.samples(self._in_manifest[shard.name]), is_lost)

    def _marker(self, ledger: Path, is_lost: Bools) -> bytes:
        with ledger.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(np.packbits(is_lost).tobytes() + self._token)
        return digest.digest()[:MARKER_BYTES]

    def _images_to_keep(self, shard: str) -> Iterator[ImageResult | StoredImage]:
        stored = ByPosition(self._stored(shard), lambda spooled: spooled.sample.position)
        is_lost = self._lost[shard]
        for lines in read_samples(self._layout.ledger(shard)):
            position = lines[0].sample
            kept = stored.take(position)
            if is_lost[position]:
                yield from images_to_keep(kept, lines)

    def _stored(self, shard: str) -> Iterator[SpooledSample]:
        """The samples of a shard that were kept for a retry, and have images."""
        path = self._layout.kept_for_retry(shard)
        try:
            yield from (spooled for spooled in SpoolReader(path).samples() if spooled.sample.urls)
        except (FileNotFoundError, NotRegularFileError, ConfigurationError) as error:
            raise ConfigurationError(
                f"{path} does not hold what failed in that shard, so its lost rows can't be made again; put back a "
                "copy, or start over with --fresh, which fetches everything again"
            ) from error


class _SamplesOfShard(Samples):
    """Those samples of a shard whose row is lost, as the manifest has them."""

    def __init__(self, samples: Samples, is_lost: Bools) -> None:
        self._samples = samples
        self._is_lost = is_lost

    def __len__(self) -> int:
        return int(self._is_lost.sum())

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            if sample.position >= len(self._is_lost):  # beyond the limit of the job
                return
            if self._is_lost[sample.position]:
                yield sample

    @property
    def published_before(self) -> int:
        """The number of samples of the shard whose row is not lost."""
        return len(self._is_lost) - len(self)
