"""The failed images of an output, one by one, whether a run is at work or not.

Rules: nothing is locked or written, and memory is bounded, however many images failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, FailureKind
from datafetch.monitor.host_failures import hosts_of
from datafetch.monitor.image_lines import LeaveOut, read_image_lines
from datafetch.monitor.observed_output import ObservedOutput
from datafetch.store.ledger_format import as_batch

_COLUMNS = ("outcome", "url")


@dataclass(frozen=True, slots=True)
class FailedImage:
    """One failed image.

    Attributes:
        shard: The shard of its sample.
        host: The host of its URL, as the status of the run names it, but for characters that can't be printed.
        line: Its ledger line.
    """

    shard: str
    host: str
    line: LedgerLine


@dataclass(frozen=True, slots=True)
class FailureFilter:
    """Which failures are read; of each criterion, empty is all.

    Attributes:
        kinds: Their kinds.
        hosts: The hosts of their URLs, in any case and with or without a port.
        statuses: The HTTP statuses of the last response.
    """

    kinds: Collection[FailureKind] = ()
    hosts: Collection[str] = ()
    statuses: Collection[int] = ()

    def accepts(self, line: LedgerLine) -> bool:
        """Whether a line is that of a failure of these kinds, with one of these statuses."""
        return (
            line.outcome != OK
            and (not self.kinds or line.outcome in self.kinds)
            and (not self.statuses or line.status in self.statuses)
        )


def read_failures(output: ObservedOutput, wanted: FailureFilter, *, leave_out: LeaveOut) -> Iterator[FailedImage]:
    """The failed images of an output, in the order of shards, samples and images.

    Args:
        output: The output.
        wanted: Which failures.
        leave_out: Told of each shard whose ledger is damaged.

    Raises:
        ResourceError: This machine has run out of descriptors or memory.
    """
    hosts = pa.array(sorted(_host_names(wanted.hosts)), pa.string())
    for found in read_image_lines(output, _COLUMNS, partial(_select, hosts=hosts), leave_out=leave_out):
        # Kinds are those of the lines as they are read now: earlier versions wrote some otherwise.
        lines = [line for line in found.lines if wanted.accepts(line)]
        for line, host in zip(lines, hosts_of(as_batch(lines, ["url"])["url"]).to_pylist(), strict=True):
            yield FailedImage(found.shard, host, line)


def _select(lines: pa.RecordBatch, hosts: pa.Array) -> pa.Array:
    has_failed = pc.not_equal(lines["outcome"], OK)
    if not len(hosts):
        return has_failed
    return pc.and_(has_failed, pc.is_in(hosts_of(lines["url"]), value_set=hosts))


def _host_names(hosts: Collection[str]) -> set[str]:
    """Hosts as they are taken from URLs; one may be given with a scheme or a port."""
    urls = [host if "//" in host else f"//{host}" for host in hosts]
    return set(hosts_of(pa.array(urls, pa.string())).to_pylist())
