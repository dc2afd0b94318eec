"""Training lists whose images are in image sets: what of them the trainer gets, and exactly how."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer
from conftest import LOOPBACK
from in_process import retry, run
from zips import Crafted, craft, jpeg, write_zip

from datafetch import Check, Job, run_check
from datafetch.datasets.archived_lists import ArchivedListOptions
from datafetch.demo.origin import Origin
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import FailureKind
from datafetch.monitor.status import read_status
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, connections=64)
TURNS = [{"from": "human", "value": "<image>\n何ですか"}, {"from": "gpt", "value": '猫 & "犬"'}]


def write_images(root: Path, *names: str) -> None:
    """Write images that no two of which are the same."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 16))


def record(id_: object, image: object, **fields: object) -> dict[str, Any]:
    """A record as it is published."""
    return {"id": id_, "image": image, "conversations": TURNS, **fields}


def turns(*values: str) -> list[dict[str, str]]:
    """Turns with these texts, from a human and the model by turns."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def job_for(tmp_path: Path, text: str, dataset: str = "llava-v1.5-subset") -> Job:
    """A job for a published list."""
    folder, name = {
        "llava-v1.5-subset": ("LLaVA-Instruct-150K", "llava_v1_5_subset_358k"),
        "ja-vg-vqa": ("ja-vg-vqa", "ja-vg-vqa_instruct_99k"),
    }[dataset]
    source = tmp_path / f"{name}.json"
    source.write_text(text)
    return Job(dataset, str(source), str(tmp_path / "data" / folder / name), fetch=POLICY, processes=1)


def written(job: Job) -> str:
    """The list that the trainer reads."""
    return Path(f"{job.out}.json").read_text()


def dropped(job: Job) -> list[tuple[int, str]]:
    """The records that it lacks, each with the reason."""
    lines = map(json.loads, OutputLayout(Path(job.out)).dropped.read_text().splitlines())
    return [(line["record"], line["reason"]) for line in lines]


FORMS: Sequence[dict[str, Any]] = (
    {"indent": 2, "ensure_ascii": False},
    {"indent": None, "ensure_ascii": True},
    {"indent": 1, "separators": (", ", " :  ")},
)


@pytest.mark.parametrize("form", FORMS, ids=["indented", "in one line", "odd"])
def test_a_list_of_which_all_images_are_there_is_unchanged(tmp_path: Path, form: dict[str, Any]) -> None:
    """To the byte: numbers and texts as ids, records without images, records with several, and odd formatting."""
    names = ("coco/train2017/1.jpg", "gqa/images/2.jpg", "ocr_vqa/images/3.jpg")
    write_images(tmp_path / "data", *names)
    records = [
        record("000000033471", names[0]),
        record(2327515, names[1], more=[1.50, {"a": None}]),
        {"id": "text", "conversations": TURNS[1:]},
        record("several", list(names), conversations=turns("<image>" * 3, "三つ")),
        record("again", names[0]),
    ]
    text = json.dumps(records, **form) + "\n \n"
    job = job_for(tmp_path, text)
    report = run(job)
    assert written(job) == text
    assert (report.totals.samples, report.totals.rows, report.totals.ok) == (3, 3, 3)
    assert not dropped(job)
    assert not Path(job.out).exists()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "LLaVA-Instruct-150K",
        "coco",
        "gqa",
        "ocr_vqa",
    ]


def test_records_that_would_end_the_training_are_left_out(tmp_path: Path) -> None:
    """Each with its reason; the others stay as they are, in order."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg", "coco/train2017/2.jpg")
    (tmp_path / "data/coco/train2017/damaged.jpg").write_bytes(jpeg(1)[:200])
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    records = [
        record(1, "coco/train2017/gone.jpg"),
        record(2, "coco/train2017/1.jpg"),
        record(3, None),
        record(4, "coco/train2017/damaged.jpg"),
        record(5, ["coco/train2017/1.jpg", "coco/train2017/gone.jpg"]),
        record(6, "../secret.jpg"),
        record(7, str(tmp_path / "secret.jpg")),
        record(8, "coco/train2017"),
        record(9, []),
        record(10, 7),
        record(11, "coco/train2017/2.jpg"),
    ]
    job = job_for(tmp_path, json.dumps(records, indent=2))
    report = run(job)
    assert written(job) == json.dumps([records[1], records[10]], indent=2)
    reasons = dict(dropped(job))
    assert sorted(reasons) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert reasons[0] == "missing_member: there is no such file: coco/train2017/gone.jpg"
    assert reasons[3].startswith("truncated")
    assert "leads out of the folder" in reasons[5]
    assert "neither a path nor a list" in reasons[2]
    assert report.totals.rows == 2
    write_images(tmp_path / "data", "coco/train2017/gone.jpg")
    retry(job.out, RetryFilter(frozenset({FailureKind.MISSING_MEMBER})))
    assert [one["id"] for one in json.loads(written(job))] == [1, 2, 5, 11]


@pytest.mark.rotating
def test_what_it_gives_passes_the_check(tmp_path: Path) -> None:
    """``verify`` opens every image of the list below the trainer's data folder; behind links if it is told so."""
    write_images(tmp_path / "shared", "1.jpg", "2.jpg")
    (tmp_path / "data/coco").mkdir(parents=True)
    (tmp_path / "data/coco/train2017").symlink_to(tmp_path / "shared")
    job = job_for(tmp_path, json.dumps([record(1, "coco/train2017/1.jpg"), record(2, "coco/train2017/2.jpg")]))
    assert run(job).totals.rows == 2
    check = Check(f"{job.out}.json", image_root=str(tmp_path / "data"))
    assert not run_check(replace(check, follow_links=True)).problems
    assert len(run_check(check).problems) == 2


def test_images_of_visual_genome_are_found_by_their_last_two_components(tmp_path: Path) -> None:
    """Whatever their records put in front; the list has the paths at which they are, and is otherwise unchanged."""
    write_images(tmp_path / "data", "vg/VG_100K/1.jpg", "vg/VG_100K_2/2.jpg", "vg/VG_100K/3.jpg")
    odd = '{"image":"other","id": 3,  "image" : "a\\/b\\/VG_100K\\/3.jpg", "conversations":' + json.dumps(TURNS) + "}"
    text = "[\n" + json.dumps(record(1, "vg/VG_100K/1.jpg")) + ",\n"
    text += json.dumps(record(2, "images/VG_100K_2/2.jpg"), ensure_ascii=False) + " ,\n" + odd + "]\n"
    job = job_for(tmp_path, text, "ja-vg-vqa")
    assert run(job).totals.rows == 3
    expected = text.replace("images/VG_100K_2/2.jpg", "vg/VG_100K_2/2.jpg").replace(
        '"a\\/b\\/VG_100K\\/3.jpg"', '"vg/VG_100K/3.jpg"'
    )
    assert written(job) == expected


FOLDER = {"llava-pretrain": "LLaVA-Pretrain", "japanese-photos-conv": "japanese-photos"}
LISTS = {"llava-pretrain": "blip_laion_cc_sbu_558k.json", "japanese-photos-conv": "japanese_photos_conv_12k.json"}


def archived(tmp_path: Path, dataset: str, records: Sequence[dict[str, Any]], **changes: Any) -> Job:
    """A job for a list with an archive next to it."""
    source = tmp_path / "published"
    source.mkdir(exist_ok=True)
    (source / LISTS[dataset]).write_text(json.dumps(records, indent=1))
    out = tmp_path / "data" / FOLDER[dataset] / "images"
    return replace(Job(dataset, str(source), str(out), fetch=POLICY, processes=1), **changes)


def trainers(job: Job) -> list[dict[str, Any]]:
    """The list next to the images."""
    found: list[dict[str, Any]] = json.loads((Path(job.out).parent / LISTS[job.dataset]).read_text())
    return found


def files(job: Job) -> dict[str, bytes]:
    """All files of the output."""
    out = Path(job.out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_llava_pretrain_takes_its_images_from_the_archive_and_the_rest_from_the_web(tmp_path: Path) -> None:
    """A member that is missing or damaged is fetched by its URL of the other list; what fails there is dropped."""
    images = {f"0045{number % 3}/{number}.jpg": jpeg(number, 16) for number in range(12)}
    records = [record(name, name) for name in sorted(images, key=lambda name: name[::-1])]
    records.append(record("not a pair", "00450/0.jpg", conversations=TURNS[:1]))
    members = [Crafted(name.encode(), content) for name, content in images.items() if name != "00450/3.jpg"]
    members[5].crc32 = 1
    members[6].crc32 = 1
    damaged, lost = members[5].name.decode(), members[6].name.decode()
    pictures = tmp_path / "pictures"
    write_images(pictures, "0.jpg")
    with Origin(pictures) as origin:
        job = archived(tmp_path, "llava-pretrain", records)
        source = Path(job.source)
        (source / "images.zip").write_bytes(craft(*members))
        good, gone = origin.url("well", "0.jpg", 1), origin.url("missing", "0.jpg", 2)
        meta = [{"image": "00450/3.jpg", "url": good}, {"image": damaged, "url": good}, {"image": lost, "url": gone}]
        (source / "blip_laion_cc_sbu_558k_meta.json").write_text(json.dumps(meta))
        report = run(job)
        assert report.totals.outcomes == {"ok": 11, "http_status": 1}
    assert files(job) == {
        **{name: content for name, content in images.items() if name != lost},
        "00450/3.jpg": jpeg(0, 16),
        damaged: jpeg(0, 16),
    }
    assert trainers(job) == [one for one in records[:-1] if one["image"] != lost]
    assert [reason for _, reason in dropped_of(job)] == [f"http_status: HTTP 404: {lost}", "the record has not 2 turns"]
    lines = pq.read_table(OutputLayout(Path(job.out)).ledgers).to_pylist()
    sources = {line["key"]: line["source"] for line in lines}
    assert {name for name, where in sources.items() if where == "fallback"} == {"00450/3.jpg", damaged, lost}


def test_a_file_in_place_of_what_the_archive_lacks_is_taken(tmp_path: Path) -> None:
    """Nothing is known that it could be compared with, so it is kept and decoded; --fresh asks the web instead."""
    pictures = tmp_path / "pictures"
    write_images(pictures, "0.jpg")
    with Origin(pictures) as origin:
        job = archived(tmp_path, "llava-pretrain", [record("a", "0/a.jpg"), record("b", "0/b.jpg")])
        write_zip(Path(job.source) / "images.zip", {"0/a.jpg": jpeg(1, 16)})
        meta = [{"image": "0/b.jpg", "url": origin.url("well", "0.jpg", 1)}]
        (Path(job.source) / "blip_laion_cc_sbu_558k_meta.json").write_text(json.dumps(meta))
        mine = Path(job.out) / "0/b.jpg"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(jpeg(77, 16))
        assert run(job).totals.outcomes == {"ok": 2}
        assert mine.read_bytes() == jpeg(77, 16)
        run(replace(job, fresh=True))
    assert files(job) == {"0/a.jpg": jpeg(1, 16), "0/b.jpg": jpeg(0, 16)}


def test_images_that_came_from_the_web_are_taken_by_a_job_for_others(tmp_path: Path) -> None:
    """They differ from the archive's, which are damaged, so the run with another list does not stop at them."""
    pictures = tmp_path / "pictures"
    write_images(pictures, "0.jpg")
    with Origin(pictures) as origin:
        job = archived(tmp_path, "llava-pretrain", [record("a", "0/a.jpg"), record("b", "0/b.jpg")])
        source = Path(job.source)
        members = [Crafted(f"0/{name}.jpg".encode(), jpeg(number, 16)) for number, name in enumerate("abc")]
        members[1].crc32 = 1
        (source / "images.zip").write_bytes(craft(*members))
        meta = [{"image": f"0/{name}.jpg", "url": origin.url("well", "0.jpg", 1)} for name in "abc"]
        (source / "blip_laion_cc_sbu_558k_meta.json").write_text(json.dumps(meta))
        assert run(job).totals.outcomes == {"ok": 2}
        records = [record(name, f"0/{name}.jpg") for name in "abc"]
        (source / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
        mine = Path(job.out) / "0/c.jpg"
        mine.write_bytes(jpeg(5, 16))
        with pytest.raises(ConfigurationError, match=r"c\.jpg is there already and has another (size|checksum)"):
            run(job)
        mine.unlink()
        report = run(job)
        assert (report.totals.ok, report.reused) == (3, 2)


def test_a_list_of_the_operators_is_not_replaced(tmp_path: Path) -> None:
    """Neither by the first run nor, if it was edited, by another or by a retry."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg")
    job = job_for(tmp_path, json.dumps([record(1, "coco/train2017/1.jpg"), record(2, "coco/train2017/gone.jpg")]))
    path = Path(f"{job.out}.json")
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"358k\.json is there already.*move it away, or use --fresh"):
        run(job)
    assert path.read_text() == "mine"
    run(replace(job, fresh=True))
    made = written(job)
    assert made != "mine"
    path.write_text(made + " ")
    with pytest.raises(ConfigurationError, match="not a list that datafetch made"):
        run(job)
    with pytest.raises(ConfigurationError, match="not a list that datafetch made"):
        retry(job.out)
    path.unlink()
    run(job)
    assert written(job) == made


def test_images_that_come_or_go_are_noticed_by_the_next_run(tmp_path: Path) -> None:
    """Otherwise the trainer would stop at a record whose image has gone, or miss one whose image has come."""
    names = ["coco/train2017/1.jpg", "coco/train2017/2.jpg", "coco/train2017/3.jpg"]
    write_images(tmp_path / "data", *names[:2])
    job = job_for(tmp_path, json.dumps([record(number, name) for number, name in enumerate(names)]))
    assert run(job).totals.outcomes == {"ok": 2, "missing_member": 1}
    (tmp_path / "data" / names[0]).rename(tmp_path / "data" / names[2])
    assert run(job).totals.outcomes == {"ok": 2, "missing_member": 1}
    assert [one["id"] for one in json.loads(written(job))] == [1, 2]
    write_images(tmp_path / "data", names[0])
    assert run(job).totals.outcomes == {"ok": 3}
    assert [one["id"] for one in json.loads(written(job))] == [0, 1, 2]


@pytest.mark.rotating
def test_the_check_knows_where_the_images_of_a_list_are(tmp_path: Path) -> None:
    """By the run that made it, whether it is named by its list or by its output, which is no folder."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg")
    job = job_for(tmp_path, json.dumps([record(1, "coco/train2017/1.jpg")]))
    run(job)
    for path in (f"{job.out}.json", job.out):
        verdict = run_check(Check(path))
        assert (verdict.images, verdict.problems) == (1, ())
        assert read_status(path).ok == 1


def test_a_kill_between_the_note_of_a_list_and_the_list_loses_neither(tmp_path: Path) -> None:
    """The list in its place is then the one before, which must not be taken for a published one."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg")
    records = [record(1, "coco/train2017/1.jpg"), record(2, "coco/train2017/gone.jpg")]
    job = job_for(tmp_path, "[]")
    Path(job.out).parent.mkdir(parents=True)
    Path(f"{job.out}.json").write_text(json.dumps(records))
    job = replace(job, source=f"{job.out}.json")
    run(job)
    first = written(job)
    note = OutputLayout(Path(job.out)).published_list / "made.json"
    sha256 = json.loads(note.read_text())["sha256"]
    note.write_text(json.dumps({"sha256": "0" * 64, "before": sha256}))
    assert json.loads(written(job)) == records[:1]
    assert run(job).totals.rows == 1
    assert written(job) == first
    assert len(dropped(job)) == 1


def test_ids_that_are_no_text_of_utf_8_are_listed(tmp_path: Path) -> None:
    """JSON may have lone surrogates, and a record that is dropped is named by its id."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg")
    records = [record("1", "coco/train2017/1.jpg"), record("\ud83d", "coco/train2017/gone.jpg")]
    job = job_for(tmp_path, json.dumps(records))
    run(job)
    assert dropped(job) == [(1, "missing_member: there is no such file: coco/train2017/gone.jpg")]


def dropped_of(job: Job) -> list[tuple[int, str]]:
    """The records that the list lacks, each with the reason."""
    lines = map(json.loads, OutputLayout(Path(job.out)).dropped.read_text().splitlines())
    return [(line["record"], line["reason"]) for line in lines]


@pytest.mark.parametrize("is_unpacked", [False, True])
def test_japanese_photos_are_found_by_their_names_alone(tmp_path: Path, *, is_unpacked: bool) -> None:
    """Wherever they lie in the archive; a name that several have is refused, and one that none has is missing."""
    members = {
        "photo data/北海道/a 1.jpg": jpeg(1, 16),
        "photo data/b.jpg": jpeg(2, 16),
        "c.jpg": jpeg(3, 16),
        "x/twice.jpg": jpeg(4, 16),
        "y/twice.jpg": jpeg(5, 16),
        "not named.jpg": jpeg(6, 16),
        "__MACOSX/b.jpg": b"",
    }
    names = ("a 1.jpg", "sub/b.jpg", "c.jpg", "twice.jpg", "gone.jpg")
    records = [record(number, name) for number, name in enumerate((*names, "c.jpg"))]
    job = archived(tmp_path, "japanese-photos-conv", records)
    if is_unpacked:
        for name, content in members.items():
            path = Path(job.source) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        write_zip(Path(job.source) / "photo data.zip", members)
    run(job)
    assert files(job) == {"a 1.jpg": jpeg(1, 16), "sub/b.jpg": jpeg(2, 16), "c.jpg": jpeg(3, 16)}
    assert [one["id"] for one in trainers(job)] == [0, 1, 2, 5]
    assert [(number, reason.partition(":")[0]) for number, reason in dropped_of(job)] == [
        (3, "missing_member"),
        (4, "missing_member"),
    ]


def test_an_archive_may_lie_elsewhere(tmp_path: Path) -> None:
    """On a server, while the list is here; a second run asks for nothing."""
    write_zip(tmp_path / "photo data.zip", {"in here/1.jpg": jpeg(1, 16)})
    with ArchiveServer(tmp_path / "photo data.zip") as server:
        options = ArchivedListOptions(archive=server.folder_url)
        job = archived(tmp_path, "japanese-photos-conv", [record(1, "1.jpg")], options=options)
        assert run(job).totals.ok == 1
        asked = len(server.requests)
        assert run(job).totals.ok == 1
        assert len(server.requests) == asked
    assert trainers(job) == [record(1, "1.jpg")]


def test_secrets_of_an_archive_are_not_stored_and_may_be_given_to_a_retry(tmp_path: Path) -> None:
    """A signed URL is an option of the run, and another one of the retry; the state folder has neither."""
    write_zip(tmp_path / "photo data.zip", {"1.jpg": jpeg(1, 16), "2.jpg": jpeg(2, 16)})
    with ArchiveServer(tmp_path / "photo data.zip") as server:
        url = server.folder_url + "photo%20data.zip?signature="
        records = [record(1, "1.jpg"), record(2, "2.jpg")]
        options = ArchivedListOptions(archive=url + "hidden1")
        job = archived(tmp_path, "japanese-photos-conv", records, options=options)
        job = replace(job, fetch=replace(POLICY, retries=0, backoff_s=0.01))
        server.on_request = lambda _: server.change(status=503) if len(server.requests) == 4 else None
        run(job)
        assert not trainers(job)
        server.on_request = lambda _: None
        server.change(status=0)
        retry(job.out, source=url + "hidden2")
        assert server.requests[-1].path.endswith("hidden2")
    assert trainers(job) == records
    state = OutputLayout(Path(job.out)).state_folder
    assert all(b"hidden" not in path.read_bytes() for path in state.rglob("*") if path.is_file())


def test_a_second_run_writes_the_same_list_and_the_published_one_may_be_replaced(tmp_path: Path) -> None:
    """The trainer's list may lie where the published one does; a copy of that is kept."""
    write_images(tmp_path / "data", "coco/train2017/1.jpg")
    records = [record(1, "coco/train2017/1.jpg"), record(2, "coco/train2017/gone.jpg")]
    job = job_for(tmp_path, "[]")
    Path(job.out).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{job.out}.json").write_text(json.dumps(records))
    job = replace(job, source=f"{job.out}.json")
    run(job)
    first = written(job)
    assert json.loads(first) == records[:1]
    assert run(job).totals.rows == 1
    assert written(job) == first
    kept = OutputLayout(Path(job.out)).published_list / "llava_v1_5_subset_358k.json"
    assert json.loads(kept.read_text()) == records
