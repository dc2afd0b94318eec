"""Reads the response headers that tell what a server wants, or what its body is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

from datafetch.model.outcome import PartialContent
from datafetch.model.request import ByteRange

Headers: TypeAlias = Mapping[str, Sequence[str]]
"""The values of header fields by their names in lower case, in the order in which they came."""

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # none: noindex and nofollow
# Each of these has a value, which may read like a directive: "max-image-preview: none" forbids a preview.
_WITH_VALUE = re.compile(r"max-(?:image-preview|video-preview|snippet)[\s:=\"']*[\w-]*")
_WORD = re.compile(r"[\w-]+")
_MAX_SECONDS_DIGITS = 9
_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)", re.IGNORECASE)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,1000}"')


def first_value(headers: Headers, name: str) -> str:
    """The value of the first field of a name in lower case; empty if there is none."""
    values = headers.get(name)
    return values[0] if values else ""


def opt_out(headers: Headers) -> str | None:
    """The directive of ``X-Robots-Tag`` by which a response forbids the use of its image, if there is one.

    A directive for a named bot (``examplebot: noai``) counts too: a site that forbids its images to one collector of
    training data hardly means to allow them to the next. Directives are separated by commas; semicolons, blanks and
    quotes, which the web uses as well, are taken to mean the same.

    Source:
        https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag for the header's form;
        noai and noimageai are DeviantArt's (2022), as img2dataset reads them.
    """
    for value in headers.get("x-robots-tag", ()):
        for word in _WORD.findall(_WITH_VALUE.sub(" ", value.lower())):
            if word in _OPT_OUTS:
                return str(word)
    return None


def retry_after_s(headers: Headers, now: datetime | None = None) -> float | None:
    """``Retry-After`` in seconds from now, in either of its forms; None if there is none that can be read.

    Source:
        RFC 9110, 10.2.3.
    """
    value = first_value(headers, "retry-after").strip()
    if value.isascii() and value.isdigit():
        return float(value[:_MAX_SECONDS_DIGITS])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for numbers that no date can hold
        return None
    if at.tzinfo is None:  # the zone "-0000" is UTC with no statement about where it was written
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def content_codings(headers: Headers) -> Iterable[str]:
    """The content codings of the body in the order in which to undo them: the one applied last comes first."""
    values = headers.get("content-encoding")
    if values is None:
        return ()  # the usual case, as images are compressed already
    codings = [coding.strip().lower() for value in values for coding in value.split(",")]
    return [coding for coding in reversed(codings) if coding not in ("", "identity")]


def partial_content(headers: Headers, requested: ByteRange | None) -> PartialContent | None:
    """The part of a file that a response says it holds, if that is the beginning of the part that was requested.

    A response may stop short of the requested range: at the end of the file, and wherever the server sends no more.

    Returns:
        None where no range was requested, where there is not exactly one ``Content-Range`` in bytes (a response of
        several parts has none), and where it is for other bytes than those requested or contradicts itself.

    Source:
        RFC 9110, 14.4.
    """
    if requested is None:
        return None
    values = headers.get("content-range", ())
    match = _CONTENT_RANGE.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        return None
    start, stop, total_bytes = int(match[1]), int(match[2]) + 1, int(match[3]) if match[3] else None
    is_range = start < stop and (total_bytes is None or stop <= total_bytes)
    if start != requested.start or stop > requested.stop or not is_range:
        return None
    etag = first_value(headers, "etag").strip()
    return PartialContent(start, stop, total_bytes, etag if _STRONG_ETAG.fullmatch(etag) else "")
