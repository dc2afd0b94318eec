"""An image server on loopback that misbehaves on request, for the demo, the tests and the benchmarks.

Rules: it runs in a process of its own, on free ports. It serves every address of 127.0.0.0/8, each of which is a host
of its own to a client, and no other address. It ends when its parent does. The path of a request determines what it
does: ``/<behaviour>/<picture>``, with the behaviours of ``BEHAVIOURS``. ``/requests`` returns a JSON object of path →
number of requests, and ``/lost`` one of path → number of responses whose client disconnected before their end.

It also stands in for the places where datasets are published: ``/published/<host>/<path>`` is what that host has under
that path. ``/contents`` returns how often the content of each picture and published file was requested.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

import orjson

from datafetch.demo.behaviours import BEHAVIOURS, Exchange, Request
from datafetch.demo.published_files import PublishedFiles
from datafetch.process.child import child_command

_BACKLOG = 4096  # a thousand clients may connect at the same moment
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - Linux can't bind 127.0.0.0/8 alone; connections to others are dropped
_LOOPBACK_PREFIX = "127."
_PLAIN = "http"
_PUBLISHED = "/published"


class Origin:
    """The server as a process: ``with Origin(folder) as origin: origin.url("well", "00001.jpg")``.

    Args:
        pictures: The folder of the pictures.
        certificates: Name of a TLS listener → PEM file with the private key and the certificate chain. Redirects from
            http lead to the listener that is named ``https``.
        published: The folder of published files, by host; they are read when they are requested. None for none.
    """

    def __init__(
        self, pictures: Path, certificates: Mapping[str, Path] | None = None, *, published: Path | None = None
    ) -> None:
        self._pictures = pictures
        self._published = published
        self._certificates = certificates or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        listeners = [f"{name}={path}" for name, path in self._certificates.items()]
        folders = [str(self._pictures), str(self._published or os.devnull)]
        # Its standard input stays open as long as this process lives; the server exits when it ends.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*child_command("datafetch.demo.origin"), *folders, *listeners],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None, "it is a pipe"
        self._ports = orjson.loads(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def url(
        self, behaviour: str, picture: str, query: object = "", *, host: str = "127.0.0.1", listener: str = _PLAIN
    ) -> str:
        """Return the URL of a picture with a behaviour.

        Args:
            behaviour: One of ``BEHAVIOURS``.
            picture: The name of a file in the folder.
            query: Makes the URL different, so that it is another image to the client.
            host: Any address of 127.0.0.0/8, or a name that resolves to one.
            listener: ``http``, or the name of a TLS listener.
        """
        scheme = _PLAIN if listener == _PLAIN else "https"
        path = f"/{behaviour}/{picture}" + (f"?{query}" if query != "" else "")
        return f"{scheme}://{host}:{self._ports[listener]}{path}"

    @property
    def mirror(self) -> str:
        """The URL under which published files are, by host."""
        return f"http://127.0.0.1:{self._ports[_PLAIN]}{_PUBLISHED}"

    def requests(self) -> dict[str, int]:
        """Return how often each path, including its query, was requested."""
        return self._counts("requests")

    def lost(self) -> dict[str, int]:
        """Return how often the client disconnected before the end of the response, for each path with its query."""
        return self._counts("lost")

    def contents(self) -> dict[str, int]:
        """Return how often the content of each picture and published file was requested, by path without query."""
        return self._counts("contents")

    def _counts(self, name: str) -> dict[str, int]:
        with urlopen(f"http://127.0.0.1:{self._ports[_PLAIN]}/{name}") as response:
            counts: dict[str, int] = orjson.loads(response.read())
        return counts


class _Connection(asyncio.StreamReaderProtocol):
    """A connection that reports when its client disconnects, even while a response is being sent."""

    def __init__(
        self,
        accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], asyncio.Task[None] | None],
        on_disconnect: Callable[[asyncio.Task[None]], None],
    ) -> None:
        super().__init__(asyncio.StreamReader(), self._begin)
        self._accept = accept
        self._on_disconnect = on_disconnect
        self._serving: asyncio.Task[None] | None = None

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving = self._accept(reader, writer)

    def eof_received(self) -> bool:
        super().eof_received()
        self._end()
        return False  # closes the transport: a client that disconnects gets no response

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._end()

    def _end(self) -> None:
        if self._serving is not None:
            self._on_disconnect(self._serving)
            self._serving = None


class _Server:
    def __init__(self, pictures: Path, published: Path) -> None:
        self._ports: dict[str, int] = {}
        self._counts: dict[str, Counter[str]] = {"/requests": Counter(), "/lost": Counter(), "/contents": Counter()}
        self._published = PublishedFiles(published)
        self._exchanges: dict[asyncio.Task[None], Exchange] = {}
        self._read = lru_cache(maxsize=4096)(lambda name: (pictures / name).read_bytes())

    async def serve(self, certificates: Mapping[str, str]) -> None:
        """Serve until standard input ends."""
        await self._listen(_PLAIN, None)
        for name, path in certificates.items():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            await self._listen(name, context)
        with suppress(BrokenPipeError):  # the parent is gone already
            os.write(sys.stdout.fileno(), orjson.dumps(self._ports) + b"\n")
        while await asyncio.to_thread(os.read, 0, 1):
            pass
        os._exit(0)  # without waiting for open connections

    async def _listen(self, name: str, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(self._accept, self._on_disconnect), _EVERY_ADDRESS, 0, ssl=context, backlog=_BACKLOG
        )
        self._ports[name] = server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None] | None:
        if not writer.get_extra_info("sockname")[0].startswith(_LOOPBACK_PREFIX):
            writer.transport.abort()
            return None
        # A response counts as sent when the kernel has all of it, and not when asyncio's buffer has.
        # The limit is not 0, because asyncio's TLS transport would then never resume writing.
        writer.transport.set_write_buffer_limits(high=1, low=0)
        return asyncio.get_running_loop().create_task(self._serve_connection(reader, writer))

    def _on_disconnect(self, task: asyncio.Task[None]) -> None:
        exchange = self._exchanges.get(task)
        if exchange is None:
            return
        if not exchange.is_closed:
            self._counts["/lost"][exchange.request.target] += 1
        task.cancel()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "every coroutine runs in one"
        number = 0
        try:
            while not writer.is_closing():
                number += 1
                request = Request(await reader.readuntil(b"\r\n\r\n"), number=number)
                exchange = self._exchanges[task] = Exchange(self._counted(request), self._ports, writer)
                await self._respond(exchange)
                await exchange.drain()
                del self._exchanges[task]
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has disconnected, or does not speak HTTP
        finally:
            self._exchanges.pop(task, None)
            writer.close()

    def _counted(self, request: Request) -> Request:
        if request.target in self._counts:
            return request
        counts = self._counts["/requests"]
        counts[request.target] += 1
        return replace(request, times_requested=counts[request.target])

    async def _respond(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.target in self._counts:
            exchange.send_ok(orjson.dumps(self._counts[request.target]), "Content-Type: application/json")
            return
        if request.path.startswith(f"{_PUBLISHED}/"):
            if self._published.answer(exchange, _PUBLISHED):
                self._counts["/contents"][request.path] += 1
            return
        self._counts["/contents"][request.path] += 1
        behaviour = BEHAVIOURS.get(request.parts[0])
        try:
            exchange.picture = self._read(request.parts[-1])
        except OSError:
            behaviour = None
        if behaviour is None:
            exchange.send_head(HTTPStatus.NOT_FOUND, 0)
            return
        await behaviour.answer(exchange)


def main() -> None:
    """Serve the folders of pictures and of published files, with TLS listeners given as NAME=PEM behind them."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent handles them, even if the whole group receives them
        signal.signal(number, signal.SIG_IGN)
    pictures, published, *listeners = sys.argv[1:]
    server = _Server(Path(pictures), Path(published))
    asyncio.run(server.serve(dict(listener.split("=", 1) for listener in listeners)))
