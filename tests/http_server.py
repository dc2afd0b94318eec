"""The part that test servers share which speak HTTP in threads: a server on loopback, as a context."""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class HttpServer:
    """A server as a context; a subclass answers its requests."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:  # noqa: ARG002 - for subclasses
        """Answer a GET or HEAD request."""
        raise AssertionError("a subclass answers")

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each body would wait 40 ms for the acknowledgement of its head

            def do_GET(self) -> None:
                with suppress(ConnectionError):  # of a client that was stopped, or wanted something else
                    server.answer(self)

            def do_HEAD(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The URL of its root, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"
