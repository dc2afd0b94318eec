"""What is seen while equal shards are made."""

from io import StringIO

import pytest
from rich.console import Console

from datafetch.cli import reshard_progress
from datafetch.cli.reshard_progress import reshard_line, show_resharding
from datafetch.model.statistics import Progress, Stage
from datafetch.output.reshard.copy import ProgressMonitor


def test_a_line_says_how_far_it_is() -> None:
    """Rows of all rows, and while they are copied how fast."""
    assert reshard_line(Progress(Stage.MEASURE, 1000, 20_000), 2.0) == "measuring 1,000/20,000 rows"
    assert reshard_line(Progress(Stage.COPY, 5, 10, 30_000_000), 2.0) == "copying 5/10 rows  15 MB/s"


def test_the_last_state_stays_on_a_terminal() -> None:
    """However soon it is done, a terminal shows the end."""
    console = Console(file=StringIO(), force_terminal=True)
    with show_resharding(console) as tell:
        tell(Progress(Stage.COPY, 10, 10))
        tell(Progress(Stage.CHECK, 10, 10))
    assert isinstance(console.file, StringIO)
    assert "checking 10/10 rows" in console.file.getvalue()


def test_elsewhere_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every buffer is a line in a log file, but once in a while one is."""
    console = Console(file=StringIO(), force_terminal=False)
    assert isinstance(console.file, StringIO)
    with show_resharding(console) as tell:
        tell(Progress(Stage.COPY, 5, 10))
    assert console.file.getvalue() == ""
    monkeypatch.setattr(reshard_progress, "_PLAIN_INTERVAL_S", 0.0)
    with show_resharding(console) as tell:
        tell(Progress(Stage.COPY, 6, 10))
        tell(Progress(Stage.COPY, 7, 10))
    assert console.file.getvalue() == "copying 6/10 rows\ncopying 7/10 rows\n"


def test_whoever_is_told_and_fails_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """The work goes on, and the failure is logged once."""
    told = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        raise OSError("the terminal is gone")

    monitor = ProgressMonitor(tell)
    for rows in range(3):
        monitor.report(Progress(Stage.COPY, rows, 3))
    assert len(told) == len(caplog.records) == 1
