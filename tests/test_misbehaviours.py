"""The table of everything that the web does to an image on its way: each row has one outcome."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest
from conftest import LOOPBACK
from origin import MISBEHAVIOURS, Misbehaviour, RequestedPicture, Web

from datafetch.fetch import Fetcher, FetchPolicy, OptOut
from datafetch.model.outcome import Body, Failure, Fetched, Permission

# Well above what a busy machine takes for an answer that does come.
POLICY = FetchPolicy(
    allow_net=LOOPBACK,
    timeout_s=8.0,
    connect_timeout_s=5.0,
    stall_timeout_s=5.0,
    backoff_s=0.01,
    retries=1,
    max_body_bytes=1 << 20,
    nameservers=("127.0.0.1:1",),  # does not exist, so that no query leaves this machine, whatever is taken for a name
)
_SOON_S = 5.0  # where uvloop would go on reading for 30
_CONNECTIONS = 64
_LEFT_EARLY = (
    *("large", "endless", "endless_chunks", "camera", "missing_at_length", "moved_at_length", "noai_at_length"),
    *("stuck", "stalled", "drip", "drip_head", "endless_head", "endless_header", "endless_hints"),
)

Pictures = tuple[Path, list[str]]


@pytest.fixture(scope="session")
def web(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A web that has every misbehaviour."""
    with Web(pictures[0], tmp_path_factory.mktemp("certificates")) as running:
        yield running


@pytest.fixture(autouse=True)
def _trusts_the_web(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL trusts the certificate authority of the web by default."""
    monkeypatch.setenv("SSL_CERT_FILE", str(web.authority))


@pytest.fixture
def requested(pictures: Pictures) -> RequestedPicture:
    """A picture with a URL that has not been requested yet."""
    return RequestedPicture(pictures[1][0], os.urandom(8).hex())


def _complaint(row: Misbehaviour, fetched: Fetched, picture: bytes) -> str:
    """Return what is wrong with the result of a row; empty if nothing is."""
    attempts = row.attempts or 1 + POLICY.retries
    if isinstance(fetched, Failure):
        if fetched.kind is not row.expected:
            return f"must {'be ' + row.expected if row.expected else 'arrive'}, is {fetched}"
        if row.status is not None and fetched.status != row.status:
            return f"must have status {row.status}, has {fetched.status}"
        if not fetched.detail:
            return "says nothing"
    elif row.expected is not None:
        return f"must be {row.expected}, arrives with {len(fetched.content)} bytes"
    elif fetched.content != row.delivers(picture):
        return f"arrives as {len(fetched.content)} other bytes: {fetched.content[:40]!r}"
    return "" if fetched.attempts == attempts else f"must take {attempts} attempts, takes {fetched.attempts}"


@pytest.mark.parametrize("name", sorted(name for name, row in MISBEHAVIOURS.items() if not row.waits))
async def test_each_misbehaviour_has_one_outcome(
    web: Web, pictures: Pictures, requested: RequestedPicture, name: str
) -> None:
    """Every row has the outcome that the table gives, after the number of attempts that the table gives."""
    row = MISBEHAVIOURS[name]
    async with Fetcher(POLICY) as fetch:
        fetched = await fetch(row.url(web, requested))
    complaint = _complaint(row, fetched, (pictures[0] / requested.picture).read_bytes())
    assert not complaint, complaint


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_all_at_once_have_the_same_outcomes_as_alone(
    web: Web, pictures: Pictures, requested: RequestedPicture
) -> None:
    """The misbehaviour of one host does not change the outcome of another's image, nor does a timeout."""
    picture = (pictures[0] / requested.picture).read_bytes()
    async with Fetcher(replace(POLICY, connections=_CONNECTIONS)) as fetch:
        # A query of its own for each: the origin counts requests by path, whether they come over TLS or not.
        urls = [
            row.url(web, replace(requested, query=f"{requested.query}-{name}")) for name, row in MISBEHAVIOURS.items()
        ]
        ends = await asyncio.gather(*map(fetch, urls))
    complaints = map(_complaint, MISBEHAVIOURS.values(), ends, repeat(picture))
    assert {name: complaint for name, complaint in zip(MISBEHAVIOURS, complaints, strict=True) if complaint} == {}


@pytest.mark.rotating
async def test_a_misbehaviour_has_the_same_detail_for_every_picture(web: Web, pictures: Pictures) -> None:
    """People count the reasons in a ledger, so a reason has no size, name or quote that differs from image to image."""
    rows = {name: row for name, row in MISBEHAVIOURS.items() if row.expected and not row.waits}
    details: dict[str, set[str]] = {name: set() for name in rows}
    async with Fetcher(replace(POLICY, connections=_CONNECTIONS, retries=0)) as fetch:
        for picture in pictures[1][:3]:
            requested = RequestedPicture(picture, os.urandom(8).hex())
            ends = await asyncio.gather(*(fetch(row.url(web, requested)) for row in rows.values()))
            for name, fetched in zip(rows, ends, strict=True):
                assert isinstance(fetched, Failure), (name, fetched)
                details[name].add(fetched.detail)
    assert {name: found for name, found in details.items() if len(found) > 1} == {}


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize("listener", ["http", "https"])
async def test_connections_are_dropped_at_once(web: Web, requested: RequestedPicture, listener: str) -> None:
    """Whatever ends a request early, the server sees the connection close soon."""

    async def is_left_in_time(behaviour: str) -> bool:
        url = web.origin.url(behaviour, requested.picture, requested.query, listener=listener)
        async with Fetcher(replace(POLICY, timeout_s=2.5, stall_timeout_s=1.5, retries=0)) as fetch:
            attempts = (await fetch(url)).attempts
            with suppress(TimeoutError):
                async with asyncio.timeout(_SOON_S):
                    while await _times_lost(web, url) < attempts:  # noqa: ASYNC110 - it happens in another process
                        await asyncio.sleep(0.02)
                    return True
        return False

    left = await asyncio.gather(*map(is_left_in_time, _LEFT_EARLY))
    assert [behaviour for behaviour, in_time in zip(_LEFT_EARLY, left, strict=True) if not in_time] == []


async def _times_lost(web: Web, url: str) -> int:
    lost = await asyncio.to_thread(web.origin.lost)
    return lost.get("/" + url.split("/", 3)[3], 0)


@pytest.mark.both_loops
@pytest.mark.parametrize("behaviour", ["stale", "stale_reset"])
@pytest.mark.parametrize("listener", ["http", "https"])
async def test_a_stale_connection_costs_no_attempt(
    web: Web, requested: RequestedPicture, behaviour: str, listener: str
) -> None:
    """A server may close a kept connection at any time; the next request then goes over a new one."""
    async with Fetcher(POLICY) as fetch:
        for number in range(3):
            url = web.origin.url(behaviour, requested.picture, f"{requested.query}{number}", listener=listener)
            fetched = await fetch(url)
            assert isinstance(fetched, Body), fetched
            assert fetched.attempts == 1


@pytest.mark.both_loops
@pytest.mark.parametrize("behaviour", ["unasked", "short_length"])
async def test_surplus_bytes_are_no_response(
    web: Web, pictures: Pictures, requested: RequestedPicture, behaviour: str
) -> None:
    """Bytes after the end of a body do not become the next response on that connection."""
    folder, names = pictures
    async with Fetcher(POLICY) as fetch:
        for name in names[:5]:
            assert isinstance(await fetch(web.origin.url(behaviour, name, requested.query)), Body)
            # Another round trip gives the bytes time to come; for those that come later still there is no defence.
            assert isinstance(await fetch(web.origin.url("well", name, requested.query, host="127.0.0.2")), Body)
            fetched = await fetch(web.origin.url("well", name, requested.query))
            assert isinstance(fetched, Body)
            assert fetched.content == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "certificate", ["expired", "not_yet", "wrong_host", "unknown_authority", "self_signed", "incomplete_chain"]
)
async def test_insecure_takes_any_certificate(web: Web, requested: RequestedPicture, certificate: str) -> None:
    """With --insecure, images of servers without a valid certificate are fetched."""
    async with Fetcher(FetchPolicy(allow_net=LOOPBACK, insecure=True)) as fetch:
        fetched = await fetch(web.origin.url("well", requested.picture, requested.query, listener=certificate))
    assert isinstance(fetched, Body), fetched
    assert fetched.permitted == (Permission.ALLOW_NET, Permission.INSECURE)


async def test_permissions_used_by_a_redirect_are_recorded(web: Web, requested: RequestedPicture) -> None:
    """A redirect from an unverified server may lead anywhere, however well verified the image's own server is."""
    async with Fetcher(FetchPolicy(allow_net=LOOPBACK, insecure=True)) as fetch:
        fetched = await fetch(
            web.origin.url("moved_to_plain", requested.picture, requested.query, listener="self_signed")
        )
    assert isinstance(fetched, Body), fetched
    assert fetched.final_url.startswith("http://")
    assert Permission.INSECURE in fetched.permitted


async def test_an_opt_out_can_be_ignored(web: Web, requested: RequestedPicture) -> None:
    """An operator with an agreement of his own gets the image."""
    async with Fetcher(FetchPolicy(allow_net=LOOPBACK, opt_out=OptOut.IGNORE)) as fetch:
        fetched = await fetch(web.origin.url("noai", requested.picture, requested.query))
        other = await fetch(web.origin.url("well", requested.picture, requested.query))
    assert isinstance(fetched, Body), fetched
    assert fetched.permitted == (Permission.ALLOW_NET, Permission.OPT_OUT)
    assert other.permitted == (Permission.ALLOW_NET,)
