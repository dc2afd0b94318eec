"""Projects on GitLab servers: which files one has, and where each of them is.

Theory of operation. A project's files are listed by the tree API of its server, a hundred at a time. A file's blob id
is a hash of its content, or, if Git LFS has the file, of a pointer with a hash of its content. So it tells whether a
copy is still the published one, and whether it arrived unharmed.

Rules: what a server lists is foreign. A page is bounded in bytes by who fetches it, the number of pages and of files
here, and a file whose name could not be written is refused.

Source: docs.gitlab.com/api/repositories (list repository tree), git-scm.com/book/en/v2/Git-Internals-Git-Objects,
github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import BinaryIO, Self
from urllib.parse import quote

import msgspec

from datafetch.datasets.filenames import why_refused
from datafetch.errors import ConfigurationError, ManifestError

_SCHEME = "gitlab://"
_PLACE = re.compile(r"gitlab://([\w.-]+(?::\d+)?)/([\w.-]+(?:/[\w.-]+)+?)(?:@([\w.-]+))?/?")
_FILES_PER_PAGE = 100
_SHA1_DIGITS = 40
_PIECE_BYTES = 1 << 20
MAX_PAGES = 1000
"""How many pages are listed at most: a hundred thousand files."""
MAX_PAGE_BYTES = 4 * 1024 * 1024
"""How large a page is at most; a file's entry has some 200 bytes."""


class _Entry(msgspec.Struct, frozen=True):
    path: str
    type: str
    id: str


def is_gitlab(location: str) -> bool:
    """Whether a location is a project on a GitLab server."""
    return location.startswith(_SCHEME)


@dataclass(frozen=True, slots=True)
class GitLabPlace:
    """A project on a GitLab server.

    Attributes:
        host: The server's name, and its port if that is unusual.
        project: The project's path, such as ``datasets/llm-jp-japanese-image-text-pairs``.
        revision: A branch, a tag or a commit.
    """

    host: str
    project: str
    revision: str = "main"

    @classmethod
    def parse(cls, location: str) -> Self:
        """Read a location, ``gitlab://HOST/GROUP/PROJECT[@REVISION]``.

        Raises:
            ConfigurationError: It has another form.
        """
        match = _PLACE.fullmatch(location)
        if match is None or ".." in location:
            raise ConfigurationError(
                "a project on a GitLab server is given as gitlab://HOST/GROUP/PROJECT, perhaps with @REVISION behind"
            )
        return cls(match[1], match[2], match[3] or "main")

    def page_url(self, number: int) -> str:
        """The URL of a page of the list of files; pages are counted from 1."""
        project, revision = quote(self.project, safe=""), quote(self.revision, safe="")
        return (
            f"https://{self.host}/api/v4/projects/{project}/repository/tree"
            f"?ref={revision}&recursive=true&per_page={_FILES_PER_PAGE}&page={number}"
        )

    def url(self, path: str) -> str:
        """The URL of a file."""
        return f"https://{self.host}/{quote(self.project)}/-/raw/{quote(self.revision)}/{quote(path)}"

    def __str__(self) -> str:
        return f"gitlab://{self.host}/{self.project}@{self.revision}"


def read_page(place: GitLabPlace, page: bytes) -> tuple[dict[str, str], bool]:
    """Read a page of the list of a project's files.

    Args:
        place: The project.
        page: The page, as the server sent it.

    Returns:
        The blob id of each file on it by the file's path, and whether it is the last page.

    Raises:
        ManifestError: It is no such page, or has a file that can't be written under its name.
    """
    try:
        entries = msgspec.json.decode(page, type=list[_Entry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{place}: the server's list of files can't be read; download the files, and give their folder as --source"
        ) from error
    if len(entries) > _FILES_PER_PAGE:
        raise ManifestError(f"{place}: the server lists more files on a page than it was asked for; give their folder")
    files = {entry.path: entry.id for entry in entries if entry.type == "blob"}
    if strange := next((path for path in files if why_refused(path)), None):
        raise ManifestError(f"{place}: {why_refused(strange)}: {ascii(strange)[:200]}")
    return files, len(entries) < _FILES_PER_PAGE


def is_blob(file: BinaryIO, size_bytes: int, blob_id: str) -> bool:
    """Whether a file is the one that a project lists.

    Args:
        file: The file, at its beginning; it is read to its end.
        size_bytes: Its size.
        blob_id: The blob id that is listed for it. One that is no SHA-1 is not checked.
    """
    if len(blob_id) != _SHA1_DIGITS:
        return True
    as_blob = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    content = hashlib.sha256()
    while piece := file.read(_PIECE_BYTES):
        as_blob.update(piece)
        content.update(piece)
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.hexdigest()}\nsize {size_bytes}\n".encode()
    )
    as_pointer = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False)
    return blob_id in (as_blob.hexdigest(), as_pointer.hexdigest())
