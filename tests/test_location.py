"""Locations as they may stand in files, logs and messages."""

import pytest

from datafetch.model.location import is_url, without_secrets


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:pass@host:8443/a%20b.zip?sig=x#y", "https://host:8443/a%20b.zip"),
        ("HTTP://host/a.zip", "http://host/a.zip"),
        ("https://[user:pass@host/a.zip", "the URL"),
        ("https://user:pa/ss@host/a.zip", "the URL"),
        (" https://user:pass@host/a.zip", "the URL"),
        ("https:/user:pass@host/a.zip", "the URL"),
        ("ftp://user:pass@host/a.zip", "the URL"),
        ("archives/user:pass@host.zip", "archives/user:pass@host.zip"),
    ],
)
def test_a_url_is_shown_without_anything_secret(location: str, shown: str) -> None:
    """Credentials, query and fragment go; a path stays."""
    assert without_secrets(location) == shown
    assert is_url(location) == location.lower().startswith(("http://", "https://"))
