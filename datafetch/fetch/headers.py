"""What a response's headers ask of us."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from multidict import CIMultiDictProxy

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # none: noindex and nofollow
# Each has a value, which may read like a directive: max-image-preview: none forbids a preview.
_WITH_VALUE = re.compile(r"max-(?:image-preview|video-preview|snippet)[\s:=\"']*[\w-]*")
_WORD = re.compile(r"[\w-]+")
_MAX_SECONDS_DIGITS = 9


def opt_out(headers: CIMultiDictProxy[str]) -> str | None:
    """The directive of ``X-Robots-Tag`` by which a response forbids the use of its image, if there is one.

    A directive with a bot's name before it (``examplebot: noai``) counts as much: who forbids it to one collector of
    training data hardly means to allow it to the next. Directives stand apart by commas; semicolons, blanks and quotes
    are the web's own, and whoever wrote them meant the same.

    Source:
        https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag for the header's form;
        noai and noimageai are DeviantArt's (2022), as img2dataset reads them.
    """
    for value in headers.getall("X-Robots-Tag", ()):
        for word in _WORD.findall(_WITH_VALUE.sub(" ", value.lower())):
            if word in _OPT_OUTS:
                return str(word)
    return None


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """``Retry-After`` in seconds from now, for both of its forms; None where there is none that can be read.

    Source:
        RFC 9110, 10.2.3.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:_MAX_SECONDS_DIGITS])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for numbers that no date holds
        return None
    if at.tzinfo is None:  # "-0000": UTC, from nowhere in particular
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def content_codings(headers: CIMultiDictProxy[str]) -> Iterable[str]:
    """The codings of the body, the one applied last first: the order in which to undo them."""
    values = headers.getall("Content-Encoding", ())
    codings = [coding.strip().lower() for value in values for coding in value.split(",")]
    return [coding for coding in reversed(codings) if coding not in ("", "identity")]
