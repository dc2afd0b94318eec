"""The pool of codec processes survives its workers."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import until
from pool_codecs import echo, unloadable

from datafetch.child import child_command
from datafetch.errors import ResourceError
from datafetch.model import Body, Encoded, Failure, FailureKind, Outcome
from datafetch.transcode import ImageSpec, Transcoder

PATIENCE_S = 20.0


def content(outcome: Outcome) -> bytes:
    """What the echo gave back."""
    assert isinstance(outcome, Encoded), outcome
    return outcome.jpeg


async def test_every_caller_gets_the_outcome_of_its_own_body() -> None:
    """Images are handed over many at a time; none is mixed up with another."""
    bodies = [os.urandom(number % 5000) + b"." for number in range(2000)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await asyncio.gather(*(transcode(body) for body in bodies))
    assert [content(outcome) for outcome in outcomes] == bodies


async def test_bodies_of_the_fetcher_and_its_failures_pass() -> None:
    """A body is transcoded, a failure comes straight back."""
    failure = Failure(FailureKind.TIMEOUT)
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert content(await transcode(Body(b"cat"))) == b"cat"
        assert await transcode(failure) is failure


async def test_large_bodies_pass() -> None:
    """A body larger than every buffer on the way arrives whole, among small ones."""
    large = os.urandom(33 * 1024 * 1024)
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await asyncio.gather(transcode(large), *(transcode(b"small") for _ in range(50)))
    assert content(outcomes[0]) == large
    assert {content(outcome) for outcome in outcomes[1:]} == {b"small"}


@pytest.mark.parametrize("poison", [b"exit", b"segfault", b"hang"])
async def test_a_crashed_worker_blames_one_image(poison: bytes) -> None:
    """Of many images in flight exactly the guilty one fails, however it ends its process."""
    bodies = [b"%d" % number for number in range(300)]
    bodies[150] = poison
    spec = ImageSpec(decode_timeout_s=0.2)
    async with Transcoder(spec, processes=2, codec=echo) as transcode:
        outcomes = await asyncio.gather(*(transcode(body) for body in bodies))
    guilty = outcomes.pop(150)
    assert isinstance(guilty, Failure)
    assert guilty.kind is FailureKind.WORKER_CRASHED
    assert [content(outcome) for outcome in outcomes] == bodies[:150] + bodies[151:]


async def test_many_poisons_cost_only_themselves() -> None:
    """Images that kill their process don't wear the pool out."""
    bodies = [b"exit" if number % 20 == 0 else b"good" for number in range(100)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await asyncio.gather(*(transcode(body) for body in bodies))
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [body == b"exit" for body in bodies]


@pytest.mark.parametrize("images", [1, 20])
async def test_a_process_killed_from_outside_costs_no_image(images: int) -> None:
    """An operator's kill, with one image in hand or with several, is survived by all of them."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        pid = int(content(await transcode(b"pid")))
        naps = [asyncio.create_task(transcode(b"nap")) for _ in range(images)]
        await until(lambda: transcode.waiting < len(naps))
        os.kill(pid, signal.SIGKILL)
        assert {content(outcome) for outcome in await asyncio.gather(*naps)} == {b"nap"}
        assert int(content(await transcode(b"pid"))) != pid


async def test_a_cancelled_caller_disturbs_nobody() -> None:
    """Cancelling one image leaves the others as they are."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        tasks = [asyncio.create_task(transcode(b"nap")) for _ in range(8)]
        await until(lambda: transcode.waiting < len(tasks))
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False] * 4


async def test_closing_leaves_no_process_and_no_waiter() -> None:
    """After the pool is closed its processes are gone, and callers that still waited are cancelled."""
    async with Transcoder(processes=2, codec=echo) as transcode:
        pids = {int(content(await transcode(b"pid"))) for _ in range(20)}
        left_behind = asyncio.create_task(transcode(b"hang"))
        await asyncio.sleep(0)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(asyncio.CancelledError):
        await left_behind


async def test_a_worker_that_cannot_start_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no codec process comes up, the run stops and no image is blamed."""
    monkeypatch.setenv("DATAFETCH_TEST_UNLOADABLE", "1")
    with pytest.raises(ResourceError, match="codec process ended"):
        async with Transcoder(processes=1, codec=unloadable):
            pass


def test_a_worker_imports_no_network_stack() -> None:
    """A codec process costs the memory of Pillow, not of aiohttp and the rest."""
    code = "import sys, datafetch.transcode.worker, datafetch.transcode.codec; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "PIL.Image" in modules
    assert not {"aiohttp", "uvloop", "pyarrow", "typer", "numpy"} & set(modules)


PARENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from conftest import until
from pool_codecs import echo
from datafetch.transcode import Transcoder
async def main():
    async with Transcoder(processes=2, codec=echo) as transcode:
        print((await transcode(b"pid")).jpeg.decode(), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_workers_end_with_a_killed_parent() -> None:
    """A parent killed with SIGKILL leaves no orphan."""
    code = PARENT.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = psutil.Process(parent.pid).children()
        parent.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive


def test_a_child_finds_what_its_parent_finds() -> None:
    """A child process imports from where its parent does, whatever its working directory."""
    command = child_command("datafetch.transcode.worker")
    ended = subprocess.run(
        command, cwd="/", capture_output=True, stdin=subprocess.PIPE, check=False, timeout=PATIENCE_S
    )
    assert b"ModuleNotFoundError" not in ended.stderr
    assert b"on non-socket" in ended.stderr
