"""The end of a run or a retry: its report is shown and turned into an exit code."""

from __future__ import annotations

from datafetch.cli.exit_code import ExitCode, complain
from datafetch.cli.render import show_report
from datafetch.model.report import Report


def report_outcome(report: Report, *, as_json: bool, min_success: float) -> int:
    """Show a report, and return the exit code, which says whether enough images arrived."""
    show_report(report, as_json=as_json)
    images = report.totals.images
    share = report.totals.ok / images if images else 1.0
    if share >= min_success:
        return ExitCode.COMPLETE
    return complain(
        f"{share:.1%} of the images arrived, but --min-success requires {min_success:.1%}",
        ExitCode.TOO_FEW_IMAGES,
    )
