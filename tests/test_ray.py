"""Runs on a real Ray cluster of several nodes on this machine: same bytes, kills, refusals, ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from ray_nodes import RayNodes
from runs import PATIENCE_S, Run, RunFolders, listed

import datafetch
from datafetch import RunState, read_status
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.engine.cluster.ray_cluster import connected
from datafetch.errors import ConfigurationError
from datafetch.monitor.cluster_snapshot import NodeState, read_cluster
from datafetch.store.layout import OutputLayout

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHARDS, IMAGES, PICTURES = 12, 600, 40
_FAULTS = {3: "missing", 8: "broken", 13: "html"}
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_ROOT = Path(__file__).parent.parent
_SCRIPT = _ROOT / "scripts" / "cluster" / "slurm.sbatch"
OPTIONS = (
    *("--allow-net", "127.0.0.0/8", "--connections", "8", "--per-host", "8"),
    *("--processes", "1", "--retries", "0", "--no-reshard"),
)


@dataclass(frozen=True, slots=True)
class Work:
    """A dataset whose images come slowly enough to interfere, and what a run on this machine makes of it.

    Attributes:
        origin: The server of its images.
        source: Its manifest.
        files: Name → content of the output's files.
        lines: The lines of the ledgers, without times.
    """

    origin: Origin
    source: CoyoSource
    files: dict[str, bytes]
    lines: list[dict[str, Any]]

    def command(self, folders: RunFolders, *more: str) -> list[str]:
        """Return the command that fetches the dataset into a folder."""
        return [sys.executable, "-m", "datafetch", *self.arguments(folders, *more)]

    def arguments(self, folders: RunFolders, *more: str) -> list[str]:
        """Return the arguments of that command."""
        source = ("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(folders.root))
        return ["prepare", "coyo", *source, *OPTIONS, *more]

    def check(self, folders: RunFolders) -> None:
        """Check that an output equals that of the run on this machine, byte for byte, and line for line."""
        assert {path.name: path.read_bytes() for path in listed(folders.layout.out)} == self.files
        assert read_lines(folders.layout) == self.lines
        assert read_status(folders.layout.out).state is RunState.COMPLETE
        assert not folders.spools()
        assert not folders.layout.cluster.exists()


def read_lines(layout: OutputLayout) -> list[dict[str, Any]]:
    """Return all lines of the ledgers, without times."""
    lines = [line for path in sorted(layout.ledgers.glob("*.parquet")) for line in pq.read_table(path).to_pylist()]
    return [{name: value for name, value in line.items() if name != "fetch_ms"} for line in lines]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A dataset of twelve shards."""
    folder = tmp_path_factory.mktemp("ray-work")
    names = [f"{number:05d}.png" for number in range(PICTURES)]
    (folder / "pictures").mkdir()
    for number, name in enumerate(names):
        paint((48, 48), number).save(folder / "pictures" / name)
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url(_FAULTS.get(number % 20, "well"), names[number % PICTURES], number) for number in range(IMAGES)
        ]
        source = write_coyo_source(folder / "source", urls, files=SHARDS)
        alone = RunFolders(folder / "alone")
        plain = Work(origin, source, {}, [])
        subprocess.run(plain.command(alone), check=True, capture_output=True, timeout=PATIENCE_S)
        files = {path.name: path.read_bytes() for path in listed(alone.layout.out)}
        yield Work(origin, source, files, read_lines(alone.layout))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster of three nodes, one with another version of datafetch, and a head without CPUs."""
    other = tmp_path_factory.mktemp("other") / "datafetch"
    shutil.copytree(Path(datafetch.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "errors.py").open("a") as file:
        file.write("# another version\n")
    with RayNodes() as nodes:
        nodes.add("a", "b", "c")
        nodes.add("odd", environment={"PYTHONPATH": str(other.parent)})
        yield nodes


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """The folders of a run."""
    return RunFolders(tmp_path / "root")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path, since those of Ray's sockets may have 107 bytes."""
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        yield Path(name)


def on(nodes: RayNodes, *more: str) -> tuple[str, ...]:
    """Return the options of a run on a cluster."""
    return ("--engine", "ray", "--ray-address", nodes.address, *more)


def wait_while_running(run: Run, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, while a command runs."""
    for _ in run.readings():
        if condition():
            return
    raise AssertionError(f"the run has ended: {run.messages()}")


def requests_of(work: Work) -> dict[str, int]:
    """Return how often each URL of the dataset was requested."""
    by_path = work.origin.requests()
    return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in work.source.urls.values()}


def node_at_work(folders: RunFolders) -> str | None:
    """Return the name of a node that has begun to fetch; None if there is none yet."""
    snapshot = read_cluster(folders.layout)
    nodes = () if snapshot is None else snapshot.nodes
    return next((node.name for node in nodes if node.state is NodeState.AT_WORK and node.ok), None)


def test_nodes_make_what_one_machine_makes_although_one_is_killed(
    work: Work, folders: RunFolders, cluster: RayNodes
) -> None:
    """One of four is refused by name, since its package differs by a line, and another one is killed in the middle.

    Others go on with the spools of that, and only what was in flight on it is asked for again.
    """
    before = requests_of(work)
    with Run(work.command(folders, *on(cluster, "--max-rate", "200KB/s")), cluster.environment) as run:
        wait_while_running(run, lambda: node_at_work(folders) is not None)
        victim = node_at_work(folders)
        assert victim is not None
        assert {node.name for node in read_status(folders.layout.out).nodes} == {"a", "b", "c", "odd"}
        cluster.kill(victim)
        stored = folders.stored_urls()
        assert run.end() == 0, run.messages()
        messages = run.messages()
    (refusal,) = [line for line in messages if "refused" in line]
    assert re.search(r"node odd is refused: it would make other bytes: code of datafetch \w+ instead of \w+", refusal)
    assert any(re.search(rf"node {victim} was lost: it (has ended|can't be reached)", line) for line in messages), (
        messages
    )
    work.check(folders)
    now = requests_of(work)
    again = {url for url in now if now[url] - before[url] > 1}
    assert not again & stored, "what was stored was requested again"
    assert len(again) <= 8, "more was requested again than one node can have in flight"
    assert min(now[url] - before[url] for url in now) >= 1
    cluster.add(victim)


def test_a_driver_that_is_killed_is_started_again(work: Work, folders: RunFolders, cluster: RayNodes) -> None:
    """Its nodes end with it; the next one waits for their locks, and asks for nothing that is stored."""
    command = work.command(folders, *on(cluster, "--max-rate", "200KB/s"))
    with Run(command, cluster.environment) as run:
        wait_while_running(run, lambda: node_at_work(folders) is not None)
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
    assert read_status(folders.layout.out).state is not RunState.COMPLETE
    before, stored = requests_of(work), folders.stored_urls()
    assert stored
    with Run(work.command(folders, *on(cluster)), cluster.environment) as run:
        assert run.end() == 0, run.messages()
    work.check(folders)
    now = requests_of(work)
    in_flight = {url for url in stored if now[url] != before[url]}
    assert not in_flight, "what was stored was requested again"


def test_a_cluster_that_requires_no_token_is_refused(work: Work, folders: RunFolders) -> None:
    """Who has given a token expects that it is required."""
    with RayNodes(has_token=False) as nodes:
        token = {**nodes.environment, "RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_MODE": "token"}
        with Run(work.command(folders, *on(nodes)), token) as run:
            assert run.end() == 2, run.messages()
            assert "the cluster's head node does not require a token" in run.messages()[-1]


@pytest.mark.measured
def test_a_cluster_of_this_machine_listens_on_loopback_only(
    work: Work, folders: RunFolders, short_folder: Path
) -> None:
    """Without an address a cluster is started here: no port is open to others, and none of it is left at the end."""
    environment = {"HOME": str(short_folder), "RAY_TMPDIR": str(short_folder)}
    with Run(work.command(folders, "--engine", "ray", "--max-rate", "300KB/s"), environment) as run:
        wait_while_running(run, lambda: node_at_work(folders) is not None)
        open_to_others = []
        for process in run.family():
            with suppress(psutil.NoSuchProcess):  # some live for a moment only
                open_to_others += [
                    (process.name(), connection.laddr)
                    for connection in process.net_connections("inet")
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in _LOOPBACK
                ]
        assert not open_to_others
        assert run.end() == 0, run.messages()
    work.check(folders)
    assert not (short_folder / ".ray" / "auth_token").exists()


_TWO_CONNECTIONS = """
import os, sys
from datafetch.engine.cluster.ray_cluster import connected

folder = os.path.join(os.environ["HOME"], "deleted")
os.mkdir(folder)
os.chdir(folder)
os.rmdir(folder)
names = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
before = [os.environ.get(name) for name in names]
with connected(None) as cluster:
    assert len(cluster.nodes()) == 1
assert [os.environ.get(name) for name in names] == before
assert not os.path.exists(os.readlink("/proc/self/cwd"))
with connected(sys.argv[1]) as cluster:
    print(sorted(node.name for node in cluster.nodes()))
"""


def test_a_program_may_connect_to_one_cluster_after_another(cluster: RayNodes, short_folder: Path) -> None:
    """The token of the first is not that of the second, and the environment and the working directory are as before."""
    environment = {**os.environ, **cluster.environment, "HOME": str(short_folder), "RAY_TMPDIR": str(short_folder)}
    (short_folder / ".ray").mkdir()
    (short_folder / ".ray" / "auth_token").write_text(environment.pop("RAY_AUTH_TOKEN"))
    command = [sys.executable, "-c", _TWO_CONNECTIONS, cluster.address]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (run.returncode, run.stdout) == (0, "['a', 'b', 'c', 'odd']\n"), run.stderr


def test_secrets_are_not_sent(work: Work, folders: RunFolders) -> None:
    """A source with credentials is refused before anything is connected to."""
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--root", str(folders.root), "--engine", "ray"),
        *("--source", "https://name:password@example.org/coyo", "--ids", str(work.source.ids)),
    ]
    with Run(command) as run:
        assert run.end() == 2
        assert "credentials" in run.messages()[-1]
        assert "password" not in run.messages()[-1]


# --- the files of scripts/cluster


def write_command(folder: Path, name: str, text: str) -> None:
    """Write a command that stands in for one of Slurm's."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    """Ray itself would try it for a quarter of an hour, and obey no signal meanwhile."""
    with (
        pytest.raises(ConfigurationError, match=r"no Ray cluster answers at 127\.0\.0\.1:"),
        connected(f"127.0.0.1:{free_port()}"),
    ):
        pass


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_slurm_script_runs_a_job_on_two_nodes(
    work: Work, folders: RunFolders, short_folder: Path, tmp_path: Path
) -> None:
    """With commands in place of Slurm's that start raylets of this machine, the job is done, and nothing is left."""
    address = ray.util.get_node_ip_address()
    if address in _LOOPBACK:
        pytest.skip("this machine has no address but that of loopback, which Ray takes for no cluster's")
    commands = tmp_path / "bin"
    commands.mkdir()
    write_command(commands, "scontrol", 'printf "one\\ntwo\\n"')
    write_command(
        commands,
        "srun",
        f"while [[ $1 == --* ]]; do shift; done\n[[ $1 == hostname ]] && {{ echo {address}; exit; }}\n"
        'exec "$@" --num-cpus=1 --object-store-memory=80000000 --dashboard-agent-listen-port=0',
    )
    write_command(commands, "datafetch", f'exec {sys.executable} -m datafetch "$@"')
    environment = {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "[one-two]",
        "SLURM_JOB_ID": str(os.getpid()),
        "RAY_PORT": str(free_port()),
        "RAY_TMPDIR": str(short_folder),
    }
    with Run(["bash", str(_SCRIPT), *work.arguments(folders)], environment) as run:
        assert run.end() == 0, run.messages()
    work.check(folders)


def test_the_files_for_clusters_are_sound() -> None:
    """They parse, require a token, and send no usage statistics; Ray accepts its own, which has no dashboard."""
    import yaml  # noqa: PLC0415 - Ray brings it
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415 - slow to load

    folder = _ROOT / "scripts" / "cluster"
    config = yaml.safe_load((folder / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    starts = [
        line for name in ("head", "worker") for line in config[f"{name}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2
    for line in starts:
        assert "RAY_AUTH_MODE=token" in line
        assert "--disable-usage-stats" in line
    assert "--include-dashboard=false" in starts[0]
    assert "#SBATCH --signal=B:TERM@" in (folder / "slurm.sbatch").read_text()  # the script gets it, not its steps
    policy, job = yaml.safe_load_all((folder / "rayjob.yaml").read_text())
    labels = policy["spec"]["podSelector"]["matchLabels"]
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == labels
        assert group["rayStartParams"]["disable-usage-stats"] == "true"
    assert all("from" in rule for rule in policy["spec"]["ingress"])
