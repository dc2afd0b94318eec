"""How many workers there are, what each may use, and which of them owns a host or a URL."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from datafetch import BodyCheck, Encoding, ImageSpec, Job
from datafetch.engine.workers import budgets
from datafetch.engine.workers.budgets import count_workers, log_workers, policy_of_reader, share_of
from datafetch.engine.workers.owner import owner_of_host, owner_of_url
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.fetch.urls import parse_url


def job(
    *,
    workers: int | None = None,
    processes: int | None = None,
    connections: int | None = None,
    max_rate_bytes_per_s: int | None = None,
    per_host: int = 8,
) -> Job:
    """Return a job."""
    policy = FetchPolicy(connections=connections, max_rate_bytes_per_s=max_rate_bytes_per_s, per_host=per_host)
    return Job(dataset="coyo", source="source", out="out", workers=workers, processes=processes, fetch=policy)


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (11, 1), (12, 2), (64, 10), (128, 21)])
def test_there_is_one_worker_for_six_cpus(monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int) -> None:
    """And on a small machine the process that there is."""
    monkeypatch.setattr(budgets, "available_cpus", lambda: cpus)
    assert count_workers(job()) == workers


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_there_is_one_worker_for_two_cpus_without_a_codec(
    monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int
) -> None:
    """Where only headers are looked at, the loops are what takes the time."""
    monkeypatch.setattr(budgets, "available_cpus", lambda: cpus)
    spec = ImageSpec(encode=Encoding.RECEIVED, check=BodyCheck.HEADER)
    assert count_workers(replace(job(), image=spec)) == workers


@pytest.mark.parametrize(
    ("asked", "workers"),
    [
        (job(workers=8, processes=16), 8),
        (job(workers=8, processes=3), 3),
        (job(workers=8, processes=16, connections=2), 2),
        (job(workers=8, processes=16, max_rate_bytes_per_s=5 * 1024), 4),
    ],
)
def test_no_worker_is_without_its_part(asked: Job, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of codec processes, connections, and the rate; that there are fewer is said."""
    assert count_workers(asked) == workers
    with caplog.at_level("INFO", logger="datafetch"):
        log_workers(asked)
    counted, *fewer = caplog.messages
    assert counted.startswith(f"{workers} workers, with ")
    assert [f"--workers 8: {workers} can be started" in line for line in fewer] == [True] * (workers < 8)


def test_all_parts_together_are_what_one_process_has() -> None:
    """Whatever can't be divided evenly; what holds for one host or image stays."""
    whole = job(workers=4, processes=7, connections=10, max_rate_bytes_per_s=10_001, per_host=3)
    whole = replace(whole, memory_bytes=1_000_003)
    parts = [share_of(whole, number, 4, rate_parts=4) for number in range(1, 5)]
    assert sum(part.processes or 0 for part in parts) == 7
    assert sum(part.memory_bytes for part in parts) == 1_000_003
    assert sum(part.fetch.connections or 0 for part in parts) == 10
    assert {part.fetch.max_rate_bytes_per_s for part in parts} == {2_500}
    assert {part.fetch.per_host for part in parts} == {3}


def test_reading_the_manifest_has_a_part_of_the_rate() -> None:
    """Where it is read over the network while images are fetched."""
    whole = job(workers=3, processes=3, max_rate_bytes_per_s=40_000)
    assert policy_of_reader(whole).max_rate_bytes_per_s == 10_000
    assert share_of(whole, 1, 3, rate_parts=4).fetch.max_rate_bytes_per_s == 10_000
    assert policy_of_reader(replace(whole, workers=1)).max_rate_bytes_per_s == 40_000


@pytest.mark.parametrize("workers", [0, 256])
def test_a_number_of_workers_that_can_not_be_is_refused(workers: int) -> None:
    """With the name of the option."""
    with pytest.raises(ConfigurationError, match="workers"):
        job(workers=workers)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.jpg",
        "https://EXAMPLE.org:8443/a//b.jpg?c=d",
        "http://user:password@example.org/",
        "http://example.org?a",
        "http://[2001:db8::1]:80/a",
        "http://192.0.2.1/a",
    ],
)
def test_a_url_has_the_owner_of_its_host(url: str) -> None:
    """So that one worker counts its requests, and knows its result."""
    for workers in (2, 3, 7):
        assert owner_of_url(url, workers) == owner_of_host(parse_url(url).authority, workers)


@pytest.mark.parametrize("url", ["", "//", "nonsense", "http://", "\ud800", "data:image/png;base64,AAAA"])
def test_any_text_has_an_owner(url: str) -> None:
    """Published URLs may be anything."""
    assert owner_of_url(url, 3) in {1, 2, 3}


def test_hosts_are_spread_evenly() -> None:
    """Over all workers."""
    owners = Counter(owner_of_host(f"host{number}.example:443", 16) for number in range(16_000))
    assert set(owners) == set(range(1, 17))
    assert max(owners.values()) < 1.15 * min(owners.values())
