"""The proxies of the environment; how they are used is in test_requester.py, how they are missed in test_means.py."""

from base64 import b64encode

import pytest

from datafetch.errors import ConfigurationError
from datafetch.fetch.proxies import Proxies
from datafetch.fetch.request_writer import connect_request
from datafetch.fetch.urls import parse_url


@pytest.mark.parametrize(
    "text",
    [
        *("http://proxy:99999", "https://proxy:3128", "socks5://proxy", "http://", "http://a b"),
        *(
            "http:///proxy",
            "//proxy:3128",
            r"http://localhost:1\user:secret@proxy:3128",
            "http://u:secret#1@proxy:3128",
        ),
        *("u:secret/@proxy:3128", "https://u:secret@proxy"),
    ],
)
def test_what_is_no_proxy_is_refused_as_a_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Also a URL that can't be parsed is the operator's fault; the message says which variable has it, and no login."""
    monkeypatch.setenv("http_proxy", text)
    with pytest.raises(ConfigurationError, match="HTTP_PROXY must be the http:// URL of a proxy") as refused:
        Proxies()
    assert "secret" not in str(refused.value)


def test_a_login_in_a_variable_is_not_read_as_html(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ampersand that is escaped in a web page stands for itself here."""
    monkeypatch.setenv("http_proxy", "u:a&amp;b@proxy:3128")
    proxy = Proxies().proxy_for(parse_url("http://e.org/"))
    assert proxy is not None
    assert (proxy.login, proxy.authority) == ("u:a&amp%3Bb", "proxy:3128")


def test_a_login_is_sent_as_the_bytes_that_its_url_encodes() -> None:
    """They need not be UTF-8, and may contain what separates them in a URL."""
    request = connect_request("e.org", 443, parse_url("http://us%3Aer:p%40s%E9@proxy:3128/"))
    assert b64encode(b"us:er:p@s\xe9") in request
