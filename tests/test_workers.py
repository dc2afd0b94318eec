"""Runs with worker processes do what one process does, whatever is killed, and keep to the limits of one."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LOOPBACK
from http_server import HttpServer
from jobs import coyo_job
from runs import Run, RunFolders, StoredImages, Trial, check_out_of_resources, dying_at_a_step, serve_trial
from sources import place_images, place_source, serve_pictures, tiny_options
from test_fetch_shards import ledger_of, tree_of

import datafetch
from datafetch import Job, RunState, read_status
from datafetch.datasets import DATASETS
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint, write_pictures
from datafetch.fetch import FetchPolicy
from datafetch.model.observers import Observer
from datafetch.model.outcome import FailureKind
from datafetch.model.statistics import Statistics
from datafetch.store.layout import OutputLayout

_kills = pytest.mark.usefixtures("without_coverage")  # whose files processes that are killed leave damaged
_WORKER = "datafetch.engine.workers.worker"
_WORKERS = 3
_HOSTS = 12  # so that each worker owns some
_KILLED = -9
_NEAR_END_SHARE = 0.7
_LIMIT = 3
_EXCESS_PATIENCE_S = 0.1
_PAUSE_S = 2


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset of three shards on an origin of its own, and what a run of one process makes of it."""
    with serve_trial(tmp_path_factory.mktemp("trial"), hosts=_HOSTS) as served:
        yield served


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """The folders of a run on the trial's dataset."""
    return RunFolders(tmp_path / "root")


def command(trial: Trial, folders: RunFolders, workers: int = _WORKERS) -> list[str]:
    """Return the command that fetches the trial's dataset with workers."""
    return [*trial.command(folders), "--workers", str(workers), "--processes", str(max(2, workers))]


def check_like_one_run(trial: Trial, folders: RunFolders) -> None:
    """Check that files and ledgers equal those of one process, except for durations, and that nothing else is left."""
    undisturbed = RunFolders(trial.source.folder.parent.parent / "undisturbed")
    trial.check_complete(folders)
    assert ledger_of(folders.layout) == ledger_of(undisturbed.layout)
    assert read_status(folders.layout.out).state is RunState.COMPLETE
    assert not folders.layout.all_spools.exists()


def lines_of(layout: OutputLayout) -> list[dict[str, Any]]:
    """Return all ledger lines, without what depends on which of several images of one URL was requested."""
    lines = ledger_of(layout)
    urls = Counter(line["url"] for line in lines)
    return [line | {"attempts": None} if urls[line["url"]] > 1 else line for line in lines]


def is_near_end(trial: Trial, before: dict[str, int]) -> bool:
    """Return whether most URLs have been requested since then."""
    return sum(count > before[url] for url, count in trial.requests().items()) > _NEAR_END_SHARE * len(before)


def kill_one_worker(run: Run, rng: random.Random, killed: set[int]) -> bool:
    """Kill a worker that was not killed before; return False if there is none at this moment."""
    workers = [worker for worker in run.family(_WORKER) if worker.pid not in killed]
    if not workers:
        return False
    victim = rng.choice(workers)
    killed.add(victim.pid)
    with suppress(psutil.NoSuchProcess):
        victim.kill()
    return True


def test_workers_make_what_one_process_makes(trial: Trial, folders: RunFolders) -> None:
    """The same files and ledgers, with one request for each URL."""
    before = trial.requests()
    with Run(command(trial, folders)) as run:
        assert run.end() == 0, "\n".join(run.messages())
    check_like_one_run(trial, folders)
    assert {url: count - before[url] for url, count in trial.requests().items()} == dict.fromkeys(before, 1)


@_kills
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_only_what_is_in_flight(trial: Trial, folders: RunFolders, seed: int) -> None:
    """Another one takes its place, no stored image is requested again, and the output is the same."""
    rng, killed = random.Random(seed), set[int]()
    stored, before = StoredImages(trial, folders), trial.requests()
    with Run([*command(trial, folders), "--max-rate", "300KB/s"]) as run:
        next_bytes = rng.randrange(1, 60_000)
        for _ in run.readings():
            # One that has nothing left to do is not replaced, so none is killed near the end.
            is_time = len(killed) < 2 and folders.stored_bytes() >= next_bytes and not is_near_end(trial, before)
            if is_time and kill_one_worker(run, rng, killed):
                stored.check()
                next_bytes = folders.stored_bytes() + rng.randrange(1, 60_000)
        assert run.end() == 0, "\n".join(run.messages())
        assert sum("was killed (SIGKILL" in line for line in run.messages()) == len(killed) > 0
    stored.check()
    check_like_one_run(trial, folders)


@_kills
def test_a_program_that_runs_workers_hears_of_one_that_was_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each image is counted once, what was in flight is requested again, and the output is complete."""
    names = write_pictures(tmp_path / "pictures", 10)

    def kill_one() -> None:
        next(one for one in psutil.Process().children() if _WORKER in " ".join(one.cmdline())).kill()

    async def kill_one_in_the_middle(take: Callable[[], Statistics]) -> None:
        while take().ok < len(urls) / 4:  # noqa: ASYNC110 - the condition depends on another process
            await asyncio.sleep(0.01)
        await asyncio.to_thread(kill_one)

    with Origin(tmp_path / "pictures") as origin:
        urls = [origin.url("well", names[number % 10], number) for number in range(400)]
        policy = FetchPolicy(allow_net=LOOPBACK, retries=0)
        with caplog.at_level("WARNING", "datafetch"):
            report = run_in_workers(tmp_path, urls, policy, observers=[kill_one_in_the_middle])
    assert (report.totals.ok, report.totals.images) == (len(urls), len(urls))
    assert sum("was killed (SIGKILL" in message for message in caplog.messages) == 1
    assert read_status(tmp_path / "out").state is RunState.COMPLETE


@_kills
@pytest.mark.slow
def test_a_killed_coordinator_leaves_no_process_and_other_numbers_of_workers_resume(
    trial: Trial, folders: RunFolders
) -> None:
    """What all workers have stored is used by a run with more of them, with fewer, and with none."""
    rng, stored = random.Random(0), StoredImages(trial, folders)
    for workers in (3, 4, 1, 2):
        with Run(command(trial, folders, workers)) as run:
            first_bytes = folders.stored_bytes()
            growth = rng.randrange(1, 60_000)
            for _ in run.readings():
                if folders.stored_bytes() >= first_bytes + growth:
                    run.process.kill()
                    break
            assert run.end() in (_KILLED, 0), "\n".join(run.messages())
        stored.check()
    with Run(command(trial, folders)) as run:
        assert run.end() == 0, "\n".join(run.messages())
    stored.check()
    check_like_one_run(trial, folders)


def test_an_interrupted_run_stops_all_workers(trial: Trial, folders: RunFolders) -> None:
    """Ctrl-C ends with 130 and a hint, no process is left, and status and failures read what the workers stored."""
    with Run(command(trial, folders)) as run:
        for _ in run.readings():
            if len(folders.stored_urls()) > 20:
                run.process.send_signal(2)
                break
        assert run.end() == 130, run.messages()
        assert "Traceback" not in "\n".join(run.messages())
    status = read_status(folders.layout.out)
    assert status.state is RunState.INTERRUPTED
    assert sum(status.outcomes.values()) == len(folders.stored_urls())


@_kills
@pytest.mark.rotating
def test_a_full_disk_stops_the_run_with_one_line(trial: Trial, folders: RunFolders) -> None:
    """What a worker lacks stops all of them: exit 4, and one line that says what to do."""
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *command(trial, folders)]
    with Run(limited) as run:
        code = run.end()
        assert "File too large" in check_out_of_resources(run, code)


class _CountingServer(HttpServer):
    """Answers with a picture, and notes how many requests are open at once.

    A request is held for a moment in which there may come more than there may be.

    Args:
        picture: The picture.
        limit: The number of requests that may be open at once; 0 for any, and then none is held.
    """

    def __init__(self, picture: bytes, limit: int = 0) -> None:
        self._picture = picture
        self._limit = limit
        self._open = 0
        self._changed = threading.Condition()
        self.peak = 0
        self.requests: Counter[str] = Counter()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._changed:
            self.requests[handler.path] += 1
            self._open += 1
            self.peak = max(self.peak, self._open)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open > self._limit, _EXCESS_PATIENCE_S if self._limit else 0)
            self._open -= 1
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self._picture)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(self._picture)
        handler.close_connection = True


class _ThrottlingServer(HttpServer):
    """Refuses its first request with a pause, and notes when others came."""

    def __init__(self, picture: bytes) -> None:
        self._picture = picture
        self._lock = threading.Lock()
        self._refused_at_s = 0.0
        self.during_pause: list[float] = []
        self.requests = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        now_s = time.monotonic()
        with self._lock:
            self.requests += 1
            is_refused = self.requests == 1
            if is_refused:
                self._refused_at_s = now_s
            elif now_s - self._refused_at_s < _PAUSE_S:
                self.during_pause.append(now_s - self._refused_at_s)
        body = b"" if is_refused else self._picture
        handler.send_response(429 if is_refused else 200)
        if is_refused:
            handler.send_header("Retry-After", str(_PAUSE_S))
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small picture."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    paint((32, 32), 1).save(path)
    return path.read_bytes()


def run_in_workers(
    tmp_path: Path,
    urls: Sequence[str],
    policy: FetchPolicy,
    workers: int = 4,
    observers: Sequence[Observer[Statistics]] = (),
) -> datafetch.Report:
    """Fetch URLs with workers."""
    source = write_coyo_source(tmp_path / "source", urls, files=2)
    job = coyo_job(source, tmp_path / "out", fetch=policy, processes=workers)
    return datafetch.run(replace(job, workers=workers), observers=observers)


def test_the_limit_of_a_host_holds_for_all_workers_together(tmp_path: Path, picture: bytes) -> None:
    """Four workers send as many requests to a host at once as one may, and no more."""
    with _CountingServer(picture, _LIMIT) as server:
        urls = [f"{server.url}/{number}.png" for number in range(60)]
        report = run_in_workers(tmp_path, urls, FetchPolicy(allow_net=LOOPBACK, per_host=_LIMIT, retries=0))
    assert report.totals.ok == len(urls)
    assert server.peak == _LIMIT


@pytest.mark.rotating
def test_a_pause_that_a_host_asks_for_holds_for_all_workers(tmp_path: Path, picture: bytes) -> None:
    """After a 429 to one worker none of them sends a request, but those that were on their way."""
    with _ThrottlingServer(picture) as server:
        urls = [f"{server.url}/{number}.png" for number in range(40)]
        report = run_in_workers(tmp_path, urls, FetchPolicy(allow_net=LOOPBACK, per_host=1))
    assert report.totals.ok == len(urls)
    assert server.requests == len(urls) + 1
    assert not server.during_pause


def test_each_url_is_requested_once_by_all_workers_together(tmp_path: Path, picture: bytes) -> None:
    """A third of the images have the URL of another one, near it and far from it."""
    rng = random.Random(0)
    with _CountingServer(picture) as server:
        distinct = [f"{server.url}/{number}.png" for number in range(200)]
        urls = [*distinct, *rng.choices(distinct, k=100)]
        rng.shuffle(urls)
        report = run_in_workers(tmp_path, urls, FetchPolicy(allow_net=LOOPBACK, connections=8, retries=0))
    assert (report.totals.ok, report.repeated) == (len(urls), 100)
    assert set(server.requests.values()) == {1}


@pytest.mark.rotating
def test_a_host_that_is_down_is_down_for_all_workers(tmp_path: Path) -> None:
    """The circuit opens after five failures, whichever worker had them."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{unused.getsockname()[1]}/{number}.png" for number in range(80)]
        report = run_in_workers(tmp_path, urls, FetchPolicy(allow_net=LOOPBACK, per_host=1, retries=0))
    outcomes = report.totals.outcomes
    assert outcomes[FailureKind.CONNECT] == 5
    assert outcomes[FailureKind.HOST_DOWN] == len(urls) - 5


@pytest.mark.rotating
def test_a_retry_has_workers_too(tmp_path: Path) -> None:
    """It adds what arrives now, as one process does."""
    names = write_pictures(tmp_path / "pictures", 10)
    with Origin(tmp_path / "pictures") as origin:
        urls = [origin.url("busy" if number % 5 == 1 else "well", names[number % 10], number) for number in range(60)]
        policy = FetchPolicy(allow_net=LOOPBACK, retries=0, backoff_s=0.01)
        first = run_in_workers(tmp_path, urls, policy, workers=2)
        seen: list[Statistics] = []

        async def watch(take: Callable[[], Statistics]) -> None:
            while True:
                seen.append(take())
                await asyncio.sleep(0.01)

        report = datafetch.retry(str(tmp_path / "out"), observers=[watch])
    assert 0 < first.totals.ok < len(urls)
    assert (report.totals.ok, report.retried) == (len(urls), len(urls) - first.totals.ok)
    assert read_status(tmp_path / "out").state is RunState.COMPLETE
    assert max(len(one.workers) for one in seen) == 2


@_kills
@pytest.mark.rotating
def test_a_worker_that_is_killed_whenever_it_starts_stops_the_run(trial: Trial, folders: RunFolders) -> None:
    """With one line that says what to reduce; nothing is left behind."""
    with Run(command(trial, folders), dying_at_a_step(_WORKER, 1, folders.root)) as run:
        code = run.end()
        assert "3 times before it had fetched anything" in check_out_of_resources(run, code)


@_kills
def test_an_empty_spool_of_a_killed_worker_is_no_damage(trial: Trial, folders: RunFolders) -> None:
    """It was killed before it had written anything, and nobody opened the file again."""
    with Run(command(trial, folders)) as run:
        for _ in run.readings():
            if folders.stored_bytes() > 1000:
                run.process.kill()
                break
        run.end()
    shards = {path.stem for path in folders.spools()}
    (job_folder,) = folders.layout.all_spools.iterdir()
    empty = job_folder / "worker-9"
    empty.mkdir()
    for shard in shards:
        (empty / f"{shard}.spool").touch()
    with Run(command(trial, folders, workers=1)) as run:
        assert run.end() == 0, "\n".join(run.messages())
    check_like_one_run(trial, folders)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of an origin with the pictures that the tiny sources name."""
    with serve_pictures(tmp_path_factory.mktemp("tiny")) as served:
        yield served


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_workers_make_every_dataset(tmp_path: Path, authority: str, name: str) -> None:
    """Documents, members of archives, files in their place: files and lists are those of one process."""
    source = place_source(name, tmp_path, authority)
    place_images(name, tmp_path)
    policy = FetchPolicy(allow_net=LOOPBACK, retries=0)
    whole = Job(
        name,
        str(source.folder),
        str(tmp_path / "whole" / "out"),
        ids=None if source.ids is None else str(source.ids),
        fetch=policy,
        processes=2,
        options=tiny_options(name),
    )
    shared = replace(whole, out=str(tmp_path / "shared" / "out"), workers=2)
    expected, report = (datafetch.run(job) for job in (whole, shared))
    assert report.totals == expected.totals
    assert report.totals.rows > 0
    assert tree_of(tmp_path / "shared") == tree_of(tmp_path / "whole")
    layouts = [OutputLayout(Path(job.out)) for job in (shared, whole)]
    assert lines_of(layouts[0]) == lines_of(layouts[1])
