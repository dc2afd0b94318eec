"""The equal shards that an output holds: for whom they were made, and of which samples.

Rules: ``equal.json`` is there if the output holds equal shards. Whatever of it speaks of a run is read here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from datafetch.errors import ConfigurationError, ManifestError, raise_want
from datafetch.model.report import EqualShards
from datafetch.model.untrusted import is_plain_name
from datafetch.output.formats import read_count
from datafetch.output.reshard.copy import Plan
from datafetch.output.reshard.ranks import Ranks, epoch
from datafetch.store.layout import OutputLayout


@dataclass(frozen=True, slots=True)
class EqualFile:
    """One of them: its rows, and the size of its ``.pkl``."""

    rows: int
    pkl_bytes: int


@dataclass(frozen=True, slots=True)
class ReshardRecord:
    """The equal shards of an output.

    Attributes:
        plan: What they were made for.
        files: By name, in order.
        samples: Shard of the manifest → which of its samples have a row in them, packed (``ledger.pack_bools``).
    """

    plan: Plan
    files: Mapping[str, EqualFile]
    samples: Mapping[str, str]

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(file.rows for file in self.files.values())

    def for_ranks(self) -> EqualShards:
        """What the ranks make of them."""
        ranks = self.plan.ranks
        seen = epoch([file.rows for file in self.files.values()], ranks)
        return EqualShards(ranks.world_size, seen.groups * ranks.group, seen.used)

    def refuse_missing(self, layout: OutputLayout) -> None:
        """See that they are all there, and the ledgers of all their samples.

        Which samples a lost shard had can't be told from its name. A shard of the manifest without a ledger would be
        fetched and written again, in the place of the equal shard of the same name.

        Raises:
            ConfigurationError: One is missing, or has another size than it was made with; or a ledger is missing.
        """
        for shard in self.samples:
            if not layout.ledger(shard).is_file():
                raise ConfigurationError(
                    f"{layout.ledger(shard)} is missing, and the rows of its samples lie in equal shards, which "
                    "can't be made again one by one; put it back, or start over with --fresh (again, if one was "
                    "interrupted)"
                )
        for name, file in self.files.items():
            pkl, count = layout.out / f"{name}.pkl", layout.out / f"{name}.count"
            if not _is_whole(pkl, count, file):
                raise ConfigurationError(
                    f"{pkl} or its .count is missing, or not as it was made; put them back, or start over with "
                    "--fresh (again, if one was interrupted)"
                )


def _is_whole(pkl: Path, count: Path, file: EqualFile) -> bool:
    try:
        return pkl.stat().st_size == file.pkl_bytes and read_count(count) == file.rows
    except (OSError, ManifestError) as error:
        raise_want(error)
        return False


def read_reshard_record(layout: OutputLayout) -> ReshardRecord | None:
    """The equal shards of an output; None while there are none.

    Raises:
        ConfigurationError: The file that tells of them is damaged.
    """
    if not layout.equal.exists():
        return None
    try:
        identity_fields = orjson.loads(layout.equal.read_bytes())
        ranks = Ranks(identity_fields["world_size"], identity_fields["batch"], identity_fields["group"])
        files = {
            name: EqualFile(int(rows), int(size)) for name, (rows, size) in sorted(identity_fields["files"].items())
        }
        samples = dict(identity_fields.get("samples", {}))
        arrangement = ReshardRecord(Plan(ranks, identity_fields["shuffle"]), files, samples)
        is_sound = identity_fields["shuffle"] is None or identity_fields["shuffle"] >= 0
        is_sound &= (
            bool(files)
            and all(map(is_plain_name, (*files, *samples)))
            and all(isinstance(one, str) for one in samples.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise_want(error)
        raise ConfigurationError(f"{layout.equal} is damaged; --fresh starts over") from error
    if not is_sound:
        raise ConfigurationError(f"{layout.equal} is damaged; --fresh starts over")
    return arrangement
