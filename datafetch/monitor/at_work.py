"""Whether a run is at work on an output, found out without a lock: by its heartbeats, and by who has the lock.

Theory of operation. A run takes the lock before it writes its first heartbeat, and on a filesystem without locks there
are heartbeats alone. So both count: a recent heartbeat, and the note in the lock file of a process that exists on this
machine. Whether a process of another machine exists is unknown, and so its note alone decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from datafetch.errors import ConfigurationError
from datafetch.monitor.heartbeat import MAX_AGE_S, ProgressSnapshot, read_snapshots
from datafetch.store.layout import OutputLayout
from datafetch.store.lock_holder import LockHolder, read_holder


def find_holder(layout: OutputLayout) -> LockHolder | None:
    """Who holds the lock of an output; None if nobody does, or a process of this machine that has ended."""
    for path in filter(None, (layout.lock, layout.real_lock)):
        holder = read_holder(path)
        if holder is not None and (holder.exists or not holder.is_here):
            return holder
    return None


def is_held(holder: LockHolder, snapshots: Sequence[ProgressSnapshot]) -> bool:
    """Whether a process surely has the lock: it exists, and has not ended its run, after which it releases it."""
    return holder.exists and not any(
        one.is_ended and one.pid == holder.pid and one.updated_unix_s >= holder.since_unix_s for one in snapshots
    )


def refuse_at_work(layout: OutputLayout, *, no_lock: bool) -> None:
    """Refuse to start a run on an output on which another is at work.

    Args:
        layout: The paths of the output.
        no_lock: Whether the run is to do without a lock, on a filesystem that has none.

    Raises:
        ConfigurationError: Another run is at work.
    """
    snapshots, holder = read_snapshots(layout), find_holder(layout)
    names = [one.name for one in snapshots if one.is_at_work()]
    if holder is not None and is_held(holder, snapshots):
        names.append(holder.name)
    if names:
        alone = ", and --no-lock is for outputs that no other run uses" if no_lock else ""
        raise ConfigurationError(
            f"a run is working on {layout.out} ({names[0]}){alone}; wait for it, or stop it first; if it was killed, "
            f"run the same command again in {MAX_AGE_S:.0f} seconds"
        )
