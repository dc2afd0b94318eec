"""Who holds the lock of an output: a note in the lock file, for messages and for the status of the run.

Rules: nothing is decided by it but what is said, since the lock itself is the kernel's. A holder writes the note when
it has the lock, and deletes it before it releases it, so the note of a process that no longer exists means nothing.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
from msgspec import Meta

from datafetch.model.bounds import Amount, Count
from datafetch.model.wording import lasting
from datafetch.store.state_file import read_if_sound

_MAX_BYTES = 4096
_START_FIELD = 19  # of /proc/<pid>/stat, counted behind the command's name in parentheses
_STATE_FIELD = 0
_ENDED_STATES = ("Z", "X")


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that holds a lock. The names of the fields are those in the file.

    Attributes:
        pid: The process.
        host: The machine on which it runs.
        since_unix_s: When it took the lock.
        process_start: When it started, in clock ticks since the machine did; so that another process with its number is
            not taken for it.
        is_shared: Whether other processes may hold the lock as well; then this one took it last.
    """

    pid: Annotated[int, Meta(ge=1, lt=1 << 31)]
    host: str
    since_unix_s: Amount
    process_start: Count
    is_shared: bool

    @classmethod
    def this_process(cls, *, is_shared: bool) -> LockHolder:
        """This process, as of now."""
        start = _process_start(os.getpid()) or 0
        return cls(os.getpid(), socket.gethostname(), time.time(), start, is_shared)

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def exists(self) -> bool:
        """Whether it exists on this machine. As it would have deleted its note, it then still holds the lock."""
        return self.is_here and _process_start(self.pid) == self.process_start

    @property
    def name(self) -> str:
        """Process and machine, in words."""
        return process_name(self.pid, self.host)

    @property
    def held_for(self) -> str:
        """How long it has had the lock, in words."""
        return lasting(time.time() - self.since_unix_s)


def process_name(pid: int, host: str) -> str:
    """A process and its machine, in words."""
    return f"process {pid} on {host}"


def write_holder(descriptor: int, holder: LockHolder) -> None:
    """Write the note into a lock file whose lock is held; without it, there only is less to say."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, orjson.dumps(holder), 0)


def delete_holder(descriptor: int, holder: LockHolder) -> None:
    """Delete a note, before the lock is released, if it is not that of another process that shares the lock."""
    if _read(descriptor) == holder:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)


def describe_holder(descriptor: int) -> str:
    """Who holds the lock of a lock file, as words in parentheses behind a blank; empty if that is not known."""
    holder = _read(descriptor)
    if holder is None or (holder.is_here and not holder.exists):
        return ""
    others = "; perhaps others, too" if holder.is_shared else ""
    return f" ({holder.name}, for {holder.held_for}{others})"


def read_holder(path: Path) -> LockHolder | None:
    """The note in a lock file; None if there is none. It locks nothing."""
    return read_if_sound(path, LockHolder)


def _read(descriptor: int) -> LockHolder | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, _MAX_BYTES, 0), type=LockHolder)
    except (OSError, ValueError):
        return None


def _process_start(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[_STATE_FIELD] in _ENDED_STATES else int(fields[_START_FIELD])
