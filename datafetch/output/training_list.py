"""The JSON list that the trainer reads: the records of the dataset's published list whose image arrived.

Rules: a copy of the published list is kept in the state folder, because the trainer's list may overwrite the original.
The trainer's list is a function of this copy and of which samples have a row, so a retry can write it again without the
source.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from datafetch.datasets.readers import RecordReader
from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model.outcome import OK
from datafetch.model.sample import REFUSED
from datafetch.store.atomic import make_folder, publish, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_samples, read_shard_summary
from datafetch.store.spool_reader import SpoolReader
from datafetch.store.state_file import read_if_sound

_WRITTEN_LIST_HASH = "made.json"  # has the hash of the trainer's list as it was written


def trainers_list(layout: OutputLayout, name: str) -> Path:
    """The path of the trainer's list."""
    return layout.out.parent / name


def published_source(layout: OutputLayout, source: Path, name: str) -> Path:
    """The path to read the published list from: the kept copy if the trainer's list has overwritten the original.

    Args:
        layout: The paths of the output.
        source: The path that the operator gave: the list, or a folder that holds it.
        name: File name of the list.
    """
    path = source / name if source.is_dir() else source
    written, copy = trainers_list(layout, name), _kept_copy(layout)
    if copy is None or not path.exists() or not written.exists() or not path.samefile(written):
        return source
    written_hash = read_if_sound(layout.published_list / _WRITTEN_LIST_HASH, dict[str, str])
    return copy if written_hash == {"sha256": _sha256(path)} else source


def keep_published(layout: OutputLayout, path: Path) -> None:
    """Copy the published list to the state folder, replacing an earlier copy."""
    copy = layout.published_list / path.name
    if path == copy:
        return
    make_folder(layout.published_list)
    unfinished = layout.published_list / f"{path.name}.tmp"
    shutil.copyfile(path, unfinished)
    publish(unfinished, copy)
    for other in layout.published_list.iterdir():
        if other.name not in (copy.name, _WRITTEN_LIST_HASH):
            other.unlink()


def write_trainers_list(layout: OutputLayout, shards: Iterable[str], name: str) -> None:
    """Write the trainer's list, and to the state folder a list of the records that were dropped, each with the reason.

    Args:
        layout: The paths of the output; its lock is held.
        shards: Names of the published list's shards that have a ledger, in order.
        name: File name of the list.

    Raises:
        ConfigurationError: The copy of the published list is gone.
        ConservationError: The published list has fewer records than the ledgers.
    """
    copy = _kept_copy(layout)
    if copy is None:
        raise ConfigurationError(
            f"{layout.published_list} no longer has a copy of the published list; put it back, or use --fresh"
        )
    final = trainers_list(layout, name)
    unfinished = [layout.state_folder / f"{path.name}.tmp" for path in (final, layout.dropped)]
    with unfinished[0].open("wb") as used, unfinished[1].open("wb") as dropped:
        digest = _Digest(used)
        _write(digest, dropped, copy, _results(layout, shards))
    # The hash is stored before the list is published, so that a list of the operator's is never mistaken for ours.
    write_atomically(layout.published_list / _WRITTEN_LIST_HASH, orjson.dumps({"sha256": digest.sha256}))
    publish(unfinished[0], final)
    publish(unfinished[1], layout.dropped)


@dataclass(frozen=True, slots=True)
class _RecordResult:
    """What became of a record of the published list; ``reason`` is None if it is in the trainer's list."""

    key: str
    reason: str | None


class _Digest:
    """Writes to a file and computes the SHA-256 of its content."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, content: bytes) -> None:
        self._hash.update(content)
        self._file.write(content)


def _write(used: _Digest, dropped: BinaryIO, published: Path, results: Iterator[_RecordResult]) -> None:
    """Divide the records of the published list by their results; a run with a limit has fewer results than records."""
    separator = b"[\n"
    records = iter(RecordReader(published))
    for number, result in enumerate(results):
        record = next(records, results)
        if record is results:
            raise ConservationError(f"{published} ends before record {number:,}, which a ledger lists")
        if result.reason is None:
            used.write(separator + _json(record))
            separator = b",\n"
        else:
            line = {"record": number, "key": result.key, "reason": result.reason}
            dropped.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    used.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _json(record: object) -> bytes:
    text = json.dumps(record, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON allows and UTF-8 does not
        return json.dumps(record).encode()


def _results(layout: OutputLayout, shards: Iterable[str]) -> Iterator[_RecordResult]:
    """The results of all records, in order."""
    for shard in shards:
        summary = read_shard_summary(layout.ledger(shard))
        dropped = dict(_dropped(layout, shard))
        for position, has_row in enumerate(summary.has_row.tolist()):
            yield _RecordResult("", None) if has_row else dropped.get(position, _RecordResult("", "no image"))


def _dropped(layout: OutputLayout, shard: str) -> Iterator[tuple[int, _RecordResult]]:
    """The records of a shard that were dropped, by position."""
    for spooled in SpoolReader(layout.kept_for_retry(shard)).samples():
        refused = spooled.sample.row.get(REFUSED)
        if isinstance(refused, str):
            yield spooled.sample.position, _RecordResult(spooled.sample.key, refused)
    for lines in read_samples(layout.ledger(shard)):
        for line in lines:
            if line.outcome != OK:
                yield line.sample, _RecordResult(line.key, f"{line.outcome}: {line.detail}")
                break


def _kept_copy(layout: OutputLayout) -> Path | None:
    """The copy of the published list, if there is one."""
    if not layout.published_list.is_dir():
        return None
    found = [
        path for path in layout.published_list.iterdir() if path.name != _WRITTEN_LIST_HASH and path.suffix != ".tmp"
    ]
    return found[0] if len(found) == 1 else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
