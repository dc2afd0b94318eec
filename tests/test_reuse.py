"""With ``--reuse`` a job takes the place of another one, and requests only what the earlier output does not have."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from in_process import THREADS, run, threads_with
from jobs import POLICY, coyo_job, faulty_urls, files_of, path_of, read_ledger, read_rows, requests_since
from killing import layout_of
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run, RunFolders, dying_at_a_step, read_lines, serve_trial
from test_image_files import publish
from test_kills import Victim

import datafetch
from datafetch import Encoding, ImageSpec, Job, Payload
from datafetch.cli.app import main
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.session import Backends
from datafetch.engine.set_aside import complete_set_aside, earlier_outputs, set_aside
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.model.report import Report
from datafetch.output.commit import Commit
from datafetch.store.job_file import read_job_file
from datafetch.store.layout import OutputLayout

Pictures = tuple[Path, list[str]]
KEPT = ImageSpec(short_side_px=48, encode=Encoding.ORIGINAL)
IMAGES = 60
FAULTS = {2: "missing", 7: "broken", 11: "html", 23: "truncated", 40: "missing"}
MAY_PASS = [7, 23]  # without a further attempt, nobody knows whether an image is truncated on the server


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of three files, with images of all formats, some of which fail."""
    urls = faulty_urls(own_origin, small_pictures[1], FAULTS, IMAGES, tmp_path.name)
    return write_coyo_source(tmp_path / "source", urls, files=3)


@pytest.fixture
def job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job that fetches this manifest."""
    return coyo_job(source, tmp_path / "data" / "out")


@dataclass(frozen=True, slots=True)
class Reused:
    """What a run with ``--reuse`` did.

    Attributes:
        report: Its report.
        requested: The paths that it requested, in order.
    """

    report: Report
    requested: list[str]


def reuse(first: Job, then: Job, origin: Origin) -> Reused:
    """Run a job on the output of another one, and check that it leaves what it would have left by itself."""
    run(first)
    by_itself = replace(then, out=f"{then.out}-by-itself", fresh=True)
    expected = run(by_itself)
    before = origin.requests()
    report = run(replace(then, reuse=True))
    requested = sorted(requests_since(origin, before))
    check_same(then, by_itself)
    assert (report.totals.images, report.totals.rows) == (expected.totals.images, expected.totals.rows)
    assert report.reused + len(requested) >= report.totals.ok
    assert not OutputLayout(Path(then.out)).previous.exists()
    again = origin.requests()
    assert run(then).requests == 0
    assert origin.requests() == again
    return Reused(report, requested)


def check_same(job: Job, other: Job) -> None:
    """Check that two outputs have the same files and, but for how they were requested, the same ledgers.

    Which images of a lost document were requested depends on which failure came first, so these are not compared.
    """
    assert all_files(job) == all_files(other)
    lines = [lines_of(one) for one in (job, other)]
    lost = {(line["shard"], line["sample"]) for part in lines for line in part if line["is_skipped"]}
    compared = [[line for line in part if (line["shard"], line["sample"]) not in lost] for part in lines]
    assert compared[0] == compared[1]


def all_files(job: Job) -> dict[str, bytes]:
    """Return all files of an output."""
    out = Path(job.out)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def lines_of(job: Job) -> list[dict[str, Any]]:
    """Return the ledger without what says how often and when images were requested."""
    unstable = {"attempts", "fetch_ms"}
    return [{name: value for name, value in line.items() if name not in unstable} for line in read_ledger(job)]


def paths(source: CoyoSource, positions: Any) -> list[str]:
    """Return the paths of some of the images of a manifest, as the server counts them."""
    urls = list(source.urls.values())
    return sorted(path_of(urls[position]) for position in positions)


@pytest.mark.rotating
@pytest.mark.parametrize("world_size", [None, 2], ids=["as cut", "resharded"])
def test_a_larger_limit_requests_only_what_is_beyond(
    job: Job, source: CoyoSource, own_origin: Origin, world_size: int | None
) -> None:
    """What failed for good is not requested either; a failure that may pass is. A smaller one requests nothing else."""
    job = replace(job, world_size=world_size)
    done = reuse(replace(job, limit=30), job, own_origin)
    assert done.requested == paths(source, [*MAY_PASS, *range(30, IMAGES)])
    assert done.report.reused == 30 - 4
    smaller = reuse(replace(job, fresh=True), replace(job, limit=10, world_size=None), own_origin)
    assert smaller.requested == paths(source, MAY_PASS[:1])


@pytest.mark.rotating
def test_another_id_list_requests_only_its_other_ids(
    tmp_path: Path, job: Job, source: CoyoSource, own_origin: Origin
) -> None:
    """The images of both lists are taken, whatever the place of their rows; or the published selection's."""
    for name, positions in (("one", range(40)), ("other", range(20, 60))):
        ids = list(source.urls)
        (tmp_path / name).write_text("".join(f"{ids[position]}\n" for position in positions))
    first, then = replace(job, ids=str(tmp_path / "one"), world_size=2), replace(job, ids=str(tmp_path / "other"))
    done = reuse(first, then, own_origin)
    assert done.requested == paths(source, [MAY_PASS[1], *range(40, 60)])
    assert [row["id"] for row in read_rows(then)] == [
        number for position, number in enumerate(source.urls) if position >= 20 and position not in FAULTS
    ]


@pytest.mark.rotating
def test_images_that_were_kept_are_encoded_again(job: Job, source: CoyoSource, own_origin: Origin) -> None:
    """With another short side the original bytes are read from the rows; images that were encoded are requested."""
    first = replace(job, image=KEPT, payload=Payload.BYTES, world_size=2)
    run(first)
    kept = {line["url"] for line in read_ledger(first) if line["is_original"]}
    assert 5 < len(kept) < IMAGES - len(FAULTS)
    then = replace(job, image=replace(KEPT, short_side_px=30), world_size=2)
    done = reuse(first, then, own_origin)
    urls = list(source.urls.values())
    encoded = [number for number in range(IMAGES) if number not in FAULTS and urls[number] not in kept]
    assert done.requested == paths(source, [*MAY_PASS, *encoded])
    assert done.report.reused == len(kept)


@pytest.mark.rotating
def test_other_rows_of_the_same_images_request_nothing(job: Job, source: CoyoSource, own_origin: Origin) -> None:
    """With another payload, or without equal shards again, nothing but failures is requested."""
    first = replace(job, world_size=2, payload=Payload.BYTES)
    assert reuse(first, replace(first, payload=Payload.BASE64), own_origin).requested == paths(source, MAY_PASS)
    by_itself = replace(first, out=f"{job.out}-by-itself", payload=Payload.BASE64, world_size=None, fresh=True)
    run(by_itself)
    with pytest.raises(
        ConfigurationError, match=r"--no-reshard can't bring back .* start over with --reuse or --fresh"
    ):
        run(replace(by_itself, out=job.out, fresh=False))
    run(replace(by_itself, out=job.out, fresh=False, reuse=True))
    check_same(job, by_itself)


@dataclass(frozen=True, slots=True)
class Documents:
    """A file of documents of three images.

    Attributes:
        job: The job that fetches it, and takes documents with two images.
        urls: The URLs of the images of each document.
    """

    job: Job
    urls: list[list[str]]


@pytest.fixture
def documents(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> Documents:
    """Twelve documents: one lacks an image for good, one lacks two, of one an image may pass, others are complete."""
    faults = {(3, 1): "missing", (5, 0): "missing", (5, 2): "missing", (7, 2): "broken"}
    names = small_pictures[1]
    urls = [
        [
            own_origin.url(faults.get((number, image), "well"), names[number * 3 + image], tmp_path.name)
            for image in range(3)
        ]
        for number in range(12)
    ]
    urls[10][1] = urls[0][2]
    records = [
        {
            "text_list": ["a", "絵", "c"],
            "similarity_matrix": [[0.1, float(number), 0.3]] * 3,
            "image_info": [
                {"image_name": f"{image}.jpg", "raw_url": url, "matched_text_index": image, "matched_sim": 0.3}
                for image, url in enumerate(urls[number])
            ],
            "url": "http://e.org/",
        }
        for number in range(12)
    ]
    folder = tmp_path / "documents"
    folder.mkdir()
    for shard in range(2):
        lines = (json.dumps(record) for record in records[shard * 6 : shard * 6 + 6])
        (folder / f"docs_shard_{shard}_v3.jsonl").write_text("\n".join(lines))
    options = Mmc4CoreOptions(keep_at_least=2)
    out = str(tmp_path / "data" / "documents")
    return Documents(
        Job("mmc4-core", str(folder), out, fetch=POLICY, processes=1, world_size=None, options=options), urls
    )


@pytest.mark.rotating
@pytest.mark.parametrize("world_size", [None, 2], ids=["as cut", "resharded"])
def test_documents_of_another_number_of_images(
    documents: Documents, own_origin: Origin, world_size: int | None
) -> None:
    """Images of rows are taken, and of lost documents those that were kept for a retry."""
    job = replace(documents.job, world_size=world_size)
    complete = replace(job, options=Mmc4CoreOptions())
    urls = documents.urls

    def path(number: int, image: int) -> str:
        return "/" + urls[number][image].split("/", 3)[3]

    stricter = reuse(job, complete, own_origin)
    # Of the sixth nothing was kept, since it was lost for good; it is again, and so nothing of it is requested.
    assert stricter.requested == [path(7, 2)]
    laxer = reuse(replace(complete, fresh=True), job, own_origin)
    assert path(7, 2) in laxer.requested
    assert set(laxer.requested) <= {path(number, image) for number in (3, 5, 7) for image in range(3)}
    assert path(3, 1) not in laxer.requested  # the only failure of its document, and for good


def test_images_as_files_are_moved_and_taken(tmp_path: Path, own_origin: Origin, pictures: Pictures) -> None:
    """Files of an earlier list's images become those of the new one; files of others stay."""
    pairs = publish(tmp_path, own_origin, pictures, {2: "missing", 5: "html"})
    run(pairs.job(limit=6))
    (pairs.out / "a" / "third_party.jpg").write_bytes(b"third-party")
    before = own_origin.requests()
    report = run(pairs.job(limit=10, reuse=True))
    assert pairs.files() == pairs.expected([0, 1, 3, 4, 6, 7, 8, 9]) | {"a/third_party.jpg": b"third-party"}
    assert sum(own_origin.requests().values()) - sum(before.values()) == report.requests == 4
    assert [record["id"] for record in json.loads(pairs.trainers.read_text())] == [
        pairs.records[number]["id"] for number in (0, 1, 3, 4, 6, 7, 8, 9)
    ]
    assert run(pairs.job(limit=3, reuse=True)).requests == 0
    assert pairs.files() == pairs.expected([0, 1]) | {"a/third_party.jpg": b"third-party"}


def failing_commits(shards: int) -> Backends:
    """Return backends on a disk that is full as soon as this number of shards is to be committed."""
    commits, is_full = 0, asyncio.Event()

    async def commit(_: Commit) -> NoReturn:
        nonlocal commits
        commits += 1
        if commits == shards:
            is_full.set()
        await is_full.wait()
        raise ResourceError("the disk is full")

    return threads_with(commit)


def stop(job: Job, shards: int) -> set[str]:
    """Run a job until its last shard would be committed; return the URLs whose images are in its spools."""
    with pytest.raises(ResourceError, match="the disk is full"):
        datafetch.run(job, backends=failing_commits(shards))
    folder = Path(job.scratch) if job.scratch else OutputLayout(Path(job.out)).all_spools
    lines = [line for path in folder.rglob("*.spool") for line in read_lines(path)]
    return {line.url for line in lines if line.outcome == "ok"}


@pytest.mark.rotating
def test_what_interrupted_runs_have_is_taken_too(
    tmp_path: Path, job: Job, source: CoyoSource, own_origin: Origin
) -> None:
    """Nothing is lost when settings change in the middle, nor when they change again; in the end all of it is gone."""
    scratch = tmp_path / "scratch"
    stored = stop(replace(job, scratch=str(scratch), limit=30), shards=2)
    stored |= stop(replace(job, payload=Payload.BYTES, limit=45, reuse=True), shards=3)
    assert 45 - len(FAULTS) == len(stored)
    before = own_origin.requests()
    report = run(replace(job, limit=50, world_size=2, reuse=True))
    requested = requests_since(own_origin, before)
    urls = list(source.urls.values())[:50]
    assert requested.keys().isdisjoint({path_of(url) for url in stored})
    assert report.reused == len(stored & {*urls})
    by_itself = replace(job, out=f"{job.out}-by-itself", limit=50, world_size=2)
    run(by_itself)
    check_same(job, by_itself)
    assert not OutputLayout(Path(job.out)).previous.exists()
    assert not [
        path
        for folder in (scratch, tmp_path / "data")
        for path in folder.rglob("*.spool")
        if "failed" not in path.parts
    ]


def test_the_refusal_says_what_can_be_reused(job: Job) -> None:
    """Nothing is moved where nothing can be reused, or without the option; it is no way back from --fresh."""
    run(job)
    before = files_of(job)
    with pytest.raises(ConfigurationError) as refused:
        run(replace(job, limit=40))
    assert str(refused.value) == (
        f"{job.out} was started with different settings (--limit: not set, now 40); use the same settings, choose "
        "another folder, or start over: with --reuse, which takes from it what it can and fetches the rest, or with "
        "--fresh, which fetches all 60 images again"
    )
    for wanted in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"--fresh, which fetches all 60 images again \(nothing can be reused"
        ):
            run(replace(job, image=ImageSpec(short_side_px=100), reuse=wanted))
    with pytest.raises(ConfigurationError, match="give one of them"):
        replace(job, fresh=True, reuse=True)
    assert files_of(job) == before
    assert run(replace(job, reuse=True)).requests == 0


def test_other_permissions_take_only_what_needed_none(job: Job) -> None:
    """Every image here needs --allow-net, so with another list of networks none is taken."""
    run(replace(job, limit=10))
    wider = replace(job, limit=20, reuse=True, fetch=replace(POLICY, allow_net=("127.0.0.0/8", "10.0.0.0/8")))
    assert run(wider).reused == 0


@pytest.mark.rotating
def test_what_is_damaged_is_requested_again(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """A shard that is gone or cut, or a record that is damaged, costs only its images."""
    first = replace(job, limit=50)
    run(first)
    rows = sorted(Path(job.out).glob("*.pkl"))
    rows[0].unlink()
    content = rows[1].read_bytes()
    rows[1].write_bytes(content[: len(content) // 2])
    report = run(replace(job, reuse=True))
    assert report.reused == 10 - 1  # of the third shard, where one failed
    by_itself = replace(job, out=f"{job.out}-by-itself")
    run(by_itself)
    check_same(job, by_itself)
    equal = replace(job, world_size=2)
    run(equal)
    OutputLayout(Path(job.out)).reshard_record.write_bytes(b"{}")
    assert run(replace(equal, limit=50, reuse=True)).reused == 0
    assert "can be read" in caplog.text


def test_fresh_deletes_what_was_set_aside(job: Job) -> None:
    """Whether the run that takes from it was interrupted or not."""
    run(replace(job, limit=10))
    stop(replace(job, limit=20, reuse=True), shards=1)
    assert OutputLayout(Path(job.out)).previous.exists()
    assert run(replace(job, limit=5, fresh=True)).requests == 5
    assert not OutputLayout(Path(job.out)).previous.exists()


def content_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.rotating
@pytest.mark.parametrize("kind", ["resharded", "files"])
def test_an_output_is_set_aside_whole_or_not_at_all(
    tmp_path: Path, job: Job, own_origin: Origin, pictures: Pictures, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed before any file operation, the next process leaves it as it was, or with all of its files moved.

    Until then the status of the output is that of its run, or says what to do.
    """
    prepared = tmp_path / "prepared"
    out = prepared / "out"
    if kind == "files":
        (tmp_path / "pairs").mkdir()
        run(publish(tmp_path / "pairs", own_origin, pictures, {2: "missing"}).job(out=str(out)))
        (out / "third_party.jpg").write_bytes(b"third-party")
    else:
        run(replace(job, out=str(out), world_size=2, limit=30))
    written, before = all_files(replace(job, out=str(out))), content_of(prepared)
    written.pop("third_party.jpg", None)
    folder = tmp_path / "killed"
    task = [sys.executable, str(Path(__file__).with_name("killing.py")), "set-aside", str(prepared), str(folder), "1"]
    subprocess.run(task, check=True, timeout=100)
    seen = set()
    capfd.readouterr()
    for killed in sorted(folder.iterdir(), key=lambda one: int(one.name)):
        layout = layout_of(killed / "out")
        is_job_moved = not layout.job.exists()
        assert main(["status", str(layout.out)]) == (2 if is_job_moved else 0)
        assert ("is being set aside for a run with --reuse" in capfd.readouterr().err) is is_job_moved
        complete_set_aside(layout)
        now = content_of(killed)
        seen.add(now == before)
        if now == before:
            continue
        assert sorted(now.values()) == sorted(before.values())
        (earlier,) = earlier_outputs(layout)
        assert content_of(earlier.layout.out) == written
        assert earlier.layout.ledgers.is_dir()
        assert not layout.job.exists()
        assert not list(layout.previous.rglob("moving"))
        assert {path.name for path in layout.out.rglob("*") if path.is_file()} <= {"third_party.jpg"}
    assert seen == {True, False}


def test_what_a_killed_run_had_set_aside_is_as_safe_as_in_its_place(job: Job) -> None:
    """No other job takes the place without --reuse or --fresh, for in the end it would delete what was set aside."""
    run(job)
    layout = layout_of(Path(job.out))
    before = read_job_file(layout)
    assert before is not None
    set_aside(layout, before)
    set_aside_now = content_of(layout.previous)
    for other in (
        replace(job, limit=30),
        replace(job, image=KEPT),
        replace(job, image=KEPT, reuse=True),  # of this one's images none can be taken
    ):
        with pytest.raises(ConfigurationError, match="was started with different settings"):
            run(other)
        assert content_of(layout.previous) == set_aside_now
    good = 30 - sum(position < 30 for position in FAULTS)
    assert run(replace(job, limit=30, reuse=True)).reused == good
    assert not layout.previous.exists()


def test_several_processes_complete_what_was_begun(job: Job, own_origin: Origin) -> None:
    """A job begun with --reuse may be completed by ``fetch_shards`` and ``finish``; then nothing earlier is left."""
    run(replace(job, limit=30))
    stop(replace(job, reuse=True), shards=3)
    before = own_origin.requests()
    for shard in datafetch.shard_names(job):
        datafetch.fetch_shards(job, [shard], backends=THREADS)
    assert OutputLayout(Path(job.out)).previous.exists()
    assert datafetch.finish(job).totals.images == IMAGES
    assert own_origin.requests() == before
    assert not OutputLayout(Path(job.out)).previous.exists()
    with pytest.raises(ConfigurationError, match="can't start over"):
        datafetch.fetch_shards(replace(job, reuse=True))


@pytest.mark.rotating
def test_images_of_retries_are_taken(tmp_path: Path, job: Job, own_origin: Origin, small_pictures: Pictures) -> None:
    """Those of a complete retry, and those that an interrupted one has in its spools."""
    faults = {4: "flaky", 17: "flaky", 33: "flaky"}
    urls = faulty_urls(own_origin, small_pictures[1], faults, 40, tmp_path.name)
    source = write_coyo_source(tmp_path / "flaky", urls, files=2)
    job = replace(job, source=str(source.folder), ids=str(source.ids), world_size=2)
    run(job)

    with pytest.raises(ResourceError, match="the disk is full"):
        datafetch.retry(job.out, backends=failing_commits(2))
    before = own_origin.requests()
    second = replace(job, payload=Payload.BYTES)
    report = run(replace(second, reuse=True))
    requested = requests_since(own_origin, before)
    assert report.totals.ok == 40
    assert all("/flaky/" in path for path in requested)
    assert report.reused == 40 - len(requested) >= 37 + 1
    before = own_origin.requests()
    assert run(replace(job, reuse=True)).reused == 40
    by_itself = replace(job, out=f"{job.out}-by-itself")
    assert own_origin.requests() == before
    run(by_itself)
    check_same(job, by_itself)


OPTIONS = ("--allow-net", "127.0.0.0/8", "--connections", "8", "--processes", "1", "--retries", "0")


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_the_command_names_the_option_and_then_takes_it(
    tmp_path: Path, source: CoyoSource, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The refusal is one line, exit 2. The disk line says that both outputs lie there, the summary what was reused."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "一覧" / "own.txt"
    own.parent.mkdir()
    own.write_text("".join(f"{number}\n" for number in [*source.urls][:20]))
    command = ["prepare", "coyo", "--source", str(source.folder), "--root", "root", "--no-reshard", *OPTIONS]
    assert main([*command, "--limit", "10"]) == 0
    lines = read_ledger(Job("coyo", "", str(tmp_path / "root" / "coyo-700m" / "pkl03-split")))
    wanted = [line for line in lines if line["url"] in [*source.urls.values()][:20] and "/broken/" not in line["url"]]
    capfd.readouterr()
    larger = [*command, "--ids", "一覧/own.txt"]
    assert main(larger) == 2
    (refusal,) = capfd.readouterr().err.splitlines()
    assert "(--ids: none before, now 一覧/own.txt; --limit: 10, now not set)" in refusal
    assert (
        "--reuse, which takes from it what it can and fetches the rest, or with --fresh, which fetches all 10"
        in refusal
    )
    assert main([*larger, "--reuse", "--json"]) == 0
    output = capfd.readouterr()
    assert "(the earlier output stays until then)" in output.err
    assert "the earlier output has outcomes of 10 images; what this run can use is not requested" in output.err
    summary = json.loads(output.out)
    assert 0 < summary["images"]["reused"] == sum(line["outcome"] == "ok" for line in wanted)
    assert summary["requests"] == 20 - len(wanted)


@pytest.mark.rotating
@pytest.mark.slow
def test_a_run_killed_at_any_step_keeps_what_there_is(preloaded: PreloadedCommand, tmp_path: Path) -> None:
    """Whether it is moving the earlier output, reading it or deleting it; and no stored image is requested."""
    with serve_trial(tmp_path) as trial:
        folders = RunFolders(tmp_path / "root")
        command = trial.command(folders)
        smaller = [*command, "--limit", str(IMAGES * 2)]
        subprocess.run(smaller, check=True, capture_output=True, timeout=PATIENCE_S)
        before, stored = trial.requests(), folders.stored_urls()
        assert len(stored) == IMAGES * 2
        rng, steps, kills, code = random.Random(1), 0, 0, -9
        while code != 0:
            steps += rng.randrange(3, 25)
            environment = dying_at_a_step(Victim.PARENT, steps, folders.root)
            with Run([*command, "--reuse"], environment, preloaded) as stopped:
                code = stopped.end()
                assert code in (0, -9), stopped.messages()
            kills += code != 0
        assert kills >= 5
        trial.check_complete(folders)
        requests = trial.requests()
        assert not {url for url in stored if requests[url] != before[url]} - {
            url for url in stored if "/broken/" in url
        }
        assert not folders.layout.previous.exists()
