"""CommitLog: what an output in a bucket holds, as a log of entries that are each written once.

Theory of operation. An object store can replace one object in one step, and nothing more. So what an output holds is
neither what a list of its objects shows nor a file that is rewritten, but what the entries of a log add up to:
``log/0000000017.json`` names the objects that became a part of it, with their sizes and checksums, and the names that
are no longer a part. An entry is put on condition that there is no such object yet. It counts as soon as it is there,
with everything it names, which has been uploaded before; and of two processes that write the same number one is
refused. A process that finds an entry of another one in its place has been fenced off, and can record nothing more.

The first entry of each holder has all names (``is_whole``), so those before it are needed no more, and are deleted.

Rules: the objects that an entry names are never replaced. All but the trainer's own files have keys of their own, with
the fencing token of who wrote them. The trainer's files have fixed keys, and are written on condition (``finals``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.bounds import Count, Crc32
from datafetch.store.buckets.bucket import IF_NEW, Bucket

_DIGITS = 10
_THREADS = 16
_READ_AT_ONCE = 64
_READINGS = 5  # of a log that changes meanwhile


class LoggedFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of an output: the object that holds it, and what it is.

    Attributes:
        key: The key of the object.
        size_bytes: Its size.
        crc32: Its checksum.
        etag: The entity tag of the object.
    """

    key: Annotated[str, Meta(min_length=1, max_length=1024)]
    size_bytes: Count
    crc32: Crc32
    etag: str


class LogEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry.

    Attributes:
        token: The fencing token of who wrote it.
        files: The files that are new or have changed, by name; all, if it is whole.
        gone: The names of files that are no longer there.
        is_whole: Whether it has all files, so that what was before does not count.
        finals: The keys of the trainer's files that are going to be written; all, if it is whole.
        no_finals: Whether those named before are done with.
    """

    token: Count
    files: dict[str, LoggedFile] = {}
    gone: list[str] = []
    is_whole: bool = False
    finals: list[str] = []
    no_finals: bool = False


# Made here, by one thread: two that are the first to decode a type can crash msgspec (0.22).
_entries = msgspec.json.Decoder(LogEntry)


@dataclass(slots=True)
class Contents:
    """What a log adds up to.

    Attributes:
        number: The number of its last entry; 0 if there is none.
        files: The files of the output, by name.
        finals: The keys of the trainer's files that were going to be written, and may be there.
    """

    number: int = 0
    files: dict[str, LoggedFile] = field(default_factory=dict)
    finals: set[str] = field(default_factory=set)

    def apply(self, entry: LogEntry) -> None:
        """Add an entry; threads may read meanwhile."""
        if entry.is_whole:
            self.files, self.finals = dict(entry.files), set()
        else:
            self.files.update(entry.files)
        if entry.no_finals:
            self.finals.clear()
        for name in entry.gone:
            self.files.pop(name, None)
        self.finals.update(entry.finals)
        self.number += 1


class CommitLog:
    """The log of an output.

    Args:
        bucket: The bucket.
        folder: The prefix of its keys, with a slash at its end.
        location: The output, for messages.
    """

    def __init__(self, bucket: Bucket, folder: str, location: str) -> None:
        self._bucket = bucket
        self._folder = folder
        self._location = location
        self._lock = threading.Lock()
        self.contents = Contents()

    def read(self) -> Contents:
        """Read the log, and return what it adds up to.

        Raises:
            ConfigurationError: It is damaged.
        """
        for _ in range(_READINGS):
            contents = self._read()
            if contents is not None:
                self.contents = contents
                return contents
        raise ConfigurationError(
            f"the log of {self._location}, in s3://{self._bucket.name}/{self._folder}, is damaged: entries are "
            "missing; put them back, or delete the output with its state folder to start over"
        )

    def append(self, entry: LogEntry) -> None:
        """Record an entry; by one thread at a time.

        Raises:
            ResourceError: Another run has taken over.
        """
        body = msgspec.json.encode(entry)
        if self._bucket.put(self._key(self.contents.number + 1), body, IF_NEW) is None:
            raise ResourceError(
                f"another run has taken over {self._location}; run the same command again to resume (nothing that was "
                "recorded is lost)"
            )
        self.contents.apply(entry)

    def forget_earlier(self) -> None:
        """Delete the entries before the last one, which is whole."""
        last = self._key(self.contents.number)
        self._bucket.delete([one.key for one in self._bucket.list(self._folder) if one.key < last])

    def _read(self) -> Contents | None:
        """What the log adds up to; None if entries that it needs were deleted meanwhile, or are missing."""
        numbers = sorted((number for number in self._numbers()), reverse=True)
        later: list[LogEntry] = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for first in range(0, len(numbers), _READ_AT_ONCE):
                some = numbers[first : first + _READ_AT_ONCE]
                for number, entry in zip(some, threads.map(self._entry, some), strict=True):
                    if entry is None or number != numbers[0] - len(later):
                        return None
                    later.append(entry)
                    if entry.is_whole:
                        return _sum_of(number, later)
        return Contents() if not numbers else None

    def _numbers(self) -> Iterator[int]:
        for one in self._bucket.list(self._folder):
            name = one.key.removeprefix(self._folder).removesuffix(".json")
            if name.isascii() and name.isdigit() and len(name) == _DIGITS:
                yield int(name)

    def _entry(self, number: int) -> LogEntry | None:
        found = self._bucket.get(self._key(number))
        if found is None:
            return None
        try:
            return _entries.decode(found.body)
        except ValueError as error:
            raise ConfigurationError(
                f"s3://{self._bucket.name}/{self._key(number)} is not an entry of this version of datafetch; put it "
                "back"
            ) from error

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:0{_DIGITS}}.json"


def _sum_of(first: int, backwards: list[LogEntry]) -> Contents:
    contents = Contents(first - 1)
    for entry in reversed(backwards):
        contents.apply(entry)
    return contents


def keys_of(files: Mapping[str, LoggedFile]) -> set[str]:
    """The keys of all objects that files refer to."""
    return {file.key for file in files.values()}
