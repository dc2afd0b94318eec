"""The process that asks the Hugging Face hub for files; ``hub`` starts it, and says what it is for."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from datafetch.datasets.sources.hub import Answer, Request

if TYPE_CHECKING:
    from types import ModuleType

_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY = 401, 403, 429


def main() -> None:
    """Answer the request on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # handled by the parent, even if sent to all of its processes
        signal.signal(number, signal.SIG_IGN)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(request)))


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
    return Answer(names=[entry.path for entry in entries if isinstance(entry, hub.hf_api.RepoFile)])


def _download(hub: ModuleType, request: Request) -> Answer:
    folders = set()
    for name in request.names:
        path = Path(
            hub.hf_hub_download(
                request.repository,
                name,
                repo_type="dataset",
                revision=request.revision,
                library_name="datafetch",
            )
        )
        folders.add(path.parents[name.count("/")])
    (folder,) = folders  # of one revision, all are in one
    return Answer(folder=os.fspath(folder))


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
            status == _TOO_MANY,
            "the hub wants fewer requests; run the same command again later, or set HF_TOKEN",
        ),
    )
    otherwise = (
        f"the hub can't be read now ({text[0] if text else type(error).__name__}); run the same command again later"
    )
    return Answer(problem=next((reason for is_so, reason in reasons if is_so), otherwise))
