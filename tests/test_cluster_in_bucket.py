"""Runs on a cluster whose output is in a bucket: nodes that share no disk, are killed, sick, or have another store."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from in_process import retry, run
from jobs import coyo_job, faulty_urls, files_of, path_of, read_ledger, requests_since
from object_store import BUCKET, Fault, FaultyProxy, ObjectStore, login, use
from process_cluster import ProcessCluster, ProcessNode
from process_driver import start_driver
from runs import PATIENCE_S, read_lines
from test_bucket_output import lines_of, objects_of, stable, state_keys

from datafetch import Job, Report, read_status
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.cluster.cluster_run import run_on_cluster
from datafetch.engine.cluster.driver import Timeouts
from datafetch.engine.cluster.interface import NodeLostError
from datafetch.engine.cluster.messages import NodeReport, Orders
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.monitor.cluster_snapshot import NodeState
from datafetch.store.buckets import bucket as bucket_module
from datafetch.store.buckets import lease
from datafetch.store.buckets.bucket import Bucket
from datafetch.store.buckets.place import Place
from datafetch.store.buckets.spool_segments import SpoolSegments
from datafetch.store.buckets.stored_output import node_name
from datafetch.store.buckets.working_copy import WorkingCopy

pytestmark = pytest.mark.slow

Pictures = tuple[Path, list[str]]
IMAGES, SHARDS = 80, 4
FAULTS = {7: "missing", 19: "html", 39: "missing"}
_numbers = count()


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server for this module."""
    with ObjectStore() as served:
        yield served


@pytest.fixture
def proxy(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyProxy]:
    """A proxy in front of it, which this process uses, and its nodes unless they are told otherwise."""
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with FaultyProxy(store.port) as disturbing:
        use(monkeypatch, login(disturbing.url))
        yield disturbing


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of four shards, some of whose images fail for good."""
    urls = faulty_urls(own_origin, small_pictures[1], FAULTS, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    return write_coyo_source(tmp_path / "source", urls, files=SHARDS)


@pytest.fixture(params=[None, 2], ids=["as cut", "resharded"])
def job(source: CoyoSource, request: pytest.FixtureRequest) -> Job:
    """A job on this manifest whose output is in the bucket."""
    location = f"s3://{BUCKET}/{os.getpid()}-{next(_numbers)}/coyo-700m/pkl03-split"
    return replace(coyo_job(source, Path("unused"), world_size=request.param), out=location)


class Cluster(ProcessCluster):
    """A cluster whose nodes share no disk, and that calls a function with each report.

    Args:
        tmp_path: The folder for those of the nodes.
        names: The names of the nodes.
        environment: What they have in their environment.
        look: Called in a thread with a node and its report, before the driver has that.
    """

    def __init__(
        self,
        tmp_path: Path,
        *names: str,
        environment: Mapping[str, str] | None = None,
        look: Callable[[ProcessNode, NodeReport], None] = lambda *_: None,
    ) -> None:
        super().__init__()
        for name in names:
            own = {"XDG_CACHE_HOME": str(tmp_path / f"cache-of-{name}"), **(environment or {})}
            self.all[name] = ProcessNode(name, environment=own)
        self._look = look

    async def exchange(self, server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        """Call a server."""
        report = await super().exchange(server, orders, wait_s)
        await asyncio.to_thread(self._look, server, report)
        return report


def driven(job: Job, cluster: ProcessCluster, **timeouts: float) -> Report:
    """Run a job on a cluster of processes."""
    waits = {"abandoned_s": 30.0, "silence_s": 60.0, "first_retry_s": 0.2, **timeouts}
    return asyncio.run(run_on_cluster(job, cluster.connected, timeouts=Timeouts(**waits)))


def slowly(job: Job) -> Job:
    """The same job, which takes some seconds."""
    return replace(job, fetch=replace(job.fetch, max_rate_bytes_per_s=100_000))


def check_like_alone(job: Job, tmp_path: Path) -> None:
    """Check that an output is that of one process on a disk, byte for byte and line for line, and nothing is left."""
    twin = replace(job, out=str(tmp_path / f"twin-{next(_numbers)}" / "pkl03-split"), scratch=None)
    run(twin)
    assert objects_of(job.out) == files_of(twin)
    assert lines_of(job.out) == stable(read_ledger(twin))
    assert read_status(job.out).state == "complete"
    keys = state_keys(job.out)
    assert [key for key in keys if key.startswith(("shards/", "spool/"))] == []
    assert sum(key.startswith("ledger/") for key in keys) == SHARDS


@pytest.mark.measured
def test_nodes_make_what_one_process_makes(job: Job, proxy: FaultyProxy, store: ObjectStore, tmp_path: Path) -> None:
    """They upload the images themselves; the driver reads rows only to reshard them. Then nothing is left to do."""
    report = driven(job, Cluster(tmp_path, "a", "b", environment=login(store.url)))
    assert (report.out, report.totals.ok, report.requests) == (job.out, IMAGES - len(FAULTS), IMAGES)
    if job.world_size is None:
        assert [request for request in proxy.requests if request[0] == "PUT" and ".pkl" in request[1]] == []
    check_like_alone(job, tmp_path)
    again = driven(job, Cluster(tmp_path))
    assert (again.totals, again.requests) == (report.totals, 0)
    assert run(job).requests == 0
    assert [path for path in tmp_path.glob("cache-of-*/**/*") if path.is_file() and path.name != "in-use"] == []


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
def test_others_go_on_with_what_a_killed_node_has_uploaded(
    job: Job, tmp_path: Path, own_origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images in its open shards are not requested again if they were uploaded; until then status shows both nodes."""
    monkeypatch.setattr(lease, "_RENEWALS", 300)
    uploaded: set[str] = set()
    seen: set[str] = set()

    def kill(node: ProcessNode, _: NodeReport) -> None:
        assert node.task is not None
        assert node.process is not None
        own = f"/worker-{node_name(1, node.task.number)}/"
        if len(seen) < 2:
            seen.update(one.name for one in read_status(job.out).nodes if one.state is NodeState.AT_WORK)
        elif not uploaded and any(key.startswith("spool/") and own in key for key in state_keys(job.out)):
            node.process.kill()
            uploaded.update(urls_in_spools(job, tmp_path))
            before.update(own_origin.requests())

    before: dict[str, int] = {}
    cluster = Cluster(tmp_path, "a", "b", environment={"DATAFETCH_TEST_SPOOLS_S": "0.3"}, look=kill)
    report = driven(slowly(job), cluster)
    assert seen == {"a", "b"}
    assert uploaded
    assert report.totals.ok == IMAGES - len(FAULTS)
    again = requests_since(own_origin, before).keys() & {path_of(url) for url in uploaded}
    assert not again
    check_like_alone(job, tmp_path)


def urls_in_spools(job: Job, tmp_path: Path) -> set[str]:
    """Return the URLs of images in spools that are in the bucket."""
    place, bucket = Place.of(job.out), Bucket(BUCKET)
    folder = tmp_path / f"spools-{next(_numbers)}"
    SpoolSegments(bucket, place.spool_prefix, folder).restore()
    bucket.close()
    return {line.url for path in folder.glob("**/*.spool") for line in read_lines(path)}


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
def test_what_was_uploaded_and_not_recorded_counts_for_nothing(job: Job, tmp_path: Path) -> None:
    """A node is killed when it has uploaded a shard, and the driver does not hear of it; another one makes it again."""
    killed: list[str] = []

    def kill(node: ProcessNode, report: NodeReport) -> None:
        if report.uploaded and not killed:
            killed.append(report.uploaded[0].name)
            cluster.kill(node)
            raise NodeLostError("has ended", is_certain=True)

    cluster = Cluster(tmp_path, "a", "b", look=kill)
    driven(job, cluster)
    assert killed
    check_like_alone(job, tmp_path)


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
def test_a_node_that_can_not_be_reached_goes_on_in_vain(job: Job, tmp_path: Path) -> None:
    """It is not killed, and uploads its shards; others get them once it has ended; nothing is there twice."""
    lost: list[ProcessNode] = []
    handed_over: list[int | None] = []

    def lose(node: ProcessNode, report: NodeReport) -> None:
        if lost:
            process, before = lost[0].process, {shard for orders in lost[0].orders for shard in orders.shards}
            assert process is not None
            handed_over.extend(process.poll() for shard in node.orders[-1].shards if shard in before)
        if report.statistics is not None and report.statistics.ok > 3 and not lost:
            assert node.process is not None
            lost.append(replace(node, orders=list(node.orders)))
            node.process = None  # so that nothing kills it
            raise NodeLostError("can't be reached", is_certain=False)

    cluster = Cluster(tmp_path, "a", "b", environment={"DATAFETCH_TEST_SPOOLS_S": "0.3"}, look=lose)
    driven(slowly(job), cluster, abandoned_s=2.0, silence_s=4.0)
    assert lost
    process = lost[0].process
    assert process is not None
    assert set(handed_over) == {3}  # it had ended itself
    process.communicate()
    check_like_alone(job, tmp_path)


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("is_alone", [False, True], ids=["a cluster", "one process"])
def test_others_go_on_when_the_driver_is_killed(
    job: Job, tmp_path: Path, own_origin: Origin, monkeypatch: pytest.MonkeyPatch, is_alone: bool
) -> None:
    """With what was recorded, and with what nodes have uploaded of open shards: a cluster, or a run on one machine."""
    nodes = {
        name: {"XDG_CACHE_HOME": str(tmp_path / f"cache-of-{name}"), "DATAFETCH_TEST_SPOOLS_S": "0.3"} for name in "ab"
    }
    with start_driver(slowly(job), nodes) as driver:
        until_s = time.monotonic() + PATIENCE_S
        while not any(key.startswith("ledger/") for key in state_keys(job.out)):
            assert driver.poll() is None, "it has ended"
            assert time.monotonic() < until_s, "it has recorded nothing"
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    ended = {line["url"] for line in lines_of(job.out)} | urls_in_spools(job, tmp_path)
    assert ended
    before = own_origin.requests()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    if is_alone:
        run(job)
    else:
        driven(job, Cluster(tmp_path, "c", "d"))
    assert not requests_since(own_origin, before).keys() & {path_of(url) for url in ended}
    check_like_alone(job, tmp_path)


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
def test_a_driver_that_can_not_keep_what_is_recorded_stops(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its disk is full: it does not let nodes fetch all other shards first."""

    def fail(*_: object) -> None:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(WorkingCopy, "bring_recorded", fail)
    with pytest.raises(ResourceError, match="the disk is full"):
        driven(slowly(job), Cluster(tmp_path, "a"))
    assert 1 <= sum(key.startswith("ledger/") for key in state_keys(job.out)) < SHARDS


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
def test_a_retry_goes_on_with_what_nodes_have_kept(
    job: Job, tmp_path: Path, own_origin: Origin, small_pictures: Pictures
) -> None:
    """On one machine it requests what had failed, and adds what arrives to the shards of the nodes."""
    faults = {**FAULTS, 5: "flaky", 41: "flaky"}
    urls = faulty_urls(own_origin, small_pictures[1], faults, IMAGES, f"{tmp_path.name}-{next(_numbers)}")
    flaky = write_coyo_source(tmp_path / "flaky", urls, files=SHARDS)
    job = replace(job, source=str(flaky.folder), ids=str(flaky.ids))
    assert driven(job, Cluster(tmp_path, "a", "b")).totals.ok == IMAGES - len(faults)
    assert retry(job.out).retried_arrived == 2
    twin = replace(job, out=str(tmp_path / "twin" / "pkl03-split"))
    run(twin)
    assert objects_of(job.out) == files_of(twin)


@pytest.mark.rotating
def test_faults_of_the_store_change_nothing(job: Job, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Some requests of the driver and of its nodes are throttled, reset, half received or answered into nowhere."""
    chances = random.Random(7)
    faults = [Fault.SLOW_DOWN, Fault.RESET, Fault.HALF, Fault.LOST]
    proxy.decide = lambda *_: chances.choice(faults) if chances.random() < 0.05 else Fault.NONE
    driven(job, Cluster(tmp_path, "a", "b"))
    proxy.decide = lambda *_: Fault.NONE
    assert proxy.faults
    check_like_alone(job, tmp_path)


@pytest.mark.rotating
@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are no credentials"),
        ({}, "there is no such run"),
    ],
    ids=["no login", "another store"],
)
def test_a_node_that_does_not_see_the_output_is_refused(
    job: Job, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    """It is named with the reason."""
    with ObjectStore() as other:
        environment = environment or {"AWS_ENDPOINT_URL": other.url}
        with pytest.raises(ConfigurationError, match=rf"\(odd: it does not see {job.out}: .*{message}"):
            driven(job, Cluster(tmp_path, "odd", environment=environment))
