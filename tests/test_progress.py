"""What a person sees while a run goes on."""

import asyncio
import io

import pytest
from rich.console import Console

from datafetch.pipeline import Statistics
from datafetch.progress import Pace, progress_line, show_progress


def statistics(elapsed_s: float, ok: int, failed: int = 0, earlier: int = 0, expected: int | None = 4000) -> Statistics:
    """A snapshot."""
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
        waiting_bodies=0,
        elapsed_s=elapsed_s,
    )


def test_a_line_says_how_far_how_well_how_fast_how_long() -> None:
    """Images of how many, how they ended, the pace, the time left, the open requests, and the shards."""
    line = progress_line(statistics(10, ok=1100, failed=100), images_per_s=200.0)
    assert line == "1,200/4,000 images  1,100 ok  100 failed  200.0 images/s  ETA 0:00:14  open 5/8  shards 1/4"


def test_without_a_total_there_is_no_time_left() -> None:
    """What isn't known isn't guessed."""
    line = progress_line(statistics(10, ok=1100, expected=None), images_per_s=200.0)
    assert line == "1,100 images  1,100 ok  0 failed  200.0 images/s  open 5/8  shards 1/4"


def test_the_pace_is_that_of_the_last_while() -> None:
    """Neither images of earlier runs nor a slow start weigh on it."""
    pace = Pace()
    assert pace.images_per_s(statistics(0, ok=500, earlier=500)) == 0
    assert pace.images_per_s(statistics(10, ok=600, earlier=500)) == pytest.approx(10)
    rates = [
        pace.images_per_s(statistics(second, ok=600 + (second - 10) * 100, earlier=500)) for second in range(11, 60)
    ]
    assert rates[-1] == pytest.approx(100)


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_terminal_gets_a_live_line(is_terminal: bool) -> None:
    """The last state stays on a terminal; elsewhere there are plain lines now and then, without control codes."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120)
    asked = asyncio.Event()

    def ask() -> Statistics:
        asked.set()
        return statistics(10, ok=1100)

    showing = asyncio.create_task(show_progress(ask, console))
    if is_terminal:
        await asked.wait()
    else:
        await asyncio.sleep(0)
    showing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await showing
    assert ("1,100/4,000 images" in screen.getvalue()) == is_terminal
    assert is_terminal or "\x1b" not in screen.getvalue()
