"""ImageSource: gets the bytes of an image from where its sample says that they are.

An image is looked for in this order: in its place in the output, if the dataset takes files that are there; in its
sample; in the archive or the unpacked folder that its sample names; and on the web. Where a sample has a fallback, that
is requested if the way before has failed. What is on the web may be in an earlier output, too, where ``find_earlier``
looks before.

A sample of a list may say which body an image has to be, by its hash. Any other is a failure, wherever it came from.

Rules: a file that is in its place is taken if it is the right one, and is never replaced by another unless the run
starts over. Nothing is written through a link.
"""

from __future__ import annotations

import asyncio
import filecmp
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Protocol, TypeVar

from datafetch.errors import ConfigurationError, unreadable
from datafetch.fetch import Limiter, Reservation
from datafetch.fetch.archive import MemberReader
from datafetch.fetch.fetcher import OUT_OF_TIME
from datafetch.model.archive import Member
from datafetch.model.checksum import crc32
from datafetch.model.image_interfaces import Fetch
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, Failure, FailureKind, Fetched, Source
from datafetch.model.sample import FAILURE, FALLBACK, FILE, HASHES, MEMBER, Row, Sample
from datafetch.process.threads import run_in_thread
from datafetch.store.atomic import leads_out
from datafetch.store.spool_format import ImageResult

_ARCHIVE_LACKS = frozenset({FailureKind.MISSING_MEMBER, FailureKind.BAD_MEMBER})
_NOT_BY_URL = frozenset({FAILURE, FILE, MEMBER})  # in the metadata of samples whose images are elsewhere
_HASHED_AT_ONCE_BYTES = 1 << 18  # takes less than a millisecond; longer bodies are hashed in a thread
_MAX_MEMBERS = 4096  # in flight; in practice the number of tasks is the limit

_T = TypeVar("_T")


class ImagesByUrl(Protocol):
    """Images that are here already, by URL."""

    async def find(self, url: str, memory: Reservation) -> ImageResult | Body | None:
        """A result with this URL, or bytes that are still to be transcoded; None if there is nothing."""
        ...

    async def find_failed(self, urls: Sequence[str]) -> list[bool]:
        """For each URL, whether its image is known to fail."""
        ...


@dataclass(frozen=True, slots=True)
class Adoption:
    """How files that are in their place in the output already are taken.

    Attributes:
        out: The output folder.
        may_replace: Whether a file that is another one is replaced, because the run starts over.
        keeps_bodies: Whether files are saved as they were received; otherwise none that is there can be the right one.
        max_file_bytes: Larger ones are refused, unless they are compared with what the archive says.
    """

    out: Path
    may_replace: bool
    keeps_bodies: bool
    max_file_bytes: int


@dataclass(frozen=True, slots=True)
class FileFolder:
    """A folder with files that are images.

    Attributes:
        path: The folder.
        is_in_place: Whether the trainer looks for them there, so that they stay, and may be behind links; otherwise the
            folder is what an archive was unpacked to, and its files are written to the output.
    """

    path: Path
    is_in_place: bool

    @property
    def source(self) -> Source:
        """Where its files come from, for the ledger."""
        return Source.HAVE if self.is_in_place else Source.ARCHIVE


class ImageSource:
    """Gets the bytes of images.

    Args:
        fetch: Fetches URLs, and the ranges of archives.
        members: Fetches members of archives; None if the job has none.
        folder: The folder with images as files; None if there is none.
        adoption: How files are taken that are there already; None if they are not.
        max_file_bytes: Larger files are refused.
        until_s: From when on, by the event loop's clock, nothing is looked for or waited for any more; None for never.
        earlier: Images of earlier outputs by URL; None if there are none.
        has_hashes: Whether samples carry hashes that the received bodies must match.

    Attributes:
        fetch: What makes all requests.
    """

    def __init__(  # noqa: PLR0913 - one parameter for each place where bytes may come from
        self,
        fetch: Fetch[Reservation],
        *,
        members: MemberReader | None = None,
        folder: FileFolder | None = None,
        adoption: Adoption | None = None,
        max_file_bytes: int = 0,
        until_s: float | None = None,
        earlier: ImagesByUrl | None = None,
        has_hashes: bool = False,
    ) -> None:
        self.fetch = fetch
        self._has_hashes = has_hashes
        self._earlier = earlier
        self._has_places = not (members is None and folder is None and adoption is None)
        self._members = members
        self._folder = folder
        self._adoption = adoption
        self._max_file_bytes = max_file_bytes
        self._until_s = until_s

    def call_limiter(self, calls_per_connection: int) -> AbstractAsyncContextManager[None]:
        """Make a limiter for calls, as ``Fetch.call_limiter`` does.

        Members are fetched many at a time, so that their number is no measure for connections; and they hold no memory
        before they have arrived.
        """
        if self._members is None:
            return self.fetch.call_limiter(calls_per_connection)
        return Limiter(lambda: _MAX_MEMBERS)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time has come from which on nothing is looked for or waited for any more."""
        return self._until_s is not None and asyncio.get_running_loop().time() >= self._until_s

    async def find_earlier(self, sample: Sample, image: int, memory: Reservation) -> ImageResult | Body | None:
        """What an earlier output has of an image that would otherwise be requested by its URL.

        Args:
            sample: The sample.
            image: 0-based position in its images.
            memory: The reservation that the bytes are counted against.

        Returns:
            The result of an image with this URL, or the original bytes, or None.
        """
        if self._earlier is None or not self._is_by_url(sample):
            return None
        found = await self._earlier.find(sample.urls[image], memory)
        if isinstance(found, Body) and isinstance(await self._verified(sample, image, found), Failure):
            memory.shrink(0)
            return None
        return None if isinstance(found, ImageResult) and not self.is_valid_for(sample, image, found.line) else found

    async def find_failed(self, sample: Sample, images: Sequence[int]) -> list[int]:
        """Those of a sample's images that have failed for good in an earlier output."""
        if self._earlier is None or not self._is_by_url(sample):
            return []
        have_failed = await self._earlier.find_failed([sample.urls[image] for image in images])
        return [image for image, has_failed in zip(images, have_failed, strict=True) if has_failed]

    async def __call__(self, sample: Sample, image: int, memory: Reservation) -> Fetched:
        """Get the bytes of one image.

        Args:
            sample: The sample.
            image: 0-based position in its images.
            memory: The reservation that the bytes are counted against.

        Raises:
            ConfigurationError: Another file is in the place of the image.
            ManifestError: The archive can't be read, or has changed.
            ResourceError: This machine has run out of something.
        """
        if self.is_out_of_time:
            row = self._places_of(sample)
            return replace(OUT_OF_TIME, source=Source.ARCHIVE) if MEMBER in row or FILE in row else OUT_OF_TIME
        fetched = await self._get(sample, image, memory)
        return await self._verified(sample, image, fetched) if isinstance(fetched, Body) else fetched

    def is_valid_for(self, sample: Sample, image: int, line: LedgerLine) -> bool:
        """Whether the result of another image with the same URL is also this one's: not if this must have another hash.

        Args:
            sample: The sample.
            image: 0-based position in its images.
            line: The ledger line of the other image.
        """
        if line.outcome == FailureKind.HASH_MISMATCH:
            return False
        return all(
            not line.sha256 or (algorithm == "sha256" and line.sha256 == wanted)
            for algorithm, wanted in self._hashes(sample, image).items()
        )

    def _hashes(self, sample: Sample, image: int) -> Mapping[str, str]:
        hashes = sample.row.get(HASHES) if self._has_hashes else None
        return (hashes[image] or {}) if isinstance(hashes, list) else {}

    async def _verified(self, sample: Sample, image: int, body: Body) -> Fetched:
        """A body, or a failure if it is not the one that its sample asks for."""
        for algorithm, wanted in self._hashes(sample, image).items():
            digest = partial(_hexdigest, algorithm, body.content)
            is_short = len(body.content) <= _HASHED_AT_ONCE_BYTES
            found = digest() if is_short else await run_in_thread(digest)
            if found != wanted:
                return Failure(
                    FailureKind.HASH_MISMATCH,
                    f"its {algorithm} is {found}, and not {wanted}",
                    attempts=body.attempts,
                    final_url=body.final_url,
                    fetch_ms=body.fetch_ms,
                    sha256=found if algorithm == "sha256" else "",
                    permitted=body.permitted,
                    source=body.source,
                )
        return body

    async def _get(self, sample: Sample, image: int, memory: Reservation) -> Fetched:
        row, difference = self._places_of(sample), ""
        if self._adoption is not None and FAILURE not in row:
            adopted = await self._adopt(self._adoption, sample, memory)
            if isinstance(adopted, Body):
                return adopted
            difference = adopted
            if difference and FALLBACK not in row:  # with one, this one may be from there, and the archive's damaged
                await _in_thread(partial(_refuse_write, self._adoption, sample, difference))
        if sample.content is not None:
            await memory.grow(len(sample.content))
            return Body(sample.content, source=Source.ARCHIVE)
        if FAILURE in row:
            fetched: Fetched = _recorded_failure(row[FAILURE])
        elif MEMBER in row:
            fetched = await self._fetch_member(Member.from_json(row[MEMBER]), memory)
        elif FILE in row:
            fetched = await self._read_file(row[FILE], image, memory)
        else:
            return await self.fetch(sample.urls[image], memory=memory, until_s=self._until_s)
        if isinstance(fetched, Failure) and fetched.kind in _ARCHIVE_LACKS:
            return await self._find_elsewhere(sample, fetched, memory)
        if difference and self._adoption is not None:
            await _in_thread(partial(_refuse_write, self._adoption, sample, difference))
        return fetched

    def _places_of(self, sample: Sample) -> Row:
        """What a sample's metadata says of where its image is. That of a published record may have the same keys."""
        return sample.row if self._has_places else {}

    def _is_by_url(self, sample: Sample) -> bool:
        return sample.content is None and _NOT_BY_URL.isdisjoint(self._places_of(sample))

    async def _fetch_member(self, member: Member, memory: Reservation) -> Fetched:
        assert self._members is not None, "a job with members has archives"
        limit = asyncio.timeout_at(self._until_s)
        try:
            async with limit:
                return await self._members(member, memory)
        except TimeoutError:
            if not limit.expired():
                raise
        return replace(OUT_OF_TIME, source=Source.ARCHIVE)

    async def _adopt(self, adoption: Adoption, sample: Sample, memory: Reservation) -> Body | str:
        """Take the file in the place of an image, or return how it differs from the right one; empty if there is none.

        Raises:
            ConfigurationError: It can't be taken, or is missing where nothing can be written.
        """
        max_bytes = None if MEMBER in sample.row else adoption.max_file_bytes
        size_bytes = await _in_thread(partial(_size_in_place, adoption, sample, max_bytes))
        if size_bytes is None:
            await _in_thread(partial(_refuse_write, adoption, sample))
            return ""
        if not adoption.keeps_bodies:
            return "can't be compared with one that is encoded again"
        member = Member.from_json(sample.row[MEMBER]) if MEMBER in sample.row else None
        if member is not None and member.size_bytes != size_bytes:
            return "has another size"
        if FILE in sample.row and not await _in_thread(partial(self._is_same_file, adoption, sample)):
            return "is another file than that in the source"
        body = await self._take(adoption, sample, size_bytes, memory)
        if member is not None and await _in_thread(partial(crc32, body.content)) != member.crc32:
            memory.shrink(0)
            return "has another checksum"
        return body

    async def _find_elsewhere(self, sample: Sample, failure: Failure, memory: Reservation) -> Fetched:
        """Get an image that the archive lacks or has damaged: from its place, compared with nothing, or from the web.

        Raises:
            ConfigurationError: The file in its place can't be taken, or nothing can be written there.
        """
        memory.shrink(0)
        adoption, fallback = self._adoption, sample.row.get(FALLBACK)
        if FAILURE in sample.row and fallback is None:  # the name is not safe, or is that of several members
            return failure
        if adoption is not None:
            size_bytes = await _in_thread(partial(_size_in_place, adoption, sample, adoption.max_file_bytes))
            if size_bytes is not None and adoption.keeps_bodies and not adoption.may_replace:
                return await self._take(adoption, sample, size_bytes, memory)
            if fallback:
                difference = "" if size_bytes is None else "can't be compared with the archive's"
                await _in_thread(partial(_refuse_write, adoption, sample, difference))
        if not isinstance(fallback, str) or not fallback:
            return failure
        return replace(await self.fetch(fallback, memory=memory, until_s=self._until_s), source=Source.FALLBACK)

    def _is_same_file(self, adoption: Adoption, sample: Sample) -> bool:
        assert self._folder is not None, "a job with files has their folder"
        paths = sample.row[FILE]
        assert isinstance(paths, list), "a path for each image"
        there, place = self._folder.path / str(paths[0]), _place(adoption, sample)
        return there.is_file() and filecmp.cmp(there, place, shallow=False)

    @staticmethod
    async def _take(adoption: Adoption, sample: Sample, size_bytes: int, memory: Reservation) -> Body:
        await memory.grow(size_bytes)
        content = await _in_thread(partial(_read_at_most, _place(adoption, sample), size_bytes))
        return Body(content, source=Source.HAVE)

    async def _read_file(self, paths: object, image: int, memory: Reservation) -> Fetched:
        assert self._folder is not None, "a job with files has their folder"
        assert isinstance(paths, list), "a path for each image"
        path = str(paths[image])
        size_bytes = await _in_thread(partial(_find_file, self._folder, path, self._max_file_bytes))
        if isinstance(size_bytes, Failure):
            return size_bytes
        await memory.grow(size_bytes)
        content = await _in_thread(partial(_read_at_most, self._folder.path / path, size_bytes))
        return Body(content, source=self._folder.source)


def _recorded_failure(value: object) -> Failure:
    match value:
        case [str(kind), str(reason)]:
            return Failure(FailureKind(kind), reason, source=Source.ARCHIVE)
    raise AssertionError(value)


def _hexdigest(algorithm: str, content: bytes) -> str:
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


async def _in_thread(function: Callable[[], _T]) -> _T:
    try:
        return await run_in_thread(function)
    except OSError as error:
        raise unreadable(error.filename, error) from error


def _find_file(folder: FileFolder, relative: str, max_bytes: int) -> int | Failure:
    """The size of a file of a folder, or why it can't be taken."""
    path = folder.path / relative
    try:
        leads_elsewhere = not folder.is_in_place and leads_out(path, str(folder.path.resolve()))
        status = path.stat()
        if leads_elsewhere or not S_ISREG(status.st_mode):
            return Failure(FailureKind.BAD_MEMBER, "it is not a regular file of the folder", source=folder.source)
        if status.st_size > max_bytes:
            return Failure(FailureKind.TOO_LARGE, f"the file has over {max_bytes:,} bytes", source=folder.source)
    except (FileNotFoundError, NotADirectoryError):
        return Failure(FailureKind.MISSING_MEMBER, "there is no such file", source=folder.source)
    return status.st_size


def _read_at_most(path: Path, size_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size_bytes)


def _place(adoption: Adoption, sample: Sample) -> Path:
    return adoption.out / str(sample.row["image"])


def _size_in_place(adoption: Adoption, sample: Sample, max_bytes: int | None) -> int | None:
    """The size of the file in the place of an image; None if there is none.

    Raises:
        ConfigurationError: It is no file, or too large.
    """
    path = _place(adoption, sample)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a file; move it away")
    if max_bytes is not None and status.st_size > max_bytes:
        raise ConfigurationError(f"{path} is larger than --max-body; raise that, or move the file away")
    return status.st_size


def _refuse_write(adoption: Adoption, sample: Sample, difference: str = "") -> None:
    """Check that the place of an image may be written.

    Args:
        adoption: How files are taken.
        sample: The sample.
        difference: How the file that is there differs from the right one; empty if there is none.

    Raises:
        ConfigurationError: Another file may not be replaced, or lies behind a link.
    """
    path = _place(adoption, sample)
    for one in path.parents:
        if one.exists():
            if not one.is_dir():
                raise ConfigurationError(f"{one} is a file where a folder is needed; move it away")
            break
    if difference and not adoption.may_replace:
        raise ConfigurationError(
            f"{path} is there already and {difference}; move it away, or use --fresh, which replaces such files"
        )
    for one in (path, *path.parents):
        if one.is_symlink():
            raise ConfigurationError(
                f"{one} is a symbolic link to a set in which {path.name} {difference or 'is missing'}, and datafetch "
                "writes nothing through links; complete or correct that set, or replace the link by a folder"
            )
        if one == adoption.out:
            return
