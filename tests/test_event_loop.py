"""Running a coroutine on an event loop of its own, and interrupting it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from datafetch.process.event_loop import run_to_end
from datafetch.process.interrupts import Interrupts, active_interrupts

PATIENCE_S = 20.0

# Under load, a signal may come at the very beginning of the callback that a task group waits for.
SIGNALLED_IN_A_CALLBACK = """
import asyncio, signal, sys, uvloop
from datafetch.process.event_loop import run_to_end

def interrupt(frame, event, _):
    if event == "call" and frame.f_code.co_name == "_on_task_done":
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

async def rest():
    await asyncio.sleep(60)

async def work():
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(rest())
            await asyncio.sleep(0)
            signal.raise_signal(signal.SIGINT)
            sys.setprofile(interrupt)
    finally:
        await asyncio.sleep(0)
        print("ended")

try:
    run_to_end(work(), {loop})
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.parametrize("loop", ["uvloop.new_event_loop", "None"])
def test_a_second_ctrl_c_does_not_disturb_the_shutdown(loop: str) -> None:
    """A second Ctrl-C while the tasks are being ended changes nothing: all of them still end."""
    program = SIGNALLED_IN_A_CALLBACK.format(loop=loop)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.stderr == ""
    assert ended.stdout.split() == ["ended", "interrupted"]


def test_the_result_or_exception_of_a_coroutine_is_passed_on() -> None:
    """Without a signal it is as if the coroutine had been awaited, also in another thread."""

    async def echo(value: str) -> str:
        await asyncio.sleep(0)
        return value

    async def fail() -> None:
        raise ValueError("wrong")

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(run_to_end(echo("there"))))
    thread.start()
    thread.join()
    assert [run_to_end(echo("here")), *results] == ["here", "there"]
    with pytest.raises(ValueError, match="wrong"):
        run_to_end(fail())


def test_ctrl_c_is_raised_even_if_the_work_completes() -> None:
    """A user who presses it during the last step wants what follows to stop as well."""

    async def work() -> int:
        signal.raise_signal(signal.SIGINT)
        return 1

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work())


def test_ctrl_c_after_the_work_disturbs_no_closing(caplog: pytest.LogCaptureFixture) -> None:
    """It comes while the loop waits for its threads: it is raised, and nothing is reported as a failure."""

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            while not getattr(loop, "_executor_shutdown_called"):  # noqa: B009 - the loop's own
                os.sched_yield()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        loop.run_in_executor(None, interrupt)

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work())
    assert caplog.messages == []


def test_a_handler_of_the_caller_is_kept() -> None:
    """The library replaces no handler but Python's default."""
    seen = []

    async def work() -> int:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        return 1

    before = signal.signal(signal.SIGINT, lambda *_: seen.append("the caller's"))
    try:
        assert run_to_end(work()) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["the caller's"]


def test_interrupts_are_counted_and_the_third_is_raised() -> None:
    """The first signal calls the function that stops the work, the second has no effect, and the third raises."""
    stopped: list[int] = []

    def work(interrupts: Interrupts) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.count == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    handler = active_interrupts()
    with handler as interrupts, pytest.raises(KeyboardInterrupt), interrupts.stopping_with(lambda: stopped.append(1)):
        work(interrupts)
    assert stopped == [1]
    assert not isinstance(signal.getsignal(signal.SIGINT), Interrupts)
