"""Everything about one sample, as people and programs read it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from outputs import line, spool, write_job

from datafetch.cli.app import main
from datafetch.model.ledger_line import LedgerLine, ShardCounts
from datafetch.model.outcome import Permission
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.shard_summary import ShardSummary

HOST = "http://写真.example"


def image(sample: int, number: int, outcome: str = "ok", **fields: Any) -> LedgerLine:
    """Return the ledger line of an image of a document."""
    return replace(line(sample, f"{HOST}/{sample}-{number}.jpg", outcome), image=number, key=f"文書-{sample}", **fields)


def publish_documents(layout: OutputLayout, shard: str, lines: Sequence[LedgerLine], least: int) -> None:
    """Publish a shard of documents, of which those with at least so many images have a row."""
    arrived = [sum(one.outcome == "ok" for one in of) for _, of in groupby(lines, lambda one: one.sample)]
    has_row = np.array([images >= least for images in arrived], np.bool_)
    outcomes = dict(Counter(one.outcome for one in lines))
    layout.ledgers.mkdir(exist_ok=True)
    with LedgerWriter(layout.ledger(shard), shard) as ledger:
        ledger.write(lines)
        ledger.finish(ShardSummary(ShardCounts(len(has_row), int(has_row.sum()), outcomes, 2), has_row, has_row))
    layout.out.mkdir(exist_ok=True)
    (layout.out / f"{shard}.pkl").write_bytes(b"x")
    (layout.out / f"{shard}.count").write_bytes(b"x")


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output of documents that need two images: a published shard, and one in progress."""
    made = OutputLayout(tmp_path / "out")
    write_job(made, "docs", "later")
    made.job.write_bytes(orjson.dumps(orjson.loads(made.job.read_bytes()) | {"keep_at_least": 2}))
    gone = {"status": 404, "detail": "Not Found", "attempts": 3, "body_bytes": 0, "width": None, "height": None}
    late = {"status": None, "detail": "no byte came", "final_url": "", "body_bytes": 0, "format": ""}
    lines = [
        image(0, 0),
        image(0, 1, "http_status", **gone),
        image(0, 2, final_url=f"{HOST}/elsewhere\x1b[2J", permitted=(Permission.INSECURE,), is_original=True),
        image(1, 0, "http_status", **gone),
        image(1, 1, "timeout", **late),
        image(1, 2, "not_requested", **late | {"detail": "skipped: it is lost", "attempts": 0}),
        image(2, 0),
        image(2, 1, url=f"{HOST}/0-1.jpg"),
    ]
    publish_documents(made, "docs", lines, least=2)
    spool(made, "later", [image(5, 0, "connect")])
    return made


def explained(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Run the command, and return the lines that it prints; it reports nothing on standard error."""
    assert main(["explain", *words]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def test_a_sample_with_a_row(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """Its row is named, and of each image there is what was recorded; nothing can control the terminal."""
    lines = explained(capfd, str(layout.out), "文書-0")
    assert lines[:6] == [
        "key 文書-0: sample 0 of shard docs",
        "it is row 0 of docs.pkl",
        "  image 0: ok, 1 attempt, the last in 0.0 s",
        "    URL        http://写真.example/0-0.jpg",
        "    status     200",
        "    received   1,000 bytes of JPEG",
    ]
    assert lines[7:13] == [
        "  image 1: http_status 404, 3 attempts, the last in 0.0 s",
        "    URL        http://写真.example/0-1.jpg",
        "    status     404",
        "    reason     Not Found",
        "  image 2: ok, 1 attempt, the last in 0.0 s",
        "    URL        http://写真.example/0-2.jpg",
    ]
    assert "    final URL  http://写真.example/elsewhere [2J" in lines
    assert "    written    10 × 10, as received" in lines
    assert "    permitted  --insecure" in lines
    assert all(one.isprintable() for one in lines)


def test_a_lost_document_says_why(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """The images that failed are named, and those that were then not requested are counted."""
    lines = explained(capfd, str(layout.out), "文書-1")
    assert lines[1] == (
        "it is lost: of its 3 images 2 must arrive (--keep-at-least), and image 0 (http_status 404), image 1 (timeout) "
        "failed; the rest (1) was then not requested"
    )
    assert [one for one in lines if one.startswith("    reason")][2:] == [
        "    reason     its document could no longer become a row"
    ]


def test_samples_with_the_same_url_are_counted(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """The first ones are explained, each with all of its images."""
    lines = explained(capfd, str(layout.out), f"{HOST}/0-1.jpg")
    assert [one for one in lines if one.startswith("key")] == [
        "key 文書-0: sample 0 of shard docs",
        "key 文書-2: sample 2 of shard docs",
    ]
    assert "it is row 1 of docs.pkl" in lines
    same = [replace(line(number, "http://x.org/"), key=str(number)) for number in range(9)]
    spool(layout, "later", same)
    lines = explained(capfd, str(layout.out), "http://x.org/")
    assert lines[-2:] == ["", "and 4 other samples"]
    assert sum(one == "its shard is in progress, so whether it becomes a row is open" for one in lines) == 5


def test_json_has_every_column(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """There is one object, also for a sample whose shard is in progress. Nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")}
    (text,) = explained(capfd, str(layout.out), "文書-1", "--json")
    found = json.loads(text)
    (sample,) = found["samples"]
    assert (found["found"], sample["row"], sample["file"], sample["row_number"]) == (1, False, None, None)
    assert [one["outcome"] for one in sample["images"]] == ["http_status", "timeout", "not_requested"]
    (text,) = explained(capfd, str(layout.out), f"{HOST}/5-0.jpg", "--json")
    (sample,) = json.loads(text)["samples"]
    assert (sample["key"], sample["shard"], sample["row"]) == ("文書-5", "later", None)
    assert {path: path.stat().st_mtime_ns for path in layout.out.parent.rglob("*")} == before


def test_what_is_not_found_is_one_line(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2, and the line says what was looked for."""
    for wanted in ("文書-9", "http://x.org/\x1b[2J"):
        assert main(["explain", str(layout.out), wanted]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        (complaint,) = printed.err.splitlines()
        assert complaint.startswith(f"datafetch: no sample of {layout.out} has the key '{wanted[:4]}")
        assert complaint.endswith("samples that have no image, or were not reached yet, can't be found")
        assert complaint.isprintable()


def test_a_record_that_was_refused_is_found_by_its_key(layout: OutputLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """It has no image, but the list of dropped records has the reason; garbage in it is skipped."""
    record = {"record": 7, "key": "../桜.jpg", "reason": "the name leads out of the folder"}
    layout.dropped.write_bytes(b"garbage\n" + orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    assert explained(capfd, str(layout.out), "../桜.jpg") == [
        "record 7 of the published list, key ../桜.jpg",
        "is not in the trainer's list: the name leads out of the folder",
    ]
