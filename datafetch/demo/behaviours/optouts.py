"""Responses that forbid using the image for training, and responses that only look like it."""

from __future__ import annotations

from collections.abc import Mapping

from datafetch.demo.behaviours.exchange import Answer, Behaviour, Exchange
from datafetch.model.outcome import FailureKind


def _tagged(*values: str) -> Answer:
    async def answer(exchange: Exchange) -> None:
        tags = [f"X-Robots-Tag: {value}" for value in values]
        exchange.send_ok(exchange.picture, exchange.content_type, *tags)

    return answer


async def _forbidden_at_length(exchange: Exchange) -> None:
    """Forbid the use, and send without end; a client that obeys has no reason to keep reading."""
    exchange.send_head(200, None, exchange.content_type, "X-Robots-Tag: noai")
    await exchange.send_without_end(exchange.picture)


_FORBIDS: Mapping[str, tuple[str, ...]] = {
    "noai": ("noai",),
    "noimageai": ("noimageai",),
    "noindex": ("noindex",),
    "noimageindex": ("noimageindex",),
    "none": ("none",),
    "noai_in_capitals": ("NoAI",),
    "noai_among_others": ("nofollow, noai,noarchive",),
    "noindex_before_a_semicolon": ("noindex; nofollow",),
    "noai_in_quotes": ('"nofollow, noai"',),
    "noai_in_another_line": ("nofollow", "noai"),
    "noai_for_a_bot": ("somebot: noai",),
    "noai_for_a_bot_at_the_end": ("somebot: nofollow, noai",),
    "noai_after_a_date": ("unavailable_after: 25 Jun 2099 15:00:00 PST, noai",),
    "noai_after_a_setting": ("max-image-preview:large, noai",),
}
_PERMITS: Mapping[str, tuple[str, ...]] = {
    "nofollow": ("nofollow, max-image-preview:large",),
    "robots_no_preview": ("max-image-preview: none",),
    "robots_all": ("all",),
    "robots_unavailable_after": ("unavailable_after: 25 Jun 2099 15:00:00 PST",),
    "noai_lookalike": ("noairplanes, no-index, xnoai",),
    "robots_blank": ("",),
}

OPTOUTS: Mapping[str, Behaviour] = {
    **{name: Behaviour(_tagged(*values), FailureKind.OPTED_OUT) for name, values in _FORBIDS.items()},
    **{name: Behaviour(_tagged(*values)) for name, values in _PERMITS.items()},
    "noai_at_length": Behaviour(_forbidden_at_length, FailureKind.OPTED_OUT),
}
"""Name in the path → what ``X-Robots-Tag`` says."""
