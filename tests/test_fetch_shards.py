"""A job in two steps: processes that fetch its shards, concurrently or one after another, and then ``finish``."""

from __future__ import annotations

import asyncio
import pickle
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK, until
from in_process import THREADS, commit_in_thread, fetch_dataset, run, threads_with
from jobs import coyo_job, files_of
from runs import Run, RunFolders, StoredImages, Trial, dying_at_a_step, serve_trial
from sources import place_images, place_source, tiny_options

import datafetch
from datafetch import Job, RunState, finish, read_status, shard_names
from datafetch.datasets import DATASETS
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.engine.retry import retry_failed
from datafetch.engine.runner import fetch_dataset_shards, finish_dataset
from datafetch.engine.session import Backends
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.observers import Observer
from datafetch.model.statistics import Statistics
from datafetch.monitor.heartbeat import read_snapshots
from datafetch.output.commit import Commit, complete_commits
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=32, per_host=32, retries=0)
Pictures = tuple[Path, list[str]]
_numbers = count()
_KILLED = -9
_FETCH_SHARDS = """
import pickle, sys
from pathlib import Path
from datafetch import fetch_shards
fetch_shards(pickle.loads(Path(sys.argv[1]).read_bytes()), sys.argv[2:])
"""

fetch_shards = partial(datafetch.fetch_shards, backends=THREADS)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A dataset of three shards on an origin of its own, and what an undisturbed run makes of it."""
    with serve_trial(tmp_path_factory.mktemp("trial")) as served:
        yield served


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """The folders of a run on the trial's dataset."""
    return RunFolders(tmp_path / "root")


@pytest.fixture
def trial_job(trial: Trial, folders: RunFolders) -> Job:
    """The job that the trial's command runs."""
    return coyo_job(
        trial.source, folders.layout.out, fetch=FetchPolicy(allow_net=LOOPBACK, connections=8, per_host=8, retries=0)
    )


def command(job: Job, *shards: str) -> list[str]:
    """Return the command of a process that fetches shards of a job."""
    file = Path(job.out).parent.parent.with_suffix(".job")
    file.write_bytes(pickle.dumps(job))
    return [sys.executable, "-c", _FETCH_SHARDS, str(file), *shards]


def check_like_one_run(trial: Trial, folders: RunFolders) -> None:
    """Check that files, ledgers and report equal those of one run, except for durations."""
    undisturbed = RunFolders(trial.source.folder.parent.parent / "undisturbed")
    trial.check_complete(folders)
    assert ledger_of(folders.layout) == ledger_of(undisturbed.layout)
    reports = [orjson.loads(one.layout.report.read_bytes()) for one in (folders, undisturbed)]
    for name in ("samples", "shards", "ids", "complete", "dataset"):
        assert reports[0][name] == reports[1][name]
    assert reports[0]["images"] == reports[1]["images"] | {"reused": reports[0]["images"]["ok"]}
    assert read_status(folders.layout.out).state is RunState.COMPLETE


def ledger_of(layout: OutputLayout) -> list[dict[str, Any]]:
    """Return all ledger lines, without their durations."""
    lines = [line for path in sorted(layout.ledgers.glob("*.parquet")) for line in pq.read_table(path).to_pylist()]
    return [{name: value for name, value in line.items() if name != "fetch_ms"} for line in lines]


@pytest.mark.rotating
def test_two_processes_and_finish_produce_what_one_run_does(trial: Trial, folders: RunFolders, trial_job: Job) -> None:
    """Two concurrent processes fetch different shards, and no URL is requested twice."""
    stored_images = StoredImages(trial, folders)
    first, second, third = shard_names(trial_job)
    with Run(command(trial_job, third, first)) as one, Run(command(trial_job, second)) as other:
        assert (one.end(), other.end()) == (0, 0), one.messages() + other.messages()
    stored_images.check()
    with pytest.raises(ConfigurationError, match="is not complete"):
        datafetch.retry(trial_job.out)
    finish(trial_job)
    check_like_one_run(trial, folders)
    assert not folders.layout.shard_progress_folder.exists()


@pytest.mark.rotating
@pytest.mark.slow
def test_a_killed_process_can_be_repeated(trial: Trial, folders: RunFolders, trial_job: Job) -> None:
    """A process is killed ever later, next to one that is not, until it completes. Nothing is lost."""
    first, *others = shard_names(trial_job)
    stored_images = StoredImages(trial, folders)
    rng = random.Random(6)
    steps, kills, code = 8, 0, _KILLED
    with Run(command(trial_job, *others)) as undisturbed:
        while code != 0:
            with Run(command(trial_job, first), dying_at_a_step("fetch_shards", steps, folders.root)) as run:
                code = run.end()
                assert code in (0, _KILLED), run.messages()
            kills += code != 0
            steps += rng.randrange(4, 9)
        assert undisturbed.end() == 0, undisturbed.messages()
    assert kills >= 3
    stored_images.check()
    finish(trial_job)
    check_like_one_run(trial, folders)


@pytest.fixture
def source(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of three files, with URLs that no other test requests."""
    number = next(_numbers)
    names = small_pictures[1] * 2
    urls = [origin.url("well", name, f"shards-{number}-{position}") for position, name in enumerate(names)]
    return write_coyo_source(tmp_path / "source", urls, files=3, rows=600)


@pytest.fixture
def job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job that fetches this manifest."""
    return coyo_job(source, tmp_path / "apart" / "out", fetch=POLICY, processes=None)


@pytest.mark.rotating
@pytest.mark.parametrize(
    "settings",
    [
        {"world_size": 4},
        {"limit": 70},
        pytest.param({"limit": 20}, marks=pytest.mark.slow),
        pytest.param({"limit": 10_000}, marks=pytest.mark.slow),
    ],
)
def test_the_order_of_shards_makes_no_difference(tmp_path: Path, job: Job, settings: dict[str, Any]) -> None:
    """The output, also if resharded or limited, is that of one run; a limit counts samples that other calls fetch."""
    job = replace(job, **settings)
    whole = replace(job, out=str(tmp_path / "whole" / "out"))
    expected = run(whole)
    names = shard_names(job)
    for shards in ([names[1]], [names[2]], [names[0]]):
        fetch_shards(job, shards)
    report = finish(job)
    assert files_of(job) == files_of(whole)
    assert ledger_of(OutputLayout(Path(job.out))) == ledger_of(OutputLayout(Path(whole.out)))
    assert (report.totals, report.id_list_result, report.resharded) == (
        expected.totals,
        expected.id_list_result,
        expected.resharded,
    )
    assert (report.shards, report.requests, report.reused) == (expected.shards, 0, expected.totals.ok)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of an origin with the pictures that the tiny sources name."""
    folder = tmp_path_factory.mktemp("tiny")
    for number, name in enumerate(write_pictures(folder / "painted", 10)):
        (folder / f"{number:05d}.png").write_bytes((folder / "painted" / name).read_bytes())
    with Origin(folder) as origin:
        yield urlsplit(origin.url("", "")).netloc


@pytest.mark.rotating
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_dataset_can_be_fetched_shard_by_shard(tmp_path: Path, authority: str, name: str) -> None:
    """Fetched last shard first, the files and the trainer's list are those of one run."""
    source = place_source(name, tmp_path, authority)
    place_images(name, tmp_path)
    ids = None if source.ids is None else str(source.ids)
    whole = Job(
        name, str(source.folder), str(tmp_path / "whole" / "out"), ids=ids, fetch=POLICY, options=tiny_options(name)
    )
    apart = replace(whole, out=str(tmp_path / "apart" / "out"))
    expected = run(whole)
    for shard in reversed(shard_names(apart)):
        fetch_shards(apart, [shard])
    report = finish(apart)
    assert (report.totals.samples, report.totals.rows) == (expected.totals.samples, expected.totals.rows)
    assert expected.totals.rows > 0
    assert (report.id_list_result, report.shards, report.resharded) == (
        expected.id_list_result,
        expected.shards,
        expected.resharded,
    )
    assert tree_of(tmp_path / "apart") == tree_of(tmp_path / "whole")
    layouts = [OutputLayout(Path(one.out)) for one in (apart, whole)]
    assert layouts[0].dropped.exists() == layouts[1].dropped.exists()
    if layouts[0].dropped.exists():
        assert layouts[0].dropped.read_bytes() == layouts[1].dropped.read_bytes()


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, except those in state folders."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not path.parts[0].endswith(".datafetch")}


@pytest.mark.rotating
def test_all_shards_are_fetched_by_default(tmp_path: Path, job: Job) -> None:
    """The report equals that of a run; a second call and a run find the shards and request nothing."""
    fetched = fetch_shards(job)
    assert (fetched.totals.ok, fetched.arrived, fetched.requests, fetched.reused) == (132, 132, 132, 0)
    again = fetch_shards(job)
    assert (again.totals, again.requests, again.reused) == (fetched.totals, 0, 132)
    report = run(job)
    assert (report.totals, report.requests) == (fetched.totals, 0)
    layout = OutputLayout(Path(job.out))
    before = layout.report.read_bytes()
    fetch_shards(job, shard_names(job)[:1])
    assert layout.report.read_bytes() == before
    assert fetch_shards(replace(job, out=str(tmp_path / "none" / "out")), []).totals == ShardCounts()
    assert not (tmp_path / "none").exists()


def test_a_shard_that_is_named_twice_is_fetched_once(job: Job, origin: Origin) -> None:
    """A repeated name has no effect."""
    name = shard_names(job)[1]
    before = sum(origin.requests().values())
    fetched = fetch_shards(job, [name, name])
    assert 0 < fetched.totals.samples == fetched.requests == sum(origin.requests().values()) - before


class HeldBackends:
    """Backends that commit no shard before they are released."""

    def __init__(self) -> None:
        self.is_held = False
        self._go = asyncio.Event()
        self.backends = threads_with(self._commit)

    def release(self) -> None:
        """Commit the shards that wait."""
        self._go.set()

    async def _commit(self, commit: Commit) -> ShardCounts:
        self.is_held = True
        await self._go.wait()
        return await commit_in_thread(commit)


@asynccontextmanager
async def at_work(work: Callable[[Backends], Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Keep a task that has fetched a shard at work for the duration of the block."""
    held = HeldBackends()
    task = asyncio.create_task(work(held.backends))
    await until(lambda: held.is_held or task.done())
    assert not task.done(), task
    yield task
    held.release()
    await task


@pytest.mark.rotating
async def test_only_other_shards_can_be_fetched_at_the_same_time(job: Job) -> None:
    """Work on the same shard, or on the whole output, is refused meanwhile, and nothing is lost."""
    first, second, third = await asyncio.to_thread(shard_names, job)
    layout = OutputLayout(Path(job.out))
    async with at_work(lambda backends: fetch_dataset_shards(job, [first], backends=backends)):
        before = await asyncio.to_thread(layout.job.read_bytes)
        unpublished = layout.unpublished / first
        await asyncio.to_thread(unpublished.mkdir, parents=True)
        with pytest.raises(ConfigurationError, match=f"another process is fetching shard {first} of .*out"):
            await fetch_dataset_shards(job, [first, second], backends=THREADS)
        needs_all: list[Callable[[], Coroutine[Any, Any, object]]] = [
            partial(fetch_dataset, job),
            partial(fetch_dataset, replace(job, fresh=True)),
            partial(finish_dataset, job),
            partial(retry_failed, job.out),
        ]
        for refused in needs_all:
            with pytest.raises(ConfigurationError, match="another run is working on"):
                await refused()
        with pytest.raises(ConfigurationError, match="was started with different settings"):
            await fetch_dataset_shards(replace(job, limit=7), [second], backends=THREADS)
        with pytest.raises(ConfigurationError, match=r"is working on .*, and --no-lock is for"):
            await fetch_dataset_shards(replace(job, no_lock=True), [second], backends=THREADS)
        assert await asyncio.to_thread(layout.job.read_bytes) == before
        await fetch_dataset_shards(job, [second, third], backends=THREADS)
        assert await asyncio.to_thread(unpublished.exists)
    report = await finish_dataset(job)
    assert report.totals.ok == 132


async def test_a_run_excludes_fetching_shards_and_finishing(job: Job) -> None:
    """While a run works on the output, its shards can't be fetched separately, and it can't be finished."""
    async with at_work(lambda backends: fetch_dataset(job, backends=backends)):
        for work in (fetch_dataset_shards(job, backends=THREADS), finish_dataset(job)):
            with pytest.raises(ConfigurationError, match="another run is working on"):
                await work


@pytest.mark.rotating
async def test_status_shows_all_processes_at_work(job: Job) -> None:
    """The expected number of images is known once they cover all shards; afterwards the run is interrupted."""
    first, second, third = await asyncio.to_thread(shard_names, job)
    out = Path(job.out)
    async with at_work(lambda backends: fetch_dataset_shards(job, [first], backends=backends)):
        alone = await asyncio.to_thread(read_status, out)
        assert (alone.state, len(alone.at_work), alone.expected_images) == (RunState.RUNNING, 1, None)
        async with at_work(lambda backends: fetch_dataset_shards(job, [third, second], backends=backends)):
            both = await asyncio.to_thread(read_status, out)
            assert (both.state, len(both.at_work), both.shards) == (RunState.RUNNING, 2, 3)
            assert both.shards_open >= 2
            assert both.expected_images is not None
            assert both.ok <= both.expected_images
    snapshots = await asyncio.to_thread(read_snapshots, OutputLayout(out))
    assert sorted((one.statistics.shards, one.is_ended) for one in snapshots) == [(1, True), (2, True)]
    left = await asyncio.to_thread(read_status, out)
    assert (left.state, left.shards_published, left.at_work) == (RunState.INTERRUPTED, 3, ())
    await finish_dataset(job)
    done = await asyncio.to_thread(read_status, out)
    assert (done.state, done.expected_images) == (RunState.COMPLETE, 132)


@pytest.mark.rotating
def test_finish_reports_the_number_of_missing_shards(job: Job) -> None:
    """The error names the first one. If nothing has been fetched, ``finish`` creates nothing."""
    names = shard_names(job)
    with pytest.raises(ConfigurationError, match=rf"3 of 3 shards of .*out are not published, the first is {names[0]}"):
        finish(job)
    assert not Path(job.out).parent.exists()
    fetch_shards(job, names[:1])
    for limit in (None, 10_000):
        with pytest.raises(ConfigurationError, match=rf"2 of 3 shards of .* the first is {names[1]}; fetch them"):
            finish(replace(job, limit=limit) if limit else job)
        if limit is None:
            job = replace(job, out=job.out + "-limited", limit=10_000)
            fetch_shards(job, names[:1])
    fetch_shards(job, names[1:])
    (Path(job.out) / f"{names[2]}.pkl").unlink()
    with pytest.raises(ConfigurationError, match=rf"1 of 3 shards of .* the first is {names[2]}"):
        finish(job)
    fetch_shards(job, names[2:])
    assert finish(job).totals.ok == 132


@pytest.mark.rotating
def test_a_shard_that_lost_a_file_makes_a_complete_output_incomplete(job: Job) -> None:
    """While it is fetched again, and until ``finish``: the report and the trainer's list are those of before."""
    names = shard_names(job)
    fetch_shards(job)
    finish(job)
    assert read_status(job.out).state is RunState.COMPLETE
    fetch_shards(job, names[:1])  # there is nothing to do
    assert read_status(job.out).state is RunState.COMPLETE
    (Path(job.out) / f"{names[0]}.pkl").unlink()
    fetch_shards(job, names[:1])
    assert read_status(job.out).state is RunState.INTERRUPTED
    assert finish(job).totals.ok == 132
    assert read_status(job.out).state is RunState.COMPLETE


def test_finish_reports_what_it_no_longer_permits(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """A permission that the shards were fetched with, and that it was not given, ends with it."""
    fetch_shards(replace(job, fetch=replace(job.fetch, insecure=True)))
    with caplog.at_level("INFO", "datafetch.engine.runner"):
        finish(job)
    assert [one for one in caplog.messages if one.endswith("so no longer permitted, also for retries: --insecure")]


def test_a_complete_shard_of_a_killed_process_is_published_by_its_successor(job: Job) -> None:
    """Only a process that fetches that shard publishes it."""
    first, second, _ = shard_names(job)
    layout = OutputLayout(Path(job.out))
    (layout.ready / second).mkdir(parents=True)
    (layout.ready / second / f"{second}.count").write_text("1")
    complete_commits(layout, {first})
    assert (layout.ready / second).exists()
    complete_commits(layout, {first, second})
    assert not (layout.ready / second).exists()
    assert (layout.out / f"{second}.count").exists()


def test_unknown_shards_and_fresh_are_refused(job: Job) -> None:
    """A shard must exist, and starting over might delete another process's work; nothing is created."""
    names = shard_names(job)
    with pytest.raises(ConfigurationError, match=rf"has no shard 'part-9'; it has 3, from {names[0]} to {names[2]}"):
        fetch_shards(job, ["part-9", names[0]])
    for work in (fetch_shards, finish):
        with pytest.raises(ConfigurationError, match=r"can't start over.*delete .*out and its state folder"):
            work(replace(job, fresh=True))
    assert not Path(job.out).parent.exists()


def test_the_scratch_of_an_interrupted_shard_must_be_given_again(job: Job, tmp_path: Path) -> None:
    """The call is refused, so that no image is fetched twice. For other shards another scratch is fine."""
    first, second, _ = shard_names(job)
    with_scratch = replace(job, scratch=str(tmp_path / "scratch"))

    async def interrupt() -> None:
        async with at_work(lambda backends: fetch_dataset_shards(with_scratch, [first], backends=backends)) as task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(interrupt())
    with pytest.raises(ConfigurationError, match=r"images fetched for .* lie in .*; give --scratch .* again"):
        fetch_shards(job, [first])
    assert fetch_shards(with_scratch, [first]).requests == 0
    assert fetch_shards(job, [second]).requests > 0


def test_an_observer_that_is_no_coroutine_function_is_refused(job: Job) -> None:
    """Before anything is fetched: it could only fail, and only the log would say so."""

    def observe(take_snapshot: Callable[[], Statistics]) -> None:
        del take_snapshot

    with pytest.raises(TypeError, match=r"an observer is a coroutine function \(async def\), not <function"):
        run(job, [observe])  # type: ignore[list-item]
    assert not OutputLayout(Path(job.out)).report.exists()


@pytest.mark.rotating
def test_observers_do_not_affect_one_another(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """An observer that fails is logged, and the others observe until the end, of ``finish`` as well."""
    seen: list[tuple[str, int]] = []

    async def fail(_: object) -> None:
        raise OSError(24, "Too many open files")

    async def watch(name: str, ask: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append((name, ask().shards_published))

    observers: list[Observer[Statistics]] = [partial(watch, "one"), fail, partial(watch, "other")]
    fetch_shards(job, observers=observers)
    finish(job, observers)
    assert sorted(seen, key=itemgetter(0)) == [("one", 3)] * 2 + [("other", 3)] * 2
    assert [record.name for record in caplog.records if "an observer failed" in record.message] == [
        "datafetch.model.observers"
    ] * 2
