"""The whole way from a manifest, over real HTTP, to the files that the trainer loads."""

import asyncio
import base64
import errno
import hashlib
import logging
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise, product
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bodies import recipe, saved
from conftest import LOOPBACK
from in_process import fetch_dataset, retry, run
from jobs import coyo_job, files_of, read_ledger, read_rows
from PIL import Image
from pool_codecs import without_wall_clock

import datafetch
from datafetch import Encoding, Job, Payload, Pixels, Report, Resize
from datafetch.datasets.mmc4 import Mmc4CoreOptions
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.engine.differences import describe_differences
from datafetch.engine.job import hash_of, read_job, settings_of
from datafetch.engine.session import Backends
from datafetch.errors import ConfigurationError, ConservationError, ManifestError, ResourceError
from datafetch.fetch import BodyBudget, Fetcher, FetchPolicy, OptOut
from datafetch.model.report import ReshardedEpoch
from datafetch.model.statistics import Statistics
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_reader import read_samples
from datafetch.store.shard_summary import read_shard_counts
from datafetch.store.spool_writer import write_spool
from datafetch.transcode import RESIZER, ImageSpec, Transcoder

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=64, per_host=64)
VILA = ImageSpec(short_side_px=336)
Pictures = tuple[Path, list[str]]
_numbers = count()


@pytest.fixture
def urls(origin: Origin, small_pictures: Pictures) -> list[str]:
    """URLs of all small pictures, which no other test requests."""
    run_number = next(_numbers)
    return [origin.url("well", name, f"{run_number}-{position}") for position, name in enumerate(small_pictures[1])]


@pytest.fixture
def source(tmp_path: Path, urls: list[str]) -> CoyoSource:
    """A manifest of two files that contain these URLs."""
    return write_coyo_source(tmp_path / "source", urls, files=2, rows=500)


@pytest.fixture
def job(tmp_path: Path, source: CoyoSource) -> Job:
    """A job that fetches this manifest."""
    return coyo_job(source, tmp_path / "data" / "out", fetch=POLICY, processes=2)


def test_rows_are_in_manifest_order_with_the_recipes_bytes(
    tmp_path: Path, origin: Origin, pictures: Pictures, job: Job, source: CoyoSource
) -> None:
    """Over 200 images of all formats come out in manifest order, each as the recipe's snippet makes it."""
    folder, names = pictures
    urls = [origin.url("well", names[number % len(names)], f"bytes-{number}") for number in range(220)]
    source = write_coyo_source(tmp_path / "more", urls, files=3, rows=1000)
    report = datafetch.run(replace(job, source=str(source.folder), ids=str(source.ids)))
    rows = read_rows(job)
    assert [row["id"] for row in rows] == list(source.urls)
    assert [row["url"] for row in rows] == list(source.urls.values())
    for row in rows:
        body = (folder / row["url"].rsplit("/", 1)[1].partition("?")[0]).read_bytes()
        assert base64.b64decode(row["image"]) == recipe(body, 336)
        assert sorted(row) == ["clip_sim", "id", "image", "text", "url"]
    assert (report.totals.samples, report.totals.rows, report.shards) == (220, 220, 3)
    assert len({Path(name).suffix for name in names}) == 4


def test_rows_may_hold_bytes(job: Job, pictures: Pictures) -> None:
    """With this payload a row has the JPEG itself as ``rawbytes``, which the trainer's loader accepts as well."""
    report = run(replace(job, payload=Payload.BYTES))
    rows = read_rows(job)
    for row in rows:
        body = (pictures[0] / row["url"].rsplit("/", 1)[1].partition("?")[0]).read_bytes()
        assert row["rawbytes"] == recipe(body, 336)
        assert sorted(row) == ["clip_sim", "id", "rawbytes", "text", "url"]
    assert len(rows) == report.totals.rows == 66


@pytest.mark.rotating
def test_a_perfect_server_and_a_thousand_connections(tmp_path: Path) -> None:
    """1,500 images through 1,024 connections: none fails, and all rows are in manifest order."""
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.jpg").write_bytes(saved(paint((48, 36), number), "JPEG"))
    with Origin(folder) as origin:
        urls = [origin.url("well", f"{number % 50}.jpg", number) for number in range(1500)]
        source = write_coyo_source(tmp_path / "source", urls, files=2)
        job = Job(
            dataset="coyo",
            source=str(source.folder),
            ids=str(source.ids),
            out=str(tmp_path / "out"),
            fetch=FetchPolicy(connections=1024, per_host=1024, allow_net=LOOPBACK, retries=0),
            processes=2,
            world_size=None,
        )
        report = datafetch.run(job)
        requests = origin.requests()
    assert report.totals.outcomes == {"ok": 1500}
    assert report.requests == 1500
    assert set(requests.values()) == {1}
    assert [row["id"] for row in read_rows(job)] == list(source.urls)


def test_every_image_has_one_outcome(tmp_path: Path, origin: Origin, pictures: Pictures, job: Job) -> None:
    """With every misbehaviour in the mix all counts agree, and the ledger has each reason."""
    behaviours = ["well", "flaky", "slow", "moved", "missing", "broken", "truncated", "cut", "reset", "html", "empty"]
    jpegs = [name for name in pictures[1] if name.endswith(".jpg")]
    urls = [
        origin.url(behaviour, jpegs[number], f"one-outcome-{number}") for number in range(6) for behaviour in behaviours
    ]
    source = write_coyo_source(tmp_path / "mix", urls)
    job = replace(job, source=str(source.folder), ids=str(source.ids))
    report = run(job)
    ledger = read_ledger(job)
    assert [line["url"] for line in ledger] == urls
    assert [line["sample"] for line in ledger] == list(range(len(urls)))
    assert [line["key"] for line in ledger] == [str(number) for number in source.urls]
    seen = {(line["url"].split("/")[3], line["outcome"], line["attempts"]) for line in ledger}
    assert seen == {
        ("well", "ok", 1),
        ("flaky", "ok", 2),
        ("slow", "ok", 1),
        ("moved", "ok", 1),
        ("missing", "http_status", 1),
        ("broken", "http_status", 3),
        ("truncated", "corrupt", 2),
        ("cut", "disconnected", 3),
        ("reset", "disconnected", 3),
        ("html", "not_an_image", 1),
        ("empty", "empty", 3),
    }
    assert report.totals.ok == 4 * 6
    assert report.totals.outcomes == Counter(line["outcome"] for line in ledger)
    assert report.requests == sum(line["attempts"] for line in ledger)
    assert len(read_rows(job)) == report.totals.rows == report.totals.ok


def test_a_second_run_requests_nothing(job: Job, origin: Origin) -> None:
    """Published shards are neither fetched nor written again, and the report counts them."""
    first = run(job)
    before, requests = files_of(job), origin.requests()
    second = run(job)
    assert origin.requests() == requests
    assert files_of(job) == before
    assert second.totals == first.totals
    assert second.id_list_result == first.id_list_result
    assert (second.requests, second.reused, second.written_bytes) == (0, first.totals.ok, 0)
    assert second.images_per_s == 0


def test_a_shard_with_a_missing_file_is_made_again(job: Job) -> None:
    """The ledger alone does not make a shard published."""
    run(job)
    before = files_of(job)
    (Path(job.out) / "part-00001.pkl").unlink()
    report = run(job)
    assert files_of(job) == before
    assert 0 < report.reused < report.totals.ok


@pytest.mark.rotating
def test_processes_and_connections_do_not_change_a_byte(tmp_path: Path, job: Job) -> None:
    """The same outcomes give the same files, however many processes and connections there are."""
    datafetch.run(job)
    other = replace(job, out=str(tmp_path / "other"), processes=1, fetch=replace(POLICY, connections=3))
    datafetch.run(other)
    assert files_of(other) == files_of(job)


async def test_a_job_runs_on_the_callers_loop(job: Job) -> None:
    """The library works inside a running loop, and gives an observer its statistics."""
    seen: list[Statistics] = []

    async def watch(take_statistics: Any) -> None:
        while True:
            seen.append(take_statistics())
            await asyncio.sleep(0.01)

    report = await fetch_dataset(job, [watch])
    assert report.totals.ok == 66
    assert seen[-1].expected_images == 66  # known once the ids of all files are, of which 5 are in none
    assert all(before.ok <= after.ok for before, after in pairwise(seen))


def test_a_limit_takes_the_first_samples(job: Job, source: CoyoSource) -> None:
    """The limit counts across shards, and a second run takes the same samples."""
    limited = replace(job, limit=40)
    report = run(limited)
    assert [row["id"] for row in read_rows(limited)] == list(source.urls)[:40]
    assert report.id_list_result is not None
    assert report.id_list_result.not_found is None
    assert run(limited).totals == report.totals


def test_without_ids_the_published_selection_is_made(job: Job, source: CoyoSource) -> None:
    """The dataset's own rule selects rows, and the report says nothing about ids."""
    report = run(replace(job, ids=None))
    assert [row["id"] for row in read_rows(job)] == list(source.urls)
    assert report.id_list_result is None
    assert "ids" not in report.summary()


def test_the_jobs_image_spec_is_applied(job: Job) -> None:
    """With another short side the images have another size, which the ledger records."""
    run(replace(job, image=ImageSpec(short_side_px=30)))
    assert {min(line["width"], line["height"]) for line in read_ledger(job)} == {30}


def test_changed_columns_of_a_list_are_named_by_their_options() -> None:
    """Each option once, with the columns of all files; a change of nothing but combinations is one, too."""
    columns: dict[str, Any] = {"url": "URL", "caption": "TEXT", "keep": [], "id": None, "sha256": None, "md5": None}
    before = {"columns": [columns], "where": [], "output_format": "webdataset", "input_formats": ["csv"]}
    changed = [columns | {"keep": ["width"], "caption": None, "id": "n"}, columns | {"keep": ["width", "height"]}]
    now = {"columns": changed, "where": ["n > 1", "n < 9"], "output_format": "files", "input_formats": ["csv", "tsv"]}
    assert describe_differences(before, now, {}, {}) == (
        "--keep-col: not set, now width, height; --id-col: not set, now n; --input-format: csv, now csv, tsv; "
        "--format: webdataset, now files; --where: not set, now n > 1, n < 9"
    )
    mixed = before | {"columns": [columns | {"url": url, "id": one} for url, one in (("a", "c"), ("b", "d"))]}
    others = before | {"columns": [columns | {"url": url, "id": one} for url, one in (("a", "d"), ("b", "c"))]}
    assert "id-col: c, d, now d, c" in describe_differences(mixed, others, {}, {})
    assert describe_differences(before, before | {"columns": [columns, columns]}, {}, {}) == (
        "the files have their columns in other combinations"
    )
    assert describe_differences(before, before | {"columns": "\nx"}, {}, {}).startswith("--url-col: URL, now not set")


_OTHER_JOBS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"limit": 10}, "--limit: not set, now 10"),
    ({"ids": None}, r"--ids: /.*/source/ids\.txt before, now none"),
    ({"image": ImageSpec(short_side_px=100)}, "--short-side: 336, now 100"),
    ({"image": replace(VILA, quality=90)}, "--quality: 75, now 90"),
    ({"image": replace(VILA, pixels=Pixels.CORRECT)}, "--pixels: recipe, now correct"),
    ({"image": replace(VILA, resize=Resize.FAST)}, "--resize: exact, now fast"),
    ({"image": replace(VILA, encode=Encoding.ORIGINAL)}, "--encode: recipe, now original"),
    ({"payload": Payload.BYTES}, "payload: base64, now bytes"),
)


def test_another_job_on_the_same_output_is_refused(job: Job) -> None:
    """Rows of two kinds never end up in one folder. The error names the difference, and no file is changed."""
    run(job)
    before = files_of(job)
    for change, message in _OTHER_JOBS:
        with pytest.raises(ConfigurationError, match=message):
            run(replace(job, **change))
        assert files_of(job) == before


def test_what_follows_from_another_difference_is_not_described() -> None:
    """Without a short side nothing is resized, so that nobody gave the way in which it is."""
    none, some = {"short_side": None, "resize": None}, {"short_side": 336, "resize": "exact"}
    assert describe_differences(none, some, {}, {}) == "--short-side: not set, now 336"
    assert describe_differences(some, none, {}, {}) == "--short-side: 336, now not set"


@pytest.mark.rotating
def test_all_differences_are_described_and_what_starting_over_costs(
    tmp_path: Path, job: Job, source: CoyoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are named as they were given, not by their hash; of manifest files only those that differ are named."""
    own = tmp_path / "data" / "自分の一覧.txt"
    own.parent.mkdir()
    own.write_text("".join(f"{number}\n" for number in [*source.urls][:50]))
    monkeypatch.chdir(tmp_path)
    run(replace(job, ids=None))
    with pytest.raises(ConfigurationError) as refused:
        run(replace(job, ids="data/自分の一覧.txt", limit=40, image=ImageSpec(short_side_px=100)))
    assert str(refused.value) == (
        f"{job.out} was started with different settings (--ids: none before, now data/自分の一覧.txt; "
        "--limit: not set, now 40; --short-side: 336, now 100); use the same settings, choose another folder, or "
        "start over with --fresh, which fetches all 66 images again (nothing can be reused: its images were encoded by "
        "other settings)"
    )
    listed = replace(job, ids=str(own))
    run(replace(listed, fresh=True))
    own.write_text("".join(f"{number}\n" for number in [*source.urls][:30]))
    with pytest.raises(ConfigurationError, match=r"\(--ids: data/自分の一覧\.txt, whose content has changed\)"):
        run(listed)
    run(replace(listed, fresh=True))
    last = max(source.folder.glob("*.parquet"))
    last.unlink()
    with pytest.raises(ConfigurationError, match=rf"\(manifest files that have changed: {last.name} is missing\)"):
        run(listed)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (VILA, replace(VILA, resize=Resize.EXACT)),
        (replace(VILA, pixels=Pixels.CORRECT), replace(VILA, pixels=Pixels.CORRECT, resize=Resize.EXACT)),
        (ImageSpec(), ImageSpec(resize=Resize.FAST)),
    ],
)
def test_giving_an_option_its_default_value_is_the_same_job(job: Job, first: ImageSpec, again: ImageSpec) -> None:
    """What counts is how images are resized, not whether the option was given; without resizing it has no effect."""
    run(replace(job, image=first))
    assert run(replace(job, image=again)).requests == 0


_PERMISSIVE: tuple[dict[str, Any], ...] = (
    {"fetch": replace(POLICY, insecure=True)},
    {"fetch": replace(POLICY, opt_out=OptOut.IGNORE)},
    {"fetch": replace(POLICY, allow_net=("127.0.0.0/8", "10.0.0.0/8"))},
    {"fetch": replace(POLICY, max_body_bytes=1 << 30)},
    {"image": replace(VILA, max_pixels=200_000_000)},
)


@pytest.mark.rotating
def test_permissions_may_change_between_runs(job: Job) -> None:
    """They can add rows but change none, so a run resumes with a permission, and without it again."""
    run(job)
    before = files_of(job)
    for change in _PERMISSIVE:
        for again in (replace(job, **change), job):
            assert run(again).requests == 0, change
    assert files_of(job) == before


def test_a_run_of_an_earlier_version_resumes(job: Job) -> None:
    """Its identity contained permissions, and its ledgers and spools have no column for them."""
    first = run(job)
    before = files_of(job)
    layout = OutputLayout(Path(job.out))
    identity = orjson.loads(layout.job.read_bytes())
    layout.job.write_bytes(orjson.dumps({**identity, "max_pixels": 1, "insecure": True, "opt_out": "ignore"}))
    for path in layout.ledgers.iterdir():
        metadata = {
            name: value for name, value in pq.read_metadata(path).metadata.items() if name.startswith(b"datafetch")
        }
        table = pq.read_table(path).drop_columns(["permitted"])
        pq.write_table(table.replace_schema_metadata(metadata), path)
    assert run(job).totals == first.totals
    assert files_of(job) == before
    assert {line.permitted for path in layout.ledgers.iterdir() for lines in read_samples(path) for line in lines} == {
        ()
    }


def test_options_are_read_from_job_files_of_earlier_versions(tmp_path: Path) -> None:
    """They had the options of all datasets; one that was set although this dataset has no such option is an error."""
    options = Mmc4CoreOptions(keep_at_least=2, skip_bad_lines=True)
    job = Job("mmc4-core", "/source", str(tmp_path / "out"), image=VILA, options=options)
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.mkdir()
    settings = settings_of(job, VILA)
    identity = {"format": 1, "dataset": job.dataset, "limit": None, "shards": {}}
    earlier = {"url_key": None, "text_key": None, "only_referenced": None, **settings["choices"]}
    unchosen = {**settings["image"], "resize": None}  # what follows from other options was left open
    for choices, image in ((settings["choices"], settings["image"]), (earlier, unchosen)):
        asked = {**settings, "choices": choices, "image": image}
        layout.job.write_bytes(orjson.dumps({**identity, "asked": asked}))
        assert read_job(layout)[0] == job
    # Which wrote out how long a server may be silent by default.
    former = {**settings["fetch"], "stall_timeout_s": 20.0}
    layout.job.write_bytes(orjson.dumps({**identity, "asked": {**settings, "fetch": former}}))
    assert read_job(layout)[0] == job
    for strange in (
        {"choices": {**earlier, "url_key": "src"}},
        {"choices": {"keep_at_least": "2"}},
        {"fetch": {**settings["fetch"], "of_a_later_version": 1}},
        {"image": {**settings["image"], "pixels": "of a later version"}},
        {"payload": None},
    ):
        layout.job.write_bytes(orjson.dumps({**identity, "asked": settings | strange}))
        with pytest.raises(ConfigurationError, match="is not a job of this version of datafetch; run the command that"):
            read_job(layout)


def test_an_output_of_an_earlier_fast_is_refused(job: Job) -> None:
    """``--resize fast`` gave other pixels once. Neither a run nor a retry adds any of now."""
    fast = replace(job, image=replace(VILA, resize=Resize.FAST))
    run(fast)
    layout = OutputLayout(Path(job.out))
    file = orjson.loads(layout.job.read_bytes())
    assert file["resize"] == "fast"
    assert file.pop("resizer") == RESIZER
    layout.job.write_bytes(orjson.dumps(file))
    before = files_of(job)
    with pytest.raises(ConfigurationError, match=r"\(--resize fast gives other pixels than in the version "):
        run(fast)
    file["asked"]["image"] |= {"resize": None, "pixels": "correct"}  # fast was the default for correct pixels
    layout.job.write_bytes(orjson.dumps(file | {"pixels": "correct"}))
    with pytest.raises(ConfigurationError, match=r"\(--resize: fast, now exact\)"):
        run(replace(job, image=replace(VILA, pixels=Pixels.CORRECT)))
    with pytest.raises(ConfigurationError, match="was made by a version of datafetch whose --resize fast gave other"):
        retry(job.out)
    assert files_of(job) == before


def test_permissions_do_not_change_the_folder_of_spools(job: Job) -> None:
    """A run with more permissions finds what an interrupted run has fetched; so does a later version."""
    run(job)
    identity = read_job(OutputLayout(Path(job.out)))[1]
    earlier = {**identity, "max_pixels": 89_478_485}
    as_it_was = hashlib.sha256(orjson.dumps(earlier, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    assert hash_of(identity) == as_it_was


def test_another_manifest_on_the_same_output_is_refused(tmp_path: Path, job: Job, urls: list[str]) -> None:
    """A manifest with other rows is another job."""
    run(job)
    other = write_coyo_source(tmp_path / "other", urls, files=2, rows=600)
    with pytest.raises(ConfigurationError, match="manifest files that have changed: part-0000"):
        run(replace(job, source=str(other.folder)))


def test_a_replaced_manifest_file_is_another_job(job: Job, source: CoyoSource) -> None:
    """A file with the same name and number of rows in another order is another manifest."""
    run(job)
    path = source.folder / "part-00000-demo-c000.snappy.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), path)
    with pytest.raises(ConfigurationError, match=f"manifest files that have changed: {path.name}"):
        run(job)


def test_a_truncated_shard_is_made_again(job: Job) -> None:
    """A file of another size than the published one does not count as published."""
    run(job)
    before = files_of(job)
    (Path(job.out) / "part-00000.pkl").write_bytes(b"")
    run(job)
    assert files_of(job) == before


def test_a_shard_that_is_made_again_is_unpublished_first(job: Job) -> None:
    """Its old ledger and files are deleted before anything else is written."""
    run(job)
    (Path(job.out) / "part-00001.pkl").unlink()
    with pytest.raises(ResourceError):  # raised after the shard was checked, when its spool is opened
        run(replace(job, scratch="/proc/nowhere"))
    assert sorted(files_of(job)) == ["part-00000.count", "part-00000.pkl"]
    assert not OutputLayout(Path(job.out)).ledger("part-00001").exists()


def test_a_spool_of_another_job_is_not_used(tmp_path: Path, job: Job) -> None:
    """Jobs may share a scratch folder, and their outputs and shards may have the same names."""
    scratch = tmp_path / "scratch"
    limited = replace(job, limit=10, scratch=str(scratch))
    run(limited)
    spool = OutputLayout(Path(job.out), scratch, "0123456789abcdef").spool("part-00000")
    spool.parent.mkdir(parents=True)
    spool.write_bytes(b"datafetch spool 1\n")
    report = run(replace(limited, limit=20, fresh=True))
    assert (report.totals.rows, report.requests, report.reused) == (20, 20, 0)


def test_an_invalid_job_file_is_refused(job: Job) -> None:
    """A file that datafetch did not write is neither trusted nor deleted."""
    run(job)
    before = files_of(job)
    for content, fresh in product((b"garbage", b"[]", b"{}"), (False, True)):
        OutputLayout(Path(job.out)).job.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"job\.json is not a job"):
            run(replace(job, fresh=fresh))
        assert files_of(job) == before


def test_fresh_starts_over(job: Job) -> None:
    """With ``--fresh`` a run forgets the earlier output, and may be another job."""
    run(job)
    report = run(replace(job, fresh=True, limit=10))
    assert report.totals.rows == len(read_rows(job)) == 10
    assert (report.reused, report.requests) == (0, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"files may be open at once \('ulimit -n'\), and a run needs"),
        ({"source": "bad"}, r"row 0 \(counted from 0\): .* is not UTF-8"),
    ],
    ids=["descriptors", "a bad row"],
)
def test_fresh_deletes_nothing_until_all_checks_have_passed(
    tmp_path: Path, job: Job, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that occur before the first image are found while the earlier output is still there."""
    run(replace(job, limit=10))
    before = files_of(job)
    if "source" in change:
        table = pa.table({name: [0.9] * 10 for name in ("clip_similarity_vitb32", "clip_similarity_vitl14")})
        text = pa.array([b"\xff"] * 10, pa.binary()).view(pa.string())
        table = table.append_column("id", pa.array(range(10))).append_column("url", [["http://e.org/1.jpg"] * 10])
        (tmp_path / "bad").mkdir()
        pq.write_table(table.append_column("text", text), tmp_path / "bad" / "part-00000.parquet")
        change = {"source": str(tmp_path / "bad"), "ids": None, "limit": None}
    else:
        monkeypatch.setattr("datafetch.fetch.concurrency._RESERVED_DESCRIPTORS", 10**9)
    with pytest.raises((ManifestError, ResourceError), match=message):
        run(replace(job, fresh=True, **change))
    assert files_of(job) == before


def test_fresh_deletes_no_third_party_files(job: Job) -> None:
    """A folder without a state folder is refused and stays unchanged."""
    Path(job.out).mkdir(parents=True)
    (Path(job.out) / "thesis.pkl").write_text("years of work")
    for again in (job, replace(job, fresh=True)):
        with pytest.raises(ConfigurationError, match=r"thesis\.pkl"):
            run(again)
    assert files_of(job) == {"thesis.pkl": b"years of work"}


async def test_a_second_run_on_an_output_is_refused(job: Job) -> None:
    """The second run raises an error, and the first one continues."""
    started = asyncio.Event()

    async def watch(take_statistics: Any) -> None:
        started.set()
        take_statistics()

    first = asyncio.create_task(fetch_dataset(job, [watch]))
    await started.wait()
    with pytest.raises(ConfigurationError, match="another run"):
        await fetch_dataset(job)
    assert (await first).totals.ok == 66


def test_spools_are_written_to_the_scratch_folder(tmp_path: Path, job: Job) -> None:
    """They are deleted when their shard is published."""
    scratch = tmp_path / "scratch"
    run(replace(job, scratch=str(scratch)))
    assert scratch.is_dir()
    assert not [path for path in scratch.rglob("*") if path.is_file()]
    assert len(read_rows(job)) == 66


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [("a", "b", "give --scratch .*/a again, or start"), ("a", None, "give --scratch .*/a"), (None, "b", "leave out")],
)
def test_a_run_with_another_scratch_folder_is_refused(
    tmp_path: Path, job: Job, before: str | None, now: str | None, message: str
) -> None:
    """The error names the folder with the spools, so nothing is fetched twice; if it is empty, another may be used."""
    first = replace(job, limit=10, scratch=before and str(tmp_path / before))
    again = replace(first, scratch=now and str(tmp_path / now))
    run(first)
    spool = left_spool(first)
    with pytest.raises(ConfigurationError, match=message):
        run(again)
    assert spool.exists()
    assert run(first).reused == 10
    spool.unlink()
    assert run(again).reused == 10


def left_spool(job: Job) -> Path:
    """Write a spool as an interrupted run leaves it in the job's scratch folder."""
    scratch = Path(job.scratch) if job.scratch else None
    layout = OutputLayout(Path(job.out), scratch, hash_of(read_job(OutputLayout(Path(job.out)))[1]))
    write_spool(layout.spool("part-00001"), [])
    return layout.spool("part-00001")


def test_fresh_deletes_spools_in_another_scratch_folder(tmp_path: Path, job: Job) -> None:
    """Starting over with another scratch folder leaves nothing in the old one."""
    first = replace(job, limit=10, scratch=str(tmp_path / "a"))
    run(first)
    spool = left_spool(first)
    assert run(replace(job, limit=10, fresh=True)).reused == 0
    assert not spool.exists()


def test_the_state_folder_is_a_sibling(job: Job) -> None:
    """The data folder holds only pairs of .pkl and .count; everything else is in the state folder next to it."""
    run(job)
    assert sorted(files_of(job)) == ["part-00000.count", "part-00000.pkl", "part-00001.count", "part-00001.pkl"]
    layout = Path(job.out + ".datafetch")
    assert sorted(path.name for path in layout.iterdir() if path.name != "lock") == [
        "failed",
        "job.json",
        "ledger",
        "progress.json",
        "ready",
        "report.json",
        "unpublished",
    ]


@pytest.mark.parametrize("change", [{"source": "/nowhere"}, {"ids": "/nowhere"}])
def test_a_wrong_job_writes_nothing(job: Job, change: dict[str, Any]) -> None:
    """Errors that can be found beforehand are raised before anything is written."""
    with pytest.raises(ManifestError, match="/nowhere"):
        run(replace(job, **change))
    assert not Path(job.out).parent.exists()


def test_an_output_that_cannot_be_written_is_a_resource_error(tmp_path: Path, job: Job) -> None:
    """The error says what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="run the same command again"):
        run(replace(job, out=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"processes": 0},
        {"memory_bytes": 0},
        {"limit": 2**63},
        {"max_sample_bytes": 0},
        {"processes": 1025},
    ],
)
def test_values_out_of_bounds_are_refused(job: Job, wrong: dict[str, Any]) -> None:
    """The error is raised when the job is created."""
    with pytest.raises(ConfigurationError, match="must be from 1 to"):
        replace(job, **wrong)


def test_an_unknown_payload_is_refused(job: Job) -> None:
    """The error is raised when the job is created, for callers without a type checker."""
    with pytest.raises(ConfigurationError, match="payload must be base64 or bytes, not 'pickle'"):
        replace(job, payload="pickle")  # type: ignore[arg-type]


def test_a_small_memory_budget_loses_nothing(job: Job) -> None:
    """All images arrive even if the budget holds hardly one body."""
    report = run(replace(job, memory_bytes=1))
    assert report.totals.outcomes == {"ok": 66}


async def test_the_memory_budget_bounds_the_requests(urls: list[str]) -> None:
    """Once it is used up no request begins, so only those already open add bodies."""
    budget = BodyBudget(1)
    held = peak = 0

    async def deliver(fetch: Fetcher, url: str) -> None:
        nonlocal held, peak
        with budget.reservation() as memory:
            await fetch(url, memory=memory)
            held += 1
            peak = max(peak, held)
            await asyncio.sleep(0)
            held -= 1

    async with Fetcher(replace(POLICY, connections=4), budget=budget) as fetch:
        async with asyncio.TaskGroup() as group:
            for url in urls:
                group.create_task(deliver(fetch, url))
        assert fetch.statistics().sent_requests == len(urls)
    assert 1 <= peak <= 4


@pytest.mark.rotating
def test_an_image_that_ends_the_codec_fails_alone_and_is_kept(
    tmp_path: Path, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """It exceeds the limit on CPU time; its body is kept in quarantine, and named in log and ledger."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "huge.png").write_bytes(saved(Image.new("RGB", (9000, 9000)), "PNG"))
    for name in pictures[1][:20]:
        (folder / name).write_bytes((pictures[0] / name).read_bytes())
    with Origin(folder) as origin:
        urls = [origin.url("well", path.name, 1) for path in sorted(folder.iterdir())]
        source = write_coyo_source(tmp_path / "source", urls, files=1)
        job = Job(
            dataset="coyo",
            source=str(source.folder),
            ids=str(source.ids),
            out=str(tmp_path / "out"),
            image=ImageSpec(decode_timeout_s=0.15),
            fetch=POLICY,
        )
        backends = Backends(
            lambda job, spec, quarantine: Transcoder(
                spec, processes=job.processes, codec=without_wall_clock, quarantine=quarantine
            )
        )
        assert datafetch.run(job, backends=backends).totals.outcomes == {"ok": 20, "worker_crashed": 1}
    (crashed,) = [line for line in read_ledger(job) if line["outcome"] == "worker_crashed"]
    (kept,) = OutputLayout(Path(job.out)).quarantine.iterdir()
    assert kept.read_bytes() == (folder / "huge.png").read_bytes()
    assert kept.stem == crashed["sha256"]
    assert crashed["detail"] == "took more than 0.15 s of CPU time"
    assert crashed["sha256"] in caplog.text


def test_jobs_and_reports_are_values(job: Job) -> None:
    """A job can be pickled, so that a cluster can send it; a report becomes the contract's JSON."""
    assert pickle.loads(pickle.dumps(job)) == job
    report: Report = run(job)
    summary = report.summary()
    assert list(summary)[:9] == [
        "dataset",
        "out",
        "complete",
        "samples",
        "images",
        "bytes",
        "shards",
        "elapsed_s",
        "images_per_s",
    ]
    assert summary["ids"] == {"wanted": 71, "duplicates": 3, "not_found": 5}


@pytest.mark.rotating
def test_the_output_is_resharded_as_the_last_step(tmp_path: Path, job: Job, source: CoyoSource) -> None:
    """Every row is in one shard. Ranks may change later; only a fresh start returns to the manifest's shards."""
    run(job)
    rows = read_rows(job)
    assert [row["id"] for row in rows] == list(source.urls)
    report = run(replace(job, world_size=4))
    assert report.resharded == ReshardedEpoch(4, 16, 64)
    assert report.summary()["equal"] == {"world_size": 4, "samples_per_rank": 16, "used": 64}
    assert (report.shards, report.requests, len(files_of(job))) == (4, 0, 8)
    shuffled = read_rows(job)
    assert shuffled != rows
    assert sorted(shuffled, key=itemgetter("id")) == rows
    at_once = replace(job, out=str(tmp_path / "at-once"), world_size=4)
    run(at_once)
    assert files_of(at_once) == files_of(job)
    assert run(replace(job, world_size=2)).shards == 2
    with pytest.raises(ConfigurationError, match="--no-reshard can't bring back"):
        run(job)
    assert run(replace(job, fresh=True)).resharded is None
    assert read_rows(job) == rows


def test_a_missing_ledger_of_a_resharded_output_is_reported(job: Job, origin: Origin) -> None:
    """Making the shard again would overwrite a resharded one of the same name. Nothing is requested or changed."""
    job = replace(job, world_size=2)
    run(job)
    (Path(job.out + ".datafetch") / "ledger" / "part-00000.parquet").unlink()
    before, requests = files_of(job), origin.requests()
    message = (
        r"part-00000\.parquet is missing.*can't be made again one by one.*--fresh \(again, if one was interrupted\)"
    )
    with pytest.raises(ConfigurationError, match=message):
        run(job)
    assert (files_of(job), origin.requests()) == (before, requests)


def test_a_resharded_output_must_have_as_many_rows_as_its_ledgers(job: Job) -> None:
    """Otherwise the report could state more samples per epoch than there are."""
    job = replace(job, world_size=2)
    run(job)
    layout = Path(job.out + ".datafetch")
    record = orjson.loads((layout / "equal.json").read_bytes())
    (layout / "ledger" / "part-00001.parquet").write_bytes((layout / "ledger" / "part-00000.parquet").read_bytes())
    ledger_rows = sum(read_shard_counts(path).rows for path in (layout / "ledger").iterdir())
    assert ledger_rows != sum(rows for rows, _ in record["files"].values())
    with pytest.raises(ConservationError, match="the resharded files hold"):
        run(job)


def test_a_run_receives_no_more_than_its_cap(job: Job) -> None:
    """And every image arrives that would without it."""
    rate = 150_000
    capped = run(replace(job, fetch=replace(job.fetch, max_rate_bytes_per_s=rate)))
    assert capped.fetched_bytes > rate
    assert capped.elapsed_s > (capped.fetched_bytes - rate / 4 - 2 * 64 * 1024) / rate
    assert capped.totals.outcomes == run(replace(job, out=f"{job.out}-uncapped")).totals.outcomes


def test_an_observer_that_fails_does_not_end_a_run(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged with the traceback, and the run continues without it."""

    async def observe(_: Callable[[], Statistics]) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    assert run(job, [observe]).totals.ok
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    message = "an observer failed (OSError: [Errno 24] Too many open files); the work itself continues"
    assert [error.message for error in errors] == [message]
    assert errors[0].exc_info is not None


@pytest.mark.parametrize("empty", [{"ids": ""}, {"scratch": ""}])
def test_an_empty_path_is_refused(job: Job, empty: dict[str, Any]) -> None:
    """A shell makes it of a variable that is not set; it does not mean that there is no id list."""
    with pytest.raises(ConfigurationError, match=r"^(ids|scratch) is empty; give a path, or leave it out"):
        replace(job, **empty)


def test_a_job_file_that_is_nested_too_deeply_is_refused(job: Job) -> None:
    """Its identity has no hash, which every command but a run would need first."""
    run(job)
    path = OutputLayout(Path(job.out)).job
    fields = orjson.loads(path.read_bytes())
    nested = b"[" * 300 + b"]" * 300
    path.write_bytes(orjson.dumps(fields)[:-1] + b',"other":' + nested + b"}")
    with pytest.raises(ConfigurationError, match="is not a job of this version"):
        read_job(OutputLayout(Path(job.out)))
