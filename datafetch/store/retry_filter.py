"""Which failures are tried again.

Rules: said once, for those who hand out the images and for those who write down what became of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Failure, FailureKind
from datafetch.store.spool import SpooledSample
from datafetch.store.spool_format import ImageResult, StoredImage


@dataclass(frozen=True, slots=True)
class RetryFilter:
    """Failures that are to be tried again.

    Attributes:
        kinds: Of these kinds; None for those that may pass, and those of ``also``.
        also: Kinds that are tried again besides those that may pass, because something is permitted now.
    """

    kinds: frozenset[FailureKind] | None = None
    also: frozenset[FailureKind] = frozenset()

    @classmethod
    def all(cls) -> RetryFilter:
        """Whatever failed."""
        return cls(frozenset(FailureKind))

    def wants(self, failure: Failure) -> bool:
        """Whether to try again after this failure."""
        if self.kinds is not None:
            return failure.kind in self.kinds
        return failure.may_pass or failure.kind in self.also

    def goes_with(self, interrupted: RetryFilter) -> bool:
        """Whether who wants this may be given an interrupted retry to complete: it tries no other kinds than it says.

        Without kinds, it says nothing of those that the interrupted one has.
        """
        if self.kinds is not None:
            return self.kinds == interrupted.kinds
        return self.also <= (interrupted.also if interrupted.kinds is None else interrupted.kinds)

    def wants_any(self, lines: tuple[LedgerLine, ...]) -> bool:
        """Whether one of a sample's images is to be tried again."""
        return any(self._wants_line(line) for line in lines)

    def carried_over(self, kept: SpooledSample, lines: tuple[LedgerLine, ...]) -> tuple[ImageResult | StoredImage, ...]:
        """Those images of a sample that are not fetched again, as they were.

        Args:
            kept: The sample, and those of its images that were kept.
            lines: What the ledger says of all of its images.
        """
        arrived = {end.line.image: end for end in kept.images}
        return tuple(
            replace(arrived[line.image], line=line) if line.image in arrived else ImageResult(line, b"")
            for line in lines
            if line.image in arrived or (line.failure is not None and not self._wants_line(line))
        )

    def _wants_line(self, line: LedgerLine) -> bool:
        return line.failure is not None and self.wants(line.failure)


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry.

    Attributes:
        number: Which one of this output's, counting from 1.
        wanted: Which failures it tries again.
        token: What tells its spools from those of any other, also of one that has the same number.
    """

    number: int
    wanted: RetryFilter
    token: str = ""
