"""What is said of the status of a run, in tables that fit a terminal.

Rules: nothing is computed here. Text from the web, such as the name of a host, can't control the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datafetch.cli.exit_code import without_fresh
from datafetch.cli.progress_line import waiting_text
from datafetch.model.outcome import FailureKind
from datafetch.model.statistics import WorkerState
from datafetch.model.untrusted import to_printable
from datafetch.model.wording import clock, command_that_made, counted, lasting, sized
from datafetch.monitor.cluster_snapshot import NodeState
from datafetch.monitor.host_failures import FailingHost
from datafetch.monitor.status import RunState, Status
from datafetch.store.last_stop import LastStop
from datafetch.store.lock_holder import LockHolder

_HOST_COLUMNS = 40
_SHOWN_PROCESSES = 4
_SHOWN_NODES = 20
_SHOWN_HOSTS = 5
_SHOWN_STATUSES = 8


def status_text(status: Status, *, shows_all_hosts: bool) -> str:
    """The status of a run, with the few hosts that have the most failures, or all that are known."""
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(_facts(status))
        if status.nodes:
            console.print(Padding(_nodes(status), (1, 0, 0, 0)))
        if status.by_kind:
            console.print(Padding(_kinds(status), (1, 0, 0, 0)))
        if status.hosts:
            shown = status.hosts if shows_all_hosts else status.hosts[:_SHOWN_HOSTS]
            console.print(Padding(_hosts(shown, is_pruned=status.is_pruned), (1, 0, 0, 0)))
            if status.is_pruned:
                console.print("at least, as hosts with few failures are no longer counted when there are very many")
            if len(shown) < len(status.hosts):
                console.print(f"the next {len(status.hosts) - len(shown)} of them: --hosts")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _facts(status: Status) -> Table:
    """A table of single numbers, with one line for each thing that is counted."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(_plain(status.dataset), _plain(str(status.out)))
    table.add_row("state", _state(status))
    is_over = status.expected_images is None or status.state is RunState.COMPLETE
    expected = "" if is_over else f" of about {status.expected_images:,}"
    left = f", {status.open_images:,} open" if status.open_images and not is_over else ""
    table.add_row("images", f"{status.ended:,}{expected}: {status.ok:,} ok, {status.failed:,} failed{left}")
    table.add_row(
        "samples",
        f"{status.samples:,} ended; published shards have {status.rows:,} rows, {status.dropped:,} were dropped",
    )
    table.add_row(
        "shards", f"{status.shards_published:,} of {status.shards:,} published, {status.shards_open:,} in progress"
    )
    if status.equal is not None:
        epoch = status.equal
        table.add_row(
            "ranks",
            f"{epoch.world_size:,}, of {counted(epoch.samples_per_rank, 'sample')} each; an epoch uses {epoch.used:,}",
        )
    table.add_row(
        "bytes",
        f"{sized(status.fetched_bytes)} fetched, {sized(status.published_bytes)} published, "
        f"{sized(status.spooled_bytes)} spooled",
    )
    if status.images_per_s is not None and status.elapsed_s is not None:
        table.add_row("pace", _pace(status, status.images_per_s, status.elapsed_s))
    if status.workers:
        table.add_row("workers", _workers(status.workers))
    if status.waiting is not None:
        table.add_row("waiting", _plain(waiting_text(status.waiting)))
    return table


def _state(status: Status) -> Text:
    if status.at_work:
        processes = [f"process {one.pid} on {one.host}" for one in status.at_work[:_SHOWN_PROCESSES]]
        others = len(status.at_work) - len(processes)
        return _plain(f"{status.state} ({', '.join(processes)}{f' and {others:,} others' if others else ''})")
    parts = [f"{status.state}"]
    if status.state is RunState.INTERRUPTED and status.has_open_retry:
        parts[0] += " in a retry; 'datafetch retry' completes it"
    elif status.state is RunState.INTERRUPTED and status.missing_shards:
        parts[0] = "damaged"  # all had been made once
    if status.holder is not None:
        parts.append(_holder_text(status.state, status.holder))
    if status.missing_shards:
        number, first = len(status.missing_shards), status.missing_shards[0]
        parts.append(
            f"{counted(number, 'shard')} of the output {'is' if number == 1 else 'are'} missing or changed, "
            f"{'the first is ' if number > 1 else ''}{first}"
        )
        if status.state is RunState.INTERRUPTED and not status.has_open_retry:
            parts.append(f"the command that made the output makes it again; {command_that_made(status.out)}")
    if status.damaged_ledgers:
        parts.append(left_out_text(status))
    if status.problem:
        parts.append(status.problem)
    if status.last_stop is not None:
        parts.append(last_stop_text(status.last_stop))
    return _plain("; ".join(parts))


def last_stop_text(stop: LastStop) -> str:
    """When a run stopped, and why, as it said then."""
    message = without_fresh(stop.message) if stop.was_fresh else stop.message
    return f"stopped {lasting(time.time() - stop.unix_s)} ago: {message}"


def left_out_text(status: Status) -> str:
    """What the status of an output with damaged ledgers lacks."""
    number, first = len(status.damaged_ledgers), status.damaged_ledgers[0]
    shards = counted(number, "shard")
    return f"without {shards} with a damaged ledger, {'the first is ' if number > 1 else ''}{first}"


def _holder_text(state: RunState, holder: LockHolder) -> str:
    text = f"{holder.name} has had the lock for {holder.held_for}"
    match state:
        case RunState.STARTING:
            return f"{text}, and has written no heartbeat yet"
        case RunState.UNRESPONSIVE:
            return f"{text}, but writes no heartbeat any more"
    return text if holder.is_here else f"{text}, unless it was killed, which can't be told from here"


def _pace(status: Status, images_per_s: float, elapsed_s: float) -> str:
    if not status.at_work and not images_per_s:
        return f"no image in the last run, which took {lasting(elapsed_s)}"
    parts = [
        f"{images_per_s:,.1f} images/s",
        f"{lasting(elapsed_s)} {'so far' if status.at_work else 'in the last run'}",
    ]
    if status.at_work:
        if status.left_s is not None:
            parts.append(f"ETA {clock(status.left_s)}")
        open_requests = sum(one.statistics.open_requests for one in status.at_work)
        parts.append(f"{counted(open_requests, 'request')} open" if open_requests else "no request open")
        transcoding = sum(one.statistics.transcoding for one in status.at_work)
        if transcoding and not open_requests:  # the network waits for it
            parts.append(f"{counted(transcoding, 'image')} being transcoded")
    return ", ".join(parts)


def _workers(workers: Sequence[WorkerState]) -> str:
    """How many images each had, and what became of them."""
    images = [worker.images for worker in workers]
    text = f"{len(workers):,}, with {min(images):,} to {max(images):,} images each"
    kills = sum(worker.kills for worker in workers)
    return f"{text}; {kills:,} {'was' if kills == 1 else 'were'} killed and replaced" if kills else text


def _nodes(status: Status) -> Table:
    """A table of the nodes of a cluster: those that need to be looked at first, then the fastest."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("node", no_wrap=True, overflow="ellipsis", max_width=_HOST_COLUMNS)
    table.add_column("state", overflow="fold")
    for title in ("images/s", "ok", "failed", "shards"):
        table.add_column(title, justify="right")
    urgent = {NodeState.SICK, NodeState.REFUSED, NodeState.LOST}
    nodes = sorted(status.nodes, key=lambda node: (node.state not in urgent, -node.images_per_s, node.name))
    for node in nodes[:_SHOWN_NODES]:
        state = f"{node.state}: {node.reason}" if node.reason else node.state
        counts = (f"{node.ok:,}", f"{node.failed:,}", f"{node.shards_published:,}")
        table.add_row(_plain(node.name), _plain(state), f"{node.images_per_s:,.1f}", *counts)
    if len(nodes) > _SHOWN_NODES:
        table.add_row(f"{len(nodes) - _SHOWN_NODES:,} others: --json lists all")
    return table


def _kinds(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("why images failed")
    table.add_column("images", justify="right")
    table.add_column("of all", justify="right")
    table.add_column("" if not status.by_status else "HTTP status", overflow="fold")
    for kind, count in status.by_kind.items():
        codes = _codes(status) if kind == FailureKind.HTTP_STATUS else ""
        table.add_row(_plain(kind), f"{count:,}", f"{count / status.ended:.1%}", codes)
    return table


def _codes(status: Status) -> str:
    """How often each HTTP status came, the most frequent first."""
    codes = [f"{code} {count:,}" for code, count in status.by_status.items()]
    others = len(codes) - _SHOWN_STATUSES
    return " · ".join([*codes[:_SHOWN_STATUSES], *([counted(others, "other")] if others > 0 else [])])


def _hosts(hosts: Sequence[FailingHost], *, is_pruned: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("where most failed", no_wrap=True, overflow="ellipsis", max_width=_HOST_COLUMNS)
    table.add_column("at least" if is_pruned else "images", justify="right")
    table.add_column("why", overflow="fold")
    for host in hosts:
        table.add_row(Text(host.host or "(no host)"), f"{host.failed:,}", _why(host))
    return table


def _why(host: FailingHost) -> Text:
    return _plain(", ".join(f"{kind} {count:,}" for kind, count in host.by_kind.items()))


def _plain(text: str) -> Text:
    """Text without markup and control characters."""
    return Text(to_printable(text))
