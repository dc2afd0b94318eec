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
from rich.cells import cell_len
from rich.console import Console

from datafetch.cli.progress import show_progress, show_resharding
from datafetch.cli.progress_line import resharding_line, run_line
from datafetch.cli.report_targets import PlainLines, ReportConsole, Target, Terminal
from datafetch.cli.reporter import Reporter, open_reporter, receiving
from datafetch.model.statistics import ReshardProgress, ReshardStage, Statistics, Waiting
from datafetch.monitor.throughput import Pace, Throughput

POOL = logging.getLogger("datafetch.transcode")


def on(console: Console) -> Target:
    """Report on a console, by whether it is a terminal."""
    return Terminal(console) if console.is_terminal else PlainLines(console)


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


WAITING = Waiting(images=73, host="127.0.1.38", host_images=73, reason="HTTP 503", next_attempt_s=11.2)


def test_the_line_of_a_run() -> None:
    """It shows the images, their outcomes, the rate, the remaining time, open requests, shards, and the bytes."""
    line = run_line(statistics(10, ok=1100, failed=100), Pace(200.0, 12_345_678))
    assert line.whole() == (
        "30.0% 1,200/4,000  1,100 ok  100 failed  200/s  ETA 0:14  5 requests open  1/4 shards  12.3 MB/s"
    )


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, "48.7% 2,927/6,000  2,434 ok  493 failed  337/s  ETA 0:09  5 requests open  1/4 shards  12.3 MB/s"),
        (80, "48.7% 2,927/6,000  2,434 ok  493 failed  337/s  ETA 0:09  5 requests open"),
        (60, "48.7% 2,927/6,000  2,434 ok  493 failed  337/s  ETA 0:09"),
        (50, "48.7% 2,927/6,000  493 failed  337/s  ETA 0:09"),
        (40, "48.7%  493 failed  337/s  ETA 0:09"),
        (22, "48.7%  337/s  ETA 0:09"),
        (3, "48.7%"),
    ],
)
def test_whole_fields_are_left_out_of_a_narrow_line(columns: int, shown: str) -> None:
    """The least important one first; none is cut."""
    line = run_line(statistics(10, ok=2434, failed=493, expected=6000), Pace(337.4, 12_345_678))
    assert line.fitted(columns) == shown


@pytest.mark.parametrize("columns", range(1, 200))
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    """This holds for names that take two columns a character; one field stays, however narrow the terminal is."""
    now = replace(statistics(10, ok=4_000_000, failed=1_500_000, expected=6_000_000), open_requests=3, waiting=WAITING)
    for title in ("", "13 of 14 北海道の写真と会話"):
        line = run_line(now, Pace(337.4, 12_345_678), title=title, later_images=10**6).fitted(columns)
        assert cell_len(line) <= columns or line in ("91.6%", "73 waiting")


def test_one_of_several_runs_fits_80_columns() -> None:
    """Its title, the share, the time that it will take, and that of all."""
    now = statistics(10, ok=24_340, failed=4_930, expected=60_000)
    line = run_line(now, Pace(337.4), title="10 of 14 llm-jp-interleaved", later_images=10**6)
    assert line.whole().startswith("10 of 14 llm-jp-interleaved  48.7% 29,270/60,000  24,340 ok  4,930 failed  337/s")
    shown = line.fitted(80)
    assert shown == "10 of 14 llm-jp-interleaved  48.7%  4,930 failed  337/s  ETA 1:31, all 50:55"
    assert line.fitted(90) == "10 of 14 llm-jp-interleaved  48.7%  4,930 failed  337/s  ETA 1:31, all datasets 50:55"
    assert line.fitted(40) == "10 of 14  48.7%  337/s  ETA 1:31"
    waiting = run_line(replace(now, open_requests=0, waiting=WAITING), Pace(), title="10 of 14 coyo")
    waited = "24,340 ok  4,930 failed  73 waiting for 127.0.1.38 (HTTP 503)"
    assert waiting.fitted(100) == f"10 of 14 coyo  48.7% 29,270/60,000  {waited}"
    assert waiting.fitted(80) == f"10 of 14  48.7%  {waited}"
    assert waiting.fitted(75) == f"48.7%  {waited}"


def test_the_line_says_that_shards_are_written() -> None:
    """In place of the pace, once all images have an outcome; not if there is nothing to write any more."""
    now = statistics(10, ok=3000, failed=1000)
    assert run_line(now, Pace(80.0)).whole() == "100.0% 4,000/4,000  3,000 ok  1,000 failed  writing shards 1/4"
    assert "writing" not in run_line(replace(now, shards_published=4), Pace(80.0)).whole()


def test_the_line_says_what_is_waited_for() -> None:
    """If nothing or little is sent, that and the outcomes are what stays, and no time left is promised."""
    now = replace(statistics(10, ok=3000, failed=927), open_requests=0, waiting=WAITING)
    line = run_line(now, Pace(80.0))
    waited = "73 images waiting for 127.0.1.38 (HTTP 503); next attempt in 12 s"
    assert line.whole() == f"98.1% 3,927/4,000  3,000 ok  927 failed  {waited}  1/4 shards"
    assert line.fitted(100) == f"98.1%  3,000 ok  927 failed  {waited}"
    assert line.fitted(80) == "98.1% 3,927/4,000  3,000 ok  927 failed  73 waiting for 127.0.1.38 (HTTP 503)"
    assert line.fitted(75) == "98.1%  3,000 ok  927 failed  73 waiting for 127.0.1.38 (HTTP 503)"
    assert line.fitted(60) == "98.1%  927 failed  73 waiting for 127.0.1.38 (HTTP 503)"
    assert line.fitted(50) == "98.1%  73 waiting for 127.0.1.38 (HTTP 503)"
    assert line.fitted(40) == "98.1%  3,000 ok  927 failed  73 waiting"
    assert line.fitted(20) == "98.1%  73 waiting"
    assert "ETA" not in run_line(replace(now, open_requests=2), Pace(80.0)).whole()
    assert "ETA" in run_line(replace(now, transcoding=40), Pace(80.0)).whole()


def test_what_waits_while_others_are_fetched_is_shown_where_there_is_room() -> None:
    """The time left follows from the pace of the others."""
    waiting = replace(WAITING, images=85, reason="8 requests at a time", next_attempt_s=None)
    line = run_line(replace(statistics(10, ok=1100), open_requests=60, waiting=waiting), Pace(200.0))
    waited = "85 images waiting, 73 of them for 127.0.1.38 (8 requests at a time)"
    assert line.whole() == f"27.5% 1,100/4,000  1,100 ok  200/s  ETA 0:14  {waited}  60 requests open  1/4 shards"
    assert line.fitted(80) == "27.5% 1,100/4,000  1,100 ok  200/s  ETA 0:14  60 requests open  1/4 shards"


def test_names_of_hosts_cannot_control_the_terminal() -> None:
    """They come from the web."""
    waiting = replace(WAITING, host="\x1b[2Jevil\r.example")
    line = run_line(replace(statistics(10, ok=1100), open_requests=0, waiting=waiting), Pace()).whole()
    assert "\x1b" not in line
    assert "\r" not in line


def test_the_line_during_resharding() -> None:
    """It shows the stage and the number of rows instead of the rate of fetching, which is over by then."""
    now = replace(statistics(10, ok=3900, failed=100), resharding=ReshardProgress(ReshardStage.COPY, 1500, 3900))
    assert run_line(now, Pace()).whole() == "100.0% 4,000/4,000  3,900 ok  100 failed  copying 1,500/3,900 rows"


def test_the_remaining_time_is_omitted_if_the_total_is_unknown_or_nothing_moves() -> None:
    """Neither is estimated."""
    line = run_line(statistics(10, ok=1100, expected=None), Pace(2.345))
    assert line.whole() == "1,100 images  1,100 ok  2.3/s  5 requests open  1/4 shards"
    assert run_line(statistics(10, ok=1), Pace()).whole() == "0.0% 1/4,000  1 ok  5 requests open  1/4 shards"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """Neither images of earlier runs nor a slow start count."""
    throughput = Throughput()
    assert throughput.pace(statistics(0, ok=500, earlier=500)) == Pace(0, 0)
    assert throughput.pace(statistics(10, ok=600, earlier=500)).images_per_s == pytest.approx(10)
    paces = [
        throughput.pace(replace(statistics(second, ok=600 + (second - 10) * 100, earlier=500), fetched_bytes=second))
        for second in range(11, 60)
    ]
    assert paces[-1].images_per_s == pytest.approx(100)
    assert paces[-1].received_bytes_per_s == pytest.approx(1)


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_terminal_shows_a_live_line(is_terminal: bool) -> None:
    """Its last state stays on the terminal. Elsewhere, plain lines are printed now and then, without control codes."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=80)
    is_shown = asyncio.Event()

    def take_statistics() -> Statistics:
        is_shown.set()
        return statistics(10, ok=1100)

    showing = asyncio.create_task(show_progress(take_statistics, Reporter(on(console))))
    if is_terminal:
        await is_shown.wait()
    else:
        await asyncio.sleep(0)
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing
    assert ("27.5% 1,100/4,000  1,100 ok" in screen.getvalue()) == is_terminal
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
    reporter = Reporter(on(console))
    with receiving(reporter):
        showing = asyncio.create_task(show_progress(take_statistics, reporter))
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
        assert shown.rindex("1,100/4,000") > shown.index(message)
    else:
        assert shown == f"datafetch: {message}\n"


def test_a_log_message_is_one_clean_line() -> None:
    """It has no traceback, markup, colour or control characters; messages below level INFO are not shown."""
    screen = io.StringIO()
    with receiving(Reporter(on(Console(file=screen, force_terminal=True, width=40)))):
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
        with open_reporter():
            POOL.warning("once")
    assert logging.getLogger("datafetch").handlers == before
    assert capfd.readouterr().err == "datafetch: once\n" * 2


def test_a_log_message_that_cannot_be_printed_does_not_end_a_run() -> None:
    """A full disk behind standard error must not cost days of work."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        console = Console(file=io.TextIOWrapper(full, write_through=True))
        with receiving(Reporter(on(console))):
            POOL.warning("lost")


async def test_progress_that_cannot_be_printed_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal may be closed, or standard error redirected to a disk that is full."""
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(_Full(), write_through=True))
    console = ReportConsole()
    console._force_terminal = True
    calls = 0

    def take_statistics() -> Statistics:
        nonlocal calls
        calls += 1
        return statistics(10, ok=1100)

    showing = asyncio.create_task(show_progress(take_statistics, Reporter(on(console))))
    await until(lambda: calls == 2)
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing


class _Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_line_of_resharding() -> None:
    """It shows the stage, its rows, the time that it will take, and the rate while rows are copied."""
    measuring = resharding_line(ReshardProgress(ReshardStage.MEASURE, 1000, 20_000), 2.0)
    assert measuring.whole() == "measuring  5.0% 1,000/20,000  ETA 0:38"
    copying = resharding_line(ReshardProgress(ReshardStage.COPY, 7, 10, 30_000_000), 2.0, rows_before=5)
    assert copying.whole() == "copying  70.0% 7/10  ETA 0:03  15.0 MB/s"


def test_the_last_state_of_resharding_stays_on_a_terminal() -> None:
    """A terminal shows the end, however soon it comes."""
    console = Console(file=io.StringIO(), force_terminal=True)
    with show_resharding(Reporter(on(console))) as report:
        report(ReshardProgress(ReshardStage.COPY, 10, 10))
        report(ReshardProgress(ReshardStage.CHECK, 10, 10))
    assert isinstance(console.file, io.StringIO)
    assert "checking  100.0% 10/10" in console.file.getvalue()


def test_lines_where_there_is_no_terminal_are_limited_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a line only after each interval, and not for each buffer."""
    console = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(console.file, io.StringIO)
    with show_resharding(Reporter(on(console))) as report:
        report(ReshardProgress(ReshardStage.COPY, 5, 10))
    assert console.file.getvalue() == ""
    monkeypatch.setattr(PlainLines, "interval_s", 0.0)
    with show_resharding(Reporter(on(console))) as report:
        report(ReshardProgress(ReshardStage.COPY, 6, 10))
        report(ReshardProgress(ReshardStage.CHECK, 10, 10))
    assert console.file.getvalue().splitlines()[:2] == ["copying  60.0% 6/10", "checking  100.0% 10/10"]


@pytest.mark.rotating
@pytest.mark.parametrize(
    "target", ["Terminal(console)", "PlainLines(console)", "JsonLines(sys.stderr, is_quiet=False)"]
)
def test_showing_a_line_imports_nothing(target: str) -> None:
    """A run that has used up its descriptors could not import anything."""
    program = f"""
import asyncio, sys
from datafetch.cli.progress import show_verifying
from datafetch.cli.report_targets import JsonLines, PlainLines, ReportConsole, Terminal
from datafetch.cli.reporter import Reporter, receiving
from datafetch.verify import VerifyProgress
import logging
console = ReportConsole()
PlainLines.interval_s = JsonLines.interval_s = 0.1
reporter = Reporter({target})
now = VerifyProgress(
    samples=1000, images=900, found_images=900, problems=3, read_bytes=25, total_bytes=100, elapsed_s=10
)
before = set(sys.modules)
async def show():
    try:
        async with asyncio.timeout(0.3):
            await show_verifying(lambda: now, reporter)
    except TimeoutError:
        pass
with receiving(reporter):
    asyncio.run(show())
    logging.getLogger("datafetch.x").warning("桜")
print(*(set(sys.modules) - before))
"""
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "900" in shown.stderr
    assert "桜" in shown.stderr
    assert shown.stdout.split() == []


def test_the_library_is_silent() -> None:
    """Python prints warnings that no handler takes; the library prevents that."""
    script = "import logging, datafetch; logging.getLogger('datafetch.transcode').warning('unhandled')"
    finished = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert finished.stdout + finished.stderr == ""
