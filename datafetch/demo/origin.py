"""An image server on loopback that misbehaves on request: the demo's, the tests' and the benchmarks' origin.

Rules: it runs in a process of its own, on free ports of every address of 127.0.0.0/8 (each of them a host to a client)
and of no other, and ends when whoever started it does. What it does with a request stands in the path:
``/<behaviour>/<picture>``, with the behaviours of ``BEHAVIOURS``. ``/requests`` answers with a JSON object of path →
number of requests, ``/lost`` with one of path → number of answers that lost their client.
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
from datafetch.process.child import child_command

_BACKLOG = 4096  # a thousand clients may connect in the same instant
_EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - Linux binds no block of addresses; connections to others are dropped
_OUR_ADDRESSES = "127."
_PLAIN = "http"


class Origin:
    """The server as a process: ``with Origin(folder) as origin: origin.url("well", "00001.jpg")``.

    Args:
        pictures: The folder with the pictures.
        certificates: TLS listener → PEM file with the private key and the certificate chain; the name ``https`` is
            the one that redirects from http lead to.
    """

    def __init__(self, pictures: Path, certificates: Mapping[str, Path] | None = None) -> None:
        self._pictures = pictures
        self._certificates = certificates or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        listeners = [f"{name}={path}" for name, path in self._certificates.items()]
        # Its standard input stays open as long as we live: the end of it ends the server.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*child_command("datafetch.demo.origin"), str(self._pictures), *listeners],
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
        """The URL of a picture under a behaviour.

        Args:
            behaviour: One of ``BEHAVIOURS``.
            picture: Name of a file in the folder.
            query: Another query is another image to the client.
            host: Any address of 127.0.0.0/8, or a name that leads to one.
            listener: ``http``, or the name of a certificate.
        """
        scheme = _PLAIN if listener == _PLAIN else "https"
        path = f"/{behaviour}/{picture}" + (f"?{query}" if query != "" else "")
        return f"{scheme}://{host}:{self._ports[listener]}{path}"

    def requests(self) -> dict[str, int]:
        """How often each path was asked for, query included."""
        return self._books("requests")

    def lost(self) -> dict[str, int]:
        """How often the client went away while the answer to a path, query included, was being given."""
        return self._books("lost")

    def _books(self, name: str) -> dict[str, int]:
        with urlopen(f"http://127.0.0.1:{self._ports[_PLAIN]}/{name}") as response:
            counts: dict[str, int] = orjson.loads(response.read())
        return counts


class _Connection(asyncio.StreamReaderProtocol):
    """A connection whose end is noticed while an answer is being given, too."""

    def __init__(
        self,
        meet: Callable[[asyncio.StreamReader, asyncio.StreamWriter], asyncio.Task[None] | None],
        lose: Callable[[asyncio.Task[None]], None],
    ) -> None:
        super().__init__(asyncio.StreamReader(), self._begin)
        self._meet = meet
        self._lose = lose
        self._conversation: asyncio.Task[None] | None = None

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._conversation = self._meet(reader, writer)

    def eof_received(self) -> bool:
        super().eof_received()
        self._end()
        return False  # whoever hangs up gets no answer, and the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._end()

    def _end(self) -> None:
        if self._conversation is not None:
            self._lose(self._conversation)
            self._conversation = None


class _Server:
    def __init__(self, pictures: Path) -> None:
        self._ports: dict[str, int] = {}
        self._books: dict[str, Counter[str]] = {"/requests": Counter(), "/lost": Counter()}
        self._answering: dict[asyncio.Task[None], Exchange] = {}
        self._read = lru_cache(maxsize=4096)(lambda name: (pictures / name).read_bytes())

    async def serve(self, certificates: Mapping[str, str]) -> None:
        """Serve until standard input ends."""
        await self._listen(_PLAIN, None)
        for name, path in certificates.items():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            await self._listen(name, context)
        with suppress(BrokenPipeError):  # whoever wanted it is gone already
            os.write(sys.stdout.fileno(), orjson.dumps(self._ports) + b"\n")
        while await asyncio.to_thread(os.read, 0, 1):
            pass
        os._exit(0)  # whatever connections are open

    async def _listen(self, name: str, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(self._meet, self._lose), _EVERY_ADDRESS, 0, ssl=context, backlog=_BACKLOG
        )
        self._ports[name] = server.sockets[0].getsockname()[1]

    def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None] | None:
        if not writer.get_extra_info("sockname")[0].startswith(_OUR_ADDRESSES):
            writer.transport.abort()
            return None
        # An answer is given when the kernel has all of it, not when a buffer of ours has.
        # (Not a limit of 0: asyncio's TLS transport then waits for an empty buffer to become emptier.)
        writer.transport.set_write_buffer_limits(high=1, low=0)
        return asyncio.get_running_loop().create_task(self._converse(reader, writer))

    def _lose(self, task: asyncio.Task[None]) -> None:
        exchange = self._answering.get(task)
        if exchange is None:
            return
        if not exchange.over:
            self._books["/lost"][exchange.request.target] += 1
        task.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "every coroutine runs in one"
        turn = 0
        try:
            while not writer.is_closing():
                turn += 1
                request = Request(await reader.readuntil(b"\r\n\r\n"), turn=turn)
                exchange = self._answering[task] = Exchange(self._counted(request), self._ports, writer)
                await self._answer(exchange)
                await exchange.drain()
                del self._answering[task]
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or speaks something else
        finally:
            self._answering.pop(task, None)
            writer.close()

    def _counted(self, request: Request) -> Request:
        if request.target in self._books:
            return request
        counts = self._books["/requests"]
        counts[request.target] += 1
        return replace(request, seen=counts[request.target])

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.target in self._books:
            exchange.whole(orjson.dumps(self._books[request.target]), "Content-Type: application/json")
            return
        behaviour = BEHAVIOURS.get(request.parts[0])
        try:
            exchange.picture = self._read(request.parts[-1])
        except OSError:
            behaviour = None
        if behaviour is None:
            exchange.head(HTTPStatus.NOT_FOUND, 0)
            return
        await behaviour.answer(exchange)


def main() -> None:
    """Serve the pictures of the folder that the command line names, and at the certificates it names after that."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent alone, also where all of its processes get them
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_Server(Path(sys.argv[1])).serve(dict(argument.split("=", 1) for argument in sys.argv[2:])))
