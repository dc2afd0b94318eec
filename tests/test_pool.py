"""The pool survives the crash of any of its workers."""

import asyncio
import gc
import hashlib
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import until
from PIL import Image
from pool_codecs import echo, poisoned, unloadable

from datafetch.demo.pictures import paint
from datafetch.errors import ResourceError
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Outcome
from datafetch.transcode import ImageSpec, Transcoder
from datafetch.transcode.pool.forkserver import DESCRIPTORS_PER_FORK
from datafetch.transcode.pool.quarantine import Quarantine
from datafetch.transcode.pool.spawner import UNKNOWN_STATUS, Spawner

PATIENCE_S = 20.0
SOON_S = 2.0
IMPATIENT = ImageSpec(decode_timeout_s=0.2, max_pixels=1)


def content(outcome: Outcome) -> bytes:
    """Return what the echo codec returned as a JPEG."""
    assert isinstance(outcome, Encoded), outcome
    return outcome.jpeg


async def transcode_all(transcode: Transcoder, bodies: Sequence[bytes]) -> list[Outcome]:
    """Transcode all bodies at once, and return their outcomes in order."""
    return list(await asyncio.gather(*(transcode(body) for body in bodies)))


class Family:
    """The descendants of this process that the test has started; servers of other fixtures keep running."""

    def __init__(self) -> None:
        self._others = set(psutil.Process().children(recursive=True))

    def members(self) -> list[psutil.Process]:
        """Return all of them, the fork server first."""
        return [process for process in psutil.Process().children(recursive=True) if process not in self._others]

    def pids(self) -> set[int]:
        """Return their process IDs."""
        return {process.pid for process in self.members()}


@pytest.fixture
def family() -> Family:
    """Track the processes that the test starts."""
    return Family()


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run; one that has ended may stay a zombie until init reaps it."""
    return [process for process in processes if process.is_running() and _status(process) != psutil.STATUS_ZOMBIE]


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_every_caller_gets_the_outcome_of_its_own_body() -> None:
    """Images travel in batches, and no outcome is mixed up with another."""
    bodies = [os.urandom(number % 5000) + b"." for number in range(2000)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert [content(outcome) for outcome in outcomes] == bodies


@pytest.mark.rotating
async def test_a_fetched_body_is_transcoded_and_a_failure_returned() -> None:
    """A ``Body`` of the fetcher is transcoded, and its ``Failure`` is returned unchanged."""
    failure = Failure(FailureKind.TIMEOUT)
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert content(await transcode(Body(b"cat"))) == b"cat"
        assert await transcode(failure) is failure


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_large_bodies_pass() -> None:
    """A body larger than a shared buffer arrives whole, among small and empty ones."""
    large = os.urandom(33 * 1024 * 1024)
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, [large, *[b"small", b""] * 25, large])
    assert content(outcomes[0]) == content(outcomes[-1]) == large
    assert [content(outcome) for outcome in outcomes[1:-1]] == [b"small", b""] * 25


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("hostile", "detail"),
    [
        (b"exit", "(exit status 7)"),
        (b"segfault", "(SIGSEGV)"),
        (b"spin", "more than 0.2 s of CPU time"),
        (b"sleep", "hung for 1 s"),
        (b"exhaust memory", "more memory"),
        (b"invalid reply", "an invalid reply"),
        (b"unnamed signal", "(signal 40)"),
        (b"stop", "(SIGKILL)"),
        (b"close", "(SIGKILL)"),
        (b"leave child", "(exit status 3)"),
    ],
)
async def test_a_hostile_image_fails_alone_among_2000(
    hostile: bytes, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many images in flight only the culprit fails, however it ends its worker, and its body is kept."""
    bodies = [b"%d" % number for number in range(2000)]
    bodies[1000] = hostile
    if hostile == b"stop":  # nothing but its silence gives it away
        monkeypatch.setattr("datafetch.transcode.pool.pool._SILENCE_MARGIN_S", 0.2)
    monkeypatch.setattr("datafetch.transcode.pool.spawner._DRAIN_S", 0.05)
    needs_more = hostile in (b"invalid reply", b"close", b"leave child")  # they read /proc, or fork
    kept_in = tmp_path / "quarantine"
    async with Transcoder(
        IMPATIENT, processes=2, codec=echo, quarantine=kept_in, is_sandboxed=not needs_more
    ) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    culprit = outcomes.pop(1000)
    assert isinstance(culprit, Failure)
    assert culprit.kind is FailureKind.WORKER_CRASHED
    assert detail in culprit.detail
    assert [content(outcome) for outcome in outcomes] == bodies[:1000] + bodies[1001:]
    (kept,) = kept_in.iterdir()
    assert kept.read_bytes() == hostile
    assert kept.stem == culprit.sha256 == hashlib.sha256(hostile).hexdigest()


async def test_a_crash_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A warning tells the operator how the worker ended, and by which body."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        await transcode(b"segfault")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "SIGSEGV" in record.getMessage()
    assert hashlib.sha256(b"segfault").hexdigest() in record.getMessage()


async def test_messages_of_libraries_on_standard_error_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """C libraries write remarks about a file past Python; the outcome says all that matters."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert content(await transcode(b"write stderr")) == b"write stderr"
    assert capfd.readouterr().err == ""


async def test_a_bug_in_the_codec_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception that the codec should not have raised fails its image, and its traceback is printed."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert isinstance(await transcode(b"raise"), Failure)
    assert "RuntimeError: a bug in the codec" in capfd.readouterr().err


@pytest.mark.rotating
async def test_copies_of_one_hostile_image_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand copies of one bad image don't flood the log."""
    async with Transcoder(processes=1, codec=echo, quarantine=tmp_path) as transcode:
        await transcode_all(transcode, [b"exit"] * 3)
    assert len(caplog.records) == 1


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_many_hostile_images_fail_alone(family: Family) -> None:
    """However many images crash their worker, the pool keeps its number of workers."""
    bodies = [b"exit" if number % 20 == 0 else b"%d" % number for number in range(400)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, bodies)
        await until(lambda: len(family.members()) == 3)  # the fork server and two workers
    for body, outcome in zip(bodies, outcomes, strict=True):
        assert isinstance(outcome, Failure) if body == b"exit" else content(outcome) == body


@pytest.mark.rotating
async def test_an_image_that_crashes_once_is_not_blamed(tmp_path: Path) -> None:
    """An operator may have killed the worker, so only an image that crashes a second one, alone, is blamed."""
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"crash-once " + os.fsencode(tmp_path / "done")
    async with Transcoder(processes=2, codec=echo, is_sandboxed=False) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert [content(outcome) for outcome in outcomes] == bodies


@pytest.mark.both_loops
@pytest.mark.parametrize("images", [1, 20])
async def test_a_process_killed_from_outside_costs_no_image(images: int, tmp_path: Path) -> None:
    """A worker that an operator kills loses none of its images, be it one or several."""
    done = tmp_path / "done"
    async with Transcoder(processes=1, codec=echo) as transcode:
        pid = int(content(await transcode(b"pid")))
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(images)]
        await until(lambda: transcode.queued < len(waits))
        os.kill(pid, signal.SIGKILL)
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1
        assert int(content(await transcode(b"pid"))) != pid


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_message_to_a_process_that_has_ended_raises_nothing() -> None:
    """A batch may be sent between the channel closing and the pool noticing."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        (worker,) = transcode._workers
        worker.process.writer.transport.abort()
        await until(lambda: transcode._workers != [worker])  # by now uvloop has forgotten the channel's descriptor
        worker.process.send(b"a message")
        assert content(await transcode(b"cat")) == b"cat"


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_killed_fork_server_costs_no_image(family: Family, tmp_path: Path) -> None:
    """When the fork server is killed, its workers end with it, and new ones process all images."""
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        before = family.pids()
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(20)]
        await until(lambda: transcode.queued < len(waits))
        family.members()[0].kill()
        await until(lambda: not before & family.pids())
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_suspect_is_not_blamed_for_the_end_of_the_fork_server(family: Family, tmp_path: Path) -> None:
    """An image that is tried alone has nothing to do with what another image, or an operator, does to the server."""
    done, waits = tmp_path / "done", tmp_path / "done.waits"
    async with Transcoder(processes=1, codec=echo, is_sandboxed=False) as transcode:
        body = b"crash-once-then-wait " + os.fsencode(done)
        suspect = asyncio.create_task(transcode(body))
        await until(waits.exists)
        before = family.pids()
        family.members()[0].kill()
        await until(lambda: not before & family.pids())
        done.touch()
        assert content(await suspect) == body


@pytest.mark.rotating
@pytest.mark.parametrize("position", [0, 5, 15, 59])
async def test_a_slow_image_does_not_hold_up_others(tmp_path: Path, position: int) -> None:
    """Images in the same batch as a slow one, before or behind it, are answered long before it is."""
    done = tmp_path / "done"
    bodies = [b"%d" % number for number in range(60)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        before = [asyncio.create_task(transcode(body)) for body in bodies[:position]]
        slow = asyncio.create_task(transcode(b"until " + os.fsencode(done)))
        behind = [asyncio.create_task(transcode(body)) for body in bodies[position:]]
        outcomes = await asyncio.gather(*before, *behind)
        assert not slow.done()
        done.touch()
        await slow
    assert [content(outcome) for outcome in outcomes] == bodies


@pytest.mark.rotating
async def test_a_worker_is_used_again_after_a_slow_image(tmp_path: Path) -> None:
    """A worker that was slow once is given images again when it has finished the slow one."""
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        slow = asyncio.create_task(transcode(b"until " + os.fsencode(done)))
        await transcode_all(transcode, [b"%d" % number for number in range(60)])
        done.touch()
        await slow
        pids: set[bytes] = set()
        while len(pids) < 2:
            pids |= {content(outcome) for outcome in await transcode_all(transcode, [b"pid"] * 8)}


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_cancelled_caller_affects_no_other(tmp_path: Path) -> None:
    """When one caller is cancelled, all others still get their outcomes."""
    done = tmp_path / "done"
    async with Transcoder(processes=1, codec=echo) as transcode:
        tasks = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(40)]
        await until(lambda: transcode.queued < len(tasks))
        for task in tasks[::2]:
            task.cancel()
        done.touch()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False] * 20


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_closing_leaves_no_process_no_descriptor_and_no_waiting_caller(family: Family) -> None:
    """After the pool is closed its processes are gone, and callers that were still waiting are cancelled."""
    async with Transcoder(processes=1, codec=echo):
        pass  # a loop keeps open what it needs for child processes
    descriptors = psutil.Process().num_fds()
    async with Transcoder(processes=2, codec=echo) as transcode:
        await transcode_all(transcode, [b"pid"] * 20)
        left_behind = asyncio.create_task(transcode(b"spin"))
        await asyncio.sleep(0)
        assert len(family.members()) == 3
    assert not family.members()
    with pytest.raises(asyncio.CancelledError):
        await left_behind
    gc.collect()
    assert psutil.Process().num_fds() <= descriptors  # fewer if a thread closes what an earlier test has left


def every(step: int, moments: Sequence[int]) -> list[Any]:
    """Mark all but every so many moments as slow: each takes a fork server, and neighbours hardly differ."""
    return [
        moment if number % step == 0 else pytest.param(moment, marks=pytest.mark.slow)
        for number, moment in enumerate(moments)
    ]


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize("iterations", every(2, range(8)))
async def test_cancelling_while_the_pool_closes_leaves_no_process(family: Family, iterations: int) -> None:
    """Nothing is left even if the caller is cancelled a second time while the pool closes."""

    async def work() -> None:
        async with Transcoder(processes=2, codec=echo) as transcode:
            await transcode(b"spin")

    working = asyncio.create_task(work())
    await until(lambda: len(family.members()) == 3)
    for _ in range(2):
        working.cancel()
        for _ in range(iterations):
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not family.members()


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.parametrize("iterations", every(3, range(0, 40, 3)))
async def test_cancelling_while_the_pool_starts_leaves_no_process(family: Family, iterations: int) -> None:
    """Nothing is left, at whichever moment of its start the pool is cancelled."""

    async def work() -> None:
        async with Transcoder(processes=2, codec=echo):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    for _ in range(iterations):
        await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await until(lambda: not family.members())
    gc.collect()


@pytest.mark.rotating
@pytest.mark.both_loops
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_fork_of_the_users_program_does_not_delay_closing(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the user has forked holds copies of the pool's descriptors, and closing still works."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._SHUTDOWN_TIMEOUT_S", PATIENCE_S)
    read, write = os.pipe()
    async with Transcoder(processes=2, codec=echo) as transcode:
        await transcode(b"cat")
        if (child := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < PATIENCE_S / 2
    assert family.pids() == {child}
    os.close(write)
    os.close(read)
    await asyncio.to_thread(os.waitpid, child, 0)


@pytest.mark.rotating
async def test_a_pool_refuses_calls_outside_of_its_lifetime() -> None:
    """Before it is entered and after it is closed, a call raises instead of waiting for ever."""
    transcode = Transcoder(processes=1, codec=echo)
    with pytest.raises(RuntimeError, match="works only while it is open"):
        await transcode(b"early")
    async with transcode:
        await transcode(b"cat")
    with pytest.raises(RuntimeError, match="works only while it is open"):
        await transcode(b"late")


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_worker_that_breaks_its_buffers_is_replaced() -> None:
    """A worker whose shared buffers can't be used any more is replaced, and no later image fails."""
    large = os.urandom(9 * 1024 * 1024)
    async with Transcoder(processes=1, codec=echo, is_sandboxed=False) as transcode:
        await transcode(b"enlarge buffers")
        assert content(await transcode(large)) == large


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_an_image_that_kills_the_fork_server_fails_alone(tmp_path: Path) -> None:
    """An image that ends the fork server each time it is tried is one failure, and no other image fails."""
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"kill server"
    async with Transcoder(processes=2, codec=echo, quarantine=tmp_path, is_sandboxed=False) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert isinstance(outcomes.pop(50), Failure)
    assert [content(outcome) for outcome in outcomes] == bodies[:50] + bodies[51:]


@pytest.mark.rotating
async def test_a_slow_quarantine_delays_no_other_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state folder may be on a slow disk; other images don't wait for it."""
    is_written = threading.Event()
    monkeypatch.setattr(Quarantine, "keep", lambda *_: is_written.wait() and None)
    async with Transcoder(processes=1, codec=echo, quarantine=tmp_path) as transcode:
        culprit = asyncio.create_task(transcode(b"exit"))
        assert content(await transcode(b"cat")) == b"cat"
        assert not culprit.done()
        is_written.set()
        assert isinstance(await culprit, Failure)


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_stopped_fork_server_does_not_prevent_closing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the fork server was stopped with a signal, closing the pool ends it and all of its workers."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._SHUTDOWN_TIMEOUT_S", 0.1)
    async with Transcoder(processes=2, codec=echo):
        processes = family.members()
        processes[0].suspend()
    await until(lambda: not alive(processes))


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_stopped_fork_server_costs_no_image(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the fork server is stopped and its workers are killed, it is replaced, and new workers take over."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._RESPONSE_TIMEOUT_S", SOON_S)
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(20)]
        await until(lambda: transcode.queued < len(waits))
        server, *processes = family.members()
        server.suspend()
        for process in processes:
            process.kill()
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1
    assert not alive([server, *processes])
    assert "did not respond; it is replaced" in caplog.text


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_fork_server_that_does_not_fork_is_replaced(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the fork server is stopped, another one starts the worker."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._RESPONSE_TIMEOUT_S", SOON_S / 4)
    spawner = Spawner(echo, ImageSpec(), is_sandboxed=False)
    try:
        first = await spawner.spawn()
        server = family.members()[0]
        server.suspend()
        second = await spawner.spawn()
        assert await first.status == UNKNOWN_STATUS
        assert not second.status.done()
        assert not alive([server])
        for process in (first, second):
            process.close()
    finally:
        await spawner.close()


@pytest.mark.slow
async def test_an_image_that_stops_the_fork_server_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How its worker ended is unknown, so it is tried again, but not for ever; it costs no other image."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._RESPONSE_TIMEOUT_S", SOON_S / 2)
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"stop server"
    async with Transcoder(processes=2, codec=echo, quarantine=tmp_path) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    culprit = outcomes.pop(50)
    assert isinstance(culprit, Failure)
    assert culprit.kind is FailureKind.WORKER_CRASHED
    assert [content(outcome) for outcome in outcomes] == bodies[:50] + bodies[51:]


async def test_a_codec_that_cannot_be_loaded_fails_the_pool(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no worker can start, the pool raises and no image is blamed."""
    monkeypatch.setenv("DATAFETCH_TEST_UNLOADABLE", "1")
    with pytest.raises(ResourceError, match="codec process ended"):
        async with Transcoder(processes=1, codec=unloadable):
            pass
    assert not family.members()


def _room_for(process: psutil.Process, descriptors: int) -> int:
    """Return the descriptor limit that lets a process open N more."""
    used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    return [number for number in range(1000) if number not in used][descriptors - 1] + 1


@pytest.mark.rotating
async def test_too_few_descriptors_to_start_a_worker_are_reported(
    family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    """Starting is repeated, and then the run stops with one line that names the lack of descriptors."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        server, worker = family.members()
        limit = _room_for(server, DESCRIPTORS_PER_FORK)  # the server can receive a command, the child open nothing
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        worker.kill()
        await asyncio.to_thread(worker.wait)
        with pytest.raises(ResourceError, match=r"too few file descriptors.*run the same command again"):
            await transcode(b"late")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.rotating
@pytest.mark.both_loops
async def test_a_pool_that_fails_raises_in_every_caller(
    family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When a worker is lost and no other can be started, every waiting and every later call raises."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(tmp_path / "never"))) for _ in range(40)]
        await until(lambda: transcode.queued < len(waits))
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        for process in family.members():
            process.kill()
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(outcome, ResourceError)
            assert "run the same command again" in str(outcome)
        with pytest.raises(ResourceError):
            await transcode(b"late")


@pytest.mark.rotating
async def test_mutated_images_affect_no_others() -> None:
    """Thousands of damaged files go through real workers, between intact ones that all succeed."""
    rng = random.Random(11)
    sound = [_encoded(paint((48, 40), seed), name) for seed, name in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF"))]
    bodies = [_mutated(rng.choice(sound), rng) if number % 4 else sound[number % 5] for number in range(4000)]
    async with Transcoder(ImageSpec(max_pixels=10_000_000), processes=2) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert all(isinstance(outcome, Encoded) for outcome in outcomes[::4])
    assert sum(isinstance(outcome, Failure) for outcome in outcomes) > 500
    assert not [outcome for outcome in outcomes if getattr(outcome, "kind", None) is FailureKind.WORKER_CRASHED]


async def test_hostile_images_among_real_ones() -> None:
    """With the real codec too, an image that crashes its worker is the only one that fails."""
    body = _encoded(paint((48, 40), 1), "JPEG")
    bodies = [b"exit" if number % 50 == 49 else body for number in range(500)]
    async with Transcoder(processes=2, codec=poisoned) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert [isinstance(outcome, Encoded) for outcome in outcomes] == [body != b"exit" for body in bodies]
    assert len({outcome.jpeg for outcome in outcomes if isinstance(outcome, Encoded)}) == 1


def _encoded(picture: Image.Image, name: str) -> bytes:
    file = BytesIO()
    picture.save(file, format=name)
    return file.getvalue()


def _mutated(body: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(body)
    for _ in range(rng.randint(1, 12)):
        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
    return bytes(mutated[: rng.choice([None, rng.randrange(len(mutated))])])


def test_a_worker_imports_no_network_stack() -> None:
    """A worker costs the memory of Pillow, not of aiohttp and the rest."""
    code = "import sys, datafetch.transcode.pool.forkserver, datafetch.transcode.codec; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "PIL.Image" in modules
    assert not {"aiohttp", "uvloop", "pyarrow", "typer", "numpy"} & set(modules)


PARENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pool_codecs import echo
from datafetch.transcode import ImageSpec, Transcoder
async def main():
    async with Transcoder(ImageSpec(decode_timeout_s=600), processes=2, codec=echo) as transcode:
        await transcode(b"ready")
        busy = asyncio.create_task(transcode({body!r}))
        while transcode.queued:
            await asyncio.sleep(0.001)
        print(flush=True)
        await busy
asyncio.run(main())
"""


@pytest.mark.parametrize("body", [b"spin", b"sleep"])
def test_a_killed_parent_leaves_no_process(body: bytes) -> None:
    """Soon after a SIGKILL nothing is left, although a worker was busy with an image that never ends."""
    code = PARENT.format(tests=str(Path(__file__).parent), body=body)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(processes) == 3
    _, left = psutil.wait_procs(processes, PATIENCE_S)
    assert not left


@pytest.mark.rotating
def test_ctrl_c_leaves_no_process_and_no_warning() -> None:
    """Ctrl-C in the middle of an image ends everything, and prints nothing but the interrupt."""
    code = PARENT.format(tests=str(Path(__file__).parent), body=b"spin")
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes = psutil.Process(parent.pid).children(recursive=True)
        os.killpg(parent.pid, signal.SIGINT)
        _, stderr = parent.communicate(timeout=PATIENCE_S)
    assert not alive(processes)
    assert stderr.splitlines()[-1] == b"KeyboardInterrupt"
    assert b"Warning" not in stderr
    assert b"never" not in stderr
