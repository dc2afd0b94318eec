"""The warning when the first images of a run all fail alike: as a value, and on the command."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datafetch.cli.app import main
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.first_outcomes import FirstOutcomes
from datafetch.fetch.dns.address_guard import AddressGuard, BlockedAddressError
from datafetch.fetch.policy import FetchPolicy
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permission

Pictures = tuple[Path, list[str]]
_ARRIVED = Encoded(b"", 1, 1, "JPEG")
_DOWN = Failure(FailureKind.HOST_DOWN)
_REFUSED = Failure(FailureKind.CONNECT)
_PRIVATE = Failure(FailureKind.BLOCKED_ADDRESS, networks=("10.0.0.7",))
_LATER = "give it with --fresh, or to 'datafetch retry' afterwards"


def _warnings(
    outcomes: Iterable[Outcome],
    caplog: pytest.LogCaptureFixture,
    *,
    unused_proxy: str = "",
    used_proxies: str = "",
    ends: bool = True,
) -> list[str]:
    caplog.clear()
    watch = FirstOutcomes(unused_proxy, used_proxies)
    with caplog.at_level(logging.WARNING):
        for outcome in outcomes:
            watch.add(outcome)
        if ends:
            watch.end()
    return caplog.messages


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            _PRIVATE,
            f"failed as blocked_address; --allow-net 10.0.0.7 fetches those in a network that you trust: {_LATER}",
        ),
        (
            Failure(FailureKind.TLS),
            f"failed as tls; --insecure also accepts invalid certificates and outdated TLS: {_LATER}",
        ),
        (Failure(FailureKind.TLS, permitted=(Permission.INSECURE,)), "failed as tls"),
        (Failure(FailureKind.OPTED_OUT), f"failed as opted_out; --opt-out ignore fetches them too: {_LATER}"),
        (_REFUSED, "failed as connect; check this machine's network"),
        (
            Failure(FailureKind.DNS_NOT_FOUND),
            "failed as dns_not_found; check this machine's network, or name another name server with --nameserver",
        ),
        (Failure(FailureKind.HTTP_STATUS, status=403), "failed with HTTP status 403"),
        (Failure(FailureKind.NOT_AN_IMAGE), "failed as not_an_image"),
    ],
)
def test_the_warning_names_what_helps(failure: Failure, sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    """It comes with the two hundredth image, or at the end of a run that has fewer; then it is not repeated."""
    assert _warnings([failure] * 199, caplog, ends=False) == []
    assert _warnings([failure] * 200, caplog, ends=False) == [f"the first 200 images all {sentence}"]
    assert len(_warnings([failure] * 500, caplog)) == 1
    assert _warnings([failure] * 20, caplog) == [f"all 20 images that were requested {sentence}"]
    assert _warnings([failure], caplog) == [f"the only image that was requested {sentence}"]


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [_ARRIVED],
        [_REFUSED, _ARRIVED],
        [_REFUSED, _PRIVATE],
        [Failure(FailureKind.HTTP_STATUS, status=404), Failure(FailureKind.HTTP_STATUS, status=403)],
        [_REFUSED] * 150 + [_ARRIVED] + [_REFUSED] * 300,
    ],
)
def test_a_run_like_any_other_gets_no_warning(outcomes: list[Outcome], caplog: pytest.LogCaptureFixture) -> None:
    """One image that arrives, or fails in another way, is enough."""
    assert _warnings(outcomes, caplog) == []


def test_images_of_hosts_that_are_down_share_the_kind_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """They were not tried because others had failed; alone they say as much."""
    assert _warnings([_DOWN, _REFUSED, _DOWN], caplog) == [
        (
            "all 3 images that were requested failed as connect, or were not tried since their host was down (2); "
            "check this machine's network"
        )
    ]
    assert "failed as host_down; check" in _warnings([_DOWN], caplog)[0]


def test_a_proxy_that_is_not_used_is_named_where_it_may_help(caplog: pytest.LogCaptureFixture) -> None:
    """That is for failures of the network alone."""
    hint = "; the proxy in HTTPS_PROXY is used only with --trust-env"
    assert _warnings([_REFUSED], caplog, unused_proxy="HTTPS_PROXY")[0].endswith(hint)
    assert not _warnings([_PRIVATE], caplog, unused_proxy="HTTPS_PROXY")[0].endswith(hint)


def test_a_proxy_that_is_used_is_named_where_it_may_be_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """In place of the network, which the proxy hides; also for statuses with which it may have answered itself."""
    proxies = "proxy.example:3128 (HTTPS_PROXY)"
    hint = f"; check the proxy that is used: {proxies}"
    answers = {status: Failure(FailureKind.HTTP_STATUS, status=status) for status in (403, 404, 502, 503, 504)}
    for failure in (_REFUSED, answers[403], answers[502], answers[503], answers[504]):
        (warning,) = _warnings([failure], caplog, used_proxies=proxies)
        assert warning.endswith(hint)
        assert "this machine's network" not in warning
    for failure in (answers[404], _PRIVATE):
        assert hint not in _warnings([failure], caplog, used_proxies=proxies)[0]


def test_starting_over_is_not_advised_where_it_would_delete_images() -> None:
    """There are some if this run goes on with an output, or takes images from one."""
    watch = FirstOutcomes("", has_others=lambda: True)
    watch.add(_PRIVATE)
    assert watch.failed_alike is not None
    sentence = watch.failed_alike.sentence(is_over=True)
    assert sentence.endswith("that you trust: give it to 'datafetch retry' afterwards")
    watch = FirstOutcomes("", has_others=lambda: True)
    watch.add(_REFUSED)
    assert watch.failed_alike is not None
    assert watch.failed_alike.sentence(is_over=True).endswith("failed as connect")


def test_a_few_networks_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Each once; of many none is."""
    blocked = [Failure(FailureKind.BLOCKED_ADDRESS, networks=(f"10.0.0.{number}",)) for number in range(4)]
    assert " --allow-net 10.0.0.0 --allow-net 10.0.0.1 fetches" in _warnings([*blocked[:2], blocked[0]], caplog)[0]
    assert " --allow-net CIDR fetches" in _warnings(blocked, caplog)[0]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.8.9.1", "127.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3"),
        ("169.254.169.254", "169.254.169.254"),
        ("::1", "::1"),
        ("fd00::42", "fd00::42"),
        ("::ffff:10.1.2.3", "::ffff:a01:203"),
        ("64:ff9b::a01:203", "64:ff9b::a01:203"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_network_that_a_refusal_names_is_the_right_one(address: str, network: str) -> None:
    """Given as --allow-net, it permits the address that was refused."""
    assert BlockedAddressError(address).networks == (network,)
    assert AddressGuard(FetchPolicy(allow_net=(network,)).networks()).permits(address)


class _ServerV6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def origin_v6(small_pictures: Pictures) -> Iterator[str]:
    """The URL of a server on ::1."""
    try:
        server = _ServerV6(("::1", 0), partial(_Quiet, directory=str(small_pictures[0])))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://[::1]:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _prepare(tmp_path: Path, urls: list[str], *options: str) -> tuple[list[str], Path]:
    source = write_coyo_source(tmp_path / "source", urls)
    words = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--processes", "1"]
    return [*words, "--root", str(tmp_path), "--no-reshard", *options], tmp_path / "coyo-700m" / "pkl03-split"


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_on_a_private_address_says_so(
    tmp_path: Path, origin: Origin, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The warning stands on standard error, and the command that helps in the summary; given, it does help."""
    urls = [origin.url("well", name, tmp_path.name) for name in small_pictures[1][:20]]
    words, out = _prepare(tmp_path, urls)
    assert main(words) == 0
    printed = capfd.readouterr()
    option = "--allow-net 127.0.0.0/8"
    assert (
        "datafetch: all 20 images that were requested failed as blocked_address; "
        f"{option} fetches those in a network that you trust: {_LATER}"
    ) in printed.err.splitlines()
    assert printed.out.splitlines()[-2] == (
        f"20 images failed as blocked_address; {option} fetches those in a network that you trust: "
        f"datafetch retry {out} {option}"
    )
    assert main(["retry", str(out), "--all"]) == 0
    printed = capfd.readouterr()
    assert f"trust: datafetch retry {out} {option}\n" in printed.out
    assert "all 20 images" not in printed.err  # which is no news of images that had failed before
    assert main(["retry", str(out), *option.split()]) == 0
    printed = capfd.readouterr()
    assert f"datafetch: permitted, and remembered for later retries: {option}\n" in printed.err
    assert "images: 20 ok\n" in printed.out
    assert "failed as" not in printed.err + printed.out


@pytest.mark.usefixtures("_commands_in_threads")
def test_networks_are_named_when_not_all_images_were_refused(
    tmp_path: Path, origin: Origin, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The summary has them as long as a run has met them; otherwise it says where they are listed."""
    url = origin.url("well", small_pictures[1][0], tmp_path.name)
    words, out = _prepare(tmp_path, [url, "http://10.0.0.7/cat.jpg", "ftp://example.org/cat.jpg"])
    assert main(words) == 0
    assert f"trust: datafetch retry {out} --allow-net " in (printed := capfd.readouterr().out)
    assert {"127.0.0.0/8", "10.0.0.7"} < set(printed.split())
    assert main(["retry", str(out)]) == 0
    list_them = f"datafetch failures {out} --kinds blocked_address"
    assert f"to see the networks that --allow-net would have to name: {list_them}\n" in capfd.readouterr().out
    assert main(list_them.split()[1:]) == 0
    assert "--allow-net 10.0.0.7 would allow it" in capfd.readouterr().out


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_on_ipv6_loopback_works_as_its_refusal_says(
    tmp_path: Path, origin_v6: str, small_pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The refusal names ::1, and with that network the images arrive."""
    words, _ = _prepare(tmp_path, [f"{origin_v6}/{name}" for name in small_pictures[1][:5]])
    assert main(words) == 0
    assert "--allow-net ::1 fetches" in capfd.readouterr().err
    assert main([*words, "--fresh", "--allow-net", "::1"]) == 0
    assert "images: 5 ok\n" in capfd.readouterr().out


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_without_a_network_names_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No connection is made, and a proxy of the environment is not used: the summary has the retry that uses it."""
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        words, out = _prepare(tmp_path, [f"{url}/{number}" for number in range(9)], "--allow-net", "127.0.0.0/8")
        assert main([*words, "--retries", "0"]) == 0
    printed = capfd.readouterr()
    summary, after_that, to_list = printed.out.splitlines()[-3:]
    assert after_that == f"to request them again after that: datafetch retry {out} --trust-env"
    assert to_list == f"to list all 9 failed images: datafetch failures {out}"
    assert re.fullmatch(
        r"all 9 images that were requested failed as connect(, or were not tried since their host was down \(\d\))?; "
        "check this machine's network; the proxy in HTTPS_PROXY is used only with --trust-env",
        summary,
    )
    assert f"datafetch: {summary}" in printed.err.splitlines()
