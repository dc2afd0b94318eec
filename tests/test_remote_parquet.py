"""COYO's parquet files, read on the hub where they are: what is requested, what comes out, and what goes wrong."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK
from hub_server import HubServer
from in_process import THREADS, retry, run
from runs import OPTIONS, Run, RunFolders, check_out_of_resources

from datafetch import Job, fetch_shards, finish
from datafetch.datasets import DATASETS
from datafetch.datasets.sources.hub import HubPlace
from datafetch.demo.origin import Origin
from datafetch.engine import remote_files
from datafetch.engine.remote_files import open_remote
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import FetchPolicy
from datafetch.model.manifest import RemoteFile
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.layout import OutputLayout

REPOSITORY = "kakaobrain/coyo-700m"
PLACE = f"hf://datasets/{REPOSITORY}@70f9d1e"
POLICY = FetchPolicy(allow_net=LOOPBACK, retries=0, per_host=4)
NAMES = [f"data/part-{number:05d}-17da-c000.snappy.parquet" for number in range(2)]
GROUPS = (40, 12)  # of each file
GROUP_ROWS = 20
NEEDED = ("id", "url", "text", "clip_similarity_vitb32", "clip_similarity_vitl14")
SIMILARITIES = NEEDED[3:]
WANTED_GROUP, UNWANTED_GROUP = (24, 4), 3  # the latter lies neither at the beginning nor at the end of a file
WANTED = 15
_TAIL_BYTES = 1 << 16
_LARGE_METADATA = {"spark": "x" * _TAIL_BYTES}  # which makes the first file's footer larger than the tail that is read


@dataclass(frozen=True, slots=True)
class Published:
    """Two files of the dataset, of which one row group has listed ids, and an id list.

    Attributes:
        files: The files, by their paths in the repository.
        folder: A folder with the same files.
        ids: The id list.
    """

    files: dict[str, bytes] = field(repr=False)
    folder: Path
    ids: Path

    def job(self, tmp_path: Path, source: str = PLACE, *, name: str = "remote") -> Job:
        """A job that fetches the listed rows."""
        out = str(tmp_path / name / "pkl03-split")
        return Job("coyo", source, out, ids=str(self.ids), fetch=POLICY, processes=1, world_size=None)

    def span(self, name: str, group: int, column: str) -> tuple[int, int]:
        """Where a column of a row group lies in a file."""
        part = _metadata(self.files[name]).row_group(group)
        chunk = next(one for one in map(part.column, range(part.num_columns)) if one.path_in_schema == column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        return start, start + chunk.total_compressed_size

    def column_bytes(self, name: str, *columns: str) -> int:
        """The size of columns in a file."""
        spans = [self.span(name, group, column) for group in range(GROUPS[NAMES.index(name)]) for column in columns]
        return sum(stop - start for start, stop in spans)

    def footer_bytes(self, name: str) -> int:
        """The size of a file's footer, with its length and the magic number."""
        return int.from_bytes(self.files[name][-8:-4], "little") + 8

    def opening_bytes(self, name: str) -> int:
        """What is requested of a file when it is opened for the first time: its beginning, and its footer."""
        return 1 + 1024 + max(_TAIL_BYTES, self.footer_bytes(name))


@cache
def _metadata(content: bytes) -> pq.FileMetaData:
    return pq.read_metadata(BytesIO(content))


def parquet(number: int, urls: Mapping[int, str], similar: frozenset[int] = frozenset()) -> bytes:
    """A file shaped like COYO's; the rows with URLs have ids from ``number * 1_000_000`` on."""
    rows, rng = range(GROUPS[number] * GROUP_ROWS), random.Random(number)
    similarity = pa.array([0.4 if row in similar else 0.2 for row in rows], pa.float32())
    table = pa.table(
        {
            "id": pa.array([number * 1_000_000 + row for row in rows], pa.int64()),
            "url": [urls.get(row, f"http://unwanted.invalid/{row}.jpg") for row in rows],
            "text": [rng.randbytes(50).hex() for _ in rows],
            "image_phash": [rng.randbytes(400).hex() for _ in rows],
            "clip_similarity_vitb32": similarity,
            "clip_similarity_vitl14": similarity,
        },
        metadata=None if number else _LARGE_METADATA,
    )
    buffer = BytesIO()
    pq.write_table(table, buffer, row_group_size=GROUP_ROWS, compression="snappy", store_schema=False)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def published(
    origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Published:
    """The files, with URLs of real images."""
    folder = tmp_path_factory.mktemp("published")
    files: dict[str, bytes] = {}
    ids: list[int] = []
    for number, name in enumerate(NAMES):
        first_row = WANTED_GROUP[number] * GROUP_ROWS
        rows = range(first_row, first_row + WANTED)
        urls = {row: origin.url("well", small_pictures[1][row % 20], f"{number}-{row}") for row in rows}
        files[name] = parquet(number, urls, frozenset(rows))
        ids += [number * 1_000_000 + row for row in rows]
        (folder / Path(name).name).write_bytes(files[name])
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return Published(files, folder, folder / "ids.txt")


@pytest.fixture
def hub(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, with these files and others that aren't needed."""
    others = {"README.md": b"x", "data/../evil.parquet": b"x", "data/part-1\n.parquet": b"x"}
    with HubServer({REPOSITORY: {**published.files, **others}}) as running:
        running.use(monkeypatch, tmp_path / "cache")
        yield running


def output(job: Job) -> dict[str, bytes]:
    """The files of an output."""
    return {path.name: path.read_bytes() for path in Path(job.out).iterdir()}


def asked_bytes(hub: HubServer, name: str) -> int:
    """How many bytes of a file were requested."""
    return sum(stop - start for one, start, stop in hub.spans if one == Path(name).name)


def asked_for(hub: HubServer, published: Published, name: str, column: str) -> bool:
    """Whether a column of a row group that no row is wanted of was requested."""
    start, stop = published.span(name, UNWANTED_GROUP, column)
    return any(one == Path(name).name and begin <= start and stop <= end for one, begin, end in hub.spans)


@pytest.mark.rotating
def test_only_what_is_needed_is_requested(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """That is footers, the ids, and the needed columns of the row group that has listed ids; the output is the same."""
    local = published.job(tmp_path, str(published.folder), name="local")
    remote = published.job(tmp_path)
    assert run(local).totals.ok == run(remote).totals.ok == 2 * WANTED
    assert output(remote) == output(local)
    for name, wanted in zip(NAMES, WANTED_GROUP, strict=True):
        group = sum(stop - start for start, stop in (published.span(name, wanted, one) for one in NEEDED))
        reading = 2 * published.footer_bytes(name) + published.column_bytes(name, "id") + group
        assert asked_bytes(hub, name) == published.opening_bytes(name) + reading
    assert asked_bytes(hub, NAMES[0]) < len(published.files[NAMES[0]]) / 2
    whole = [path for method, path, span in hub.requests if method == "GET" and path.endswith(".parquet") and not span]
    assert not whole
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    state = OutputLayout(Path(remote.out))
    assert not state.scans.exists()
    assert all(b"secret" not in path.read_bytes() for path in state.state_folder.rglob("*") if path.is_file())
    assert PLACE in state.job.read_text()


@pytest.mark.rotating
def test_without_a_list_similarities_select(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """They are read first, and the rows are those of the files on this machine."""
    local = replace(published.job(tmp_path, str(published.folder), name="local"), ids=None)
    remote = replace(published.job(tmp_path), ids=None)
    assert run(local).totals.ok == run(remote).totals.ok == 2 * WANTED
    assert output(remote) == output(local)
    assert asked_for(hub, published, NAMES[0], SIMILARITIES[0])


@pytest.mark.rotating
def test_local_files_and_the_hub_are_the_same_job(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """So a run that began with one is resumed with the other."""
    job = published.job(tmp_path)
    run(job)
    hub.spans.clear()
    assert run(replace(job, source=str(published.folder))).reused == 2 * WANTED
    assert not hub.spans


@pytest.mark.rotating
@pytest.mark.parametrize("behaviour", [{"cuts_after_bytes": 3000}, {"signed_uses": 1}], ids=["cuts", "signed once"])
def test_servers_that_are_difficult(
    tmp_path: Path, published: Published, hub: HubServer, behaviour: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cut connections and those whose signed URLs expire are read all the same."""
    monkeypatch.setattr("datafetch.fetch.ranges._MIN_PART_BYTES", 1024)
    local = published.job(tmp_path, str(published.folder), name="local")
    remote = published.job(tmp_path)
    run(local)
    for name, value in behaviour.items():
        setattr(hub, name, value)
    assert run(remote).totals.ok == 2 * WANTED
    assert output(remote) == output(local)


@pytest.mark.rotating
def test_a_server_that_recovers_is_waited_for(
    tmp_path: Path, published: Published, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails for a while is requested again."""
    monkeypatch.setattr(remote_files, "_FIRST_PAUSE_S", 0.01)
    hub.failing = 7
    assert run(published.job(tmp_path)).totals.ok == 2 * WANTED
    assert not hub.failing


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serves_ranges": False}, "the server does not serve parts of the file; download it"),
        pytest.param(
            {"file_status": 401},
            "its terms have to be accepted first, so it can't be read where it is; download it",
            marks=pytest.mark.slow,  # as 403
        ),
        ({"file_status": 403}, "its terms have to be accepted first, so it can't be read where it is; download it"),
        ({"file_status": 404}, "the hub does not have it any more; check the revision"),
        ({"file_status": 500}, r"can't be read now \(HTTP 500\); run the same command again later to resume"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_refusals_are_one_line(
    tmp_path: Path,
    published: Published,
    hub: HubServer,
    changes: Mapping[str, int],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the file as on the hub, and nothing has been written."""
    monkeypatch.setattr(remote_files, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote_files, "_MAX_PAUSE_S", 0.01)
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_DOWN_S", 0.0)
    for name, value in changes.items():
        setattr(hub, name, value)
    job = published.job(tmp_path)
    with pytest.raises(
        ManifestError, match=rf"^{PLACE}/data/part-0000\d-17da-c000.snappy.parquet:? {message}"
    ) as raised:
        run(job)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)
    assert not OutputLayout(Path(job.out)).state_folder.exists()


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("sends_etags", "message"), [(True, "on the server since it was first read"), (False, "since it was opened")]
)
def test_a_file_that_changes_stops_the_run(
    tmp_path: Path, published: Published, hub: HubServer, sends_etags: bool, message: str
) -> None:
    """No row of another version is taken, also where a server has no entity tags and the size is the same."""
    hub.sends_etags = sends_etags
    changed = bytearray(published.files[NAMES[1]])
    changed[-12] ^= 1
    repositories = {REPOSITORY: dict(published.files)}
    hub.repositories = repositories

    def change(name: str, start: int, _: int) -> None:
        if name == Path(NAMES[0]).name and start == published.span(NAMES[0], UNWANTED_GROUP, "id")[0]:
            repositories[REPOSITORY][NAMES[1]] = bytes(changed)

    hub.on_span = change
    job = published.job(tmp_path)
    with pytest.raises(ManifestError, match=rf"{NAMES[1]} has changed {message}; put back what was there, or start"):
        run(job)
    hub.on_span = lambda *_: None
    with pytest.raises((ConfigurationError, ManifestError), match="part-00001"):
        run(job)


@pytest.mark.rotating
def test_scans_are_kept_for_other_processes_and_later_runs(
    tmp_path: Path, published: Published, hub: HubServer
) -> None:
    """The ids of a file are read once; what is damaged is read again, and what is complete is deleted."""
    job = published.job(tmp_path)
    scans = OutputLayout(Path(job.out)).scans
    fetch_shards(job, ["part-00001"], backends=THREADS)
    assert all(asked_for(hub, published, name, "id") for name in NAMES)
    assert len(list(scans.iterdir())) == 2
    hub.spans.clear()
    for path in scans.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    fetch_shards(job, ["part-00000"], backends=THREADS)
    assert [asked_for(hub, published, name, "id") for name in NAMES] == [True, False]
    assert finish(job).totals.ok == 2 * WANTED
    run(job)
    assert not scans.exists()


@pytest.mark.rotating
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_does_not_scan_again(
    tmp_path: Path, published: Published, hub: HubServer, number: signal.Signals
) -> None:
    """It ends while the hub does not answer, and the next one reads no ids of the files that were scanned."""
    job = published.job(tmp_path)
    folders = RunFolders(tmp_path / "root")
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", PLACE, "--ids", job.ids or ""),
        *("--root", str(folders.root), *OPTIONS),
    ]
    is_reached, may_answer = threading.Event(), threading.Event()
    url_start, _ = published.span(NAMES[1], WANTED_GROUP[1], "url")

    def wait(name: str, start: int, stop: int) -> None:
        if name == Path(NAMES[1]).name and stop - start < _TAIL_BYTES and start <= url_start < stop:
            is_reached.set()
            may_answer.wait()

    hub.on_span = wait
    try:
        with Run(command) as stopped:
            assert any(is_reached.is_set() for _ in stopped.readings()), stopped.messages()
            stopped.process.send_signal(number)
            assert stopped.end(30) == (130 if number == signal.SIGINT else -number)
            assert "Traceback" not in "\n".join(stopped.messages())
    finally:
        may_answer.set()
    hub.on_span = lambda *_: None
    hub.spans.clear()
    with Run(command) as resumed:
        assert resumed.end() == 0, resumed.messages()
        assert any(re.search(r"2 files of [0-9.]+ [kM]B, read in their place", line) for line in resumed.messages())
    assert not any(asked_for(hub, published, name, "id") for name in NAMES)
    local = published.job(tmp_path, str(published.folder), name="local")
    run(local)
    assert output(replace(job, out=str(folders.layout.out))) == output(local)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1024], ids=["while files are opened", "while footers are read"])
def test_ctrl_c_ends_a_run_that_opens_files(tmp_path: Path, published: Published, hub: HubServer, start: int) -> None:
    """Threads that wait for a hub that does not answer end at once, and nothing has been written."""
    is_reached, may_answer = threading.Event(), threading.Event()

    def wait(_: str, begin: int, __: int) -> None:
        if begin >= start:
            is_reached.set()
            may_answer.wait()

    hub.on_span = wait
    root = tmp_path / "root"
    command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", PLACE, "--root", str(root), *OPTIONS]
    try:
        with Run([*command, "--ids", str(published.ids)]) as stopped:
            assert any(is_reached.is_set() for _ in stopped.readings()), stopped.messages()
            stopped.process.send_signal(signal.SIGINT)
            assert stopped.end(30) == 130
            assert "Traceback" not in "\n".join(stopped.messages())
    finally:
        may_answer.set()
    assert not root.exists()


@pytest.mark.rotating
def test_a_retry_asks_the_hub_for_nothing(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """The state folder has what a retry needs."""
    ids = tmp_path / "ids.txt"
    ids.write_text(published.ids.read_text() + "7\n")  # whose host does not exist
    job = replace(published.job(tmp_path), ids=str(ids))
    assert run(job).totals.failed == 1
    asked = len(hub.requests)
    assert retry(job.out, RetryFilter.all()).retried == 1
    assert len(hub.requests) == asked


@pytest.mark.rotating
@pytest.mark.usefixtures("without_coverage")  # whose file would be too large as well
def test_no_space_for_a_row_group_names_tmpdir(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """The part of a file that is read has to fit there."""
    root = tmp_path / "root"
    options = ["--source", PLACE, "--ids", str(published.ids), "--root", str(root), *OPTIONS]
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-", sys.executable, "-m", "datafetch", "prepare", "coyo"]
    with Run([*limited, *options]) as stopped:
        line = check_out_of_resources(stopped, stopped.end())
    assert f"cannot copy a part of {PLACE}/{NAMES[0][:-20]}" in line
    assert "which TMPDIR can change" in line
    assert hub.spans


def damaged(content: bytes, seed: int) -> bytes:
    """The same file with a few bits of its footer changed."""
    rng = random.Random(seed)
    copy = bytearray(content)
    footer_bytes = int.from_bytes(copy[-8:-4], "little")
    for _ in range(4):
        copy[-8 - rng.randrange(1, footer_bytes)] ^= 1 << rng.randrange(8)
    return bytes(copy)


# With the seed 119, pyarrow would end the process.
@pytest.mark.parametrize(
    "seeds", [(0, 1, 119), pytest.param(range(2, 25), marks=pytest.mark.slow)], ids=["few", "many"]
)
async def test_damaged_footers_cost_one_line(published: Published, hub: HubServer, seeds: Sequence[int]) -> None:
    """Or the file is read as it claims to be. Nothing outside of it is requested, and never much more than it has.

    Without a job, for which the hub's library would be loaded to list the files, each time for a second.
    """
    content = parquet(1, {row: f"http://127.0.0.1:1/{row}.jpg" for row in range(GROUPS[1] * GROUP_ROWS)})

    def read_rows(files: Sequence[RemoteFile]) -> None:
        with suppress(ManifestError):
            manifest = DATASETS["coyo"].bind_in_place(files, published.ids)
            for shard in manifest.shards():
                list(manifest.samples(shard))

    for seed in seeds:
        hub.repositories = {REPOSITORY: {NAMES[1]: damaged(content, seed)}}
        hub.spans.clear()
        async with open_remote(POLICY) as remote:
            remote.add_of_hub(HubPlace.parse(PLACE), NAMES[1], mirror="")
            await asyncio.to_thread(read_rows, remote.files)
        assert hub.spans
        assert all(0 <= start < stop <= len(content) for _, start, stop in hub.spans)
        assert asked_bytes(hub, NAMES[1]) < 3 * len(content)


def with_footer(data: bytes, metadata: object) -> bytes:
    """A file with another footer."""
    buffer = BytesIO()
    metadata.write_metadata_file(buffer)  # type: ignore[attr-defined]
    return data + buffer.getvalue()[4:]


@pytest.mark.rotating
def test_columns_outside_of_a_file_are_refused(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """The footer's offsets are compared with the file before anything else of it is requested."""
    content = published.files[NAMES[0]]
    metadata = pq.read_metadata(BytesIO(content))
    hub.repositories = {REPOSITORY: {NAMES[0]: with_footer(content[:100_000], metadata)}}
    with pytest.raises(ManifestError, match=r"is damaged: column \w+ of row group \d+ would lie outside of it"):
        run(published.job(tmp_path))


@pytest.mark.rotating
def test_columns_that_overlap_are_refused(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """Or a footer of kilobytes could make a file be requested thousands of times."""
    content = published.files[NAMES[0]]
    metadata, once = pq.read_metadata(BytesIO(content)), pq.read_metadata(BytesIO(content))
    for _ in range(9):
        metadata.append_row_groups(once)
    hub.repositories = {REPOSITORY: {NAMES[0]: with_footer(content, metadata)}}
    with pytest.raises(ManifestError, match="is damaged: its columns overlap"):
        run(published.job(tmp_path))
    assert asked_bytes(hub, NAMES[0]) < len(content) * 2


@pytest.mark.rotating
def test_a_claim_of_more_than_a_terabyte_is_refused(tmp_path: Path, published: Published, hub: HubServer) -> None:
    """No sparse file of that size is made."""
    hub.claimed_bytes = 1 << 50
    with pytest.raises(ManifestError, match="claims to have 1,125,899,906,842,624 bytes, more than is accepted"):
        run(published.job(tmp_path))
