"""SpoolSegments: what spools of open shards have gained is uploaded all the time, so that others can go on with them.

Theory of operation. A spool is a log that is only appended to, so what it has gained since the last upload is a
*segment*: an object whose key names the spool, its writer, the fencing token of the run, and from where to where it
reaches. A *writer* is what appends to one file: the process of a run (``main``), one of its workers (``worker-1``), or
a node of a cluster or one of its workers (``worker-3-12``, ``worker-3-12-1``), whose name nobody else ever has.

Whoever goes on with a shard elsewhere puts the file of each writer together again: the segments of each holder in the
order of their tokens, each from its beginning on, which cuts off what an earlier holder had behind it; what comes
behind a gap is left out. Whatever is cut, a spool has checksums, and a run goes on behind its last whole entry.

A run puts the files of its own kind of writers in their places, and appends to them. What nodes have written, and on a
node what all others have, becomes one spool, ``worker-earlier``, to which nobody appends. It has each result once: a
node that was given up may have gone on for a while. Of two results the later writer's counts. Failures of a node that
was found to be sick are left out (``drop_failures``).

A spool that the run cuts when it opens it is no longer what was put together. So it is compared once, and uploaded from
its beginning if it differs. Segments are deleted when their spool is, which is when its shard has been recorded.

Rules: segments are a convenience of which nothing is expected: an upload that fails is tried again a minute later, and
ends no run, nor does a shard wait for one. A short-lived spool is never uploaded. What is to be deleted is forgotten
only when it has been.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from datafetch.errors import ConfigurationError, DatafetchError
from datafetch.model.checksum import crc32_of
from datafetch.model.untrusted import is_plain_path
from datafetch.store.buckets.bucket import Bucket, StoppedError
from datafetch.store.spool_writer import SpoolPart, merge_spools

INTERVAL_S = 45.0
"""The time between two uploads, so that with the upload no more than a minute's work is lost."""
_SEGMENT_BYTES = 16 << 20
_SEGMENT = re.compile(r"(\d{10})-(\d{15})-(\d{15})")
_DROPPED = "dropped"  # in place of a segment: failures of these kinds of the writer don't count
_MAIN, _EARLIER = "main", "worker-earlier"
_OF_A_RUN = re.compile(r"main|worker-\d+")
_JOB = re.compile(r"[0-9a-f]{16}")  # and no retry or repair

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class _Segment:
    token: int
    start: int
    end: int
    key: str = field(compare=False)


@dataclass(slots=True)
class _Writer:
    """What a writer has uploaded of a spool.

    Attributes:
        name: Its name.
        segments: The segments.
        dropped: The kinds of its failures that don't count.
        dropped_key: The key of the object that says so of this writer and its workers; empty if there is none.
    """

    name: str
    segments: list[_Segment] = field(default_factory=list)
    dropped: frozenset[str] = frozenset()
    dropped_key: str = ""

    @property
    def keys(self) -> list[str]:
        """The keys of all its objects."""
        return [*(segment.key for segment in self.segments), *filter(None, [self.dropped_key])]

    @property
    def age(self) -> tuple[int, ...]:
        """Grows from writer to later writer: the last token, and the numbers in the name."""
        return max((one.token for one in self.segments), default=0), *map(int, re.findall(r"\d+", self.name))


@dataclass(slots=True)
class _Spool:
    """What is known of a local file.

    Attributes:
        inode: Its inode number, when it was last looked at.
        uploaded_bytes: How much of it is in the bucket.
        restored_crc32: The checksum of what was put together, until it has been compared; None if nothing was.
        keys: The keys of its segments, or of the objects from which it was made.
    """

    inode: int = 0
    uploaded_bytes: int = 0
    restored_crc32: int | None = None
    keys: list[str] = field(default_factory=list)


class SpoolSegments:
    """The segments of an output's spools.

    A spool has a name: the folder of its job, and its file's name, with a slash between.

    Args:
        bucket: The bucket.
        prefix: What their keys begin with.
        folder: The folder of the spools, one folder for each job.
        node: The name of this node, if it is one of a cluster: the fencing token and a number.
        interval_s: The time between two uploads.
    """

    def __init__(
        self, bucket: Bucket, prefix: str, folder: Path, *, node: str = "", interval_s: float | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._folder = folder
        self._node = node
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._files: dict[str, _Spool] = {}
        self._forgotten: set[str] = set()
        self._failures: Counter[str] = Counter()  # how often each spool has failed since it was uploaded last
        self._lock = threading.Lock()  # never held while the store is waited for
        self._uploading = threading.Lock()
        self._token = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def restore(self) -> None:
        """Put all spools together that are not on this machine.

        Raises:
            ResourceError: The store can't be reached.
        """
        for name, writers in self._list("").items():
            others = []
            for writer in writers.values():
                if _OF_A_RUN.fullmatch(writer.name):
                    self._restore(name, writer)
                else:
                    others.append(writer)
            if others:
                self._gather(name, others)

    def bring(self, name: str) -> None:
        """Have what others have uploaded of a spool, for a node that goes on with it.

        Raises:
            ResourceError: The store can't be reached.
        """
        writers = self._list(f"{name}/").get(name, {})
        others = [one for one in writers.values() if not self._is_own(one.name)]
        if others:
            self._gather(name, others)

    def begin(self, token: int) -> None:
        """Upload segments from now on, under a fencing token; those of spools that the run has deleted are deleted."""
        self._token = token
        for delete in self._deletions().values():
            delete()
        self._thread = threading.Thread(target=self._upload_again_and_again, name="spools", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Upload what is left, for a run that has not ended all of its shards."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self.upload()

    def upload(self) -> None:
        """Upload what all spools have gained, as far as that is possible."""
        with self._uploading:
            try:
                works = {**self._uploads(), **self._deletions()}
            except OSError as error:  # a folder of spools was deleted meanwhile
                _log.debug("spools were not uploaded: %s", error)
                return
            for relative in sorted(works, key=self._failures.__getitem__):  # so that none holds the others up for ever
                self._failures[relative] += 1
                try:
                    works[relative]()
                except (ConfigurationError, OSError) as error:  # it may be the only one that fails
                    _log.debug("a spool was not uploaded: %s", error)
                except (DatafetchError, StoppedError) as error:  # the store can't be reached
                    _log.debug("spools were not uploaded: %s", error)
                    return
                else:
                    del self._failures[relative]

    def forget(self, name: str) -> None:
        """Delete all segments of a spool, whoever has written them, since its shard has been recorded.

        Raises:
            ResourceError: The store can't be reached.
        """
        with self._lock:
            self._forgotten.add(name)
            for path in [one for one in self._files if self._name_of(self._folder / one) == name]:
                del self._files[path]
        self._bucket.delete([one.key for one in self._bucket.list(f"{self._prefix}{name}/")])

    def forget_all(self, shards: Collection[str] | None) -> None:
        """Delete all segments of some shards, but for those of retries and repairs; with None, just all segments.

        Raises:
            ResourceError: The store can't be reached.
        """
        names = None if shards is None else {f"{shard}.spool" for shard in shards}
        keys = []
        for one in self._bucket.list(self._prefix):
            job, _, rest = one.key.removeprefix(self._prefix).partition("/")
            if names is None or (_JOB.fullmatch(job) and rest.partition("/")[0] in names):
                keys.append(one.key)
        self._bucket.delete(keys)

    def drop_failures(self, names: Iterable[str], node: str, kinds: Collection[str]) -> None:
        """Let images that failed on a node in one of these ways be requested again by whoever goes on with its spools.

        Args:
            names: The spools that it had in progress.
            node: The name of the node.
            kinds: Failure kinds.

        Raises:
            ResourceError: The store can't be reached.
        """
        for name in names:
            key = f"{self._prefix}{name}/{_worker_of(node)}/{_DROPPED}"
            self._bucket.put(key, msgspec.json.encode(sorted(kinds)))

    def _list(self, prefix: str) -> Mapping[str, Mapping[str, _Writer]]:
        """What writers have uploaded of spools, by the name of the spool and of the writer."""
        found: dict[str, dict[str, _Writer]] = defaultdict(dict)
        dropped: list[tuple[str, str, str]] = []
        for one in self._bucket.list(f"{self._prefix}{prefix}"):
            match one.key.removeprefix(self._prefix).split("/"):
                case [job, file, writer, segment] if all(map(is_plain_path, (job, file, writer))):
                    name = f"{job}/{file}"
                case _:
                    continue
            if segment == _DROPPED:
                dropped.append((name, writer, one.key))
                found[name].setdefault(writer, _Writer(writer)).dropped_key = one.key
            elif match := _SEGMENT.fullmatch(segment):
                known = found[name].setdefault(writer, _Writer(writer))
                known.segments.append(_Segment(int(match[1]), int(match[2]), int(match[3]), one.key))
        for name, node, key in dropped:
            kinds = self._read_dropped(key)
            for other in found[name].values():
                if other.name == node or other.name.startswith(f"{node}-"):
                    other.dropped = kinds
        return found

    def _read_dropped(self, key: str) -> frozenset[str]:
        found = self._bucket.get(key)
        try:
            return frozenset(() if found is None else msgspec.json.decode(found.body, type=list[str]))
        except ValueError as error:
            raise ConfigurationError(
                f"s3://{self._bucket.name}/{key} is no list of failure kinds, which datafetch writes there; delete it"
            ) from error

    def _restore(self, name: str, writer: _Writer) -> None:
        """Put the spool of a run's writer in its place, unless there is one."""
        path = self._path_of(name, "" if writer.name == _MAIN else writer.name)
        spool = self._files[self._relative(path)] = _Spool(keys=writer.keys)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        self._assemble(writer, unfinished)
        unfinished.replace(path)
        spool.inode, spool.uploaded_bytes = path.stat().st_ino, path.stat().st_size
        spool.restored_crc32 = crc32_of(path, spool.uploaded_bytes)

    def _gather(self, name: str, writers: Iterable[_Writer]) -> None:
        """Put what several writers have of a spool into one, without what other spools have that are here."""
        path = self._path_of(name, _EARLIER)
        folder = path.with_suffix(".parts")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        here = [path.parent.parent, *path.parent.parent.glob("worker-*")]
        besides = [one / path.name for one in here if one != path.parent and (one / path.name).exists()]
        parts, keys = [], []
        for writer in sorted(writers, key=lambda one: one.age, reverse=True):
            part = folder / f"{writer.name}.part"
            self._assemble(writer, part)
            parts.append(SpoolPart(part, writer.dropped))
            keys += writer.keys
        merge_spools(path, parts, besides)
        with self._lock:
            self._files[self._relative(path)] = _Spool(keys=keys)
        shutil.rmtree(folder)

    def _assemble(self, writer: _Writer, path: Path) -> None:
        with path.open("w+b") as file:
            for segment in sorted(writer.segments):
                has_gap = segment.start > file.seek(0, os.SEEK_END)
                content = None if has_gap else self._bucket.get(segment.key)
                if content is not None:
                    file.seek(segment.start)
                    file.truncate()
                    file.write(content.body)

    def _upload_again_and_again(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.upload()

    def _uploads(self) -> dict[str, Callable[[], None]]:
        """What uploads what each spool has gained."""
        return {self._relative(path): partial(self._upload, path) for path in self._own_files()}

    def _deletions(self) -> dict[str, Callable[[], None]]:
        """What deletes the segments of each spool that is gone."""
        with self._lock:
            known = dict(self._files)
        here = set(map(self._relative, self._all_files()))  # looked up last: a new spool is there before it is known
        return {one: partial(self._delete, one, spool) for one, spool in known.items() if one not in here}

    def _delete(self, relative: str, spool: _Spool) -> None:
        self._bucket.delete(spool.keys)
        with self._lock:
            if self._files.get(relative) is spool:
                del self._files[relative]

    def _all_files(self) -> Iterator[Path]:
        for path in self._folder.rglob("*"):  # also those of worker processes, which have folders of their own
            if path.is_file() and path.suffix != ".part":
                yield path

    def _own_files(self) -> Iterator[Path]:
        """Those to which this run, or this node, appends."""
        return (path for path in self._all_files() if path.parent.name != _EARLIER)

    def _upload(self, path: Path) -> None:
        with self._lock:
            if self._name_of(path) in self._forgotten:
                return
            spool = self._files.setdefault(self._relative(path), _Spool())
        with suppress(FileNotFoundError):
            self._upload_segments(path, spool)

    def _upload_segments(self, path: Path, spool: _Spool) -> None:
        name = self._name_of(path)
        folder = f"{self._prefix}{name}/{self._writer_of(path)}"
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != spool.inode or status.st_size < spool.uploaded_bytes:
                self._begin_again(spool, status.st_ino)
            elif spool.restored_crc32 is not None:
                if status.st_size == spool.uploaded_bytes:
                    return
                if crc32_of(path, spool.uploaded_bytes) != spool.restored_crc32:
                    self._begin_again(spool, status.st_ino)
                spool.restored_crc32 = None
            while spool.uploaded_bytes < status.st_size:
                start = spool.uploaded_bytes
                file.seek(start)
                content = file.read(min(_SEGMENT_BYTES, status.st_size - start))
                if not content:
                    return
                key = f"{folder}/{self._token:010}-{start:015}-{start + len(content):015}"
                self._bucket.put(key, content)
                with self._lock:
                    is_forgotten = name in self._forgotten
                if is_forgotten:  # what there was has been deleted meanwhile
                    self._bucket.delete([key])
                    return
                spool.keys.append(key)
                spool.uploaded_bytes += len(content)

    def _begin_again(self, spool: _Spool, inode: int) -> None:
        """Upload a spool from its beginning, since it is another one than before."""
        own = [key for key in spool.keys if f"/{self._token:010}-" in key]
        self._bucket.delete(own)
        spool.keys = [key for key in spool.keys if key not in own]
        spool.inode, spool.uploaded_bytes, spool.restored_crc32 = inode, 0, None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _name_of(self, path: Path) -> str:
        return f"{path.relative_to(self._folder).parts[0]}/{path.name}"

    def _path_of(self, name: str, folder: str) -> Path:
        job, _, file = name.partition("/")
        return self._folder / job / folder / file

    def _writer_of(self, path: Path) -> str:
        _, *folders, _ = path.relative_to(self._folder).parts
        if not self._node:
            return folders[0] if folders else _MAIN
        return _worker_of(self._node) + (f"-{folders[0].removeprefix('worker-')}" if folders else "")

    def _is_own(self, writer: str) -> bool:
        own = _worker_of(self._node)
        return writer == own or writer.startswith(f"{own}-")


def _worker_of(node: str) -> str:
    return f"worker-{node}"
