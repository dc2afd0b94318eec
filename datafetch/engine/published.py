"""What a job reads that is published elsewhere, downloaded to this machine: manifests, training lists and id lists.

Theory of operation. Which files a dataset needs of a place is chosen from the list of those that it has. The hub's own
library downloads from the hub, to its own cache. Everything else is copied to the cache folder (``store.downloads``)
under a name that follows from the place, so that datasets share what they have in common.

Rules: archives are not downloaded, for their members can be read where they are. Names of files come from foreign
lists, and only such are written as can stand in a folder. With a mirror, all servers are asked there, and get no login.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from datafetch.datasets.filenames import why_refused
from datafetch.datasets.recipes import published_blob
from datafetch.datasets.sources.gitlab import MAX_PAGE_BYTES, MAX_PAGES, GitLabPlace, is_gitlab, read_page
from datafetch.datasets.sources.hub import HubMirror, HubPlace, download, hub_endpoint, is_hub, list_sizes
from datafetch.datasets.sources.object_store import StoredFile, copy_stored, is_object_store, list_stored
from datafetch.engine.job import Job
from datafetch.engine.web_download import WebDownloader, WebFile, opened_part, policy_for_files
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import Fetcher
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.model.dataset import Dataset
from datafetch.model.location import at_mirror, is_remote, is_url, unknown_scheme, without_secrets
from datafetch.model.outcome import Failure
from datafetch.model.wording import counted, sized
from datafetch.process.threads import run_in_thread
from datafetch.store.downloads import DownloadedFile, downloads_of, keep_only

_log = logging.getLogger(__name__)


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
        await WebDownloader(fetch, policy).download(WebFile(name, at_mirror(url, job.mirror), blob_id), folder)
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
        downloads = WebDownloader(fetch, policy)
        for path, name in zip(selected, names, strict=True):
            url = at_mirror(place.url(path), job.mirror)
            await downloads.download(WebFile(name, url, versions[path]), folder)
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
        async with opened_part(target, "") as part:
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


def hub_at(mirror: str) -> HubMirror | None:
    """The hub at a mirror; None without a mirror."""
    return HubMirror(at_mirror(hub_endpoint(), mirror), downloads_of(mirror) / "hub") if mirror else None
