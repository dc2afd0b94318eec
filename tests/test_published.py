"""Manifests, lists and id lists that are published on servers: brought here once, and looked at again."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from archive_server import ArchiveServer, Behaviour
from conftest import LOOPBACK
from gitlab_server import GitLabServer, blob_id
from hub_server import HubServer
from in_process import retry, run
from s3_server import S3Server
from sources import DATA, place_images, place_source, serve_pictures
from zips import jpeg, write_zip

from datafetch import Job
from datafetch.cli.app import main
from datafetch.datasets.recipes import RECIPE, part_of, published_blob
from datafetch.datasets.sources.gitlab import GitLabPlace, is_blob
from datafetch.engine.job import read_job
from datafetch.engine.published import download_file
from datafetch.engine.recipe import PlannedDataset, build_recipe, plan_recipe
from datafetch.engine.source_check import check_sources
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import FetchPolicy
from datafetch.model.location import at_mirror, without_secrets
from datafetch.store.downloads import DownloadedFile, downloads_of
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, retries=0, backoff_s=0.0)
PAIRS = "gitlab://gitlab.llm-jp.nii.ac.jp/datasets/llm-jp-japanese-image-text-pairs"
PROJECT = "datasets/llm-jp-japanese-image-text-pairs"
COCO = DATA / "coco-train2017/source/train2017"
LIST = DATA / "llava-instruct-ja/source/llava_instruct_ja_156k.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/datafetch/downloads"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of an origin with the pictures that the tiny sources name."""
    with serve_pictures(tmp_path_factory.mktemp("tiny")) as served:
        yield served


def pairs(tmp_path: Path, mirror: str, source: str = PAIRS) -> Job:
    """The job for llm-jp's pairs of step 1."""
    out = str(tmp_path / "data/alt_pair_ja/pkl02")
    return Job("llm-jp-pairs-step1", source, out, mirror=mirror, fetch=POLICY, processes=1, world_size=None)


def instructions(tmp_path: Path, source: str, mirror: str = "") -> Job:
    """The job for a training list."""
    place_images("llava-instruct-ja", tmp_path / "data")
    out = str(tmp_path / "data/llava_instruct_ja/llava_instruct_ja_156k")
    return Job("llava-instruct-ja", source, out, mirror=mirror, fetch=POLICY, processes=1)


def project_files(tmp_path: Path, authority: str) -> dict[str, bytes]:
    """The files of a project: those of step 1 in a folder, that of step 0, and others."""
    source = place_source("llm-jp-pairs-step1", tmp_path / "pairs", authority)
    one, other = (path.read_bytes() for path in sorted(source.folder.iterdir()))
    others = {f"images/{number:03d}.txt": b"-" for number in range(150)}
    return {**others, "README.md": b"-", "step1/a.jsonl": one, "step1/b.jsonl": other}


@pytest.mark.rotating
def test_a_project_on_gitlab_is_read_page_by_page(tmp_path: Path, authority: str) -> None:
    """Of its files only those of the manifest are downloaded, and again only if they change."""
    files = project_files(tmp_path, authority)
    with GitLabServer({PROJECT: files}) as server:
        job = pairs(tmp_path, server.url)
        report = run(job)
        assert report.totals.ok
        assert sorted(OutputLayout(Path(job.out)).out.glob("*.pkl")) == [
            Path(job.out) / name for name in ("a.pkl", "b.pkl")
        ]
        asked = ["step1/a.jsonl", "step1/a.jsonl", "step1/b.jsonl"]  # the first time by a range, which is ignored
        assert server.contents == asked
        assert len([path for path in server.requests if "/tree?" in path]) == 2
        assert run(job).requests == 0
        assert server.contents == asked
        server.requests.clear()
        retry(job.out)
        assert not server.requests

        files["step1/b.jsonl"] += files["step1/b.jsonl"]
        with pytest.raises(ConfigurationError, match=r"manifest files that have changed: b\.jsonl"):
            run(job)
        assert set(server.contents) == {"step1/b.jsonl"}
        del files["step1/b.jsonl"]
        with pytest.raises(ConfigurationError, match=r"manifest files that have changed: b\.jsonl"):
            run(job)
        downloads = downloads_of(str(GitLabPlace.parse(PAIRS))) / job.dataset
        assert [path.name for path in downloads.iterdir() if not path.name.startswith(".")] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("files", "status", "page", "message"),
    [
        ({}, 0, None, "has nothing that llm-jp-pairs-step1 is read from; give the path of its files"),
        ({"a/x.jsonl": b"", "b/x.jsonl": b""}, 0, None, "has files of the same name in several folders"),
        ({"../x.jsonl": b""}, 0, None, "leads out of the folder"),
        (None, 0, None, "there is no such project or revision, or it needs a login"),
        ({}, 403, None, "the server wants a login; download the files"),
        ({}, 500, None, "its files can't be listed now"),
        (
            {},
            0,
            json.dumps([{"path": "a", "type": "blob", "id": ""}] * 101).encode(),
            "lists more files on a page",
        ),
        ({}, 0, b"[" + b" " * (5 << 20), "its files can't be listed now"),
        ({}, 0, b"<html>", "the server's list of files can't be read"),
        ({}, 0, b'[{"path": 1}]', "the server's list of files can't be read"),
    ],
)
def test_a_project_that_can_not_be_read_is_one_line(
    tmp_path: Path, files: dict[str, bytes] | None, status: int, page: bytes | None, message: str
) -> None:
    """With what to do; nothing is written."""
    projects = {} if files is None else {PROJECT: files}
    with GitLabServer(projects, status, page) as server, pytest.raises((ConfigurationError, ManifestError)) as caught:
        run(pairs(tmp_path, server.url))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_not_what_the_project_lists_is_refused(tmp_path: Path, authority: str) -> None:
    """The next run downloads it again. A file in Git LFS is checked by the pointer that the project lists for it."""
    files = project_files(tmp_path, authority)
    assert all(published_blob(part.ids) for part in RECIPE if part.ids)
    with GitLabServer({PROJECT: files}, damaged=frozenset({"step1/b.jsonl"})) as server:
        job = pairs(tmp_path, server.url)
        with pytest.raises(ManifestError, match=r"b\.jsonl did not arrive as it is listed; run the same command again"):
            run(job)
        server.damaged = frozenset()
        assert run(job).totals.ok
    content = b"images"
    oid = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
    assert is_blob(BytesIO(content), len(content), blob_id(pointer))
    assert is_blob(BytesIO(content), len(content), blob_id(content))
    assert not is_blob(BytesIO(content), len(content), blob_id(b"others"))


@pytest.mark.parametrize("location", ["gitlab://host", "gitlab://host/project", "gitlab://host/a/../b"])
def test_a_place_of_another_form_is_refused(tmp_path: Path, location: str) -> None:
    """Before any server is asked."""
    with pytest.raises(ConfigurationError, match="gitlab://HOST/GROUP/PROJECT"):
        run(pairs(tmp_path, "", location))


def test_a_list_on_a_web_server_is_downloaded_once(tmp_path: Path, cache: Path) -> None:
    """By the URL of the file or of its folder; a later run only asks whether it is still the same."""
    with ArchiveServer(LIST) as server:
        for url in (server.url, server.folder_url):
            report = run(instructions(tmp_path, url))
            assert report.totals.outcomes == {"ok": 1, "missing_member": 1}
        assert server.asked_bytes == LIST.stat().st_size + 2
    assert [path.name for path in cache.glob("*/[!.]*")] == [LIST.name]


@pytest.mark.rotating
def test_a_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """Another run asks only for the rest."""
    records = json.loads(LIST.read_text())
    large = tmp_path / "published" / LIST.name
    large.parent.mkdir()
    texts = [{**records[0], "id": str(number), "image": "coco/train2017/gone.jpg"} for number in range(20_000)]
    large.write_text(json.dumps([*records, *texts]))
    size_bytes = large.stat().st_size
    with ArchiveServer(large) as server:
        job = instructions(tmp_path, server.url)

        def stop_serving(_: object) -> None:
            if len(server.requests) > 3:
                server.change(status=503)

        server.on_request = stop_serving
        with pytest.raises(ManifestError, match=r"can't be read now .*; run the same command later to resume"):
            run(job)
        (part,) = (tmp_path / "cache").glob("**/.*.part")
        received_bytes = part.stat().st_size
        assert 0 < received_bytes < size_bytes
        server.on_request = lambda _: None
        server.change(status=0)
        server.requests.clear()
        run(job)
        assert min(request.start for request in server.requests[1:]) == received_bytes
        assert server.asked_bytes == 1 + size_bytes - received_bytes
        (copy,) = (tmp_path / "cache").glob(f"**/{large.name}")
        assert copy.read_bytes() == large.read_bytes()


@pytest.mark.parametrize("behaviour", [Behaviour(serves_ranges=False), Behaviour(etag="")])
def test_a_server_without_ranges_or_versions_is_downloaded_from_all_the_same(
    tmp_path: Path, behaviour: Behaviour
) -> None:
    """In one piece, or again by each run."""
    with ArchiveServer(LIST, behaviour) as server:
        assert run(instructions(tmp_path, server.url)).totals.ok == 1
        assert run(instructions(tmp_path, server.url)).reused == 1


@pytest.mark.parametrize(
    ("status", "message"), [(401, "wants a login"), (403, "refuses it"), (404, "no such file"), (500, "HTTP 500")]
)
def test_what_a_web_server_refuses_is_one_line(tmp_path: Path, status: int, message: str) -> None:
    """Without the login that was given."""
    with ArchiveServer(LIST, Behaviour(status=status)) as server, pytest.raises(ManifestError) as caught:
        run(instructions(tmp_path, server.url.replace("//", "//user:hunter2@")))
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_folder_on_a_web_server_is_refused_where_several_files_are_needed(tmp_path: Path) -> None:
    """Web servers list no folders."""
    with pytest.raises(ConfigurationError, match="is a folder, which a web server does not list"):
        run(pairs(tmp_path, "", "http://127.0.0.1:1/pairs/"))


def test_an_id_list_may_be_on_a_server(tmp_path: Path, authority: str) -> None:
    """And is known by its content, wherever it is."""
    source = place_source("coyo", tmp_path / "coyo", authority)
    assert source.ids is not None
    ids = tmp_path / "published/ids.txt.gz"
    ids.parent.mkdir()
    ids.write_bytes(gzip.compress(source.ids.read_bytes()))
    with ArchiveServer(ids) as server:
        out = str(tmp_path / "data/coyo")
        job = Job("coyo", str(source.folder), out, ids=server.url, fetch=POLICY, processes=1, world_size=None)
        report = run(job)
    assert report.id_list_result is not None
    assert report.id_list_result.not_found == 1  # which its source lacks
    (copy,) = (tmp_path / "cache").glob("**/ids.txt.gz")
    assert run(Job("coyo", str(source.folder), out, ids=str(copy), fetch=POLICY, world_size=None)).requests == 0


@pytest.mark.rotating
def test_a_mirror_is_asked_for_everything_that_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At BASE/HOST/PATH, also in place of the hub, which then gets no token; a retry asks the same mirror."""
    archive = tmp_path / "train2017.zip"
    write_zip(archive, {f"train2017/{path.name}": path.read_bytes() for path in COCO.iterdir()})
    with ArchiveServer(archive) as server:
        mirror = server.url.removesuffix("/sets/train2017.zip")
        (planned,) = plan_recipe(["coco-train2017"], tmp_path / "data", {}, {})
        assert planned.job is not None
        job = replace(planned.job, mirror=mirror, fetch=POLICY, processes=1)
        assert run(job).totals.ok
        assert {request.path for request in server.requests} == {"/images.cocodataset.org/zips/train2017.zip"}
        stored, _ = read_job(OutputLayout(Path(job.out)))
        assert stored.mirror == mirror
    repositories = {"llm-jp/llava-instruct-ja": {LIST.name: LIST.read_bytes()}}
    with HubServer(repositories, prefix="/huggingface.co") as hub:
        hub.use(monkeypatch, tmp_path / "hub")
        monkeypatch.delenv("HF_ENDPOINT")
        monkeypatch.setenv("HF_TOKEN", "secret")
        run(instructions(tmp_path, "hf://datasets/llm-jp/llava-instruct-ja@2f1cb5c", hub.endpoint))
        assert hub.contents() == [LIST.name]
        assert not hub.authorizations
        assert not (tmp_path / "hub").exists()


def test_a_mirror_gets_no_login_of_another_host() -> None:
    """Nor is anything but a URL changed."""
    assert at_mirror("https://user:pw@host:8443/a%20b?x=1", "http://m/base/") == "http://m/base/host:8443/a%20b?x=1"
    assert at_mirror("https://host/a", "") == "https://host/a"
    assert at_mirror("folder/a", "http://m") == "folder/a"


def test_no_location_is_stored_with_its_secrets() -> None:
    """Of whatever kind it is."""
    assert without_secrets("s3://key:secret@bucket/a?session_token=x") == "s3://bucket/a"
    assert without_secrets("hf://datasets/a/b@rev/c") == "hf://datasets/a/b@rev/c"
    assert "key" not in downloads_of("s3://key:secret@bucket/a").name


def test_sources_are_asked_without_downloading_anything(tmp_path: Path) -> None:
    """How many files each has, and of what size where that is told; what can't be read stops no other."""
    archive = tmp_path / "images.zip"
    write_zip(archive, {"images/1.jpg": b"-" * 1000})
    with GitLabServer({PROJECT: {"a.jsonl": b"-", "b.jsonl": b"-"}}) as project, ArchiveServer(archive) as server:
        planned = [
            PlannedDataset(part_of("llm-jp-pairs-step1"), "", pairs(tmp_path, project.url)),
            PlannedDataset(part_of("gqa"), "", Job("gqa", server.url, str(tmp_path / "gqa"), fetch=POLICY)),
            PlannedDataset(part_of("textvqa"), "", Job("textvqa", server.url + "x", str(tmp_path / "t"), fetch=POLICY)),
            PlannedDataset(part_of("mmc4-core"), "", None, "give a --source"),
        ]
        answers = check_sources(planned)
        assert not project.contents
        assert server.asked_bytes == 1
    sizes = [(answer.files, answer.size_bytes) for answer in answers]
    assert sizes == [(2, None), (1, archive.stat().st_size), (0, None), (0, None)]
    assert [answer.problem[:9] for answer in answers[:2]] == ["", ""]
    assert "no such file" in answers[2].problem
    assert answers[3].problem == "give a --source"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("az://bucket/coyo", "az: can't be read; give a path, or a location with"),
        ("ftp://user:secret@host/x", "ftp: can't be read; give a path"),
        ("http:/user:secret@host/x", "http: can't be read; give a path"),
        ("HF://datasets/a/b", "HF: can't be read; give a path"),
        ("http://[", "the URL is not valid; check its spelling"),
        ("hf://user:secret@datasets/a/b", "a dataset on the hub is given as hf://datasets/OWNER/NAME"),
        ("s3://", "a location in an object store has a bucket"),
        ("hf://datasets/a/b@main/c.json", "is a file; give the dataset that it is in"),
        ("gitlab://user:secret@host/a/b", "a project on a GitLab server is given as gitlab://"),
    ],
)
def test_a_location_of_no_use_is_one_line(tmp_path: Path, location: str, message: str) -> None:
    """Without what may be a secret in it."""
    with pytest.raises(ConfigurationError) as caught:
        run(pairs(tmp_path, "", location))
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.rotating
def test_an_image_set_has_what_a_list_anywhere_names(tmp_path: Path) -> None:
    """The list of a folder, of a project or on a web server is found as its own dataset finds it."""
    images = tmp_path / "images.zip"
    write_zip(images, {"images/1.jpg": jpeg(1), "images/2.jpg": jpeg(2)})
    name, content = "llava_v1_5_subset_358k.json", json.dumps([{"id": "1", "image": "gqa/images/1.jpg"}]).encode()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / name).write_bytes(content)
    project = "gitlab://gitlab.example/group/lists"
    with (
        GitLabServer({"group/lists": {f"lists/{name}": content}}) as gitlab,
        ArchiveServer(tmp_path / "lists" / name) as web,
    ):
        for number, source in enumerate([str(tmp_path / "lists"), project, web.folder_url, web.url]):
            mirror = gitlab.url if source == project else ""

            def change(job: Job, mirror: str = mirror) -> Job:
                return replace(job, mirror=mirror, fetch=POLICY, processes=1)

            sources = {"gqa": str(images), "llava-v1.5-subset": source}
            planned = plan_recipe(["gqa", "llava-v1.5-subset"], tmp_path / str(number), sources, {}, change)
            (built,) = build_recipe(planned[:1], lambda *_: ())
            assert built.report is not None, built.error
            assert built.report.totals.images == 1


@pytest.mark.rotating
def test_a_file_that_the_hub_has_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub lists a hash for a file in Git LFS; the next run downloads it again."""
    repositories = {"llm-jp/llava-instruct-ja": {LIST.name: LIST.read_bytes() + b" " * 3000}}
    with HubServer(repositories, damaged=frozenset({LIST.name})) as hub:
        hub.use(monkeypatch, tmp_path / "hub")
        job = instructions(tmp_path, "hf://datasets/llm-jp/llava-instruct-ja@2f1cb5c")
        with pytest.raises(ManifestError, match=r"156k\.json did not arrive as it is published; run the same command"):
            run(job)
        hub.damaged = frozenset()
        assert run(job).totals.ok == 1


@pytest.mark.parametrize("damage", ["cut", "longer part", "link", "folder"])
def test_a_damaged_cache_is_noticed(tmp_path: Path, cache: Path, damage: str) -> None:
    """A file that was cut or grew is downloaded again, a link or a folder is refused, and no link is followed."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    with ArchiveServer(LIST) as server:
        run(instructions(tmp_path, server.url))
        (copy,) = cache.glob(f"*/{LIST.name}")
        part = copy.with_name(f".{LIST.name}.part")
        if damage == "cut":
            copy.write_bytes(copy.read_bytes()[:-1])
        else:
            copy.unlink()
        if damage == "longer part":
            part.write_bytes(LIST.read_bytes() + b"more")
            part.with_name(f"{part.name}.version").write_text(f"{LIST.stat().st_size} {server.behaviour.etag}")
        elif damage == "link":
            part.symlink_to(precious)
        elif damage == "folder":
            copy.mkdir()
        if damage in ("link", "folder"):
            with pytest.raises(ConfigurationError, match="is to be a download, and is something else; delete what is"):
                run(instructions(tmp_path, server.url))
            assert precious.read_text() == "mine"
        else:
            run(instructions(tmp_path, server.url))
            assert copy.read_bytes() == LIST.read_bytes()


def test_two_runs_share_a_download(tmp_path: Path) -> None:
    """The second waits for the first, and downloads nothing."""
    large = tmp_path / "published" / LIST.name
    large.parent.mkdir()
    large.write_bytes(LIST.read_bytes() + b" " * 300_000)
    with ArchiveServer(large, Behaviour(bytes_per_s=400_000)) as server:
        job = instructions(tmp_path, server.url)

        async def both() -> list[Path]:
            return await asyncio.gather(*(download_file(server.url, job) for _ in range(2)))

        one, other = asyncio.run(both())
        assert one == other
        assert one.read_bytes() == large.read_bytes()
        assert server.asked_bytes == large.stat().st_size + 2


def test_a_part_that_another_run_has_completed_is_not_touched(tmp_path: Path) -> None:
    """It is another file by then, although it was opened before."""
    one, other = DownloadedFile(tmp_path, "a"), DownloadedFile(tmp_path, "a")
    with one.open_part("1") as part:
        with pytest.raises(BlockingIOError):
            other.open_part("1")
        part.write(b"content")
        one.complete(part, "1")
    with other.open_part("1"):
        assert (tmp_path / "a").read_bytes() == b"content"
    assert other.is_there("1")
    (tmp_path / "a").write_bytes(b"cut")
    assert not other.is_there("1")


def test_the_command_shows_what_sources_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line each; the exit code tells that one can't be read."""
    archive = tmp_path / "images.zip"
    write_zip(archive, {"images/1.jpg": b"-" * 1000})
    options = ["--check-sources", "--root", str(tmp_path / "data"), "--allow-net", "127.0.0.0/8", "--retries", "0"]
    with ArchiveServer(archive) as server:
        assert main(["prepare", "gqa", "--source", server.url, *options]) == 0
        assert "gqa        1     1.1 kB" in capfd.readouterr().out
        words = ["prepare", "gqa", "textvqa", "--source", f"gqa={server.url}", "--source", f"textvqa={server.url}x"]
        assert main([*words, *options, "--json"]) == 2
    gqa, textvqa = json.loads(capfd.readouterr().out)
    assert (gqa["files"], gqa["problem"]) == (1, None)
    assert "no such file" in textvqa["problem"]
    assert not (tmp_path / "data").exists()


@pytest.mark.slow  # it starts a process for each repository on the hub
@pytest.mark.measured
def test_the_published_places_of_all_datasets_are_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror has one of them; what has to be handed in is named, and no other host is asked."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with GitLabServer({PROJECT: {"a.jsonl": b"-"}}) as server:
        words = ["datasets", "--root", str(tmp_path), "--check-sources", "--json"]
        assert main([*words, "--mirror", server.url, "--allow-net", "127.0.0.0/8"]) == 2
    answers = {one["name"]: one for one in json.loads(capfd.readouterr().out)}
    assert list(answers) == [part.name for part in RECIPE]
    assert [name for name, one in answers.items() if one["problem"] is None] == ["llm-jp-pairs-step1"]
    assert "give a --source" in answers["mmc4-core"]["problem"]
    assert not server.contents
    assert main(["datasets", "--root", str(tmp_path), "--mirror", server.url]) == 2


@pytest.mark.slow
def test_an_object_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: str) -> None:
    """A folder of files, or one file; each is copied once."""
    files = {f"bucket/{name}": content for name, content in project_files(tmp_path, authority).items()}
    with S3Server(files) as store:
        store.use(monkeypatch)
        job = pairs(tmp_path, "", "s3://bucket/step1")
        assert run(job).totals.ok
        assert run(job).requests == 0
        assert set(store.reads) == {"bucket/step1/a.jsonl", "bucket/step1/b.jsonl"}
        reads = len(store.reads)
        assert run(replace(job, source="s3://bucket/step1/a.jsonl", out=f"{job.out}-2")).totals.ok
        assert len(store.reads) > reads
        with pytest.raises(ManifestError, match="there is no s3://bucket/nothing; check its spelling"):
            run(replace(job, source="s3://bucket/nothing", out=f"{job.out}-3"))
        store.status = 403
        with pytest.raises(ManifestError, match=r"s3://bucket/step1 can't be read: .*; check its name and login"):
            run(replace(job, out=f"{job.out}-4"))
