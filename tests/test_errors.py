"""Exhausted resources of the machine are distinguished from faults of files."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from datafetch.datasets import find_dataset
from datafetch.datasets.readers import list_files, read_ids
from datafetch.datasets.readers.jsonl import LineFile
from datafetch.datasets.readers.parquet import ParquetFile
from datafetch.engine.retry_state import read_retry_state
from datafetch.errors import ResourceError, is_exhaustion
from datafetch.monitor.status import read_status
from datafetch.output.reshard.record import read_reshard_record
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_columns
from datafetch.store.shard_summary import read_shard_summary
from datafetch.verify.image_folder import ImageFolder
from datafetch.verify.record_list import RecordList
from datafetch.verify.shards import ShardFolder

_STANDARD_STREAMS = 3


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Prevent this process from opening anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_STANDARD_STREAMS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


READS: dict[str, Callable[[Path], object]] = {
    "ledger": lambda folder: read_shard_summary(folder / "file"),
    "ledger's columns": lambda folder: list(read_columns(folder / "file", ["key"])),
    "parquet": lambda folder: ParquetFile(folder / "file", {}),
    "ids": lambda folder: read_ids(folder / "file"),
    "folder": lambda folder: list_files(folder, ".parquet"),
    "lines": lambda folder: list(LineFile(folder / "file").lines()),
    "covers": lambda folder: find_dataset("ocr-vqa").bind(folder / "file", None),
    "state of a retry": lambda folder: read_retry_state(OutputLayout(folder / "out")),
    "status": lambda folder: read_status(folder / "out"),
    "resharded": lambda folder: read_reshard_record(OutputLayout(folder / "out")),
    "folder of shards": ShardFolder,
    "folder of images": lambda folder: list(ImageFolder(folder).examine()),
    "list of records": lambda folder: list(RecordList(folder / "file", folder).examine()),
}


@pytest.mark.parametrize("name", READS)
def test_exhausted_descriptors_are_not_reported_as_damage(name: str, tmp_path: Path) -> None:
    """A file must not be reported as damaged or missing, because starting over would lose what is there."""
    (tmp_path / "file").write_bytes(b"[]")
    layout = OutputLayout(tmp_path / "out").state_folder
    layout.mkdir()
    for file in ("job.json", "retry.json", "equal.json"):
        (layout / file).write_bytes(b"{}")
    with no_descriptors(), pytest.raises(ResourceError, match=r"Too many open files.*run the same command again"):
        READS[name](tmp_path)


def test_exhausted_descriptors_are_not_reported_as_unreadable_covers(tmp_path: Path) -> None:
    """This also holds while the file is read slice by slice, after it was checked."""
    (tmp_path / "dataset.json").write_bytes(b'{"1": {"imageURL": "http://example.com/1.jpg"}}')
    manifest = find_dataset("ocr-vqa").bind(tmp_path / "dataset.json", None)
    shard = manifest.shards()[0]
    with no_descriptors(), pytest.raises(ResourceError, match="Too many open files"):
        list(manifest.samples(shard))


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (MemoryError(), True),
        (pa.ArrowMemoryError("malloc of size 64 failed"), True),
        (pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"), True),
        (pa.ArrowInvalid("not a parquet file"), False),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("a bug"), False),
    ],
)
def test_exhaustion_is_recognized(error: Exception, is_so: bool) -> None:
    """It is recognized by errno, by class, or else by the message."""
    assert is_exhaustion(error) is is_so
