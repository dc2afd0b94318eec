"""The JSON list that the trainer reads: the records of the dataset's published list whose image arrived.

Rules: a copy of the published list is kept in the state folder, because the trainer's list may overwrite the original.
The trainer's list is a function of this copy and of which samples have a row, so a retry can write it again without the
source.
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import numpy as np
import orjson

from datafetch.datasets.readers import RecordReader
from datafetch.errors import ConfigurationError, ConservationError
from datafetch.model.dataset import Dataset
from datafetch.model.outcome import OK
from datafetch.model.regular_file import open_regular
from datafetch.model.sample import REFUSED
from datafetch.store.atomic import make_folder, publish, write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.spool_reader import SpoolReader
from datafetch.store.state_file import read_if_sound

_WRITTEN_LIST = "made.json"


class _Written(msgspec.Struct, frozen=True):
    """Which lists datafetch may find in the place of the trainer's: the last that it made, and the one before.

    They are stored before the list is published, so that a list of the operator's is never mistaken for ours. If the
    run is killed in between, the one before is still there.
    """

    sha256: str
    before: str = ""


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
    written, copy = trainers_list(layout, name), kept_copy(layout)
    if copy is None or not path.exists() or not written.exists() or not path.samefile(written):
        return source
    return copy if _is_own(layout, sha256_of(path)) else source


def refuse_other_list(layout: OutputLayout, source: Path | None, name: str) -> None:
    """Check that the trainer's list would replace none but the published one, of which a copy is kept, or its own.

    Args:
        layout: The paths of the output.
        source: The published list, which may be in the same place before a list is first written; None if that is not
            read.
        name: File name of the list.

    Raises:
        ConfigurationError: It would replace another.
    """
    path = trainers_list(layout, name)
    is_published = source is not None and path.exists() and source.exists() and path.samefile(source)
    if not (is_published and _read_written(layout) is None):
        _refuse_other(layout, path)


def _refuse_other(layout: OutputLayout, path: Path) -> None:
    if path.is_dir() or (path.is_symlink() and not path.exists()):
        raise ConfigurationError(f"{path} is to be the trainer's list, and is not a file; move it away")
    if not path.exists():
        return
    sha256, copy = sha256_of(path), kept_copy(layout)
    if not _is_own(layout, sha256) and (copy is None or sha256 != sha256_of(copy)):
        kept = f" (the published one is kept as {copy})" if copy is not None else ""
        raise ConfigurationError(
            f"{path} is there already, and is not a list that datafetch made{kept}; move it away, or use --fresh, "
            "which replaces it"
        )


def _read_written(layout: OutputLayout) -> _Written | None:
    return read_if_sound(layout.published_list / _WRITTEN_LIST, _Written)


def recorded_sha256(layout: OutputLayout) -> str | None:
    """The SHA-256 of the trainer's list as it was last written; None if that is not known."""
    written = _read_written(layout)
    return None if written is None else written.sha256


def _is_own(layout: OutputLayout, sha256: str) -> bool:
    written = _read_written(layout)
    return written is not None and sha256 in (written.sha256, written.before)


def keep_made(layout: OutputLayout, name: str, write: Callable[[Path], None]) -> None:
    """Store in the state folder the list of a dataset for which none is published, replacing an earlier one.

    Args:
        layout: The paths of the output.
        name: File name of the list.
        write: Writes it to a file.
    """
    make_folder(layout.published_list)
    unfinished = layout.published_list / f"{name}.tmp"
    write(unfinished)
    _keep(layout, unfinished, name)


def keep_published(layout: OutputLayout, path: Path) -> None:
    """Copy the published list to the state folder, replacing an earlier copy."""
    copy = layout.published_list / path.name
    if path == copy:
        return
    make_folder(layout.published_list)
    unfinished = layout.published_list / f"{path.name}.tmp"
    shutil.copyfile(path, unfinished)
    _keep(layout, unfinished, path.name)


def _keep(layout: OutputLayout, unfinished: Path, name: str) -> None:
    """Give the copy of a list its name, and delete those that were kept before."""
    publish(unfinished, layout.published_list / name)
    for other in layout.published_list.iterdir():
        if other.name not in (name, _WRITTEN_LIST):
            other.unlink()


def write_trainers_list(
    layout: OutputLayout, shards: Iterable[str], dataset: Dataset, *, replaces_other: bool = False
) -> None:
    """Write the trainer's list, and to the state folder a list of the records that were dropped, each with the reason.

    Args:
        layout: The paths of the output; its lock is held.
        shards: Names of the published list's shards that have a ledger, in order.
        dataset: The dataset, which has a list.
        replaces_other: Whether a list of the operator's in its place is replaced.

    Raises:
        ConfigurationError: The copy of the published list is gone, or another list is in the place of the trainer's.
        ConservationError: The published list has fewer records than the ledgers.
    """
    copy = kept_copy(layout)
    if copy is None:
        raise ConfigurationError(
            f"{layout.published_list} no longer has a copy of the published list; put it back, or use --fresh"
        )
    assert dataset.list_name is not None, "it has a list"
    final = trainers_list(layout, dataset.list_name)
    make_folder(final.parent)
    unfinished = [layout.state_folder / f"{path.name}.tmp" for path in (final, layout.dropped)]
    with unfinished[0].open("wb") as used, unfinished[1].open("wb") as dropped:
        digest = _Digest(used)
        judge = _ByImages(layout, shards, dataset) if dataset.lists_images else _ByRecord(layout, shards)
        _write(digest, dropped, copy, dataset, judge)
    if not replaces_other:
        _refuse_other(layout, final)
    before = sha256_of(final) if final.is_file() else ""
    written = _Written(digest.sha256, before=before if _is_own(layout, before) else "")
    write_atomically(layout.published_list / _WRITTEN_LIST, msgspec.json.encode(written))
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


def _write(used: _Digest, dropped: BinaryIO, published: Path, dataset: Dataset, judge: _Judge) -> None:
    """Divide the records of the published list.

    Records that stay are copied as they stand, and so is what separates them.
    """
    reader = RecordReader(published)
    opening, is_empty = "", True
    for number, record in enumerate(reader):
        gap = reader.gap_text
        opening = opening or gap
        result = judge(number, record)
        if result is None:  # a run with a limit has not come to it
            continue
        if result.reason is None:
            used.write(((opening if is_empty else gap) + dataset.list_text(reader.record_text, record)).encode())
            is_empty = False
        else:
            key = result.key.encode("utf-8", "backslashreplace").decode()  # an id may be a lone surrogate
            line = {"record": number, "key": key, "reason": result.reason}
            dropped.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    used.write(b"[]\n" if is_empty else reader.gap_text.encode())
    judge.finish()


class _Judge(Protocol):
    """Says which records of the published list stay."""

    def __call__(self, number: int, record: object) -> _RecordResult | None:
        """What became of a record; called for each of them in order. None if that is not known."""
        ...

    def finish(self) -> None:
        """Check that no result is left."""
        ...


class _ByRecord:
    """Judges records that are samples themselves, by what became of the sample."""

    def __init__(self, layout: OutputLayout, shards: Iterable[str]) -> None:
        self._layout = layout
        self._results = _results(layout, shards)

    def __call__(self, number: int, record: object) -> _RecordResult | None:
        del number, record
        return next(self._results, None)

    def finish(self) -> None:
        if next(self._results, None) is not None:
            raise ConservationError(f"{self._layout.published_list} has fewer records than the ledgers list")


class _ByImages:
    """Judges records by what became of the images that they name.

    Memory holds 8 bytes for each image that arrived, and the name and the reason of each that did not.
    """

    def __init__(self, layout: OutputLayout, shards: Iterable[str], dataset: Dataset) -> None:
        self._dataset = dataset
        self._reasons: dict[str, str] = {}
        arrived = array("q")
        for shard in shards:
            for lines in read_samples(layout.ledger(shard)):
                for line in lines:
                    if line.outcome == OK:
                        arrived.append(_hash(line.key))
                    else:
                        self._reasons[line.key] = f"{line.outcome}: {line.detail}"
        self._arrived = np.sort(np.array(arrived, np.int64))

    def __call__(self, number: int, record: object) -> _RecordResult | None:
        key = str(record.get("id", number)) if isinstance(record, dict) else str(number)
        try:
            names = self._dataset.list_images(record)
        except ValueError as error:
            return _RecordResult(key, str(error))
        for name in names:
            reason = self._reasons.get(name)
            if reason is not None:
                return _RecordResult(key, f"{reason}: {name}")
            if not self._has_arrived(name):
                return _RecordResult(key, f"{name} was not looked for, because the run had a limit")
        return _RecordResult(key, None)

    def finish(self) -> None:
        pass

    def _has_arrived(self, name: str) -> bool:
        digest = _hash(name)
        index = int(np.searchsorted(self._arrived, digest))
        return index < len(self._arrived) and int(self._arrived[index]) == digest


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


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


def kept_copy(layout: OutputLayout) -> Path | None:
    """The copy of the published list, if there is one."""
    if not layout.published_list.is_dir():
        return None
    found = [path for path in layout.published_list.iterdir() if path.name != _WRITTEN_LIST and path.suffix != ".tmp"]
    return found[0] if len(found) == 1 else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a list."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
