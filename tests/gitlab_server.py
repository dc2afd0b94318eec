"""A server that speaks as much of GitLab's protocol as lists and downloads of a project need, below any prefix."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from http_server import HttpServer

_TREE = re.compile(r".*/api/v4/projects/([^/]+)/repository/tree")
_RAW = re.compile(r".*?/((?:[^/]+/)+?[^/]+)/-/raw/([^/]+)/(.+)")


@dataclass
class GitLabServer(HttpServer):
    """A server as a context: ``with GitLabServer({"group/project": {"a.jsonl": b"…"}}) as server: …``.

    Attributes:
        projects: The files of each project, by path.
        status: The status with which it refuses every request; 0 answers them.
        damaged: The files of which it sends something else.
        page: What it sends in place of each page of a list; None sends the page.
        requests: The paths that it was asked for, in order, with their queries.
    """

    projects: Mapping[str, Mapping[str, bytes]]
    status: int = 0
    page: bytes | None = None
    damaged: frozenset[str] = frozenset()
    requests: list[str] = field(default_factory=list)

    @property
    def contents(self) -> list[str]:
        """The paths of all files that it was asked for, in order."""
        return [unquote(match[3]) for path in self.requests if (match := _RAW.fullmatch(path))]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request; ranges are ignored, as GitLab does."""
        self.requests.append(handler.path)
        status, content = self._answer(handler.path)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("X-Robots-Tag", "noindex")  # as GitLab does, for search engines
        handler.end_headers()
        handler.wfile.write(content)

    def _answer(self, target: str) -> tuple[int, bytes]:
        """The status and the body for a path with its query."""
        parts = urlsplit(target)
        if self.status:
            return self.status, b"{}"
        if match := _TREE.fullmatch(parts.path):
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            return self._list(unquote(match[1]), int(query["page"]), int(query["per_page"]))
        match = _RAW.fullmatch(parts.path)
        files = self.projects.get(match[1].partition("/")[2]) if match else None
        content = (files or {}).get(unquote(match[3])) if match else None
        if content is not None and match is not None and unquote(match[3]) in self.damaged:
            content = content[:-1] + b"?"
        return (404, b"{}") if content is None else (200, content)

    def _list(self, project: str, number: int, per_page: int) -> tuple[int, bytes]:
        if self.page is not None:
            return 200, self.page
        if project not in self.projects:
            return 404, b'{"message":"404 Project Not Found"}'
        files = self.projects[project]
        folders = sorted({path.rpartition("/")[0] for path in files} - {""})
        entries = [{"id": "0" * 40, "name": path, "type": "tree", "path": path, "mode": "040000"} for path in folders]
        entries += [
            {
                "id": blob_id(content),
                "name": path.rpartition("/")[2],
                "type": "blob",
                "path": path,
                "mode": "100644",
            }
            for path, content in files.items()
        ]
        return 200, json.dumps(entries[(number - 1) * per_page : number * per_page]).encode()


def blob_id(content: bytes) -> str:
    """The id of a file with this content, as Git gives it."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
