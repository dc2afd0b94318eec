"""The process that asks the Hugging Face hub for files; ``hub`` starts it, and says what it is for."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from datafetch.datasets.sources.hub import DOWNLOADED, Answer, Request
from datafetch.process.child import end_with_parent

if TYPE_CHECKING:
    from types import ModuleType

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})
_SHA256_DIGITS = 64
_MAX_FILES = 100_000
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429


def main() -> None:
    """Answer the request on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # handled by the parent, even if sent to all of its processes
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(request)) + b"\n")


def _say_downloaded() -> None:
    """Tell the parent that another file is there."""
    sys.stdout.buffer.write(DOWNLOADED + b"\n")
    sys.stdout.buffer.flush()


def _answer(request: Request) -> Answer:
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - an extra
    except ImportError:
        return Answer(problem="reading from the hub needs huggingface_hub; pip install 'vlm-datafetch[hub]'")
    try:
        return _download(hub, request) if request.names else _list(hub, request)
    except Exception as error:  # noqa: BLE001 - of several libraries; each is described to the operator
        return _describe(hub, error, request)


def _list(hub: ModuleType, request: Request) -> Answer:
    entries = hub.HfApi().list_repo_tree(
        request.repository, repo_type="dataset", revision=request.revision, recursive=True
    )
    sizes: dict[str, int] = {}
    for entry in entries:
        if len(sizes) == _MAX_FILES:
            return Answer(problem="it has more files than is accepted; download those that are needed")
        if isinstance(entry, hub.hf_api.RepoFile) and entry.path.isprintable():  # a name with surrogates is not
            sizes[entry.path] = entry.size
    return Answer(sizes=sizes)


def _download(hub: ModuleType, request: Request) -> Answer:
    folders = set()
    where = {"repo_type": "dataset", "revision": request.revision}
    for name in request.names:
        is_new = not isinstance(hub.try_to_load_from_cache(request.repository, name, **where), str)
        path = Path(hub.hf_hub_download(request.repository, name, **where, library_name="datafetch"))
        if is_new and not _is_sound(path):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            return Answer(problem=f"{name} did not arrive as it is published; run the same command again")
        folders.add(path.parents[name.count("/")])
        _say_downloaded()
    (folder,) = folders  # of one revision, all are in one
    return Answer(folder=os.fspath(folder))


def _is_sound(path: Path) -> bool:
    """Whether a file of the hub's cache, if Git LFS has it, has the content that the hub lists.

    The cache stores a file under its entity tag, which is then its SHA-256.
    """
    stored = path.resolve()
    if len(stored.name) != _SHA256_DIGITS:
        return True
    with stored.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == stored.name


def _describe(hub: ModuleType, error: Exception, request: Request) -> Answer:
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        where = f" ({error.filename})" if error.filename else ""
        reason = os.strerror(error.errno)
        return Answer(
            problem=f"its cache can't be written{where}: {reason}; HF_HOME can change its place", is_ours=True
        )
    errors = hub.errors
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/datasets/{request.repository}"
    text = str(error).splitlines()
    reasons = (
        (
            isinstance(error, errors.GatedRepoError),
            f"its terms have to be accepted first, at {page}, and HF_TOKEN set to a token of that login",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError) or status in (_UNAUTHORIZED, _FORBIDDEN),
            f"there is no such dataset, or it needs a login; see {page}, and set HF_TOKEN if it does",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            f"there is no revision {request.revision}; see {page}",
        ),
        (
            isinstance(error, errors.LocalEntryNotFoundError),
            "the hub does not answer, and its cache lacks the files; check the network, or give a path",
        ),
        (
            isinstance(error, errors.EntryNotFoundError),
            f"it lacks one of {', '.join(request.names)}; see {page}",
        ),
        (
            status == _NOT_FOUND,
            "the server has no such dataset or revision (HTTP 404); check the name, and --mirror if there is one",
        ),
        (
            status == _TOO_MANY,
            "the hub wants fewer requests; run the same command again later, or set HF_TOKEN",
        ),
    )
    otherwise = (
        f"the hub can't be read now ({text[0] if text else type(error).__name__}); run the same command again later"
    )
    return Answer(problem=next((reason for is_so, reason in reasons if is_so), otherwise))
