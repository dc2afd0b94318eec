"""Published files as their places serve them: by ranges, and with the lists of files that the hub and GitLab give.

The files of a host are in a folder of its name. Where a place has revisions (the Hugging Face hub, GitLab, GitHub), the
files lie as they are in a working copy, and every revision is this one.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

import orjson

from datafetch.demo.behaviours import Exchange

STORE_ADDRESS = "127.0.0.2"
"""Where the hub stores large files. It is another host, since the hub's library looks no further than its own hosts."""

_HUB, _HUB_STORE = "huggingface.co", "cdn-lfs.huggingface.co"
_HUB_TREE = re.compile(r"huggingface\.co/api/(datasets/[^/]+/[^/]+)/tree/[^/]+/?")
_HUB_FILE = re.compile(r"huggingface\.co/(datasets/[^/]+/[^/]+)/resolve/[^/]+/(.+)")
_GITLAB_TREE = re.compile(r"(gitlab[^/]*)/api/v4/projects/(.+)/repository/tree")
_GITLAB_FILE = re.compile(r"(gitlab[^/]*/.+)/-/raw/[^/]+/(.+)")
_GITHUB_FILE = re.compile(r"(raw\.githubusercontent\.com/[^/]+/[^/]+)/[^/]+/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_STORED_APART = (".parquet", ".zip")  # as the hub's large files are, to which it redirects
_BEGINNING_BYTES = 1024
_END_BYTES = 1 << 16  # has a footer, whose size a client does not know before
_JSON = "Content-Type: application/json"


class PublishedFiles:
    """The published files of all hosts.

    Args:
        folder: A folder for each host.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = lru_cache(maxsize=64)(Path.read_bytes)

    def answer(self, exchange: Exchange, prefix: str) -> bool:
        """Answer a request for a file or a list of files.

        Args:
            exchange: The request, whose path is ``<prefix>/<host>/<path>``.
            prefix: What redirects are to begin with, too.

        Returns:
            Whether it asked for the content of a file. Lists, headers, the first bytes of a file, and its
            end, where a directory or footer is, are what a client looks at to know whether it has the content already.
        """
        place = unquote(exchange.request.path.removeprefix(f"{prefix}/"))
        if match := _HUB_TREE.fullmatch(place):
            self._list_hub(exchange, self._folder / _HUB / match[1])
            return False
        if match := _GITLAB_TREE.fullmatch(place):
            self._list_gitlab(exchange, self._folder / match[1] / match[2])
            return False
        fields: list[str] = []
        if place.startswith(f"{_HUB_STORE}/"):
            place = _HUB + place.removeprefix(_HUB_STORE)
        elif match := _HUB_FILE.fullmatch(place):
            if match[2].endswith(_STORED_APART):
                self._redirect(exchange, prefix, f"{match[1]}/{match[2]}")
                return False
            place, fields = f"{_HUB}/{match[1]}/{match[2]}", [f"X-Repo-Commit: {_COMMIT}"]
        elif match := _GITLAB_FILE.fullmatch(place) or _GITHUB_FILE.fullmatch(place):
            place = f"{match[1]}/{match[2]}"
        return self._send(exchange, place, fields)

    def _list_hub(self, exchange: Exchange, repository: Path) -> None:
        files = [
            {"type": "file", "path": path, "size": (repository / path).stat().st_size, "oid": "0" * 40}
            for path in _files(repository)
        ]
        exchange.send_ok(orjson.dumps(files), _JSON)

    def _list_gitlab(self, exchange: Exchange, project: Path) -> None:
        query = parse_qs(exchange.request.target.partition("?")[2])
        page, per_page = (int(query.get(name, [default])[0]) for name, default in (("page", "1"), ("per_page", "20")))
        paths = _files(project)
        files = [
            {"type": "blob", "path": path, "name": path.rpartition("/")[2], "id": _blob_id(project / path)}
            for path in paths[(page - 1) * per_page : page * per_page]
        ]
        following = page + 1 if page * per_page < len(paths) else ""
        exchange.send_ok(orjson.dumps(files), _JSON, f"X-Next-Page: {following}")

    def _redirect(self, exchange: Exchange, prefix: str, file: str) -> None:
        """Redirect to where the hub stores a large file, with what it says of it."""
        content = self._content(f"{_HUB}/{file}")
        if content is None:
            exchange.send_head(HTTPStatus.NOT_FOUND, 0, "X-Error-Code: EntryNotFound")
            return
        exchange.send_head(
            HTTPStatus.FOUND,
            0,
            f"Location: http://{STORE_ADDRESS}:{exchange.ports['http']}{prefix}/{_HUB_STORE}/{quote(file)}?signature=0",
            f"X-Repo-Commit: {_COMMIT}",
            f"X-Linked-Etag: {_etag(content)}",
            f"X-Linked-Size: {len(content)}",
        )

    def _send(self, exchange: Exchange, place: str, fields: list[str]) -> bool:
        """Send a file, or a range of it, or its headers alone; return whether its content was asked for."""
        request = exchange.request
        content = self._content(place)
        if content is None:
            exchange.send_head(HTTPStatus.NOT_FOUND, 0, "X-Error-Code: EntryNotFound")
            return request.method == "GET"
        etag = _etag(content)
        fields = [*fields, f"ETag: {etag}", "Accept-Ranges: bytes"]
        span = _RANGE.fullmatch(request.header("range") or "")
        if span is None or request.header("if-range") not in (None, etag):
            start, stop, status = 0, len(content), HTTPStatus.OK
        else:
            start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
            status = HTTPStatus.PARTIAL_CONTENT
            if start >= len(content):
                exchange.send_head(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, f"Content-Range: bytes */{len(content)}"
                )
                return True
            fields.append(f"Content-Range: bytes {start}-{stop - 1}/{len(content)}")
        exchange.send_head(status, stop - start, *fields)
        if request.method == "HEAD":
            return False
        exchange.send(content[start:stop])
        is_beginning = stop <= _BEGINNING_BYTES and stop < len(content)
        is_end = start > 0 and stop == len(content) and stop - start <= _END_BYTES
        return not (is_beginning or is_end)

    def _content(self, place: str) -> bytes | None:
        """The content of a file; None if there is none."""
        path = self._folder / place
        return self._read(path) if ".." not in place.split("/") and path.is_file() else None


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _blob_id(path: Path) -> str:
    """The id that Git gives to the content of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'
