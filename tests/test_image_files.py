"""Datasets whose images become files: bytes as received, complete or absent, and the list that the trainer reads."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import LOOPBACK
from in_process import retry, run
from PIL import Image
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run, dying_at_a_step, run_undisturbed

from datafetch import Check, Encoding, ImageSpec, Job, Report, read_status, run_check
from datafetch.cli.render import show_report
from datafetch.datasets.ocr_vqa import OcrVqaOptions
from datafetch.demo.origin import Origin
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.fetch import FetchPolicy
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.layout import OutputLayout

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=32, per_host=32, retries=0)
LIST = "llm-jp_mm_pair_step0_558k.json"
OPTIONS = ("--allow-net", "127.0.0.0/8", "--connections", "8", "--processes", "1", "--retries", "0")
Pictures = tuple[Path, list[str]]
_numbers = count()


@dataclass(frozen=True, slots=True)
class Pairs:
    """A published list, and the pictures that its records lead to.

    Attributes:
        root: The trainer's data folder.
        source: The folder with the list.
        records: The records, as published.
        pictures: The origin's picture for each record.
    """

    root: Path
    source: Path
    records: Sequence[dict[str, Any]]
    pictures: Sequence[bytes]

    @property
    def out(self) -> Path:
        """The folder of the images."""
        return self.root / "alt_pair_ja" / "image_step0"

    @property
    def layout(self) -> OutputLayout:
        """The paths of the output."""
        return OutputLayout(self.out)

    @property
    def trainers(self) -> Path:
        """The path of the list that the trainer reads."""
        return self.root / "alt_pair_ja" / LIST

    def job(self, **changes: Any) -> Job:
        """Return the job that fetches the images."""
        job = Job("llm-jp-pairs-step0", str(self.source), str(self.out), fetch=POLICY, processes=1)
        return replace(job, **changes)

    def files(self) -> dict[str, bytes]:
        """Return all files in the folder of the images."""
        paths = [path for path in self.out.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.out)): path.read_bytes() for path in paths}

    def expected(self, numbers: Sequence[int]) -> dict[str, bytes]:
        """Return the files that the folder has once the images of these records have arrived."""
        return {self.records[number]["image"]: self.pictures[number] for number in numbers}


def conversations(text: str) -> list[dict[str, str]]:
    """Return a conversation of two turns."""
    return [{"from": "human", "value": "<image>\n説明"}, {"from": "gpt", "value": text}]


def publish(tmp_path: Path, origin: Origin, pictures: Pictures, behaviours: Mapping[int, str]) -> Pairs:
    """Publish a list of twelve records, some of whose images fail."""
    folder, names = pictures[0], pictures[1][::5]  # of all formats
    run_number = next(_numbers)
    records = [
        {
            "id": f"{number:09d}",
            "image": f"a/{number:09d}.jpg" if number % 2 else f"{number:09d}.jpg",
            "url": origin.url(behaviours.get(number, "well"), names[number], f"saved-{run_number}"),
            "conversations": conversations(f"絵 {number}"),
        }
        for number in range(12)
    ]
    source = tmp_path / "source"
    source.mkdir()
    (source / LIST).write_text(json.dumps(records, ensure_ascii=False, indent=2))
    return Pairs(tmp_path / "root", source, records, [(folder / name).read_bytes() for name in names[:12]])


@pytest.fixture
def pairs(tmp_path: Path, origin: Origin, pictures: Pictures) -> Pairs:
    """A list of which two images are missing, one succeeds at the second request, and one name leads elsewhere."""
    made = publish(tmp_path, origin, pictures, {2: "missing", 5: "html", 7: "flaky"})
    made.records[9]["image"] = "../9.jpg"
    (made.source / LIST).write_text(json.dumps(made.records, ensure_ascii=False, indent=2))
    return made


_CERTAIN_STEPS = 40  # every run takes as many

ARRIVING = [0, 1, 3, 4, 6, 8, 10, 11]


def test_images_are_saved_as_received(pairs: Pairs) -> None:
    """Files are the received bytes, whatever their format or suffix, and there are no others."""
    report = run(pairs.job())
    assert pairs.files() == pairs.expected(ARRIVING)
    assert len({Image.open(BytesIO(content)).format for content in pairs.files().values()}) > 2
    assert (report.totals.samples, report.totals.rows, report.totals.ok, report.totals.failed) == (12, 8, 8, 3)
    assert report.totals.written_bytes == sum(map(len, pairs.files().values()))
    assert not (pairs.root / "alt_pair_ja" / "9.jpg").exists()


def test_the_trainers_list_has_the_records_whose_image_arrived(pairs: Pairs) -> None:
    """The list is in published order; the published one is kept, with a list of what was dropped and why."""
    run(pairs.job())
    assert json.loads(pairs.trainers.read_text()) == [pairs.records[number] for number in ARRIVING]
    kept = pairs.layout.published_list / LIST
    assert kept.read_bytes() == (pairs.source / LIST).read_bytes()
    dropped = [orjson.loads(line) for line in pairs.layout.dropped.read_bytes().splitlines()]
    assert [
        (line["record"], line["key"], line["reason"].removesuffix(": no format on the allow-list")) for line in dropped
    ] == [
        (2, "000000002", "http_status: HTTP 404"),
        (5, "000000005", "not_an_image"),
        (7, "000000007", "http_status: HTTP 500"),
        (9, "000000009", "the name of its file leads out of the folder, or nowhere: ../9.jpg"),
    ]


def test_refused_records_are_in_the_summary(pairs: Pairs, capfd: pytest.CaptureFixture[str]) -> None:
    """With the place of the reasons; a record whose file would lie below another's costs no other, in a retry too."""
    pairs.records[11]["image"] = "000000010.jpg/桜.jpg"
    (pairs.source / LIST).write_text(json.dumps(pairs.records, ensure_ascii=False, indent=2))
    arriving = [number for number in ARRIVING if number != 11]
    check_refused(pairs, run(pairs.job()), arriving, capfd)
    check_refused(pairs, retry(str(pairs.out)), sorted([*arriving, 7]), capfd)


def check_refused(pairs: Pairs, report: Report, arrived: Sequence[int], capfd: pytest.CaptureFixture[str]) -> None:
    """Check what there is of a list with two refused records, the last of which clashes with another."""
    show_report(report, as_json=False)
    printed = capfd.readouterr().out.splitlines()
    assert "2 records refused for a file name or a form that can't be used" in printed
    lacking = 12 - len(arrived)
    reasons = f"it lacks {lacking} of 12 records, reasons: {pairs.layout.dropped}"
    assert f"the trainer's list: {pairs.trainers}; {reasons}" in printed
    assert printed[0] == f"llm-jp-pairs-step0: {len(arrived)} of 12 samples in {pairs.out}"
    assert report.summary()["notes"] == {"refused": 2}
    assert pairs.files() == pairs.expected(arrived)
    assert json.loads(pairs.trainers.read_text()) == [pairs.records[number] for number in arrived]
    dropped = [orjson.loads(line) for line in pairs.layout.dropped.read_bytes().splitlines()]
    assert [line["record"] for line in dropped] == [number for number in range(12) if number not in arrived]
    assert dropped[-1]["reason"] == "an earlier record has the name of its folder as a file: 000000010.jpg/桜.jpg"


@pytest.mark.rotating
def test_the_output_passes_verify(pairs: Pairs) -> None:
    """``verify`` accepts the folder and the list, and finds a damaged image."""
    run(pairs.job())
    for out in (pairs.out, pairs.trainers):
        verdict = run_check(Check(str(out)))
        assert (verdict.is_sound, verdict.samples, verdict.images) == (True, 8, 8), verdict.problems
    (pairs.out / "000000000.jpg").write_bytes(b"spoilt")
    (pairs.out / "000000004.jpg").unlink()
    verdict = run_check(Check(str(pairs.out)))
    assert verdict.problem_count == 2
    status = read_status(pairs.out)
    assert (status.state, status.shards_published) == ("interrupted", 0)


def test_a_retry_adds_records_to_the_list(pairs: Pairs) -> None:
    """A retry needs no source, and does not change the other files."""
    run(pairs.job())
    before = {path: path.stat().st_mtime_ns for path in pairs.out.rglob("*.jpg")}
    (pairs.source / LIST).unlink()
    report = retry(str(pairs.out))
    assert report.retried == 1
    arrived = sorted([*ARRIVING, 7])
    assert pairs.files() == pairs.expected(arrived)
    assert json.loads(pairs.trainers.read_text()) == [pairs.records[number] for number in arrived]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_status(pairs.out).state == "complete"
    assert read_status(pairs.out).published_bytes == sum(map(len, pairs.files().values()))
    report = retry(str(pairs.out), RetryFilter.all())
    assert report.retried == 2
    assert pairs.files() == pairs.expected(arrived)


def test_the_published_list_may_be_at_the_path_of_the_trainers(pairs: Pairs) -> None:
    """It is copied before it is overwritten, and the copy is found by the next run, also with --fresh."""
    pairs.trainers.parent.mkdir(parents=True)
    published = (pairs.source / LIST).read_bytes()
    (pairs.source / LIST).rename(pairs.trainers)
    job = pairs.job(source=str(pairs.trainers))
    run(job)
    first = pairs.trainers.read_bytes()
    assert first != published
    report = run(job)
    assert (report.reused, report.totals.samples) == (8, 12)
    assert pairs.trainers.read_bytes() == first
    report = run(replace(job, fresh=True, source=str(pairs.trainers.parent)))
    assert (report.reused, report.totals.samples) == (0, 12)
    assert (pairs.layout.published_list / LIST).read_bytes() == published
    pairs.trainers.write_bytes(published + b"\n")
    with pytest.raises(ConfigurationError, match=r"not a list that datafetch made \(the published one is kept as"):
        run(job)
    assert (pairs.layout.published_list / LIST).read_bytes() == published


def test_third_party_files_are_kept(pairs: Pairs) -> None:
    """An image folder may hold third-party files; starting over deletes only this job's images."""
    (pairs.out / "a").mkdir(parents=True)
    (pairs.out / "a" / "third_party.jpg").write_bytes(b"third-party")
    run(pairs.job())
    assert pairs.files() == pairs.expected(ARRIVING) | {"a/third_party.jpg": b"third-party"}
    with pytest.raises(ConfigurationError, match="--encode: received, now recipe"):
        run(pairs.job(image=ImageSpec()))
    run(pairs.job(image=ImageSpec(), fresh=True, limit=2))
    files = pairs.files()
    assert set(files) == {"000000000.jpg", "a/000000001.jpg", "a/third_party.jpg"}
    assert Image.open(BytesIO(files["a/000000001.jpg"])).format == "JPEG"
    assert len(json.loads(pairs.trainers.read_text())) == 2


@pytest.mark.rotating
def test_a_missing_file_is_fetched_again(pairs: Pairs) -> None:
    """A missing or damaged file is fetched again, with the failures of its shard, but no intact file is."""
    run(pairs.job())
    (pairs.out / "a" / "000000003.jpg").unlink()
    (pairs.out / "000000004.jpg").write_bytes(b"")
    report = run(pairs.job())
    assert pairs.files() == pairs.expected(sorted([*ARRIVING, 7]))
    assert (report.reused, report.requests) == (6, 5)
    (pairs.out / "000000000.jpg").write_bytes(b"")
    run(pairs.job(fetch=replace(POLICY, allow_net=())))  # no image can be fetched any more
    assert pairs.files() == pairs.expected([1, 3, 4, 6, 7, 8, 10, 11])
    assert run_check(Check(str(pairs.out))).is_sound


def test_no_index_leads_out_of_the_folder(pairs: Pairs) -> None:
    """No file outside of the output is read or deleted because of what an index contains."""
    run(pairs.job())
    victim = pairs.root / "victim"
    victim.write_bytes(b"precious")
    index = pairs.layout.image_index("part-00000")
    index.write_bytes(orjson.dumps({"name": "../../victim", "size_bytes": 8, "number": "0.image", "sample": 0}) + b"\n")
    with pytest.raises(ConfigurationError, match="names a file outside"):
        run(pairs.job(fresh=True))
    assert victim.read_bytes() == b"precious"


@pytest.mark.rotating
@pytest.mark.parametrize(
    "step", [35, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 11, 19, 27, 43, 51, 59))]
)
def test_a_run_killed_at_any_step_resumes(
    tmp_path: Path, origin: Origin, pictures: Pictures, preloaded: PreloadedCommand, step: int
) -> None:
    """Files are complete or absent, and the output is that of an undisturbed run."""
    pairs = publish(tmp_path, origin, pictures, {2: "missing", 5: "html"})
    arriving = [number for number in range(12) if number not in (2, 5)]
    command = [
        *(sys.executable, "-m", "datafetch", "prepare", "llm-jp-pairs-step0", "--source", str(pairs.source)),
        *("--root", str(pairs.root), *OPTIONS),
    ]
    with Run(command, dying_at_a_step(" prepare llm-jp-pairs-step0 ", step, pairs.root), preloaded) as killed:
        killed.process.wait(PATIENCE_S)
    assert killed.process.returncode != 0 or step > _CERTAIN_STEPS
    whole = pairs.expected(arriving)
    assert all(whole[name] == content for name, content in pairs.files().items())
    if pairs.trainers.exists():
        assert all((pairs.out / record["image"]).exists() for record in json.loads(pairs.trainers.read_text()))
    run_undisturbed(command, preloaded)
    assert pairs.files() == whole
    assert json.loads(pairs.trainers.read_text()) == [pairs.records[number] for number in arriving]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "is not a JSON list; --source takes the published list"),
        ("[", "is cut short; --source takes"),
        ("[]", "no url under"),
        ('[{"image": "a.jpg"}]', "no url under .* --url-key; the keys that they have: image"),
    ],
)
def test_an_invalid_list_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """The error is one line that says what to do, before anything is written."""
    (tmp_path / LIST).write_text(text)
    with pytest.raises(ManifestError, match=reason):
        run(Job("llm-jp-pairs-step0", str(tmp_path), str(tmp_path / "root" / "out"), fetch=POLICY))
    assert not (tmp_path / "root").exists()


@pytest.fixture
def covers(tmp_path: Path, origin: Origin, pictures: Pictures) -> Job:
    """A job for OCR-VQA, with six covers, one of which is a placeholder of one pixel."""
    folder, names = pictures
    gif = BytesIO()
    Image.new("P", (1, 1)).save(gif, "GIF")
    (folder / "stand-in.gif").write_bytes(gif.getvalue())
    run_number = next(_numbers)
    chosen = [*names[:5], "stand-in.gif"]
    source = {f"{n:09d}X": {"imageURL": origin.url("well", name, f"c{run_number}")} for n, name in enumerate(chosen)}
    (tmp_path / "dataset.json").write_text(json.dumps(source))
    return Job("ocr-vqa", str(tmp_path), str(tmp_path / "root" / "ocr_vqa" / "images"), fetch=POLICY, processes=1)


@pytest.mark.rotating
def test_covers_are_saved_under_the_trainers_names(covers: Job, pictures: Pictures) -> None:
    """Covers are saved as received and always named .jpg; a placeholder of one pixel is not saved."""
    report = run(covers)
    folder, names = pictures
    files = {path.name: path.read_bytes() for path in Path(covers.out).iterdir()}
    assert files == {f"{n:09d}X.jpg": (folder / names[n]).read_bytes() for n in range(5)}
    assert report.totals.outcomes == {"ok": 5, "placeholder": 1}
    verdict = run_check(Check(covers.out))
    assert (verdict.is_sound, verdict.loader, verdict.images) == (True, "torch", 5)
    (Path(covers.out) / "000000002X.jpg").write_bytes(b"GIF89a")
    assert run_check(Check(covers.out)).problems == (
        "000000002X.jpg: the image can't be decoded (truncated: the header is cut off or corrupt)",
    )


def test_unusable_covers_are_not_requested(covers: Job, tmp_path: Path) -> None:
    """Covers with unusable names or without a URL are not requested; the others are."""
    published = json.loads((tmp_path / "dataset.json").read_text())
    url = published["000000000X"]
    (tmp_path / "dataset.json").write_text(json.dumps({"1": url, "": url, "a/b": url, "2": {}, "3": 5}))
    report = run(covers)
    assert (report.totals.samples, report.totals.rows, report.totals.images) == (5, 1, 1)
    assert [path.name for path in Path(covers.out).rglob("*")] == ["1.jpg"]


def test_only_referenced_covers_are_fetched(covers: Job, tmp_path: Path) -> None:
    """Ids may be repeated; an id that is not published is counted."""
    images = [f"ocr_vqa/images/{n:09d}X.jpg" for n in (1, 3, 77)]
    training = [
        {"id": "0", "image": images[0]},
        {"id": "1", "image": [images[0], images[1]]},
        {"id": "2", "image": "coco/train2017/000000000009.jpg"},
        {"id": "3", "image": images[2]},
        {"id": "4"},
    ]
    (tmp_path / "training.json").write_text(json.dumps(training))
    options = OcrVqaOptions(only_referenced=str(tmp_path / "training.json"))
    report = run(replace(covers, options=options))
    assert sorted(path.name for path in Path(covers.out).iterdir()) == ["000000001X.jpg", "000000003X.jpg"]
    assert report.id_list_result is not None
    assert (report.id_list_result.wanted, report.id_list_result.not_found) == (3, 1)
    with pytest.raises(ConfigurationError, match="started with different settings"):
        run(covers)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("dataset.json", "[]", "is not a JSON object; --source takes"),
        ("dataset.json", '{"1": {}}', "no cover has an imageURL"),
        ("dataset.json", "{", "is not JSON"),
        ("dataset.json", "{}", "no cover has an imageURL"),
        ("dataset.json", '{"1": {"imageURL": "u"}', "is cut short"),
        ("training.json", '[{"image": "coco/1.jpg"}]', "names no image in ocr_vqa/images"),
        ("training.json", "{}", "is not a JSON list; --only-referenced takes"),
    ],
)
def test_invalid_lists_of_covers_are_refused(covers: Job, tmp_path: Path, name: str, text: str, reason: str) -> None:
    """The error is one line that says what to do."""
    (tmp_path / "training.json").write_text('[{"image": "ocr_vqa/images/000000001X.jpg"}]')
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=reason):
        run(replace(covers, options=OcrVqaOptions(only_referenced=str(tmp_path / "training.json"))))


def test_covers_can_be_encoded_as_in_the_recipe(covers: Job) -> None:
    """An option makes the codec encode them instead of keeping the received bytes."""
    run(replace(covers, image=ImageSpec(encode=Encoding.RECIPE, min_pixels=2)))
    assert {Image.open(BytesIO(path.read_bytes())).format for path in Path(covers.out).iterdir()} == {"JPEG"}
