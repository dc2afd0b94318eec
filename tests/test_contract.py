"""The same job by one worker, four workers and three nodes of a Ray cluster, into a folder and a bucket: same bytes.

Each run is disturbed by SIGKILL in its middle: of the whole command, which is then started again, of a worker process,
or of all processes of a node. What it leaves is compared with what one process leaves in a folder that nobody disturbs:
every byte of the output's files, and every line of the ledgers, but for times.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from object_store import BUCKET, ObjectStore, login, use
from ray_nodes import RayNodes
from runs import PATIENCE_S, Run, listed

from datafetch import read_status
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.monitor.cluster_snapshot import NodeState, read_cluster
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.view import observed_place
from datafetch.store.layout import OutputLayout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("without_coverage")]

SHARDS, IMAGES, PICTURES = 8, 320, 40
_FAULTS = {3: "missing", 8: "broken", 13: "html"}
_OUT = Path("coyo-700m", "pkl03-split")
_WORKER = "datafetch.engine.workers.worker"
_SLOWLY, _MORE_SLOWLY = ("--max-rate", "300KB/s"), ("--max-rate", "150KB/s")  # so that there is a middle
OPTIONS = (
    *("--allow-net", "127.0.0.0/8", "--connections", "8", "--per-host", "8", "--retries", "0", "--world-size", "2"),
)


@dataclass(frozen=True, slots=True)
class Work:
    """A dataset, and what an undisturbed run of one process makes of it.

    Attributes:
        origin: The server of its images.
        source: Its manifest.
        files: Name → content of the output's files.
        lines: The lines of the ledgers, without times.
    """

    origin: Origin
    source: CoyoSource
    files: Mapping[str, bytes] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def command(self, root: str, *more: str) -> list[str]:
        """Return the command that fetches the dataset into a data folder."""
        source = ("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", root)
        return [sys.executable, "-m", "datafetch", "prepare", "coyo", *source, *OPTIONS, *more]

    def requests(self) -> dict[str, int]:
        """Return how often each URL was requested so far."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run writes to, and the environment that it needs for it.

    Attributes:
        root: The data folder, as it is given to the command.
        environment: Variables of the command.
        cache: The folder in which it keeps its working copy.
    """

    root: str
    environment: Mapping[str, str]
    cache: Path

    @property
    def out(self) -> str:
        """The output."""
        return f"{self.root}/{_OUT}"

    def layout(self) -> OutputLayout | None:
        """Return the paths of the output, or of the working copy on which a run works now; None if there is none."""
        if not self.root.startswith("s3://"):
            return OutputLayout(Path(self.out))
        found = next(self.cache.glob(f"datafetch/outputs/*/{_OUT.name}.datafetch"), None)
        return None if found is None else OutputLayout(found.with_name(_OUT.name))

    def files(self) -> dict[str, bytes]:
        """Return the files that the trainer reads."""
        if not self.root.startswith("s3://"):
            return {path.name: path.read_bytes() for path in listed(Path(self.out))}
        place, bucket = Place.of(self.out), Bucket(BUCKET)
        objects = {one.key.removeprefix(place.out_prefix): bucket.get(one.key) for one in bucket.list(place.out_prefix)}
        bucket.close()
        return {name: one.body for name, one in objects.items() if one is not None}

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of the ledgers, without times."""
        with observed_place(self.out) as place:
            return lines_in(OutputLayout(place.out))

    def left_over(self) -> list[str]:
        """Return what is left of shards in progress, and of the manifest's shards."""
        if not self.root.startswith("s3://"):
            layout = OutputLayout(Path(self.out))
            return [str(path) for path in (*layout.all_spools.glob("**/*.spool"), *listed(layout.ready))]
        place, bucket = Place.of(self.out), Bucket(BUCKET)
        keys = [one.key.removeprefix(place.state_prefix) for one in bucket.list(place.state_prefix)]
        bucket.close()
        return [key for key in keys if key.startswith(("shards/", "spool/", "added/"))]


def lines_in(layout: OutputLayout) -> list[dict[str, Any]]:
    """Return all lines of the ledgers, without times."""
    lines = [line for path in sorted(layout.ledgers.glob("*.parquet")) for line in pq.read_table(path).to_pylist()]
    return [{name: value for name, value in line.items() if name != "fetch_ms"} for line in lines]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A dataset of eight shards."""
    folder = tmp_path_factory.mktemp("contract")
    names = [f"{number:05d}.png" for number in range(PICTURES)]
    (folder / "pictures").mkdir()
    for number, name in enumerate(names):
        paint((48, 48), number).save(folder / "pictures" / name)
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url(_FAULTS.get(number % 20, "well"), names[number % PICTURES], number) for number in range(IMAGES)
        ]
        undisturbed = Work(origin, write_coyo_source(folder / "source", urls, files=SHARDS))
        command = undisturbed.command(str(folder / "alone"), "--workers", "1")
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        alone = Target(str(folder / "alone"), {}, folder)
        assert set(undisturbed.requests().values()) == {1}
        yield Work(origin, undisturbed.source, alone.files(), alone.lines())


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server of S3's protocol."""
    with ObjectStore() as served:
        yield served


@pytest.fixture(params=["folder", "bucket"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Target:
    """Where a run writes to."""
    if request.param == "folder":
        return Target(str(tmp_path / "root"), {}, tmp_path)
    use(monkeypatch, login(store.url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "view"))
    environment = {**login(store.url), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return Target(f"s3://{BUCKET}/{tmp_path.name}", environment, tmp_path / "cache")


@pytest.fixture(scope="module")
def cluster(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster of three nodes, each with a cache folder of its own and the login of the store."""
    pytest.importorskip("ray")
    with RayNodes() as nodes:
        for name in ("a", "b", "c"):
            cache = tmp_path_factory.mktemp(f"cache-of-{name}")
            nodes.add(name, environment={**login(store.url), "XDG_CACHE_HOME": str(cache)})
        yield nodes


class Disturbance:
    """Runs a command on a target, and counts what it asks for.

    Args:
        work: The dataset.
        target: Where the command writes to.
    """

    def __init__(self, work: Work, target: Target) -> None:
        self._work = work
        self._target = target
        self._before = work.requests()

    def requests(self) -> dict[str, int]:
        """Return how often each URL was requested since then."""
        return {url: number - self._before[url] for url, number in self._work.requests().items()}

    def run(
        self,
        *options: str,
        disturb: Callable[[Run], bool],
        environment: Mapping[str, str] | None = None,
        ends_with: int = 0,
    ) -> None:
        """Run the command, and disturb it: again and again until that says that it has."""
        command = self._work.command(self._target.root, *options)
        with Run(command, {**self._target.environment, **(environment or {})}) as run:
            is_disturbed = False
            for _ in run.readings():
                is_disturbed = is_disturbed or (self._is_in_the_middle() and disturb(run))
            assert is_disturbed, run.messages()
            assert run.end() == ends_with, run.messages()

    def check(self) -> None:
        """Check that the output is what an undisturbed run of one process makes of it."""
        assert self._target.files() == self._work.files
        assert self._target.lines() == self._work.lines
        assert self._target.left_over() == []
        assert read_status(self._target.out).state == "complete"
        assert set(self.requests().values()) <= {1, 2}, "an image was requested again after it had been"

    def _is_in_the_middle(self) -> bool:
        return sum(map(bool, self.requests().values())) > IMAGES // 4


def kill_command(run: Run) -> bool:
    """Kill a command with all of its processes."""
    for process in run.family():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return True


def kill_worker(run: Run) -> bool:
    """Kill one of a command's worker processes."""
    workers = run.family(_WORKER)
    for worker in workers[:1]:
        worker.kill()
    return bool(workers)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_killed_run_is_started_again(work: Work, target: Target, workers: str) -> None:
    """All processes of the command are killed, as when its machine loses power; then it goes on."""
    disturbed = Disturbance(work, target)
    options = ("--workers", workers, "--processes", workers)
    disturbed.run(*options, *_SLOWLY, disturb=kill_command, ends_with=-9)
    command = work.command(target.root, *options)
    with Run(command, target.environment) as again:
        assert again.end() == 0, again.messages()
    disturbed.check()


def test_one_of_four_workers_is_killed(work: Work, target: Target) -> None:
    """The run goes on with the others, and completes."""
    disturbed = Disturbance(work, target)
    disturbed.run("--workers", "4", "--processes", "4", *_SLOWLY, disturb=kill_worker)
    disturbed.check()


def test_one_of_three_nodes_is_killed(work: Work, target: Target, cluster: RayNodes, tmp_path: Path) -> None:
    """The others go on with its shards, and the run completes."""
    killed: list[str] = []

    def kill_node(_: Run) -> bool:
        layout = target.layout()
        snapshot = None if layout is None else read_cluster(layout)
        nodes = () if snapshot is None else snapshot.nodes
        at_work = [node.name for node in nodes if node.state is NodeState.AT_WORK and node.ok]
        for name in at_work[:1]:
            cluster.kill(name)
            killed.append(name)
        return bool(at_work)

    disturbed = Disturbance(work, target)
    options = ("--engine", "ray", "--ray-address", cluster.address, "--processes", "1", *_MORE_SLOWLY)
    disturbed.run(*options, disturb=kill_node, environment=cluster.environment)
    disturbed.check()
    for name in killed:  # for the next test
        cluster.add(name, environment={**target.environment, "XDG_CACHE_HOME": str(tmp_path / f"cache-of-{name}")})
