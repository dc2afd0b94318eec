"""Which failures a retry fetches again.

Rules: both the source of a retry's samples and the merge of its results decide by this module, so they can't disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from datafetch.model.fields import check_types
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Failure, FailureKind
from datafetch.store.spool_format import ImageResult, SpooledImage
from datafetch.store.spool_reader import SpooledSample


@dataclass(frozen=True, slots=True)
class RetryFilter:
    """Selects the failures that are fetched again.

    Attributes:
        kinds: The failure kinds; None selects temporary failures (``Failure.may_pass``) and those of ``also``.
        also: Failure kinds that are fetched again besides the temporary ones, because an option now permits them.
    """

    kinds: frozenset[FailureKind] | None = None
    also: frozenset[FailureKind] = frozenset()

    def __post_init__(self) -> None:
        """Refuse what is no failure kind; the kinds may be given as plain strings, and in any collection."""
        check_types(self)

    @classmethod
    def all(cls) -> RetryFilter:
        """A filter that selects every failure."""
        return cls(frozenset(FailureKind))

    def matches(self, failure: Failure) -> bool:
        """Whether an image that failed like this is fetched again."""
        if self.kinds is not None:
            return failure.kind in self.kinds
        return failure.may_pass or failure.kind in self.also

    def is_compatible_with(self, interrupted: RetryFilter) -> bool:
        """Whether a retry with this filter may complete an interrupted one instead.

        With explicit kinds, the interrupted retry must have the same. Without them any interrupted retry will do, as
        long as it covers the kinds of ``also``.
        """
        if self.kinds is not None:
            return self.kinds == interrupted.kinds
        return self.also <= (interrupted.also if interrupted.kinds is None else interrupted.kinds)

    def matches_any(self, lines: tuple[LedgerLine, ...]) -> bool:
        """Whether one of a sample's images is fetched again."""
        return any(self._matches_line(line) for line in lines)

    def images_to_keep(self, stored: SpooledSample, lines: tuple[LedgerLine, ...]) -> tuple[SpooledImage, ...]:
        """The results of those of a sample's images that are not fetched again, unchanged.

        Args:
            stored: The sample and its images that arrived, as they were stored for a retry.
            lines: The ledger lines of all of its images.
        """
        arrived = {image.line.image: image for image in stored.images}
        return tuple(
            replace(arrived[line.image], line=line) if line.image in arrived else ImageResult(line, b"")
            for line in lines
            if line.image in arrived or (line.failure is not None and not self._matches_line(line))
        )

    def _matches_line(self, line: LedgerLine) -> bool:
        return line.failure is not None and self.matches(line.failure)


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
