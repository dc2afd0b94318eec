"""What every format of a list's images does: one contract, with the command, real processes and a real server.

The list has whatever lists have: rows without a URL, with several, with the URL of another row, that are no JSON; ids
and columns whose names and values are those of other columns; images that fail in all ways (``list_runs``). What one
undisturbed process makes of it is compared with the list, and everything else with that, byte for byte.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LOOPBACK
from in_process import retry, run
from list_runs import (
    FORMATS,
    POLICY,
    ListedSample,
    ListTrial,
    Pictures,
    StoredSample,
    files_in,
    lines_in,
    list_folders,
    read_samples,
    serve_pictures,
)
from list_samples import FORMATS_OF_LISTS
from PIL import Image
from preloaded import PreloadedCommand
from process_cluster import ProcessCluster
from runs import Run, RunFolders, StoredImages, listed

from datafetch import ConfigurationError, Job, ListFormat, ListJob, ListOptions, ManifestError, RunState, read_status
from datafetch.cli.app import main
from datafetch.engine.cluster.cluster_run import run_on_cluster
from datafetch.engine.cluster.driver import Timeouts
from datafetch.store.layout import OutputLayout

pytestmark = pytest.mark.usefixtures("_own_cache")

_WORKER = "datafetch.engine.workers.worker"
_KILLED = -9
_SLOWLY = ("--max-rate", "100KB/s")  # so that there is a middle
_kills = pytest.mark.usefixtures("without_coverage")  # whose files processes that are killed leave damaged
_mostly_slow = pytest.mark.parametrize(
    "output_format",
    [
        pytest.param(name, marks=pytest.mark.rotating if name == ListFormat.WEBDATASET else pytest.mark.slow)
        for name in FORMATS
    ],
    indirect=True,
)


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep scans of other tests out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    """Pictures on a server of their own, for its counts of requests."""
    with serve_pictures(tmp_path_factory.mktemp("pictures")) as served:
        yield served


@pytest.fixture(scope="module")
def listed_once(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> ListTrial:
    """The list of most tests."""
    return pictures.write_list(tmp_path_factory.mktemp("list") / "list", "once")


@pytest.fixture(scope="module", params=FORMATS)
def output_format(request: pytest.FixtureRequest) -> str:
    """Each format."""
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(
    listed_once: ListTrial, output_format: str, tmp_path_factory: pytest.TempPathFactory, preloaded: PreloadedCommand
) -> tuple[ListTrial, RunFolders]:
    """The list in a format, and what the command made of it with one process, which asked for each image once."""
    trial = replace(listed_once, output_format=output_format)
    folders = list_folders(tmp_path_factory.mktemp("undisturbed"))
    before = trial.requests()
    with Run(trial.command(folders), {"XDG_CACHE_HOME": str(folders.root / "cache")}, preloaded) as command:
        assert command.end() == 0, command.messages()
    once = {url: number - before[url] for url, number in trial.requests().items()}
    assert set(once.values()) == {0, 1}
    return replace(trial, files=files_in(folders.layout.out)), folders


@pytest.fixture
def trial(undisturbed: tuple[ListTrial, RunFolders]) -> ListTrial:
    """The list in a format, with the files of an undisturbed run."""
    return undisturbed[0]


@pytest.fixture
def complete(undisturbed: tuple[ListTrial, RunFolders]) -> Path:
    """The output of an undisturbed run, which nobody may change."""
    return undisturbed[1].layout.out


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    """The folders of another run."""
    return list_folders(tmp_path)


def check_like_undisturbed(trial: ListTrial, folders: RunFolders, undisturbed: Path) -> None:
    """Check that files and ledgers are those of an undisturbed run, and that nothing else is left."""
    assert files_in(folders.layout.out).keys() == trial.files.keys()
    trial.check_files(folders)
    assert lines_in(folders.layout) == lines_in(OutputLayout(undisturbed))
    assert read_status(folders.layout.out).state is RunState.COMPLETE
    assert not folders.spools()


def values_of(stored: StoredSample, wanted: ListedSample, name: str) -> Any:
    """Return what the row has under a name; of a list of one that was given as a single value, this."""
    value = stored.row[name]
    is_in_list = isinstance(value, list) and not isinstance(wanted.urls, list)
    return value[0] if is_in_list and name in {"url", "status", "error_message"} else value


def test_samples_are_those_of_the_list_in_its_order(trial: ListTrial, complete: Path) -> None:
    """Nothing of them is lost or confused, whatever their ids, captions and columns are called and contain."""
    stored, expected = read_samples(complete, trial.output_format), trial.expected()
    assert len(stored) == len(expected)
    for one, wanted in zip(stored, expected, strict=True):
        row = trial.row(wanted)
        assert {name: values_of(one, wanted, name) for name in row} == row
        assert len(one.images) == list(wanted.reasons).count(None)
        for image in one.images:
            assert Image.open(io.BytesIO(image)).size == (48, 40)
            if wanted.number % len(trial.pictures.names) % 3 == 0:  # a JPEG is kept as it is
                name = trial.pictures.names[wanted.number % len(trial.pictures.names)]
                assert image == (trial.pictures.folder / name).read_bytes()
        if trial.output_format == ListFormat.PICKLE:
            assert one.row.keys() == row.keys()
        else:
            reasons = list(wanted.reasons) if isinstance(wanted.urls, list) else wanted.reasons[0]
            assert values_of(one, wanted, "error_message") == reasons
        if one.texts:
            assert one.texts[".txt"].decode() == (wanted.caption or "")
            assert json.loads(one.texts[".json"]).items() >= row.items()
    texts = [one.texts for one in stored if one.images]
    assert all(texts) == (trial.output_format in {ListFormat.WEBDATASET, ListFormat.FILES})


def test_an_output_can_be_looked_at(trial: ListTrial, complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``status``, ``verify``, ``failures`` and ``explain`` say the same of every format."""
    samples = [sample for sample in trial.samples if sample.key]
    reasons = [reason for sample in samples for reason in sample.reasons]
    if trial.output_format == ListFormat.PICKLE:  # which refuses samples of several images
        reasons = [reason for sample in samples if len(sample.reasons) == 1 for reason in sample.reasons]

    def shown(*command: str) -> str:
        assert main([*command]) == 0
        return capsys.readouterr().out

    status = json.loads(shown("status", str(complete), "--json"))
    counts = {"expected": len(reasons), "ok": reasons.count(None), "failed": len(reasons) - reasons.count(None)}
    assert (status["state"], status["images"].items() >= counts.items()) == ("complete", True)
    assert status["samples"]["rows"] == len(trial.expected())
    report = json.loads(OutputLayout(complete).report.read_bytes())
    assert report["samples"] == {
        "total": len(trial.samples),
        "rows": len(trial.expected()),
        "dropped": len(trial.samples) - len(trial.expected()),
    }
    assert report["notes"]["bad_lines"] == 1

    verdict = json.loads(shown("verify", str(complete), "--json", "--processes", "1"))
    assert (verdict["sound"], verdict["problem_count"], verdict["images"]) == (True, 0, counts["ok"])
    assert verdict["samples"] == len(trial.expected())
    assert json.loads(shown("verify", str(complete), "--json", "--quick"))["sound"]

    lines = [json.loads(line) for line in shown("failures", str(complete), "--jsonl").splitlines()]
    assert len(lines) == counts["failed"]
    failed = next(sample for sample in samples if sample.reasons == ["HTTP 404"])
    (line,) = [line for line in lines if line["key"] == failed.key]
    assert (line["outcome"], line["status"], line["url"]) == ("http_status", 404, failed.urls)

    arrived = samples[-1]
    for what in (arrived.key, str(arrived.urls)):
        (explained,) = json.loads(shown("explain", str(complete), what, "--json"))["samples"]
        assert (explained["key"], explained["row"]) == (arrived.key, True)
        assert [image["outcome"] for image in explained["images"]] == ["ok"]
    (explained,) = json.loads(shown("explain", str(complete), failed.key, "--json"))["samples"]
    assert explained["row"] is (trial.output_format != ListFormat.PICKLE)


@pytest.mark.rotating
def test_two_workers_make_what_one_makes(
    trial: ListTrial, complete: Path, folders: RunFolders, preloaded: PreloadedCommand
) -> None:
    """Every byte, and every line of the ledgers."""
    with Run(trial.command(folders, workers=2), preloaded=preloaded) as command:
        assert command.end() == 0, command.messages()
    check_like_undisturbed(trial, folders, complete)


def middle_of(trial: ListTrial, before: dict[str, int]) -> Callable[[], bool]:
    """Return whether a third of the images have been requested since then."""
    return lambda: sum(number > before[url] for url, number in trial.requests().items()) > len(before) // 3


@_kills
@_mostly_slow
def test_a_killed_worker_costs_only_what_is_in_flight(
    trial: ListTrial, complete: Path, folders: RunFolders, preloaded: PreloadedCommand
) -> None:
    """Another one takes its place, and no image that has ended is requested again."""
    is_middle, stored = middle_of(trial, trial.requests()), StoredImages(trial, folders)
    killed = False
    with Run(trial.command(folders, *_SLOWLY, workers=2), preloaded=preloaded) as command:
        for _ in command.readings():
            if not killed and is_middle() and (workers := command.family(_WORKER)):
                stored.check()
                workers[0].kill()
                killed = True
        assert command.end() == 0, command.messages()
        assert killed
    stored.check()
    check_like_undisturbed(trial, folders, complete)


@_kills
@_mostly_slow
def test_a_killed_command_goes_on_where_it_was(
    trial: ListTrial, complete: Path, folders: RunFolders, preloaded: PreloadedCommand
) -> None:
    """All of its processes are killed in the middle; the next one requests only images that had not ended."""
    is_middle, stored = middle_of(trial, trial.requests()), StoredImages(trial, folders)
    with Run(trial.command(folders, *_SLOWLY), preloaded=preloaded) as command:
        for _ in command.readings():
            if is_middle():
                for process in command.family():
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                break
        assert command.end() == _KILLED, command.messages()
    stored.check()
    assert folders.stored_urls()
    with Run(trial.command(folders), preloaded=preloaded) as command:
        assert command.end() == 0, command.messages()
    stored.check()
    check_like_undisturbed(trial, folders, complete)


@pytest.mark.slow
def test_the_nodes_of_a_cluster_make_what_one_process_makes(
    trial: ListTrial, complete: Path, folders: RunFolders
) -> None:
    """Each reads the list itself, and is handed shards of both files."""
    cluster = ProcessCluster("a", "b")
    timeouts = Timeouts(abandoned_s=30.0, silence_s=60.0, first_retry_s=0.2)
    asyncio.run(run_on_cluster(trial.job(folders), cluster.connected, timeouts=timeouts))
    assert all(any(orders.shards for orders in node.orders) for node in cluster.all.values())
    check_like_undisturbed(trial, folders, complete)


@pytest.mark.rotating
def test_a_retry_gives_what_a_run_without_the_failures_gives(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """It requests the images that failed for a reason that may pass, and puts them into their shards."""
    trial = pictures.write_list(tmp_path / "list", f"retry-{output_format}", flaky=True)
    trial = replace(trial, output_format=output_format)
    flaky = [sample for sample in trial.samples if sample.key and sample.reasons == ["HTTP 500"]]
    first = run(trial.job(folders))
    before = trial.requests()
    again = retry(str(folders.layout.out))
    requested = {url for url, number in trial.requests().items() if number != before[url]}
    assert requested == {sample.urls for sample in flaky}
    assert again.totals.ok == first.totals.ok + len(flaky)
    healed = list_folders(tmp_path / "healed")
    run(trial.job(healed))
    assert files_in(folders.layout.out) == files_in(healed.layout.out)
    lines = [[line | {"attempts": None} for line in lines_in(one.layout)] for one in (folders, healed)]
    assert lines[0] == lines[1]
    assert retry(str(folders.layout.out)).retried == 0


@pytest.mark.rotating
def test_equal_shards_of_pickles_are_retried_into_place(pictures: Pictures, tmp_path: Path) -> None:
    """As those of other datasets for the same loader."""
    trial = replace(pictures.write_list(tmp_path / "list", "equal", flaky=True), output_format="pickle")
    places = [list_folders(tmp_path / name) for name in ("retried", "healed")]
    jobs = [replace(trial.job(folders), world_size=2) for folders in places]
    run(jobs[0])
    retry(jobs[0].out)
    resharded = run(jobs[1]).resharded
    assert resharded is not None
    assert resharded.world_size == 2
    assert files_in(places[0].layout.out) == files_in(places[1].layout.out)
    ids = [sample.columns["uid"] for sample in trial.samples if sample.key and sample.reasons in (["HTTP 500"], [None])]
    assert sorted(one.row["id"] for one in read_samples(places[0].layout.out, "pickle")) == sorted(ids)


@_kills
@pytest.mark.slow
def test_a_killed_retry_is_completed(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders, preloaded: PreloadedCommand
) -> None:
    """All of its processes are killed once an image has come; then it requests only what had not."""
    trial = pictures.write_list(tmp_path / "list", f"killed-retry-{output_format}", flaky=True)
    trial = replace(trial, output_format=output_format)
    run(trial.job(folders))
    before = trial.requests()
    command = [sys.executable, "-m", "datafetch", "retry", str(folders.layout.out)]
    with Run([*command, "--connections", "1", "--all"], preloaded=preloaded) as retrying:
        for _ in retrying.readings():
            if any(number != before[url] for url, number in trial.requests().items()):
                for process in retrying.family():
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                break
        assert retrying.end() == _KILLED, retrying.messages()
    with Run(command, preloaded=preloaded) as retrying:
        assert retrying.end() == 0, retrying.messages()
    healed = list_folders(tmp_path / "healed")
    run(trial.job(healed))
    assert files_in(folders.layout.out) == files_in(healed.layout.out)
    assert read_status(folders.layout.out).state is RunState.COMPLETE


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as parquet, or as lines of JSON, by the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([*rows]), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def list_job(inputs: Sequence[Path], folders: RunFolders, output_format: str, **options: Any) -> Job:
    """Return the job of another list."""
    own = ListOptions(format=ListFormat(output_format), **options)
    return ListJob([*map(str, inputs)], str(folders.layout.out), own, fetch=POLICY, world_size=None, processes=1)


def long_captions(pictures: Pictures, folder: Path, mark: str) -> tuple[list[Path], list[str]]:
    """Write two files whose captions have ten megabytes, and return them with the captions; an image is flaky."""
    captions = ["é" * 5_000_000, "short", '"\n' * 5_000_000, "short"]
    ways = ["flaky", "well", "well", "well"]
    rows = [
        {"url": pictures.url(way, number, mark), "text": caption}
        for number, (way, caption) in enumerate(zip(ways, captions, strict=True))
    ]
    return [write_rows(folder / "a.parquet", rows[:2]), write_rows(folder / "b.jsonl", rows[2:])], captions


@pytest.mark.rotating
def test_captions_may_have_ten_megabytes(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come through a run and a retry as they are."""
    inputs, captions = long_captions(pictures, tmp_path, f"long-{output_format}")
    job = list_job(inputs, folders, output_format)
    run(job)
    assert retry(job.out).totals.outcomes == {"ok": len(captions)}
    name = "text" if output_format == ListFormat.PICKLE else "caption"
    stored = read_samples(folders.layout.out, output_format)
    assert [one.row[name] == caption for one, caption in zip(stored, captions, strict=True)] == [True] * len(captions)
    for one, caption in zip(stored, captions, strict=True):
        if one.texts:
            assert one.texts[".txt"] == caption.encode()
            assert json.loads(one.texts[".json"])["caption"] == caption
    assert main(["verify", job.out, "--processes", "1"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_captions_of_ten_megabytes_reach_workers(
    pictures: Pictures, tmp_path: Path, folders: RunFolders, preloaded: PreloadedCommand
) -> None:
    """With every sample that is handed out."""
    inputs, _ = long_captions(pictures, tmp_path, "long-workers")
    run(list_job(inputs, list_folders(tmp_path / "first"), "parquet"))  # after which no image fails
    alone = list_folders(tmp_path / "alone")
    run(list_job(inputs, alone, "parquet"))
    command = [sys.executable, "-m", "datafetch", "get", *map(str, inputs), "--out", str(folders.layout.out)]
    command += ["--format", "parquet", "--allow-net", *LOOPBACK, "--workers", "2", "--processes", "2"]
    with Run(command, preloaded=preloaded) as running:
        assert running.end() == 0, running.messages()
    assert files_in(folders.layout.out) == files_in(alone.layout.out)


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_list_whose_images_all_fail_has_no_image(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is complete, and says why; a retry then makes what a run makes in which they arrive."""
    rows = [{"url": pictures.url("flaky", number, f"none-{output_format}")} for number in range(5)]
    inputs = [write_rows(tmp_path / "list.parquet", rows)]
    job = list_job(inputs, folders, output_format, shard_size=3)
    command = ["get", str(inputs[0]), "--out", job.out, "--format", output_format, "--shard-size", "3", "--no-reshard"]
    assert main([*command, "--allow-net", *LOOPBACK, "--retries", "0", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows_expected = 0 if output_format == ListFormat.PICKLE else 5
    assert summary["images"] == {"total": 5, "ok": 0, "failed": 5, "reused": 0, "by_kind": {"http_status": 5}}
    assert summary["samples"] == {"total": 5, "rows": rows_expected, "dropped": 5 - rows_expected}
    assert (summary["dataset"], summary["complete"], summary["shards"]) == ("list", True, 2 if rows_expected else 0)
    assert read_status(job.out).state is RunState.COMPLETE
    stored = read_samples(folders.layout.out, output_format)
    assert [one.row["error_message"] for one in stored] == ["HTTP 500"] * rows_expected
    assert not any(one.images for one in stored)
    files = files_in(folders.layout.out)
    assert run(job).requests == 0
    assert files_in(folders.layout.out) == files
    assert retry(job.out).totals.outcomes == {"ok": 5}
    healed = list_folders(tmp_path / "healed")
    run(list_job(inputs, healed, output_format, shard_size=3))
    assert files_in(folders.layout.out) == files_in(healed.layout.out)
    assert len(read_samples(healed.layout.out, output_format)) == 5


def test_files_without_rows_change_nothing(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """Others have their rows and their shards; a list of nothing else is refused before anything is made."""
    rows = [{"url": pictures.url("well", number, f"empty-{output_format}")} for number in range(3)]
    schema = pa.schema([("url", pa.string())])
    empty = tmp_path / "a.parquet"
    pq.write_table(schema.empty_table(), empty)
    full = write_rows(tmp_path / "b.parquet", rows)
    run(list_job([empty, full], folders, output_format))
    alone = list_folders(tmp_path / "alone")
    run(list_job([full], alone, output_format))
    assert files_in(folders.layout.out) == files_in(alone.layout.out)
    nothing = list_folders(tmp_path / "nothing")
    with pytest.raises(ManifestError, match=r"nothing to fetch from .*a\.parquet: it has no rows; give another list"):
        run(list_job([empty], nothing, output_format))
    assert not nothing.root.exists()


@pytest.mark.rotating
def test_rows_of_which_none_can_be_read_are_counted(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """Their shard has no files, and the others are as they were; nothing is left to do."""
    url = pictures.url("well", 0, f"bad-{output_format}")
    path = tmp_path / "list.jsonl"
    path.write_text("".join(f"{line}\n" for line in (json.dumps({"url": url}), "{", "[1", '{"url": ', "nothing")))
    job = list_job([path], folders, output_format, shard_size=2)
    report = run(job)
    assert (report.totals.ok, report.totals.notes["bad_lines"]) == (1, 4)
    assert {name[:5] for name in files_in(folders.layout.out)} == {"00000"}
    assert read_status(job.out).state is RunState.COMPLETE
    assert run(job).requests == 0
    assert main(["verify", job.out, "--processes", "1"]) == 0


@pytest.mark.rotating
def test_starting_over_leaves_nothing_of_another_format(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """Without ``--fresh`` another format or size of shards is refused; with it, all files are those of the new job."""
    rows = [{"url": pictures.url("well", number, f"fresh-{output_format}"), "text": "x"} for number in range(3)]
    inputs = [write_rows(tmp_path / "list.parquet", rows)]
    run(list_job(inputs, folders, output_format, shard_size=1))
    files = files_in(folders.layout.out)
    other = FORMATS[FORMATS.index(output_format) - 1]
    elsewhere = list_folders(tmp_path / other)
    run(list_job(inputs, elsewhere, other, shard_size=2))
    job = list_job(inputs, folders, other, shard_size=2)
    for refused in (job, replace(job, reuse=True)):  # images can be taken from pickles alone, and by them
        with pytest.raises(ConfigurationError, match="was started with different settings"):
            run(refused)
    assert files_in(folders.layout.out) == files
    run(replace(job, fresh=True))
    assert files_in(folders.layout.out) == files_in(elsewhere.layout.out)
    assert [path.name for path in listed(folders.layout.out)] == [path.name for path in listed(elsewhere.layout.out)]
    run(replace(list_job(inputs, folders, output_format, shard_size=1), fresh=True))
    assert files_in(folders.layout.out) == files


@pytest.mark.parametrize("output_format", ["webdataset", "parquet", "pickle"], indirect=True)
def test_a_run_of_another_format_does_not_harm_what_a_killed_one_left(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """It is refused; a shard that was complete, and not in its place yet, is there when the first job goes on."""
    inputs = [write_rows(tmp_path / "list.parquet", [{"url": pictures.url("well", 0, f"killed-{output_format}")}])]
    job, layout = list_job(inputs, folders, output_format), folders.layout
    run(job)
    files, ready = files_in(layout.out), layout.ready / "00000"
    ready.mkdir(parents=True)
    for path in listed(layout.out):
        path.rename(ready / path.name)
    layout.ledger("00000").rename(ready / "00000.ledger")
    for other in {*FORMATS} - {output_format}:
        with pytest.raises(ConfigurationError, match="was started with different settings"):
            run(list_job(inputs, folders, other))
    assert run(job).requests == 0
    assert files_in(layout.out) == files


def test_files_of_others_stay(pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders) -> None:
    """A run that starts over deletes none of them, and names one where they would be taken for shards."""
    inputs = [write_rows(tmp_path / "list.parquet", [{"url": pictures.url("well", 0, f"mine-{output_format}")}])]
    job = list_job(inputs, folders, output_format)
    run(job)
    mine = folders.layout.out / "mine.txt"
    mine.write_text("mine")
    files = files_in(folders.layout.out)
    if output_format == ListFormat.FILES:
        run(replace(job, fresh=True))
    else:
        with pytest.raises(ConfigurationError, match=r"mine\.txt was not written by this job"):
            run(replace(job, fresh=True))
    assert files_in(folders.layout.out) == files


@pytest.mark.parametrize("output_format", FORMATS_OF_LISTS, indirect=True)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_all_shards_have_the_same_columns(
    pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders, suffix: str
) -> None:
    """Of JSON, too, where the rows of one shard don't say what those of another have."""
    values = [None, 1, 0.5, None, 2]
    rows = [
        {"url": pictures.url("well", number, f"types-{output_format}{suffix}"), "x": value}
        for number, value in enumerate(values)
    ]
    path = write_rows(tmp_path / f"list{suffix}", rows)
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    run(list_job([path], folders, output_format, shard_size=1, keep_col=("x",)))
    shards = [pq.read_table(path) for path in sorted(folders.layout.out.glob("*.parquet"))]
    assert len({str(shard.schema.remove_metadata()) for shard in shards}) == 1
    assert [value for shard in shards for value in shard["x"].to_pylist()] == values


@pytest.mark.rotating
def test_a_file_that_is_lost_is_made_again(
    trial: ListTrial, pictures: Pictures, output_format: str, tmp_path: Path, folders: RunFolders
) -> None:
    """Of its shard alone, with the same bytes; what can be taken from its other files is not requested."""
    trial = replace(pictures.write_list(tmp_path / "list", f"lost-{output_format}"), output_format=output_format)
    run(trial.job(folders))
    files, before = files_in(folders.layout.out), trial.requests()
    lost = next(name for name in files if name.startswith("00001") and name.endswith((".parquet", ".pkl")))
    (folders.layout.out / lost).unlink()
    assert read_status(folders.layout.out).state is not RunState.COMPLETE
    run(trial.job(folders))
    assert files_in(folders.layout.out) == files
    requested = {url for url, number in trial.requests().items() if number != before[url]}
    of_shard = {sample.urls for sample in trial.samples if sample.key.startswith("00001")}
    failed = {sample.urls for sample in trial.samples if sample.key.startswith("00001") and sample.reasons != [None]}
    is_salvaged = output_format in {ListFormat.WEBDATASET, ListFormat.FILES}
    assert requested <= (failed if is_salvaged else of_shard)
