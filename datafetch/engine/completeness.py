"""Which shards of an output are not published yet: what comes after the last shard requires that there are none."""

from __future__ import annotations

from collections.abc import Sequence

from datafetch.output.formats import format_of
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_counts


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
