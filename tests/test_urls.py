"""URLs are parsed as browsers parse them."""

import pytest

from datafetch.fetch.urls import BadUrlError, join_url, parse_url, split_url


@pytest.mark.parametrize(
    ("published", "requested"),
    [
        ("http://example.org/cat.jpg", "http://example.org/cat.jpg"),
        ("  http://example.org/cat.jpg\r\n", "http://example.org/cat.jpg"),
        ("http://example.org/ca\nt.jpg", "http://example.org/cat.jpg"),
        ("HTTPS://Example.ORG:443/Cat.JPG", "https://example.org/Cat.JPG"),
        ("http://example.org", "http://example.org/"),
        ("http://example.org/a b.jpg", "http://example.org/a%20b.jpg"),
        ("http://example.org/a%20b.jpg", "http://example.org/a%20b.jpg"),
        ("http://example.org/a%2fb%zz.jpg?x=%7E~", "http://example.org/a%2fb%zz.jpg?x=%7E~"),
        ("http://example.org/猫.jpg?q=é", "http://example.org/%E7%8C%AB.jpg?q=%C3%A9"),
        ("http://münchen.example/ü", "http://xn--mnchen-3ya.example/%C3%BC"),
        ("http://例え.example/", "http://xn--r8jz45g.example/"),
        ("http://faß.example/", "http://xn--fa-hia.example/"),
        ("http://example.org/?a=1&amp;b=2", "http://example.org/?a=1&b=2"),
        ("http://example.org/?a=1&amp;amp;b=2", "http://example.org/?a=1&b=2"),
        ("http://example.org/?a=1&#038;b=2&#x26;c=3", "http://example.org/?a=1&b=2&c=3"),
        ("http://example.org/?a=1&copy=2&lt;", "http://example.org/?a=1&copy=2&lt;"),
        ("http://example.org/cat.jpg#top", "http://example.org/cat.jpg"),
        ("//example.org/cat.jpg", "http://example.org/cat.jpg"),
        ("http:\\\\example.org\\cat.jpg", "http://example.org/cat.jpg"),
        ("https:/example.org/cat.jpg", "https://example.org/cat.jpg"),
        ("http:///example.org/cat.jpg", "http://example.org/cat.jpg"),
        ("http://example.org/a/../b/./c.jpg", "http://example.org/b/c.jpg"),
        ("http://my_host.example.org/", "http://my_host.example.org/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://017700000001/", "http://127.0.0.1/"),
        ("http://127.1/", "http://127.0.0.1/"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1/"),
        ("http://[0:0::1]:8080/", "http://[::1]:8080/"),
        ("http://user:secret@example.org/", "http://user:secret@example.org/"),
    ],
)
def test_a_published_url_is_parsed_as_by_a_browser(published: str, requested: str) -> None:
    """Blanks, IDN, entities and numeric addresses all occur in manifests; nothing is encoded twice."""
    url = parse_url(published)
    assert str(url) == requested
    assert str(parse_url(requested)) == requested


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "cat.jpg", "/cat.jpg", "example.org/cat.jpg", "http://", "http:", "//", "http://[", "http://a b/"),
        *("ftp://example.org/", "file:///etc/passwd", "data:image/png;base64,AAAA", "javascript:alert(1)", "ws://a/"),
        *("http://example.org:99999/", "http://256.1.1.1/", "http://%00.example/", "http://exa<mple.org/", "\ud800"),
    ],
)
def test_urls_that_no_browser_would_fetch_are_refused(text: str) -> None:
    """``BadUrlError``, which becomes ``bad_url``, is the only exception."""
    with pytest.raises(BadUrlError):
        parse_url(text)


def test_a_url_that_is_too_long_is_refused() -> None:
    """The error gives the reason; one character less is accepted."""
    longest = "http://e.org/" + "a" * (65_536 - 13)
    assert parse_url(longest).host == "e.org"
    with pytest.raises(BadUrlError, match="longer than 65,536 characters"):
        parse_url(longest + "a")


@pytest.mark.parametrize(
    ("location", "reached"),
    [
        ("/b.jpg", "http://user:secret@example.org:8080/b.jpg"),
        ("b.jpg", "http://user:secret@example.org:8080/a/b.jpg"),
        ("?x=1", "http://user:secret@example.org:8080/a/cat.jpg?x=1"),
        ("http://example.org:8080/b.jpg", "http://example.org:8080/b.jpg"),
        ("https://elsewhere.example/b.jpg", "https://elsewhere.example/b.jpg"),
        ("//elsewhere.example/b.jpg#part", "http://elsewhere.example/b.jpg"),
        ("http://elsewhere.example/a b.jpg", "http://elsewhere.example/a%20b.jpg"),
        ("/\udce9t\udce9.jpg", "http://user:secret@example.org:8080/%E9t%E9.jpg"),
        ("/é.jpg", "http://user:secret@example.org:8080/%C3%A9.jpg"),
    ],
)
def test_a_redirect_leads_where_a_browser_would_go(location: str, reached: str) -> None:
    """It may be relative or not, and have any bytes; credentials stay with their host."""
    assert str(join_url(parse_url("http://user:secret@example.org:8080/a/cat.jpg"), location)) == reached


@pytest.mark.parametrize(
    "location", ["ftp://example.org/", "data:,", "javascript:alert(1)", "http://", "file:///etc", "//\ud800/"]
)
def test_a_redirect_out_of_the_web_is_refused(location: str) -> None:
    """Only http and https are followed."""
    with pytest.raises(BadUrlError, match="redirected"):
        join_url(parse_url("http://example.org/"), location)


def test_a_host_is_a_name_and_a_port() -> None:
    """The default port is added where none is given."""
    assert parse_url("http://Example.org/").authority == parse_url("http://example.org:80/x").authority
    assert parse_url("http://example.org/").authority != parse_url("https://example.org/").authority


@pytest.mark.parametrize(
    ("published", "parts"),
    [
        ("http://Example.org", ("http", "", "example.org", 80, "/", "example.org:80", "example.org")),
        ("https://example.org:443/a?b", ("https", "", "example.org", 443, "/a?b", "example.org:443", "example.org")),
        ("https://e.org:80/a?", ("https", "", "e.org", 80, "/a", "e.org:80", "e.org:80")),
        ("http://e.org/a??", ("http", "", "e.org", 80, "/a??", "e.org:80", "e.org")),
        ("http://[::1]/", ("http", "", "::1", 80, "/", "::1:80", "[::1]")),
        ("http://[::1]:8080/", ("http", "", "::1", 8080, "/", "::1:8080", "[::1]:8080")),
        ("http://e.org.:81/@?/@", ("http", "", "e.org.", 81, "/@?/@", "e.org.:81", "e.org:81")),
        ("http://us/er:p@ss@e.org/", ("http", "", "us", 80, "/er:p@ss@e.org/", "us:80", "us")),
        ("http://user:p@s:s@e.org/", ("http", "user:p%40s%3As", "e.org", 80, "/", "e.org:80", "e.org")),
        ("http://:@e.org/", ("http", "", "e.org", 80, "/", "e.org:80", "e.org")),
    ],
)
def test_a_url_is_taken_apart_once(published: str, parts: tuple[object, ...]) -> None:
    """Requests need the parts as servers, resolvers and limits expect them."""
    url = parse_url(published)
    assert url[1:] == parts
    assert split_url(url.href) == url
    assert split_url(url.href.replace("user:p%40s%3As@", "")) == url.without_login()


def test_what_is_no_web_url_cannot_be_taken_apart() -> None:
    """Only http and https URLs are split."""
    with pytest.raises(BadUrlError):
        split_url("ftp://example.org/")
