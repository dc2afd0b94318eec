"""The ledger lines of images that are looked for, of published shards from ledgers, and of open ones from spools.

Rules: nothing is locked or written, and files may appear and vanish while they are read. Lines come in the order of
shards, samples and images, a few thousand at a time. A shard that has a ledger is read from it alone.

Theory of operation: a ledger is in order, and its lines are selected by Arrow. A spool is in the order in which images
ended, and its run may be appending to it, so it is read twice: the first pass notes sample, image and offset of each
line that is selected (26 bytes), and the second one reads these lines in their order. A shard may have several spools,
which are read together. They are opened before the shard's ledger is looked for, since they are deleted only when there
is one.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa

from datafetch.errors import ConfigurationError, raise_if_exhausted
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.sample import Sample
from datafetch.monitor.observed_output import ObservedOutput
from datafetch.monitor.output_counts import is_in_place
from datafetch.store.layout import folders_of_spools
from datafetch.store.ledger_format import as_batch
from datafetch.store.ledger_reader import read_selected
from datafetch.store.spool_format import read_marker, read_stored, scan_entries

_BATCH_LINES = 4096  # in memory, of a spool

Select: TypeAlias = Callable[[pa.RecordBatch], pa.Array]
"""Takes some columns of lines, and returns a boolean for each line."""


LeaveOut: TypeAlias = Callable[[str], None]
"""Told of each shard that is left out since its ledger is damaged, when its turn comes."""


@dataclass(frozen=True, slots=True)
class ImageLines:
    """Some ledger lines of one shard.

    Attributes:
        shard: The shard's name.
        is_published: Whether they are from its ledger, and not from the spool of a shard in progress.
        lines: The lines, in the order of samples and images.
    """

    shard: str
    is_published: bool
    lines: Sequence[LedgerLine]


def read_image_lines(
    output: ObservedOutput,
    columns: Sequence[str],
    select: Select,
    shards: Sequence[str] | None = None,
    *,
    leave_out: LeaveOut,
) -> Iterator[ImageLines]:
    """The lines that are selected, in the order of shards, samples and images.

    Args:
        output: The output.
        columns: The columns of the ledger that decide.
        select: Selects lines by these columns.
        shards: The shards to look in; None is all.
        leave_out: Told of each shard whose ledger is damaged.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    for shard in output.job.shards if shards is None else shards:
        with ExitStack() as opened:
            spools = _open_spools(output, shard, opened)
            try:
                if _is_published(output, shard):
                    yield from _of_ledger(output, shard, columns, select)
                else:
                    yield from (ImageLines(shard, False, lines) for lines in _of_spools(spools, columns, select))
            except ConfigurationError:
                leave_out(shard)


def _is_published(output: ObservedOutput, shard: str) -> bool:
    """Whether a shard has a ledger, and files that agree with it; as the status of the run counts it."""
    ledger = output.layout.ledger(shard)
    try:
        return ledger.exists() and is_in_place(output.layout, shard)
    except ConfigurationError:
        if ledger.exists():
            raise
        return False  # it has just been deleted


def _of_ledger(output: ObservedOutput, shard: str, columns: Sequence[str], select: Select) -> Iterator[ImageLines]:
    try:
        for lines in read_selected(output.layout.ledger(shard), columns, select):
            yield ImageLines(shard, True, lines)
    except FileNotFoundError:  # it has just been deleted
        return


@dataclass(frozen=True, slots=True)
class _OpenSpool:
    file: BinaryIO
    marker: bytes


def _open_spools(output: ObservedOutput, shard: str, opened: ExitStack) -> list[_OpenSpool]:
    """The spools of a shard, of one job; files that are none are left out."""
    for job_folder in output.spool_folders:
        spools = []
        for folder in folders_of_spools(job_folder):
            path = folder / f"{shard}.spool"
            try:
                if path.is_file():
                    file = opened.enter_context(path.open("rb"))
                    spools.append(_OpenSpool(file, read_marker(file)))
            except ConfigurationError:
                continue
            except OSError as error:
                raise_if_exhausted(error)
        if spools:
            return spools
    return []


def _of_spools(spools: Sequence[_OpenSpool], columns: Sequence[str], select: Select) -> Iterator[list[LedgerLine]]:
    """The selected lines of the spools of a shard, in the order of samples and images."""
    places = iter(_places(spools, columns, select).tolist())
    while chosen := list(islice(places, _BATCH_LINES)):
        stored = (read_stored(spools[number].file, spools[number].marker, offset) for number, offset in chosen)
        yield [one.line for one in stored if one is not None and not isinstance(one, Sample)]


def _places(
    spools: Sequence[_OpenSpool], columns: Sequence[str], select: Select
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Spool number and offset of the selected lines, in the order of samples and images; of repeated ones the last."""
    found = (array("q"), array("q"), array("H"), array("q"))
    for number, spool in enumerate(spools):
        entries = _line_entries(spool)
        while batch := list(islice(entries, _BATCH_LINES)):
            mask = select(as_batch([line for _, line in batch], columns))
            for (offset, line), is_selected in zip(batch, mask.to_pylist(), strict=True):
                if is_selected:
                    for values, value in zip(found, (line.sample, line.image, number, offset), strict=True):
                        values.append(value)
    samples, images, numbers, offsets = (np.array(values, np.int64) for values in found)
    order = np.lexsort((offsets, numbers, images, samples))
    samples, images = samples[order], images[order]
    is_last = np.ones(len(order), np.bool_)
    is_last[:-1] = (samples[1:] != samples[:-1]) | (images[1:] != images[:-1])
    return np.stack((numbers[order], offsets[order]), axis=1)[is_last]


def _line_entries(spool: _OpenSpool) -> Iterator[tuple[int, LedgerLine]]:
    """Offset and line of each image of a spool, up to an entry that is damaged, as no checksums are verified."""
    entries = scan_entries(spool.file, spool.marker)
    while True:
        try:
            entry = next(entries, None)
        except (OSError, ValueError, TypeError, KeyError, struct.error) as error:
            raise_if_exhausted(error)
            return
        if entry is None:
            return
        if not isinstance(entry.record, Sample):
            yield entry.offset, entry.record.line
