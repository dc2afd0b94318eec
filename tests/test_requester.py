"""Requests to servers made for the purpose: where they go, what they contain, and what they leave behind."""

import asyncio
import base64
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import cookiejar
from conftest import LOOPBACK, until
from nameserver import Answer as Answers
from nameserver import NameServer

from datafetch.demo.origin import Origin
from datafetch.errors import ResourceError
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy, OptOut, hosts, proxies
from datafetch.fetch.policy import DEFAULT_MAX_BODY_BYTES
from datafetch.model.outcome import Body, Failure, FailureKind, Permission

QUICK = FetchPolicy(allow_net=LOOPBACK, timeout_s=10.0, backoff_s=0.01, retries=0, max_body_bytes=1 << 20)
OK_HEAD = b"HTTP/1.1 200 OK\r\n"
NOWHERE = ("127.0.0.1:1",)
"""A name server that does not exist, so that names don't resolve and no query leaves this machine."""

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(answer: Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Pass the head of each request to a function, and give the server's port."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await answer(await reader.readuntil(b"\r\n\r\n"), writer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(converse, host, 0, ssl=tls, backlog=512)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _whole(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers).encode()
    return OK_HEAD + lines + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context, whose certificate for 127.0.0.1 this process trusts."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.both_loops
@pytest.mark.parametrize("behaviour", ["too large", "endless", "drip", "silent"])
async def test_a_connection_is_dropped_within_a_second(tls: ssl.SSLContext, behaviour: str) -> None:
    """This holds over TLS too, where uvloop would read on for 30 s after a clean close (uvloop#471)."""
    lost = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        length = b"Content-Length: 1000000000\r\n" if behaviour == "too large" else b"Connection: close\r\n"
        piece = b"." if behaviour == "drip" else b"." * 65536
        try:
            if behaviour != "silent":
                writer.write(OK_HEAD + length + b"\r\n")
            while not writer.is_closing():
                if behaviour != "silent":
                    writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0 if len(piece) > 1 and behaviour != "silent" else 0.05)
        finally:
            lost.set()

    in_time = behaviour in ("too large", "endless")
    policy = replace(QUICK, timeout_s=10.0 if in_time else 1.0)
    async with _server(answer, tls) as port, Fetcher(policy) as fetch:
        fetched = await fetch(f"https://127.0.0.1:{port}/")
        async with asyncio.timeout(1.0):
            await lost.wait()
    assert isinstance(fetched, Failure)
    assert fetched.kind is (FailureKind.TOO_LARGE if in_time else FailureKind.TIMEOUT), fetched


@pytest.mark.both_loops
async def test_certificates_are_verified_unless_insecure_is_set(authority: trustme.CA) -> None:
    """A certificate of an unknown authority fails, and is accepted with --insecure."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture"))

    async with _server(answer, context) as port:
        async with Fetcher(QUICK) as fetch:
            refused = await fetch(f"https://127.0.0.1:{port}/")
        async with Fetcher(FetchPolicy(allow_net=LOOPBACK, insecure=True)) as fetch:
            taken = await fetch(f"https://127.0.0.1:{port}/")
    assert isinstance(refused, Failure)
    assert refused.kind is FailureKind.TLS
    assert isinstance(taken, Body)


async def test_a_body_that_needs_the_permission_for_its_size_is_marked() -> None:
    """A body over the default bound is marked; a smaller one is not, whatever the bound is."""
    length = DEFAULT_MAX_BODY_BYTES + 1

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(bytes(length)))

    async with _server(answer) as port, Fetcher(replace(QUICK, max_body_bytes=2 * length, timeout_s=30)) as fetch:
        large = await fetch(f"http://127.0.0.1:{port}/")
        length -= 1
        small = await fetch(f"http://127.0.0.1:{port}/")
    assert large.permitted == (Permission.ALLOW_NET, Permission.MAX_BODY), large
    assert small.permitted == (Permission.ALLOW_NET,), small


async def test_credentials_stay_with_their_host() -> None:
    """Credentials and cookies go to their own host, also after relative redirects, and to no other."""
    heads: list[bytes] = []
    elsewhere: list[bytes] = []

    async def tell(head: bytes, writer: asyncio.StreamWriter) -> None:
        elsewhere.append(head)
        writer.write(_whole(b"picture"))

    async with _server(tell, host="127.0.0.2") as other:

        async def redirect(head: bytes, writer: asyncio.StreamWriter) -> None:
            heads.append(head)
            location = "/second" if len(heads) == 1 else f"http://127.0.0.2:{other}/third"
            writer.write(
                f"HTTP/1.1 302 Found\r\nSet-Cookie: a=b\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
            )

        async with _server(redirect) as port, Fetcher(QUICK) as fetch:
            fetched = await fetch(f"http://user:secret@127.0.0.1:{port}/first")
            assert isinstance(await fetch(f"http://127.0.0.1:{port}/another"), Body)
    assert isinstance(fetched, Body)
    assert fetched.final_url == f"http://127.0.0.2:{other}/third"
    credentials = b"Authorization: Basic " + base64.b64encode(b"user:secret")
    assert [credentials in head for head in heads] == [True, True, False]
    assert [b"Cookie: a=b\r\n" in head for head in heads] == [False, True, False]
    assert not any(b"cookie" in head.lower() or b"Authorization" in head for head in (heads[2], *elsewhere))
    assert not any(b"referer" in head.lower() for head in [*heads, *elsewhere])


async def test_cookies_that_are_too_long_are_not_sent_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is what servers accept in a header, whether or not aiohttp has one of its own."""
    monkeypatch.setattr(cookiejar, "_MAX_COOKIE_HEADER_LENGTH", 1 << 20, raising=False)
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        kind, _, length = head.split(b" ")[1][1:].partition(b"/")
        if kind == b"set":
            # One alone may be too long for aiohttp; three of 2,000 characters and separators leave the rest.
            values = {b"a": b"x" * 1998, b"b": b"x" * 1998, b"c": b"x" * 1998, b"d": b"x" * (int(length) - 6008)}
            fields = b"".join(b"Set-Cookie: %b=%b; Path=/\r\n" % cookie for cookie in values.items())
            writer.write(b"HTTP/1.1 302 Found\r\n%bLocation: /got\r\nContent-Length: 0\r\n\r\n" % fields)
        else:
            writer.write(_whole(b"picture"))

    async with _server(answer) as port, Fetcher(QUICK) as fetch:
        for length in (8192, 8193):
            assert isinstance(await fetch(f"http://127.0.0.1:{port}/set/{length}"), Body)
    assert [b"\r\nCookie: a=xxx" in head for head in heads] == [False, True, False, False]


async def test_each_redirect_is_checked_by_the_address_guard() -> None:
    """A redirect to an address that is not public is refused however it is written."""
    targets = iter(["http://10.0.0.1/", "http://0xa.1/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/latest/"])

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 307 Moved\r\nLocation: {next(targets)}\r\nContent-Length: 0\r\n\r\n".encode())

    async with _server(answer) as port, Fetcher(QUICK) as fetch:
        for _ in range(4):
            fetched = await fetch(f"http://127.0.0.1:{port}/")
            assert isinstance(fetched, Failure)
            assert fetched.kind is FailureKind.BLOCKED_ADDRESS, fetched


async def test_requests_in_flight_to_one_host_are_bounded() -> None:
    """Each host has a bound of its own, even if there are connections for all requests."""
    open_now, peaks = [0, 0], [0, 0]

    def counting(server: int) -> Answer:
        async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
            open_now[server] += 1
            peaks[server] = max(peaks[server], open_now[server])
            await asyncio.sleep(0.01)
            open_now[server] -= 1
            writer.write(_whole(b"picture"))

        return answer

    policy = FetchPolicy(allow_net=LOOPBACK, connections=64, per_host=3)
    async with _server(counting(0)) as first, _server(counting(1)) as second, Fetcher(policy) as fetch:
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(20) for port in (first, second)]
        fetched = await asyncio.gather(*map(fetch, urls))
    assert all(isinstance(one, Body) for one in fetched)
    assert peaks == [3, 3]


async def test_retry_after_pauses_the_whole_host() -> None:
    """After a 429 no request is sent to the host before the time it gives; then every image arrives."""
    loop = asyncio.get_running_loop()
    requested_at_s: list[float] = []

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        requested_at_s.append(loop.time())
        if len(requested_at_s) == 1:
            writer.write(b"HTTP/1.1 429 Slow down\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(_whole(b"picture"))

    policy = FetchPolicy(allow_net=LOOPBACK, per_host=1, backoff_s=0.01)
    async with _server(answer) as port, Fetcher(policy) as fetch:
        fetched = await asyncio.gather(*(fetch(f"http://127.0.0.1:{port}/{number}") for number in range(5)))
    assert all(isinstance(one, Body) for one in fetched)
    assert requested_at_s[1] - requested_at_s[0] >= 0.99
    assert sorted(one.attempts for one in fetched) == [1, 1, 1, 1, 2]


async def test_a_host_that_has_used_up_its_delay_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that it refuses then fail at once, and others still arrive."""
    monkeypatch.setattr(hosts, "_MAX_DELAY_S", 0.3)
    monkeypatch.setattr(hosts, "_MAX_PAUSE_S", 0.2)  # instead of a minute, so that two pauses use up the delay
    monkeypatch.setattr(hosts, "_DELAY_RETURNED_PER_ANSWER_S", 0.001)
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        if len(heads) % 2:
            writer.write(_whole(b"picture"))
        else:
            writer.write(b"HTTP/1.1 429 Slow down\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n")

    policy = replace(QUICK, per_host=1, retries=5)
    async with _server(answer) as port, Fetcher(policy) as fetch:
        fetched = [await fetch(f"http://127.0.0.1:{port}/{number}") for number in range(20)]
    refused = [one for one in fetched if isinstance(one, Failure)]
    # The second image is retried after a pause. The next pause uses up the delay, so no other image is retried.
    assert len(heads) == 21
    assert [one.attempts for one in fetched] == [1, 2, *[1] * 18]
    assert len(refused) == 9
    assert {(one.kind, one.status, one.may_pass) for one in refused} == {(FailureKind.HTTP_STATUS, 429, True)}


async def test_a_dead_host_gets_few_requests() -> None:
    """After five refused connections the rest fail fast, with kind host_down."""
    policy = FetchPolicy(allow_net=LOOPBACK, per_host=2, backoff_s=0.01)
    async with Fetcher(policy) as fetch:
        fetched = await asyncio.gather(*(fetch(f"http://127.0.0.1:1/{number}") for number in range(100)))
        statistics = fetch.statistics()
    kinds = [one.kind for one in fetched if isinstance(one, Failure)]
    assert kinds.count(FailureKind.CONNECT) + kinds.count(FailureKind.HOST_DOWN) == 100
    assert kinds.count(FailureKind.HOST_DOWN) >= 90
    assert statistics.sent_requests <= 10
    assert statistics.outcomes == {kind: kinds.count(kind) for kind in set(kinds)}
    down = next(one for one in fetched if isinstance(one, Failure) and one.kind is FailureKind.HOST_DOWN)
    assert (down.attempts, down.may_pass) == (0, True)


async def test_a_host_whose_bodies_are_mostly_framing_goes_down() -> None:
    """Each such body costs the CPU of many images. Other hosts are not affected."""
    requests = 0

    async def bomb(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\n..\r\n" * 20_000)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture"))

    policy = FetchPolicy(allow_net=LOOPBACK, per_host=2, backoff_s=0.01)
    async with _server(bomb) as costly, _server(answer) as neighbour, Fetcher(policy) as fetch:
        fetched = await asyncio.gather(*(fetch(f"http://127.0.0.1:{costly}/{number}") for number in range(50)))
        assert isinstance(await fetch(f"http://127.0.0.1:{neighbour}/"), Body)
    kinds = [one.kind for one in fetched if isinstance(one, Failure)]
    assert kinds.count(FailureKind.TOO_LARGE) == requests <= 7
    assert kinds.count(FailureKind.HOST_DOWN) == 50 - requests


async def test_an_opt_out_is_obeyed_unless_it_is_to_be_ignored() -> None:
    """If it is obeyed, the body is not even read."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture", "X-Robots-Tag: examplebot: noai"))

    async with _server(answer) as port:
        async with Fetcher(QUICK) as fetch:
            refused = await fetch(f"http://127.0.0.1:{port}/")
            assert fetch.statistics().fetched_bytes == 0
        async with Fetcher(FetchPolicy(allow_net=LOOPBACK, opt_out=OptOut.IGNORE)) as fetch:
            taken = await fetch(f"http://127.0.0.1:{port}/")
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.status, refused.may_pass) == (FailureKind.OPTED_OUT, 200, False)
    assert isinstance(taken, Body)


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_proxies_are_used_only_with_trust_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy may be in a private network, but the image may not; names are resolved by the proxy."""
    seen: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(head.split(b"\r\n")[0])
        writer.write(_whole(b"by proxy"))

    monkeypatch.setattr("datafetch.fetch.means._PATIENCE_AT_START_S", 0.1)
    async with _server(answer) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "direct.invalid")
        async with Fetcher(FetchPolicy(trust_env=True, retries=0, nameservers=NOWHERE)) as fetch:
            arrived = await fetch("http://images.invalid/cat.jpg")
            blocked = await fetch("http://10.0.0.1/cat.jpg")
            with pytest.raises(ResourceError, match="no name server answers"):  # so it was asked for the name
                await fetch("http://direct.invalid/cat.jpg")
        async with Fetcher(FetchPolicy(retries=0, nameservers=NOWHERE)) as fetch:
            with pytest.raises(ResourceError, match="no name server answers"):
                await fetch("http://images.invalid/cat.jpg")
    assert isinstance(arrived, Body)
    assert arrived.content == b"by proxy"
    assert seen == [b"GET http://images.invalid/cat.jpg HTTP/1.1"]
    assert isinstance(blocked, Failure)
    assert blocked.kind is FailureKind.BLOCKED_ADDRESS


@pytest.mark.parametrize("is_redirect", [False, True], ids=["by URL", "by redirect"])
async def test_local_names_are_not_sent_to_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_redirect: bool
) -> None:
    """Local names are those of the machine and those that /etc/hosts maps to private addresses, in any notation."""
    own = (
        *("localhost", "LOCALHOST.", "localhost:8080", "a.localhost", "localhost.localdomain", "ip6-localhost"),
        *(
            "ip6-loopback",
            "Printer.Office.",
            "scanner",
            "link",
            "mixed.example",
            "0x7f.1",
            "127.1",
            "[::1]",
            "[::ffff:10.0.0.1]",
        ),
    )
    (tmp_path / "hosts").write_text(
        "127.0.0.1 me\n 10.0.0.5\tprinter.office scanner # the old one: copier\n\n# 10.0.0.6 copier\n"
        "fe80::1%eth0 link\n93.184.215.14 mixed.example outside.example\n192.168.1.1 mixed.example\n"
        "172.16.0.1 permitted.example\n"
    )
    monkeypatch.setattr(proxies, "_HOSTS_FILE", tmp_path / "hosts")
    heard: list[str] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        url = head.split(b" ")[1].decode()
        heard.append(url)
        if url.startswith("http://first.invalid/"):
            location = url.partition("?")[2]
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            writer.write(_whole(b"picture"))

    async with _server(answer) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        policy = FetchPolicy(trust_env=True, retries=0, nameservers=NOWHERE, allow_net=("172.16.0.0/12",))
        async with Fetcher(policy) as fetch:

            async def ends(host: str) -> FailureKind | None:
                url = f"http://{host}/cat.jpg"
                fetched = await fetch(f"http://first.invalid/?{url}" if is_redirect else url)
                return fetched.kind if isinstance(fetched, Failure) else None

            assert {host: await ends(host) for host in own} == dict.fromkeys(own, FailureKind.BLOCKED_ADDRESS)
            assert [url for url in heard if not url.startswith("http://first.invalid/")] == []
            for host in ("copier", "outside.example", "permitted.example", "localhost.example"):
                assert await ends(host) is None
                assert heard[-1] == f"http://{host}/cat.jpg"


@pytest.mark.both_loops
@pytest.mark.parametrize("behaviour", ["connects", "refuses", "hangs up"])
async def test_tls_goes_through_a_proxy_in_a_tunnel(
    authority: trustme.CA, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """The proxy learns the host and its own credentials, and nothing else; the host's certificate is verified."""
    authority.issue_cert("images.invalid").configure_cert(tls)
    heads: list[bytes] = []
    conversations: list[asyncio.Task[None] | None] = []

    async def serve(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture"))

    async with _server(serve, tls) as origin:

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            conversations.append(asyncio.current_task())
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            if behaviour == "connects":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await _join(reader, writer, origin)
            elif behaviour == "refuses":
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(connect, "127.0.0.1", 0) as proxy:
            monkeypatch.setenv("https_proxy", f"me:secret@127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
            async with Fetcher(FetchPolicy(trust_env=True, retries=0, nameservers=NOWHERE)) as fetch:
                fetched = [await fetch("https://images.invalid/cat.jpg") for _ in range(2)]
            await until(lambda: all(task is None or task.done() for task in conversations))
    credentials = b"Proxy-Authorization: Basic " + base64.b64encode(b"me:secret")
    assert heads[0].startswith(b"CONNECT images.invalid:443 HTTP/1.1\r\n")
    assert credentials in heads[0]
    if behaviour == "connects":
        assert [isinstance(one, Body) for one in fetched] == [True, True]
        assert len(heads) == 1  # the second goes through the same tunnel
    else:
        assert [one.kind for one in fetched if isinstance(one, Failure)] == [FailureKind.CONNECT] * 2


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Relay bytes in both directions, until one side ends."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))


@pytest.mark.both_loops
async def test_a_host_with_a_dead_address_is_reached_at_another() -> None:
    """The address that answers is used, without a long wait for the other."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture"))

    with NameServer({"cat.example": Answers(("127.0.0.7", "127.0.0.8"))}) as names:
        policy = replace(QUICK, nameservers=(names.address,))
        async with _server(answer, host="127.0.0.8") as port, Fetcher(policy) as fetch:
            fetched = await fetch(f"http://cat.example:{port}/")
    assert isinstance(fetched, Body), fetched


async def test_a_refusal_before_anything_is_sent_is_not_an_attempt() -> None:
    """A blocked address or an unknown name takes no request; a redirect to one took the request before."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n")

    with NameServer({}) as names:
        async with _server(answer) as port, Fetcher(replace(QUICK, nameservers=(names.address,))) as fetch:
            urls = ("http://10.0.0.1/", "http://dog.example/", f"http://127.0.0.1:{port}/")
            attempts = [(await fetch(url)).attempts for url in urls]
            assert fetch.statistics().attempts == 1
    assert attempts == [0, 0, 1]


async def test_statistics_count_attempts_and_their_results() -> None:
    """Attempts, requests, bytes, outcomes, names and hosts are counted; a snapshot does not change later."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET /moved"):
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /cat.jpg\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(_whole(b"picture", *(("X-Robots-Tag: noai",) if head.startswith(b"GET /private") else ())))

    with NameServer({"cat.example": Answers(("127.0.0.1",))}) as names:
        policy = replace(QUICK, connections=5, nameservers=(names.address,))
        async with _server(answer) as port, Fetcher(policy) as fetch:
            before = fetch.statistics()
            for path in ("cat.jpg", "moved", "private"):
                await fetch(f"http://cat.example:{port}/{path}")
            await fetch(f"http://dog.example:{port}/")
            await fetch("no url")
            after = fetch.statistics()
    assert (before.sent_requests, before.fetched_bytes, before.outcomes, before.names.queried) == (0, 0, {}, 0)
    assert (after.attempts, after.sent_requests, after.fetched_bytes) == (3, 4, 2 * len(b"picture"))
    assert after.outcomes == {"ok": 2, "opted_out": 1, "dns_not_found": 1, "bad_url": 1}
    assert (after.connections, after.open_requests, after.waiting_requests, after.held_bytes) == (5, 0, 0, 0)
    assert (after.names.cached, after.names.queried, after.names.found, after.names.not_found) == (2, 2, 1, 1)
    assert after.names.hits >= 3
    assert (after.hosts.known, after.hosts.waiting, after.hosts.paused, after.hosts.down) == (0, 0, 0, 0)


async def test_a_paused_host_does_not_stop_the_others() -> None:
    """While calls wait for one host, others begin: those that wait don't count against the limiter of calls."""
    paused_for_s = 30

    async def refuse(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Slow down\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % paused_for_s)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_whole(b"picture"))

    arrived = 0
    policy = replace(QUICK, connections=2, retries=1)
    async with _server(refuse) as paused, _server(answer) as well, Fetcher(policy) as fetch:
        calls = fetch.call_limiter(2)

        async def deliver(url: str) -> None:
            nonlocal arrived
            async with calls:
                fetched = await fetch(url)
            arrived += isinstance(fetched, Body)

        urls = [f"http://127.0.0.1:{port}/{number}" for port in (paused, well) for number in range(10)]
        delivering = [asyncio.create_task(deliver(url)) for url in urls]
        await until(lambda: arrived == 10)
        for task in delivering:
            task.cancel()
        await asyncio.gather(*delivering, return_exceptions=True)


@pytest.mark.rotating
async def test_hanging_requests_do_not_stop_the_others(origin: Origin, pictures: tuple[Path, list[str]]) -> None:
    """If the number of connections is not fixed, other requests take the slots of those that hang."""
    arrived = 0
    policy = replace(QUICK, timeout_s=60.0, stall_timeout_s=60.0, per_host=200)
    async with Fetcher(policy) as fetch:

        async def deliver(url: str) -> None:
            nonlocal arrived
            fetched = await fetch(url)
            arrived += isinstance(fetched, Body)

        urls = [origin.url(behaviour, pictures[1][0], n) for behaviour in ("stuck", "well") for n in range(80)]
        delivering = [asyncio.create_task(deliver(url)) for url in urls]
        await until(lambda: arrived == 80)
        for task in delivering:
            task.cancel()
        await asyncio.gather(*delivering, return_exceptions=True)


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_wait_for_memory_does_not_count_against_the_host() -> None:
    """A body that is held back for longer than the timeout arrives once there is memory for it."""
    body = os.urandom(2_000_000)
    requested, resume = asyncio.Event(), asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        requested.set()
        await resume.wait()
        writer.write(_whole(body))

    budget = BodyBudget(1_000_000)
    policy = FetchPolicy(allow_net=LOOPBACK, timeout_s=2.0, stall_timeout_s=1.0, retries=0)
    async with _server(answer) as port, Fetcher(policy, budget=budget) as fetch:
        with budget.reservation() as first, budget.reservation() as second:
            asking = asyncio.create_task(fetch(f"http://127.0.0.1:{port}/"))
            await requested.wait()
            await first.grow(900_000)
            await second.grow(900_000)  # goes over the budget, which only one may
            resume.set()
            await until(lambda: budget.waiting == 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(policy.timeout_s * 1.2):
                    await asyncio.shield(asking)
        fetched = await asking
    assert isinstance(fetched, Body), fetched
    assert fetched.content == body
    assert fetched.fetch_ms < policy.timeout_s * 1000


_LARGE = """
import asyncio, hashlib, re, sys
from datafetch.process.allocator import return_freed_memory
from datafetch.demo.origin import Origin
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy, Limiter
from datafetch.model.outcome import Body

def peak_mib() -> int:
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

async def main() -> None:
    budget, codec, arrived = BodyBudget(256 << 20), Limiter(lambda: 2), 0
    policy = FetchPolicy(allow_net=("127.0.0.0/8",), connections=64, per_host=64, retries=0)
    before_mib = peak_mib()

    async def deliver(number: int) -> None:
        nonlocal arrived
        with budget.reservation() as memory:
            fetched = await fetch(f"{sys.argv[1]}/{number}", memory=memory)
            async with codec:
                arrived += isinstance(fetched, Body) and len(fetched.content) == 30_000_000
                await asyncio.to_thread(hashlib.sha256, fetched.content)

    async with Fetcher(policy, budget=budget) as fetch, asyncio.TaskGroup() as group:
        for number in range(64):
            group.create_task(deliver(number))
    print(arrived, peak_mib() - before_mib)

return_freed_memory()
asyncio.run(main())
"""


@pytest.mark.rotating
async def test_large_bodies_stay_within_the_memory_budget() -> None:
    """Of 64 bodies of 30 MB at once, no more than 256 MiB and a margin are ever in memory, and all arrive."""
    body = bytes(30_000_000)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%bContent-Length: %d\r\n\r\n" % (OK_HEAD, len(body)))
        view = memoryview(body)
        for start in range(0, len(body), 1 << 20):
            writer.write(view[start : start + (1 << 20)])
            await writer.drain()

    async with _server(answer) as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LARGE, f"http://127.0.0.1:{port}", stdout=subprocess.PIPE
        )
        arrived, grown_mib = (await process.communicate())[0].split()
    assert int(arrived) == 64
    # The budget, one body over it, and 64 read buffers of half a MiB; a third of that for everything else.
    assert int(grown_mib) < (256 + 30 + 32) * 4 / 3


_PRESSED = """
import asyncio, os, resource, sys
from datafetch.errors import ResourceError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model.outcome import Body

async def main() -> None:
    policy = FetchPolicy(allow_net=("127.0.0.0/8",), connections=64, per_host=64, backoff_s=0.01, retries=0)
    async with Fetcher(policy) as fetch:
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
        least = fetch.connections

        async def deliver(number: int) -> bool:
            nonlocal least
            fetched = await fetch(f"{sys.argv[1]}/{number}")
            least = min(least, fetch.connections)
            return isinstance(fetched, Body)

        arrived = sum(await asyncio.gather(*map(deliver, range(500))))
        print(arrived, least)

asyncio.run(main())
"""


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_running_out_of_descriptors_costs_no_image() -> None:
    """With descriptors for a dozen sockets and 64 connections, all images arrive."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        writer.write(_whole(b"picture"))

    async with _server(answer) as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PRESSED, f"http://127.0.0.1:{port}", stdout=subprocess.PIPE
        )
        arrived, connections = (await process.communicate())[0].split()
    assert int(arrived) == 500
    assert int(connections) < 64


@pytest.mark.both_loops
async def test_the_bound_for_heads_does_not_count_the_body() -> None:
    """A head that comes in pieces may be followed by any number of bytes in the same read."""
    body = os.urandom(600_000)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = _whole(body)
        writer.write(whole[:20])
        await writer.drain()
        writer.write(whole[20:])

    async with _server(answer) as port, Fetcher(QUICK) as fetch:
        for _ in range(5):
            fetched = await fetch(f"http://127.0.0.1:{port}/")
            assert isinstance(fetched, Body), fetched
            assert fetched.content == body


@pytest.mark.both_loops
async def test_endless_headers_are_cut_off() -> None:
    """All headers of a response together are bounded, interim responses included."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n")
        while not writer.is_closing():
            writer.write(b"Link: <%b>\r\n" % (b"a" * 50_000))
            await writer.drain()

    async with _server(answer) as port, Fetcher(QUICK) as fetch:
        fetched = await fetch(f"http://127.0.0.1:{port}/")
    assert isinstance(fetched, Failure)
    assert fetched.kind is FailureKind.DISCONNECTED
    assert "headers" in fetched.detail
