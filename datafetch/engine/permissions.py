"""What a job permits that is refused by default, and how a retry's permissions are remembered.

Rules: permissions are not part of a job's identity. What a retry permits also holds for all later ones. Otherwise an
image that needs a permission, and failed for another reason, would be refused for good by the next retry. ``prepare``
replaces everything that is permitted. Which options permit something is declared at the options (``Effect.PERMITS``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from datafetch.engine.job import Job, read_job, settings_of
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.bounds import Count
from datafetch.model.options import Effect, OptionField, as_given, options_of
from datafetch.model.outcome import FailureKind, Permission
from datafetch.model.report import PermittedSince
from datafetch.store.job_file import replace_settings
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import count_unpermitted
from datafetch.transcode import ImageSpec

PERMITTING_OPTIONS: Mapping[str, OptionField] = {
    one.field: one
    for cls in (FetchPolicy, ImageSpec, Job)
    for one in options_of(cls)
    if one.option.effect is Effect.PERMITS
}
"""The options that permit something, by field. There is one for each ``Permission``, of the same name."""


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a job permits: the values of ``PERMITTING_OPTIONS``. Field names are those of ``retry.json``."""

    insecure: bool
    opt_out: OptOut
    allow_net: tuple[str, ...]
    max_body_bytes: Count
    max_pixels: Count
    max_sample_bytes: Count

    def __post_init__(self) -> None:
        """Refuse values that no job can have."""
        self.apply_to(Job("", "", ""))

    @classmethod
    def of(cls, job: Job) -> Self:
        """What a job permits."""
        values = (job.fetch, job.image or ImageSpec(), job)
        return cls(**{name: getattr(part, name) for part in values for name in _names_in(type(part))})

    def apply_to(self, job: Job) -> Job:
        """The job with these permissions in place of its own."""
        return replace(
            job,
            fetch=replace(job.fetch, **self._values_in(FetchPolicy)),
            image=replace(job.image or ImageSpec(), **self._values_in(ImageSpec)),
            **self._values_in(Job),
        )

    def added_to(self, earlier: Self) -> Self:
        """What holds once these permissions follow earlier ones.

        Networks add up, and ``--insecure`` stays. Of a choice or a limit the later value holds.
        """
        networks = tuple(dict.fromkeys((*earlier.allow_net, *self.allow_net)))
        return replace(self, insecure=self.insecure or earlier.insecure, allow_net=networks)

    def without(self, now: Self) -> tuple[str, ...]:
        """The options that permit something here and not in ``now``; one with another value there still does."""
        given = {option.partition(" ")[0] for option in now.options() if not option.startswith("--allow-net")}
        return tuple(
            option for option in self.options() if option not in now.options() and option.partition(" ")[0] not in given
        )

    def beyond(self, before: Self) -> tuple[tuple[OptionField, Any], ...]:
        """The options that permit more here than in ``before``, each with its value; of networks those that are new."""
        pairs = (
            (PERMITTING_OPTIONS[one.name], getattr(self, one.name), getattr(before, one.name)) for one in fields(self)
        )
        more = []
        for option, now, earlier in pairs:
            if isinstance(now, tuple):
                more.append((option, tuple(network for network in now if network not in earlier)))
            elif now > earlier if isinstance(now, int) else now != earlier:
                more.append((option, now))
        return tuple((option, value) for option, value in more if any(_as_given(option, value)))

    def options(self) -> tuple[str, ...]:
        """The options that permit more than the defaults do, as they are given to a command."""
        return tuple(
            text for one in fields(self) for text in _as_given(PERMITTING_OPTIONS[one.name], getattr(self, one.name))
        )

    def _values_in(self, cls: type) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names_in(cls)}


def _names_in(cls: type) -> Iterator[str]:
    return (one.field for one in options_of(cls) if one.field in PERMITTING_OPTIONS)


def _as_given(one: OptionField, value: Any) -> Iterator[str]:
    """An option as it is given to a command; nothing where it permits no more than its default."""
    default: Any = one.default
    if value > default if isinstance(value, int) else value != default:
        yield from as_given(one, value)


def read_permitted(layout: OutputLayout) -> Permitted | None:
    """What the last run on an output permitted; None if that is not known."""
    try:
        return Permitted.of(read_job(layout)[0])
    except ConfigurationError:
        return None


def remember(layout: OutputLayout, permitted: Permitted) -> None:
    """Have later retries permit this as well, without being told. The job's identity stays what it is."""
    job, _ = read_job(layout)
    before = Permitted.of(job)
    now = permitted.added_to(before)
    if now != before:
        new_job = now.apply_to(job)
        replace_settings(layout, settings_of(new_job, new_job.image or ImageSpec()))


def find_permitted_since(
    before: Permitted | None, now: Permitted, ended_before: Mapping[str, int]
) -> PermittedSince | None:
    """The images that had failed for lack of what is permitted now, and was not in the run before; None without any.

    Args:
        before: What the run before permitted; None if there was none, or that is not known.
        now: What is permitted now.
        ended_before: The number of images that ended before this run, by outcome.
    """
    more = () if before is None else now.beyond(before)
    given: list[str] = []
    images: dict[FailureKind, int] = {}
    for one, value in more:
        kind = Permission(one.name.replace("_", "-")).failure_kind
        if count := ended_before.get(kind, 0):
            images[kind] = count
            given += _as_given(one, value)
    return PermittedSince(tuple(given), images) if images else None


def count_permittable(job: Job, outcomes: Mapping[str, int], ledgers: Iterable[Path]) -> dict[str, int]:
    """The number of failed images that a further permission might let through, by failure kind.

    If the job permits ``--insecure``, the TLS failures that had this permission are not counted: they need something
    else. The ledger knows which those are.

    Args:
        job: The job under which they failed, or would be retried.
        outcomes: The number of images by outcome.
        ledgers: The ledgers that hold the failures.
    """
    kinds = {permission.failure_kind for permission in Permission}
    counts = {kind.value: outcomes[kind] for kind in FailureKind if kind in kinds and outcomes.get(kind)}
    if job.fetch.insecure and FailureKind.TLS in counts:
        counts[FailureKind.TLS] = sum(count_unpermitted(path, FailureKind.TLS, Permission.INSECURE) for path in ledgers)
    return {kind: count for kind, count in counts.items() if count}
