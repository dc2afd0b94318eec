"""The headers that tell what a server wants."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafetch.fetch.headers import Headers, content_codings, opt_out, retry_after_s

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def _headers(name: str, *values: str) -> Headers:
    return {name: values} if values else {}


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["nofollow", "noimageindex"], "noimageindex"),
        (["examplebot: noai"], "noai"),
        (["examplebot: nofollow, noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], "noindex"),
        (["none"], "none"),
        (["None, nosnippet"], "none"),
        (["examplebot: none"], "none"),
        (["noindex; nofollow"], "noindex"),
        (["nofollow;noindex"], "noindex"),
        (["nofollow noimageai"], "noimageai"),
        (['"noindex"'], "noindex"),
        (['"nofollow, noai"'], "noai"),
        (["'noindex', 'nofollow'"], "noindex"),
        (["examplebot: 'noai'"], "noai"),
        (["max-image-preview: none, noindex"], "noindex"),
        (["max-snippet:0; max-image-preview: 'none' noai"], "noai"),
        (["nofollow, max-image-preview:large"], None),
        (["max-image-preview:none"], None),
        (["examplebot: max-image-preview: none"], None),
        (["max-video-preview = none; max-image-preview: 'none'"], None),
        (["nonesuch, noai-bot: all, no index"], None),
        (["noaision"], None),
        (["all"], None),
        ([""], None),
        ([], None),
    ],
)
def test_an_opt_out_is_found_in_every_form(values: list[str], directive: str | None) -> None:
    """A directive may stand alone, among others, in any case or after a bot's name; nothing else is taken for one."""
    assert opt_out(_headers("x-robots-tag", *values)) == directive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 400, 999_999_999.0),
        ("Mon, 23 Nov 2026 12:01:30 GMT", 90.0),
        ("Mon, 23 Nov 2026 12:01:30 -0000", 90.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Monday, 23-Nov-26 12:00:10 GMT", 10.0),
        ("soon", None),
        ("Mon, 23 Nov 99999999999999999999 12:00:00 GMT", None),
        ("Mon, 23 Nov 2026 12:00:00 +99999999999999999999", None),
        ("Mon, 99999999999999999999 Nov 2026 12:00:00 GMT", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    """Both forms of RFC 9110 are read, and anything else is ignored."""
    assert retry_after_s(_headers("retry-after", value), NOW) == seconds


def test_a_missing_retry_after_means_no_pause() -> None:
    """A header that is not there means no pause."""
    assert retry_after_s(_headers("retry-after")) is None


@pytest.mark.parametrize(
    ("values", "codings"),
    [
        ([], []),
        (["identity"], []),
        (["gzip"], ["gzip"]),
        (["GZIP, br"], ["br", "gzip"]),
        (["deflate", "gzip"], ["gzip", "deflate"]),
        ([", ,"], []),
    ],
)
def test_codings_are_returned_from_the_last(values: list[str], codings: list[str]) -> None:
    """The order of the header is the order in which they were applied."""
    assert list(content_codings(_headers("content-encoding", *values))) == codings


@given(st.text(max_size=60))
def test_no_header_raises_an_exception(value: str) -> None:
    """A server's header must not end a run."""
    seconds = retry_after_s(_headers("retry-after", value), NOW)
    assert seconds is None or seconds >= 0
