"""Datasets that are read from the Hugging Face hub, by a server that speaks its protocol."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from conftest import LOOPBACK
from hub_server import HubServer
from in_process import retry, run
from sources import DATA, place_images
from zips import jpeg

from datafetch import Job
from datafetch.datasets.sources.hub import HubPlace, is_hub
from datafetch.datasets.synthdog_ja import SynthdogJaOptions
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import FetchPolicy
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, connections=64)
LIST = (DATA / "llava-instruct-ja/source/llava_instruct_ja_156k.json").read_bytes()
PLACE = "hf://datasets/llm-jp/llava-instruct-ja@2f1cb5c"


def instructions(tmp_path: Path, source: str = PLACE) -> Job:
    """The job for a list on the hub."""
    place_images("llava-instruct-ja", tmp_path / "data")
    out = str(tmp_path / "data/llava_instruct_ja/llava_instruct_ja_156k")
    return Job("llava-instruct-ja", source, out, fetch=POLICY, processes=1)


def record(name: str) -> dict[str, object]:
    """A record of a training list."""
    turns = [{"from": "human", "value": "<image>\n何ですか"}, {"from": "gpt", "value": "猫です。"}]
    return {"id": name, "image": name, "conversations": turns}


def archive(images: dict[str, bytes]) -> bytes:
    """A zip with these images."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as writing:
        for name, content in images.items():
            writing.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.rotating
def test_a_list_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the hub's cache; a second run asks for no content, and a retry for nothing."""
    with HubServer({"llm-jp/llava-instruct-ja": {"llava_instruct_ja_156k.json": LIST, "README.md": b"x"}}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        job = instructions(tmp_path)
        report = run(job)
        assert report.totals.outcomes == {"ok": 1, "missing_member": 1}
        assert hub.contents() == ["llava_instruct_ja_156k.json"]
        assert run(job).reused == 1
        assert hub.contents() == ["llava_instruct_ja_156k.json"]
        asked = len(hub.requests)
        retry(job.out)
        assert len(hub.requests) == asked
        assert not [
            path for _, path, _ in hub.requests if not path.startswith(("/datasets/", "/api/datasets/", "/sto"))
        ]
    assert [one["id"] for one in json.loads(Path(f"{job.out}.json").read_text())] == ["000000033471"]
    assert PLACE in OutputLayout(Path(job.out)).job.read_text()


@pytest.mark.rotating
def test_archives_are_read_by_ranges_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the lists are downloaded; the signed URL to which the hub redirects stands in no file."""
    images = {f"{number}.jpg": jpeg(number) for number in range(20)}
    list_ = json.dumps([record(name) for name in list(images)[3:5]]).encode()
    repositories = {
        "llm-jp/japanese-photos-conversation": {"japanese_photos_conv_12k.json": list_},
        "ThePioneer/japanese-photos": {
            "photo data.zip": archive({f"photo data/{name}": body for name, body in images.items()})
        },
    }
    with HubServer(repositories) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        out = tmp_path / "data/japanese-photos/images"
        source = "hf://datasets/llm-jp/japanese-photos-conversation@883347a"
        job = Job("japanese-photos-conv", source, str(out), fetch=POLICY, processes=1)
        assert run(job).totals.ok == 2
        whole = [path for method, path, span in hub.requests if method == "GET" and path.endswith(".zip") and not span]
        assert not whole
    assert {path.name: path.read_bytes() for path in out.iterdir()} == dict(list(images.items())[3:5])
    state = OutputLayout(out).state_folder
    assert all(b"secret" not in path.read_bytes() for path in state.rglob("*") if path.is_file())


@pytest.mark.rotating
def test_only_as_many_files_are_downloaded_as_the_rows_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are those of the hub's listing."""
    (published,) = (DATA / "synthdog-ja/source").glob("*.parquet")
    names = [f"data/train-{number:05d}-of-00083-0123456789abcdef.parquet" for number in range(3)]
    files = {name: published.read_bytes() for name in (*names, "data/validation-00000-of-00001-a.parquet")}
    with HubServer({"naver-clova-ix/synthdog-ja": {"README.md": b"x", **files}}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        out = tmp_path / "data/synthdog-ja/image"
        source = "hf://datasets/naver-clova-ix/synthdog-ja@5c895d0"
        job = Job("synthdog-ja", source, str(out), options=SynthdogJaOptions(count=2), processes=1)
        assert run(job).totals.ok == 2
        assert hub.contents() == [names[0]] or hub.contents() == [names[0], names[0]]


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("status", "name", "message"),
    [
        (
            403,
            "GatedRepo",
            "its terms have to be accepted first, at https://huggingface.co/datasets/llm-jp/llava-instruct",
        ),
        (401, "RepoNotFound", "there is no such dataset, or it needs a login"),
        (404, "RepoNotFound", "there is no such dataset, or it needs a login"),
        (404, "RevisionNotFound", "there is no revision 2f1cb5c"),
        pytest.param(429, "", "the hub wants fewer requests", marks=pytest.mark.slow),  # the hub's library tries again
        pytest.param(500, "", "the hub can't be read now", marks=pytest.mark.slow),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, name: str, message: str
) -> None:
    """In one line, before anything is written."""
    with HubServer({}, statuses={"llm-jp/llava-instruct-ja": (status, name)}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        job = instructions(tmp_path)
        with pytest.raises(ManifestError, match=message) as raised:
            run(job)
    assert "\n" not in str(raised.value)
    assert not OutputLayout(Path(job.out)).state_folder.exists()


@pytest.mark.rotating
def test_a_token_opens_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the environment, and stands in no file of the output."""
    name = "llm-jp/llava-instruct-ja"
    with HubServer({name: {"llava_instruct_ja_156k.json": LIST}}, tokens={name: "hf_hunter2"}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        job = instructions(tmp_path)
        with pytest.raises(ManifestError, match="needs a login"):
            run(job)
        monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
        assert run(job).totals.ok == 1
    state = OutputLayout(Path(job.out)).state_folder
    assert all(b"hunter2" not in path.read_bytes() for path in state.rglob("*") if path.is_file())


@pytest.mark.rotating
def test_what_the_repository_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a dataset that can't be read from the hub at all."""
    with HubServer({"llm-jp/llava-instruct-ja": {"other.json": b"[]"}}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        job = instructions(tmp_path)
        for dataset in ("llava-instruct-ja", "coyo"):
            with pytest.raises(ConfigurationError, match=f"has nothing that {dataset} is read from; give the path"):
                run(replace(job, dataset=dataset))


@pytest.mark.rotating
@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same command works later."""
    with HubServer({}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
    with pytest.raises(ManifestError, match=r"llava-instruct-ja@2f1cb5c: the hub (can't be read now|does not answer)"):
        run(instructions(tmp_path))


@pytest.mark.parametrize(
    "location", ["hf://", "hf://datasets/x", "hf://models/a/b", "hf://datasets/a/b@r/../c", "hf://datasets/a/b@"]
)
def test_a_place_of_another_form_is_refused(tmp_path: Path, location: str) -> None:
    """With the form that it should have."""
    assert is_hub(location)
    with pytest.raises(ConfigurationError, match="hf://datasets/OWNER/NAME"):
        run(instructions(tmp_path, location))


def test_a_place_has_a_url_of_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hub that the environment names."""
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    place = HubPlace.parse("hf://datasets/a/b.c@70f9d1e/x/y.json")
    assert (place.repository, place.revision, place.path) == ("a/b.c", "70f9d1e", "x/y.json")
    assert place.url("photo data.zip") == "https://mirror.example/datasets/a/b.c/resolve/70f9d1e/photo%20data.zip"
    assert str(place) == "hf://datasets/a/b.c@70f9d1e/x/y.json"
    assert HubPlace.parse("hf://datasets/a/b/").revision == "main"
