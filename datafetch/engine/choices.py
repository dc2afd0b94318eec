"""What decides the rows of a job: as options, and as the choices that nobody has made, which are said at the start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from datafetch.datasets import find_dataset
from datafetch.datasets.recipes import part_of
from datafetch.engine.job import Job, own_spec
from datafetch.fetch import FetchPolicy
from datafetch.model.location import without_secrets
from datafetch.model.manifest import Manifest
from datafetch.model.options import Effect, OptionField, as_given, options_of, words_of

_DECIDES_ROWS = frozenset({Effect.ROWS, Effect.MANIFEST})
_NO_CHOICE = frozenset({"", "none"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """An option of a job, with its value and the default of its dataset."""

    option: OptionField
    value: object
    default: object

    @property
    def effect(self) -> Effect:
        """How it affects the rows."""
        return self.option.option.effect

    @property
    def is_default(self) -> bool:
        """Whether it has its default, or is of one command and not of a job."""
        return self.value == self.default or self.option.option.is_of_one_run

    @property
    def is_location(self) -> bool:
        """Whether its value is a path or a URL, which may have a login."""
        return isinstance(self.value, str) and (self.option.option.is_file or self.option.name == "mirror")

    @property
    def shown_value(self) -> object:
        """Its value without secrets."""
        return without_secrets(str(self.value)) if self.is_location else self.value

    def as_given(self) -> Iterator[str]:
        """The option as it is given to a command, without secrets, quoted for the shell: once for each value."""
        return as_given(self.option, self.shown_value)

    def words(self) -> Iterator[str]:
        """The same as words that are not quoted."""
        return chain.from_iterable(words_of(self.option, self.shown_value))


def settings_in(job: Job) -> Iterator[Setting]:
    """All options of a job and its parts."""
    dataset = find_dataset(job.dataset, job.options)
    own: tuple[tuple[object, object], ...] = (
        (job, Job("", "", "")),
        (job.image or own_spec(dataset), own_spec(dataset)),
        (job.fetch, FetchPolicy()),
        (dataset.options, find_dataset(job.dataset).options),
    )
    for values, defaults in own:
        for one in options_of(type(values)):
            yield Setting(one, getattr(values, one.field), getattr(defaults, one.field))


def row_settings(job: Job) -> list[str]:
    """The options that decide the rows and differ from their defaults, as they are given to a command."""
    return [
        text
        for one in settings_in(job)
        if one.effect in _DECIDES_ROWS and not one.is_default
        for text in one.as_given()
    ]


def row_defaults(job: Job) -> list[str]:
    """The options that decide the rows by their defaults; those that select nothing are left out."""
    dataset = find_dataset(job.dataset, job.options)
    if dataset.image_root is not None:  # its images are there, and nothing is made of them
        return []
    texts: list[str] = []
    for one in settings_in(job):
        is_fixed = one.option.name == "payload" and len(dataset.payloads) == 1
        if one.option.option.omitted_if_default:
            continue
        if one.effect in _DECIDES_ROWS and one.is_default and not is_fixed:
            is_choice = one.value is None and one.option.option.unset not in _NO_CHOICE
            texts += [f"{one.option.flag} ({one.option.option.unset})"] if is_choice else one.as_given()
    return texts


def other_settings(job: Job) -> list[str]:
    """All other options that differ from their defaults."""
    return [
        text
        for one in settings_in(job)
        if one.effect not in _DECIDES_ROWS and not one.is_default
        for text in one.as_given()
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
        _log.info("defaults that decide the rows: %s", ", ".join(defaults))
