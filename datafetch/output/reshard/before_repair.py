"""What a repair replaces stays recoverable until the output is resharded: lost files may be put back meanwhile.

Theory of operation: a commit of a repair replaces the ledger of a shard, its failures that were kept for a retry, and
its added rows. Images that can't be fetched any more are then failures, although the file that held their rows may only
have been moved away. So a repair first keeps these files as they are, in a folder for each shard (``keep_for_undo``).
The swap that puts the new set in place deletes them. Until then, a shard becomes what it was (``undo_needless``) if
nothing is missing any more, or if a row that its repair could not make again is in a file that has come back.

Rules: a folder gets its name when it is complete, and loses it when each of its files is back in its place. Once the
first is (``undoing`` exists in it), all are put back, whatever is missing then. So it can be killed at any moment.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from datafetch.errors import ResourceError, raise_if_exhausted
from datafetch.output.formats import ROWS_SUFFIX, PickleFormat
from datafetch.output.reshard.numbering import NumberedSamples
from datafetch.output.reshard.record import ReshardRecord, read_reshard_record
from datafetch.store.atomic import link_or_copy, make_folder, sync, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.packed_bools import Bools
from datafetch.store.shard_summary import read_shard_summary

_UNDOING = "undoing"

_log = logging.getLogger(__name__)


def keep_for_undo(layout: OutputLayout, shards: Iterable[str]) -> None:
    """Keep what a repair of these shards will replace, unless it is kept already. The output's lock is held.

    Raises:
        OSError: The disk can't be written.
    """
    for shard in shards:
        kept = layout.before_repair / shard
        if kept.exists():
            continue
        unfinished = layout.unpublished / shard
        shutil.rmtree(unfinished, ignore_errors=True)
        make_folder(unfinished)
        for path in _replaced_files(layout, shard):
            if path.exists():
                link_or_copy(path, unfinished / path.name)
        sync(unfinished)
        make_folder(kept.parent)
        unfinished.rename(kept)
    if layout.before_repair.exists():
        sync(layout.before_repair)


def keep_damaged(layout: OutputLayout, lost: Iterable[str]) -> None:
    """Keep those lost files that are there, as they are now, in place of an earlier one: rows of them may be readable.

    They stay where they are until the swap deletes them there.

    Raises:
        ResourceError: The disk is full or can't be written.
    """
    for name in lost:
        path, kept = (folder / f"{name}{ROWS_SUFFIX}" for folder in (layout.out, layout.damaged))
        try:
            if path.is_file() and not (kept.exists() and kept.samefile(path)):
                make_folder(layout.damaged)
                kept.unlink(missing_ok=True)
                link_or_copy(path, kept)
                sync(layout.damaged)
                _log.warning("%s was damaged, and is kept as %s", path, kept)
        except OSError as error:
            raise_if_exhausted(error)
            raise ResourceError.from_disk_error(error, f"keep {path} in {layout.damaged}") from error


def undo_needless(layout: OutputLayout) -> None:
    """Undo an interrupted repair as far as the files have come back whose rows it could not make again.

    To be called under the lock of the output, after ``swap.complete_swap``.

    Raises:
        ConfigurationError: The record of resharding, or a ledger, is damaged.
        OSError: A file can't be read or written.
    """
    if not layout.before_repair.exists():
        return
    for shard in _kept_shards(layout):
        if (layout.before_repair / shard / _UNDOING).exists():
            _put_back(layout, shard)
    record = read_reshard_record(layout)
    if record is None or not all(layout.ledger(shard).exists() for shard in record.samples):
        return  # which is refused later
    missing = record.missing_files(layout)
    shards = list(_returned_shards(layout, record, missing)) if missing else _kept_shards(layout)
    for shard in shards:
        _put_back(layout, shard)
    if shards:
        _log.info("lost files of %s are back: the repair that was interrupted is undone", layout.out)
    if not missing:
        shutil.rmtree(layout.resharding, ignore_errors=True)
        shutil.rmtree(layout.before_repair)


def undo_repair(layout: OutputLayout) -> None:
    """Make all shards of an unfinished repair what they were before it.

    Raises:
        OSError: A file can't be written; the next call goes on.
    """
    for shard in _kept_shards(layout):
        _put_back(layout, shard)


def _kept_shards(layout: OutputLayout) -> list[str]:
    return sorted(path.name for path in layout.before_repair.iterdir()) if layout.before_repair.is_dir() else []


def _returned_shards(layout: OutputLayout, record: ReshardRecord, missing: list[str]) -> Iterator[str]:
    """The shards that had a row before the repair, don't have it now, and whose row is in a file that is there."""
    is_there = _rows_that_are_there(layout, record, frozenset(missing))
    for shard in _kept_shards(layout):
        before = read_shard_summary(_kept_ledger(layout, shard)).has_row
        now = read_shard_summary(layout.ledger(shard)).has_row
        if (before & ~now & is_there[shard]).any():
            yield shard


def _rows_that_are_there(layout: OutputLayout, record: ReshardRecord, missing: frozenset[str]) -> Mapping[str, Bools]:
    samples = NumberedSamples.read(layout, list(record.samples))
    sample_of_row = samples.by_position(record)
    is_there = np.zeros(len(samples.has_row), np.bool_)
    first = 0
    for name, file in record.files.items():
        if name not in missing:
            is_there[sample_of_row[first : first + file.rows]] = True
        first += file.rows
    return {shard: is_there[span] for shard, span in samples.spans()}


def _put_back(layout: OutputLayout, shard: str) -> None:
    """Give each file of a shard its content from before the repair, and then forget that."""
    kept = layout.before_repair / shard
    write_atomically(kept / _UNDOING, b"")
    shutil.rmtree(layout.ready / shard, ignore_errors=True)  # committed, but not published
    for path in _replaced_files(layout, shard):
        before = kept / path.name
        if not before.exists():
            path.unlink(missing_ok=True)
        elif not (path.exists() and path.samefile(before)):  # otherwise a rename would leave both names
            make_folder(path.parent)
            unfinished = layout.unpublished / path.name
            make_folder(unfinished.parent)
            unfinished.unlink(missing_ok=True)
            link_or_copy(before, unfinished)
            unfinished.replace(path)
        if path.parent.exists():
            sync(path.parent)
    forgotten = layout.unpublished / shard
    shutil.rmtree(forgotten, ignore_errors=True)
    make_folder(layout.unpublished)
    kept.rename(forgotten)
    sync(kept.parent)
    shutil.rmtree(forgotten)


def _replaced_files(layout: OutputLayout, shard: str) -> list[Path]:
    """The files of a shard that a commit of a repair replaces; the ledger comes last."""
    added = [layout.added / f"{shard}{suffix}" for suffix in PickleFormat.suffixes]
    return [*added, layout.kept_for_retry(shard), layout.ledger(shard)]


def _kept_ledger(layout: OutputLayout, shard: str) -> Path:
    return layout.before_repair / shard / layout.ledger(shard).name
