"""A server of one file that serves ranges, as archives' hosts do, or fails to in one of the ways that they have.

It runs on an event loop in a thread of its own, and records every request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the server does differently.

    Attributes:
        serves_ranges: Whether it does; otherwise it answers every request with the whole file.
        max_range_bytes: It sends no more than this of a range.
        redirects: It redirects to signed URLs, each of which is good for this many requests; 0 for no redirects.
        cuts_after_bytes: It closes each connection after so many bytes of a body; 0 never does.
        bytes_per_s: How fast each connection is; 0 is as fast as it can.
        authorization: The value that it requires of the header of that name; empty for no login.
        etag: The file's entity tag; empty sends none.
        status: It answers everything with this status, if it is not 0.
        fails_first: It answers the first request of every range with HTTP 503.
    """

    serves_ranges: bool = True
    max_range_bytes: int = 1 << 62
    redirects: int = 0
    cuts_after_bytes: int = 0
    bytes_per_s: int = 0
    authorization: str = ""
    etag: str = '"first"'
    status: int = 0
    fails_first: bool = False


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request for a part of the file.

    Attributes:
        start: Offset of the first byte that it asks for.
        stop: Offset behind the last one.
        headers: Its header fields, their names in lower case.
        path: What it asks for, with its query.
    """

    start: int
    stop: int
    headers: dict[str, str] = field(hash=False)
    path: str = ""


class ArchiveServer:
    """Serves a file: ``with ArchiveServer(path) as server: … server.url``.

    Attributes:
        behaviour: What it does differently; may be replaced at any time.
        path: The file; may be replaced at any time.
        requests: All requests for parts of the file, in order.
        redirected: The number of requests that were answered with a redirect.
    """

    def __init__(self, path: Path, behaviour: Behaviour | None = None) -> None:
        self.path = path
        self.behaviour = behaviour or Behaviour()
        self.requests: list[SeenRequest] = []
        self.redirected = 0
        self.on_request: Callable[[SeenRequest], None] = lambda _: None
        self._uses: dict[str, int] = {}
        self._failed: set[tuple[int, int]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """The URL of the file."""
        return f"http://127.0.0.1:{self._port}/sets/{self.path.name}"

    @property
    def folder_url(self) -> str:
        """The URL of its folder."""
        return f"http://127.0.0.1:{self._port}/sets/"

    @property
    def asked_bytes(self) -> int:
        """How many bytes of the file were asked for."""
        size = self.path.stat().st_size
        return sum(min(one.stop, size) - one.start for one in self.requests)

    def change(self, **changes: object) -> None:
        """Change what it does differently."""
        self.behaviour = replace(self.behaviour, **changes)  # type: ignore[arg-type]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        conversations = asyncio.all_tasks() - {asyncio.current_task()}
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # no client reads it any more
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            is_open = True
            while is_open:
                request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                fields = (line.partition(": ") for line in lines)
                headers = {name.lower(): value for name, _, value in fields}
                is_open = await self._answer(request_line.split(" ")[1], headers, writer)
        writer.close()

    async def _answer(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection stays open."""
        does = self.behaviour
        is_signed = path.startswith("/signed/")
        if does.authorization and not is_signed and headers.get("authorization") != does.authorization:
            return await _send(writer, "401 Unauthorized")
        if does.status:
            return await _send(writer, f"{does.status} Status")
        if does.redirects and not is_signed:
            self.redirected += 1
            signed = f"/signed/{self.redirected}/{Path(path).name}?signature=secret{self.redirected}"
            self._uses[signed] = does.redirects
            return await _send(writer, "302 Found", f"Location: {signed}")
        if is_signed:
            if not self._uses.get(path):
                return await _send(writer, "403 Forbidden")
            self._uses[path] -= 1
        return await self._send_file(path, headers, writer)

    async def _send_file(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        does = self.behaviour
        file = self.path.parent / Path(path.partition("?")[0]).name.replace("%20", " ")
        if not file.is_file():
            return await _send(writer, "404 Not Found")
        size = file.stat().st_size
        etag = [f"ETag: {does.etag}"] if does.etag else []
        is_same = headers.get("if-range", does.etag) == does.etag
        if not does.serves_ranges or not is_same or "range" not in headers:
            return await self._send_bytes(writer, "200 OK", file, 0, size, etag)
        first, _, last = headers["range"].removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, size)
        seen = SeenRequest(start, int(last) + 1, headers, path)
        self.requests.append(seen)
        self.on_request(seen)
        if does.fails_first and (start, stop) not in self._failed:
            self._failed.add((start, stop))
            return await _send(writer, "503 Service Unavailable")
        if start >= size:
            return await _send(writer, "416 Range Not Satisfiable", f"Content-Range: bytes */{size}")
        stop = min(stop, start + does.max_range_bytes)
        content_range = f"Content-Range: bytes {start}-{stop - 1}/{size}"
        return await self._send_bytes(writer, "206 Partial Content", file, start, stop, [content_range, *etag])

    async def _send_bytes(
        self, writer: asyncio.StreamWriter, status: str, file: Path, start: int, stop: int, fields: list[str]
    ) -> bool:
        does = self.behaviour
        lines = "".join(f"{one}\r\n" for one in (f"Content-Length: {stop - start}", *fields))
        writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())
        sent = 0
        with file.open("rb") as content:
            content.seek(start)
            while sent < stop - start:
                piece = content.read(min(65_536, does.bytes_per_s or 65_536, stop - start - sent))
                if does.cuts_after_bytes and sent + len(piece) >= does.cuts_after_bytes:
                    writer.write(piece[: does.cuts_after_bytes - sent])
                    await writer.drain()
                    return False
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                if does.bytes_per_s:
                    await asyncio.sleep(len(piece) / does.bytes_per_s)
        return True


async def _send(writer: asyncio.StreamWriter, status: str, *fields: str) -> bool:
    lines = "".join(f"{one}\r\n" for one in ("Content-Length: 0", *fields))
    writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())
    await writer.drain()
    return True
