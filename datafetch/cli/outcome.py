"""How a run and a retry end: the report is shown, and becomes an exit code."""

from __future__ import annotations

from datafetch.cli.exit_code import ExitCode, complain
from datafetch.cli.render import show_report
from datafetch.model.report import Report


def report_outcome(report: Report, *, as_json: bool, min_success: float) -> int:
    """Show what was done, and return the exit code: whether enough images arrived."""
    show_report(report, as_json=as_json)
    images = report.totals.images
    share = report.totals.ok / images if images else 1.0
    if share >= min_success:
        return ExitCode.COMPLETE
    return complain(
        f"{share:.1%} of the images arrived, --min-success asks for {min_success:.1%}",
        ExitCode.TOO_FEW_IMAGES,
    )
