"""``datafetch retry``: fetch failed images again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from datafetch.cli.command import as_command, with_options
from datafetch.cli.exit_code import check_min_success, exit_code_of
from datafetch.cli.options import (
    PERMISSIONS,
    GivenOptions,
    Json,
    MinSuccess,
    complete_kind,
    may_differ_later,
    parameters_of,
    parse_kinds,
)
from datafetch.cli.output_choice import choose_output
from datafetch.cli.progress import show_progress
from datafetch.cli.render import show_report
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.engine.job import Job
from datafetch.engine.retry_state import has_open_retry
from datafetch.engine.runner import retry as retry_run
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.advice import KINDS_ON_THE_WAY
from datafetch.model.options import OptionField, OptionGroup
from datafetch.model.outcome import FailureKind, may_kind_pass
from datafetch.output.retry_filter import RetryFilter
from datafetch.transcode import ImageSpec

_log = logging.getLogger(__name__)
_OF_PREPARE = frozenset({"fresh", "reuse", "world_size"})


def retry(  # noqa: PLR0913 - one parameter an option
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder that prepare filled.")],
    *,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND,…",
            help="Retry failures of these kinds. Repeatable. connect, timeout, disconnected and http_status take along "
            "host_down: images that were not tried, since their host had failed like this.  "
            "[default: (temporary ones)]",
            rich_help_panel=OptionGroup.SELECTION,
            autocompletion=complete_kind,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Retry all failures.", rich_help_panel=OptionGroup.SELECTION)
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the archive is, if its URL has credentials, or a query that has expired.",
            rich_help_panel=OptionGroup.NETWORK,
        ),
    ] = None,
    min_success: MinSuccess = 0.0,
    json: Json = False,
    given: GivenOptions,
) -> int:
    """Retry failures that may be temporary, and add the images that arrive to the shards.

    An interrupted retry is completed first, with its own options. Options that permit what is refused by default
    (--insecure, --allow-net, --opt-out ignore, --max-body, --max-pixels, --max-sample) also retry the images that
    failed without them, and apply to later retries too. --trust-env and --nameserver also retry dns_not_found. All
    other options are as in the run, unless they are given.
    """
    check_min_success(min_success)
    with open_reporter(given.apply(Reporting())) as reporter:
        out = str(choose_output(out, _log.info))
        report = retry_run(
            out,
            _retry_filter(kinds, everything=everything, also=_also(out, given)),
            change=given.change,
            source=source,
            observers=[partial(show_progress, reporter=reporter)],
        )
        show_report(report, as_json=json)
        return exit_code_of(report, min_success)


def _also(out: str, given: GivenOptions) -> frozenset[FailureKind]:
    """The kinds that what was given may help against.

    A retry that was interrupted, perhaps for lack of a proxy, is completed through that as it was begun.
    """
    if has_open_retry(out):
        return given.permitted_kinds
    return given.permitted_kinds | given.kinds_on_the_way


def _retry_filter(kinds: Sequence[str] | None, *, everything: bool, also: frozenset[FailureKind]) -> RetryFilter:
    if everything and kinds:
        raise ConfigurationError("give --kinds or --all, not both")
    if everything:
        return RetryFilter.all()
    if not kinds:
        return RetryFilter(also=also)
    return RetryFilter(parse_kinds(kinds))


def _is_taken(one: OptionField) -> bool:
    return may_differ_later(one) and one.name not in _OF_PREPARE


def _also_retried(one: OptionField) -> str:
    permission = PERMISSIONS.get(one.name)
    kinds = [] if permission is None else [permission.failure_kind]
    kinds += [kind for kind in KINDS_ON_THE_WAY.get(one.field, ()) if not may_kind_pass(kind)]
    return f"Also retries {', '.join(kinds)}, unless --kinds is given." if kinds else ""


_OPTIONS = [
    option
    for values in (FetchPolicy(), ImageSpec(), Job("", "", ""), Reporting())
    for option in parameters_of([values], is_selected=_is_taken, add_help=_also_retried, shows_defaults=False)
]

command = as_command(with_options(retry, _OPTIONS, GivenOptions))
