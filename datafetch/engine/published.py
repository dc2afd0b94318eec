"""What a job reads that is published elsewhere, downloaded to this machine: manifests, training lists and id lists.

Theory of operation. Which files a dataset needs of a place is chosen from the list of those that it has. The hub's own
library downloads from the hub, to its own cache. Everything else is copied to the cache folder (``store.downloads``)
under a name that follows from the place, so that datasets share what they have in common. Files on web servers are
fetched in ranges by the same fetcher as archives, and resumed where they were interrupted; from a server that does not
serve ranges they come whole. A file that is there is looked at again, since a place may change, but not fetched again
while its version is the same.

Rules: archives are not downloaded, for their members can be read where they are. Names of files come from foreign
lists, and only such are written as can stand in a folder. With a mirror, all servers are asked there, and get no login.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from datafetch.datasets.filenames import why_refused
from datafetch.datasets.recipes import published_blob
from datafetch.datasets.sources.gitlab import MAX_PAGE_BYTES, MAX_PAGES, GitLabPlace, is_blob, is_gitlab, read_page
from datafetch.datasets.sources.hub import HubMirror, HubPlace, download, hub_endpoint, is_hub, list_sizes
from datafetch.datasets.sources.object_store import StoredFile, copy_stored, is_object_store, list_stored
from datafetch.engine.job import Job
from datafetch.errors import ConfigurationError, ManifestError, ResourceError
from datafetch.fetch import Fetcher
from datafetch.fetch.policy import FetchPolicy, OptOut
from datafetch.fetch.ranges import FileChangedError, NoRangesError, RemoteRanges
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.dataset import Dataset
from datafetch.model.location import at_mirror, is_remote, is_url, unknown_scheme, without_secrets
from datafetch.model.outcome import Failure
from datafetch.model.wording import counted, sized
from datafetch.process.threads import run_in_thread
from datafetch.store.downloads import DownloadedFile, downloads_of, keep_only

_log = logging.getLogger(__name__)
_MAX_WHOLE_BYTES = 512 * 1024 * 1024  # of a file that can only be had as a whole; its body is held in memory
_MAX_WHOLE_S = 3600.0
_LOCK_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class _RemoteFile:
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


async def download_source(job: Job, dataset: Dataset) -> str:
    """Download the manifest of a job, unless it is on this machine.

    Args:
        job: The job.
        dataset: Its dataset.

    Returns:
        The path of the folder or file in which the manifest is.

    Raises:
        ConfigurationError: The place has nothing that the dataset is read from, or is not one.
        ManifestError: The place does not give it; the message says why, and what to do.
        ResourceError: This machine lacks something.
    """
    source = job.source
    if is_hub(source):
        place, names = await find_published(job, dataset)
        files = counted(len(names), "file")
        _log.info("%s: %s of %s, downloaded unless the hub's cache has them", job.out, files, place)
        return str(await download(place, names, hub_at(job.mirror)))
    if is_gitlab(source):
        return str(await _download_from_gitlab(GitLabPlace.parse(source), dataset, job))
    if is_object_store(source):
        return str(await _download_from_store(source, dataset))
    if is_url(source) and is_read_from_copy(dataset):
        return str(await download_file(source, job, default_name=dataset.list_name or ""))
    if (scheme := unknown_scheme(source)) and not await asyncio.to_thread(Path(source).exists):
        raise ConfigurationError(
            f"{scheme}: can't be read; give a path, or a location with http://, https://, hf://, gitlab://, s3:// or gs://"
        )
    return source


async def find_published(job: Job, dataset: Dataset) -> tuple[HubPlace, list[str]]:
    """What a dataset is read from on the hub: the repository, and the paths of the files in it.

    Raises:
        DatafetchError: As ``download_source``.
    """
    place = HubPlace.parse(job.source)
    if place.path:
        raise ConfigurationError(f"{place} is a file; give the dataset that it is in, or download it and give its path")
    return place, select_files(dataset, list(await list_sizes(place, hub_at(job.mirror))), job.source)


async def download_file(location: str, job: Job, *, default_name: str = "") -> Path:
    """Download one file.

    Args:
        location: The file; a path is returned as it is.
        job: The job, of which the network's settings are used.
        default_name: The name of the file, if the location is that of a folder.

    Returns:
        The path of the file, or of its copy.

    Raises:
        DatafetchError: As ``download_source``.
    """
    if not is_remote(location):
        return Path(location)
    if is_hub(location):
        place = HubPlace.parse(location)
        if not place.path:
            raise ConfigurationError(f"{place} is a whole dataset; give the path of a file behind it")
        return await download(place, [place.path], hub_at(job.mirror)) / place.path
    if is_object_store(location):
        stored = await run_in_thread(list_stored, location)
        if len(stored) != 1:
            raise ConfigurationError(f"{without_secrets(location)} has {len(stored)} files; give one of them")
        folder = downloads_of(location)
        await _copy_all(location, stored, folder)
        return folder / next(iter(stored))
    if is_gitlab(location):
        raise ConfigurationError("a single file of a GitLab server is given by its URL, https://HOST/…/-/raw/…")
    url, name = _url_and_name(location, default_name)
    folder = downloads_of(url)
    blob_id = "" if job.mirror else published_blob(url)  # a mirror may have a miniature
    policy = policy_for_files(job)
    async with Fetcher(policy) as fetch:
        await _Downloads(fetch, policy).download(_RemoteFile(name, at_mirror(url, job.mirror), blob_id), folder)
    return folder / name


def downloaded_copy(location: str, default_name: str = "") -> Path | None:
    """The copy of a file on a web server that an earlier command has downloaded; None if there is none.

    No server is asked whether it is still the same file. The arguments are those of ``download_file``.

    Raises:
        ConfigurationError: The location is not that of a file.
    """
    url, name = _url_and_name(location, default_name)
    path = downloads_of(url) / name
    return path if path.is_file() else None


def _url_and_name(location: str, default_name: str) -> tuple[str, str]:
    """The URL of a file, and the name of its copy; for the URL of a folder, those of a file in it.

    Raises:
        ConfigurationError: It is not that of a file.
    """
    try:
        name = unquote(urlsplit(location).path.rpartition("/")[2])
    except ValueError as error:
        raise ConfigurationError(f"{without_secrets(location)} is not valid; check its spelling") from error
    url = location if name else location + default_name
    name = name or default_name
    if not name:
        shown = without_secrets(location)
        raise ConfigurationError(f"{shown} is a folder, which a web server does not list; give the URL of a file")
    if reason := why_refused(name):
        raise ConfigurationError(f"{without_secrets(url)}: {reason}; download it, and give its path")
    return url, name


def is_read_from_copy(dataset: Dataset) -> bool:
    """Whether the source of a dataset is read from this machine, and not an archive that is read where it is."""
    return not dataset.archives or dataset.list_name is not None


def select_files(dataset: Dataset, names: Sequence[str], source: str) -> list[str]:
    """The files of a place that a dataset is read from.

    Raises:
        ConfigurationError: There are none.
    """
    selected = list(dataset.select_published(names))
    if not selected:
        shown = without_secrets(source)
        raise ConfigurationError(f"{shown} has nothing that {dataset.name} is read from; give the path of its files")
    return selected


async def _download_from_gitlab(place: GitLabPlace, dataset: Dataset, job: Job) -> Path:
    versions = await list_project(place, job)
    selected = select_files(dataset, sorted(versions), str(place))
    names = _flat_names(selected, str(place))
    folder = downloads_of(str(place)) / dataset.name
    policy = policy_for_files(job)
    async with Fetcher(policy) as fetch:
        downloads = _Downloads(fetch, policy)
        for path, name in zip(selected, names, strict=True):
            url = at_mirror(place.url(path), job.mirror)
            await downloads.download(_RemoteFile(name, url, versions[path]), folder)
    await run_in_thread(keep_only, folder, names)
    return folder


async def list_project(place: GitLabPlace, job: Job) -> dict[str, str]:
    """The blob ids of a project's files, by their paths.

    Args:
        place: The project.
        job: The job, of which the network's settings are used.

    Raises:
        ManifestError: The server does not give them; the message says why, and what to do.
    """
    versions: dict[str, str] = {}
    async with Fetcher(replace(policy_for_files(job), max_body_bytes=MAX_PAGE_BYTES)) as fetch:
        for number in range(1, MAX_PAGES + 1):
            page = await fetch(at_mirror(place.page_url(number), job.mirror))
            if isinstance(page, Failure):
                raise ManifestError(f"{place}: {_why_not_listed(page)}")
            files, is_last = read_page(place, page.content)
            versions |= files
            if is_last:
                return versions
    raise ManifestError(f"{place} has more files than is accepted; give a folder with those that are needed")


def _why_not_listed(failure: Failure) -> str:
    if failure.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "the server wants a login; download the files, and give their folder as --source"
    if failure.status == HTTPStatus.NOT_FOUND:
        return "there is no such project or revision, or it needs a login; download the files, and give their folder"
    return f"its files can't be listed now ({failure.detail or failure.kind}); run the same command again later"


async def _download_from_store(location: str, dataset: Dataset) -> Path:
    stored = await run_in_thread(list_stored, location)
    selected = sorted(stored) if len(stored) == 1 else select_files(dataset, sorted(stored), location)
    folder = downloads_of(location) / dataset.name
    await _copy_all(location, {name: stored[name] for name in selected}, folder)
    return folder


async def _copy_all(location: str, stored: Mapping[str, StoredFile], folder: Path) -> None:
    names = _flat_names(list(stored), location)
    for name, file in zip(names, stored.values(), strict=True):
        target = DownloadedFile(folder, name)
        if await asyncio.to_thread(target.is_there, file.version):
            continue
        async with _opened_part(target, "") as part:
            if not await asyncio.to_thread(target.is_there, file.version):  # now
                _log.info("copying %s, %s", file.path, sized(file.size_bytes))
                with Activity(f"copying {name}", file.size_bytes, ActivityUnit.BYTE) as activity:
                    await run_in_thread(copy_stored, location, file, part, activity.advance)
                await run_in_thread(target.complete, part, file.version)
    await run_in_thread(keep_only, folder, names)


def _flat_names(paths: Sequence[str], source: str) -> list[str]:
    """The names of files without their folders, as they are kept.

    Raises:
        ManifestError: One could not be written, or two are the same.
    """
    names = [PurePosixPath(path).name for path in paths]
    if strange := next((path for path in paths if why_refused(path)), None):
        raise ManifestError(f"{without_secrets(source)}: {why_refused(strange)}: {ascii(strange)[:200]}")
    if len(set(names)) < len(names):
        raise ManifestError(f"{without_secrets(source)} has files of the same name in several folders; give one folder")
    return names


class _Downloads:
    """Downloads files of one web server.

    Args:
        fetch: Makes the requests.
        policy: How it makes them.
    """

    def __init__(self, fetch: Fetcher, policy: FetchPolicy) -> None:
        self._fetch = fetch
        self._policy = policy
        self._serves_ranges = True  # until it has ignored one

    async def download(self, file: _RemoteFile, folder: Path) -> None:
        """Download a file, unless it is here in this version; resume what an earlier call began."""
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
        async with _opened_part(target, version) as part:
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

    async def _download_whole(self, file: _RemoteFile, target: DownloadedFile) -> None:
        """Download a file that its server gives only as a whole."""
        shown = without_secrets(file.url)
        _log.info("downloading %s, in one piece, for its server serves no parts of it", shown)
        patient = replace(self._policy, timeout_s=max(self._policy.timeout_s, _MAX_WHOLE_S))
        async with Fetcher(patient) as fetch:
            body = await fetch(file.url)
        if isinstance(body, Failure):
            raise ManifestError(f"{shown} can't be read ({body.detail or body.kind}); download it, and give its path")
        async with _opened_part(target, "") as part:
            await run_in_thread(part.write, body.content)
            if not await run_in_thread(target.complete, part, file.version, file.is_sound):
                raise _damaged(file)


@asynccontextmanager
async def _opened_part(target: DownloadedFile, version: str) -> AsyncIterator[BinaryIO]:
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


def _damaged(file: _RemoteFile) -> ManifestError:
    return ManifestError(f"{without_secrets(file.url)} did not arrive as it is listed; run the same command again")


def _disk_error(error: OSError, target: DownloadedFile) -> ResourceError:
    return ResourceError.from_disk_error(error, f"write {target.path}, whose place XDG_CACHE_HOME can change")


def policy_for_files(job: Job) -> FetchPolicy:
    """How files are fetched that are no images: they may be large, and a notice for search engines means others."""
    return replace(job.fetch, max_body_bytes=max(job.fetch.max_body_bytes, _MAX_WHOLE_BYTES), opt_out=OptOut.IGNORE)


def hub_at(mirror: str) -> HubMirror | None:
    """The hub at a mirror; None without a mirror."""
    return HubMirror(at_mirror(hub_endpoint(), mirror), downloads_of(mirror) / "hub") if mirror else None
