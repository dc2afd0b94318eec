"""A server of one folder in a process of its own, for archives and for the hub's files that are read by ranges.

Run as ``python -m benchmarks.archive_host FOLDER BYTES_PER_S``; it prints its port. 0 is as fast as it can.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

_PIECE_BYTES = 64 * 1024


class ArchiveHost:
    """The server as a context: ``with ArchiveHost(folder) as host: … host.url("a.zip")``.

    Args:
        folder: The folder.
        bytes_per_s: How fast each connection is; 0 is as fast as it can.
    """

    def __init__(self, folder: Path, bytes_per_s: int = 0) -> None:
        self._command = [sys.executable, "-m", "benchmarks.archive_host", str(folder), str(bytes_per_s)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None, "it is a pipe"
        self._port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def endpoint(self) -> str:
        """The URL under which it is the hub, on which each dataset has the files of the folder."""
        return f"http://127.0.0.1:{self._port}"

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.endpoint}/{name}"


async def _serve(folder: Path, bytes_per_s: int, sizes: Mapping[str, int]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        path = folder / request.match_info["name"]
        if not bytes_per_s:
            return web.FileResponse(path)  # which serves ranges
        size = path.stat().st_size
        start, stop, _ = request.http_range.indices(size)
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
        response = web.StreamResponse(status=206, headers=headers)
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        started_s, sent = loop.time(), 0
        with path.open("rb") as file:
            file.seek(start)
            while sent < stop - start:
                piece = file.read(min(_PIECE_BYTES, stop - start - sent))
                await response.write(piece)
                sent += len(piece)
                await asyncio.sleep(started_s + sent / bytes_per_s - loop.time())
        return response

    async def list_files(_: web.Request) -> web.Response:
        return web.json_response(
            [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
        )

    app = web.Application()
    app.router.add_get("/{name}", answer)
    app.router.add_get("/api/datasets/{owner}/{repository}/tree/{revision}", list_files)
    app.router.add_get("/datasets/{owner}/{repository}/resolve/{revision}/{name:.+}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    served = Path(sys.argv[1])
    found = {path.relative_to(served).as_posix(): path.stat().st_size for path in served.rglob("*.*")}
    asyncio.run(_serve(served, int(sys.argv[2]), found))
