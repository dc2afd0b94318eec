"""Runs on a cluster whose output is in a bucket: nodes that share no disk, are killed, sick, or have another store."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from in_process import run
from jobs import coyo_job, faulty_urls, files_of, path_of, read_ledger, requests_since
from object_store import BUCKET, FaultyProxy, ObjectStore, login, use
from process_cluster import ProcessCluster, ProcessNode
from test_bucket_output import lines_of, objects_of, stable, state_keys

from datafetch import Job, Report, read_status
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.cluster.driver import Patience, run_on_cluster
from datafetch.engine.cluster.messages import NodeReport, Orders
from datafetch.errors import ConfigurationError

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
    """A proxy in front of it, which this process and its nodes use."""
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


def driven(job: Job, cluster: ProcessCluster, **patience: float) -> Report:
    """Run a job on a cluster of processes."""
    waits = {"abandoned_s": 30.0, "silence_s": 60.0, "first_rest_s": 0.2, **patience}
    return asyncio.run(run_on_cluster(job, cluster.connected, patience=Patience(**waits)))


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


def test_nodes_make_what_one_process_makes(job: Job, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Two nodes, whose uploads go to the store and not through the driver; then nothing is left to do."""
    report = driven(job, ProcessCluster("a", "b"))
    assert (report.out, report.totals.ok, report.requests) == (job.out, IMAGES - len(FAULTS), IMAGES)
    check_like_alone(job, tmp_path)
    again = driven(job, ProcessCluster())
    assert (again.totals, again.requests) == (report.totals, 0)
    assert run(job).requests == 0
