"""RetryState: the retry of an output that is under way, in ``retry.json``.

Rules: the file exists from the beginning of a retry until it is complete. So an interrupted retry is completed before
another one begins, and no URL is requested twice. It holds which failures the retry selects and what it permits, so
that completing it needs no options.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from datafetch.engine.claim import refuse_left_spools
from datafetch.engine.job import Job
from datafetch.engine.permissions import Permitted
from datafetch.errors import ConfigurationError
from datafetch.model.bounds import Count, PathText, PlainName
from datafetch.model.location import is_bucket
from datafetch.model.outcome import FailureKind
from datafetch.model.wording import command_for
from datafetch.output.retry_filter import Retry, RetryFilter
from datafetch.store.atomic import write_atomically
from datafetch.store.layout import OutputLayout, output_of
from datafetch.store.shard_summary import read_shard_summary
from datafetch.store.state_file import read_state_file


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryState:
    """A retry that is not complete. Field names are those of the file.

    Attributes:
        number: Counts the retries of the output, from 1.
        kinds: The failure kinds that it selects; None selects temporary failures and those of ``also``.
        also: Failure kinds that it selects besides temporary failures.
        scratch: The folder for its spools, as the option gives it; None is the state folder.
        token: Random text in the paths of its spools (``OutputLayout.for_retry``).
        permitted: What it permits; None in files of earlier versions.
    """

    number: Count
    kinds: tuple[FailureKind, ...] | None
    also: tuple[FailureKind, ...] = ()
    scratch: PathText | None
    token: PlainName
    permitted: Permitted | None = None

    @property
    def retry_filter(self) -> RetryFilter:
        """The failures that it selects."""
        return RetryFilter(None if self.kinds is None else frozenset(self.kinds), frozenset(self.also))

    def apply_to(self, job: Job) -> Job:
        """The job with the settings of the retry: its scratch folder, and what it permits beyond the job."""
        if self.permitted is not None:
            job = self.permitted.added_to(Permitted.of(job)).apply_to(job)
        return replace(job, scratch=self.scratch)


def begin_retry(layout: OutputLayout, retry_filter: RetryFilter, shards: Sequence[str], permitted: Permitted) -> Retry:
    """Begin a retry, or resume the one that was interrupted.

    Args:
        layout: The paths of the output, with the scratch folder of this call.
        retry_filter: The failures to fetch again.
        shards: Names of all shards of the output.
        permitted: What is permitted now.

    Raises:
        ConfigurationError: A retry of other failures was interrupted, or one that has its spools in another folder.
    """
    interrupted = read_retry_state(layout)
    if interrupted is None:
        ledgers = [path for path in map(layout.ledger, shards) if path.exists()]
        number = 1 + max((read_shard_summary(path).retry for path in ledgers), default=0)
        retry = Retry(number, retry_filter, secrets.token_hex(4))
    else:
        if not retry_filter.is_compatible_with(interrupted.retry_filter):
            others = [*(["temporary ones"] if interrupted.kinds is None else interrupted.kinds), *interrupted.also]
            raise ConfigurationError(
                f"a retry of other failures ({', '.join(others)}) was interrupted; "
                f"complete it first: {command_for('retry', layout.out)}"
            )
        retry = Retry(interrupted.number, interrupted.retry_filter, interrupted.token)
        earlier = Path(interrupted.scratch) if interrupted.scratch else None
        refuse_left_spools(
            layout.for_retry(retry.number, retry.token),
            earlier,
            shards,
            otherwise="delete that folder to fetch them again",
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


def end_retry(layout: OutputLayout) -> None:
    """Delete the state of a complete retry, and spools that are left of this retry or of earlier ones."""
    for folder in layout.retry_spools():
        shutil.rmtree(folder)
    layout.remove_empty_spool_folders()
    layout.retry.unlink()


def has_open_retry(out: Path | str) -> bool:
    """Whether a retry of an output, or of what is in a place in a bucket, was interrupted.

    Raises:
        ConfigurationError: The file is damaged, or there is no run in that place of the bucket.
        ResourceError: The bucket can't be reached.
    """
    if isinstance(out, str) and is_bucket(out):
        from datafetch.store.buckets.view import RETRY, read_recorded  # noqa: PLC0415 - local retries start without it

        return read_recorded(out, RETRY) is not None
    return read_retry_state(OutputLayout(output_of(Path(out)))) is not None


def read_retry_state(layout: OutputLayout) -> RetryState | None:
    """The state of the retry that was interrupted; None if there is none.

    Raises:
        ConfigurationError: The file is damaged.
    """
    damaged = ConfigurationError(
        f"{layout.retry} is damaged; delete it, and what the interrupted retry had fetched is fetched again"
    )
    return read_state_file(layout.retry, RetryState, damaged)
