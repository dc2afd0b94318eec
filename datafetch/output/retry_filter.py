"""Which failures a retry fetches again.

Rules: both the source of a retry's samples and the merge of its results decide by this module, so they can't disagree.
It decides for a sample as a whole, by the outcomes of its images and not by the order in which they came about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from datafetch.errors import ConfigurationError
from datafetch.model.fields import check_types
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import KINDS_THAT_HOST_DOWN_FOLLOWS, Failure, FailureKind
from datafetch.store.spool_format import ImageResult, SpooledImage
from datafetch.store.spool_reader import SpooledSample


@dataclass(frozen=True, slots=True)
class RetryFilter:
    """Selects the failures that are fetched again.

    Attributes:
        kinds: The failure kinds; None selects temporary failures (``Failure.may_pass``) and those of ``also``. Images
            that were not tried since their host was down go along with the kinds with which a host goes down; which of
            these it was with, only ``detail`` says, in words. That NOT_REQUESTED is among them makes no difference,
            because those images go with their document.
        also: Failure kinds that are fetched again besides the temporary ones, because an option now permits them.

    Raises:
        ConfigurationError: NOT_REQUESTED is the only kind.
    """

    kinds: frozenset[FailureKind] | None = None
    also: frozenset[FailureKind] = frozenset()

    def __post_init__(self) -> None:
        """Refuse what is no failure kind; the kinds may be given as plain strings, and in any collection."""
        check_types(self)
        if self.kinds == frozenset({FailureKind.NOT_REQUESTED}):
            raise ConfigurationError(
                f"{FailureKind.NOT_REQUESTED.value} alone selects nothing, because such images are requested together "
                "with those that failed in their documents; name the kinds of these failures, which 'datafetch status' "
                "lists, or retry all failures"
            )

    @classmethod
    def all(cls) -> RetryFilter:
        """A filter that selects every failure."""
        return cls(frozenset(FailureKind) - {FailureKind.NOT_REQUESTED})

    def matches(self, failure: Failure) -> bool:
        """Whether an image that failed like this is fetched again, unless it failed by not being requested."""
        if self.kinds is not None:
            is_follower = failure.kind is FailureKind.HOST_DOWN
            return failure.kind in self.kinds or (is_follower and bool(self.kinds & KINDS_THAT_HOST_DOWN_FOLLOWS))
        return failure.may_pass or failure.kind in self.also

    def select(self, lines: Iterable[LedgerLine]) -> frozenset[int]:
        """Which images of a sample are fetched again, by number.

        Those that failed in a way that matches, and with them those that were not requested. If none failed otherwise,
        as when a limit was raised while the run was interrupted, nothing but a request can tell whether the latter
        arrive, so they are fetched.

        Args:
            lines: The ledger lines of all of its images.
        """
        failures = {line.image: line.failure for line in lines if line.failure is not None}
        not_requested = frozenset(image for image, one in failures.items() if one.kind is FailureKind.NOT_REQUESTED)
        others = failures.keys() - not_requested
        matching = frozenset(image for image in others if self.matches(failures[image]))
        return matching | not_requested if matching or not others else frozenset()

    def is_compatible_with(self, interrupted: RetryFilter) -> bool:
        """Whether a retry with this filter may complete an interrupted one instead.

        With explicit kinds, the interrupted retry must have the same. Without them any interrupted retry will do, as
        long as it covers the kinds of ``also``.
        """
        if self.kinds is not None:
            return self.kinds == interrupted.kinds
        return self.also <= (interrupted.also if interrupted.kinds is None else interrupted.kinds)

    def images_to_keep(self, stored: SpooledSample, lines: tuple[LedgerLine, ...]) -> tuple[SpooledImage, ...]:
        """The results of those of a sample's images that are not fetched again, unchanged.

        Args:
            stored: The sample and its images that arrived, as they were stored for a retry.
            lines: The ledger lines of all of its images.
        """
        arrived, selected = {image.line.image: image for image in stored.images}, self.select(lines)
        return tuple(
            replace(arrived[line.image], line=line) if line.image in arrived else ImageResult(line, b"")
            for line in lines
            if line.image in arrived or (line.failure is not None and line.image not in selected)
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry of an output's failures.

    Attributes:
        number: Counts the retries of this output, from 1.
        retry_filter: Which failures are fetched again.
        token: Random text that distinguishes its spools from those of any other retry, even one with the same number.
    """

    number: int
    retry_filter: RetryFilter
    token: str = ""
