"""The archives of a job: where they lie, and copies of their directories.

Theory of operation. The directory of an archive lists all of its members, and a run needs nothing else of it to know
its samples. So it is copied, once: for the first run to a temporary file, since nothing may be written to an output
that belongs to another job, and from there to the state folder when the output is this job's. Later runs use that copy
and ask the server for nothing that they don't fetch. That the archive is still the same shows when members are fetched:
each request names its entity tag and checks its size, and each member has a checksum.

Rules: where an archive on a server lies may be a secret. Files and messages have its URL without credentials and query.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

from datafetch.datasets.readers import Fingerprint, ZipDirectory, copy_header, locate_directory
from datafetch.errors import ManifestError, ResourceError, raise_if_exhausted, unreadable
from datafetch.fetch import Fetcher
from datafetch.fetch.archive import MemberReader
from datafetch.fetch.policy import FetchPolicy
from datafetch.fetch.ranges import LocalRanges, RangeReader, RemoteRanges
from datafetch.model.dataset import Dataset
from datafetch.model.location import is_url, without_secrets
from datafetch.model.outcome import Failure
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import make_folder, publish, write_atomically
from datafetch.store.layout import OutputLayout

_LIST = "archives.json"
_PIECE_BYTES = 4 * 1024 * 1024
_MAX_SPANS = 8
_MIN_PART_BYTES = 64 * 1024


class _Copied(msgspec.Struct, frozen=True):
    """A line of the list of copies: the archive without secrets, and the time at which a local one was changed."""

    archive: str
    changed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Archives:
    """The archives of a job.

    Attributes:
        locations: Where they lie: paths and URLs, which may have secrets.
        unpacked: The folder to which they were unpacked; then there are no locations.
        is_in_place: Whether the files of that folder are where the trainer looks for them, so that none is written.
        copies: The copies of their directories.
        is_new: Whether the copies are temporary files of this process, and not in the state folder.
    """

    locations: tuple[str, ...]
    unpacked: Path | None = None
    is_in_place: bool = False
    copies: tuple[Path, ...] = ()
    is_new: bool = False

    def keep(self, layout: OutputLayout) -> None:
        """Copy the copies to the state folder, whose lock is held, if they are not there already."""
        if not self.is_new:
            return
        make_folder(layout.archives)
        (layout.archives / _LIST).unlink(missing_ok=True)  # it is of other copies
        for copy, kept in zip(self.copies, _copies_in(layout, len(self.copies)), strict=True):
            unfinished = kept.with_suffix(".tmp")
            shutil.copyfile(copy, unfinished)
            publish(unfinished, kept)
        write_atomically(layout.archives / _LIST, msgspec.json.encode([_describe(one) for one in self.locations]))


NO_ARCHIVES = Archives(())


def find_archives(dataset: Dataset, source: str) -> Archives:
    """Where the archives of a dataset lie.

    Args:
        dataset: The dataset.
        source: An archive, a folder or URL with the archives, or a folder to which they were unpacked.

    Raises:
        ManifestError: There is nothing.
    """
    if is_url(source):
        try:
            parts = urlsplit(source)
        except ValueError as error:
            raise ManifestError(f"{without_secrets(source)} of the archive is not valid; check its spelling") from error
        if not parts.path.endswith("/"):
            return Archives(_all_of(dataset, (source,)))
        return Archives(tuple(urlunsplit(parts._replace(path=parts.path + quote(name))) for name in dataset.archives))
    path = Path(source)
    if path.is_dir():
        there = tuple(str(path / name) for name in dataset.archives if (path / name).is_file())
        return Archives(_all_of(dataset, there)) if there else Archives((), unpacked=path)
    if not path.is_file():
        names = " and ".join(dataset.archives)
        if without_secrets(source) != source or "@" in source:
            raise ManifestError(
                f"what is given for {names} is no path, and no URL that begins with http:// or https://"
            )
        raise ManifestError(
            f"there is no {without_secrets(source)}; needed is {names}, as a path or a URL, or the folder of it"
        )
    return Archives(_all_of(dataset, (source,)))


def _all_of(dataset: Dataset, locations: tuple[str, ...]) -> tuple[str, ...]:
    """Check that no archive of a dataset is missing.

    Raises:
        ManifestError: One is.
    """
    if len(locations) < len(dataset.archives):
        raise ManifestError(
            f"{dataset.name} has {len(dataset.archives)} archives, {' and '.join(dataset.archives)}; give the folder "
            "that has all of them, or its URL with a / at its end"
        )
    return locations


@asynccontextmanager
async def open_archives(
    dataset: Dataset, source: str, layout: OutputLayout, policy: FetchPolicy, *, fresh: bool
) -> AsyncIterator[Archives]:
    """Find the archives of a dataset, and copy their directories unless the state folder has copies.

    Args:
        dataset: The dataset.
        source: What the job gives as its source.
        layout: The paths of the output; nothing is written there.
        policy: How servers are asked.
        fresh: Whether copies in the state folder are not to be used.

    Yields:
        The archives; new copies of their directories are deleted when the context ends.

    Raises:
        ManifestError: An archive can't be read.
    """
    found = await run_in_thread(find_archives, dataset, source)
    kept = None if fresh else await run_in_thread(_kept_copies, layout, found.locations)
    if found.unpacked is not None:
        yield found
    elif kept is not None:
        yield Archives(found.locations, copies=kept)
    else:
        with ExitStack() as opened:
            copies: list[Path] = []
            for location in found.locations:
                copy = opened.enter_context(await run_in_thread(_open_temporary))
                if is_url(location):
                    await _copy_remote(location, copy, policy)
                else:
                    await _copy_local(Path(location), copy)
                copies.append(Path(f"/proc/self/fd/{copy.fileno()}"))
            yield Archives(found.locations, copies=tuple(copies), is_new=True)


def open_members(archives: Archives, fetch: Fetcher, policy: FetchPolicy, memory_bytes: int) -> MemberReader:
    """Make what fetches members of a job's archives.

    Args:
        archives: The archives, whose directories have been copied.
        fetch: Makes the requests.
        policy: The operator's settings.
        memory_bytes: The budget for bodies. What is read at once, which is not counted against it, is a quarter of it.
    """
    spans = min(_MAX_SPANS, policy.per_host, policy.connections or _MAX_SPANS)
    part_bytes = max(_MIN_PART_BYTES, memory_bytes // (4 * spans))
    readers: list[RangeReader] = []
    for location, copy in zip(archives.locations, archives.copies, strict=True):
        fingerprint = ZipDirectory.read_fingerprint(copy)
        if is_url(location):
            readers.append(_remote(fetch, location, min(part_bytes, policy.max_body_bytes), fingerprint))
        else:
            readers.append(LocalRanges(Path(location), fingerprint.size_bytes, part_bytes))
    return MemberReader(readers, max_member_bytes=policy.max_body_bytes, spans=spans)


def kept_archives(dataset: Dataset, location: str, layout: OutputLayout) -> Archives:
    """The archives of an output, for a retry.

    Args:
        dataset: The dataset.
        location: Where its archives are.
        layout: The paths of the output.

    Raises:
        ManifestError: They are no longer where they were, or the copies of their directories are gone.
    """
    if dataset.image_root is not None:
        return images_in_place(layout, dataset.image_root)
    if not dataset.archives:
        return NO_ARCHIVES
    found = find_archives(dataset, location)
    if found.unpacked is not None and not (layout.archives / _LIST).exists():
        return found
    kept = None if found.unpacked is not None else _kept_copies(layout, found.locations)
    if kept is None:
        raise ManifestError(
            f"{without_secrets(location)} is not what {layout.out} was made from; start over with --fresh"
        )
    return Archives(found.locations, copies=kept)


def images_in_place(layout: OutputLayout, image_root: str) -> Archives:
    """What an output has in place of archives whose images are in their place already.

    Args:
        layout: The paths of the output.
        image_root: The folder with the images, relative to the output.
    """
    return Archives((), unpacked=Path(os.path.normpath(layout.out / image_root)), is_in_place=True)


def _describe(location: str) -> _Copied:
    if is_url(location):
        return _Copied(without_secrets(location))
    path = Path(location).absolute()
    return _Copied(str(path), path.stat().st_mtime_ns)


def has_copies(dataset: Dataset, location: str, layout: OutputLayout) -> bool:
    """Whether the state folder has the directories of a dataset's archives, so that no server is asked for them.

    Raises:
        ManifestError: There is nothing at the location.
    """
    return _kept_copies(layout, find_archives(dataset, location).locations) is not None


def _copies_in(layout: OutputLayout, count: int) -> tuple[Path, ...]:
    return tuple(layout.archives / f"{number}.directory" for number in range(count))


def _kept_copies(layout: OutputLayout, locations: Sequence[str]) -> tuple[Path, ...] | None:
    """The copies in the state folder, if they are of these archives."""
    copies = _copies_in(layout, len(locations))
    try:
        listed = msgspec.json.decode((layout.archives / _LIST).read_bytes(), type=list[_Copied])
        is_same = listed == [_describe(location) for location in locations]
    except (OSError, ValueError):
        return None
    return copies if is_same and all(copy.is_file() for copy in copies) else None


async def _copy_remote(location: str, copy: BinaryIO, policy: FetchPolicy) -> None:
    async with Fetcher(policy) as fetch:
        ranges = RemoteRanges(fetch, location, max_part_bytes=policy.max_body_bytes)
        size_bytes = await ranges.find_size()
        await _copy(ranges, size_bytes, copy, without_secrets(location), _file_name(location))


async def _copy_local(path: Path, copy: BinaryIO) -> None:
    try:
        size_bytes = await run_in_thread(lambda: path.stat().st_size)
    except OSError as error:
        raise unreadable(path, error) from error
    await _copy(LocalRanges(path, size_bytes), size_bytes, copy, str(path), path.name)


async def _copy(ranges: RangeReader, size_bytes: int, copy: BinaryIO, shown: str, name: str) -> None:
    """Find the directory of an archive, and copy it.

    Args:
        ranges: The bytes of the archive.
        size_bytes: How many there are.
        copy: The file to write to.
        shown: The archive in messages.
        name: Its file name, for the copy.

    Raises:
        ManifestError: The archive can't be read, or is none.
        ResourceError: The copy can't be written.
    """

    async def read(start: int, stop: int) -> bytes:
        read = await ranges.read(start, stop)
        if isinstance(read, Failure):
            raise ManifestError(f"{shown} can't be read: {read.detail}; try again later")
        return read.content

    locating, content = locate_directory(shown, size_bytes), None
    found: Fingerprint | None = None
    while found is None:
        try:
            span = next(locating) if content is None else locating.send(content)
            content = await read(*span)
        except StopIteration as end:
            found = end.value
    await run_in_thread(_write, copy, copy_header(name, msgspec.structs.replace(found, etag=ranges.etag)))
    for start in range(found.start, found.stop, _PIECE_BYTES):
        await run_in_thread(_write, copy, await read(start, min(start + _PIECE_BYTES, found.stop)))


def _open_temporary() -> BinaryIO:
    """Open a file without a name, of which nothing stays if this process is killed."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise_if_exhausted(error)
        raise _disk_error(error) from error


def _write(copy: BinaryIO, content: bytes) -> None:
    try:
        copy.write(content)
        copy.flush()
    except OSError as error:
        raise _disk_error(error) from error


def _disk_error(error: OSError) -> ResourceError:
    folder = tempfile.gettempdir()
    return ResourceError.from_disk_error(
        error, f"write the archive's central directory to {folder}, which TMPDIR can change"
    )


def _remote(fetch: Fetcher, location: str, part_bytes: int, fingerprint: Fingerprint) -> RemoteRanges:
    return RemoteRanges(
        fetch, location, max_part_bytes=part_bytes, total_bytes=fingerprint.size_bytes, etag=fingerprint.etag
    )


def _file_name(location: str) -> str:
    return unquote(urlsplit(location).path.rpartition("/")[2]) or "archive"
