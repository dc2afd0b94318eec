"""What a run waits for, as the fetcher knows it, and as a user sees it."""

import asyncio
import json
import re
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import LOOPBACK, until
from http_server import HttpServer
from rich.cells import cell_len
from terminal import OnTerminal

from datafetch.cli.app import main
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.hosts import Hosts
from datafetch.fetch.pauses import Pauses
from datafetch.fetch.waiting import find_waiting
from datafetch.model.statistics import Waiting
from datafetch.monitor.status import RunState, read_status
from datafetch.store.layout import OutputLayout

IMAGES = 20
_PAUSE_S = 50


class BusyServer(HttpServer):
    """A server that refuses everything, and asks to be left alone for a while."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Refuse a request."""
        handler.send_response(503)
        handler.send_header("Retry-After", str(_PAUSE_S))
        handler.send_header("Content-Length", "0")
        handler.end_headers()


async def cancel(tasks: list[asyncio.Task[object]]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_fetcher_knows_what_it_waits_for(origin: Origin, pictures: tuple[Path, list[str]]) -> None:
    """Of several hosts it names the one that most calls wait for, why, and when the next request goes there."""
    policy = FetchPolicy(allow_net=LOOPBACK, per_host=2, backoff_s=30.0, retries=1)
    with BusyServer() as busy:
        async with Fetcher(policy) as fetch:
            assert fetch.statistics().waiting is None
            refused = [f"{busy.url}/{number}" for number in range(IMAGES)]
            failing = [origin.url("status_500", pictures[1][0], "waiting")]
            tasks: list[asyncio.Task[object]] = [asyncio.create_task(fetch(url)) for url in [*refused, *failing]]

            def waiting() -> Waiting | None:
                return fetch.statistics().waiting

            await until(lambda: (now := waiting()) is not None and now.images == IMAGES + 1)
            await until(lambda: fetch.statistics().open_requests == 0)
            now = waiting()
            assert now is not None
            assert (now.images, now.host, now.host_images, now.reason) == (IMAGES + 1, "127.0.0.1", IMAGES, "HTTP 503")
            assert now.next_attempt_s is not None
            assert 0 < now.next_attempt_s <= _PAUSE_S * 1.2
            await cancel(tasks)
            assert waiting() is None


async def test_a_call_that_pauses_before_its_next_attempt_counts() -> None:
    """The pause that ends first says when there is a next attempt."""
    hosts, pauses = Hosts(8, 0.1), Pauses()
    pausing: list[asyncio.Task[object]] = [
        asyncio.create_task(pauses.pause(seconds, "[::1]:80", "timeout")) for seconds in (3000.0, 1000.0, 2000.0)
    ]
    await asyncio.sleep(0)
    now = find_waiting(hosts, pauses)
    assert now is not None
    assert replace(now, next_attempt_s=None) == Waiting(3, "[::1]", 3, "timeout")
    assert now.next_attempt_s is not None
    assert 0 < now.next_attempt_s < 1001
    await cancel(pausing)
    assert find_waiting(hosts, pauses) is None


async def test_requests_that_wait_for_others_at_their_host_count() -> None:
    """When the next one is sent is unknown then."""
    hosts, pauses = Hosts(1, 0.1), Pauses()
    async with hosts.slot("example.org:80", 0):
        second: asyncio.Task[object] = asyncio.create_task(hosts.slot("example.org:80", 1).__aenter__())
        await until(lambda: hosts.waiting == 1)
        assert find_waiting(hosts, pauses) == Waiting(1, "example.org", 1, "1 request at a time")
        await cancel([second])
    assert find_waiting(hosts, pauses) is None


@pytest.mark.rotating
def test_a_user_sees_what_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On a terminal of 80 columns, in the status and its JSON, and without a time left as long as nothing is sent."""
    with BusyServer() as busy:
        source = write_coyo_source(tmp_path / "source", [f"{busy.url}/{number}.jpg" for number in range(IMAGES)])
        command = [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--root", str(tmp_path / "root")),
            *("--source", str(source.folder), "--ids", str(source.ids), "--allow-net", "127.0.0.0/8"),
            *("--processes", "1"),
        ]
        waited = re.compile(r"20 images waiting for 127\.0\.0\.1 \(HTTP 503\); next attempt in ([0-9]+) s")
        with OnTerminal(command, 80) as run:
            shown = []
            for line in run.lines():
                shown.append(line)
                if waited.search(line):
                    break
            assert re.fullmatch(rf"0\.0%  0 ok  {waited.pattern}", shown[-1]), shown
            assert (
                max(cell_len(line) for line in shown if not line.startswith("datafetch: ")) <= 80
            )  # messages are whole
            layout = OutputLayout(tmp_path / "root" / "coyo-700m" / "pkl03-split")
            while read_status(layout.out).waiting is None:
                assert run.process.poll() is None
            assert main(["status", str(layout.out)]) == 0
            printed = " ".join(capfd.readouterr().out.split())
            assert waited.search(printed), printed
            assert "no request open" in printed
            assert "ETA" not in printed
            assert main(["status", str(layout.out), "--json"]) == 0
            summary = json.loads(capfd.readouterr().out)
            assert summary["waiting"]["host"] == "127.0.0.1"
            assert (summary["waiting"]["images"], summary["waiting"]["reason"]) == (IMAGES, "HTTP 503")
            assert 0 <= summary["waiting"]["next_attempt_s"] <= _PAUSE_S * 1.2
            assert summary["left_s"] is None
        assert read_status(layout.out).state is RunState.INTERRUPTED
