"""Datasets of the Hugging Face hub: which files one has, and copies of them in the hub's own cache.

Theory of operation. ``huggingface_hub`` does the work: it knows the hub's endpoint, login, cache and fast transfer from
the environment, and resumes downloads. A file of Git LFS that it has downloaded is checked against the hash that the
hub lists. It runs in a process of its own, because it blocks, holds a hundred megabytes, takes its settings from the
environment when it is imported (there, its telemetry and progress bars are switched off), and can't be cancelled but by
ending it. The process gets a request as JSON on its standard input, and answers with one line of JSON; before it, there
is a line for each file that is downloaded.

Rules: a place on the hub has a revision. Where the commit of a dataset is known, that is its revision, so that each run
gets the same files.
Archives are not downloaded: their members are read from the hub by ranges.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

from datafetch.errors import ConfigurationError, ManifestError, ResourceError
from datafetch.model.activities import Activity, ActivityUnit
from datafetch.process.child import child_command, start_failure

_SCHEME = "hf://"
_PLACE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/(.+?))?/?")
_PIECE_BYTES = 1 << 16
_ENDPOINT = "https://huggingface.co"
DOWNLOADED = b"downloaded"
"""The line of the process for each file that is there."""
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_VERBOSITY": "error",
}


def hub_endpoint() -> str:
    """The URL of the hub, which the environment may set."""
    return os.environ.get("HF_ENDPOINT", _ENDPOINT).rstrip("/")


def is_hub(location: str) -> bool:
    """Whether a location is on the hub."""
    return location.startswith(_SCHEME)


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A dataset's repository on the hub, or a file in it.

    Attributes:
        repository: Its owner and name, such as ``liuhaotian/LLaVA-Pretrain``.
        revision: A commit, a tag or a branch.
        path: The path of a file in it; empty for all of it.
    """

    repository: str
    revision: str = "main"
    path: str = ""

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read a location, ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``.

        Raises:
            ConfigurationError: It has another form.
        """
        match = _PLACE.fullmatch(location)
        if match is None or ".." in location:
            raise ConfigurationError(
                "a dataset on the hub is given as hf://datasets/OWNER/NAME, perhaps with @REVISION behind"
            )
        return cls(match[1], match[2] or "main", match[3] or "")

    def url(self, name: str) -> str:
        """The URL of a file, which the hub redirects to wherever it is."""
        return f"{hub_endpoint()}/datasets/{self.repository}/resolve/{quote(self.revision)}/{quote(name)}"

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"hf://datasets/{self.repository}@{self.revision}{path}"


@dataclass(frozen=True, slots=True)
class HubMirror:
    """A server that is asked instead of the hub. It gets no login, for that is for the hub.

    Attributes:
        endpoint: Its URL.
        cache: The folder for what it sends, which is not mixed with what comes from the hub.
    """

    endpoint: str
    cache: Path

    def environment(self) -> dict[str, str]:
        """The variables with which the hub's library asks it."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        }


class Request(msgspec.Struct, frozen=True):
    """What the process is to do.

    Attributes:
        repository: Owner and name.
        revision: A commit, a tag or a branch.
        names: The files to download; none only lists those that there are.
    """

    repository: str
    revision: str
    names: list[str]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the process answers.

    Attributes:
        sizes: The sizes in bytes of the files that there are, by path.
        folder: The folder in which the downloaded files are.
        problem: Why it could not; empty if it could.
        is_ours: Whether this machine lacks something, and not the hub.
    """

    sizes: dict[str, int] = {}
    folder: str = ""
    problem: str = ""
    is_ours: bool = False


async def list_sizes(place: HubPlace, mirror: HubMirror | None = None) -> dict[str, int]:
    """The sizes in bytes of all files of a repository, by path, in the order of the paths.

    Args:
        place: The repository.
        mirror: Who is asked instead of the hub; None asks the hub.

    Raises:
        ManifestError: The hub does not give them; the message says why, and what to do.
        ResourceError: This machine lacks something.
    """
    answer = await _ask(place, Request(place.repository, place.revision, []), mirror)
    return dict(sorted(answer.sizes.items()))


async def download(place: HubPlace, names: Sequence[str], mirror: HubMirror | None = None) -> Path:
    """Download files to the hub's cache, unless they are there already.

    Args:
        place: The repository.
        names: Their paths in it.
        mirror: Who is asked instead of the hub; None asks the hub.

    Returns:
        The folder in which they are, under the same paths.

    Raises:
        ManifestError: The hub does not give them; the message says why, and what to do.
        ResourceError: This machine lacks something.
    """
    answer = await _ask(place, Request(place.repository, place.revision, list(names)), mirror)
    return Path(answer.folder)


async def _ask(place: HubPlace, request: Request, mirror: HubMirror | None) -> Answer:
    at_mirror = {} if mirror is None else mirror.environment()
    try:
        process = await asyncio.create_subprocess_exec(
            *child_command("datafetch.datasets.sources.hub_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **_QUIET, **at_mirror},
            start_new_session=True,  # Ctrl-C in the terminal is handled by the parent alone
        )
    except OSError as error:
        raise ResourceError(f"cannot start the process that asks the hub: {start_failure(error)}") from error
    try:
        answered = await _talk(process, request)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answered:
        raise ResourceError(f"the process that asks the hub ended with status {process.returncode}, see above")
    answer = msgspec.json.decode(answered, type=Answer)
    if answer.problem:
        raise (ResourceError if answer.is_ours else ManifestError)(f"{place}: {answer.problem}")
    return answer


async def _talk(process: asyncio.subprocess.Process, request: Request) -> bytes:
    """Send the request, and return the answer; empty if the process ends without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):  # it has ended already, and its status tells
        process.stdin.write(msgspec.json.encode(request))
        await process.stdin.drain()
    process.stdin.close()
    begun, answer = bytearray(), b""
    with Activity(f"downloading {request.repository}", len(request.names), ActivityUnit.FILE) as activity:
        while piece := await process.stdout.read(_PIECE_BYTES):
            begun += piece
            if b"\n" not in piece:
                continue
            *lines, begun = begun.split(b"\n")
            for line in lines:
                if line == DOWNLOADED:
                    activity.advance(1)
                else:
                    answer = bytes(line)
    await process.wait()
    return answer
