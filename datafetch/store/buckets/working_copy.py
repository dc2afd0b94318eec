"""WorkingCopy: the local folder on which a run works in place of an output in a bucket.

Theory of operation. A run works on the working copy just as on a local output. At certain moments what has changed
there is uploaded, and then recorded by one entry of the commit log:

* ``begin``, when the run has claimed the output: ``job.json`` and what was deleted;
* ``publish``, after each shard: its rows, its ledger, and its failures that may pass. Only then is its spool deleted;
* ``complete``, after the run's last step: everything else, ``equal.json`` and ``report.json`` last.

So what the log adds up to is at each moment what a run that is killed on a local disk could have left behind: whole
shards, and a report only if the run is complete. A run that begins takes the lease, and makes its working copy what the
log says (``local_files``), on the same machine or on another one. Spools are local; where another machine is to go on
with them, segments of them are uploaded (``spool_segments``).

A run that steers the nodes of a cluster has the lease and the log, and its nodes upload the shards (``node_copy``). It
records what they report (``record``), many shards by one entry, and then has of them what it would have if it had
published them: ledgers, and hollow files of rows. Spools are the nodes' matter.

Of the trainer's files only the final ones have fixed keys. As long as an output is to be resharded, the manifest's
shards are objects of the state folder (``shards/``). The equal shards are then put under their own keys, before the
entry with ``equal.json`` makes them the output. Where they replace others, as after a retry, they are first recorded as
objects of the state folder, too, so that all rows are in the bucket at each moment; and the output is not complete
until all of them are in their places. Each is put on condition that what is there is still what was listed, so a
process that has lost its lease replaces nothing that the next one has written. Keys are recorded as ``finals`` before
anything is put there, so datafetch deletes nothing that it has not recorded.

A shard that has several files is one for readers of the bucket as long as its last file is there, the count of its rows
or its statistics. So its files are put one after another in the order of the format's suffixes. Where a shard is
replaced, its last file is deleted first; and where one of its final files is there already, none of the new ones gets
its final key before the end. So no reader that looks for the last file finds files of two commits.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.store.buckets.bucket import IF_NEW, Bucket, Condition, StoppedError
from datafetch.store.buckets.commit_log import CommitLog, LogEntry, LoggedFile, keys_of
from datafetch.store.buckets.lease import LEASE_S, Lease, Observed
from datafetch.store.buckets.local_files import LocalFiles, holds_rows
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.spool_segments import SpoolSegments
from datafetch.store.buckets.stored_output import StoredOutput, node_name
from datafetch.store.layout import OutputLayout

_THREADS = 4
_TAKEOVERS = 5  # of a log to which another process still writes
_FINAL_TRIES = 3
_ENTRIES_UNTIL_WHOLE = 256  # what a reader reads at most, a request each
_JOB, _REPORT, _RETRY, _STOP = "state/job.json", "state/report.json", "state/retry.json", "state/stopped.json"
_SMALL_BYTES = 64 << 10
_RESHARDING_SHARE = 3  # rows that are kept, the same rows resharded, and room for what is in progress

_log = logging.getLogger(__name__)


class Purpose(Enum):
    """What a working copy is for."""

    RUN = auto()
    """A run that fetches and publishes shards in it."""
    RETRY = auto()
    """A retry, which needs an output that is there."""
    STEERING = auto()
    """A run whose shards are fetched and uploaded by the nodes of a cluster."""


class WorkingCopy:
    """The working copy of an output in a bucket, from ``open`` to ``close``.

    Args:
        place: The output.
        scratch: The folder for working copies; None is the user's cache folder.
        suffixes: The suffixes of a shard's files, in the order in which they are published.
        is_staged: Whether the manifest's shards are no final files, because they are to be resharded.
        purpose: What it is for.
        lease_s: How long the lease holds without being renewed.
    """

    def __init__(
        self,
        place: Place,
        scratch: Path | None,
        suffixes: Sequence[str],
        *,
        is_staged: bool,
        purpose: Purpose,
        lease_s: float = LEASE_S,
    ) -> None:
        self._place = place
        self._suffixes = suffixes
        self._is_staged = is_staged
        self._must_exist = purpose is Purpose.RETRY  # a retry is of something
        self._is_steering = purpose is Purpose.STEERING
        self._bucket = Bucket(place.bucket)
        self._files = LocalFiles(self._bucket, place.working_folder(scratch), place.name)
        self._log = CommitLog(self._bucket, place.log_prefix, str(place))
        self._lease = Lease(self._bucket, place.lease, str(place), look=self._look, lease_s=lease_s)
        self._segments = SpoolSegments(self._bucket, place.spool_prefix, self._files.layout.all_spools)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="publish")
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._uploads = 0
        self._last_whole = 0
        self._final_etags: dict[str, str] = {}
        self._top_names: set[str] = set()
        self._max_kept_bytes = 0

    @property
    def layout(self) -> OutputLayout:
        """The paths of the working copy."""
        return self._files.layout

    def open(self) -> None:
        """Take the lease, and make the local files those of the output.

        Raises:
            ConfigurationError: Another run is at work, or the bucket has files that datafetch has not written.
            ResourceError: The store can't be reached, or the local disk can't be written.
        """
        self._lease.acquire()
        self._take_over()
        self._abort_uploads()
        self._delete_unrecorded(self._lease.token)
        self._bring_files()
        if not self._is_steering:
            self._segments.restore()

    def close(self) -> None:
        """Upload the rest of the spools, and release the lease; also if it was never opened."""
        self._segments.end()
        self._lease.release()
        self._threads.shutdown(cancel_futures=True)
        self._files.close()
        self._bucket.close()

    def stop(self) -> None:
        """Let requests that wait for their next attempt end."""
        self._bucket.stop.set()

    def begin(self, *, has_started_over: bool = False) -> None:
        """Record what a run has prepared, before its first shard; what it has deleted is deleted in the bucket, too.

        Args:
            has_started_over: Whether no spools count any more. A run that fetches by itself has deleted them.
        """
        deleted = self._gone_finals()
        self._upload_all(without=self._out_names())
        self._delete_finals(deleted)
        if not self._is_staged:
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                shards = orjson.loads(self.layout.job.read_bytes())["shards"]
                finals = [self._final_key(f"out/{shard}{suffix}") for shard in shards for suffix in self._suffixes]
                self._announce(finals)
        if self._is_steering:
            self._segments.forget_all(None if has_started_over else self._recorded_shards())
        else:
            self._segments.begin(self._lease.token)

    def stored(self, scratch: Path | None) -> StoredOutput:
        """The output, as nodes are told of it, once the run has begun.

        Args:
            scratch: The folder for shards in progress on a node; None is the user's cache folder.
        """
        return StoredOutput(
            str(self._place),
            self._log.contents.files[_JOB],
            self._lease.token,
            tuple(self._suffixes),
            self._is_staged,
            None if scratch is None else str(scratch),
        )

    def bring_shard(self, shard: str) -> None:
        """Have the content of a published shard, which is about to be merged with other rows."""
        is_resharded = self.layout.reshard_record.exists()  # then files of other rows may have these names
        for name in (*(() if is_resharded else self._out_names_of(shard)), *self._state_names_of(shard)):
            file = self._log.contents.files.get(name)
            if file is not None and self._files.is_hollow(name):
                self._files.fill(name, file)

    def publish(self, shard: str) -> None:
        """Upload and record a shard that was published locally.

        Raises:
            ResourceError: The store can't be reached, or another run has taken over.
        """
        out_names = self._out_names_of(shard)
        uploaded = self._upload_rows(out_names) | self._upload_changed(self._state_names_of(shard))
        gone = [name for name in (*out_names, *self._state_names_of(shard)) if self._is_gone(name)]
        with self._lock:
            uploaded |= self._upload_changed(self._files.top_names())
            gone += [name for name in self._top_names if self._is_gone(name)]
            self._record(uploaded, gone)
        for name in out_names:
            if not self._keeps_rows():
                self._hollow(name)

    def record(self, shards: Mapping[str, Mapping[str, LoggedFile]]) -> None:
        """Record shards that nodes have uploaded, by one entry.

        Args:
            shards: The files of each shard, by name.

        Raises:
            ResourceError: The store can't be reached, or another run has taken over.
        """
        files = {name: file for uploaded in shards.values() for name, file in uploaded.items()}
        names = [name for shard in shards for name in (*self._out_names_of(shard), *self._state_names_of(shard))]
        with self._lock:
            gone = [name for name in names if name in self._log.contents.files and name not in files]
            self._record(files, gone)
        for name in gone:
            self._files.path_of(name).unlink(missing_ok=True)

    def bring_recorded(self, files: Mapping[str, LoggedFile]) -> None:
        """Have the files of a shard that a node has uploaded, the rows hollow.

        Raises:
            ResourceError: The store can't be reached.
        """
        for name in sorted(files, key=lambda one: one.startswith("state/ledger/")):  # which says that all are there
            is_spool = name.startswith("state/failed/")
            self._files.bring_one(name, files[name], is_needed=self._is_needed(name, files[name]) and not is_spool)

    def drop_failures(self, spools: Iterable[str], number: int, kinds: Collection[str]) -> None:
        """Let images be requested again that failed on a node; the arguments are those of ``SpoolSegments``.

        Raises:
            ResourceError: The store can't be reached.
        """
        self._segments.drop_failures(spools, node_name(self._lease.token, number), kinds)

    def at_hand(self, path: Path) -> AbstractContextManager[None]:
        """Have the content of a file of rows while it is read."""
        return self._files.at_hand(self._log.contents.files, path, keeps=self._keeps_rows())

    def complete(self) -> None:
        """Upload and record everything; the trainer's files get their final keys.

        Raises:
            ConfigurationError: There are other files in the place of final ones.
            ResourceError: The store can't be reached, or another run has taken over.
        """
        if self._is_steering:  # nodes have put some
            self._final_etags = self._list_finals()
        out_names = self._out_names()
        finals = {name: self._final_key(name) for name in out_names}
        files = self._log.contents.files
        moved = [name for name, key in finals.items() if not self._is_same(name) or files[name].key != key]
        if self._gone_finals() or any(finals[name] in self._final_etags for name in moved):
            self._upload_all(without=[_REPORT, _RETRY], announced=[finals[name] for name in moved])
        else:
            self._announce([finals[name] for name in moved])
        put = self._put_finals(moved)
        strays = sorted((self._log.contents.finals - set(finals.values())) & self._final_etags.keys())
        self._delete_finals(strays)
        with self._lock:
            names = [name for name in self._files.names() if not name.startswith("out/")]
            uploaded = self._upload_changed(names)
            gone = [name for name in self._log.contents.files if self._is_gone(name)]
            self._record(uploaded | put, gone, no_finals=True)
        for name in out_names:
            self._hollow(name)
        if self._is_steering:
            self._abort_uploads()
            self._delete_unrecorded(self._lease.token + 1)
            self._segments.forget_all(self._recorded_shards())

    def record_stop(self) -> None:
        """Record why a run has stopped, as far as that is possible."""
        if self._log.contents.number:
            with suppress(DatafetchError, StoppedError), self._lock:
                self._record(self._upload_changed([_STOP]), [])

    def _take_over(self) -> None:
        """Begin an entry of this holder's own, so that earlier ones can record nothing more."""
        for _ in range(_TAKEOVERS):
            contents = self._log.read()
            if self._must_exist and _JOB not in contents.files:
                raise ConfigurationError(f"there is no run in {self._place}; give the place that a run writes to")
            self._final_etags = self._list_finals()
            try:
                self._append_whole()
            except ResourceError:  # the one before was still at work, and this is the number of its last entry
                self._lease.check()
                continue
            break
        else:
            raise ResourceError(
                f"another run is still writing to {self._place}; stop it, and run the same command again"
            )
        self._top_names = set(filter(_is_top, self._log.contents.files))

    def _append_whole(self) -> None:
        """Record all files again, so that a reader needs no earlier entries, and delete these."""
        contents = self._log.contents
        self._log.append(
            LogEntry(self._lease.token, dict(contents.files), is_whole=True, finals=sorted(contents.finals))
        )
        self._last_whole = contents.number
        self._log.forget_earlier()

    def _bring_files(self) -> None:
        if not self._files.open():
            raise ConfigurationError(
                f"another process works on {self._place} in the same folder, {self.layout.out.parent}; wait for it, or "
                "stop it first"
            )
        free_bytes = shutil.disk_usage(self._files.layout.out.parent).free
        kept_bytes = self._files.filled_bytes
        self._max_kept_bytes = (free_bytes + kept_bytes) // _RESHARDING_SHARE
        self._files.bring(
            {name: file for name, file in self._log.contents.files.items() if self._is_there(file)}, self._is_needed
        )

    def _is_there(self, file: LoggedFile) -> bool:
        """Whether an object is what was recorded, as far as that is known: only of the trainer's files."""
        return not file.key.startswith(self._place.out_prefix) or self._final_etags.get(file.key) == file.etag

    def _is_needed(self, name: str, file: LoggedFile) -> bool:
        """Whether a file's content is needed from the beginning: everything but rows."""
        return file.size_bytes <= _SMALL_BYTES or not holds_rows(name)

    def _list_finals(self) -> dict[str, str]:
        """The trainer's files in the bucket, by key.

        Raises:
            ConfigurationError: There are others, which would count as a part of the output.
        """
        contents = self._log.contents
        own = keys_of(contents.files) | contents.finals
        found = {}
        for one in self._bucket.list(self._place.out_prefix):
            if one.key.endswith("/") and not one.size_bytes:  # what some tools make of a folder
                continue
            if one.key not in own:
                raise ConfigurationError(
                    f"s3://{self._place.bucket}/{one.key} was not written by this job, and would count as a part of "
                    "the output; move it away, or choose another folder"
                )
            found[one.key] = one.etag
        return found

    def _abort_uploads(self) -> None:
        """Abort what earlier holders, or nodes that have ended, have uploaded in part."""
        try:
            for prefix in (self._place.out_prefix, self._place.state_prefix):
                self._bucket.abort_uploads(prefix)
        except ConfigurationError as error:  # not all stores list them, nor does each login allow it
            _log.warning(
                "what killed runs have uploaded in part stays in the bucket (%s); give it a lifecycle rule that aborts "
                "such uploads",
                error,
            )

    def _delete_unrecorded(self, before: int) -> None:
        """Delete what was uploaded and not recorded by holders with a lower token than this."""
        prefix, recorded = self._place.state_prefix, keys_of(self._log.contents.files)
        kept = (self._place.spool_prefix, self._place.log_prefix)
        unrecorded = []
        for one in self._bucket.list(prefix):
            token = None if one.key.startswith(kept) else self._place.writer_token(one.key)
            if token is not None and token < before and one.key not in recorded:
                unrecorded.append(one.key)
        self._bucket.delete(unrecorded)

    def _recorded_shards(self) -> set[str]:
        """The shards that have a ledger."""
        names = (PurePosixPath(name) for name in self._log.contents.files)
        folder = PurePosixPath(self._files.name_of(self.layout.ledgers))
        return {name.stem for name in names if name.parent == folder}

    def _look(self) -> Observed:
        """What observers are to see of the run: its last heartbeat, and the nodes that it steers."""
        return Observed(_read_object(self.layout.progress), _read_object(self.layout.cluster))

    def _out_names(self) -> list[str]:
        return [name for name in self._files.names() if name.startswith("out/")]

    def _out_names_of(self, shard: str) -> list[str]:
        return [f"out/{shard}{suffix}" for suffix in self._suffixes]

    def _state_names_of(self, shard: str) -> list[str]:
        layout = self.layout
        paths = [
            layout.ledger(shard),
            layout.kept_for_retry(shard),
            *(layout.added / f"{shard}{suffix}" for suffix in self._suffixes),
        ]
        before_repair = layout.before_repair / shard
        if before_repair.is_dir():
            paths += [path for path in before_repair.rglob("*") if path.is_file()]
        return [self._files.name_of(path) for path in paths]

    def _is_same(self, name: str) -> bool:
        file = self._log.contents.files.get(name)
        return file is not None and self._files.is_copy(name, file)

    def _gone_finals(self) -> list[str]:
        """The keys of final files that are recorded, and no longer there locally."""
        files = self._log.contents.files.items()
        return [file.key for name, file in files if file.key == self._final_key(name) and self._is_gone(name)]

    def _is_gone(self, name: str) -> bool:
        return name in self._log.contents.files and not self._files.path_of(name).exists()

    def _final_key(self, name: str) -> str:
        return self._place.final_key(name)

    def _own_key(self, name: str) -> str:
        """A key that nobody else writes to, for a file of the state folder or a shard that is no final file."""
        with self._counting:
            self._uploads += 1
            return self._place.own_key(name, f"{self._lease.token}-{self._uploads}")

    def _upload_all(self, without: Collection[str], announced: Sequence[str] = ()) -> None:
        """Record everything that has changed or is gone, but for some files."""
        left_out = frozenset(without)
        with self._lock:
            uploaded = self._upload_changed(name for name in self._files.names() if name not in left_out)
            recorded = self._log.contents.files
            gone = [name for name in recorded if self._is_gone(name) and name not in left_out]
            if _REPORT in left_out & recorded.keys() and _RETRY not in recorded:
                gone.append(_REPORT)  # as long as that of a retry is there, the output is not complete
            self._record(uploaded, gone, finals=announced)

    def _upload_rows(self, names: Sequence[str]) -> dict[str, LoggedFile]:
        """Upload the files of a shard that have changed: under their final keys, unless there are files of it."""
        if self._is_staged or any(self._final_key(name) in self._final_etags for name in names):
            return self._upload_changed(names)
        return {name: self._put_final(name) for name in self._changed(names)}

    def _upload_changed(self, names: Iterable[str]) -> dict[str, LoggedFile]:
        """Upload those files that exist and have changed since they were recorded, under keys of their own."""
        changed = self._changed(names)
        uploaded = self._threads.map(self._upload, changed)
        return {name: file for name, file in zip(changed, uploaded, strict=True) if file is not None}

    def _changed(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self._is_same(name) and self._files.path_of(name).is_file()]

    def _upload(self, name: str) -> LoggedFile | None:
        """Upload a file under a key of its own; None if it is gone."""
        path = self._files.path_of(name)
        while True:
            try:
                before = path.stat()
                checksum, key = self._files.checksum(name), self._own_key(name)
                etag = self._bucket.upload(path, key, checksum)
                after = path.stat()
            except FileNotFoundError:
                return None
            if (before.st_ino, before.st_mtime_ns) == (
                after.st_ino,
                after.st_mtime_ns,
            ):  # or it has another content now
                break
        assert etag is not None, "there was no condition"
        file = LoggedFile(key, before.st_size, checksum, etag)
        self._files.note(name, file, before)
        return file

    def _put_finals(self, names: Sequence[str]) -> dict[str, LoggedFile]:
        """Put the files of shards under their final keys, some shards at a time."""
        size_bytes = sum(self._files.path_of(name).stat().st_size for name in names)
        put: dict[str, LoggedFile] = {}
        with Activity("uploading the trainer's files", size_bytes, ActivityUnit.BYTE) as activity:
            for files in self._threads.map(self._replace_shard, self._by_shard(names)):
                put |= files
                activity.advance(sum(file.size_bytes for file in files.values()))
        return put

    def _by_shard(self, names: Iterable[str]) -> list[list[str]]:
        """The files of each shard, in the order in which they are published."""
        suffixes = {name: next(filter(name.endswith, self._suffixes), "") for name in names}
        shards: dict[str, list[str]] = {}
        for name in sorted(suffixes, key=lambda one: (*self._suffixes, "").index(suffixes[one])):
            shards.setdefault(name.removesuffix(suffixes[name]), []).append(name)
        return list(shards.values())

    def _replace_shard(self, names: Sequence[str]) -> dict[str, LoggedFile]:
        """Put the files of a shard under their final keys; until all are there, its last one is not."""
        *others, last = names
        is_shown = last.endswith(self._suffixes[-1]) and self._final_key(last) in self._final_etags
        if is_shown and not all(map(self._is_in_place, others)):
            self._lease.check()
            self._delete_finals([self._final_key(last)])
        return {name: self._put_final(name) for name in names}

    def _is_in_place(self, name: str) -> bool:
        """Whether a file with these bytes is under the final key."""
        key = self._final_key(name)
        return key in self._final_etags and self._same_final(key, *self._size_and_checksum(name)) is not None

    def _size_and_checksum(self, name: str) -> tuple[int, int]:
        file = self._log.contents.files.get(name)
        if file is not None and self._files.is_hollow(name):
            return file.size_bytes, file.crc32
        return self._files.path_of(name).stat().st_size, self._files.checksum(name)

    def _delete_finals(self, keys: Sequence[str]) -> None:
        """Delete trainer's files, the last ones of shards first."""
        last = [key for key in keys if key.endswith(self._suffixes[-1])]
        self._bucket.delete(last)
        self._bucket.delete([key for key in keys if not key.endswith(self._suffixes[-1])])
        for key in keys:
            self._final_etags.pop(key, None)

    def _put_final(self, name: str) -> LoggedFile:
        """Put a trainer's file under its final key, unless it is there.

        Raises:
            ConfigurationError: Another file is there.
            ResourceError: Another run has taken over.
        """
        recorded = self._log.contents.files.get(name)
        was_hollow = recorded is not None and self._files.is_hollow(name)
        if recorded is not None and was_hollow:
            self._files.fill(name, recorded)
        path, key = self._files.path_of(name), self._final_key(name)
        status, checksum = path.stat(), self._files.checksum(name)
        for _ in range(_FINAL_TRIES):
            self._lease.check()
            there = self._final_etags.get(key)
            etag = None if there is None else self._same_final(key, status.st_size, checksum)
            if etag is None:
                etag = self._bucket.upload(path, key, checksum, IF_NEW if there is None else Condition(there))
            if etag is not None:
                self._final_etags[key] = etag
                file = LoggedFile(key, status.st_size, checksum, etag)
                self._files.note(name, file, status)
                return file
            self._look_at_final(key)
        raise ResourceError(
            f"another run writes to {self._place}; wait for it, or stop it, and run the same command again"
        )

    def _same_final(self, key: str, size_bytes: int, checksum: int) -> str | None:
        """The entity tag of a final file that a run has put which was killed; None if it is another one."""
        found = self._bucket.describe(key)
        is_same = found is not None and (found.size_bytes, found.crc32) == (size_bytes, checksum)
        return found.etag if found is not None and is_same else None

    def _look_at_final(self, key: str) -> None:
        """Learn what is in the place of a final file, where it was not expected.

        Raises:
            ConfigurationError: A file that datafetch has not written.
        """
        found = self._bucket.describe(key)
        if found is None:
            self._final_etags.pop(key, None)
        elif found.is_ours:
            self._final_etags[key] = found.etag
        else:
            raise ConfigurationError(
                f"s3://{self._place.bucket}/{key} was not written by this job; move it away, and run the same command "
                "again"
            )

    def _announce(self, keys: Iterable[str]) -> None:
        """Record the keys of final files before they are written."""
        new = sorted(set(keys) - self._log.contents.finals)
        if new:
            with self._lock:
                self._record({}, [], finals=new)

    def _record(
        self,
        files: dict[str, LoggedFile],
        gone: Sequence[str],
        *,
        finals: Sequence[str] = (),
        no_finals: bool = False,
    ) -> None:
        """Append an entry, and delete the objects that it replaces; the lock is held."""
        contents = self._log.contents
        if not (files or gone or finals or (no_finals and contents.finals)):
            return
        before = {contents.files[name].key for name in (*files, *gone) if name in contents.files}
        left = sorted({key for key in before if key.startswith(self._place.out_prefix)})
        entry = LogEntry(
            self._lease.token,
            files,
            sorted(gone),
            finals=[*finals, *(left if not no_finals else ())],
            no_finals=no_finals,
        )
        self._lease.check()
        self._log.append(entry)
        self._lease.check()
        for name in gone:
            self._files.forget(name)
        if self._log.contents.number - self._last_whole >= _ENTRIES_UNTIL_WHOLE:
            self._append_whole()
        self._top_names.difference_update(gone)
        self._top_names.update(filter(_is_top, files))
        replaced = before - keys_of(files)
        self._delete_finals(sorted(key for key in replaced if no_finals or not key.startswith(self._place.out_prefix)))

    def _keeps_rows(self) -> bool:
        """Whether rows stay on the local disk once they are in the bucket."""
        return self._is_staged and self._files.filled_bytes < self._max_kept_bytes

    def _hollow(self, name: str) -> None:
        file = self._log.contents.files.get(name)
        if (
            file is not None
            and holds_rows(name)
            and file.size_bytes > _SMALL_BYTES
            and self._is_same(name)
            and not self._files.is_hollow(name)
        ):
            self._files.hollow(name, file)


def _is_top(name: str) -> bool:
    """Whether a file lies right in the state folder."""
    return name.startswith("state/") and name.count("/") == 1


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
