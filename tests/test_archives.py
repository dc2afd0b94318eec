"""Image sets from zip archives: on servers of every kind, in files, unpacked, and with members of every kind."""

import json
import os
import random
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer, Behaviour, SeenRequest
from conftest import LOOPBACK
from in_process import retry, run
from preloaded import PreloadedCommand
from runs import PATIENCE_S, Run
from zips import DEFLATE64, Crafted, craft, jpeg, write_zip

from datafetch import Job
from datafetch.datasets.image_sets import ImageSetOptions
from datafetch.errors import ConfigurationError, ManifestError, ResourceError
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import FailureKind
from datafetch.output.retry_filter import RetryFilter
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_reader import SpoolReader
from datafetch.transcode import Encoding, ImageSpec

POLICY = FetchPolicy(allow_net=LOOPBACK, backoff_s=0.01, connections=64, retries=2)
IMAGES = {f"{number:012d}.jpg": jpeg(number) for number in range(60)}


LARGE = {f"{number:012d}.jpg": jpeg(number, 250) for number in range(60)}


@pytest.fixture
def large_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that takes several ranges."""
    monkeypatch.setattr("datafetch.fetch.ranges.MAX_PART_BYTES", 64 * 1024)
    path = tmp_path / "train2017.zip"
    write_zip(path, {f"train2017/{name}": content for name, content in LARGE.items()})
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """COCO's archive in small."""
    path = tmp_path / "train2017.zip"
    write_zip(path, {f"train2017/{name}": content for name, content in IMAGES.items()})
    return path


def coco(tmp_path: Path, source: object, **changes: Any) -> Job:
    """The job that takes COCO's images from an archive."""
    job = Job("coco-train2017", str(source), str(tmp_path / "data/coco/train2017"), fetch=POLICY, processes=1)
    return replace(job, **changes)


def files(job: Job) -> dict[str, bytes]:
    """All files of the output."""
    out = Path(job.out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def ledger(job: Job) -> dict[str, dict[str, Any]]:
    """The lines of the ledger, by key."""
    lines = pq.read_table(OutputLayout(Path(job.out)).ledgers).to_pylist()
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line for line in lines}


def outcomes(job: Job) -> dict[str, str]:
    """The outcome of each image, by key."""
    return {key: line["outcome"] for key, line in ledger(job).items()}


def as_members(images: Mapping[str, bytes]) -> list[Crafted]:
    """Plain members of COCO's archive."""
    return [Crafted(f"train2017/{name}".encode(), content) for name, content in images.items()]


def state_text(job: Job) -> str:
    """Everything that the state folder says, ledgers included."""
    layout = OutputLayout(Path(job.out))
    texts = [path.read_bytes().decode("latin-1") for path in layout.state_folder.rglob("*") if path.is_file()]
    return "\n".join([*texts, json.dumps(pq.read_table(layout.ledgers).to_pylist())])


def test_the_images_of_a_remote_archive_become_files(tmp_path: Path, archive: Path) -> None:
    """They have the archive's bytes, come by ranges, and a second run asks for nothing."""
    with ArchiveServer(archive) as server:
        job = coco(tmp_path, server.url)
        report = run(job)
        assert files(job) == IMAGES
        assert (report.totals.ok, report.totals.failed) == (60, 0)
        assert {line["source"] for line in ledger(job).values()} == {"archive"}
        assert len(server.requests) < 30
        asked = len(server.requests)
        assert run(job).totals.ok == 60
        assert len(server.requests) == asked
    assert run(job).totals.ok == 60  # and without a server


@pytest.mark.rotating
def test_a_local_archive_and_an_unpacked_one_give_the_same_files(tmp_path: Path, archive: Path) -> None:
    """The folder may be the one with the images, or one above it."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked/deeper")
    for number, source in enumerate(
        (archive, archive.parent, tmp_path / "unpacked", tmp_path / "unpacked/deeper/train2017")
    ):
        job = coco(tmp_path / str(number), source)
        assert run(job).totals.outcomes == {"ok": 60}, source
        assert files(job) == IMAGES


BEHAVIOURS = {
    "caps ranges": Behaviour(max_range_bytes=10_000),
    "redirects to signed URLs": Behaviour(redirects=1),
    "fails each range first": Behaviour(fails_first=True),
    "has no entity tag": Behaviour(etag=""),
    "has a weak entity tag": Behaviour(etag='W/"weak"'),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_servers_of_every_kind_give_the_same_files(tmp_path: Path, archive: Path, name: str) -> None:
    """However a server answers requests for ranges, all members arrive."""
    with ArchiveServer(archive, BEHAVIOURS[name]) as server:
        job = coco(tmp_path, server.url)
        assert run(job).totals.outcomes == {"ok": 60}
    assert files(job) == IMAGES


def test_connections_that_are_cut_again_and_again_lose_only_time(tmp_path: Path) -> None:
    """Parts become smaller until one arrives before its connection is cut."""
    images = {f"{number}.jpg": jpeg(number, 400) for number in range(24)}
    archive = tmp_path / "train2017.zip"
    write_zip(archive, {f"train2017/{name}": content for name, content in images.items()})
    assert archive.stat().st_size > 1 << 20
    with ArchiveServer(archive, Behaviour(cuts_after_bytes=150_000)) as server:
        job = coco(tmp_path, server.url, fetch=replace(POLICY, retries=0))
        assert run(job).totals.outcomes == {"ok": 24}
    assert files(job) == images


def test_a_server_without_ranges_is_refused_in_one_line(tmp_path: Path, archive: Path) -> None:
    """A whole archive is not downloaded for a member; the message says what to do."""
    with (
        ArchiveServer(archive, Behaviour(serves_ranges=False)) as server,
        pytest.raises(ManifestError, match="does not serve parts of the file; download it"),
    ):
        run(coco(tmp_path, server.url))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "wants a login"), (403, "signed URL"), (404, "no such file"), (410, "no longer has")]
)
def test_an_archive_that_can_not_be_read_is_refused(tmp_path: Path, archive: Path, status: int, reason: str) -> None:
    """The message says why, and what to do."""
    with (
        ArchiveServer(archive, Behaviour(status=status)) as server,
        pytest.raises(ManifestError, match=reason) as raised,
    ):
        run(coco(tmp_path, f"{server.url}?token=secret"))
    assert "secret" not in str(raised.value)


def test_a_changed_archive_stops_the_run(tmp_path: Path, large_archive: Path) -> None:
    """With another entity tag, no byte is taken; after --fresh the new archive is."""
    with ArchiveServer(large_archive) as server:
        job = coco(tmp_path, server.url)
        server.on_request = lambda _: server.change(etag='"second"') if len(server.requests) == 8 else None
        with pytest.raises(ManifestError, match=r"has changed on the server.*--fresh"):
            run(job)
        server.on_request = lambda _: None
        with pytest.raises(ManifestError, match="has changed"):
            run(job)
        assert run(replace(job, fresh=True)).totals.outcomes == {"ok": 60}
    assert files(job) == LARGE


def test_a_signed_url_that_expires_stops_the_run_and_another_resumes_it(tmp_path: Path, large_archive: Path) -> None:
    """What had arrived is not fetched again, although the URL is another one."""
    with ArchiveServer(large_archive) as server:
        job = coco(tmp_path, f"{server.url}?signature=one", fetch=replace(POLICY, per_host=1))
        server.on_request = lambda _: server.change(status=403) if len(server.requests) == 14 else None
        with pytest.raises(ManifestError, match="give a new one"):
            run(job)
        server.on_request = lambda _: None
        server.change(status=0)
        before = len(server.requests)
        report = run(replace(job, source=f"{server.url}?signature=two"))
        assert report.totals.outcomes == {"ok": 60}
        assert report.reused > 0
        assert {one.path.partition("?")[2] for one in server.requests[before:]} == {"signature=two"}
        assert server.asked_bytes < 1.5 * large_archive.stat().st_size + 4 * 128 * 1024
    assert files(job) == LARGE


def test_secrets_stand_in_no_file(tmp_path: Path, archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither credentials nor queries, of the URL or of what it redirects to; a login goes to its own host alone."""
    login = "Basic dXNlcjpwYXNzcGhyYXNl"  # user:passphrase
    with ArchiveServer(archive, Behaviour(redirects=1, authorization=login)) as server:
        url = server.url.replace("http://", "http://user:passphrase@") + "?key=hidden"
        job = coco(tmp_path, url)
        assert run(job).totals.outcomes == {"ok": 60}
        assert all("authorization" not in one.headers for one in server.requests)
    text = state_text(job) + caplog.text
    assert server.url in text
    for hidden in ("passphrase", "hidden", "signature", "user:", login):
        assert hidden not in text


def test_only_what_a_training_list_names_is_fetched(tmp_path: Path, archive: Path) -> None:
    """Other members are not asked for; a name that the archive lacks is listed with its reason."""
    wanted = sorted(IMAGES)[10:14]
    records: list[dict[str, Any]] = [{"id": name, "image": f"coco/train2017/{name}"} for name in (*wanted, "gone.jpg")]
    records.append({"id": 1, "image": [f"coco/train2017/{sorted(IMAGES)[20]}", "gqa/images/1.jpg"]})
    records.append({"id": "text"})
    names = tmp_path / "list.json"
    names.write_text(json.dumps(records))
    with ArchiveServer(archive) as server:
        job = coco(tmp_path, server.url, options=ImageSetOptions(only_referenced=(str(names),)))
        report = run(job)
        directory = len(IMAGES[wanted[0]]) * 60
        assert server.asked_bytes < archive.stat().st_size + directory // 2
    assert files(job) == {name: IMAGES[name] for name in (*wanted, sorted(IMAGES)[20])}
    assert outcomes(job)["gone.jpg"] == "missing_member"
    assert (report.totals.ok, report.totals.failed) == (5, 1)
    assert report.id_list_result is not None
    assert (report.id_list_result.wanted, report.id_list_result.not_found) == (6, 1)


def test_visual_genome_has_two_archives(tmp_path: Path) -> None:
    """Both are found next to each other on a server, and each folder goes under its name."""
    write_zip(tmp_path / "images.zip", {"VG_100K/1.jpg": IMAGES["000000000001.jpg"], "other/x.jpg": b""})
    write_zip(tmp_path / "images2.zip", {"VG_100K_2/2.jpg": IMAGES["000000000002.jpg"], "VG_100K_2/": b""})
    with ArchiveServer(tmp_path / "images.zip") as server:
        job = Job("visual-genome", server.folder_url, str(tmp_path / "data/vg"), fetch=POLICY, processes=1)
        assert run(job).totals.outcomes == {"ok": 2}
    assert files(job) == {"VG_100K/1.jpg": IMAGES["000000000001.jpg"], "VG_100K_2/2.jpg": IMAGES["000000000002.jpg"]}


@pytest.mark.rotating
def test_odd_archives_are_read(tmp_path: Path) -> None:
    """With numbers of 64 bits, bytes before, between and behind, comments, descriptors, deflate and deflate64."""
    images = list(IMAGES.items())
    members = as_members(dict(images[:12]))
    members[1].method = zipfile.ZIP_DEFLATED
    members[2].method = DEFLATE64
    members[3].is_64 = True
    members[4].local_extra = struct.pack("<2H", 0x7777, 40_000) + bytes(40_000)
    members[5].has_descriptor = True
    members[6].gap = os.urandom(5000)
    members[7].gap = os.urandom(100_000)
    members[11].local_extra = members[4].local_extra
    members[8].extra = struct.pack("<2H", 0x9999, 3) + b"abc"
    variants: list[dict[str, Any]] = [
        {},
        {"before": os.urandom(3000)},
        {"behind": os.urandom(3000)},
        {"behind": os.urandom(700_000)},
        {"comment": b"PK\5\6" * 4000},
        {"is_64": True},
        {"is_64": True, "before": os.urandom(3000), "behind": b"PK\5\6" + bytes(30)},
    ]
    for number, options in enumerate(variants):
        path = tmp_path / str(number) / "train2017.zip"
        path.parent.mkdir()
        path.write_bytes(craft(*members, **options))
        job = coco(path.parent, path)
        assert run(job).totals.outcomes == {"ok": 12}, options
        assert files(job) == dict(images[:12])


def bad_members() -> dict[str, tuple[Crafted, str]]:
    """Members that can't be taken, each with its outcome."""
    content = jpeg(99)
    bomb = bytes(50_000_000)
    return {
        "encrypted.jpg": (Crafted(b"", content, flags=1), "bad_member"),
        "strongly.jpg": (Crafted(b"", content, flags=0x41), "bad_member"),
        "lzma.jpg": (Crafted(b"", content, method=14), "bad_member"),
        "link.jpg": (Crafted(b"", b"/etc/passwd", mode=0o120777), "bad_member"),
        "crc.jpg": (Crafted(b"", content, crc32=1), "bad_member"),
        "short.jpg": (Crafted(b"", content, size_bytes=len(content) + 1), "bad_member"),
        "long.jpg": (
            Crafted(b"", content, method=zipfile.ZIP_DEFLATED, size_bytes=len(content) - 1),
            "bad_member",
        ),
        "bomb.jpg": (Crafted(b"", bomb, method=zipfile.ZIP_DEFLATED), "too_large"),
        "lying bomb.jpg": (Crafted(b"", bomb, method=zipfile.ZIP_DEFLATED, size_bytes=1000), "bad_member"),
        "lying bomb64.jpg": (Crafted(b"", bomb, method=DEFLATE64, size_bytes=1000), "bad_member"),
        "damaged.jpg": (Crafted(b"", content, method=zipfile.ZIP_STORED, crc32=zlib.crc32(b"")), "bad_member"),
        "a|b.jpg": (Crafted(b"", content), "bad_member"),
        "con.jpg": (Crafted(b"", content), "bad_member"),
        "text.jpg": (Crafted(b"", b"this is no image"), "not_an_image"),
    }


@pytest.mark.rotating
def test_members_that_can_not_be_taken_have_an_outcome(tmp_path: Path) -> None:
    """Each is listed with its reason, nothing of it is written, and its neighbours arrive."""
    bad = bad_members()
    members = as_members(dict(list(IMAGES.items())[:4]))
    for name, (member, _) in bad.items():
        member.name = f"train2017/{name}".encode()
        members.append(member)
    members += as_members(dict(list(IMAGES.items())[4:6]))
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    assert outcomes(job) == {
        **dict.fromkeys(list(IMAGES)[:6], "ok"),
        **{name: outcome for name, (_, outcome) in bad.items()},
    }
    assert files(job) == dict(list(IMAGES.items())[:6])
    assert all(line["detail"] for line in ledger(job).values() if line["outcome"] != "ok")


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Several entries for the same bytes are how a small archive becomes a large one."""
    members = as_members(dict(list(IMAGES.items())[:3]))
    members += [Crafted(b"train2017/again.jpg", IMAGES["000000000001.jpg"], start=0)]
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    assert Counter(outcomes(job).values())["bad_member"] >= 2
    assert outcomes(job)["again.jpg"] == "bad_member"
    assert "overlap" in ledger(job)["again.jpg"]["detail"]


def test_a_name_that_several_members_have_is_ambiguous(tmp_path: Path) -> None:
    """None of them is taken, nor is a file in their place, which might be either."""
    (tmp_path / "data/coco/train2017").mkdir(parents=True)
    (tmp_path / "data/coco/train2017/000000000001.jpg").write_bytes(jpeg(1))
    members = as_members(dict(list(IMAGES.items())[:3]))
    members += [Crafted(b"copy/train2017/000000000001.jpg", jpeg(77))]
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    lines = pq.read_table(OutputLayout(Path(job.out)).ledgers).to_pylist()
    assert Counter((line["key"], line["outcome"]) for line in lines) == {
        ("000000000000.jpg", "ok"): 1,
        ("000000000001.jpg", "missing_member"): 2,
        ("000000000002.jpg", "ok"): 1,
    }


def test_names_never_leave_the_folder(tmp_path: Path) -> None:
    """Whatever a member is called, nothing is written outside of the output."""
    names = [
        b"../train2017/..",
        b"/train2017/../../x.jpg",
        b"train2017/..",
        b"train2017/\0.jpg",
        b"..\\train2017/x.jpg",
    ]
    members = [Crafted(name, jpeg(5)) for name in names] + as_members(dict(list(IMAGES.items())[:1]))
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    assert set(files(job)) <= {"000000000000.jpg", "x.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {"train2017.zip", "data"}
    assert {path.name for path in (tmp_path / "data/coco").iterdir()} == {"train2017", "train2017.datafetch"}


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 1000, b"PK\5\6" + bytes(18), os.urandom(300_000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """In one line that names it."""
    (tmp_path / "train2017.zip").write_bytes(content)
    with pytest.raises(ManifestError, match=r"train2017\.zip"):
        run(coco(tmp_path, tmp_path / "train2017.zip"))


def test_files_that_are_there_are_taken(tmp_path: Path, archive: Path) -> None:
    """They are not fetched and not written, and --fresh does not delete them."""
    out = tmp_path / "data/coco/train2017"
    out.mkdir(parents=True)
    there = sorted(IMAGES)[5:25]
    for name in there:
        (out / name).write_bytes(IMAGES[name])
        (out / name).chmod(0o444)
    before = {name: (out / name).stat() for name in there}
    with ArchiveServer(archive) as server:
        job = coco(tmp_path, server.url)
        report = run(job)
        assert (report.totals.ok, report.reused) == (60, 20)
        assert {name for name, line in ledger(job).items() if line["source"] == "have"} == set(there)
        assert run(replace(job, fresh=True)).reused == 20
    assert files(job) == IMAGES
    after = {name: (out / name).stat() for name in there}
    assert [(one.st_ino, one.st_mtime_ns) for one in after.values()] == [
        (one.st_ino, one.st_mtime_ns) for one in before.values()
    ]


def test_other_images_may_be_wanted_later(tmp_path: Path, archive: Path) -> None:
    """With other training lists, or all: what is there is taken, and only the rest is fetched."""
    names = sorted(IMAGES)
    lists = []
    for number, wanted in enumerate((names[:10], names[5:20])):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([{"image": f"coco/train2017/{name}"} for name in wanted]))
        lists.append(str(path))
    with ArchiveServer(archive) as server:
        first = coco(tmp_path, server.url, options=ImageSetOptions(only_referenced=(lists[0],)))
        assert run(first).totals.ok == 10
        both = replace(first, options=ImageSetOptions(only_referenced=tuple(lists)))
        report = run(both)
        assert (report.totals.ok, report.reused) == (20, 10)
        report = run(replace(first, options=None))
        assert (report.totals.ok, report.reused) == (60, 20)
        server.requests.clear()
        report = run(first)
        assert (report.totals.ok, report.reused) == (10, 10)
        assert not server.requests
    assert files(first) == IMAGES


@pytest.mark.parametrize("content", [b"another file", jpeg(1234)])
def test_another_file_is_never_overwritten(tmp_path: Path, archive: Path, content: bytes) -> None:
    """The run stops and names it; --fresh replaces it."""
    out = tmp_path / "data/coco/train2017"
    out.mkdir(parents=True)
    name = sorted(IMAGES)[7]
    (out / name).write_bytes(content.ljust(len(IMAGES[name]), b"\0")[: len(IMAGES[name])])
    job = coco(tmp_path, archive)
    with pytest.raises(ConfigurationError, match=rf"{name} is there already.*checksum.*--fresh"):
        run(job)
    assert (out / name).read_bytes() != IMAGES[name]
    run(replace(job, fresh=True))
    assert files(job) == IMAGES


def test_a_file_that_appears_during_the_run_is_not_overwritten(tmp_path: Path, large_archive: Path) -> None:
    """Nor is one that appears between two runs, when its image has been fetched; what was fetched is not lost."""
    name = sorted(LARGE)[7]
    mine = tmp_path / "data/coco/train2017" / name
    with ArchiveServer(large_archive) as server:
        job = coco(tmp_path, server.url)

        def put(_: SeenRequest) -> None:
            if len(server.requests) == 14:  # most of the archive has come
                mine.parent.mkdir(parents=True, exist_ok=True)
                mine.write_bytes(b"another file")

        server.on_request = put
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=rf"{name} has appeared since.*move it away, or use --fresh"):
                run(job)
            assert mine.read_bytes() == b"another file"
        server.on_request = lambda _: None
        mine.unlink()
        asked = len(server.requests)
        assert run(job).totals.ok == 60
        assert len(server.requests) == asked
    assert files(job) == LARGE


def test_what_the_archive_lacks_may_be_in_its_place(tmp_path: Path, archive: Path) -> None:
    """It can be compared with nothing, so it is taken if it decodes; that is all that the trainer asks for."""
    out = tmp_path / "data/coco/train2017"
    out.mkdir(parents=True)
    (out / "mine.jpg").write_bytes(jpeg(1234))
    (out / "broken.jpg").write_bytes(jpeg(1234)[:300])
    names = tmp_path / "list.json"
    wanted = ["mine.jpg", "broken.jpg", "gone.jpg", "../../../list.json"]
    wanted += ["000000000000.jpg", "000000000000.JPG", "000000000000.jpg/x.jpg"]
    names.write_text(json.dumps([{"image": f"coco/train2017/{name}"} for name in wanted]))
    job = coco(tmp_path, archive, options=ImageSetOptions(only_referenced=(str(names),)))
    run(job)
    assert outcomes(job) == {
        "mine.jpg": "ok",
        "broken.jpg": "truncated",
        "gone.jpg": "missing_member",
        "../../../list.json": "bad_member",
        "000000000000.jpg": "ok",
        "000000000000.JPG": "bad_member",
        "000000000000.jpg/x.jpg": "bad_member",
    }
    assert ledger(job)["mine.jpg"]["source"] == "have"
    assert (out / "mine.jpg").read_bytes() == jpeg(1234)


def test_a_member_that_can_not_be_read_may_be_in_its_place(tmp_path: Path) -> None:
    """The operator may have been able to unpack it; a file that does not decode is no image, as always."""
    members = as_members(dict(list(IMAGES.items())[:3]))
    members[1].flags = members[2].flags = 1  # encrypted
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    out = tmp_path / "data/coco/train2017"
    out.mkdir(parents=True)
    (out / "000000000001.jpg").write_bytes(jpeg(1))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    assert list(outcomes(job).values()) == ["ok", "ok", "bad_member"]
    assert ledger(job)["000000000001.jpg"]["source"] == "have"


def test_copies_of_directories_leave_nothing_after_a_kill(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the output is claimed they are files without a name."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    found: list[str] = []
    with ArchiveServer(archive) as server:
        server.on_request = lambda _: found.extend(path.name for path in folder.iterdir())
        run(coco(tmp_path, server.url))
        assert len(server.requests) > 2
    assert not found


def test_a_temporary_folder_that_is_full_is_said_to_be(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive itself can be read."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(
        ResourceError, match=r"cannot write the archive's central directory to .*not there, which TMPDIR can"
    ):
        run(coco(tmp_path, archive))


def test_sizes_that_can_not_be_true_are_refused_unread(tmp_path: Path) -> None:
    """A small member may not make the run ask for gigabytes, nor may numbers of 64 bits overflow."""
    members = as_members(dict(list(IMAGES.items())[:4]))
    members[1].method = zipfile.ZIP_DEFLATED
    members[1].compressed_bytes = 3_000_000_000
    members[2].is_64 = True
    members[2].size_bytes = members[2].compressed_bytes = 2**63 + 5
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    with ArchiveServer(tmp_path / "train2017.zip") as server:
        job = coco(tmp_path, server.url)
        run(job)
        assert server.asked_bytes < 4 * (tmp_path / "train2017.zip").stat().st_size
    assert outcomes(job)["000000000001.jpg"] == outcomes(job)["000000000002.jpg"] == "bad_member"
    assert "size" in ledger(job)["000000000001.jpg"]["detail"]


def test_ends_of_directories_that_are_none_are_passed_over(tmp_path: Path) -> None:
    """A few requests find the real one; thousands of false ones are not followed."""
    false = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 60, 0, 0)
    members = as_members(dict(list(IMAGES.items())[:4]))
    (tmp_path / "train2017.zip").write_bytes(craft(*members, behind=false * 20))
    with ArchiveServer(tmp_path / "train2017.zip") as server:
        job = coco(tmp_path, server.url)
        assert run(job).totals.outcomes == {"ok": 4}
        (tmp_path / "train2017.zip").write_bytes(craft(*members, behind=false * 2000))
        server.requests.clear()
        with pytest.raises(ManifestError, match="is not a zip archive"):
            run(replace(job, fresh=True))
        assert len(server.requests) < 100


def test_a_server_that_sends_a_byte_at_a_time_is_given_up(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an archive would take as many requests as it has bytes."""
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_FAILED_RANGES", 2)
    with ArchiveServer(archive, Behaviour(max_range_bytes=1)) as server:
        with pytest.raises(ManifestError, match="the server sends only a few bytes of a range at a time"):
            run(coco(tmp_path, server.url))
        assert len(server.requests) < 20


def test_an_unpacked_source_is_compared_with_what_is_there(tmp_path: Path) -> None:
    """By all of its content, since there is no checksum; --fresh replaces what differs."""
    unpacked, out = tmp_path / "unpacked/train2017", tmp_path / "data/coco/train2017"
    for folder in (unpacked, out):
        folder.mkdir(parents=True)
    for name, content in IMAGES.items():
        (unpacked / name).write_bytes(content)
    first, second, *_ = sorted(IMAGES)
    (out / first).write_bytes(IMAGES[first])
    (out / second).write_bytes(IMAGES[second][:-1])
    job = coco(tmp_path, unpacked)
    with pytest.raises(ConfigurationError, match=rf"{second} is there already and is another file than that in the so"):
        run(job)
    report = run(replace(job, fresh=True))
    assert (report.totals.ok, report.reused) == (60, 1)
    assert files(job) == IMAGES


def test_half_of_an_unpacked_set_is_refused(tmp_path: Path) -> None:
    """The other half would be missing in silence."""
    (tmp_path / "vg/VG_100K").mkdir(parents=True)
    (tmp_path / "vg/VG_100K/1.jpg").write_bytes(jpeg(1))
    for source in (tmp_path / "vg", tmp_path / "vg/VG_100K"):
        with pytest.raises(ManifestError, match="has no images in a folder VG_100K_2"):
            run(Job("visual-genome", str(source), str(tmp_path / "data/vg"), fetch=POLICY, processes=1))


def test_starting_over_deletes_nothing_behind_a_link(tmp_path: Path, archive: Path) -> None:
    """Neither if the output has become a link to a set that others share, nor if one of its folders has."""
    job = coco(tmp_path, archive)
    run(job)
    shared = tmp_path / "shared"
    Path(job.out).rename(shared)
    Path(job.out).symlink_to(shared)
    with pytest.raises(ConfigurationError, match="symbolic link, and --fresh would delete what it leads to"):
        run(replace(job, fresh=True))
    assert {path.name for path in shared.iterdir()} == set(IMAGES)


def test_a_file_where_a_folder_is_needed_is_refused_at_once(tmp_path: Path) -> None:
    """And not when everything has been fetched."""
    for number, name in enumerate(("images.zip", "images2.zip")):
        write_zip(tmp_path / name, {f"VG_100K{'_2' * number}/{number}.jpg": jpeg(number)})
    out = tmp_path / "data/vg"
    out.mkdir(parents=True)
    (out / "VG_100K").write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match="VG_100K is a file where a folder is needed; move it away"):
        run(Job("visual-genome", str(tmp_path), str(out), fetch=POLICY, processes=1))


def test_encoded_images_are_not_taken_by_a_job_for_others(tmp_path: Path, archive: Path) -> None:
    """They can be compared with nothing, so the job is refused, and what is there stays."""
    lists = []
    for count in (4, 8):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps([{"image": f"coco/train2017/{name}"} for name in sorted(IMAGES)[:count]]))
        lists.append(ImageSetOptions(only_referenced=(str(path),)))
    job = coco(tmp_path, archive, image=ImageSpec(encode=Encoding.RECIPE), options=lists[0])
    run(job)
    with pytest.raises(ConfigurationError, match="started with different settings"):
        run(replace(job, options=lists[1]))
    assert run(job).reused == 4


def test_starting_over_never_deletes_what_is_read(tmp_path: Path, archive: Path) -> None:
    """The output itself may be the source, but not with --fresh, which empties it."""
    job = coco(tmp_path, archive)
    run(job)
    for source in (job.out, str(tmp_path / "data")):
        with pytest.raises(ConfigurationError, match="--fresh would delete what is to be read"):
            run(replace(job, source=source, fresh=True))
    assert files(job) == IMAGES


def test_a_linked_folder_is_read_and_never_written(tmp_path: Path, archive: Path) -> None:
    """A complete set that others share is taken as it is; one with gaps is refused, since nothing is written there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for name, content in IMAGES.items():
        (shared / name).write_bytes(content)
    out = tmp_path / "data/coco/train2017"
    out.parent.mkdir(parents=True)
    out.symlink_to(shared)
    job = coco(tmp_path, archive)
    assert run(job).reused == 60
    assert {path.name for path in shared.iterdir()} == set(IMAGES)
    (shared / sorted(IMAGES)[3]).unlink()
    with pytest.raises(ConfigurationError, match="symbolic link"):
        run(replace(job, fresh=True))
    assert len(list(shared.iterdir())) == 59


def test_a_wrong_checksum_is_retried(tmp_path: Path) -> None:
    """It may have been damaged on its way; if the same bytes come twice, it was not."""
    members = as_members(dict(list(IMAGES.items())[:3]))
    members[1].crc32 = 77
    (tmp_path / "train2017.zip").write_bytes(craft(*members))
    job = coco(tmp_path, tmp_path / "train2017.zip")
    run(job)
    assert outcomes(job)["000000000001.jpg"] == "bad_member"
    assert retry(job.out).retried == 1
    assert outcomes(job)["000000000001.jpg"] == "corrupt"
    assert retry(job.out).retried == 0


@pytest.mark.rotating
def test_a_retry_takes_members_from_the_archive(
    tmp_path: Path, large_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed because the server did is fetched by a later retry, and nothing else is."""
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_DOWN_S", 0.0)
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_FAILED_RANGES", 1000)
    with ArchiveServer(large_archive) as server:
        job = coco(tmp_path, server.url, fetch=replace(POLICY, retries=0, per_host=1))
        server.on_request = lambda _: server.change(status=503) if len(server.requests) == 14 else None
        run(job)
        assert "ok" in outcomes(job).values()
        assert "http_status" in outcomes(job).values()
        server.on_request = lambda _: None
        server.change(status=0)
        failed = [key for key, outcome in outcomes(job).items() if outcome != "ok"]
        assert retry(job.out).retried == len(failed)
    assert files(job) == LARGE


def test_a_server_that_is_gone_stops_the_run_and_costs_no_image(
    tmp_path: Path, large_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members that are left are not recorded as failed one by one; the same command resumes."""
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_DOWN_S", 0.0)
    monkeypatch.setattr("datafetch.fetch.ranges._MAX_FAILED_RANGES", 2)
    with ArchiveServer(large_archive) as server:
        job = coco(tmp_path, server.url, fetch=replace(POLICY, retries=0, per_host=1))
        server.on_request = lambda _: server.change(status=503) if len(server.requests) == 14 else None
        with pytest.raises(ManifestError, match=r"can't be read now \(.*\); run the same command again later"):
            run(job)
        server.on_request = lambda _: None
        server.change(status=0)
        run(job)
        assert Counter(outcomes(job).values())["ok"] > 40
        retry(job.out)
    assert files(job) == LARGE


def test_members_larger_than_max_body_are_refused(tmp_path: Path, archive: Path) -> None:
    """By the size in the directory; a retry with a larger limit takes them."""
    limit = sorted(map(len, IMAGES.values()))[30]
    job = coco(tmp_path, archive, fetch=replace(POLICY, max_body_bytes=limit))
    run(job)
    too_large = {name for name, content in IMAGES.items() if len(content) > limit}
    assert {key for key, outcome in outcomes(job).items() if outcome == "too_large"} == too_large
    retry(job.out, RetryFilter(frozenset({FailureKind.TOO_LARGE})), change=lambda before: replace(before, fetch=POLICY))
    assert files(job) == IMAGES


def _mutants(seed: int, original: bytes, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    directory = original.index(b"PK\1\2")
    for _ in range(count):
        mutant = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            # Most of the structure is in the directory, and in the local headers.
            start = rng.choice([directory, directory, rng.choice(_local_headers(original)), 0])
            stop = len(mutant) if start in (0, directory) else start + 60
            position = rng.randrange(start, min(stop, len(mutant)))
            match rng.randrange(4):
                case 0:
                    mutant[position] = rng.randrange(256)
                case 1:
                    mutant[position : position + 4] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4)])
                case 2:
                    del mutant[position : position + rng.randint(1, 40)]
                case 3:
                    mutant[position:position] = rng.randbytes(rng.randint(1, 40))
        yield bytes(mutant)


def _local_headers(content: bytes) -> list[int]:
    found, position = [], content.find(b"PK\3\4")
    while position >= 0:
        found.append(position)
        position = content.find(b"PK\3\4", position + 1)
    return found


@pytest.mark.rotating
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_mutated_archives_end_each_member_in_one_outcome(tmp_path: Path, seed: int) -> None:
    """Nothing is written outside of the folder, nothing that the archive does not have, and no run ends in a bug."""
    images = {f"{number}.jpg": jpeg(number, 8) for number in range(12)}
    members = as_members(images)
    members[1].method = members[2].method = zipfile.ZIP_DEFLATED
    members[3].method = DEFLATE64
    members[4].is_64 = True
    members[5].has_descriptor = True
    original = craft(*members, is_64=seed % 2 == 1)
    taken = 0
    for number, mutant in enumerate(_mutants(seed, original, 12)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "train2017.zip").write_bytes(mutant)
        job = coco(folder, folder / "train2017.zip")
        try:
            report = run(job)
        except (ManifestError, ConfigurationError):
            continue
        finally:
            assert {path.name for path in folder.iterdir()} <= {"train2017.zip", "data"}
        lines = pq.read_table(OutputLayout(Path(job.out)).ledgers).to_pylist()
        assert len(lines) == report.totals.images
        arrived = files(job)
        assert len(arrived) == report.totals.ok
        assert set(arrived.values()) <= set(images.values())
        taken += len(arrived)
    assert taken


KILLS = 10


def ended(out: Path) -> set[str]:
    """The keys of all images that have an outcome, in the spools and in published shards."""
    layout = OutputLayout(out)
    keys = {
        spooled.sample.key for path in layout.all_spools.rglob("*.spool") for spooled in SpoolReader(path).samples()
    }
    ledgers = pq.read_table(layout.ledgers)["key"].to_pylist() if layout.ledgers.exists() else []
    return keys | set(ledgers)


def members_in(archive: Path, requests: Sequence[SeenRequest]) -> set[str]:
    """The members of which requests ask for a byte of the data."""
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        spans = {
            Path(one.filename).name: (one.header_offset + 40, one.header_offset + 40 + one.file_size) for one in infos
        }
        directory = opened.start_dir
    ranges = [(one.start, one.stop) for one in requests if one.stop < directory]
    return {name for name, (start, stop) in spans.items() if any(low < stop and start < high for low, high in ranges)}


@pytest.mark.rotating
@pytest.mark.slow
def test_a_run_killed_ten_times_fetches_no_member_twice(tmp_path: Path, preloaded: PreloadedCommand) -> None:
    """After each kill, nothing is asked for that had an outcome; in the end the tree is that of an undisturbed run."""
    images = {f"{number:05d}.jpg": jpeg(number, 100) for number in range(1500)}
    archive = tmp_path / "train2017.zip"
    write_zip(archive, {f"train2017/{name}": content for name, content in images.items()})
    rng = random.Random(5)
    out = tmp_path / "root/coco/train2017"
    resumed, status = 0, None
    with (
        ThreadPoolExecutor(1) as killer,  # reading what has ended would block the server
        ArchiveServer(archive, Behaviour(bytes_per_s=600_000, max_range_bytes=64 * 1024)) as server,
    ):
        command = [sys.executable, "-m", "datafetch", "prepare", "coco-train2017", "--source", server.url]
        command += [
            "--root",
            str(tmp_path / "root"),
            "--allow-net",
            "127.0.0.0/8",
            "--processes",
            "1",
            "--per-host",
            "2",
        ]
        for number in range(KILLS + 1):
            before, first = ended(out), len(server.requests)
            last = first + rng.randint(6, 10)
            with Run(command, preloaded=preloaded) as running:
                # Every other run is killed wherever it is, the others once an image has ended: how many requests
                # are made before that differs from machine to machine.
                anywhere = number % 2 == 0

                def kill(
                    process: Any = running.process,
                    last: int = last,
                    before: set[str] = before,
                    anywhere: bool = anywhere,
                ) -> None:
                    with suppress(FileNotFoundError):  # a spool is being published; the next request looks again
                        if len(server.requests) >= last and (anywhere or ended(out) - before):
                            process.kill()

                def request_arrived(_: SeenRequest, kill: Callable[[], None] = kill, number: int = number) -> None:
                    if number < KILLS:
                        killer.submit(kill)

                server.on_request = request_arrived
                status = running.process.wait(PATIENCE_S)
            assert not before & members_in(archive, server.requests[first:])
            resumed += bool(before)
    assert status == 0
    assert resumed >= KILLS - 1  # the second run is killed once an image has ended, so all later ones resume
    assert {path.name: path.read_bytes() for path in out.iterdir()} == images
