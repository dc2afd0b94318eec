"""Detects the keys under which records have their URLs and texts, for datasets that don't publish them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from datafetch.datasets.jsonl_manifest import JsonObject
from datafetch.errors import ManifestError
from datafetch.model.untrusted import to_printable

URL_KEYS = ("url", "image_url", "raw_url", "img_url", "src")
TEXT_KEYS = ("text", "caption")
_MAX_SHOWN_KEYS = 30
_MAX_SHOWN_CHARS = 40
_URL_STARTS = ("http://", "https://", "//")

_log = logging.getLogger(__name__)


def choose_key(what: str, given: str | None, candidates: Sequence[str], records: Sequence[JsonObject]) -> str:
    """Return the key that the operator gave, or else the candidate under which most of the first records have a value.

    Args:
        what: ``url`` or ``text``, as in ``--url-key``.
        given: The key that the operator gave; None detects it.
        candidates: The keys to try, in order of preference.
        records: The first records of the dataset.

    Raises:
        ManifestError: None of the first records has such a value. The message lists the keys that they have.
    """
    tried = candidates if given is None else (given,)
    counts = {key: sum(_fits(what, record.get(key)) for record in records) for key in tried}
    best = max(counts, key=lambda key: counts[key])
    if counts[best]:
        return best
    found = sorted({to_printable(key[:_MAX_SHOWN_CHARS]) for record in records for key in record})
    shown = ", ".join(found[:_MAX_SHOWN_KEYS]) or "none"
    raise ManifestError(
        f"the first records have no {what} under {' or '.join(tried)}; name the key with --{what}-key; "
        f"the keys that they have: {shown}"
    )


def log_keys(keys: Mapping[str, str]) -> None:
    """Log which keys are used, so that the operator can see whether they are right."""
    _log.info("%s", ", ".join(f"{what} key: {key}" for what, key in keys.items()))


def _fits(what: str, value: object) -> bool:
    if what == "url":
        return isinstance(value, str) and value.strip().lower().startswith(_URL_STARTS)
    return isinstance(value, str)
