"""Failures by host, out of URLs as the web has them."""

import pyarrow as pa
import pytest

from datafetch.monitor import host_failures as failing_hosts
from datafetch.monitor.host_failures import FailingHost, FailingHosts


def counted(*lines: tuple[str, str]) -> FailingHosts:
    """What is counted of some URLs and outcomes."""
    hosts = FailingHosts()
    urls, outcomes = zip(*lines, strict=True) if lines else ((), ())
    hosts.count(pa.array(urls, pa.string()), pa.array(outcomes, pa.string()))
    return hosts


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://example.org/cat.jpg", "example.org"),
        ("HTTPS://Example.ORG:443/cat.jpg", "example.org"),
        ("//example.org", "example.org"),
        ("  http://example.org?a=//other.example/", "example.org"),
        ("http://user:p@ss@example.org:80#x@y", "example.org"),
        ("http:\\\\example.org\\cat.jpg", "example.org"),
        ("http://[2001:DB8::1]:8080/", "[2001:db8::1]"),
        ("http://例え.jp/桜.jpg", "例え.jp"),
        ("cat.jpg", ""),
        ("", ""),
        ("ftp://example.org/", ""),
        ("http://" + "a" * 1000 + "/", "a" * 255),
        ("http://evil\x1b[2J\u202e.org/", "evil\ufffd[2j\ufffd.org"),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    """Lower case, no port, no credentials, nothing that steers a terminal; empty where there is none."""
    assert counted((url, "dns_failed")).top(1) == (FailingHost(host, {"dns_failed": 1}),)


def test_hosts_with_the_most_failures_come_first() -> None:
    """Each with its kinds, most first; what arrived counts for nothing."""
    hosts = counted(
        ("http://a.org/1", "ok"),
        ("http://b.org/1", "timeout"),
        ("http://c.org/1", "timeout"),
        ("http://c.org/2", "http_status"),
        ("http://c.org/3", "http_status"),
        ("http://b.org/2", "ok"),
    )
    hosts.merge(counted(("http://B.org/3", "timeout"), ("http://d.org/", "tls")))
    hosts.merge(counted())
    assert hosts.top(2) == (
        FailingHost("c.org", {"http_status": 2, "timeout": 1}),
        FailingHost("b.org", {"timeout": 2}),
    )
    assert hosts.top(2)[0].failed == 3
    assert not hosts.is_pruned


def test_of_very_many_hosts_the_small_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded, the large ones stay, and it is said that not all were counted."""
    monkeypatch.setattr(failing_hosts, "_MAX_PAIRS", 100)
    monkeypatch.setattr(failing_hosts, "_KEPT_PAIRS", 50)
    hosts = FailingHosts()
    for batch in range(50):
        lines = [(f"http://{batch}-{number}.org/", "timeout") for number in range(40)]
        hosts.merge(counted(*lines, ("http://large.org/1", "timeout"), ("http://large.org/2", "timeout")))
        assert len(hosts.top(1000)) <= 100
    assert hosts.top(1) == (FailingHost("large.org", {"timeout": 100}),)
    assert hosts.is_pruned
