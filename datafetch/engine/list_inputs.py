"""The files of a list, wherever they are: paths, folders, patterns, URLs, places on the hub and in object stores.

Theory of operation. Inputs are taken in the order in which they are given, and of a folder or a pattern the files in
the order of their names. Parquet files on the hub and on servers that serve ranges are read where they are; everything
else that is not on this machine is downloaded to the cache folder first, as manifests are.

Rules: a file that is given twice is taken once. What is no file of a list in a folder is left out, and counted.
"""

from __future__ import annotations

import fnmatch
import glob
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from datafetch.datasets.sources.gitlab import is_gitlab
from datafetch.datasets.sources.hub import HubPlace, download, is_hub, list_sizes
from datafetch.datasets.sources.object_store import is_object_store
from datafetch.engine.job import Job, inputs_of
from datafetch.engine.published import download_file, download_source, hub_at
from datafetch.engine.remote_files import RemoteFiles, open_remote
from datafetch.engine.web_download import policy_for_files
from datafetch.errors import ConfigurationError, ManifestError, unreadable
from datafetch.fetch.ranges import NoRangesError
from datafetch.fetch.receive_rate import ReceiveRate
from datafetch.model.dataset import Dataset
from datafetch.model.location import at_mirror, is_url, unknown_scheme, without_secrets
from datafetch.model.manifest import RemoteFile
from datafetch.model.wording import counted
from datafetch.process.threads import run_in_thread

_PARQUET_SUFFIX = ".parquet"
_PATTERN_CHARACTERS = frozenset("*?[")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenInputs:
    """The files of a list.

    Attributes:
        files: The files, in order.
        are_remote: Whether some are read where they are.
        refuse_closed: Raises an exception once they are closed.
        close: Ends what reads them.
    """

    files: Sequence[Path | RemoteFile]
    are_remote: bool
    refuse_closed: Callable[[], None]
    close: Callable[[], None]


@asynccontextmanager
async def open_inputs(job: Job, dataset: Dataset, rate: ReceiveRate | None) -> AsyncIterator[OpenInputs]:
    """Find the files of a list, and download those that can't be read where they are.

    Args:
        job: The job.
        dataset: Its dataset, which takes inputs.
        rate: The cap on what is received.

    Yields:
        The files, which can be read until the context ends.

    Raises:
        ConfigurationError: A place has no files of a list, or is not one.
        ManifestError: A place does not give them; the message says why, and what to do.
        ResourceError: This machine lacks something.
    """
    async with open_remote(policy_for_files(job), rate) as remote:
        found: dict[object, Path | RemoteFile] = {}
        for place in inputs_of(job):
            for file in await _find(place, job, dataset, remote):
                found.setdefault(await run_in_thread(file.resolve) if isinstance(file, Path) else file.name, file)
        yield OpenInputs(list(found.values()), bool(remote.files), remote.refuse_closed, remote.close)


async def _find(place: str, job: Job, dataset: Dataset, remote: RemoteFiles) -> list[Path | RemoteFile]:
    if is_hub(place):
        return await _find_on_hub(place, job, dataset, remote)
    if is_url(place):
        return [await _find_on_server(place, job, remote)]
    if is_gitlab(place) or is_object_store(place):
        copies = await download_source(replace(job, source=place), dataset)
        return [*await run_in_thread(find_local, copies, dataset)]
    if (scheme := unknown_scheme(place)) and not await run_in_thread(Path(place).exists):
        raise ConfigurationError(
            f"{scheme}: can't be read; give a path, or a location with http://, https://, hf://, gitlab://, s3:// or gs://"
        )
    return [*await run_in_thread(find_local, place, dataset)]


async def _find_on_server(place: str, job: Job, remote: RemoteFiles) -> Path | RemoteFile:
    """A file on a web server: parquet where it is, if the server serves ranges, and anything else as a copy."""
    try:
        is_parquet = urlsplit(place).path.lower().endswith(_PARQUET_SUFFIX)
    except ValueError as error:
        raise ConfigurationError(f"{without_secrets(place)} is not valid; check its spelling") from error
    if is_parquet:
        ranges = remote.ranges(at_mirror(place, job.mirror), without_secrets(place))
        try:
            await ranges.find_size()
        except NoRangesError:
            _log.info("%s is downloaded, since its server serves no parts of it", without_secrets(place))
        else:
            return remote.add(without_secrets(place), ranges)
    return await download_file(place, job)


async def _find_on_hub(place: str, job: Job, dataset: Dataset, remote: RemoteFiles) -> list[Path | RemoteFile]:
    """Files of a repository on the hub: one, those below a folder, those that match a pattern, or all."""
    parsed = HubPlace.parse(place)
    repository = replace(parsed, path="")
    names = list(await list_sizes(repository, hub_at(job.mirror)))
    if parsed.path in names:
        chosen = [parsed.path]
    elif _is_pattern(parsed.path):
        chosen = [name for name in names if fnmatch.fnmatchcase(name, parsed.path)]
    else:
        below = f"{parsed.path}/" if parsed.path else ""
        chosen = list(dataset.select_published([name for name in names if name.startswith(below)]))
    if not chosen:
        raise ConfigurationError(
            f"{place} has no files of a list; give the path of one, or a pattern such as *.parquet"
        )
    in_place = {name for name in chosen if name.lower().endswith(_PARQUET_SUFFIX)}
    copied = [name for name in chosen if name not in in_place]
    folder = await download(repository, copied, hub_at(job.mirror)) if copied else Path()
    return [remote.add_of_hub(repository, name, job.mirror) if name in in_place else folder / name for name in chosen]


def find_local(place: str, dataset: Dataset) -> list[Path]:
    """The files of a path on this machine: that file, those of that folder, or those that match that pattern.

    Raises:
        ManifestError: There are none.
    """
    path = Path(place)
    try:
        if path.is_dir():
            return _files_in(path, dataset)
        if path.exists():
            return [path]
        if not _is_pattern(place):
            raise ManifestError(f"there is no file or folder {place}; check its spelling")
        # Path.glob takes no absolute patterns.
        matches = sorted(Path(match) for match in glob.glob(place, recursive=True))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
    except OSError as error:
        raise unreadable(place, error) from error
    if not files:
        raise ManifestError(f"no file matches {place}; check the pattern")
    return files


def _files_in(folder: Path, dataset: Dataset) -> list[Path]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    chosen = list(dataset.select_published(names))
    if not chosen:
        raise ManifestError(
            f"the folder {folder} has no files of a list (.parquet, .csv, .tsv, .txt, .json, .jsonl, compressed or "
            f"not); give the files, or a pattern such as '{folder}/**/*.parquet'"
        )
    if left_out := len(names) - len(chosen):
        _log.info("%s: %s left out, by the names", folder, counted(left_out, "other file"))
    return [folder / name for name in chosen]


def _is_pattern(place: str) -> bool:
    return not _PATTERN_CHARACTERS.isdisjoint(place)
