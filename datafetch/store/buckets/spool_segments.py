"""SpoolSegments: what spools of open shards have gained is uploaded every minute, so that another machine can go on.

Theory of operation. A spool is a log that is only appended to, so what it has gained since the last upload is a
*segment*: an object whose key names the spool, the fencing token of who wrote it, and from where to where it reaches. A
run that begins on a machine without these spools puts them together again: the segments of each holder in the order of
their tokens, each from its beginning on, which cuts off what an earlier holder had behind it; what comes behind a gap
is left out. Whatever is cut, a spool has checksums, and a run goes on behind its last whole entry.

A spool that the run cuts when it opens it is no longer what was put together. So it is compared once, and uploaded from
its beginning if it differs. Segments are deleted when their spool is, which is when its shard has been recorded.

Rules: segments are a convenience of which nothing is expected: an upload that fails is tried again a minute later, and
ends no run. A short-lived spool is never uploaded.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from datafetch.errors import DatafetchError
from datafetch.model.checksum import crc32
from datafetch.store.buckets.bucket import Bucket, StoppedError

INTERVAL_S = 60.0
_SEGMENT_BYTES = 16 << 20
_KEY = re.compile(r"(.+/.+)/(\d{10})-(\d{15})-(\d{15})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    token: int
    start: int
    end: int
    key: str = field(compare=False)


@dataclass(slots=True)
class _Spool:
    """What is known of a local spool.

    Attributes:
        inode: Its inode number, when it was last looked at.
        uploaded_bytes: How much of it is in the bucket.
        restored_crc32: The checksum of what was put together, until it has been compared; None if nothing was.
        keys: The keys of its segments.
    """

    inode: int = 0
    uploaded_bytes: int = 0
    restored_crc32: int | None = None
    keys: list[str] = field(default_factory=list)


class SpoolSegments:
    """The segments of an output's spools.

    Args:
        bucket: The bucket.
        prefix: What their keys begin with.
        folder: The folder of the spools, one folder for each job.
        interval_s: The time between two uploads.
    """

    def __init__(self, bucket: Bucket, prefix: str, folder: Path, *, interval_s: float | None = None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._folder = folder
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._spools: dict[str, _Spool] = {}
        self._token = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def restore(self) -> None:
        """Put spools together that are not on this machine.

        Raises:
            ResourceError: The store can't be reached.
        """
        segments: dict[str, list[_Segment]] = defaultdict(list)
        for one in self._bucket.list(self._prefix):
            match = _KEY.fullmatch(one.key.removeprefix(self._prefix))
            if match:
                segments[match[1]].append(_Segment(int(match[2]), int(match[3]), int(match[4]), one.key))
        for name, found in segments.items():
            spool = self._spools[name] = _Spool(keys=[segment.key for segment in found])
            path = self._folder / name
            if ".." in path.parts or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.part")
            with unfinished.open("w+b") as file:
                for segment in sorted(found):
                    has_gap = segment.start > file.seek(0, os.SEEK_END)
                    content = None if has_gap else self._bucket.get(segment.key)
                    if content is not None:
                        file.seek(segment.start)
                        file.truncate()
                        file.write(content.body)
            unfinished.replace(path)
            spool.inode, spool.uploaded_bytes = path.stat().st_ino, path.stat().st_size
            spool.restored_crc32 = _checksum_of_start(path, spool.uploaded_bytes)

    def begin(self, token: int) -> None:
        """Upload segments from now on, under a fencing token; those of spools that the run has deleted are deleted."""
        self._token = token
        self._delete_gone()
        self._thread = threading.Thread(target=self._upload_again_and_again, name="spools", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Upload what is left, for a run that has not ended all of its shards."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._upload_all()

    def _upload_again_and_again(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._upload_all()

    def _upload_all(self) -> None:
        try:
            self._delete_gone()
            for name in self._names():
                with suppress(FileNotFoundError):
                    self._upload(name, self._spools.setdefault(name, _Spool()))
        except (DatafetchError, StoppedError, OSError) as error:
            _log.debug("spools were not uploaded: %s", error)

    def _delete_gone(self) -> None:
        """Delete the segments of spools that are gone."""
        for name in self._spools.keys() - set(self._names()):
            self._bucket.delete(self._spools.pop(name).keys)

    def _names(self) -> Iterator[str]:
        for path in self._folder.rglob("*"):  # also those of worker processes, which have folders of their own
            if path.is_file() and path.suffix != ".part":
                yield path.relative_to(self._folder).as_posix()

    def _upload(self, name: str, spool: _Spool) -> None:
        path = self._folder / name
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != spool.inode or status.st_size < spool.uploaded_bytes:
                self._begin_again(spool, status.st_ino)
            elif spool.restored_crc32 is not None:
                if status.st_size == spool.uploaded_bytes:
                    return
                if _checksum_of_start(path, spool.uploaded_bytes) != spool.restored_crc32:
                    self._begin_again(spool, status.st_ino)
                spool.restored_crc32 = None
            while spool.uploaded_bytes < status.st_size:
                start = spool.uploaded_bytes
                file.seek(start)
                content = file.read(min(_SEGMENT_BYTES, status.st_size - start))
                if not content:
                    return
                key = f"{self._prefix}{name}/{self._token:010}-{start:015}-{start + len(content):015}"
                self._bucket.put(key, content)
                spool.keys.append(key)
                spool.uploaded_bytes += len(content)

    def _begin_again(self, spool: _Spool, inode: int) -> None:
        """Upload a spool from its beginning, since it is another one than before."""
        own = [key for key in spool.keys if f"/{self._token:010}-" in key]
        self._bucket.delete(own)
        spool.keys = [key for key in spool.keys if key not in own]
        spool.inode, spool.uploaded_bytes, spool.restored_crc32 = inode, 0, None


def _checksum_of_start(path: Path, size: int) -> int:
    checksum, left = 0, size
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            checksum = crc32(chunk, checksum)
            left -= len(chunk)
    return checksum
