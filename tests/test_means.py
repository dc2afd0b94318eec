"""What this machine itself needs, a name server, a route, a proxy: failures for lack of it are told from the web's."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from itertools import count
from pathlib import Path

import pytest
from conftest import LOOPBACK, until
from nameserver import NO_DATA, REFUSED, ROOT_ZONE, SERVFAIL, SILENCE, Answer, NameServer, Type
from tenacity import wait_fixed

from datafetch.cli.app import main
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.errors import ResourceError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch.dns import nameservers
from datafetch.fetch.dns.address_guard import AddressGuard
from datafetch.fetch.dns.resolver import NameNotFoundError, NameServerError, Resolver
from datafetch.fetch.means import Means
from datafetch.model.outcome import Body, Failure, FailureKind
from datafetch.store.layout import OutputLayout

Pictures = tuple[Path, list[str]]
_HERE = Answer(("127.0.0.1",))
_GUARD = AddressGuard((ip_network("127.0.0.0/8"),))
_NO_SERVER = "127.0.0.1:9"  # nothing listens there
_RESUMABLE = "run the same command again (nothing written so far is lost)"


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as impatient as with a server that has never answered, and hardly wait between rounds and probes."""
    monkeypatch.setattr(nameservers, "_INITIAL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(nameservers, "_ROUND_S", 1.0)
    monkeypatch.setattr(nameservers, "_ROUND_PAUSE", wait_fixed(0.01))
    monkeypatch.setattr("datafetch.fetch.means._PATIENCE_AT_START_S", 0.5)
    monkeypatch.setattr("datafetch.fetch.means._PAUSE", wait_fixed(0.05))


class _Switch:
    """Something to probe that the test turns on and off."""

    def __init__(self) -> None:
        self.is_on = False
        self.probes = 0

    async def probe(self) -> bool:
        self.probes += 1
        return self.is_on


def _means(switch: _Switch, *, remembers: bool = True) -> Means:
    return Means(switch.probe, problem=lambda: "the switch is off", remedy="turn it on", remembers=remembers)


async def test_a_thousand_suspects_wait_for_one_probe(caplog: pytest.LogCaptureFixture) -> None:
    """While the means is missing, only the probe is repeated; when it is back, all are told to try again."""
    switch = _Switch()
    means = _means(switch)
    means.worked()
    means._worked_at_s -= 60  # so there are thirty seconds
    with caplog.at_level(logging.INFO):
        suspects = [asyncio.create_task(means.was_missing(time.monotonic())) for _ in range(1000)]
        await until(lambda: switch.probes > 3)
        switch.is_on = True
        assert set(await asyncio.gather(*suspects)) == {True}
    assert switch.probes < 100
    assert caplog.messages[0] == "the switch is off; trying again for 30 s"
    assert caplog.messages[1].startswith("that has passed, after ")
    assert len(caplog.messages) == 2


async def test_a_failure_stands_while_the_means_works() -> None:
    """A probe that succeeds at once says so, and for a moment no other is needed."""
    switch = _Switch()
    switch.is_on = True
    means = _means(switch)
    assert [await means.was_missing(time.monotonic()) for _ in range(3)] == [False] * 3
    assert switch.probes == 1
    forgetful = _means(switch, remembers=False)
    assert [await forgetful.was_missing(time.monotonic()) for _ in range(3)] == [False] * 3
    assert switch.probes == 4


async def test_a_failure_of_a_request_that_was_begun_while_it_was_missing_does_not_stand() -> None:
    """Although the means works now: its failure may come late."""
    switch = _Switch()
    means = _means(switch)
    began_s = time.monotonic()
    suspect = asyncio.create_task(means.was_missing(began_s))
    await until(lambda: switch.probes > 0)
    switch.is_on = True
    assert await suspect
    assert await means.was_missing(began_s)
    assert not await means.was_missing(time.monotonic())


async def test_a_means_that_stays_away_is_an_error() -> None:
    """It says what is wrong and what to do; later suspects have their own chance."""
    switch = _Switch()
    means = _means(switch)
    for _ in range(2):
        for error in await asyncio.gather(
            *(means.was_missing(time.monotonic()) for _ in range(9)), return_exceptions=True
        ):
            assert isinstance(error, ResourceError)
            assert str(error) == f"the switch is off; turn it on, and {_RESUMABLE}"
    switch.is_on = True
    assert not await means.was_missing(time.monotonic())


async def test_a_request_that_works_is_evidence_too() -> None:
    """Suspects need not wait for the probe to succeed."""
    switch = _Switch()
    means = _means(switch)
    suspect = asyncio.create_task(means.was_missing(time.monotonic()))
    await until(lambda: switch.probes > 1)
    means.worked()
    assert await suspect
    assert not switch.is_on


async def test_closing_ends_the_wait() -> None:
    """Failures that are being judged stand."""
    switch = _Switch()
    means = _means(switch)
    suspect = asyncio.create_task(means.was_missing(time.monotonic()))
    await until(lambda: switch.probes > 0)
    await means.close()
    assert not await suspect


@asynccontextmanager
async def _resolver(*servers: str) -> AsyncIterator[Resolver]:
    resolver = Resolver(_GUARD, servers)
    try:
        yield resolver
    finally:
        await resolver.close()


@pytest.mark.rotating
async def test_names_wait_while_no_server_answers() -> None:
    """All of them are found once the server is back, which has been asked by few probes in the meantime."""
    names = [f"{number}.example" for number in range(50)]
    with NameServer(otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            resolver.servers.worked()
            resolver.servers._worked_at_s -= 60  # so there are thirty seconds
            lookups = [asyncio.create_task(resolver.lookup(name)) for name in names]
            await until(lambda: server.query_count(ROOT_ZONE, Type.NS) > 1)
            server.script = {ROOT_ZONE: NO_DATA, **dict.fromkeys(names, _HERE)}
            await asyncio.gather(*lookups)
            statistics = resolver.statistics()
    assert (statistics.found, statistics.failed) == (len(names), 0)


@pytest.mark.rotating
async def test_a_zone_whose_servers_are_dead_is_the_webs_fault() -> None:
    """Also if nothing else is looked up: the server answers for the root zone. It is asked that once a second."""
    names = [f"{number}.example" for number in range(50)]
    with NameServer({ROOT_ZONE: NO_DATA}, otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            failed = await asyncio.gather(*map(resolver.lookup, names), return_exceptions=True)
        assert {type(one) for one in failed} <= {NameServerError, nameservers._NoAnswerError}
        assert resolver.statistics().failed == len(names)
        assert server.query_count(ROOT_ZONE, Type.NS) < len(names) / 2


@pytest.mark.rotating
async def test_a_name_that_does_not_exist_shows_that_there_are_servers() -> None:
    """A server may be so busy with such names that no probe gets through to it."""
    with NameServer({"silent.example": SILENCE, ROOT_ZONE: SILENCE}) as server:
        async with _resolver(server.address) as resolver:

            async def look_up_missing_names() -> None:
                for number in count():
                    with suppress(NameNotFoundError):
                        await resolver.lookup(f"{number}.example")

            missing = asyncio.create_task(look_up_missing_names())
            with pytest.raises(NameServerError):
                await resolver.lookup("silent.example")
            missing.cancel()
        assert not server.query_count(ROOT_ZONE, Type.NS)


@pytest.mark.rotating
async def test_a_server_that_does_not_speak_of_the_root_zone_is_one() -> None:
    """Some ignore that question. They are asked for an address, too."""
    with NameServer({"a.root-servers.net": _HERE}, otherwise=SILENCE) as server:
        async with _resolver(server.address) as resolver:
            with pytest.raises(NameServerError):
                await resolver.lookup("cat.example")


async def test_one_of_two_servers_is_enough() -> None:
    """A dead zone is the web's fault also if the server that is asked first is dead."""
    with NameServer({ROOT_ZONE: NO_DATA}, otherwise=SERVFAIL) as alive:
        async with _resolver(_NO_SERVER, alive.address) as resolver:
            for number in range(4):
                with pytest.raises(NameServerError):
                    await resolver.lookup(f"{number}.example")


async def test_a_server_that_fails_for_lack_of_a_network_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver of this machine reports errors for all names, also for the root zone, while there is no route."""
    with NameServer(otherwise=SERVFAIL) as server:
        async with _resolver(server.address) as resolver:
            with pytest.raises(NameServerError):
                await resolver.lookup("cat.example")
            monkeypatch.setattr(nameservers, "has_public_route", lambda: False)
            resolver.servers._worked_at_s -= 60
            resolver._cache.clear()
            waiting = asyncio.create_task(resolver.lookup("cat.example"))
            before = server.query_count(ROOT_ZONE, Type.NS)
            await until(lambda: server.query_count(ROOT_ZONE, Type.NS) > before + 4)
            assert not waiting.done()
            server.script = {ROOT_ZONE: NO_DATA, "cat.example": _HERE}
            await waiting


@pytest.mark.rotating
async def test_the_fetcher_raises_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a failure of the URL; and the message names the server, and a proxy that is there and not used."""
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    async with Fetcher(FetchPolicy(nameservers=(_NO_SERVER,), allow_net=LOOPBACK)) as fetch:
        with pytest.raises(
            ResourceError,
            match=rf"^no name server answers \({_NO_SERVER}\); .*--nameserver, or use the proxy in HTTPS_PROXY",
        ):
            await fetch("http://cat.example/cat.jpg")
        assert fetch.statistics().outcomes == {}
        assert isinstance(await fetch("http://127.0.0.1:1/cat.jpg"), Failure)  # needs no name server


@pytest.mark.rotating
async def test_silent_hosts_are_suspect_once_the_name_servers_fall_silent() -> None:
    """Timeouts while name servers answer are the web's; while they don't, the request waits and is made again."""
    with NameServer({ROOT_ZONE: NO_DATA}, otherwise=_HERE) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        policy = FetchPolicy(nameservers=(server.address,), allow_net=LOOPBACK, timeout_s=1.2, retries=0)
        url = f"http://cat.example:{silent.getsockname()[1]}/cat.jpg"
        async with Fetcher(policy) as fetch:
            failure = await fetch(url)
            assert isinstance(failure, Failure)
            assert failure.kind is FailureKind.TIMEOUT
            server.script |= {ROOT_ZONE: SILENCE, "a.root-servers.net": SILENCE}
            waiting = asyncio.create_task(fetch(url))
            asked = server.query_count(ROOT_ZONE, Type.NS)
            await until(lambda: server.query_count(ROOT_ZONE, Type.NS) > asked + 4)
            server.script[ROOT_ZONE] = NO_DATA
            failure = await waiting
            assert isinstance(failure, Failure)
            assert (failure.kind, failure.attempts) == (FailureKind.TIMEOUT, 1)
            assert fetch.statistics().sent_requests == 3


class _Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer anything."""
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"by proxy")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def test_a_proxy_that_comes_back_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that the proxy refused are made again; while it is away, an error says which variable to look at."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{address[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with Fetcher(FetchPolicy(trust_env=True, retries=0, nameservers=(_NO_SERVER,))) as fetch:
            with pytest.raises(ResourceError, match=r"the proxy 127\.0\.0\.1:\d+ of .* can't be reached; .*HTTP_PROXY"):
                await fetch("http://images.invalid/cat.jpg")
            monkeypatch.setattr("datafetch.fetch.means._PATIENCE_AT_START_S", 30.0)
            caplog.clear()
            waiting = [asyncio.create_task(fetch(f"http://images.invalid/{number}.jpg")) for number in range(20)]
            await until(lambda: bool(caplog.messages))
            reserved.listen()
            with http.server.ThreadingHTTPServer(address, _Proxy, bind_and_activate=False) as server:
                server.socket.close()
                server.socket = reserved
                thread = threading.Thread(target=server.serve_forever)
                thread.start()
                arrived = await asyncio.gather(*waiting)
                server.shutdown()
                thread.join()
    assert all(isinstance(one, Body) for one in arrived)
    assert "secret" not in caplog.text


class _WantsLogin(_Proxy):
    """A proxy that lets nobody in; one whose path ends with ``forged`` gets that from a web server."""

    is_open = False
    heads: list[str]

    def do_GET(self) -> None:
        """Ask for a login, unless it is open."""
        type(self).heads.append(f"{self.requestline} {self.headers.get('Proxy-Authorization')}")
        if self.is_open and not self.path.endswith("forged"):
            super().do_GET()
            return
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="office"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815


@pytest.fixture
def login_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_WantsLogin]]:
    """A proxy that answers 407, and that the environment names for both schemes."""
    handler = type("_Handler", (_WantsLogin,), {"heads": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, f"http://me:secret@127.0.0.1:{server.server_address[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        yield handler
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_proxy_that_asks_for_a_login_stops_a_run(
    tmp_path: Path, login_proxy: type[_WantsLogin], capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the scheme of the URLs: exit 4 and a line that names the variables, and no image has an outcome."""
    for scheme in ("http", "https"):
        urls = [f"{scheme}://桜{number}.example/cat.jpg" for number in range(5)]
        source = write_coyo_source(tmp_path / scheme / "source", urls)
        assert main([*_command(tmp_path / scheme, source, _NO_SERVER), "--trust-env"]) == 4
        printed = capfd.readouterr()
        assert printed.out == ""
        assert re.fullmatch(
            r"datafetch: the proxy 127\.0\.0\.1:\d+ of the environment asks for a login, or refuses the one it has "
            rf"\(HTTP 407\); correct user and password in HTTP_PROXY, HTTPS_PROXY, or leave out --trust-env, and "
            rf"{re.escape(_RESUMABLE)}",
            printed.err.splitlines()[-1],
        )
        assert "secret" not in printed.err
        assert main(["status", str(tmp_path / scheme / "coyo-700m" / "pkl03-split"), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["images"]["done"] == 0
    assert all("Basic " in head for head in login_proxy.heads)


async def test_a_login_that_is_corrected_is_waited_for(
    login_proxy: type[_WantsLogin], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are made again. A web server that sends the same status stops nothing."""
    monkeypatch.setattr("datafetch.fetch.means._PATIENCE_AT_START_S", 30.0)
    async with Fetcher(FetchPolicy(trust_env=True, retries=0, nameservers=(_NO_SERVER,))) as fetch:
        waiting = [asyncio.create_task(fetch(f"http://images.invalid/{number}.jpg")) for number in range(20)]
        await until(lambda: any("datafetch.invalid" in head for head in login_proxy.heads))
        login_proxy.is_open = True
        assert {type(one) for one in await asyncio.gather(*waiting)} == {Body}
        forged = await fetch("http://images.invalid/forged")
    assert isinstance(forged, Failure)
    assert (forged.kind, forged.status) == (FailureKind.HTTP_STATUS, 407)


async def test_a_proxy_without_an_address_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found before anything is requested, and credentials are not shown."""
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.invalid:3128")
    with pytest.raises(ResourceError, match=r"^the proxy proxy\.invalid:3128 of the environment has no address \("):
        async with Fetcher(FetchPolicy(trust_env=True)):
            pass


_UNSHARE = ("unshare", "--user", "--map-root-user", "--net")
_WITHOUT_A_NETWORK = """
import asyncio
from datafetch.errors import ResourceError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.fetch import means

means._PATIENCE_AT_START_S = 0.5

async def main():
    async with Fetcher(FetchPolicy(retries=0)) as fetch:
        for host in ("93.184.215.14", "cat.example"):
            try:
                print(await fetch(f"http://{host}/cat.jpg"))
            except ResourceError as error:
                print(error)

asyncio.run(main())
"""


@pytest.mark.rotating
def test_a_machine_without_a_network_says_so() -> None:
    """Without any route an address that can't be reached is no failure of the web."""
    if subprocess.run([*_UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    child = subprocess.run(
        [*_UNSHARE, sys.executable, "-c", _WITHOUT_A_NETWORK], check=True, capture_output=True, text=True
    )
    by_address, by_name = child.stdout.splitlines()
    assert by_address == (
        f"this machine has no network: there is no route to any public address; connect it, and {_RESUMABLE}"
    )
    assert "and this machine has no route to any public address; check this machine's network" in by_name


@pytest.fixture
def source(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of twenty images, each on a host of its own name."""
    urls = [
        origin.url("well", name, tmp_path.name, host=f"桜{number}.example")
        for number, name in enumerate(small_pictures[1][:20])
    ]
    return write_coyo_source(tmp_path / "source", urls)


def _command(tmp_path: Path, source: CoyoSource, server: str) -> list[str]:
    words = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path)]
    options = ["--allow-net", "127.0.0.0/8", "--nameserver", server, "--processes", "1", "--no-reshard"]
    return [*words, *options]


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_without_a_name_server_stops_and_resumes(
    tmp_path: Path, source: CoyoSource, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 4 and a line that says what to do; no image has an outcome, and the next run fetches all of them."""
    assert main(_command(tmp_path, source, _NO_SERVER)) == 4
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        f"datafetch: no name server answers ({_NO_SERVER}); check this machine's network, or name another server with "
        f"--nameserver, and {_RESUMABLE}"
    )
    assert f"datafetch: no name server answers ({_NO_SERVER}); trying again for 0.5 s" in printed.err.splitlines()
    out = tmp_path / "coyo-700m" / "pkl03-split"
    assert main(["status", str(out), "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["images"]["done"], status["state"]) == (0, "interrupted")
    stopped = printed.err.splitlines()[-1].removeprefix("datafetch: ")
    assert (status["stopped"]["message"], status["stopped"]["was_fresh"]) == (stopped, False)
    for folder in (out, tmp_path):  # of an output, and of one above it
        assert main(["status", str(folder)]) == 0
        words = " ".join(capfd.readouterr().out.split())
        assert re.search(rf"stopped [0-9.]+ s ago: {re.escape(stopped)}", words), words
    with NameServer(otherwise=_HERE) as server:
        assert main([*_command(tmp_path, source, server.address), "--json"]) == 0
    images = json.loads(capfd.readouterr().out)["images"]
    assert (images["ok"], images["failed"], images["reused"]) == (20, 0, 0)
    assert not OutputLayout(out).last_stop.exists()


@pytest.mark.parametrize("is_for_root_alone", [False, True])
@pytest.mark.usefixtures("_commands_in_threads")
def test_name_servers_that_refuse_stop_a_run(
    tmp_path: Path, source: CoyoSource, capfd: pytest.CaptureFixture[str], is_for_root_alone: bool
) -> None:
    """They serve others, and not this machine; unless it is just the question for the root zone that they refuse."""
    script = {ROOT_ZONE: REFUSED, "a.root-servers.net": _HERE} if is_for_root_alone else {}
    with NameServer(script, otherwise=SERVFAIL if is_for_root_alone else REFUSED) as server:
        assert main(_command(tmp_path, source, server.address)) == (0 if is_for_root_alone else 4)
    printed = capfd.readouterr()
    if is_for_root_alone:
        assert "images: 20 failed (dns_failed 20)" in printed.out
        return
    assert printed.err.splitlines()[-1] == (
        f"datafetch: the name servers refuse to answer this machine ({server.address}); check this machine's network, "
        f"or name another server with --nameserver, and {_RESUMABLE}"
    )
    assert printed.out == ""
    assert main(["status", str(tmp_path / "coyo-700m" / "pkl03-split"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"]["done"] == 0


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_in_a_dead_zone_ends_with_recorded_failures(
    tmp_path: Path, source: CoyoSource, capfd: pytest.CaptureFixture[str]
) -> None:
    """The name server answers, but not for these names: that is the web's fault, and said."""
    with NameServer({ROOT_ZONE: NO_DATA}, otherwise=SILENCE) as server:
        assert main(_command(tmp_path, source, server.address)) == 0
    printed = capfd.readouterr()
    assert "images: 20 failed (dns_failed 20)" in printed.out
    assert (
        "all 20 images that were requested failed as dns_failed; check this machine's network, or name another"
        in printed.err
    )
