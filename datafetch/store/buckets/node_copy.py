"""NodeCopy: the local folder on which a node of a cluster works in place of an output in a bucket.

Theory of operation. The run that steers the nodes holds the lease and writes the commit log, alone; a node has neither.
It fetches and commits a shard in a local folder, and uploads its files: under keys of its own, which nobody replaces,
as ``shards/3-12-5/part-00017.pkl`` of the twelfth node that was started under the token 3. What it has uploaded it
reports, and the run records it; so no image passes through that. Until it is recorded an upload counts for nothing, so
a node that was given up can do no harm: what it leaves is deleted like all that was never recorded.

Of the trainer's files that have their final keys from the beginning, a node puts one only where there is none. If
another node has put it, with the same bytes, that is the file; with others, this one is uploaded as if it were not
final, and so are those of its shard that would come after it. The run replaces the other ones at the end
(``WorkingCopy.complete``). So the last file of a shard is never there with others than those of its own commit.

What spools have gained is uploaded all the time (``spool_segments``), and a node that is handed a shard first brings
what others have fetched of it. All local files are deleted when the node ends, or by the next one that starts on this
machine: what is in the bucket decides.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import IO

from datafetch.errors import ConfigurationError
from datafetch.model.checksum import crc32_of
from datafetch.store.buckets.bucket import IF_NEW, Bucket
from datafetch.store.buckets.commit_log import LoggedFile
from datafetch.store.buckets.spool_segments import SpoolSegments
from datafetch.store.buckets.stored_output import StoredOutput, node_name, read_stored_job, spool_name
from datafetch.store.layout import OutputLayout

_THREADS = 4
_IN_USE = "in-use"


class NodeCopy:
    """The folder of a node, from ``open`` to ``close``.

    Args:
        stored: The output.
        number: The number of the node, which no other one has that was started under the same token.
    """

    def __init__(self, stored: StoredOutput, number: int) -> None:
        self._stored = stored
        self._place = stored.place
        self._node = node_name(stored.token, number)
        self._bucket = Bucket(self._place.bucket)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="publish")
        self._in_use: IO[str] | None = None
        self._segments: SpoolSegments | None = None
        self._uploads = count(1)
        self._counting = threading.Lock()
        self.layout = OutputLayout(Path(self._place.name))

    def open(self) -> None:
        """Take a folder, and write the job there.

        Raises:
            ConfigurationError: The bucket does not have the output.
            ResourceError: The store can't be reached.
        """
        self.layout = OutputLayout(self._take_folder() / self._place.name)
        job = read_stored_job(self._stored, self._bucket)
        if job is None:
            raise ConfigurationError(f"there is no such run in {self._place}; check the endpoint of this node's store")
        self.layout.state_folder.mkdir()
        self.layout.job.write_bytes(job)
        self._segments = SpoolSegments(self._bucket, self._place.spool_prefix, self.layout.all_spools, node=self._node)
        self._segments.begin(self._stored.token)

    def bring_spools(self, shard: str, job_hash: str) -> None:
        """Have what others have fetched of a shard, before it is opened.

        Raises:
            ResourceError: The store can't be reached.
        """
        self._opened().bring(spool_name(job_hash, shard))

    def upload(self, shard: str) -> dict[str, LoggedFile]:
        """Upload the files of a shard that was published in the folder.

        Returns:
            They, by name, to be recorded.

        Raises:
            ResourceError: The store can't be reached.
        """
        paths = {name: path for name, path in self._paths_of(shard).items() if path.exists()}
        rows = [name for name in paths if name.startswith("out/")]
        others = {name: self._threads.submit(self._upload, name, paths[name]) for name in paths if name not in rows}
        finals = {} if self._stored.is_staged else self._put_finals({name: paths[name] for name in rows})
        others |= {name: self._threads.submit(self._upload, name, paths[name]) for name in rows if name not in finals}
        return finals | {name: upload.result() for name, upload in others.items()}

    def forget(self, shard: str, job_hash: str) -> None:
        """Delete what is needed no more of a shard that was recorded: its files here, and the segments of its spools.

        Raises:
            ResourceError: The store can't be reached.
        """
        for path in self._paths_of(shard).values():
            path.unlink(missing_ok=True)
        self._opened().forget(spool_name(job_hash, shard))

    def upload_spools(self) -> None:
        """Upload what spools have gained, as far as that is possible."""
        if self._segments is not None:
            self._segments.upload()

    def close(self) -> None:
        """Upload the rest of the spools, and delete all local files; also if it was never opened."""
        if self._segments is not None:
            self._segments.end()
        self._threads.shutdown(cancel_futures=True)
        if self._in_use is not None:
            _clear(self.layout.out.parent)
            self._in_use.close()
        self._bucket.close()

    def stop(self) -> None:
        """Let requests that wait for their next attempt end."""
        self._bucket.stop.set()

    def _opened(self) -> SpoolSegments:
        assert self._segments is not None, "it was opened"
        return self._segments

    def _take_folder(self) -> Path:
        """Take an empty folder of this machine that no other process has."""
        scratch = self._stored.scratch
        base = self._place.working_folder(None if scratch is None else Path(scratch))
        for number in count():
            folder = base.with_name(f"{base.name}-node-{number}")
            folder.mkdir(parents=True, exist_ok=True)
            in_use = (folder / _IN_USE).open("w")
            try:
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                in_use.close()
                continue
            self._in_use = in_use
            _clear(folder)  # left by a process that was killed
            return folder
        raise AssertionError("there are numbers enough")

    def _paths_of(self, shard: str) -> dict[str, Path]:
        layout = self.layout
        state = (layout.kept_for_retry(shard), layout.ledger(shard))
        return {
            **{f"out/{shard}{suffix}": layout.out / f"{shard}{suffix}" for suffix in self._stored.suffixes},
            **{f"state/{path.relative_to(layout.state_folder).as_posix()}": path for path in state},
        }

    def _put_finals(self, paths: Mapping[str, Path]) -> dict[str, LoggedFile]:
        """Put the files of a shard under their final keys, in order, up to the first in whose place is another one."""
        put = {}
        for name, path in paths.items():
            key, checksum = self._place.final_key(name), crc32_of(path)
            etag = self._put_final(path, key, checksum)
            if etag is None:
                break
            put[name] = LoggedFile(key, path.stat().st_size, checksum, etag)
        return put

    def _upload(self, name: str, path: Path) -> LoggedFile:
        """Upload a file under a key that nobody else writes to."""
        size, checksum = path.stat().st_size, crc32_of(path)
        with self._counting:
            key = self._place.own_key(name, f"{self._node}-{next(self._uploads)}")
        etag = self._bucket.upload(path, key, checksum)
        assert etag is not None, "there was no condition"
        return LoggedFile(key, size, checksum, etag)

    def _put_final(self, path: Path, key: str, checksum: int) -> str | None:
        """Put a trainer's file under its final key; None if there is another one."""
        etag = self._bucket.upload(path, key, checksum, IF_NEW)
        if etag is not None:
            return etag
        found = self._bucket.describe(key)
        is_same = found is not None and (found.size_bytes, found.crc32) == (path.stat().st_size, checksum)
        return found.etag if found is not None and is_same else None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _IN_USE:
            path.unlink(missing_ok=True)
