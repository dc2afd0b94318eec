"""Detects and logs under which keys records have their URLs and texts, where that is not published."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from datafetch.datasets.jsonl_manifest import JsonObject
from datafetch.errors import ManifestError

URL_KEYS = ("url", "image_url", "raw_url", "img_url", "src")
TEXT_KEYS = ("text", "caption")
_MAX_SHOWN_KEYS = 30
_MAX_SHOWN_CHARS = 40
_URL_STARTS = ("http://", "https://", "//")

_log = logging.getLogger(__name__)


def choose_key(what: str, said: str | None, candidates: Sequence[str], records: Sequence[JsonObject]) -> str:
    """The key that was said, or else the candidate that most of the first records have.

    Args:
        what: ``url`` or ``text``, as in ``--url-key``.
        said: By the operator; None finds out.
        candidates: In order of preference.
        records: The first ones.

    Raises:
        ManifestError: None of the first records has it. The message has the keys that are there.
    """
    names = candidates if said is None else (said,)
    counts = {name: sum(_fits(what, record.get(name)) for record in records) for name in names}
    best = max(counts, key=lambda name: counts[name])
    if counts[best]:
        return best
    there = sorted({_shown(key) for record in records for key in record})
    shown = ", ".join(there[:_MAX_SHOWN_KEYS]) or "none"
    tried = " or ".join(names)
    raise ManifestError(
        f"the first records have no {what} under {tried}; name the key with --{what}-key; there are: {shown}"
    )


def _shown(key: str) -> str:
    """A key of other people as it can stand in a line: nothing in it steers the terminal."""
    return "".join(character if character.isprintable() else "�" for character in key[:_MAX_SHOWN_CHARS])


def log_keys(keys: Mapping[str, str]) -> None:
    """Say which keys were taken, for the operator to see whether they are right."""
    _log.info("%s", ", ".join(f"{what} key: {key}" for what, key in keys.items()))


def _fits(what: str, value: object) -> bool:
    if what == "url":
        return isinstance(value, str) and value.strip().lower().startswith(_URL_STARTS)
    return isinstance(value, str)
