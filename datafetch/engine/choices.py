"""What decides the rows of a job: as options, and as the choices that nobody has made, which are said at the start."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import part_of
from datafetch.engine.job import Job, own_spec
from datafetch.model.interfaces import Manifest
from datafetch.model.location import without_secrets
from datafetch.model.options import Effect, OptionField, as_given, options_of

_DECIDES_ROWS = frozenset({Effect.ROWS, Effect.MANIFEST})
_ONCE = frozenset({"fresh", "reuse", "no_lock"})  # of one command, not of a job
_LOCATIONS = frozenset({"ids", "mirror"})  # which may be URLs with a login
_NO_CHOICE = frozenset({"", "none"})

_log = logging.getLogger(__name__)


def row_settings(job: Job) -> list[str]:
    """The options that decide the rows and differ from their defaults, as they are given to a command."""
    return [
        text
        for one, value, default in _settings(job)
        if one.option.effect in _DECIDES_ROWS and value != default
        for text in _shown(one, value)
    ]


def row_defaults(job: Job) -> list[str]:
    """The options that decide the rows by their defaults; those that select nothing are left out."""
    return [
        text
        for one, value, default in _settings(job)
        if one.option.effect in _DECIDES_ROWS and value == default
        for text in ([f"{one.flag} ({one.option.unset})"] if value is None and _selects(one) else _shown(one, value))
    ]


def other_settings(job: Job) -> list[str]:
    """All other options that differ from their defaults."""
    return [
        text
        for one, value, default in _settings(job)
        if one.option.effect not in _DECIDES_ROWS and one.name not in _ONCE and value != default
        for text in _shown(one, value)
    ]


def choices_of(job: Job, manifest: Manifest | None) -> list[str]:
    """The choices that decide the rows and that nobody has made, besides the defaults of options; a sentence for each.

    Args:
        job: The job.
        manifest: Its manifest, which knows of some; None if it is not open.
    """
    part = part_of(job.dataset)
    chosen = []
    if job.source == part.readable_place:
        chosen.append(f"{job.dataset} is read from where it is published: {without_secrets(job.source)}")
    if job.ids is not None and job.ids == part.ids:
        chosen.append(f"{job.dataset} takes the samples of the recipe's list: {without_secrets(job.ids)}")
    return [*chosen, *(() if manifest is None else manifest.choices())]


def log_choices(job: Job, manifest: Manifest) -> None:
    """Log what decides the rows and was chosen by nobody."""
    for choice in choices_of(job, manifest):
        _log.info("%s", choice)
    if defaults := row_defaults(job):
        _log.info("rows follow from these defaults, too: %s", ", ".join(defaults))


def _selects(one: OptionField) -> bool:
    """Whether an option that is unset stands for a choice."""
    return one.option.unset not in _NO_CHOICE


def _shown(one: OptionField, value: object) -> Iterator[str]:
    yield from as_given(one, without_secrets(value) if one.name in _LOCATIONS and isinstance(value, str) else value)


def _settings(job: Job) -> Iterator[tuple[OptionField, object, object]]:
    """All options of a job that have an effect on its dataset, each with its value and its default."""
    dataset = find_dataset(job.dataset, job.options)
    if dataset.image_root is not None:  # its images are there, and nothing is made of them
        return
    own: tuple[tuple[object, object], ...] = (
        (job, Job("", "", "")),
        (job.image or own_spec(dataset), own_spec(dataset)),
        (job.fetch, type(job.fetch)()),
        (dataset.options, find_dataset(job.dataset).options),
    )
    for values, defaults in own:
        for one in options_of(type(values)):
            if one.name == "payload" and len(dataset.payloads) == 1:
                continue
            yield one, getattr(values, one.field), getattr(defaults, one.field)
