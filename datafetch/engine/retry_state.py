"""The retry of an output that is under way: which one it is, of what, and where it keeps what it has fetched.

Rules: ``retry.json`` is there from the beginning of a retry until it is complete, so that one which was interrupted is
completed before another begins, and no URL is requested twice. It says what that one tries again and what it may take,
so that completing it needs no option.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from datafetch.engine.job import Job
from datafetch.engine.ownership import refuse_left_spools
from datafetch.engine.permissions import Permitted
from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Count, PathText, PlainName
from datafetch.model.outcome import FailureKind
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import read_shard_summary
from datafetch.store.retry_filter import Retry, RetryFilter
from datafetch.store.state_file import read_state_file


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryState:
    """What is noted of a retry. Field names are those of the file.

    Attributes:
        number: Which one.
        kinds: Failure kinds that it tries again; None for those that may pass.
        also: Kinds that it tries again besides those that may pass.
        scratch: Where its spools lie, as the option says it; None is the state folder.
        token: As its spools have it.
        permitted: What it may take; None where an earlier version noted it.
    """

    number: Count
    kinds: tuple[FailureKind, ...] | None
    also: tuple[FailureKind, ...] = ()
    scratch: PathText | None
    token: PlainName
    permitted: Permitted | None = None

    def wanted(self) -> RetryFilter:
        """Which failures it tries again."""
        return RetryFilter(None if self.kinds is None else frozenset(self.kinds), frozenset(self.also))

    def resumed(self, job: Job) -> Job:
        """The job with what the retry had of its own."""
        if self.permitted is not None:
            job = self.permitted.added_to(Permitted.of(job)).apply_to(job)
        return replace(job, scratch=self.scratch)


def begin_retry(layout: OutputLayout, wanted: RetryFilter, shards: Sequence[str], permitted: Permitted) -> Retry:
    """Begin a retry, or resume the one that was interrupted.

    Raises:
        ConfigurationError: A retry of other failures was interrupted, or one that had its spools elsewhere.
    """
    note = read_retry_state(layout)
    if note is None:
        ledgers = [path for path in map(layout.ledger, shards) if path.exists()]
        number = 1 + max((read_shard_summary(path).retry for path in ledgers), default=0)
        retry = Retry(number, wanted, secrets.token_hex(4))
    else:
        if not wanted.is_compatible_with(note.wanted()):
            others = [*(["temporary ones"] if note.kinds is None else note.kinds), *note.also]
            raise ConfigurationError(
                f"a retry of other failures ({', '.join(others)}) was interrupted; "
                f"complete it first with 'datafetch retry {shlex.quote(str(layout.out))}'"
            )
        retry = Retry(note.number, note.wanted(), note.token)
        earlier = Path(note.scratch) if note.scratch else None
        refuse_left_spools(
            spools_of(layout, retry), earlier, shards, otherwise="delete that folder to fetch them again"
        )
    scratch = None if layout.scratch is None else str(layout.scratch)
    state = RetryState(
        number=retry.number,
        kinds=None if retry.retry_filter.kinds is None else tuple(sorted(retry.retry_filter.kinds)),
        also=tuple(sorted(retry.retry_filter.also)),
        scratch=scratch,
        token=retry.token,
        permitted=permitted,
    )
    write_atomically(layout.retry, orjson.dumps(state, option=orjson.OPT_INDENT_2))
    return retry


def spools_of(layout: OutputLayout, retry: Retry) -> OutputLayout:
    """The same output, with the spools of a retry; those of another one are never taken for its own."""
    return replace(layout, job_hash=f"{layout.job_hash}-retry-{retry.number}-{retry.token}")


def end_retry(layout: OutputLayout) -> None:
    """Forget a retry that is complete, and the spools that runs which were killed left of it."""
    for spools in layout.all_spools.glob(f"{layout.job_hash}-retry-*"):
        shutil.rmtree(spools)
    layout.remove_empty_spool_folders()
    layout.retry.unlink()


def read_retry_state(layout: OutputLayout) -> RetryState | None:
    """What is known of the retry that was interrupted; None if none was.

    Raises:
        ConfigurationError: The note is damaged.
    """
    damaged = ConfigurationError(
        f"{layout.retry} is damaged; delete it, and what the interrupted retry had fetched is fetched again"
    )
    return read_state_file(layout.retry, RetryState, damaged)
