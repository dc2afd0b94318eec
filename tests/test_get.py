"""``datafetch get``: from a list of URLs to files, by the command and by the library."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer, Behaviour
from conftest import LOOPBACK
from hub_server import HubServer
from in_process import run
from jobs import files_of, path_of, read_ledger, read_rows, requests_since

from datafetch import ConfigurationError, FetchPolicy, Job, ListFormat, ListJob, ListOptions, Payload, read_status
from datafetch.cli.app import main
from datafetch.datasets import LIST
from datafetch.datasets.readers import ParquetFile
from datafetch.demo.origin import Origin
from datafetch.engine.choices import row_defaults
from datafetch.engine.job import dataset_of, own_spec
from datafetch.engine.list_job import JobFields
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, per_host=64, retries=0)
OPTIONS = ["--format", "pickle", "--allow-net", *LOOPBACK, "--per-host", "64", "--retries", "0", "--no-reshard"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep scans and downloads of other tests out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def urls_of(origin: Origin, names: Sequence[str], mark: str, count: int = 12) -> list[str]:
    """URLs of which every fourth is missing."""
    ways = ["missing" if number % 4 == 3 else "well" for number in range(count)]
    return [origin.url(way, names[number % len(names)], f"{mark}{number}") for number, way in enumerate(ways)]


def write_list(path: Path, urls: Sequence[str], **columns: Sequence[Any]) -> Path:
    """Write a list in parquet, in row groups of three."""
    table = pa.table({"URL": urls, "TEXT": [f"caption {number}" for number in range(len(urls))], **columns})
    pq.write_table(table, path, row_group_size=3)
    return path


def list_job(inputs: str | Sequence[str], out: Path, **options: Any) -> Job:
    """A job of pickle shards that are not resharded."""
    own = ListOptions(format=ListFormat.PICKLE, **options)
    return ListJob(inputs, str(out), own, fetch=POLICY, world_size=None, image=own_spec(LIST))


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_list_becomes_shards_by_one_command(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that pass, in order, in shards of the size that was asked for; then status, verify, explain, retry."""
    urls = urls_of(own_origin, small_pictures[1], "command")
    path = write_list(tmp_path / "list.parquet", urls, width=range(12))
    out = tmp_path / "out"
    command = ["get", str(path), "--out", str(out), *OPTIONS, "--where", "width >= 2", "--shard-size", "4"]
    command += ["--keep-col", "width"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == {"total": 10, "rows": 7, "dropped": 3}
    assert report["images"]["by_kind"] == {"http_status": 3}
    shards = [pickle.loads((out / f"0000{number}.pkl").read_bytes()) for number in range(3)]
    assert [[row["id"] for row in shard] for shard in shards] == [[2, 4, 5], [6, 8, 9], [10]]
    assert {name: value for name, value in shards[1][0].items() if name != "image"} == {
        "id": 6,
        "url": urls[6],
        "text": "caption 6",
        "clip_sim": None,
        "width": 6,
    }
    assert main(["verify", str(out)]) == 0
    assert main(["explain", str(out), "000010"]) == 0
    assert urls[6] in capsys.readouterr().out
    assert main(["status", str(out), "--command"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"datafetch get {path} --out {out} ")
    assert "--where 'width >= 2'" in shown
    before = own_origin.requests()
    assert main(["retry", str(out), "--all"]) == 0
    assert requests_since(own_origin, before) == {path_of(urls[number]): 1 for number in (3, 7, 11)}
    assert main(command) == 0
    assert read_status(str(out)).state == "complete"
    capsys.readouterr()
    assert main([*command, "--keep-col", "URL"]) == 2
    assert "was started with different settings" in capsys.readouterr().err


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_dry_run_says_what_there_is(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked and nothing written; of inputs elsewhere it says that they come first."""
    path = write_list(tmp_path / "list.parquet", urls_of(own_origin, small_pictures[1], "dry"))
    before = own_origin.requests()
    assert main(["get", str(path), "--out", str(tmp_path / "out"), *OPTIONS, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["samples"]["total"], shown["shards"]["total"], shown["state"]) == (12, 1, "new")
    assert main(["get", "http://a.example/l.csv", "--out", str(tmp_path / "out"), *OPTIONS, "--dry-run"]) == 0
    assert "http://a.example/l.csv" in capsys.readouterr().out
    assert own_origin.requests() == before
    assert not (tmp_path / "out.datafetch").exists()


def test_bodies_have_to_have_the_hash_of_their_row(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Any other body fails as hash_mismatch, also one that another row with the same URL takes as it is."""
    folder, names = small_pictures
    url = own_origin.url("well", names[0], "hash")
    body = (folder / names[0]).read_bytes()
    digests = [hashlib.sha256(body).hexdigest(), "00" * 32, None, hashlib.sha256(body).hexdigest()]
    md5 = [hashlib.md5(body, usedforsecurity=False).hexdigest().upper(), None, None, "00" * 16]
    path = write_list(tmp_path / "list.parquet", [url] * 4, sha256=digests, md5=md5)
    job = list_job(str(path), tmp_path / "out", sha256_col="sha256", md5_col="md5")
    report = run(job)
    assert report.totals.outcomes == {"ok": 2, "hash_mismatch": 2}
    lines = read_ledger(job)
    assert [line["outcome"] for line in lines] == ["ok", "hash_mismatch", "ok", "hash_mismatch"]
    assert lines[1]["detail"] == f"its sha256 is {hashlib.sha256(body).hexdigest()}, and not {'00' * 32}"
    assert lines[1]["sha256"] == hashlib.sha256(body).hexdigest()


def test_parquet_on_a_server_is_read_where_it_is(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """By ranges, so that nothing is downloaded; and as a copy from a server that serves none."""
    urls = urls_of(own_origin, small_pictures[1], "remote")
    path = write_list(tmp_path / "list.parquet", urls, junk=[os.urandom(100_000) for _ in range(12)])
    here = list_job(str(path), tmp_path / "here")
    run(here)
    with ArchiveServer(path) as server:
        there = list_job(server.url, tmp_path / "there")
        run(there)
        assert files_of(there) == files_of(here)
        assert server.asked_bytes < path.stat().st_size / 2
        assert not (tmp_path / "cache" / "datafetch" / "downloads").exists()
    with ArchiveServer(path, Behaviour(serves_ranges=False)) as server:
        copied = list_job(server.url, tmp_path / "copied")
        run(copied)
        assert files_of(copied) == files_of(here)


def test_several_inputs_are_taken_in_order_and_once(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Files, patterns and URLs of files together; a file that two of them name counts once."""
    urls = urls_of(own_origin, small_pictures[1], "several", 9)
    write_list(tmp_path / "b.parquet", urls[:3])
    write_list(tmp_path / "a.parquet", urls[3:6])
    (tmp_path / "c.txt").write_text("\n".join(urls[6:]))
    with ArchiveServer(tmp_path / "c.txt") as server:
        inputs = [str(tmp_path / "b.parquet"), f"{tmp_path}/*.parquet", server.url]
        job = list_job(inputs, tmp_path / "out")
        run(job)
    assert [line["url"] for line in read_ledger(job)] == urls
    assert [row["text"] for row in read_rows(job)][-2:] == ["", ""]
    stored = json.loads(OutputLayout(Path(job.out)).job.read_text())["asked"]
    assert stored["choices"]["more_inputs"] == inputs[1:]


def test_only_pickle_rows_take_a_payload(tmp_path: Path) -> None:
    """For other formats it decides nothing, so it is neither taken nor named among the defaults that decide rows."""
    job = ListJob("list.txt", str(tmp_path / "out"), payload=Payload.BYTES)
    with pytest.raises(ConfigurationError, match="list does not take payload='bytes'; leave it out"):
        dataset_of(job)
    assert not [text for text in row_defaults(replace(job, payload=Payload.BASE64)) if "payload" in text]
    as_pickle = replace(job, options=ListOptions(format=ListFormat.PICKLE))
    assert dataset_of(as_pickle).payloads == frozenset(Payload)
    assert "--payload base64" in row_defaults(replace(as_pickle, payload=Payload.BASE64))


def test_a_type_checker_knows_the_fields_of_a_list() -> None:
    """They are all that a job has, with the same types, besides what follows from the list."""
    of_job, of_list = get_type_hints(Job), get_type_hints(JobFields)
    assert of_list.items() <= of_job.items()
    assert of_job.keys() - of_list.keys() == {"dataset", "source", "out", "ids", "options", "stored_at"}


def test_a_list_needs_an_input() -> None:
    """The message says what one is."""
    with pytest.raises(ConfigurationError, match="a list needs an input; give a file"):
        ListJob([], "out")


def test_what_a_scan_has_found_serves_later_runs(
    own_origin: Origin, small_pictures: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run after the first reads no column of the conditions again, whatever its output."""
    path = write_list(tmp_path / "list.parquet", urls_of(own_origin, small_pictures[1], "again"), width=range(12))
    first, second = (list_job(str(path), tmp_path / name, where=("width >= 5",)) for name in ("first", "second"))
    run(first)
    assert len(list((tmp_path / "cache" / "datafetch" / "scans").iterdir())) == 1
    monkeypatch.setattr(ParquetFile, "batches", None)  # by which conditions read
    run(second)
    assert files_of(second) == files_of(first)


@pytest.fixture
def hub(
    tmp_path: Path, own_origin: Origin, small_pictures: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A dataset on the hub with lists of several kinds, and what is none."""
    urls = [own_origin.url("well", small_pictures[1][0], f"hub{number}") for number in range(4)]
    files = {
        "data/a.parquet": write_list(tmp_path / "a.parquet", urls[:2]).read_bytes(),
        "data/b.csv": f"url\n{urls[2]}\n".encode(),
        "c.txt": f"{urls[3]}\n".encode(),
        "README.md": b"a dataset",
    }
    with HubServer({"owner/lists": files}) as server:
        server.use(monkeypatch, tmp_path / "hub")
        yield server


@pytest.mark.parametrize(
    ("path", "rows", "contents"),
    [
        ("", 4, ["c.txt", "data/b.csv"]),
        ("/data", 3, ["data/b.csv"]),
        ("/data/a.parquet", 2, []),
        ("/*/*.csv", 1, ["data/b.csv"]),
    ],
)
def test_lists_on_the_hub_are_found(
    tmp_path: Path, hub: HubServer, path: str, rows: int, contents: Sequence[str]
) -> None:
    """All of a dataset, those below a folder, one, or those that match a pattern; parquet is read where it is."""
    job = list_job(f"hf://datasets/owner/lists@main{path}", tmp_path / "out")
    assert run(job).totals.outcomes == {"ok": rows}
    assert sorted(set(hub.contents()) - {"data/a.parquet"}) == contents
    assert not list((tmp_path / "hub").rglob("*.parquet"))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("path", ["/none", "/*.json"])
def test_a_place_on_the_hub_without_lists_is_refused(tmp_path: Path, path: str) -> None:
    """One line says what to give."""
    job = list_job(f"hf://datasets/owner/lists@main{path}", tmp_path / "out")
    with pytest.raises(ConfigurationError, match="has no files of a list; give the path of one, or a pattern"):
        run(job)


@pytest.mark.parametrize(
    ("place", "message"),
    [("ftp://host/list.txt", "ftp: can't be read; give a path"), ("http://[bad/list.csv", "is not valid")],
)
def test_a_place_that_can_not_be_read_is_refused(tmp_path: Path, place: str, message: str) -> None:
    """Before anything is requested."""
    with pytest.raises(ConfigurationError, match=message):
        run(list_job(place, tmp_path / "out"))
