"""Image sets as manifests: members of zip archives, files of unpacked ones, and files that a list names.

A sample is a file of the set. Its metadata has under ``image`` the name under which it is saved and, for the engine's
``ImageSource``, where its bytes are: under ``member`` a member of an archive, under ``file`` a path in an unpacked
folder. What can't be read has under ``failure`` the kind of its failure and the reason, so that it is recorded like any
other image that did not arrive.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from datafetch.datasets.fallback_urls import FallbackUrls
from datafetch.datasets.filenames import DuplicateNames, why_refused
from datafetch.datasets.named_images import SAMPLES_PER_SHARD, slice_name
from datafetch.datasets.readers import Int64s, ZipDirectory, ZipEntry
from datafetch.errors import ManifestError, unreadable
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.manifest import Manifest, Samples
from datafetch.model.outcome import FailureKind
from datafetch.model.sample import FAILURE, FALLBACK, FILE, MEMBER, IdListResult, Row, Sample, Shard

NameOf: TypeAlias = Callable[[str], str | None]
"""Takes the path of a file in an archive, and returns the name under which it is saved; None if it is not wanted."""


class _Selected(Manifest):
    """What these manifests have in common: selected files, and names that were wanted and not found.

    Args:
        source: The archive or the folder.
        wanted: The names that are wanted; None if all are.
        names: The names of all selected files, in order; None for those that can't be saved.
        fallback: URLs for images that fail; None without any.
        advice: What to do if there is no image.
    """

    _fingerprint: str

    def __init__(
        self,
        source: Path,
        wanted: frozenset[str] | None,
        names: Iterable[str | None],
        fallback: FallbackUrls | None = None,
        advice: str = "check --source",
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._fallback = fallback
        found: set[str] = set()
        self._duplicates = DuplicateNames(self._collect(names, found))
        self._files = len(self._duplicates)
        self._missing = sorted((wanted or frozenset()) - found)
        if not self._files:
            wish = "none of the images that the training list names" if wanted else "no image of this set"
            raise ManifestError(f"{source} has {wish}; {advice}")

    def shards(self) -> list[Shard]:
        """Slices of the files, in the order in which they lie in the archives."""
        total = self._files + len(self._missing)
        return [
            Shard(
                slice_name(number),
                self._source,
                min(SAMPLES_PER_SHARD, total - number * SAMPLES_PER_SHARD),
                self._fingerprint,
            )
            for number in range(-(-total // SAMPLES_PER_SHARD))
        ]

    def expected_samples(self) -> int | None:
        """The number of files, found or not."""
        return self._files + len(self._missing)

    def identity_fields(self) -> Mapping[str, object]:
        """A hash of the names that are wanted, and the list of URLs for those that fail."""
        fields: dict[str, object] = {}
        if self._wanted is not None:
            digest = hashlib.sha256("\n".join(sorted(self._wanted)).encode("utf-8", "surrogatepass"))
            fields["images"] = digest.hexdigest()
        if self._fallback is not None:
            fields["fallback"] = self._fallback.fingerprint
        return fields

    def samples(self, shard: Shard) -> Samples:
        """The samples of one slice."""
        return _Slice(self, int(shard.name.rpartition("-")[2]) * SAMPLES_PER_SHARD, shard.size)

    def id_list_result(self, keys: Iterable[str], counts: Mapping[str, ShardCounts]) -> IdListResult | None:  # noqa: ARG002 - the protocol's
        """How many of the images in the training lists there are; None without such a list."""
        return None if self._wanted is None else IdListResult(len(self._wanted), 0, len(self._missing))

    def read(self, first: int, count: int) -> Iterator[Sample]:
        """Read samples, from a number counted from 0 in all of the manifest; positions count from 0 again."""
        found = max(0, min(count, self._files - first))
        for position, sample in enumerate(self._read(first, found)):
            yield replace(sample, position=position)
        for position in range(found, count):
            name = self._missing[first + position - self._files]
            if refusal := self._why_missing_can_not_be_saved(name):
                row: Row = {"image": name, **_failure(FailureKind.BAD_MEMBER, refusal)}
            else:
                failure = _failure(FailureKind.MISSING_MEMBER, "it is not in the archive")
                row = {"image": name, **failure, FALLBACK: self._url_of(name)}
            yield Sample(position, name, (f"{self._source.name}#{name}",), row)

    def _url_of(self, name: str) -> str:
        return self._fallback.find(name) if self._fallback is not None else ""

    def _with_fallback(self, sample: Sample) -> Sample:
        """A sample that says where else its image may be, if there is a URL, or the archive's is known to be bad."""
        url = self._url_of(sample.key)
        return replace(sample, row={**sample.row, FALLBACK: url}) if url or FAILURE in sample.row else sample

    def _collect(self, names: Iterable[str | None], found: set[str]) -> Iterator[str | None]:
        for name in names:
            if name is not None and self._wanted is not None:
                found.add(name)
            yield name

    def _why_missing_can_not_be_saved(self, name: str) -> str:
        if refusal := why_refused(name):
            return refusal
        return "its file would clash with that of another image" if self._duplicates.would_clash(name) else ""

    @abstractmethod
    def _read(self, first: int, count: int) -> Iterator[Sample]:
        """Read selected files as samples, from a number on; positions don't matter yet."""

    def _problem(self, number: int, name: str) -> Row:
        """The failure of a file whose name can't be used; empty if it can."""
        if refusal := why_refused(name):
            return _failure(FailureKind.BAD_MEMBER, refusal)
        if self._duplicates.has_namesake(number):
            return _failure(FailureKind.MISSING_MEMBER, "several members have its name, so it is ambiguous")
        if refusal := self._duplicates.why_refused(number, name):
            return _failure(FailureKind.BAD_MEMBER, refusal)
        return {}


class _Slice(Samples):
    def __init__(self, manifest: _Selected, first: int, count: int) -> None:
        self._manifest = manifest
        self._first = first
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        return self._manifest.read(self._first, self._count)


class ArchiveMembers(_Selected):
    """The members of archives, in the order of their bytes, so that neighbours can be fetched together.

    Memory holds 17 bytes for each member of the archives, 24 for each selected one, and the names that are wanted.

    Args:
        directories: The directories of the archives.
        name_of: Selects members, and gives their names.
        wanted: The names that are wanted; None if all are.
        fallback: URLs for images that fail; None without any.
    """

    def __init__(
        self,
        directories: Sequence[ZipDirectory],
        name_of: NameOf,
        wanted: frozenset[str] | None,
        fallback: FallbackUrls | None = None,
    ) -> None:
        self._directories = directories
        self._name_of = name_of
        self._numbers: list[Int64s] = []
        self._fingerprint = hashlib.sha256("".join(one.sha256 for one in directories).encode()).hexdigest()
        super().__init__(Path(directories[0].name), wanted, self._select(wanted), fallback)

    def _select(self, wanted: frozenset[str] | None) -> Iterator[str | None]:
        for directory in self._directories:
            selected = array("q")
            for number, entry in enumerate(directory.entries()):
                name = self._name_of(entry.name)
                if name is not None and (wanted is None or (name in wanted and not why_refused(name))):
                    selected.append(number)
                    yield None if why_refused(name) else name
            self._numbers.append(np.array(selected, np.int64))

    def _read(self, first: int, count: int) -> Iterator[Sample]:
        passed = 0
        for directory, numbers in zip(self._directories, self._numbers, strict=True):
            start, stop = max(0, first - passed), min(len(numbers), first + count - passed)
            if start < stop:
                yield from self._read_archive(directory, numbers, start, stop, passed)
            passed += len(numbers)

    def _read_archive(
        self, directory: ZipDirectory, numbers: Int64s, start: int, stop: int, passed: int
    ) -> Iterator[Sample]:
        before_stop = next(directory.entries(numbers[start - 1 : start])).member.stop if start else 0
        for index, entry in zip(range(start, stop), directory.entries(numbers[start:stop]), strict=True):
            member = replace(entry.member, gap_bytes=max(0, entry.member.start - before_stop))
            before_stop = member.stop
            name = self._name_of(entry.name) or ""
            problem = self._problem(passed + index, name)
            where = problem or _entry_problem(entry) or {MEMBER: member.to_json()}
            sample = Sample(index, name, (f"{directory.name}#{entry.name}",), {"image": name, **where})
            yield sample if problem else self._with_fallback(sample)  # a name that can't be used is used for no other


class UnpackedFiles(_Selected):
    """The files of an archive that was unpacked to a folder. No link is followed. Memory holds their paths.

    Args:
        folder: The folder; it may also be one of those that the archive has.
        name_of: Selects files by their paths, which begin with the name of the folder, and gives their names.
        wanted: The names that are wanted; None if all are.
        fallback: URLs for images that fail; None without any.
        advice: What to do if there is no image.

    Attributes:
        folders: The names of the folders right above the files.
    """

    def __init__(
        self,
        folder: Path,
        name_of: NameOf,
        wanted: frozenset[str] | None,
        fallback: FallbackUrls | None = None,
        *,
        advice: str,
    ) -> None:
        self._folder = folder
        self._root = folder.resolve().name
        self._name_of = name_of
        paths, digest = [], hashlib.sha256()
        self.folders: set[str] = set()
        for path, size_bytes in _walk(folder):
            name = name_of(f"{self._root}/{path}")
            if name is not None:
                self.folders.add(PurePosixPath(self._root, path).parts[-2])
                digest.update(f"{path}\0{size_bytes}\0".encode("utf-8", "surrogateescape"))
            if name is not None and (wanted is None or (name in wanted and not why_refused(name))):
                paths.append(path)
        self._paths = paths
        self._fingerprint = digest.hexdigest()
        super().__init__(folder, wanted, (self._name(path) for path in paths), fallback, advice)

    def _name(self, path: str) -> str | None:
        name = self._name_of(f"{self._root}/{path}")
        return None if name is None or why_refused(name) else name

    def _read(self, first: int, count: int) -> Iterator[Sample]:
        for number in range(first, first + count):
            path = self._paths[number]
            name = self._name_of(f"{self._root}/{path}") or ""
            problem = self._problem(number, name)
            where = problem or {FILE: [path]}
            sample = Sample(number, name, (f"{self._folder.name}#{path}",), {"image": name, **where})
            yield sample if problem else self._with_fallback(sample)


class ListedFiles(_Selected):
    """Files that a list names, and that should be in their place.

    Args:
        path: The list.
        names: The paths of the files, relative to the image root; safe ones.
    """

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self._names = sorted(names)
        self._fingerprint = ""  # nothing but the names counts
        super().__init__(path, names, self._names)

    def _read(self, first: int, count: int) -> Iterator[Sample]:
        for number, name in enumerate(self._names[first : first + count], first):
            yield Sample(number, name, (name,), {FILE: [name]})


def by_last_folder(folders: Sequence[str], *, keeps_folder: bool) -> NameOf:
    """A selection of the files that lie in folders of these names, wherever those lie.

    Args:
        folders: The names of the folders.
        keeps_folder: Whether a file is saved as ``folder/name``, and not as ``name``.
    """

    def name_of(path: str) -> str | None:
        parts = path.split("/")
        if len(parts) < 2 or parts[-2] not in folders or not parts[-1] or "__MACOSX" in parts:  # noqa: PLR2004
            return None
        return "/".join(parts[-2:]) if keeps_folder else parts[-1]

    return name_of


def _entry_problem(entry: ZipEntry) -> Row:
    return _failure(FailureKind.BAD_MEMBER, entry.problem) if entry.problem else {}


def _failure(kind: FailureKind, reason: str) -> Row:
    return {FAILURE: [kind.value, reason]}


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """The regular files of a folder and its subfolders, by their relative paths, in order, each with its size."""
    try:
        for parent, folders, files in os.walk(folder, onerror=_raise):
            folders.sort()
            for name in sorted(files):
                path = Path(parent, name)
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(folder).as_posix(), path.stat().st_size
    except OSError as error:
        raise unreadable(folder, error) from error


def _raise(error: OSError) -> None:
    raise error
