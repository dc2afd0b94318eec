"""ImageCounts: what became of images, in numbers; FetchCounts: and what it took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from datafetch.model.advice import FailedAlike
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Source


@dataclass(slots=True)
class ImageCounts:
    """Images that got an outcome in this run.

    Attributes:
        outcomes: Their number by outcome.
        repeated: The number of those that arrived by the result of an earlier request for the same URL.
        adopted: The number of those that were in their place already, or in an earlier output.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    adopted: int = 0

    def add(self, line: LedgerLine, *, is_repeated: bool = False) -> None:
        """Count an image by its ledger line."""
        self.outcomes[line.outcome] += 1
        if line.outcome == OK:
            self.repeated += is_repeated
            is_here = line.source is Source.HAVE or (line.source is Source.WEB and not line.attempts)
            self.adopted += is_here and not is_repeated

    def merge(self, other: ImageCounts) -> None:
        """Add the counts of other images."""
        self.outcomes.update(other.outcomes)
        self.repeated += other.repeated
        self.adopted += other.adopted


@dataclass(frozen=True, slots=True)
class FetchCounts:
    """What fetching the samples of a feed has come to.

    Attributes:
        images: The images that got an outcome.
        requests: The number of attempts; one with redirects counts once.
        fetched_bytes: Body bytes received.
        connections: How many requests might be open at the end.
        peak_open_requests: The largest number of requests that were open at once; of several processes the sum of the
            largest number of each, which is an upper bound.
        failed_alike: How all images that were requested have failed; None unless all did, and alike.
        networks: The networks that would have to be allowed for images that were refused.
    """

    images: ImageCounts
    requests: int
    fetched_bytes: int
    connections: int
    peak_open_requests: int
    failed_alike: FailedAlike | None
    networks: tuple[str, ...]
