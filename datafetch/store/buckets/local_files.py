"""LocalFiles: the files of an output in a bucket, on this machine: copied, or hollow.

Theory of operation: nearly everything that datafetch does with published rows is to look whether their files are there
with the right sizes. So of a file of rows that is in the bucket a *hollow* one takes the place: a sparse file of the
same size and times, which takes no space. What reads the rows says so first, and they are downloaded (``at_hand``). A
journal says which files are hollow, and which object each file is a copy of. It is written before a file becomes
hollow, and after it is filled, so that a hollow file is never taken for rows; and their checksums differ.

Rules: what is in the bucket decides. ``bring`` makes the folder what the bucket's log says, whatever was there; only
spools and what can be made again from them are kept, for the run to resume with.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.checksum import crc32_of
from datafetch.model.untrusted import is_plain_path, short_repr
from datafetch.store.atomic import sync
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.commit_log import LoggedFile
from datafetch.store.layout import OutputLayout

_OUT, _STATE = "out", "state"
_JOURNAL, _IN_USE = "files.jsonl", "in-use"
_THREADS = 16
_ROWS_SUFFIXES = (".pkl", ".tar")
_TABLE_SUFFIX = ".parquet"  # in the state folder, ledgers have it
_KEPT = frozenset({"lock", "shards.lock", "spool", "scans", "quarantine", "resharding"})
"""What a run resumes with and is nobody's but this machine's, in the state folder."""
_UNMIRRORED = _KEPT | {
    *("progress.json", "progress", "cluster.json", "unpublished", "ready", "resharded", "replaced", "previous")
}
"""What in the state folder is no part of what the bucket holds."""


class LocalCopy(msgspec.Struct, frozen=True, array_like=True):
    """A local file, as it was when it was last the same as an object.

    Attributes:
        key: The key of the object.
        etag: Its entity tag, since keys of the trainer's files are used again.
        size_bytes: The size of the file.
        mtime_ns: The time of its last change.
        inode: Its inode number.
        is_hollow: Whether it has no content.
    """

    key: str
    etag: str
    size_bytes: int
    mtime_ns: int
    inode: int
    is_hollow: bool = False


class _JournalLine(msgspec.Struct, frozen=True):
    name: str
    copy: LocalCopy | None = None


class LocalFiles:
    """The local files of an output.

    Files have names: ``out/`` and their path in the output, or ``state/`` and their path in its state folder.

    Args:
        bucket: Where they are copied from.
        folder: The folder for all of them.
        output_name: The name of the output's folder in it.
        checks_out: Whether files of the output have to be what the log says; otherwise it is judged later.

    Attributes:
        layout: The paths of the output.
        filled_bytes: The size of all files of the output itself that are copies and not hollow.
    """

    def __init__(self, bucket: Bucket, folder: Path, output_name: str, *, checks_out: bool = True) -> None:
        self.layout = OutputLayout(folder / output_name)
        self.filled_bytes = 0
        self._bucket = bucket
        self._folder = folder
        self._checks_out = checks_out
        self._copies: dict[str, LocalCopy] = {}
        self._journal: IO[bytes] | None = None
        self._in_use: IO[str] | None = None
        self._lock = threading.RLock()
        self._filling: dict[str, threading.Lock] = {}

    def open(self) -> bool:
        """Lock the folder, read the journal, and write it again; False if another process uses the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._in_use = (self._folder / _IN_USE).open("w")
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path = self._folder / _JOURNAL
        copies: dict[str, LocalCopy] = {}
        with suppress(FileNotFoundError), path.open("rb") as file:
            for line in file:
                try:
                    read = msgspec.json.decode(line, type=_JournalLine)
                except ValueError:  # the last one, which a killed process has not written to its end
                    break
                if read.copy is None:
                    copies.pop(read.name, None)
                else:
                    copies[read.name] = read.copy
        unfinished = path.with_name(path.name + ".tmp")
        with unfinished.open("wb") as file:
            file.writelines(_line(name, copy) for name, copy in copies.items())
        unfinished.replace(path)
        self._copies = copies
        self.filled_bytes = sum(map(_filled_bytes_of, copies.items()))
        self._journal = path.open("ab", buffering=0)
        return True

    def close(self) -> None:
        """Close the journal, and unlock the folder."""
        for file in (self._journal, self._in_use):
            if file is not None:
                file.close()

    def path_of(self, name: str) -> Path:
        """The path of a file."""
        kind, _, rest = name.partition("/")
        if kind not in {_OUT, _STATE} or not is_plain_path(rest):
            raise ConfigurationError(
                f"the log names a file {short_repr(name)}, which no output has; delete the output and its state folder "
                "to start over"
            )
        return (self.layout.out if kind == _OUT else self.layout.state_folder) / rest

    def name_of(self, path: Path) -> str:
        """The name of a file."""
        if path.is_relative_to(self.layout.out):
            return f"{_OUT}/{path.relative_to(self.layout.out).as_posix()}"
        return f"{_STATE}/{path.relative_to(self.layout.state_folder).as_posix()}"

    def names(self) -> list[str]:
        """The names of all files that are to be in the bucket."""
        found = [f"{_OUT}/{one}" for one in _files_in(self.layout.out)]
        return found + [f"{_STATE}/{one}" for one in _files_in(self.layout.state_folder) if _is_mirrored(one)]

    def top_names(self) -> list[str]:
        """The names of those that lie right in the state folder."""
        folder = self.layout.state_folder
        found = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        return [f"{_STATE}/{one}" for one in found if _is_mirrored(one)]

    def is_copy(self, name: str, file: LoggedFile) -> bool:
        """Whether a local file is a copy of an object, hollow or not, and unchanged since."""
        copy = self._copies.get(name)
        is_of_it = copy is not None and (copy.key, copy.etag) == (file.key, file.etag)
        return copy is not None and is_of_it and self._is_unchanged(name, copy)

    def is_hollow(self, name: str) -> bool:
        """Whether a file has no content."""
        copy = self._copies.get(name)
        return copy is not None and copy.is_hollow and self._is_unchanged(name, copy)

    def note(self, name: str, file: LoggedFile, status: os.stat_result, *, is_hollow: bool = False) -> None:
        """Note that a local file, as it was then, is the same as an object."""
        size, mtime_ns, inode = status.st_size, status.st_mtime_ns, status.st_ino
        self._record(name, LocalCopy(file.key, file.etag, size, mtime_ns, inode, is_hollow))

    def forget(self, name: str) -> None:
        """Note that a file is gone."""
        if name in self._copies:
            self._record(name, None)

    def bring(self, files: Mapping[str, LoggedFile], is_needed: Callable[[str, LoggedFile], bool]) -> None:
        """Make the local files those that the log has.

        Args:
            files: The files by name.
            is_needed: Whether the content of a file is needed; otherwise it is hollow.
        """
        for one in _UNMIRRORED - _KEPT:
            shutil.rmtree(self.layout.state_folder / one, ignore_errors=True)
        self.layout.cluster.unlink(missing_ok=True)
        for name in self.names():
            if name not in files:
                self.path_of(name).unlink(missing_ok=True)
                self.forget(name)
        _prune_empty(self.layout.out)
        _prune_empty(self.layout.state_folder)
        missing = [
            (name, file)
            for name, file in files.items()
            if not self.is_copy(name, file) or (self.is_hollow(name) and is_needed(name, file))
        ]
        activity = Activity("copying what the bucket has of the output", len(missing), ActivityUnit.FILE)
        with activity, ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(lambda one: self.bring_one(*one, is_needed=is_needed(*one)), missing):
                activity.advance(1)

    def bring_one(self, name: str, file: LoggedFile, *, is_needed: bool) -> None:
        """Put a file that is in the bucket in its place: with its content if that is needed, otherwise hollow."""
        if is_needed:
            self.fill(name, file)
        else:
            self.hollow(name, file)

    @contextmanager
    def at_hand(self, files: Mapping[str, LoggedFile], path: Path, *, keeps: bool) -> Iterator[None]:
        """Have the content of a file while its rows are read.

        Args:
            files: The files of the output, by name.
            path: The file.
            keeps: Whether it stays afterwards.
        """
        name = self.name_of(path)
        with self._lock:
            lock = self._filling.setdefault(name, threading.Lock())
        with lock:
            file = files.get(name)
            was_hollow = file is not None and self.is_hollow(name)
            if file is not None and was_hollow:
                self.fill(name, file)
            try:
                yield
            finally:
                if file is not None and was_hollow and not keeps:
                    self.hollow(name, file)

    def fill(self, name: str, file: LoggedFile) -> None:
        """Download the content of a file; its time stays that of the hollow one.

        Raises:
            ResourceError: It can't be had.
        """
        path = self.path_of(name)
        before = self._copies.get(name)
        unfinished = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._download(file, unfinished, checks=self._checks_out or not name.startswith(f"{_OUT}/"))
        if before is not None and before.is_hollow:
            os.utime(unfinished, ns=(before.mtime_ns, before.mtime_ns))
        sync(unfinished)  # or after a power failure the journal might speak of a file whose content was lost
        unfinished.replace(path)
        self.note(name, file, path.stat())

    def hollow(self, name: str, file: LoggedFile) -> None:
        """Put a hollow file in place of one that is in the bucket."""
        path = self.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        with unfinished.open("wb") as sparse:
            sparse.truncate(file.size_bytes)
        with suppress(FileNotFoundError):
            mtime_ns = path.stat().st_mtime_ns
            os.utime(unfinished, ns=(mtime_ns, mtime_ns))
        self.note(name, file, unfinished.stat(), is_hollow=True)
        unfinished.replace(path)

    def checksum(self, name: str) -> int:
        """The CRC-32 of a file."""
        return crc32_of(self.path_of(name))

    def _download(self, file: LoggedFile, target: Path, *, checks: bool) -> None:
        if not self._bucket.download(file.key, target):
            raise MissingObjectError(
                f"s3://{self._bucket.name}/{file.key} is missing, which is a part of the output; put it back, or "
                "delete the output and its state folder to start over"
            )
        if checks and (target.stat().st_size != file.size_bytes or crc32_of(target) != file.crc32):
            target.unlink()
            raise ResourceError(
                f"s3://{self._bucket.name}/{file.key} is not what was written to it; run the same command again, and "
                "if that says the same, put the object back"
            )

    def _is_unchanged(self, name: str, copy: LocalCopy) -> bool:
        try:
            status = self.path_of(name).stat(follow_symlinks=False)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns, status.st_ino) == (copy.size_bytes, copy.mtime_ns, copy.inode)

    def _record(self, name: str, copy: LocalCopy | None) -> None:
        with self._lock:
            before = self._copies.pop(name, None)
            if before is not None:
                self.filled_bytes -= _filled_bytes_of((name, before))
            if copy is not None:
                self._copies[name] = copy
                self.filled_bytes += _filled_bytes_of((name, copy))
            assert self._journal is not None, "it is open"
            self._journal.write(_line(name, copy))


def holds_rows(name: str) -> bool:
    """Whether a file has rows of the output, so that it may be hollow while nobody reads them."""
    return name.endswith(_ROWS_SUFFIXES) or (name.startswith(f"{_OUT}/") and name.endswith(_TABLE_SUFFIX))


class MissingObjectError(ConfigurationError):
    """An object is gone that the log names: the log has changed, or it was deleted."""


def _filled_bytes_of(copied: tuple[str, LocalCopy]) -> int:
    name, copy = copied
    return 0 if copy.is_hollow or not name.startswith(f"{_OUT}/") else copy.size_bytes


def _line(name: str, copy: LocalCopy | None) -> bytes:
    return msgspec.json.encode(_JournalLine(name, copy)) + b"\n"


def _is_mirrored(relative: str) -> bool:
    return relative.partition("/")[0] not in _UNMIRRORED and not relative.endswith(".tmp")


def _files_in(folder: Path, prefix: str = "") -> Iterator[str]:
    """The paths of all files below a folder, relative to it, but for unfinished downloads."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_in(Path(entry.path), f"{prefix}{entry.name}/")
        elif not (entry.name.startswith(".") and entry.name.endswith(".part")):
            yield f"{prefix}{entry.name}"


def _prune_empty(folder: Path) -> None:
    """Remove the folders below a folder in which there is no file, and the folder itself if nothing is left."""
    for below in folder.iterdir() if folder.is_dir() else ():
        if below.is_dir() and not below.is_symlink():
            _prune_empty(below)
    with suppress(OSError):  # it has files, or does not exist
        folder.rmdir()
