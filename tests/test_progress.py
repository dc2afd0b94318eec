"""What an operator sees during a run."""

import asyncio
import errno
import io
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import until
from rich.console import Console

from datafetch.cli import progress
from datafetch.cli.progress import (
    ProgressConsole,
    progress_line,
    resharding_line,
    show_log_messages,
    show_progress,
    show_resharding,
)
from datafetch.model.statistics import ReshardProgress, ReshardStage, Statistics
from datafetch.monitor.throughput import Throughput

POOL = logging.getLogger("datafetch.transcode")


def statistics(elapsed_s: float, ok: int, failed: int = 0, earlier: int = 0, expected: int | None = 4000) -> Statistics:
    """Return the statistics of a run."""
    return Statistics(
        expected_images=expected,
        ok=ok,
        failed=failed,
        earlier=earlier,
        shards=4,
        shards_published=1,
        fetched_bytes=0,
        connections=8,
        open_requests=5,
        elapsed_s=elapsed_s,
    )


def test_the_line_of_a_run() -> None:
    """It shows the images, their outcomes, the rate, the remaining time, the open requests, and the shards."""
    line = progress_line(statistics(10, ok=1100, failed=100), images_per_s=200.0)
    assert line == "1,200/4,000 images  1,100 ok  100 failed  200.0 images/s  ETA 0:00:14  open 5/8  shards 1/4"


def test_the_line_during_resharding() -> None:
    """It shows the stage and the number of rows instead of the rate of fetching, which is over by then."""
    now = replace(statistics(10, ok=3900, failed=100), resharding=ReshardProgress(ReshardStage.COPY, 1500, 3900))
    line = progress_line(now, images_per_s=0.0)
    assert line == "4,000/4,000 images  3,900 ok  100 failed  resharding: copying 1,500/3,900 rows"


def test_the_remaining_time_is_omitted_if_the_total_is_unknown() -> None:
    """Neither the total nor the remaining time is estimated."""
    line = progress_line(statistics(10, ok=1100, expected=None), images_per_s=200.0)
    assert line == "1,100 images  1,100 ok  0 failed  200.0 images/s  open 5/8  shards 1/4"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """Neither images of earlier runs nor a slow start count."""
    throughput = Throughput()
    assert throughput.images_per_s(statistics(0, ok=500, earlier=500)) == 0
    assert throughput.images_per_s(statistics(10, ok=600, earlier=500)) == pytest.approx(10)
    rates = [
        throughput.images_per_s(statistics(second, ok=600 + (second - 10) * 100, earlier=500))
        for second in range(11, 60)
    ]
    assert rates[-1] == pytest.approx(100)


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_terminal_shows_a_live_line(is_terminal: bool) -> None:
    """Its last state stays on the terminal. Elsewhere, plain lines are printed now and then, without control codes."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120)
    is_shown = asyncio.Event()

    def take_statistics() -> Statistics:
        is_shown.set()
        return statistics(10, ok=1100)

    showing = asyncio.create_task(show_progress(take_statistics, console))
    if is_terminal:
        await is_shown.wait()
    else:
        await asyncio.sleep(0)
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing
    assert ("1,100/4,000 images" in screen.getvalue()) == is_terminal
    assert is_terminal or "\x1b" not in screen.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_log_messages_are_printed_above_the_live_line(is_terminal: bool) -> None:
    """Each message is printed once, on a line of its own, and the live line follows it."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=40)
    is_shown = asyncio.Event()

    def take_statistics() -> Statistics:
        is_shown.set()
        return statistics(10, ok=1100)

    message = "a codec process ended with status -9; its 3 images are tried again"
    with show_log_messages(console):
        showing = asyncio.create_task(show_progress(take_statistics, console))
        if is_terminal:
            await is_shown.wait()
        POOL.warning(message)
        await asyncio.sleep(0)
        showing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await showing
    shown = screen.getvalue()
    assert shown.count(f"datafetch: {message}\n") == 1
    if is_terminal:
        assert shown.rindex("1,100/4,000 images") > shown.index(message)
    else:
        assert shown == f"datafetch: {message}\n"


def test_a_log_message_is_one_clean_line() -> None:
    """It has no traceback, markup, colour or control characters; messages below level INFO are not shown."""
    screen = io.StringIO()
    with show_log_messages(Console(file=screen, force_terminal=True, width=40)):
        POOL.debug("all is well")
        POOL.error(
            "[red]%s[/red]\n  桜 12",
            "\x1b[2J\x07http://example.org/\r\u202e",
            exc_info=ValueError("secret"),
        )
    assert screen.getvalue() == "datafetch: [red] [2J http://example.org/ [/red] 桜 12\n"


def test_log_messages_are_shown_only_within_the_context(capfd: pytest.CaptureFixture[str]) -> None:
    """They are not shown before or after it, and only once if the context is entered a second time."""
    before = list(logging.getLogger("datafetch").handlers)
    for _ in range(2):
        with show_log_messages(ProgressConsole()):
            POOL.warning("once")
    assert logging.getLogger("datafetch").handlers == before
    assert capfd.readouterr().err == "datafetch: once\n" * 2


def test_a_log_message_that_cannot_be_printed_does_not_end_a_run() -> None:
    """A full disk behind standard error must not cost days of work."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        console = Console(file=io.TextIOWrapper(full, write_through=True))
        with show_log_messages(console):
            POOL.warning("lost")


async def test_progress_that_cannot_be_printed_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal may be closed, or standard error redirected to a disk that is full."""
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(_Full(), write_through=True))
    console = ProgressConsole()
    console._force_terminal = True
    calls = 0

    def take_statistics() -> Statistics:
        nonlocal calls
        calls += 1
        return statistics(10, ok=1100)

    showing = asyncio.create_task(show_progress(take_statistics, console))
    await until(lambda: calls == 2)
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing


class _Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_line_of_resharding() -> None:
    """It shows the stage and the number of rows, and the rate while rows are copied."""
    assert resharding_line(ReshardProgress(ReshardStage.MEASURE, 1000, 20_000), 2.0) == "measuring 1,000/20,000 rows"
    assert resharding_line(ReshardProgress(ReshardStage.COPY, 5, 10, 30_000_000), 2.0) == "copying 5/10 rows  15 MB/s"


def test_the_last_state_of_resharding_stays_on_a_terminal() -> None:
    """A terminal shows the end, however soon it comes."""
    console = Console(file=io.StringIO(), force_terminal=True)
    with show_resharding(console) as report:
        report(ReshardProgress(ReshardStage.COPY, 10, 10))
        report(ReshardProgress(ReshardStage.CHECK, 10, 10))
    assert isinstance(console.file, io.StringIO)
    assert "checking 10/10 rows" in console.file.getvalue()


def test_lines_of_resharding_in_a_log_file_are_limited_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log file gets a line only after each interval, and not for each buffer."""
    console = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(console.file, io.StringIO)
    with show_resharding(console) as report:
        report(ReshardProgress(ReshardStage.COPY, 5, 10))
    assert console.file.getvalue() == ""
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL_S", 0.0)
    with show_resharding(console) as report:
        report(ReshardProgress(ReshardStage.COPY, 6, 10))
        report(ReshardProgress(ReshardStage.COPY, 7, 10))
    assert console.file.getvalue() == "copying 6/10 rows\ncopying 7/10 rows\n"


def test_showing_a_line_imports_nothing() -> None:
    """A run that has used up its descriptors could not import anything."""
    program = """
import asyncio, sys
import datafetch.cli.progress
from datafetch.cli.progress import ProgressConsole, show_log_messages, verifying_line, _show_lines
from datafetch.verify import VerifyProgress
import logging
console = ProgressConsole()
console._force_terminal = {is_terminal}
datafetch.cli.progress._PLAIN_INTERVAL_S = 0.1
before = set(sys.modules)
async def show():
    try:
        async with asyncio.timeout(0.3):
            await _show_lines(lambda: verifying_line(VerifyProgress(1000, 900, 3, 25, 100, 10)), console)
    except TimeoutError:
        pass
with show_log_messages(console):
    asyncio.run(show())
    logging.getLogger("datafetch.x").warning("桜")
print(*(set(sys.modules) - before))
"""
    for is_terminal in (True, False):
        command = [sys.executable, "-c", program.format(is_terminal=is_terminal)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "900 images" in shown.stderr
        assert shown.stdout.split() == []


def test_the_library_is_silent() -> None:
    """Python prints warnings that no handler takes; the library prevents that."""
    script = "import logging, datafetch; logging.getLogger('datafetch.transcode').warning('unhandled')"
    finished = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert finished.stdout + finished.stderr == ""
