"""Which shards of an output are published with all of their files, and what becomes of one that lacks some."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datafetch.model.at_hand import AtHand, is_at_hand
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import FailureKind
from datafetch.model.sample import Shard
from datafetch.output.formats import format_of
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.layout import OutputLayout, folders_of_spools
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_counts
from datafetch.store.spool_writer import write_spool

_log = logging.getLogger(__name__)


def unpublished_shards(layout: OutputLayout, shards: Sequence[str], limit: int | None) -> list[str]:
    """The shards that are not published, in order; none if as many samples as the limit are published.

    Args:
        layout: The paths of the output.
        shards: Names of all shards of the manifest, in order.
        limit: The job's maximum number of samples; None for all. While fewer are published, shards beyond the limit are
            returned too, because the number of samples in the missing ones is not known.

    Raises:
        ConfigurationError: A file in the place of a ledger is not one.
    """
    is_resharded = layout.reshard_record.exists()
    missing, samples = [], 0
    for shard in shards:
        ledger = layout.ledger(shard)
        if ledger.exists() and (is_resharded or format_of(layout).is_intact(layout, shard)):
            samples += read_shard_counts(ledger).samples if limit is not None else 0
        else:
            missing.append(shard)
    return [] if samples == limit else missing


def refuse_missing_files(layout: OutputLayout) -> None:
    """Check that a resharded output has all of its shards.

    Raises:
        ConfigurationError: One is missing, or has another size than when it was made.
    """
    record = read_reshard_record(layout)
    if record is not None:
        record.refuse_missing(layout)


def restore_missing_files(layout: OutputLayout) -> None:
    """Write again what a resharded output lacks and can be had without fetching, and say what else it lacks."""
    record = read_reshard_record(layout)
    if record is None:
        return
    record.cut_to_size(layout)
    record.restore_counts(layout)
    missing = record.missing_files(layout)
    if missing:
        others = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
        _log.warning(
            "%s%s of the %s shards of %s, missing or changed since, will be made again",
            missing[0],
            others,
            f"{len(record.files):,}",
            layout.out,
        )


def recover_published(
    layout: OutputLayout, shard: Shard, image_root: Path | None = None, at_hand: AtHand = is_at_hand
) -> ShardCounts | None:
    """The counts of a shard that an earlier run has published; None if there is none, or it has to be made again.

    If it lacks files, whatever they still hold is salvaged into a spool, and the rest of it is deleted.

    Args:
        layout: The paths of the output.
        shard: The shard.
        image_root: The folder of images that were looked for in their places; None if they were fetched. The shard is
            made again if one is there now that was not.
        at_hand: Has the content of its files on this machine while they are salvaged.
    """
    ledger = layout.ledger(shard.name)
    if shard.source == ledger or not ledger.exists():  # a shard of a retry is read from its ledger, to be made again
        return None
    output_format = format_of(layout)
    is_whole = output_format.is_intact(layout, shard.name) and not _have_images_come(ledger, image_root)
    if not is_whole and not layout.reshard_record.exists():
        # The ledger is deleted before the files, so that a crash leaves no shard that looks published.
        with ExitStack() as opened:
            for path in output_format.files_of(layout, shard.name):
                opened.enter_context(at_hand(path))
            if (salvaged := output_format.salvage(layout, shard.name)) is not None:
                if image_root is None:
                    _log.warning("%s lacks files of %s: they are fetched again", layout.out, shard.name)
                else:
                    _log.info("images of %s have come or gone since: they are looked at again", shard.name)
                layout.delete_spools(shard.name)
                write_spool(layout.spool(shard.name), salvaged)
        ledger.unlink(missing_ok=True)
        output_format.unpublish(layout, shard.name)
        for retry_folder in layout.retry_spools():
            for folder in folders_of_spools(retry_folder):
                (folder / layout.spool(shard.name).name).unlink(missing_ok=True)
        return None
    layout.delete_spools(shard.name)  # left by a run that was killed right after publishing
    return read_shard_counts(ledger)


def _have_images_come(ledger: Path, image_root: Path | None) -> bool:
    """Whether an image is in its place that was missing when its shard was made."""
    if image_root is None or not read_shard_counts(ledger).outcomes.get(FailureKind.MISSING_MEMBER):
        return False
    return any(
        line.outcome == FailureKind.MISSING_MEMBER and (image_root / line.key).exists()
        for lines in read_samples(ledger)
        for line in lines
    )
