"""The record of a resharded output: how its shards were made, and of which samples.

Rules: ``equal.json`` exists if and only if the output is resharded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta

from datafetch.errors import STARTS_OVER, ConfigurationError, ManifestError, ResourceError, raise_if_exhausted
from datafetch.model.bounds import Count, Crc32, PlainName
from datafetch.model.checksum import crc32
from datafetch.model.report import ReshardedEpoch
from datafetch.model.wording import command_that_made
from datafetch.output.formats import COUNT_SUFFIX, ROWS_SUFFIX, PublishedFile, read_count
from datafetch.output.formats.output_format import size_bytes
from datafetch.output.reshard.plan import Plan
from datafetch.output.reshard.ranks import RankNumber, Ranks, epoch
from datafetch.store.atomic import publish, sync, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_state_file

_CHUNK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class ReshardedFile(NamedTuple):
    """A shard of a resharded output: the number of its rows, and the size of the file that holds them."""

    rows: Count
    size_bytes: Count


@dataclass(frozen=True, slots=True)
class ReshardRecord:
    """How an output was resharded. Field names are those of the file.

    Attributes:
        world_size: The number of ranks.
        batch: The number of groups that a rank takes in one step.
        group: The number of samples that the loader takes together.
        shuffle: The seed of the permutation of the rows; None if they kept their order.
        files: The shards by name, in order.
        samples: Shard of the manifest → which of its samples have a row, packed (``ledger.pack_bools``). Empty if the
            command ``reshard`` made the shards.
        made_from: The source's shards (``plan.fingerprint``). Empty if a run made the shards.
        replaces: Names of the shards of the output that these have replaced; None in files of earlier versions.
        crc32: Shard → the CRC-32 of its rows file. Empty in files of earlier versions.
    """

    world_size: RankNumber
    batch: RankNumber
    group: RankNumber
    shuffle: Count | None
    files: Annotated[dict[PlainName, ReshardedFile], Meta(min_length=1)]
    samples: dict[PlainName, str] = field(default_factory=dict)
    made_from: list[list[str | int]] = field(default_factory=list)
    replaces: list[PlainName] | None = None
    crc32: dict[PlainName, Crc32] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The plan by which the shards were made."""
        return Plan(Ranks(self.world_size, self.batch, self.group), self.shuffle)

    @property
    def rows(self) -> int:
        """The number of rows in all shards."""
        return sum(file.rows for file in self.files.values())

    def to_json(self) -> dict[str, object]:
        """The content of the file; of ``samples`` and ``made_from`` it has the one that is not empty."""
        return {
            **({"made_from": self.made_from} if self.made_from else {"samples": self.samples}),
            **self.plan.identity_fields(),
            "rows": self.rows,
            "files": {name: list(file) for name, file in self.files.items()},
            "crc32": self.crc32,
            "replaces": self.replaces,
        }

    def for_ranks(self) -> ReshardedEpoch:
        """What each rank reads in one epoch, for the report."""
        ranks = self.plan.ranks
        seen = epoch([file.rows for file in self.files.values()], ranks)
        return ReshardedEpoch(ranks.world_size, seen.groups * ranks.group, seen.used)

    def missing_files(self, layout: OutputLayout) -> list[str]:
        """The shards of which a file is missing, or has another size or number of rows than when it was made.

        Raises:
            ResourceError: It can't be told, because a file can't be read.
        """
        return [name for name, file in self.files.items() if not _is_whole(layout, name, file)]

    def published_files(self, layout: OutputLayout) -> Iterator[PublishedFile]:
        """The files of all shards as they were written, wherever they are now."""
        for name, file in self.files.items():
            count = str(file.rows).encode()
            yield PublishedFile(layout.out / f"{name}{ROWS_SUFFIX}", file.size_bytes, self.crc32.get(name))
            yield PublishedFile(layout.out / f"{name}{COUNT_SUFFIX}", len(count), crc32(count))

    def cut_to_size(self, layout: OutputLayout) -> None:
        """Cut what was appended to shards, if the bytes before it are those that were written."""
        for name in self.missing_files(layout):
            path, size = layout.out / f"{name}{ROWS_SUFFIX}", self.files[name].size_bytes
            if path.is_symlink():
                continue
            if size_bytes(path) > size and name in self.crc32 and _crc32_of_start(path, size) == self.crc32[name]:
                os.truncate(path, size)
                sync(path)
                _log.warning("%s had bytes at its end that were not written by datafetch; they are cut off", path)

    def restore_counts(self, layout: OutputLayout) -> None:
        """Write again the counts that are missing or damaged of shards whose rows are there."""
        for name in self.missing_files(layout):
            if size_bytes(layout.out / f"{name}{ROWS_SUFFIX}") == self.files[name].size_bytes:
                count = layout.unpublished / f"{name}{COUNT_SUFFIX}"
                write_atomically(count, str(self.files[name].rows).encode())
                publish(count, layout.out / count.name)

    def refuse_missing_ledgers(self, layout: OutputLayout) -> None:
        """Check that the ledgers of all samples exist.

        A shard of the manifest without a ledger would be fetched again, and would overwrite the resharded one of the
        same name.

        Raises:
            ConfigurationError: A ledger is missing.
        """
        for shard in self.samples:
            if not layout.ledger(shard).is_file():
                raise ConfigurationError(
                    f"{layout.ledger(shard)} is missing, and the rows of its samples are in resharded files, "
                    "which can't be made again one by one; put it back, or start over with --fresh (again, if one was "
                    "interrupted), which fetches everything again"
                )

    def refuse_all_lost(self, layout: OutputLayout) -> None:
        """Check that the output has one of its shards: a folder that is gone as a whole is hardly ever lost.

        Raises:
            ConfigurationError: It has none.
            ResourceError: It can't be told, because a file can't be read.
        """
        if layout.resharded.exists() or any(_is_there(layout, name) for name in self.files):
            return  # an interrupted swap is completed
        raise ConfigurationError(
            f"{layout.out} has none of its {len(self.files):,} shards: if they were moved, or their disk is not "
            f"mounted, put them back and run the same command again; if they are lost, --fresh fetches all images again"
        )

    def refuse_missing(self, layout: OutputLayout) -> None:
        """Check that all shards exist, and the ledgers of all of their samples.

        Raises:
            ConfigurationError: A shard or a ledger is missing, or a shard has a different size than when it was made.
        """
        self.refuse_missing_ledgers(layout)
        for name in self.missing_files(layout):
            raise ConfigurationError(
                f"{layout.out / name}{ROWS_SUFFIX} or its {COUNT_SUFFIX} is missing, or has changed since it was made; "
                "put them back, or run the command that started the output again, which fetches the images of their "
                f"rows again; {command_that_made(layout.out)}"
            )


def _crc32_of_start(path: Path, size: int) -> int:
    """The CRC-32 of the first bytes of a file."""
    checksum, left_bytes = 0, size
    with path.open("rb") as file:
        while left_bytes and (chunk := file.read(min(left_bytes, _CHUNK_BYTES))):
            checksum = crc32(chunk, checksum)
            left_bytes -= len(chunk)
    return checksum


def _is_whole(layout: OutputLayout, name: str, file: ReshardedFile) -> bool:
    rows, count = layout.out / f"{name}{ROWS_SUFFIX}", layout.out / f"{name}{COUNT_SUFFIX}"
    try:
        return rows.stat().st_size == file.size_bytes and read_count(count) == file.rows
    except (FileNotFoundError, ManifestError):
        return False
    except OSError as error:
        raise _unreadable(layout, error) from error


def _is_there(layout: OutputLayout, name: str) -> bool:
    try:
        (layout.out / f"{name}{ROWS_SUFFIX}").stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(layout, error) from error
    return True


def _unreadable(layout: OutputLayout, error: OSError) -> ResourceError:
    """The error for a fault of the disk, or of the way to it: the rows may be there all the same."""
    raise_if_exhausted(error)
    return ResourceError.from_disk_error(error, f"read the shards of {layout.out}")


def read_reshard_record(layout: OutputLayout) -> ReshardRecord | None:
    """How an output was resharded; None if it was not.

    Raises:
        ConfigurationError: The record is damaged.
    """
    return read_state_file(
        layout.reshard_record,
        ReshardRecord,
        ConfigurationError(f"{layout.reshard_record} is damaged; {STARTS_OVER}"),
    )
