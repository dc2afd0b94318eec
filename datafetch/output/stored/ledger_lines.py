"""LedgerLines: the lines of all ledgers of an output by their number, a few row groups of them in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from datafetch.model.ledger_line import LedgerLine
from datafetch.store.ledger_reader import RowGroup, read_columns, read_row_group, row_group_lines

_MAX_ROW_GROUPS = 8  # of at most 16,384 lines and some 8 MB of text each; the images of a new run mostly come in order


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line of a ledger, and the number of its ledger."""

    ledger: int
    line: LedgerLine


class LedgerLines:
    """The lines of ledgers, numbered across all of them.

    Args:
        ledgers: The ledgers, in the order in which their lines are numbered.

    Raises:
        ConfigurationError: A file is not a ledger.
    """

    def __init__(self, ledgers: Sequence[Path]) -> None:
        self._groups: list[tuple[int, int]] = []  # ledger, and row group in it
        sizes = []
        for number, path in enumerate(ledgers):
            lines = row_group_lines(path)
            self._groups += [(number, group) for group in range(len(lines))]
            sizes += lines
        self._ledgers = ledgers
        self._starts = np.array([0, *accumulate(sizes)], np.int64)
        self._recent: OrderedDict[int, RowGroup] = OrderedDict()

    def urls(self, ledger: int) -> Iterator[tuple[int, str, str]]:
        """Of each line of a ledger, in order: the position of its sample, its URL and its outcome."""
        for batch in read_columns(self._ledgers[ledger], ("sample", "url", "outcome")):
            yield from zip(*(batch[name].to_pylist() for name in ("sample", "url", "outcome")), strict=True)

    def read(self, number: int) -> NumberedLine:
        """The line with a number, counted from 0.

        Raises:
            OSError: The ledger can't be read any more.
        """
        group = int(np.searchsorted(self._starts, number, "right")) - 1
        ledger, group_in_ledger = self._groups[group]
        if group not in self._recent:
            self._recent[group] = read_row_group(self._ledgers[ledger], group_in_ledger)
        self._recent.move_to_end(group)
        if len(self._recent) > _MAX_ROW_GROUPS:
            self._recent.popitem(last=False)
        return NumberedLine(ledger, self._recent[group].line(number - int(self._starts[group])))
