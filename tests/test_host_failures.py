"""Failures by host, counted from URLs as the web has them."""

import pyarrow as pa
import pytest

from datafetch.monitor import host_failures as failing_hosts
from datafetch.monitor.host_failures import FailingHost, FailingHosts


def counted(*lines: tuple[str, str]) -> FailingHosts:
    """Count the failures of some URLs with these outcomes."""
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
    """The host is in lower case, without port, credentials and control characters; empty if there is none."""
    assert counted((url, "dns_failed")).top(1) == (FailingHost(host, {"dns_failed": 1}),)


def test_hosts_with_the_most_failures_come_first() -> None:
    """Each host has its failure kinds, most frequent first; successes do not count."""
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


def test_the_number_of_counted_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts with few failures are forgotten, and it is reported that not all were counted."""
    monkeypatch.setattr(failing_hosts, "_MAX_PAIRS", 100)
    monkeypatch.setattr(failing_hosts, "_KEPT_PAIRS", 50)
    hosts = FailingHosts()
    for batch in range(50):
        lines = [(f"http://{batch}-{number}.org/", "timeout") for number in range(40)]
        hosts.merge(counted(*lines, ("http://large.org/1", "timeout"), ("http://large.org/2", "timeout")))
        assert len(hosts.top(1000)) <= 100
    assert hosts.top(1) == (FailingHost("large.org", {"timeout": 100}),)
    assert hosts.is_pruned
