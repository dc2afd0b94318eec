"""A server that speaks S3's protocol, moto's, in a process of its own; and a proxy that disturbs what goes through it.

Everything stays on loopback. The server ends when its standard input is closed, which is when the tests' process ends.
"""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

BUCKET = "images"
_PATIENCE_S = 60.0
_UNCHECKED_SIGNATURE = (
    "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_SERVE = """
import sys
import threading
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3.responses import S3Response

one_at_a_time, put_object = threading.Lock(), S3Response.put_object

def put_alone(self):
    with one_at_a_time:  # between moto's look at the conditions and its put another one could come
        return put_object(self)

S3Response.put_object = put_alone
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_SLOW_DOWN = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
)


class ObjectStore:
    """The server as a context, with one bucket."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(_PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def read(self, key: str) -> bytes | None:
        """Return an object of the bucket, read past any proxy; None if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", f"/{BUCKET}/{key}", headers={"Authorization": _UNCHECKED_SIGNATURE})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status in {200, 404}, content
        return content if response.status == 200 else None


def login(url: str) -> dict[str, str]:
    """Return the environment in which a process uses a server as its object store."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }


def use(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Let this process use an object store."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


class Fault(Enum):
    """What becomes of a request."""

    NONE = auto()
    """It is passed on."""
    SLOW_DOWN = auto()
    """It is answered with 503, and not passed on."""
    TOO_MANY = auto()
    """It is answered with 429 and no code, and not passed on."""
    RESET = auto()
    """Its connection is reset before its body is read."""
    HALF = auto()
    """Its connection is reset in the middle of its body."""
    LOST = auto()
    """It is passed on, and its connection is reset in place of the response."""
    UNCONDITIONAL = auto()
    """It is passed on without its conditions, as by a store that does not know them."""
    UNDATED = auto()
    """It is passed on, and its response has no date, as that of a store without a clock."""


@dataclass
class FaultyProxy:
    """A proxy as a context, between a client and a store.

    Attributes:
        target: The port of the store.
        decide: Decides what becomes of a request, by its method and its path with the query. Called by several threads.
        faults: How many requests were disturbed, by fault.
        requests: The method and path of each request, in order.
    """

    target: int
    decide: Callable[[str, str], Fault] = lambda *_: Fault.NONE
    faults: dict[Fault, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                with suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def pass_on(self) -> None:
                proxy._handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 - names of the base class

            def log_message(self, *_: Any) -> None:
                pass

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        fault = self.decide(handler.command, handler.path)
        with self._lock:
            self.requests.append((handler.command, handler.path))
            if fault is not Fault.NONE:
                self.faults[fault] = self.faults.get(fault, 0) + 1
        size = int(handler.headers.get("Content-Length", 0))
        if fault is Fault.RESET:
            _reset(handler)
            return
        if fault is Fault.HALF:
            handler.rfile.read(size // 2)
            _reset(handler)
            return
        body = handler.rfile.read(size)
        if fault in {Fault.SLOW_DOWN, Fault.TOO_MANY}:
            answer = _SLOW_DOWN if fault is Fault.SLOW_DOWN else b""
            handler.send_response(503 if fault is Fault.SLOW_DOWN else 429)
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(answer)
            return
        self._pass_on(handler, body, fault)

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes, fault: Fault) -> None:
        left_out = {"expect", "connection"}
        if fault is Fault.UNCONDITIONAL:
            left_out |= {"if-match", "if-none-match"}
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in left_out}
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=_PATIENCE_S)
        try:
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if fault is Fault.LOST:
            _reset(handler)
            return
        handler.send_response_only(response.status)
        for name, value in response.getheaders():
            is_left_out = fault is Fault.UNDATED and name.lower() == "date"
            if not is_left_out and name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                handler.send_header(name, value)
        length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection, so that the client can't take its end for that of a response."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
    handler.connection.close()
