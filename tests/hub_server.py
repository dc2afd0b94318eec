"""A server that speaks as much of the Hugging Face hub's protocol as downloads need.

Small files come from the hub itself, large ones, as with Git LFS, from another place to which a signed URL leads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from itertools import count
from urllib.parse import unquote

import pytest
from http_server import HttpServer

_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_TREE = re.compile(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?")
_STORED = re.compile(r"/stored/([^/]+/[^/]+)/(.+)")
_LARGE_BYTES = 2000
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@lru_cache(16)
def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class HubServer(HttpServer):
    """The hub as a context: ``with HubServer({"owner/name": {"a.json": b"…"}}) as hub: …``.

    Attributes:
        repositories: The files of each repository, by path.
        statuses: The status, and the hub's name for the error, with which it refuses a repository.
        tokens: The token that a repository needs.
        prefix: What stands before all paths, as on a mirror.
        authorizations: The logins that requests had.
        requests: What it was asked for, in order: method, path, and range.
        spans: The ranges of files' contents that it was asked for, in order: path, start, and stop.
        serves_ranges: Whether it does; otherwise it sends whole files.
        sends_etags: Whether it does.
        damaged: The files of which it sends something else than what it has.
        file_status: The status with which it answers requests for files; 0 for their content.
        failing: The number of next requests for files that it answers with 500.
        claimed_bytes: The size that it claims of files; 0 for their own.
        cuts_after_bytes: It closes each connection after so many bytes of a range; 0 never does.
        signed_uses: How often each signed URL may be used; 0 for always.
        on_span: Called with each range before it is sent.
    """

    repositories: Mapping[str, Mapping[str, bytes]]
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    authorizations: list[str] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    serves_ranges: bool = True
    sends_etags: bool = True
    damaged: frozenset[str] = frozenset()
    file_status: int = 0
    failing: int = 0
    claimed_bytes: int = 0
    cuts_after_bytes: int = 0
    signed_uses: int = 0
    on_span: Callable[[str, int, int], None] = lambda *_: None
    _signatures: Iterator[int] = field(default_factory=count)
    _uses: Counter[str] = field(default_factory=Counter)

    @property
    def endpoint(self) -> str:
        """The URL of the hub."""
        return self.url

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: object) -> None:
        """Let programs that this test starts use it, and this folder as their cache."""
        for name, value in (("HF_ENDPOINT", self.endpoint), ("HF_HOME", cache), ("HF_HUB_DISABLE_XET", "1")):
            monkeypatch.setenv(name, str(value))
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

    def contents(self) -> list[str]:
        """The files whose content was asked for, in order."""
        found = (
            _FILE.fullmatch(path) or _STORED.fullmatch(path) for method, path, _ in self.requests if method == "GET"
        )
        return [match.groups()[-1] for match in found if match]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path, _, query = unquote(handler.path).partition("?")
        path = path.removeprefix(self.prefix)
        self.authorizations += filter(None, [handler.headers.get("Authorization")])
        self.requests.append((handler.command, path, handler.headers.get("Range", "")))
        match = _FILE.fullmatch(path) or _TREE.fullmatch(path) or _STORED.fullmatch(path)
        repository = "" if match is None else match[1]
        token = self.tokens.get(repository)
        if repository in self.statuses:
            status, name = self.statuses[repository]
            self._send(handler, status, b"", {"X-Error-Code": name})
        elif match is None or repository not in self.repositories:
            self._send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif token and not path.startswith("/stored/") and handler.headers.get("Authorization") != f"Bearer {token}":
            self._send(handler, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self._send(handler, 200, self._tree(repository), {"Content-Type": "application/json"})
        elif self.failing:
            self.failing -= 1
            self._send(handler, 500, b"", {})
        elif self.file_status:
            self._send(handler, self.file_status, b"", {})
        elif path.startswith("/stored/") and self._is_expired(query):
            self._send(handler, 403, b"", {})
        else:
            self._send_file(handler, path, self.repositories[repository].get(match.groups()[-1]))

    def _is_expired(self, query: str) -> bool:
        self._uses[query] += 1
        return 0 < self.signed_uses < self._uses[query]

    def _tree(self, repository: str) -> bytes:
        files = self.repositories[repository].items()
        entries = [{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in files]
        return json.dumps(entries).encode()

    def _send_file(self, handler: BaseHTTPRequestHandler, path: str, content: bytes | None) -> None:
        if content is None:
            self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{_hash(content)}"' if self.sends_etags else ""
        if len(content) >= _LARGE_BYTES and not path.startswith("/stored/"):
            match = _FILE.fullmatch(path)
            assert match is not None, "a file"
            stored = f"{self.endpoint}/stored/{match[1]}/{match[3]}".replace(" ", "%20")
            location = f"{stored}?signature=secret{next(self._signatures)}"
            linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            self._send(handler, 302, b"", {"Location": location, "X-Repo-Commit": _COMMIT, **linked})
            return
        if path.rpartition("/")[2] in self.damaged:
            content = content[:-1] + b"?"
        fields = {**({"ETag": etag} if etag else {}), "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if span is None or not self.serves_ranges:
            self._send(handler, 200, content, fields)
            return
        start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
        name = path.rpartition("/")[2]
        self.spans.append((name, start, stop))
        self.on_span(name, start, stop)
        fields["Content-Range"] = f"bytes {start}-{stop - 1}/{self.claimed_bytes or len(content)}"
        self._send(handler, 206, content[start:stop], fields)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, content: bytes, fields: Mapping[str, str]) -> None:
        handler.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            is_cut = status == 206 and 0 < self.cuts_after_bytes < len(content)
            handler.wfile.write(content[: self.cuts_after_bytes] if is_cut else content)
            handler.close_connection = handler.close_connection or is_cut
