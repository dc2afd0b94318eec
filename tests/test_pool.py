"""The pool of codec processes survives its processes."""

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

import psutil
import pytest
from conftest import until
from PIL import Image
from pool_codecs import echo, poisoned, unloadable

from datafetch.demo.pictures import paint
from datafetch.errors import ResourceError
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Outcome
from datafetch.process.child import child_command
from datafetch.transcode import ImageSpec, Transcoder
from datafetch.transcode.pool.forkserver import DESCRIPTORS
from datafetch.transcode.pool.quarantine import Quarantine
from datafetch.transcode.pool.spawner import UNKNOWN_STATUS, Spawner

PATIENCE_S = 20.0
SOON_S = 2.0
IMPATIENT = ImageSpec(decode_timeout_s=0.2, max_pixels=1)


def content(outcome: Outcome) -> bytes:
    """What the echo gave back."""
    assert isinstance(outcome, Encoded), outcome
    return outcome.jpeg


async def transcode_all(transcode: Transcoder, bodies: Sequence[bytes]) -> list[Outcome]:
    """The outcomes of all bodies, asked for at once."""
    return list(await asyncio.gather(*(transcode(body) for body in bodies)))


class Family:
    """The processes below this one that the test has started; other tests' servers live on beside them."""

    def __init__(self) -> None:
        self._others = set(psutil.Process().children(recursive=True))

    def members(self) -> list[psutil.Process]:
        """All of them, the fork server first."""
        return [process for process in psutil.Process().children(recursive=True) if process not in self._others]

    def pids(self) -> set[int]:
        """Their numbers."""
        return {process.pid for process in self.members()}


@pytest.fixture
def family() -> Family:
    """The processes that the test starts."""
    return Family()


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that has ended may wait for a moment until init takes note of it."""
    return [process for process in processes if process.is_running() and _status(process) != psutil.STATUS_ZOMBIE]


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


@pytest.mark.both_loops
async def test_every_caller_gets_the_outcome_of_its_own_body() -> None:
    """Images are handed over many at a time; none is mixed up with another."""
    bodies = [os.urandom(number % 5000) + b"." for number in range(2000)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert [content(outcome) for outcome in outcomes] == bodies


async def test_bodies_of_the_fetcher_and_its_failures_pass() -> None:
    """A body is transcoded, a failure comes straight back."""
    failure = Failure(FailureKind.TIMEOUT)
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert content(await transcode(Body(b"cat"))) == b"cat"
        assert await transcode(failure) is failure


@pytest.mark.both_loops
async def test_large_bodies_pass() -> None:
    """A body larger than any tray arrives whole, among small ones and empty ones."""
    large = os.urandom(33 * 1024 * 1024)
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, [large, *[b"small", b""] * 25, large])
    assert content(outcomes[0]) == content(outcomes[-1]) == large
    assert [content(outcome) for outcome in outcomes[1:-1]] == [b"small", b""] * 25


@pytest.mark.parametrize(
    ("poison", "why"),
    [
        (b"exit", "with status 7"),
        (b"segfault", "by SIGSEGV"),
        (b"spin", "more than 0.2 s of CPU time"),
        (b"sleep", "hung for 1 s"),
        (b"devour", "more memory"),
        (b"babble", "nonsense"),
        (b"unnamed signal", "by signal 40"),
        (b"stop", "by SIGKILL"),
        (b"close", "by SIGKILL"),
        (b"bear", "with status 3"),
    ],
)
async def test_a_poison_costs_one_image_among_2000(
    poison: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many images in flight exactly the guilty one fails, however it ends its process, and its body is kept."""
    bodies = [b"%d" % number for number in range(2000)]
    bodies[1000] = poison
    monkeypatch.setattr("datafetch.transcode.pool.pool._SILENCE_MARGIN_S", 0.2)
    monkeypatch.setattr("datafetch.transcode.pool.spawner._LAST_WORDS_S", 0.05)
    needs_more = poison in (b"babble", b"close", b"bear")  # descriptors in /proc, a child
    kept_in = tmp_path / "quarantine"
    async with Transcoder(
        IMPATIENT, processes=2, codec=echo, quarantine=kept_in, is_shut_in=not needs_more
    ) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    guilty = outcomes.pop(1000)
    assert isinstance(guilty, Failure)
    assert guilty.kind is FailureKind.WORKER_CRASHED
    assert why in guilty.detail
    assert [content(outcome) for outcome in outcomes] == bodies[:1000] + bodies[1001:]
    (kept,) = kept_in.iterdir()
    assert kept.read_bytes() == poison
    assert kept.stem == guilty.sha256 == hashlib.sha256(poison).hexdigest()


async def test_a_poison_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever looks after the run is told what happened, and to which body."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        await transcode(b"segfault")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "SIGSEGV" in record.getMessage()
    assert hashlib.sha256(b"segfault").hexdigest() in record.getMessage()


async def test_what_libraries_say_of_a_file_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """They write to standard error past Python; the outcome says it."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert content(await transcode(b"mutter")) == b"mutter"
    assert capfd.readouterr().err == ""


async def test_a_bug_in_the_codec_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception that a codec should not have raised is its image's failure, and whoever looks sees its traceback."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        assert isinstance(await transcode(b"raise"), Failure)
    assert "RuntimeError: a bug in the codec" in capfd.readouterr().err


async def test_the_same_poison_again_is_not_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand copies of one bad image don't flood whoever looks after the run."""
    async with Transcoder(processes=1, codec=echo, quarantine=tmp_path) as transcode:
        await transcode_all(transcode, [b"exit"] * 3)
    assert len(caplog.records) == 1


@pytest.mark.both_loops
async def test_many_poisons_cost_only_themselves(family: Family) -> None:
    """Images that kill their process don't wear the pool out."""
    bodies = [b"exit" if number % 20 == 0 else b"%d" % number for number in range(400)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        outcomes = await transcode_all(transcode, bodies)
        await until(lambda: len(family.members()) == 3)  # the fork server and two codec processes
    for body, outcome in zip(bodies, outcomes, strict=True):
        assert isinstance(outcome, Failure) if body == b"exit" else content(outcome) == body


async def test_an_image_that_dies_once_is_not_to_blame(tmp_path: Path) -> None:
    """What ended a process may have been somebody's kill: only an image that does it again, alone, is convicted."""
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"doom " + os.fsencode(tmp_path / "done")
    async with Transcoder(processes=2, codec=echo, is_shut_in=False) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert [content(outcome) for outcome in outcomes] == bodies


@pytest.mark.both_loops
@pytest.mark.parametrize("images", [1, 20])
async def test_a_process_killed_from_outside_costs_no_image(images: int, tmp_path: Path) -> None:
    """An operator's kill, with one image in hand or with several, is survived by all of them."""
    done = tmp_path / "done"
    async with Transcoder(processes=1, codec=echo) as transcode:
        pid = int(content(await transcode(b"pid")))
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(images)]
        await until(lambda: transcode.waiting < len(waits))
        os.kill(pid, signal.SIGKILL)
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1
        assert int(content(await transcode(b"pid"))) != pid


@pytest.mark.both_loops
async def test_a_message_to_a_process_that_has_ended_raises_nothing() -> None:
    """A batch may be sent between the channel closing and the pool noticing."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        (worker,) = transcode._workers
        worker.process.writer.transport.abort()
        await until(lambda: transcode._workers != [worker])  # by now uvloop has forgotten the channel's descriptor
        worker.process.send(b"a message")
        assert content(await transcode(b"cat")) == b"cat"


@pytest.mark.both_loops
async def test_a_killed_fork_server_costs_no_image(family: Family, tmp_path: Path) -> None:
    """When the process that forks codec processes is killed, they end with it, and others do their work."""
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        before = family.pids()
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(20)]
        await until(lambda: transcode.waiting < len(waits))
        family.members()[0].kill()
        await until(lambda: not before & family.pids())
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1


@pytest.mark.parametrize("place", [0, 5, 15, 59])
async def test_a_slow_image_does_not_hold_up_others(tmp_path: Path, place: int) -> None:
    """Images that were handed over together with a slow one, before or behind it, are answered long before it is."""
    done = tmp_path / "done"
    bodies = [b"%d" % number for number in range(60)]
    async with Transcoder(processes=2, codec=echo) as transcode:
        before = [asyncio.create_task(transcode(body)) for body in bodies[:place]]
        slow = asyncio.create_task(transcode(b"until " + os.fsencode(done)))
        behind = [asyncio.create_task(transcode(body)) for body in bodies[place:]]
        outcomes = await asyncio.gather(*before, *behind)
        assert not slow.done()
        done.touch()
        await slow
    assert [content(outcome) for outcome in outcomes] == bodies


async def test_after_a_slow_image_its_process_works_on(tmp_path: Path) -> None:
    """A process that was slow once is given images again when it is done."""
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        slow = asyncio.create_task(transcode(b"until " + os.fsencode(done)))
        await transcode_all(transcode, [b"%d" % number for number in range(60)])
        done.touch()
        await slow
        pids: set[bytes] = set()
        while len(pids) < 2:
            pids |= {content(outcome) for outcome in await transcode_all(transcode, [b"pid"] * 8)}


@pytest.mark.both_loops
async def test_a_cancelled_caller_disturbs_nobody(tmp_path: Path) -> None:
    """Cancelling one image leaves the others as they are."""
    done = tmp_path / "done"
    async with Transcoder(processes=1, codec=echo) as transcode:
        tasks = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(40)]
        await until(lambda: transcode.waiting < len(tasks))
        for task in tasks[::2]:
            task.cancel()
        done.touch()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False] * 20


@pytest.mark.both_loops
async def test_closing_leaves_no_process_no_descriptor_and_no_waiter(family: Family) -> None:
    """After the pool is closed its processes are gone, and callers that still waited are cancelled."""
    async with Transcoder(processes=1, codec=echo):
        pass  # what a loop opens for its first child process stays with it
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
    assert psutil.Process().num_fds() == descriptors


@pytest.mark.both_loops
@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_while_the_pool_closes_leaves_no_process(family: Family, turns: int) -> None:
    """Whoever is in a hurry and cancels twice still leaves nothing behind."""

    async def work() -> None:
        async with Transcoder(processes=2, codec=echo) as transcode:
            await transcode(b"spin")

    working = asyncio.create_task(work())
    await until(lambda: len(family.members()) == 3)
    for _ in range(2):
        working.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not family.members()


@pytest.mark.both_loops
@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_cancelling_while_the_pool_starts_leaves_no_process(family: Family, turns: int) -> None:
    """At whichever moment of its start it is cancelled, nothing is left."""

    async def work() -> None:
        async with Transcoder(processes=2, codec=echo):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    await until(lambda: not family.members())
    gc.collect()


@pytest.mark.both_loops
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_fork_of_the_users_program_does_not_hold_up_the_end(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the user has forked holds copies of the pool's descriptors, and closing it works all the same."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._GRACE_S", PATIENCE_S)
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


async def test_outside_of_its_lifetime_a_pool_takes_nothing() -> None:
    """Before it is entered and after it is closed, a call is refused instead of left waiting."""
    transcode = Transcoder(processes=1, codec=echo)
    with pytest.raises(RuntimeError, match="async with"):
        await transcode(b"early")
    async with transcode:
        await transcode(b"cat")
    with pytest.raises(RuntimeError, match="closed"):
        await transcode(b"late")


@pytest.mark.both_loops
async def test_a_process_that_spoils_its_trays_is_replaced() -> None:
    """What a decoder's bug may do to the shared memory costs a process, and no image that came well."""
    large = os.urandom(9 * 1024 * 1024)
    async with Transcoder(processes=1, codec=echo, is_shut_in=False) as transcode:
        await transcode(b"blow up")
        assert content(await transcode(large)) == large


@pytest.mark.both_loops
async def test_a_process_that_kills_the_fork_server_costs_itself(tmp_path: Path) -> None:
    """Even an image that ends what forks the processes, and does so again, is one failure."""
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"regicide"
    async with Transcoder(processes=2, codec=echo, quarantine=tmp_path, is_shut_in=False) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert isinstance(outcomes.pop(50), Failure)
    assert [content(outcome) for outcome in outcomes] == bodies[:50] + bodies[51:]


async def test_a_slow_quarantine_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state folder may lie on a slow disk; others' answers don't wait for it."""
    go_on = threading.Event()
    monkeypatch.setattr(Quarantine, "keep", lambda *_: go_on.wait() and None)
    async with Transcoder(processes=1, codec=echo, quarantine=tmp_path) as transcode:
        guilty = asyncio.create_task(transcode(b"exit"))
        assert content(await transcode(b"cat")) == b"cat"
        assert not guilty.done()
        go_on.set()
        assert isinstance(await guilty, Failure)


@pytest.mark.both_loops
async def test_a_stopped_fork_server_does_not_hold_up_the_end(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when somebody stopped the process that forks, closing the pool ends it and all it has forked."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._GRACE_S", 0.1)
    async with Transcoder(processes=2, codec=echo):
        processes = family.members()
        processes[0].suspend()
    await until(lambda: not alive(processes))


@pytest.mark.both_loops
async def test_a_stopped_fork_server_costs_no_image(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the process that forks is stopped and its processes are killed, it is replaced, and others do their work."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._SILENCE_S", SOON_S)
    done = tmp_path / "done"
    async with Transcoder(processes=2, codec=echo) as transcode:
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(done))) for _ in range(20)]
        await until(lambda: transcode.waiting < len(waits))
        server, *processes = family.members()
        server.suspend()
        for process in processes:
            process.kill()
        done.touch()
        assert len({content(outcome) for outcome in await asyncio.gather(*waits)}) == 1
    assert not alive([server, *processes])
    assert "did not answer; it is replaced" in caplog.text


@pytest.mark.both_loops
async def test_a_fork_server_that_does_not_fork_is_replaced(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process comes up all the same, of another server."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._SILENCE_S", SOON_S / 4)
    spawner = Spawner(echo, ImageSpec(), is_shut_in=False)
    try:
        first = await spawner.launch()
        server = family.members()[0]
        server.suspend()
        second = await spawner.launch()
        assert await first.status == UNKNOWN_STATUS
        assert not second.status.done()
        assert not alive([server])
        for process in (first, second):
            process.close()
    finally:
        await spawner.close()


@pytest.mark.slow
async def test_an_image_that_stops_the_fork_server_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees what it dies of, so it is tried again, but not for ever; it costs no other image."""
    monkeypatch.setattr("datafetch.transcode.pool.spawner._SILENCE_S", SOON_S / 2)
    bodies = [b"%d" % number for number in range(100)]
    bodies[50] = b"silence"
    async with Transcoder(processes=2, codec=echo, quarantine=tmp_path) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    guilty = outcomes.pop(50)
    assert isinstance(guilty, Failure)
    assert guilty.kind is FailureKind.WORKER_CRASHED
    assert [content(outcome) for outcome in outcomes] == bodies[:50] + bodies[51:]


async def test_a_codec_that_cannot_be_loaded_is_our_fault(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no codec process comes up, the run stops and no image is blamed."""
    monkeypatch.setenv("DATAFETCH_TEST_UNLOADABLE", "1")
    with pytest.raises(ResourceError, match="codec process ended"):
        async with Transcoder(processes=1, codec=unloadable):
            pass
    assert not family.members()


def _room_for(process: psutil.Process, descriptors: int) -> int:
    """The limit that lets a process open so many more."""
    used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    return [number for number in range(1000) if number not in used][descriptors - 1] + 1


async def test_a_codec_process_that_finds_no_descriptor_at_its_start_says_so(
    family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is tried again, and what stops the run then is the want, in one line; it is no fault of the installation."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        server, worker = family.members()
        most = _room_for(server, DESCRIPTORS)  # so it can be told to fork, and the child can open nothing
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (most, most))
        worker.kill()
        await asyncio.to_thread(worker.wait)
        with pytest.raises(ResourceError, match=r"too few descriptors.*run the same command again"):
            await transcode(b"late")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.both_loops
async def test_a_pool_that_cannot_go_on_tells_every_caller(
    family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When a process is lost and none can be started any more, everybody who waits hears of it."""
    async with Transcoder(processes=1, codec=echo) as transcode:
        waits = [asyncio.create_task(transcode(b"until " + os.fsencode(tmp_path / "never"))) for _ in range(40)]
        await until(lambda: transcode.waiting < len(waits))
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        for process in family.members():
            process.kill()
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(outcome, ResourceError)
            assert "run the same command again" in str(outcome)
        with pytest.raises(ResourceError):
            await transcode(b"late")


async def test_mutated_images_cost_at_most_themselves() -> None:
    """Thousands of damaged files go through real codec processes, between sound ones that all arrive."""
    rng = random.Random(11)
    sound = [_encoded(paint((48, 40), seed), name) for seed, name in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF"))]
    bodies = [_mutated(rng.choice(sound), rng) if number % 4 else sound[number % 5] for number in range(4000)]
    async with Transcoder(ImageSpec(max_pixels=10_000_000), processes=2) as transcode:
        outcomes = await transcode_all(transcode, bodies)
    assert all(isinstance(outcome, Encoded) for outcome in outcomes[::4])
    assert sum(isinstance(outcome, Failure) for outcome in outcomes) > 500
    assert not [outcome for outcome in outcomes if getattr(outcome, "kind", None) is FailureKind.WORKER_CRASHED]


async def test_poison_among_real_images() -> None:
    """With the real codec, too, an image that ends its process costs itself alone."""
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


def test_a_codec_process_imports_no_network_stack() -> None:
    """A codec process costs the memory of Pillow, not of aiohttp and the rest."""
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
        while transcode.waiting:
            await asyncio.sleep(0.001)
        print(flush=True)
        await busy
asyncio.run(main())
"""


@pytest.mark.parametrize("body", [b"spin", b"sleep"])
def test_a_killed_parent_leaves_no_process(body: bytes) -> None:
    """Two seconds after a SIGKILL nothing is left, though a codec process was busy with an image that never ends."""
    code = PARENT.format(tests=str(Path(__file__).parent), body=body)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        killed_s = time.monotonic()
    assert len(processes) == 3
    while alive(processes) and time.monotonic() < killed_s + SOON_S:
        os.sched_yield()
    assert not alive(processes)


def test_ctrl_c_leaves_no_process_and_no_warning() -> None:
    """Ctrl-C in the middle of an image ends everything, and says no more than that it was interrupted."""
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


def test_a_child_finds_what_its_parent_finds() -> None:
    """A child process imports from where its parent does, whatever its working directory."""
    command = child_command("datafetch.transcode.pool.forkserver")
    ended = subprocess.run(
        command, cwd="/", capture_output=True, stdin=subprocess.PIPE, check=False, timeout=PATIENCE_S
    )
    assert b"ModuleNotFoundError" not in ended.stderr
    assert b"on non-socket" in ended.stderr
