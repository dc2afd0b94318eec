"""Whether all shards of an output are published: asked before what comes after the last of them."""

from __future__ import annotations

from collections.abc import Sequence

from datafetch.output.formats import format_of
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_counts


def unpublished_shards(layout: OutputLayout, shards: Sequence[str], limit: int | None) -> list[str]:
    """The shards that a run has yet to publish, in order; none once as many samples as its limit are published.

    Args:
        layout: Of the output.
        shards: Names of all shards of the manifest, in order.
        limit: Of the job, in samples. Below it, shards that lie beyond it are among those that are returned: what the
            missing ones hold is not known.

    Raises:
        ConfigurationError: What should be a ledger is something else.
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
