"""Downloads files of web servers to the cache folder (``store.downloads``), as they are and one at a time.

Theory of operation. Files are fetched in ranges by the same fetcher as archives, and resumed where they were
interrupted; from a server that does not serve ranges they come whole. A file that is there is looked at again, since a
place may change, but not fetched again while its version is the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from datafetch.datasets.sources.gitlab import is_blob
from datafetch.engine.job import Job
from datafetch.errors import ManifestError, ResourceError
from datafetch.fetch import Fetcher
from datafetch.fetch.policy import FetchPolicy, OptOut
from datafetch.fetch.ranges import FileChangedError, NoRangesError, RemoteRanges
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.location import without_secrets
from datafetch.model.outcome import Failure
from datafetch.model.wording import sized
from datafetch.process.threads import run_in_thread
from datafetch.store.downloads import DownloadedFile

_log = logging.getLogger(__name__)
_MAX_WHOLE_BYTES = 512 * 1024 * 1024  # of a file that can only be had as a whole; its body is held in memory
_MAX_WHOLE_S = 3600.0
_LOCK_PAUSE_S = 1.0


def policy_for_files(job: Job) -> FetchPolicy:
    """How files other than images are fetched: they may be large, and opt-out notices only concern images."""
    return replace(job.fetch, max_body_bytes=max(job.fetch.max_body_bytes, _MAX_WHOLE_BYTES), opt_out=OptOut.IGNORE)


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file on a web server.

    Attributes:
        name: The name that its copy gets.
        url: Its URL.
        version: Its blob id, if that is known; otherwise empty, and only the server's answer tells.
    """

    name: str
    url: str
    version: str = ""

    def is_sound(self, file: BinaryIO, size_bytes: int) -> bool:
        """Whether a copy has the published content; true if no blob id is known."""
        return is_blob(file, size_bytes, self.version)


class WebDownloader:
    """Downloads files of one web server.

    Args:
        fetch: Makes the requests.
        policy: How it makes them.
    """

    def __init__(self, fetch: Fetcher, policy: FetchPolicy) -> None:
        self._fetch = fetch
        self._policy = policy
        self._serves_ranges = True  # until it has ignored one

    async def download(self, file: WebFile, folder: Path) -> None:
        """Download a file, unless it is here in this version; resume what an earlier call began.

        Args:
            file: The file.
            folder: The folder that gets its copy.

        Raises:
            ManifestError: The server does not give it, or not as it is listed.
            ResourceError: The disk, or something else of this machine, refuses it.
        """
        target = DownloadedFile(folder, file.name)
        if file.version != "" and await asyncio.to_thread(target.is_there, file.version):
            return
        ranges = RemoteRanges(self._fetch, file.url)
        size_bytes = await self._find_size(ranges)
        if size_bytes is None:
            await self._download_whole(file, target)
            return
        version = file.version or (f"{size_bytes} {ranges.etag}" if ranges.etag else "")
        if version != "" and await asyncio.to_thread(target.is_there, version):
            return
        async with opened_part(target, version) as part:
            if version != "" and await asyncio.to_thread(target.is_there, version):
                return  # another run has downloaded it meanwhile
            _log.info("downloading %s, %s", without_secrets(file.url), sized(size_bytes))
            try:
                await _read_rest(ranges, size_bytes, part, without_secrets(file.url))
            except FileChangedError as error:
                raise ManifestError(
                    f"{without_secrets(file.url)} has changed while it was downloaded; run the same command again"
                ) from error
            if not await run_in_thread(target.complete, part, version, file.is_sound):
                raise _damaged(file)

    async def _find_size(self, ranges: RemoteRanges) -> int | None:
        """The size of a file; None if its server serves no ranges, or does not tell."""
        if self._serves_ranges:
            try:
                return await ranges.find_size()
            except NoRangesError:
                self._serves_ranges = False
        return None

    async def _download_whole(self, file: WebFile, target: DownloadedFile) -> None:
        """Download a file that its server gives only as a whole."""
        shown = without_secrets(file.url)
        _log.info("downloading %s, in one piece, for its server serves no parts of it", shown)
        policy = self._policy
        patient = replace(policy, timeout_s=max(policy.timeout_s, _MAX_WHOLE_S), stall_timeout_s=policy.silence_s)
        async with Fetcher(patient) as fetch:
            body = await fetch(file.url)
        if isinstance(body, Failure):
            raise ManifestError(f"{shown} can't be read ({body.detail or body.kind}); download it, and give its path")
        async with opened_part(target, "") as part:
            await run_in_thread(part.write, body.content)
            if not await run_in_thread(target.complete, part, file.version, file.is_sound):
                raise _damaged(file)


@asynccontextmanager
async def opened_part(target: DownloadedFile, version: str) -> AsyncIterator[BinaryIO]:
    """Open what is there of a download, as soon as no other run has it open.

    Raises:
        ResourceError: The disk refuses it, also inside the context.
    """
    try:
        part = await _open_part(target, version)
        try:
            yield part
        finally:
            await run_in_thread(part.close)
    except OSError as error:
        raise _disk_error(error, target) from error


async def _open_part(target: DownloadedFile, version: str) -> BinaryIO:
    is_told = False
    while True:
        try:
            return await run_in_thread(target.open_part, version)
        except BlockingIOError:
            if not is_told:
                _log.info("waiting for another run that downloads %s", target.path)
            is_told = True
            await asyncio.sleep(_LOCK_PAUSE_S)


async def _read_rest(ranges: RemoteRanges, size_bytes: int, part: BinaryIO, shown: str) -> None:
    """Append to a file what is missing of it."""
    position = await run_in_thread(part.tell)
    if position > size_bytes:  # it is damaged
        await run_in_thread(part.truncate, 0)
        position = 0
    with Activity(f"downloading {_last_part(shown)}", size_bytes, ActivityUnit.BYTE, done=position) as activity:
        while position < size_bytes:
            read = await ranges.read(position, min(position + ranges.span_bytes, size_bytes))
            if isinstance(read, Failure):
                raise ManifestError(f"{shown} can't be read now ({read.detail}); run the same command later to resume")
            await run_in_thread(part.write, read.content)
            position += len(read.content)
            activity.advance(len(read.content))


def _last_part(shown: str) -> str:
    """The name of a file, from its URL."""
    return unquote(PurePosixPath(urlsplit(shown).path).name) or shown


def _damaged(file: WebFile) -> ManifestError:
    return ManifestError(f"{without_secrets(file.url)} did not arrive as it is listed; run the same command again")


def _disk_error(error: OSError, target: DownloadedFile) -> ResourceError:
    return ResourceError.from_disk_error(error, f"write {target.path}, whose place XDG_CACHE_HOME can change")
