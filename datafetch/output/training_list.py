"""The JSON list that the trainer reads: of the published one those records whose image is there.

Rules: the published list is kept in the state folder, for the trainer's may take its place. The trainer's list is a
function of that and of which samples have a row, so a retry makes it again without the source.
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
from datafetch.store.atomic import make_folder, publish, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_samples, read_shard_summary
from datafetch.store.spool import SpoolReader
from datafetch.store.state_file import read_if_sound

_MADE = "made.json"


def trainers_list(layout: OutputLayout, name: str) -> Path:
    """Where the list lies that the trainer reads."""
    return layout.out.parent / name


def published_source(layout: OutputLayout, source: Path, name: str) -> Path:
    """What to read the published list from: the copy that was kept, where the trainer's list took its place.

    Args:
        layout: Of the output.
        source: Where the operator says that it is: the list, or a folder that holds it.
        name: What it is called.
    """
    path = source / name if source.is_dir() else source
    ours, kept = trainers_list(layout, name), _kept(layout)
    if kept is None or not path.exists() or not ours.exists() or not path.samefile(ours):
        return source
    made = read_if_sound(layout.published_list / _MADE, dict[str, str])
    return kept if made is not None and made == {"sha256": _sha256(path)} else source


def keep_published(layout: OutputLayout, path: Path) -> None:
    """Keep a copy of the published list."""
    copy = layout.published_list / path.name
    if path == copy:
        return
    make_folder(layout.published_list)
    unfinished = layout.published_list / f"{path.name}.tmp"
    shutil.copyfile(path, unfinished)
    publish(unfinished, copy)
    for other in layout.published_list.iterdir():
        if other.name not in (copy.name, _MADE):
            other.unlink()


def write_trainers_list(layout: OutputLayout, shards: Iterable[str], name: str) -> None:
    """Write the trainer's list, and beside the published one what was dropped and why.

    Args:
        layout: Of the output; its lock is held.
        shards: All shards of the published list that have a ledger, in order.
        name: What the list is called.

    Raises:
        ConfigurationError: The copy of the published list is not there any more.
        ConservationError: It does not have as many records as the ledgers say.
    """
    kept = _kept(layout)
    if kept is None:
        raise ConfigurationError(f"{layout.published_list} has no published list any more; put it back, or use --fresh")
    final = trainers_list(layout, name)
    unfinished = [layout.folder / f"{path.name}.tmp" for path in (final, layout.dropped)]
    with unfinished[0].open("wb") as used, unfinished[1].open("wb") as dropped:
        digest = _Digest(used)
        _write(digest, dropped, kept, _fates(layout, shards))
    # What is ours is known before it is there: a list of the operator's is never taken for one of ours.
    write_atomically(layout.published_list / _MADE, orjson.dumps({"sha256": digest.sha256}))
    publish(unfinished[0], final)
    publish(unfinished[1], layout.dropped)


@dataclass(frozen=True, slots=True)
class _Fate:
    """What became of a record: where it was dropped, why."""

    key: str
    reason: str | None


class _Digest:
    """Writes to a file and knows the sha256 of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, content: bytes) -> None:
        self._hash.update(content)
        self._file.write(content)


def _write(used: _Digest, dropped: BinaryIO, published: Path, fates: Iterator[_Fate]) -> None:
    """Go through the records and what became of them, side by side; a limit leaves records without a fate."""
    between = b"[\n"
    records = iter(RecordReader(published))
    for number, fate in enumerate(fates):
        record = next(records, fates)
        if record is fates:
            raise ConservationError(f"{published} ends before record {number:,}, of which there is a ledger")
        if fate.reason is None:
            used.write(between + _json(record))
            between = b",\n"
        else:
            told = {"record": number, "key": fate.key, "reason": fate.reason}
            dropped.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))
    used.write(b"[]\n" if between == b"[\n" else b"\n]\n")


def _json(record: object) -> bytes:
    text = json.dumps(record, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold and UTF-8 can't
        return json.dumps(record).encode()


def _fates(layout: OutputLayout, shards: Iterable[str]) -> Iterator[_Fate]:
    """What became of all records, in order."""
    for shard in shards:
        books = read_shard_summary(layout.ledger(shard))
        reasons = dict(_dropped(layout, shard))
        for position, has_row in enumerate(books.has_row.tolist()):
            yield _Fate("", None) if has_row else reasons.get(position, _Fate("", "no image"))


def _dropped(layout: OutputLayout, shard: str) -> Iterator[tuple[int, _Fate]]:
    for spooled in SpoolReader(layout.failed(shard)).samples():
        refused = spooled.sample.row.get("refused")
        if isinstance(refused, str):
            yield spooled.sample.position, _Fate(spooled.sample.key, refused)
    for lines in read_samples(layout.ledger(shard)):
        for line in lines:
            if line.outcome != OK:
                yield line.sample, _Fate(line.key, f"{line.outcome}: {line.detail}")
                break


def _kept(layout: OutputLayout) -> Path | None:
    """The copy of the published list, if there is one."""
    if not layout.published_list.is_dir():
        return None
    found = [path for path in layout.published_list.iterdir() if path.name != _MADE and path.suffix != ".tmp"]
    return found[0] if len(found) == 1 else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
