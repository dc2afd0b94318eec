"""What a run on a cluster decides, without Ray: who gets which shard and which limits, who is refused, who is sick."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer
from conftest import LOOPBACK
from hypothesis import given
from hypothesis import strategies as st
from in_process import THREADS, commit_in_thread, run
from jobs import coyo_job, files_of, read_ledger
from process_cluster import ProcessCluster, ProcessNode

import datafetch
from benchmarks.simulated_cluster import SimulatedCluster, SimulatedNode, Simulation, begun_run, report_of
from datafetch import Job, ListFormat, ListJob, ListOptions, Report, RunState, read_status
from datafetch.cli.status_text import status_text
from datafetch.datasets import LIST
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.bound_job import bind
from datafetch.engine.cluster.choice import Engine, WhereToRun
from datafetch.engine.cluster.cluster_run import run_on_cluster
from datafetch.engine.cluster.driver import Driver, Timeouts
from datafetch.engine.cluster.interface import ClusterNode, NodeLostError
from datafetch.engine.cluster.limits import NodeLimits, divide_limits
from datafetch.engine.cluster.member import Member
from datafetch.engine.cluster.messages import (
    EndKind,
    NodeReport,
    NodeTask,
    Orders,
    OutputInFolder,
    TriedUrls,
    max_absence_s,
)
from datafetch.engine.cluster.network_check import ask_another, stop_asking, take_answers
from datafetch.engine.cluster.node import NodeServer
from datafetch.engine.cluster.node_facts import NodeFacts, find_facts
from datafetch.engine.cluster.shard_queue import LOCKED_SHARD_RETRY_S, ShardQueue
from datafetch.engine.cluster.shared_output import FolderOutput
from datafetch.engine.cluster.suspicion import Suspicion, is_sick
from datafetch.engine.feed import Feed, SuppliedShard
from datafetch.engine.image_access import ImageAccess
from datafetch.engine.job import own_spec
from datafetch.engine.publish import Publisher
from datafetch.engine.reach import count_answered
from datafetch.engine.runner import finish_dataset
from datafetch.engine.share import begin_dataset, fetch_share
from datafetch.engine.workers.coordinator import Coordinator
from datafetch.errors import ConfigurationError
from datafetch.fetch import Fetcher, FetchPolicy
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import Body, Encoded, Failure, FailureKind
from datafetch.model.sample import Sample
from datafetch.model.statistics import Statistics
from datafetch.monitor.cluster_snapshot import ClusterSnapshot, NodeSnapshot, NodeState, read_cluster, write_cluster
from datafetch.store.layout import OutputLayout
from datafetch.store.lock import Lock, OutputInUseError, ShardLocks
from datafetch.store.spool import Spool
from datafetch.store.spool_format import ImageResult
from datafetch.store.spool_writer import drop_failures, write_spool

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=32, per_host=32, retries=0)
Pictures = tuple[Path, list[str]]
_PATIENCE_S = 60.0
_numbers = count()


# --- the queue


def shards_of(*names: str) -> list[SuppliedShard]:
    """Return shards with these names."""
    return [SuppliedShard(name) for name in names]


def test_shards_are_handed_out_in_order_and_none_twice() -> None:
    """A node that is slow keeps its shard, however often others ask."""
    queue = ShardQueue(shards_of("a", "b"))
    assert [queue.take("slow", 0.0), queue.take("fast", 0.0)] == shards_of("a", "b")
    queue.mark_published("fast", "b")
    assert queue.take("fast", 1e9) is None
    assert not queue.is_complete
    queue.mark_published("slow", "a")
    assert queue.is_complete


def test_a_node_gets_no_more_than_its_fair_part() -> None:
    """Of five shards one of two nodes holds at most three, until others are published."""
    queue = ShardQueue(shards_of(*"abcde"))
    taken = [queue.take("greedy", 0.0, 2) for _ in range(4)]
    assert taken == [*shards_of(*"abc"), None]
    queue.mark_published("greedy", "a")
    assert queue.take("greedy", 0.0, 2) is None
    assert queue.take("greedy", 0.0, 1) == SuppliedShard("d")


def test_the_shards_of_a_lost_node_go_first() -> None:
    """They wait at the front, in their order."""
    queue = ShardQueue(shards_of("a", "b", "c"))
    queue.take("lost", 0.0)
    queue.take("lost", 0.0)
    assert queue.lose("lost") == ("a", "b")
    assert [queue.take("other", 0.0) for _ in range(4)] == [*shards_of("a", "b", "c"), None]


def test_a_shard_in_use_is_handed_out_again_later() -> None:
    """A node that found it locked gives it back; it comes again after a while, and first."""
    queue = ShardQueue(shards_of("a", "b"))
    queue.take("node", 10.0)
    queue.give_back("node", "a", 10.0)
    assert not queue.is_complete
    assert queue.take("node", 10.0) == SuppliedShard("b")
    assert queue.take("node", 10.0 + LOCKED_SHARD_RETRY_S / 2) is None
    assert queue.take("node", 10.0 + LOCKED_SHARD_RETRY_S) == SuppliedShard("a")


def test_a_shard_that_a_lost_node_has_published_is_not_handed_out() -> None:
    """What was published by a node that was given up is done, even if it waits again."""
    queue = ShardQueue(shards_of("a"))
    queue.take("cut off", 0.0)
    queue.lose("cut off")
    queue.mark_published("cut off", "a")
    assert queue.take("other", 0.0) is None


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "publish", "in use", "lose"])), max_size=60),
    st.integers(0, 8),
)
def test_no_shard_gets_lost(events: list[tuple[str, str]], number: int) -> None:
    """Whatever happens, each shard is published, waits, or is with exactly one node; and in the end all are done."""
    queue = ShardQueue(shards_of(*map(str, range(number))))
    published: set[str] = set()
    for now_s, (node, event) in enumerate(events):
        own = queue.shards_of(node)
        if event == "take":
            shard = queue.take(node, float(now_s))
            assert shard is None or shard.name not in published
        elif event == "lose":
            queue.lose(node)
        elif own and event == "publish":
            queue.mark_published(node, own[0])
            published.add(own[0])
        elif own:
            queue.give_back(node, own[0], float(now_s))
        held = [shard for name in "abc" for shard in queue.shards_of(name)]
        assert len(held) == len(set(held))
    for node in "abc":
        queue.lose(node)
    while (shard := queue.take("last", 1e9)) is not None:
        published.add(shard.name)
        queue.mark_published("last", shard.name)
    assert queue.is_complete
    assert published == set(map(str, range(number)))


# --- limits


@given(st.integers(1, 1000), st.integers(1, 1000), st.none() | st.integers(1024, 10**12))
def test_limits_add_up(per_host: int, nodes: int, rate: int | None) -> None:
    """Each node has at least one request at a time; together they have no more than one machine, or one each."""
    parts = divide_limits(FetchPolicy(per_host=per_host, max_rate_bytes_per_s=rate), nodes)
    assert len(parts) == nodes
    assert min(part.per_host for part in parts) >= 1
    assert sum(part.per_host for part in parts) == max(per_host, nodes)
    if rate is not None:
        assert sum(part.max_rate_bytes_per_s or 0 for part in parts) <= max(rate, nodes)


async def test_reading_the_manifest_has_its_part_of_a_nodes_rate(tmp_path: Path) -> None:
    """From the start, and when the node's limits change: with workers it is one part more than there are workers."""
    path = tmp_path / "list.parquet"
    await asyncio.to_thread(pq.write_table, pa.table({"URL": ["http://a.example/1.jpg"]}), path)
    rate = FetchPolicy(allow_net=LOOPBACK, max_rate_bytes_per_s=900_000)
    limits = NodeLimits(4, 300_000)
    with ArchiveServer(path) as server:
        own = ListOptions(format=ListFormat.PICKLE)
        job = ListJob(server.url, str(tmp_path / "out"), own, fetch=rate, world_size=None, image=own_spec(LIST))
        async with bind(job, limits.apply_to(rate)) as bound:
            assert bound.rate is not None
            assert bound.rate.bytes_per_s == 300_000
        two = replace(job, workers=2, processes=2)
        async with bind(two, limits.apply_to(rate)) as bound:
            assert bound.rate is not None
            assert bound.rate.bytes_per_s == 100_000
            feed = Feed(bound.manifest, bound.layout)
            access = ImageAccess(two, bound.output, bound.spec)
            publisher = Publisher(feed, bound.output, commit_in_thread)
            coordinator = Coordinator(feed, access, 2, publisher, reader_rate=bound.rate)
            coordinator.limit_to(2, 150_000)
            assert bound.rate.bytes_per_s == 50_000
            coordinator.limit_to(1, 1)  # among very many nodes; no less than a policy may have
            assert bound.rate.bytes_per_s == 1_024
            assert await coordinator.count_answered(["http://127.0.0.1:9/"]) is None  # no worker has started


# --- versions


def facts(**versions: str) -> NodeFacts:
    """Return the facts of a node with these versions."""
    return NodeFacts(versions, unseen="")


def test_differences_are_named() -> None:
    """Each library that differs, is missing or is there alone is named with both versions."""
    driver = facts(Pillow="12.0", simplejpeg="", libjpeg="9.0")
    assert facts(Pillow="12.0", simplejpeg="", libjpeg="9.0").differences_from(driver) == ""
    assert facts(Pillow="11.3", simplejpeg="1.9", libjpeg="9.0").differences_from(driver) == (
        "Pillow 11.3 instead of 12.0, simplejpeg 1.9 instead of none"
    )


def test_facts_name_what_decides_bytes(tmp_path: Path) -> None:
    """This package, Python, Pillow and its libraries are among them; an output is seen by its token alone."""
    layout = OutputLayout(tmp_path / "out")
    output = OutputInFolder(str(layout.out), "token")
    found = find_facts(output)
    assert {"datafetch", "code of datafetch", "Python", "Pillow", "libjpeg-turbo", "cykooz-resizer"} <= set(
        found.versions
    )
    assert found.versions["datafetch"] == datafetch.__version__
    assert "the output has to lie on a filesystem that all nodes share" in found.unseen
    layout.state_folder.mkdir()
    write_cluster(layout, ClusterSnapshot("token", 1, "host", time.time()))
    assert not find_facts(output).unseen
    assert find_facts(OutputInFolder(output.out, "another")).unseen


# --- sick nodes


def test_a_node_is_in_doubt_once_most_requests_fail() -> None:
    """It takes sixteen of them, and twice as many after each acquittal; what it reached before does not count."""
    suspicion = Suspicion()
    assert not suspicion.look(1_000_000, 100)
    assert not suspicion.look(1_000_015, 115)
    assert suspicion.look(1_000_016, 108)
    assert suspicion.look(1_000_100, 108)  # until it is cleared
    suspicion.clear(1_000_100, 108)
    assert not suspicion.look(1_000_131, 139)
    assert suspicion.look(1_000_132, 140)


def test_a_node_is_sick_where_another_gets_answers() -> None:
    """Half of the answers are enough."""
    assert is_sick(4, 8)
    assert not is_sick(3, 8)
    assert not is_sick(0, 0)


def member(name: str, *, ok: int, is_in_doubt: bool) -> Member:
    """A node at work."""
    report = replace(report_of(ok, 1), is_in_doubt=is_in_doubt)
    return Member(ClusterNode(name, name, 1.0), report=report, is_at_work=True)


def test_sick_nodes_are_not_asked_about_each_other() -> None:
    """A node that has reached hosts is waited for while it is busy; if there is none, whoever there is is asked."""
    sick, ill = (member(name, ok=0, is_in_doubt=True) for name in ("sick", "ill"))
    new, sound = (member(name, ok=ok, is_in_doubt=False) for name, ok in (("new", 0), ("sound", 7)))
    members = [ill, new, sound, sick]
    ask_another(sick, ("http://h/1",), members)
    assert sound.urls == ("http://h/1",)
    ask_another(ill, ("http://h/2",), members)
    assert not ill.is_asked_about
    assert not any((new.urls, sick.urls))
    take_answers(sound, TriedUrls(1))
    assert (sick.is_sick, sick.is_cleared) == (True, False)
    ask_another(ill, ("http://h/2",), members)
    assert sound.urls == ("http://h/2",)
    stop_asking(sound, members)
    assert not ill.is_asked_about
    ask_another(ill, ("http://h/2",), members)
    stop_asking(ill, members)
    take_answers(sound, TriedUrls(1))
    assert not ill.is_sick
    ill.is_asked_about = False
    ask_another(ill, ("http://h/3",), [ill, new])
    assert not new.urls  # it has only begun
    starting = Member(ClusterNode("starting", "starting", 1.0))
    ask_another(ill, ("http://h/3",), [ill, sick, starting])
    assert (ill.is_asked_about, ill.is_cleared) == (False, False)
    ask_another(ill, ("http://h/3",), [ill, sick])
    assert sick.urls == ("http://h/3",)


def test_a_node_that_can_not_try_urls_decides_nothing() -> None:
    """Another one is asked, and if none can, for some time, there is nothing to compare."""
    sick = member("sick", ok=0, is_in_doubt=True)
    members = [sick, *(member(name, ok=1, is_in_doubt=False) for name in "ab")]
    asked = []
    while not sick.is_cleared:
        ask_another(sick, ("http://h/1",), members)
        for one in members[1:]:
            if one.asked_for is not None:
                asked.append(one.name)
                take_answers(one, TriedUrls(None))
                assert (sick.is_sick, sick.is_cleared) == (False, False)
    assert asked == list("ababa")


# --- what is given on the command line


def test_an_address_needs_the_engine() -> None:
    """An address alone is refused, and says what is missing."""
    with pytest.raises(ConfigurationError, match="give that, too"):
        WhereToRun(ray_address="head:6379")
    with pytest.raises(ConfigurationError, match="is empty"):
        WhereToRun(engine=Engine.RAY, ray_address="")


# --- a share of a job, without Ray


@pytest.fixture
def source(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of four files, with URLs that no other test requests."""
    number = next(_numbers)
    names = small_pictures[1] * 2
    urls = [origin.url("well", name, f"cluster-{number}-{position}") for position, name in enumerate(names)]
    return write_coyo_source(tmp_path / "source", urls, files=4, rows=600)


@pytest.fixture
def job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job that fetches this manifest."""
    return coyo_job(source, tmp_path / "shared" / "out", fetch=POLICY, processes=None)


class ListedShards:
    """A supply that hands out shards of a list, and notes what becomes of them."""

    def __init__(self, shards: Iterator[SuppliedShard] | list[SuppliedShard]) -> None:
        self._shards = iter(shards)
        self.done: list[str] = []
        self.refused: list[str] = []

    async def next_shard(self) -> SuppliedShard | None:
        """Return the next of the list."""
        return next(self._shards, None)

    async def published(self, shard: str) -> None:
        """Note a published shard."""
        self.done.append(shard)

    async def in_use(self, shard: str) -> None:
        """Note a shard that was locked."""
        self.refused.append(shard)


@pytest.mark.rotating
@pytest.mark.parametrize("limit", [None, 70])
async def test_two_shares_make_what_one_run_makes(tmp_path: Path, job: Job, limit: int | None) -> None:
    """Shards that are handed out as two processes go, in another order, give the files and ledgers of a whole run."""
    job = replace(job, limit=limit)
    whole = replace(job, out=str(tmp_path / "whole" / "out"))
    expected = await asyncio.to_thread(run, whole)
    begun = await begin_dataset(job)
    shards = list(reversed(begun.open_shards))
    assert len(shards) == (4 if limit is None else 3)
    supplies = [ListedShards(shards[::2]), ListedShards(shards[1::2])]
    done = await asyncio.gather(
        *(
            fetch_share(job, supply, f"node-{number}", lambda _: None, backends=THREADS)
            for number, supply in enumerate(supplies)
        )
    )
    assert sorted(supplies[0].done + supplies[1].done) == sorted(shard.name for shard in shards)
    assert sum(part.arrived for part in done) == expected.totals.ok
    assert (await begin_dataset(job)).open_shards == ()
    report = await finish_dataset(job, done=replace(done[0], arrived=expected.totals.ok, requests=7))
    assert (report.totals, report.requests, report.reused) == (expected.totals, 7, 0)
    assert files_of(job) == files_of(whole)
    lines = [[{**line, "fetch_ms": 0} for line in read_ledger(one)] for one in (job, whole)]
    assert lines[0] == lines[1]


@pytest.mark.rotating
async def test_a_locked_shard_is_given_back(job: Job) -> None:
    """A shard that another process holds is not touched, and the others are fetched."""
    begun = await begin_dataset(job)
    first, *others = begun.open_shards
    locks = await asyncio.to_thread(ShardLocks, begun.layout.shard_locks, begun.layout.out)
    locks.acquire([first.name])
    supply = ListedShards([first, *others])
    await fetch_share(job, supply, "node-a", lambda _: None, backends=THREADS)
    locks.release()
    assert supply.refused == [first.name]
    assert sorted(supply.done) == [shard.name for shard in others]
    assert (await begin_dataset(job)).open_shards == (first,)


# --- a node, without Ray


def exchange_until(node: NodeServer, orders: Orders) -> Iterator[NodeReport]:
    """Yield the reports of a node, until the time is up; the orders are given with the first call."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        yield node.exchange(orders, 0.2)
        orders = Orders()
    raise AssertionError("the node did not do it in time")


@pytest.mark.rotating
@pytest.mark.slow
def test_a_node_fetches_what_it_is_handed(job: Job) -> None:
    """It reads the job from the state folder, asks for shards one at a time, and says when all are published."""
    begun = asyncio.run(begin_dataset(job))
    node = NodeServer()
    node.begin(NodeTask(OutputInFolder(job.out, ""), 1, "node-a", NodeLimits(4, None), None, 600.0))
    left = list(begun.open_shards)
    published: list[str] = []
    for report in exchange_until(node, Orders()):
        published += report.published
        if report.wanted and left:
            published += node.exchange(Orders(shards=(left.pop(0),)), 0.0).published
        if len(published) == len(begun.open_shards):
            break
    assert sorted(published) == sorted(shard.name for shard in begun.open_shards)
    for report in exchange_until(node, Orders(is_over=True)):
        if report.end is not None:
            break
    assert report.end is not None
    assert report.end.kind is EndKind.DONE
    assert report.done is not None
    assert report.done.arrived == report.done.totals.ok == 132


def test_a_node_without_the_job_says_so(tmp_path: Path) -> None:
    """A node that does not see the output ends, with the reason, and leaves the log as it was."""
    library = logging.getLogger("datafetch")
    before = (library.level, list(library.handlers))
    node = NodeServer()
    node.begin(
        NodeTask(OutputInFolder(str(tmp_path / "nothing" / "out"), ""), 1, "node-a", NodeLimits(1, None), None, 600.0)
    )
    report = next(report for report in exchange_until(node, Orders()) if report.end is not None)
    assert report.end is not None
    assert report.end.kind is EndKind.REFUSED
    assert "out" in report.end.message
    assert (library.level, library.handlers) == before


# --- the driver, with nodes that are processes of this machine


def driven(job: Job, cluster: ProcessCluster, **timeouts: float) -> Report:
    """Run a job on a cluster of processes."""
    waits = {"abandoned_s": 30.0, "silence_s": 60.0, "first_retry_s": 0.2, **timeouts}
    return asyncio.run(run_on_cluster(job, cluster.connected, timeouts=Timeouts(**waits)))


def check_like(job: Job, whole: Job) -> None:
    """Check that files and ledgers equal those of another job."""
    assert files_of(job) == files_of(whole)
    lines = [[{**line, "fetch_ms": 0} for line in read_ledger(one)] for one in (job, whole)]
    assert lines[0] == lines[1]


@pytest.fixture
def whole(tmp_path: Path, job: Job) -> Job:
    """The same job, done by one process."""
    whole = replace(job, out=str(tmp_path / "whole" / "out"))
    run(whole)
    return whole


@pytest.mark.rotating
def test_the_driver_hands_out_and_finishes(job: Job, whole: Job) -> None:
    """Two nodes make what one process makes; each has its part of the limits, and the report counts all of them."""
    cluster = ProcessCluster("a", "b")
    report = driven(job, cluster)
    check_like(job, whole)
    assert (report.totals.ok, report.requests, report.reused) == (132, 132, 0)
    assert read_status(job.out).state is RunState.COMPLETE
    assert read_cluster(OutputLayout(Path(job.out))) is None
    shards = [shard.name for node in cluster.all.values() for orders in node.orders for shard in orders.shards]
    assert sorted(shards) == sorted(set(shards))
    assert len(shards) == 4
    again = driven(job, ProcessCluster())  # nothing is left, so no cluster is needed
    assert (again.totals, again.requests) == (report.totals, 0)


def test_a_killed_node_is_replaced(job: Job, whole: Job) -> None:
    """The process of a node is killed as soon as it has a shard: it is started again, and the run completes."""
    cluster = ProcessCluster("a", "b")
    exchange, killed = cluster.exchange, list[str]()

    async def exchange_and_kill(server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        if orders.shards and not killed:
            killed.append(server.name)
            process = server.process
            assert process is not None
            process.kill()
            process.wait()
        return await exchange(server, orders, wait_s)

    cluster.exchange = exchange_and_kill  # type: ignore[method-assign]
    report = driven(job, cluster)
    assert killed
    assert report.totals.ok == 132
    check_like(job, whole)


@pytest.mark.rotating
@pytest.mark.slow
def test_a_silent_node_is_given_up(job: Job, whole: Job) -> None:
    """A process that is stopped does not answer: after a while its shards go to others, and the cluster kills it."""
    cluster = ProcessCluster("a", "b")
    exchange, stopped = cluster.exchange, list[int]()

    async def exchange_and_stop(server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        if orders.shards and not stopped:
            process = server.process
            assert process is not None
            stopped.append(process.pid)
            process.send_signal(signal.SIGSTOP)
        return await exchange(server, orders, wait_s)

    cluster.exchange = exchange_and_stop  # type: ignore[method-assign]
    report = driven(job, cluster, abandoned_s=1.0, silence_s=2.0)
    assert stopped
    assert report.totals.ok == 132
    check_like(job, whole)


@pytest.mark.rotating
def test_a_node_without_a_driver_ends_itself(job: Job) -> None:
    """It is not called any more, and its process ends, whatever it was doing."""
    asyncio.run(begin_dataset(job))
    cluster = ProcessCluster("a")
    (node,) = cluster.nodes()
    server = cluster.start(node)
    asyncio.run(
        cluster.begin(server, NodeTask(OutputInFolder(job.out, ""), 1, "node-a", NodeLimits(1, None), None, 1.0))
    )
    assert server.process is not None
    assert server.process.wait(_PATIENCE_S) == 3
    cluster.kill(server)


def drive(folder: Path, cluster: SimulatedCluster, shards: int, **timeouts: float) -> int:
    """Publish shards on simulated nodes; return how many nodes were listed at the end."""
    layout = OutputLayout(folder / "out")
    begun = begun_run(layout, shards)
    waits = {"abandoned_s": 30.0, "silence_s": 60.0, "first_retry_s": 0.01, **timeouts}
    driver = Driver(Job("coyo", "source", str(layout.out)), begun, FolderOutput(layout), Timeouts(**waits))
    most_listed = 0

    async def watch(take: Callable[[], Statistics]) -> None:
        nonlocal most_listed
        while take().shards_published < shards:
            snapshot = read_cluster(layout)
            most_listed = max(most_listed, 0 if snapshot is None else len(snapshot.nodes))
            await asyncio.sleep(0.01)

    done = asyncio.run(driver.run(cluster, [watch]))
    assert done.arrived == driver.statistics().shards_published == shards
    return most_listed


def test_a_driver_asks_seldom_which_nodes_there_are(tmp_path: Path) -> None:
    """That costs the more the more nodes there are, so it does not depend on the number of shards."""
    cluster = SimulatedCluster(4, Simulation(shard_s=0.001))
    drive(tmp_path, cluster, 2_000)
    assert cluster.exchanges > 1_000
    assert cluster.looks < 100


def test_nodes_are_called_often_enough_however_many(tmp_path: Path) -> None:
    """Of very many nodes each is called less often, but before it takes its driver for dead."""
    cluster = SimulatedCluster(400, Simulation(shard_s=0.001))
    drive(tmp_path, cluster, 1_000, abandoned_s=8.0)
    assert cluster.longest_wait_s == 2.0


@pytest.mark.rotating
def test_nodes_that_have_left_are_forgotten(tmp_path: Path) -> None:
    """Of hundreds of machines that come and go, the latest are listed; what all of them did is counted."""
    cluster = SimulatedCluster(20, Simulation(shard_s=0.001, lives_shards=4))
    most_listed = drive(tmp_path, cluster, 2_000)
    assert cluster.nodes_ever > 400
    assert most_listed <= 200  # those at work, 100 that have left, and some about to be forgotten


@pytest.mark.rotating
def test_a_node_that_joins_gets_its_part(job: Job, whole: Job) -> None:
    """It begins once the other one keeps within less, and then gets shards as that does."""
    cluster = ProcessCluster("a")
    slow = replace(job, fetch=replace(POLICY, max_rate_bytes_per_s=100_000))
    exchange, begin, has_begun = cluster.exchange, cluster.begin, asyncio.Event()

    async def exchange_and_join(server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        report = await exchange(server, orders, wait_s)
        if report.wanted and "b" not in cluster.all:
            cluster.all["b"] = ProcessNode("b")
            return replace(report, wanted=1)
        return report if has_begun.is_set() else replace(report, wanted=0)

    async def begin_and_tell(server: ProcessNode, task: NodeTask) -> None:
        await begin(server, task)
        if server.name == "b":
            has_begun.set()

    cluster.exchange, cluster.begin = exchange_and_join, begin_and_tell  # type: ignore[method-assign]
    driven(slow, cluster)
    check_like(job, whole)
    lowered = [orders.limits for orders in cluster.all["a"].orders if orders.limits is not None]
    assert lowered[:1] == [NodeLimits(16, 50_000)]
    assert any(orders.shards for orders in cluster.all["b"].orders)


def test_a_node_that_joins_begins_when_a_lost_one_has_ended(tmp_path: Path) -> None:
    """Until then that one may use its part of the limits; afterwards the others have it, whoever joined meanwhile."""
    begun_s: dict[str, float] = {}
    parts: dict[str, list[NodeLimits]] = defaultdict(list)
    lost_s: list[float] = []

    class Cluster(SimulatedCluster):
        async def begin(self, server: SimulatedNode, task: NodeTask) -> None:
            begun_s[server.node.name] = time.monotonic()
            parts[server.node.name].append(task.limits)
            await super().begin(server, task)

        async def exchange(self, server: SimulatedNode, orders: Orders, wait_s: float) -> NodeReport:
            name = server.node.name
            if name == "node-00001" and "node-00000" in begun_s:
                self.size = 3
                lost_s.append(time.monotonic())
                raise NodeLostError("can't be reached", is_certain=False)
            if orders.limits is not None:
                parts[name].append(orders.limits)
            report = await super().exchange(server, orders, wait_s)
            has_two_parts = all(parts[one][-1:] == [NodeLimits(4, None)] for one in ("node-00000", "node-00002"))
            return report if has_two_parts else replace(report, wanted=0)

    drive(tmp_path, Cluster(2, Simulation(shard_s=0.001)), 10, abandoned_s=0.2, silence_s=60.0, first_retry_s=300.0)
    assert [part.per_host for part in parts["node-00000"]][:3] == [4, 3, 4]  # of eight
    assert begun_s["node-00002"] - lost_s[0] >= max_absence_s(1.0, 0.2) - 0.1


_OWN_NETWORK = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_with_a_sick_network_is_found_and_named(
    job: Job, whole: Job, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """All hosts refuse it, and no other node: none of its failures is published, and others fetch these images."""
    if subprocess.run([*_OWN_NETWORK, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    cluster = ProcessCluster("sound", "sick")
    cluster.all["sick"] = ProcessNode("sick", _OWN_NETWORK)
    slow = replace(job, workers=workers, fetch=replace(POLICY, max_rate_bytes_per_s=100_000))
    with caplog.at_level(logging.INFO, "datafetch"):
        report = driven(slow, cluster, first_retry_s=300.0)
    assert report.totals.ok == 132
    check_like(job, whole)
    assert any("node sick can't work" in message and "network" in message for message in caplog.messages)


@pytest.mark.parametrize("cannot_try", [False, True], ids=["it is busy", "it could not try"])
def test_two_sick_nodes_do_not_clear_each_other(job: Job, whole: Job, cannot_try: bool) -> None:
    """While a sound node is busy it is waited for, and where it could not try the URLs it is asked again."""
    if subprocess.run([*_OWN_NETWORK, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    cluster = ProcessCluster("sound", "sick", "ill")
    for name in ("sick", "ill"):
        cluster.all[name] = ProcessNode(name, _OWN_NETWORK)
    exchange, doubts, tries = cluster.exchange, dict[str, int](), list[int | None]()
    both_in_doubt = asyncio.Event()

    async def exchange_slowly(server: ProcessNode, orders: Orders, wait_s: float) -> NodeReport:
        report = await exchange(server, orders, wait_s)
        if report.is_in_doubt:
            doubts[server.name] = doubts.get(server.name, 0) + 1
        if min(doubts.get(name, 0) for name in ("sick", "ill")) > 2:
            both_in_doubt.set()
        if report.tried is not None:
            assert server.name == "sound", "a node in doubt was asked"
            await both_in_doubt.wait()
            if cannot_try and not tries:
                report = replace(report, tried=TriedUrls(None))
            tries.append(None if report.tried is None else report.tried.answers)
        return report

    cluster.exchange = exchange_slowly  # type: ignore[method-assign]
    slow = replace(job, fetch=replace(POLICY, max_rate_bytes_per_s=100_000))
    report = driven(slow, cluster, first_retry_s=300.0)
    assert len(tries) == 2 + cannot_try
    assert (report.totals.ok, report.totals.failed) == (132, 0)
    check_like(job, whole)


@pytest.mark.rotating
def test_dead_hosts_are_no_fault_of_a_node(tmp_path: Path) -> None:
    """Nodes that can't reach hosts which nobody reaches go on, and their failures are outcomes."""
    urls = [f"http://127.0.0.1:9/{tmp_path.name}/{number}.jpg" for number in range(100)]
    dead = write_coyo_source(tmp_path / "dead", urls, files=4)
    job = coyo_job(dead, tmp_path / "shared" / "out", fetch=POLICY, processes=None)
    report = driven(job, ProcessCluster("a", "b"))
    assert (report.totals.ok, report.totals.failed) == (0, 100)


def test_nodes_that_see_another_folder_or_version_are_refused(job: Job, tmp_path: Path) -> None:
    """If no node can do the job, the run ends with what they lack."""
    other = tmp_path / "other" / "datafetch"
    shutil.copytree(Path(datafetch.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "errors.py").open("a") as file:
        file.write("# another version\n")
    cluster = ProcessCluster("odd")
    cluster.all["odd"] = ProcessNode("odd", environment={"PYTHONPATH": str(other.parent)})
    with pytest.raises(ConfigurationError, match=r"no node .* \(odd: it would make other bytes: code of datafetch"):
        driven(job, cluster)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_lock": True}, "--no-lock"),
        ({"source": "https://name:word@example.org/coyo"}, "--source has credentials"),
        ({"ids": "https://example.org/ids?signature=x"}, "--ids has credentials"),
    ],
)
def test_what_can_not_be_sent_is_refused(job: Job, change: dict[str, object], message: str) -> None:
    """Credentials are not sent to nodes, and a run without locks is alone."""
    with pytest.raises(ConfigurationError, match=message):
        driven(replace(job, **change), ProcessCluster())  # type: ignore[arg-type]
    assert not Path(job.out).parent.exists()


def test_a_driver_that_is_alive_elsewhere_is_not_waited_for(job: Job) -> None:
    """Its list of nodes changes; that of a dead one does not, and its nodes end after a while."""
    layout = OutputLayout(Path(job.out))
    asyncio.run(begin_dataset(job))
    stop = threading.Event()

    def steer() -> None:
        while not stop.wait(0.05):
            write_cluster(layout, ClusterSnapshot("token", 1, "elsewhere", time.time()))

    lock = Lock(layout.lock, layout.out, layout.real_lock)
    write_cluster(layout, ClusterSnapshot("token", 1, "elsewhere", time.time()))
    driver = threading.Thread(target=steer)
    driver.start()
    try:
        lock.acquire_shared()
        with pytest.raises(OutputInUseError):
            driven(job, ProcessCluster("a"), abandoned_s=3_600.0)
    finally:
        stop.set()
        driver.join()
        lock.release()


async def test_urls_that_can_not_be_requested_are_no_dead_hosts() -> None:
    """A fetcher that has closed has no number of answers, not even zero."""
    async with Fetcher(POLICY) as fetch:
        assert await count_answered(fetch, ["http://127.0.0.1:9/"]) == 0
    assert await count_answered(fetch, ["http://127.0.0.1:9/"]) is None


# --- spools of a sick node


async def test_failures_stay_where_a_shard_is_still_locked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are then published as failures, so that is logged, with the shard's name."""
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.mkdir()
    output = FolderOutput(layout)
    with caplog.at_level(logging.INFO, "datafetch"):
        async with output.open():
            others = await asyncio.to_thread(ShardLocks, layout.shard_locks, layout.out)
            others.acquire(["part-1"])
            await output.drop_failures(["part-0", "part-1"], 1, {FailureKind.CONNECT}, 0.0)
            others.release()
    (message,) = caplog.messages
    assert message.startswith("part-1 is still locked")


async def test_failures_are_dropped_from_a_spool(tmp_path: Path) -> None:
    """Images that failed in a given way have no result any more, and so their samples have not ended; others have."""
    path = tmp_path / "part.spool"
    assert await asyncio.to_thread(drop_failures, path, {FailureKind.CONNECT}) == 0
    samples = [Sample(position, str(position), (f"http://h/{position}",), {}) for position in range(3)]
    failures = [Failure(kind, "why", None, 1, "", 1.0) for kind in (FailureKind.CONNECT, FailureKind.EMPTY)]
    image = Encoded(b"jpeg", 4, 3, "PNG", "ab")
    results = [
        ImageResult(LedgerLine.of(samples[0], 0, Body(b"body", samples[0].urls[0]), image), image.jpeg),
        *(
            ImageResult(LedgerLine.of(sample, 0, failure, failure), b"")
            for sample, failure in zip(samples[1:], failures, strict=True)
        ),
    ]
    records = [record for pair in zip(results, samples, strict=True) for record in pair]
    await asyncio.to_thread(write_spool, path, records)
    assert await asyncio.to_thread(drop_failures, path, {FailureKind.CONNECT, FailureKind.TIMEOUT}) == 1
    spool = await Spool.open(path)
    assert spool.recovered.samples == {0, 2}
    assert dict(spool.recovered.outcomes) == {"ok": 1, FailureKind.EMPTY: 1}
    await spool.close()


# --- what is shown


def test_status_shows_the_nodes(job: Job) -> None:
    """Nodes that need to be looked at come first, with the reason; --json has all of them."""
    begun = asyncio.run(begin_dataset(job))
    nodes = (
        NodeSnapshot("fast", NodeState.AT_WORK, images_per_s=12.5, ok=100, failed=3, shards_published=2),
        NodeSnapshot("odd", NodeState.REFUSED, "Pillow 11.3 instead of 12.0"),
    )
    write_cluster(begun.layout, ClusterSnapshot("token", 1, "host", time.time(), 1000, nodes))
    assert read_cluster(begun.layout) is not None
    status = read_status(job.out)
    assert status.expected_images == 1000
    assert [node["name"] for node in status.summary()["nodes"]] == ["fast", "odd"]  # type: ignore[attr-defined]
    text = status_text(status, shows_all_hosts=False)
    assert text.index("Pillow 11.3 instead of 12.0") < text.index("12.5")
