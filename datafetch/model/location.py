"""Where something lies: a path on this machine, or a URL, which may have a secret in it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from datafetch.errors import ConfigurationError

HIDDEN_URL = "the URL"
"""What stands in place of a URL of which it can't be told what is a secret."""
_URL = re.compile(r"https?://", re.IGNORECASE)
_REMOTE = re.compile(r"(?i:https?)://|(?:hf|gitlab|s3|gs)://")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = "s3://"
_OUT_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_ANY_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Whether a location is on a server."""
    return _URL.match(location) is not None


def is_remote(location: str) -> bool:
    """Whether a location is anywhere but on this machine: on a server, the hub, GitLab or in an object store."""
    return _REMOTE.match(location) is not None


def is_bucket(location: str) -> bool:
    """Whether a location is in a bucket that an output may be written to."""
    return location.startswith(_BUCKET)


def refuse_as_output(location: str) -> None:
    """Check that an output can be written to a location.

    Raises:
        ConfigurationError: It is neither a folder nor in a bucket.
    """
    match = _OUT_SCHEME.match(location)
    if match is None or is_bucket(location):
        return
    why = "is not known to have conditional puts, without which two runs could spoil an output"
    kind = match[1].lower()
    raise ConfigurationError(
        f"{without_secrets(location)} is no place for an output"
        f"{f', since {kind}:// {why}' if kind in ('gs', 'az', 'abfs') else ''}; give a folder, or s3://BUCKET/FOLDER"
    )


def output_below(root: Path | str, path: str) -> str:
    """The location of an output below the trainer's data folder.

    Args:
        root: The data folder, or a location in a bucket.
        path: The path of the output below it.
    """
    if isinstance(root, str) and _OUT_SCHEME.match(root):
        return f"{root.rstrip('/')}/{path}"
    return str(Path(root) / path)


def unknown_scheme(location: str) -> str:
    """The scheme of a location that looks like a URL and is of no kind that can be read; otherwise empty."""
    match = _SCHEME.match(location)
    return match[1] if match and not is_remote(location) else ""


def at_mirror(url: str, mirror: str) -> str:
    """The URL at which a mirror has a published file, ``BASE/HOST/PATH``; without a mirror, the published URL.

    Args:
        url: The published URL. Its credentials are for its own host, and so no part of the result.
        mirror: The base URL of the mirror; empty if there is none.
    """
    if not mirror or not is_url(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # who requests it says so
        return url
    query = f"?{parts.query}" if parts.query else ""
    return f"{mirror.rstrip('/')}/{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def without_secrets(location: str) -> str:
    """A location as it may stand in files, logs and messages: a URL without credentials, query and fragment.

    What looks like a URL and is none is not shown at all, for it can't be told what of it is a secret.
    """
    if not _ANY_SCHEME.match(location):
        return location
    try:
        parts = urlsplit(location)
        _ = parts.port  # of a password with a slash it is no number
    except ValueError:
        return HIDDEN_URL
    if not is_remote(location):
        return HIDDEN_URL
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
