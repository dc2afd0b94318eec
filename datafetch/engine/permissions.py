"""What a job permits that is refused by default, and how a retry's permissions are remembered.

Rules: permissions are no part of a job's identity. What a retry was given holds for all later ones, or an image that it
came close to would fail in the next for want of a permission, for good. ``prepare`` says anew what is permitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from datafetch.engine.job import Job, read_job, settings_of
from datafetch.engine.ownership import write_settings
from datafetch.errors import ConfigurationError
from datafetch.fetch import OptOut
from datafetch.fetch.policy import DEFAULT_MAX_BODY_BYTES
from datafetch.model.bounds import Count
from datafetch.model.outcome import FailureKind, Permission
from datafetch.output.merge import MAX_SAMPLE_BYTES
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger import count_unpermitted
from datafetch.transcode import DEFAULT_MAX_PIXELS, ImageSpec

_CURABLE = frozenset(permission.cures for permission in Permission)


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a job permits. Field names are those of ``retry.json``."""

    insecure: bool
    opt_out: OptOut
    allow_net: tuple[str, ...]
    max_body_bytes: Count
    max_pixels: Count
    max_sample_bytes: Count

    def __post_init__(self) -> None:
        """Refuse what no job can permit."""
        self.given_to(Job("", "", ""))

    @classmethod
    def of(cls, job: Job) -> Self:
        """What a job permits."""
        fetch, image = job.fetch, job.image or ImageSpec()
        return cls(
            fetch.insecure, fetch.opt_out, fetch.allow_net, fetch.max_body_bytes, image.max_pixels, job.max_sample_bytes
        )

    def given_to(self, job: Job) -> Job:
        """The job with these permissions in place of its own."""
        return replace(
            job,
            fetch=replace(
                job.fetch,
                insecure=self.insecure,
                opt_out=self.opt_out,
                allow_net=self.allow_net,
                max_body_bytes=self.max_body_bytes,
            ),
            image=replace(job.image or ImageSpec(), max_pixels=self.max_pixels),
            max_sample_bytes=self.max_sample_bytes,
        )

    def after(self, earlier: Self) -> Self:
        """What is permitted from now on: networks add up, and of opt-outs and limits the last word counts."""
        networks = tuple(dict.fromkeys((*earlier.allow_net, *self.allow_net)))
        return replace(self, insecure=self.insecure or earlier.insecure, allow_net=networks)

    def without(self, now: Self) -> tuple[str, ...]:
        """Options of these that are not given now, a limit that is another one aside."""
        given = {option.partition(" ")[0] for option in now.options() if not option.startswith("--allow-net")}
        return tuple(
            option for option in self.options() if option not in now.options() and option.partition(" ")[0] not in given
        )

    def options(self) -> tuple[str, ...]:
        """What goes beyond the defaults, as it is said to a command."""
        return (
            *(f"--allow-net {network}" for network in self.allow_net),
            *(("--insecure",) if self.insecure else ()),
            *((f"--opt-out {self.opt_out}",) if self.opt_out != OptOut.OBEY else ()),
            *((f"--max-body {self.max_body_bytes}",) if self.max_body_bytes > DEFAULT_MAX_BODY_BYTES else ()),
            *((f"--max-pixels {self.max_pixels}",) if self.max_pixels > DEFAULT_MAX_PIXELS else ()),
            *((f"--max-sample {self.max_sample_bytes}",) if self.max_sample_bytes > MAX_SAMPLE_BYTES else ()),
        )


def read_permitted(layout: OutputLayout) -> Permitted | None:
    """What was permitted last on an output; None where that is not known."""
    try:
        return Permitted.of(read_job(layout)[0])
    except ConfigurationError:
        return None


def remember(layout: OutputLayout, permitted: Permitted) -> None:
    """Have later retries permit this as well, without being told; the job stays what it is."""
    job, _ = read_job(layout)
    before = Permitted.of(job)
    now = permitted.after(before)
    if now != before:
        now_job = now.given_to(job)
        write_settings(layout, settings_of(now_job, now_job.image or ImageSpec()))


def curable(job: Job, outcomes: Mapping[str, int], ledgers: Iterable[Path]) -> dict[str, int]:
    """How many images failed that a permission might bring, by kind.

    Of a TLS failure that the job would permit, the ledger knows whether it was: then there is nothing more to permit.

    Args:
        job: Under which they failed, or would be tried again.
        outcomes: Of all images.
        ledgers: Where they stand.
    """
    counts = {kind.value: outcomes[kind] for kind in FailureKind if kind in _CURABLE and outcomes.get(kind)}
    if job.fetch.insecure and FailureKind.TLS in counts:
        counts[FailureKind.TLS] = sum(count_unpermitted(path, FailureKind.TLS, Permission.INSECURE) for path in ledgers)
    return {kind: count for kind, count in counts.items() if count}
