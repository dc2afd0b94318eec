"""A server that speaks as much of S3's protocol as listing a bucket and reading its objects need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from http_server import HttpServer

_WRITTEN = "2026-01-01T00:00:00.000Z"


@dataclass
class S3Server(HttpServer):
    """An object store as a context: ``with S3Server({"bucket/a.jsonl": b"…"}) as store: …``.

    Attributes:
        objects: The content of each object, by its path, bucket included.
        status: The status with which it refuses every request; 0 answers them.
        reads: The paths of the objects that were read, in order.
    """

    objects: Mapping[str, bytes]
    status: int = 0
    reads: list[str] = field(default_factory=list)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process use it as S3."""
        for name, value in (
            ("AWS_ENDPOINT_URL", self.url),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(name, value)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        parts = urlsplit(handler.path)
        path, query = unquote(parts.path).strip("/"), parse_qs(parts.query)
        if self.status:
            self._send(handler, self.status, b"<Error><Code>AccessDenied</Code></Error>")
        elif "list-type" in query:
            self._send(handler, 200, self._list(path, query.get("prefix", [""])[0]))
        elif path in self.objects:
            self._send_object(handler, path)
        else:
            self._send(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, bucket: str, prefix: str) -> bytes:
        found = [
            f"<Contents><Key>{escape(path.removeprefix(bucket + '/'))}</Key><Size>{len(content)}</Size>"
            f"<LastModified>{_WRITTEN}</LastModified></Contents>"
            for path, content in sorted(self.objects.items())
            if path.startswith(f"{bucket}/{prefix}")
        ]
        head = f"<Name>{bucket}</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{''.join(found)}</ListBucketResult>".encode()

    def _send_object(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        content = self.objects[path]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if handler.command == "GET":
            self.reads.append(path)
        if span is None:
            self._send(handler, 200, content)
            return
        start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
        content_range = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._send(handler, 206, content[start:stop], content_range)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, content: bytes, fields: Mapping[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "ETag": '"etag"',
            **(fields or {}),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)
