"""The retry of an output that is under way: which one it is, of what, and where it keeps what it has fetched.

Rules: ``retry.json`` is there from the beginning of a retry until it is complete, so that one which was interrupted is
completed before another begins, and asks nobody twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from datafetch.claim import refuse_left_spools
from datafetch.durable import write_atomically
from datafetch.errors import ConfigurationError
from datafetch.ledger import read_books
from datafetch.state import State
from datafetch.wanted import Retry, Wanted


def begin_retry(state: State, wanted: Wanted, shards: Sequence[str]) -> Retry:
    """Begin a retry, or go on with the one that was interrupted.

    Raises:
        ConfigurationError: A retry of other failures was interrupted, or one that had its spools elsewhere.
    """
    kinds = None if wanted.kinds is None else sorted(kind.value for kind in wanted.kinds)
    if state.retry.exists():
        number = _number_of_interrupted(state, kinds)
    else:
        ledgers = [path for path in map(state.ledger, shards) if path.exists()]
        number = 1 + max((read_books(path).retry for path in ledgers), default=0)
    scratch = None if state.scratch is None else str(state.scratch.absolute())
    facts = {"number": number, "kinds": kinds, "scratch": scratch}
    write_atomically(state.retry, orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    return Retry(number, wanted)


def spools_of(state: State, retry: Retry) -> State:
    """The same output, with the spools of a retry; those of another one are never taken for its own."""
    return replace(state, job_hash=f"{state.job_hash}-retry-{retry.number}")


def end_retry(state: State) -> None:
    """Forget a retry that is complete, and the spools that runs which were killed left of it."""
    for spools in state.all_spools.glob(f"{state.job_hash}-retry-*"):
        shutil.rmtree(spools)
    state.forget_spools()
    state.retry.unlink()


def _number_of_interrupted(state: State, kinds: list[str] | None) -> int:
    try:
        before = orjson.loads(state.retry.read_bytes())
        number, kinds_before = int(before["number"]), before["kinds"]
        earlier = Path(before["scratch"]) if before.get("scratch") else None
        how = "without --kinds" if kinds_before is None else f"with --kinds {','.join(kinds_before)}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{state.retry} is damaged; delete it, and what lies in {state.all_spools}") from error
    if kinds_before != kinds:
        raise ConfigurationError(f"a retry of {state.out} was interrupted; complete it first, {how}")
    refuse_left_spools(
        spools_of(state, Retry(number, Wanted())), earlier, otherwise="delete that folder to fetch them again"
    )
    return number
