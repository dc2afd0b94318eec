"""Verification finds everything on which the trainer would fail, and nothing else."""

import asyncio
import base64
import errno
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import psutil
import pytest
from bodies import chunk, saved
from PIL import Image

from datafetch.cli.app import main
from datafetch.cli.progress_line import verifying_line
from datafetch.model.kinds import Loader
from datafetch.model.outcome import Encoded, Outcome
from datafetch.output.formats import PickleShardWriter, encode_row
from datafetch.output.formats.pickle_form import PREAMBLE
from datafetch.store.layout import OutputLayout
from datafetch.verify import Check, Verdict, VerifyProgress, run_check, verify_output
from datafetch.verify.findings import (
    BATCH_BYTES,
    MAX_KEPT_PROBLEMS,
    Examination,
    Findings,
    ImageToDecode,
    Location,
    Problem,
    batched,
)
from datafetch.verify.images import MAX_BYTES_PER_PROCESS, ImageDecoder
from datafetch.verify.record_list import RecordList

Row: TypeAlias = dict[str, Any]
JPEG = saved(Image.new("RGB", (16, 12), "teal"), "JPEG")
JPEG_BASE64 = base64.b64encode(JPEG).decode()
PATIENCE_S = 120
GONE: Any = object()
"""Stands for a key that is not there."""


class HostileValue:
    """A value whose unpickling by Python's own loader creates a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (f"__import__('os').mkdir({str(self._folder)!r})",)


def pair(**changes: Any) -> Row:
    """Create a row of pairs."""
    return changed({"id": 7, "text": "a cat", "image": JPEG_BASE64}, changes)


def document(**changes: Any) -> Row:
    """Create a row of documents, with two images."""
    row = {
        "url": "http://x.org/",
        "text_list": ["one", "two"],
        "image_info": [picture(), picture(matched_text_index=1)],
        "similarity_matrix": [[0.1, 0.2], [0.3, 0.4]],
    }
    return changed(row, changes)


def picture(**changes: Any) -> Row:
    """Create an image of a document."""
    return changed({"image_base64": JPEG_BASE64, "matched_text_index": 0}, changes)


def record(**changes: Any) -> Row:
    """Create a record of a JSON list."""
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    return changed({"id": "7", "image": "a/cat.jpg", "conversations": turns}, changes)


def changed(row: Row, changes: Mapping[str, Any]) -> Row:
    """Return the row with other values, and without those that are ``GONE``."""
    return {name: value for name, value in {**row, **changes}.items() if value is not GONE}


def write_shard(folder: Path, rows: list[Row], name: str = "part-00000") -> Path:
    """Write a shard in datafetch's format, and return its rows file."""
    folder.mkdir(exist_ok=True)
    sink = PickleShardWriter(folder, name)
    for row in rows:
        sink.copy_row((encode_row(row),))
    sink.finish()
    sink.close()
    return folder / f"{name}.pkl"


def write_list(folder: Path, records: object) -> Path:
    """Write a JSON list next to the one image that all of its records may have."""
    (folder / "a").mkdir(exist_ok=True)
    (folder / "a" / "cat.jpg").write_bytes(JPEG)
    path = folder / "list.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def verified(out: Path, **options: Any) -> Verdict:
    """Verify an output, for one rank unless the options say otherwise."""
    return run_check(Check(str(out), **({"world_size": 1, "batch": 1, "group": 1, "processes": 1} | options)))


def trainer_can_open(body: bytes) -> bool:
    """Return whether the trainer could open and convert an image."""
    try:
        Image.open(BytesIO(body)).convert("RGB")
    except (OSError, SyntaxError, struct.error):
        return False
    return True


@pytest.mark.rotating
@pytest.mark.parametrize("by_datafetch", [True, False])
def test_intact_shards_pass(tmp_path: Path, pictures: tuple[Path, list[str]], by_datafetch: bool) -> None:
    """Pictures of every format and mode pass, as base64 and as bytes, in shards of datafetch and of others."""
    bodies = [(pictures[0] / name).read_bytes() for name in pictures[1][:44]]
    deep = saved(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG")
    rows = [pair(image=base64.b64encode(body).decode()) for body in [*bodies[::2], deep]]
    rows += [pair(image=GONE, rawbytes=body, text=GONE, caption="a dog") for body in bodies[1::2]]
    rows.append(pair(image=base64.encodebytes(JPEG).decode()))  # with line breaks, which the trainer ignores
    path = write_shard(tmp_path / "out", rows)
    if not by_datafetch:
        path.write_bytes(pickle.dumps(rows))
    assert all(trainer_can_open(body) for body in [*bodies, deep])
    verdict = verified(tmp_path / "out")
    assert verdict.problems == ()
    assert (verdict.is_sound, verdict.loader, verdict.shards) == (True, Loader.COYO, 1)
    assert (verdict.samples, verdict.images) == (len(rows), len(rows))


@pytest.mark.rotating
async def test_a_callers_own_loop_is_not_blocked(tmp_path: Path) -> None:
    """Documents pass as well, verified inside a running loop, which nothing blocks."""
    await asyncio.to_thread(write_shard, tmp_path / "out", [document()] * 3)
    verdict = await verify_output(Check(str(tmp_path / "out"), world_size=1, processes=1, batch=3))
    assert verdict.problems == ()
    assert (verdict.loader, verdict.samples, verdict.images) == (Loader.MMC4, 3, 6)


WRONG_PAIRS: list[tuple[Row, str]] = [
    (pair(text=GONE), "has neither text nor caption"),
    (pair(text=None), "text is missing or None, not a str"),
    (pair(text=GONE, caption=5), "caption is of type int, not a str"),
    (pair(image=GONE), "has no image"),
    (pair(image=None), "image is missing or None, not a str"),
    (pair(image=JPEG), "image is of type bytes, not a str"),
    (pair(image=GONE, rawbytes=JPEG_BASE64), "rawbytes is of type str, not bytes"),
    (pair(image="!" + JPEG_BASE64), "image is not base64"),
    (pair(image=JPEG_BASE64[:-5]), "image is not base64"),
    (pair(image="桜"), "image is not base64"),
    (pair(image=""), "the image can't be decoded (not_an_image"),
    (pair(image=base64.b64encode(b"<html>no</html>").decode()), "the image can't be decoded (not_an_image"),
    # Pillow could read it, but the codec refuses it.
    (
        pair(image=base64.b64encode(saved(Image.new("RGB", (9, 9)), "PPM")).decode()),
        "the image can't be decoded (not_an_image: no format on the allow-list)",
    ),
]


def test_problems_of_pairs_are_named(tmp_path: Path) -> None:
    """Each problem is one line with the file, the row and its id, and intact rows next to it are not affected."""
    write_shard(tmp_path / "out", [row for wrong, _ in WRONG_PAIRS for row in (pair(), wrong)])
    verdict = verified(tmp_path / "out")
    assert len(verdict.problems) == verdict.problem_count == len(WRONG_PAIRS)
    for number, (found, (_, problem)) in enumerate(zip(verdict.problems, WRONG_PAIRS, strict=True)):
        assert found.startswith(f"part-00000.pkl row {2 * number + 1} (id 7): {problem}")
    assert not verdict.is_sound
    assert verdict.samples == 2 * len(WRONG_PAIRS)


WRONG_DOCUMENTS: list[tuple[Row, list[str]]] = [
    (document(text_list="ab"), [": text_list is not a list of str"]),
    (document(text_list=["one", None]), [": text_list is not a list of str"]),
    (document(image_info=[], similarity_matrix=[]), [": image_info is not a list with at least one image"]),
    (document(image_info=GONE), [": image_info is not a list with at least one image"]),
    (document(similarity_matrix=GONE), [": similarity_matrix is missing or None, not a list"]),
    (document(similarity_matrix=[[0.1]]), [": similarity_matrix has 1 rows for 2 images"]),
    (document(image_info=[picture(), 5]), [" image 1: is of type int, not a dict"]),
    (
        document(image_info=[picture(), picture(matched_text_index=2)]),
        [" image 1: matched_text_index does not point"],
    ),
    (
        document(image_info=[picture(matched_text_index=-1)] * 2),
        [" image 0: matched_text_index does not point", " image 1: matched_text_index does not point"],
    ),
    (
        document(image_info=[picture(), picture(matched_text_index=True)]),
        [" image 1: matched_text_index is of type"],
    ),
    (
        document(image_info=[picture(), picture(matched_text_index=GONE)]),
        [" image 1: matched_text_index is missing"],
    ),
    (
        document(image_info=[picture(), picture(image_base64=GONE)]),
        [" image 1: image_base64 is missing or None"],
    ),
    (document(image_info=[picture(), picture(image_base64="?")]), [" image 1: image_base64 is not base64"]),
    (
        document(image_info=[picture(), picture(image_base64=base64.b64encode(JPEG[:300]).decode())]),
        [" image 1: the image can't be decoded (truncated"],
    ),
]


@pytest.mark.rotating
def test_problems_of_documents_are_named(tmp_path: Path) -> None:
    """Each problem is one line with the file, the row, its URL and the image."""
    write_shard(tmp_path / "out", [document(), *(row for row, _ in WRONG_DOCUMENTS)])
    verdict = verified(tmp_path / "out")
    assert verdict.loader is Loader.MMC4
    expected = [
        f"part-00000.pkl row {number} (url http://x.org/){problem}"
        for number, (_, problems) in enumerate(WRONG_DOCUMENTS, 1)
        for problem in problems
    ]
    assert len(verdict.problems) == len(expected)
    for found, start in zip(verdict.problems, expected, strict=True):
        assert found.startswith(start)


@pytest.mark.rotating
def test_truncated_images_are_found(tmp_path: Path, pictures: tuple[Path, list[str]]) -> None:
    """Pictures of every format that are cut in the middle do not pass, and would stop the trainer."""
    bodies = [(pictures[0] / name).read_bytes() for name in pictures[1][:22]]
    cut = [body[: len(body) // 2] for body in bodies]
    agreed = [number for number, body in enumerate(cut) if not trainer_can_open(body)]
    assert len(agreed) >= 20
    write_shard(tmp_path / "out", [pair(image=base64.b64encode(body).decode()) for body in cut])
    problems = verified(tmp_path / "out").problems
    assert [int(line.split()[2]) for line in problems] == agreed
    assert all("the image can't be decoded (truncated: " in line for line in problems)


@pytest.mark.rotating
def test_a_png_that_the_trainers_pillow_refuses_is_found(tmp_path: Path) -> None:
    """A run removes the texts of such a PNG; in a third-party shard it still has them, and stops the trainer."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))
    body = saved(Image.new("RGB", (16, 12), "teal"), "PNG")
    body = body[:33] + text + body[33:]
    with pytest.raises(ValueError, match="too large"):
        trainer_can_open(body)
    write_shard(tmp_path / "out", [pair(image=base64.b64encode(body).decode())])
    (problem,) = verified(tmp_path / "out").problems
    assert "the image can't be decoded (corrupt: " in problem


def _foreign_file(out: Path) -> None:
    (out / "README").touch()


def _foreign_folder(out: Path) -> None:
    (out / "old.pkl").mkdir()


def _pipe(out: Path) -> None:
    os.mkfifo(out / "pipe.count")


def _link_to_nothing(out: Path) -> None:
    (out / "link.pkl").symlink_to("nowhere")


def _no_count(out: Path) -> None:
    (out / "part-00000.count").unlink()


def _no_rows_file(out: Path) -> None:
    (out / "part-00000.pkl").unlink()


def _count_of_words(out: Path) -> None:
    (out / "part-00000.count").write_text("two")


def _huge_count(out: Path) -> None:
    (out / "part-00000.count").write_text("2" + " " * 100_000)


def _wrong_count(out: Path) -> None:
    (out / "part-00000.count").write_text("3\n")


def _empty_shard(out: Path) -> None:
    write_shard(out, [], "part-00000")


def _cut_short(out: Path) -> None:
    path = out / "part-00000.pkl"
    os.truncate(path, path.stat().st_size - 10)


def _no_pickle(out: Path) -> None:
    (out / "part-00000.pkl").write_bytes(b"PK\3\4 no pickle")


def _no_list(out: Path) -> None:
    (out / "part-00000.pkl").write_bytes(pickle.dumps({"text": "x"}))


def _row_that_is_no_dict(out: Path) -> None:
    body = pickle.dumps("x", 3)[2:-3]
    frame = pickle.FRAME + struct.pack("<Q", len(body)) + body
    (out / "part-00000.pkl").write_bytes(
        PREAMBLE + pickle.MARK + encode_row(pair()) + frame + pickle.APPENDS + pickle.STOP
    )


def _circle(out: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    (out / "part-00000.pkl").write_bytes(pickle.dumps([{"text": circle}]))


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (_foreign_file, "README: does not belong to a shard"),
        (_foreign_folder, "old.pkl: does not belong to a shard"),
        (_pipe, "pipe.count: does not belong to a shard"),
        (_link_to_nothing, "link.pkl: does not belong to a shard"),
        (_no_count, "part-00000.pkl: has no counterpart part-00000.count"),
        (_no_rows_file, "part-00000.count: has no counterpart part-00000.pkl"),
        (_count_of_words, "part-00000.count: is not a number"),
        (_huge_count, "part-00000.count: is not a number"),
        (_wrong_count, "part-00000.count: says 3, but part-00000.pkl has 2 rows"),
        (_empty_shard, "part-00000.pkl: has no rows"),
        (_cut_short, "part-00000.pkl: is damaged or cut short at byte"),
        (_no_pickle, "part-00000.pkl: not a pickle"),
        (_no_list, "part-00000.pkl: is not a pickled list of dicts"),
        (_row_that_is_no_dict, "part-00000.pkl row 1: a row is a str, not a dict"),
        (_circle, "part-00000.pkl: has rows that are not plain values"),
    ],
)
def test_problems_of_a_folder_are_named(tmp_path: Path, harm: Callable[[Path], None], problem: str) -> None:
    """Each problem of a file is one line that names it, and the shard next to it is still examined."""
    out = tmp_path / "out"
    write_shard(out, [pair(), pair()])
    write_shard(out, [pair()], "part-00001")
    harm(out)
    verdict = verified(out)
    assert len(verdict.problems) == 1
    assert verdict.problems[0].startswith(problem)
    assert verdict.images >= 1


@pytest.mark.rotating
@pytest.mark.parametrize("by_datafetch", [True, False])
def test_a_hostile_shard_calls_nothing(tmp_path: Path, by_datafetch: bool) -> None:
    """A pickle that calls a function is a problem, and the function is not called."""
    path = write_shard(tmp_path / "out", [pair(), pair(trap=HostileValue(tmp_path / "made"))])
    if not by_datafetch:
        path.write_bytes(pickle.dumps([pair(), pair(trap=HostileValue(tmp_path / "made"))]))
    verdict = verified(tmp_path / "out")
    assert len(verdict.problems) == 1
    assert "calls builtins.eval, which is not allowed" in verdict.problems[0]
    assert not (tmp_path / "made").exists()


def test_an_untrusted_id_does_not_break_a_line(tmp_path: Path) -> None:
    """Control characters are replaced, and a million characters are shortened."""
    write_shard(tmp_path / "out", [pair(id="\x1b[2J\n\ud800" + "x" * 1_000_000, text=None)])
    (problem,) = verified(tmp_path / "out").problems
    assert len(problem) < 200
    assert problem.isprintable()
    problem.encode()


@pytest.mark.parametrize(
    ("counts", "options", "problem"),
    [
        ([8], {"world_size": 2}, "1 shard is fewer than 2 ranks"),
        ([8, 3], {"world_size": 2, "group": 4}, "the rank with the fewest samples has less than one group of 4"),
        ([12, 12], {"world_size": 2, "group": 4, "batch": 2}, "each rank reads 3 groups of 4"),
    ],
)
def test_shards_that_the_ranks_cannot_read_are_a_problem(
    tmp_path: Path, counts: list[int], options: dict[str, int], problem: str
) -> None:
    """Too few shards, a rank without a group, and a number of groups that is no multiple of the batch are named."""
    for number, rows in enumerate(counts):
        write_shard(tmp_path / "out", [pair()] * rows, f"{number}")
    (found,) = verified(tmp_path / "out", **options).problems
    assert found.startswith(problem)
    assert "datafetch reshard" in found


def test_shards_that_no_rank_reads_are_reported_but_no_problem(tmp_path: Path) -> None:
    """Shards that no rank reads are counted, and a reshard is suggested."""
    for number, rows in enumerate([8, 8, 16]):
        write_shard(tmp_path / "out", [pair()] * rows, f"{number}")
    verdict = verified(tmp_path / "out", world_size=2, group=4, batch=2)
    assert verdict.is_sound
    summary = verdict.summary()
    assert (summary["shards_per_rank"], summary["samples_per_rank"], summary["used"]) == (1, 8, 16)
    assert summary["lost_share"] == pytest.approx(16 / 32)
    lines = list(verdict.lines())
    assert "3 shards are not a multiple of 2: 1 with 16 samples are never read" in lines
    assert any("datafetch reshard" in line for line in lines)
    assert lines[-1] == "all checks passed"


@pytest.mark.rotating
def test_the_default_group_is_that_of_the_loader(tmp_path: Path) -> None:
    """Pairs are grouped by four and documents by one unless the options say otherwise."""
    write_shard(tmp_path / "pairs", [pair()] * 8)
    write_shard(tmp_path / "documents", [document()] * 8)
    for folder, group in (("pairs", 4), ("documents", 1)):
        assert verified(tmp_path / folder, group=None).summary()["group"] == group


def verify_lines(capfd: pytest.CaptureFixture[str], out: Path, *options: str) -> tuple[int, list[str]]:
    """Run the command on an output; its exit code and what it prints, without its first line."""
    code = main(["verify", str(out), "--processes", "1", *options])
    return code, capfd.readouterr().out.splitlines()[1:]


@pytest.mark.rotating
def test_an_output_is_verified_for_the_ranks_that_it_was_made_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The number of ranks comes from the output's own record and is said, and ``--world-size`` overrides it."""
    write_shard(tmp_path / "cut", [pair()] * 50)
    out = tmp_path / "猫"
    ranks = ("--world-size", "8", "--batch", "3", "--group", "2")
    assert main(["reshard", str(tmp_path / "cut"), str(out), *ranks]) == 0
    capfd.readouterr()
    code, lines = verify_lines(capfd, out)
    assert (code, lines[1:]) == (0, ["all checks passed"])
    assert lines[0] == (
        "for 8 ranks, as it was made (batch 3, group 2): each rank reads 6 samples from 1 of 8 shards; an epoch "
        "uses 48 of 50 samples and loses 4.00%"
    )
    assert main(["verify", str(out), "--processes", "1", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["world_size"], summary["world_size_from"], summary["batch"]) == (8, "record", 3)
    code, lines = verify_lines(capfd, out, "--world-size", "9", "--batch", "1")
    assert (code, lines[0].partition(":")[0]) == (1, "for 9 ranks, as given (batch 1, group 2)")
    assert lines[1] == (
        "8 shards are fewer than 9 ranks, so the loader crashes; 'datafetch reshard SRC DST --world-size 9' makes "
        "shards that fit"
    )
    code, lines = verify_lines(capfd, out, "--world-size", "40")
    most = "--world-size 8 is the most that they allow"
    assert lines[1].endswith(f"; 50 rows are too few for 40 ranks, which take at least 240; {most}")
    OutputLayout(out).reshard_record.write_text('{"world_size": "8"}')
    code, lines = verify_lines(capfd, out)
    assert code == 1
    assert lines[0].startswith(
        "for 64 ranks, by default, since nothing says for how many it was made (batch 2, group 4"
    )


@pytest.mark.rotating
def test_shards_that_were_not_resharded_need_not_fit_any_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the ranks would read of an output of ``--no-reshard`` is a fact; of one that was to fit, it is a problem."""
    out = tmp_path / "out"
    write_shard(out, [pair()] * 20)
    layout = OutputLayout(out)
    layout.state_folder.mkdir()
    layout.report.write_text("{}")
    layout.ledgers.mkdir()
    layout.ledger("part-00000").touch()
    job: Row = {"format": 1, "dataset": "coyo", "limit": None, "shards": {"part-00000": []}}
    layout.job.write_text(json.dumps({**job, "asked": {"world_size": None}}))
    code, lines = verify_lines(capfd, out)
    assert code == 0
    assert lines == [
        (
            "made with --no-reshard, so these shards are not cut for a number of ranks; for 64 ranks: 20 rows are too "
            "few for 64 ranks, which take at least 512; --world-size 2 is the most that they allow"
        ),
        "all checks passed",
    ]
    layout.job.write_text(json.dumps({**job, "asked": {"world_size": 4}}))
    assert verify_lines(capfd, out)[1][1].endswith(
        "; --world-size 2 is the most that they allow: run the command that made the output again with that"
    )
    assert verify_lines(capfd, out, "--world-size", "2")[0] == 1
    for asked, text in ((2, "for 2 ranks, as its run was asked for"), (-1, "for 64 ranks, by default")):
        layout.job.write_text(json.dumps({**job, "asked": {"world_size": asked}}))
        code, lines = verify_lines(capfd, out)
        assert code == 1
        assert lines[0].startswith(text)


def test_kept_problems_take_bounded_memory() -> None:
    """Only what is shown is kept, however long the keys and texts of the rows are."""
    huge = "x" * 1_000_000
    findings = Findings()
    tracemalloc.start()
    for number in range(100):
        location = Location("part-00000.pkl", number, key=f"url {number}{huge}")
        findings.add(Examination(1, (Problem(location, f"{huge}{number}"),)))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert len(findings.kept_problems) == 100
    assert all(len(line) < 600 for line in findings.kept_problems)


@pytest.mark.rotating
def test_the_problems_of_one_document_are_bounded(tmp_path: Path) -> None:
    """An invalid image takes a byte in the row, but hundreds in a problem."""
    write_shard(tmp_path / "out", [document(image_info=[None] * 1_000_000)])
    verdict = verified(tmp_path / "out")
    assert verdict.problem_count < 5000
    assert any("only the first 4,096 were checked" in problem for problem in verdict.problems)


def test_batches_are_bounded_by_their_problems() -> None:
    """A batch is bounded by its problems as well as by its images."""
    problems = tuple(Problem(Location("a"), "b") for _ in range(4000))
    sizes = [len(batch) for batch in batched(Examination(1, problems) for _ in range(50))]
    assert max(sizes) <= 2


def test_the_images_of_a_record_are_examined_one_by_one(tmp_path: Path) -> None:
    """A record may have any number of images, of which one at a time is in memory."""
    names = [f"{number}.jpg" for number in range(5)]
    for name in names:
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "list.json").write_text(json.dumps([{"image": names, "conversations": []}]))
    examined = list(RecordList(tmp_path / "list.json", tmp_path).examine())
    assert [len(one.images) for one in examined] == [0, 1, 1, 1, 1, 1]
    assert sum(one.samples for one in examined) == 1


@pytest.mark.rotating
def test_all_problems_are_counted_and_some_are_kept(tmp_path: Path) -> None:
    """Of thousands of problems the first thousand are kept, a hundred are shown, and the others are counted."""
    write_shard(tmp_path / "out", [pair(text=None, image=GONE)] * MAX_KEPT_PROBLEMS)
    verdict = verified(tmp_path / "out")
    assert (len(verdict.problems), verdict.problem_count) == (MAX_KEPT_PROBLEMS, 2 * MAX_KEPT_PROBLEMS)
    lines = list(verdict.lines())
    assert lines[-2:] == [f"and {2 * MAX_KEPT_PROBLEMS - 100:,} more", "2,000 problems found"]
    assert len(lines) == 104


def test_the_job_determines_the_loader_and_the_remarks(tmp_path: Path) -> None:
    """Without ``--loader`` the dataset of the job decides, and an incomplete run is mentioned."""
    write_shard(tmp_path / "out", [document()])
    state = tmp_path / "out.datafetch"
    state.mkdir()
    job: Row = {"format": 1, "dataset": "coyo", "limit": None, "shards": {"part-00000": [], "part-00001": []}}
    (state / "job.json").write_text(json.dumps(job))
    verdict = verified(tmp_path / "out")
    assert verdict.loader is Loader.COYO
    assert verdict.remarks == ("the run is not complete: 2 of 2 shards of its manifest are missing",)
    assert len(verdict.problems) == 2


def _escape(folder: Path) -> Row:
    (folder.parent / "outside.jpg").write_bytes(JPEG)
    return record(image="a/../../outside.jpg")


def _absolute(folder: Path) -> Row:
    return record(image=str(folder / "a" / "cat.jpg"))


def _named_pipe(folder: Path) -> Row:
    os.mkfifo(folder / "pipe.jpg")
    return record(image="pipe.jpg")


def _huge(folder: Path) -> Row:
    (folder / "huge.jpg").touch()
    os.truncate(folder / "huge.jpg", 2**40)
    return record(image="huge.jpg")


def _broken(folder: Path) -> Row:
    (folder / "broken.jpg").write_bytes(JPEG[:-200])
    return record(image="broken.jpg")


def turns(*values: str) -> list[dict[str, str]]:
    """Turns with these texts, from a human and the model by turns."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


WRONG_RECORDS: list[tuple[Callable[[Path], Row], str]] = [
    (_escape, "leads out of the image root"),
    (_absolute, "leads out of the image root"),
    (_named_pipe, "is not a regular file"),
    (_huge, "has more than 268,435,456 bytes"),
    (_broken, "the image can't be decoded (truncated"),
    (lambda _: record(image="a"), "is not a regular file"),
    (lambda _: record(image="missing.jpg"), "No such file or directory"),
    (lambda _: record(image="x" * 5000), "File name too long"),
    (lambda _: record(image="a\0b"), "embedded null"),
    (lambda _: record(image="\ud800.jpg"), "surrogates not allowed"),
    (lambda _: record(image=None), "image is neither a path nor a list of paths"),
    (lambda _: record(image=""), "image is neither a path nor a list of paths"),
    (lambda _: record(image=[]), "image is neither a path nor a list of paths"),
    (lambda _: record(image=["a/cat.jpg", 5]), "image is neither a path nor a list of paths"),
    (lambda _: record(conversations=GONE), "conversations is not a list with at least one turn"),
    (lambda _: record(conversations=[]), "conversations is not a list with at least one turn"),
    (lambda _: record(conversations=[5], image=GONE), "turn 0 is not a dict"),
    (lambda _: record(conversations=[{"from": "cat", "value": "<image>"}]), "turn 0 is from neither human nor gpt"),
    (lambda _: record(conversations=[{"from": [], "value": "<image>"}]), "turn 0 is from neither human nor gpt"),
    (lambda _: record(conversations=[{"from": "gpt"}], image=GONE), "turn 0 has a value that is not a str"),
    (lambda _: record(conversations=[{"from": "gpt", "value": "?"}]), "turn 0 is from gpt, and should be from human"),
    (lambda _: record(conversations=turns("<image>?", "a", "b")), "an odd number of turns, 3"),
    (
        lambda _: record(conversations=turns("?", "a cat")),
        "the number of its images is 1, and that of <image> in its turns 0",
    ),
    (lambda _: record(conversations=turns("<image>", "<image>")), "is 1, and that of <image> in its turns 2"),
    (lambda _: record(image=["a/cat.jpg", "a/cat.jpg"]), "is 2, and that of <image> in its turns 1"),
]


def test_problems_of_records_are_named(tmp_path: Path) -> None:
    """Each problem is one line with the file, the position in the list and the id."""
    (tmp_path / "root").mkdir()
    path = write_list(tmp_path / "root", [make(tmp_path / "root") for make, _ in WRONG_RECORDS])
    problems = verified(path).problems
    assert len(problems) == len(WRONG_RECORDS)
    for number, (found, (_, problem)) in enumerate(zip(problems, WRONG_RECORDS, strict=True)):
        assert found.startswith(f"list.json row {number} (id 7): ")
        assert problem in found


def test_a_record_that_is_no_dict_is_named(tmp_path: Path) -> None:
    """The error names the type that was found, and the other records are examined."""
    verdict = verified(write_list(tmp_path, [5, record()]))
    assert verdict.problems == ("list.json row 0: is of type int, not a dict",)
    assert (verdict.samples, verdict.images) == (2, 1)


@pytest.mark.rotating
def test_intact_records_pass(tmp_path: Path) -> None:
    """Text alone, several images, a shared image (decoded once) and an image root elsewhere pass."""
    several = record(image=["a/cat.jpg", "./b.gif"], conversations=turns("<image>", "and?", "<image>?", "both"))
    path = write_list(tmp_path, [record(), record(image=GONE), several])
    (tmp_path / "b.gif").write_bytes(saved(Image.new("P", (9, 9)), "GIF"))
    verdict = verified(path)
    assert verdict.problems == ()
    assert (verdict.loader, verdict.shards, verdict.samples, verdict.images) == (Loader.TORCH, None, 3, 2)
    assert "world_size" in verdict.summary()
    assert verdict.summary()["world_size"] is None
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "list.json")
    assert verified(moved, image_root=str(tmp_path)).is_sound
    assert not verified(moved).is_sound


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{}", "is not a JSON list"),
        (b" \n", "is not a JSON list"),
        (b"[]", "has no records"),
        (b'[{"conversations": []}', "is cut short; 1 records could be read"),
        (b"[{}{}]", "has no comma between two records"),
        (b"[{},]", "is not JSON, or is cut short"),
        (b"[{}] []", "has data after its list"),
        (b'[{"a": "\xff"}]', "is not UTF-8"),
        (b"[" * 200_000, "has a record that is nested more than 200 levels deep"),
    ],
)
def test_an_invalid_json_list_is_named(tmp_path: Path, text: bytes, problem: str) -> None:
    """A file that the trainer could not load is a problem, however deep it is nested."""
    (tmp_path / "list.json").write_bytes(text)
    found = verified(tmp_path / "list.json").problems
    assert any(line.startswith(f"list.json: {problem}") for line in found)


async def test_images_in_flight_are_bounded() -> None:
    """No more bytes than the bound are in flight, and a larger image goes alone."""
    held = max_held = 0

    async def transcode(body: bytes) -> Outcome:
        nonlocal held, max_held
        held += len(body)
        max_held = max(max_held, held if len(body) < MAX_BYTES_PER_PROCESS else 0)
        assert held == len(body) or held <= MAX_BYTES_PER_PROCESS
        await asyncio.sleep(0)
        held -= len(body)
        return Encoded(body, 1, 1, "JPEG")

    findings = Findings()
    async with asyncio.TaskGroup() as group:
        decoder = ImageDecoder(transcode, findings, group, processes=1)
        for size in [1 << 20] * 30 + [MAX_BYTES_PER_PROCESS + 1, 5, MAX_BYTES_PER_PROCESS + 1]:
            await decoder.submit(ImageToDecode(Location(), bytes(size)))
    assert findings.images == 33
    assert max_held > MAX_BYTES_PER_PROCESS // 2


def test_batches_are_bounded_by_their_images() -> None:
    """A batch holds a bounded number of bytes, and of rows without images, and all come in order."""
    image = ImageToDecode(Location(), bytes(300_000))
    examined = [Examination(1, images=(image,) * (number % 3), read_bytes=number) for number in range(2000)]
    batches = list(batched(examined))
    assert [one for batch in batches for one in batch] == examined
    for batch in batches:
        assert sum(len(image.body) for one in batch for image in one.images) <= BATCH_BYTES + 600_000
        assert len(batch) <= 256
    assert all(len(batch) + len(after) > 20 for batch, after in pairwise(batches[:-1]))


def test_an_observers_error_does_not_end_a_check(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the verdict is the same."""

    async def observe(_: Callable[[], VerifyProgress]) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    write_shard(tmp_path / "out", [pair()] * 8)
    assert run_check(Check(str(tmp_path / "out"), world_size=1, processes=1), [observe]).is_sound
    (record,) = caplog.records
    assert record.message == "an observer failed (OSError: [Errno 24] Too many open files); the work itself continues"
    assert record.exc_info is not None


def test_the_progress_line() -> None:
    """It shows the share, the counts, the rate and the remaining time."""
    now = VerifyProgress(
        samples=1000, images=900, found_images=900, problems=3, read_bytes=25, total_bytes=100, elapsed_s=10
    )
    line = verifying_line(now)
    assert line.whole() == "25.0%  900 images  3 problems  90/s  ETA 0:30  1,000 samples"
    assert line.fitted(50) == "25.0%  900 images  3 problems  90/s  ETA 0:30"
    begun = VerifyProgress(samples=0, images=0, found_images=0, problems=0, read_bytes=0, total_bytes=9, elapsed_s=0.0)
    assert verifying_line(begun).whole() == "0.0%  0 images  0 samples"


def test_what_is_read_and_not_decoded_is_not_done() -> None:
    """Reading is ahead of decoding; and of files whose sizes are not known, no share is."""
    now = VerifyProgress(
        samples=440, images=100, found_images=400, problems=0, read_bytes=100, total_bytes=100, elapsed_s=10
    )
    assert verifying_line(now).whole() == "25.0%  100 images  10/s  ETA 0:30  440 samples"
    assert verifying_line(replace(now, images=400)).whole() == "100.0%  400 images  40/s  440 samples"
    assert verifying_line(replace(now, total_bytes=0)).whole() == "100 images  10/s  440 samples"


@pytest.mark.rotating
def test_the_exit_code_and_output_of_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """0 if all checks passed; otherwise 1, with the problems as lines and as JSON."""
    write_shard(tmp_path / "out", [pair()] * 8)
    arguments = ["verify", str(tmp_path / "out"), "--world-size", "1", "--processes", "1"]
    assert main(arguments) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "all checks passed"
    write_shard(tmp_path / "out", [pair()] * 7 + [pair(text=None)])
    assert main(arguments) == 1
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-2:] == [
        "part-00000.pkl row 7 (id 7): text is missing or None, not a str",
        "1 problem found",
    ]
    assert printed.err == ""
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capfd.readouterr().out) == {
        "out": str(tmp_path / "out"),
        "loader": "coyo",
        "format": None,
        "sound": False,
        "quick": False,
        "shards": 1,
        "samples": 8,
        "images": 8,
        "problems": ["part-00000.pkl row 7 (id 7): text is missing or None, not a str"],
        "problem_count": 1,
        "remarks": [],
        "world_size": 1,
        "world_size_from": "given",
        "batch": 2,
        "group": 4,
        "shards_per_rank": 1,
        "samples_per_rank": 8,
        "used": 8,
        "lost_share": 0.0,
    }


def _wrong_commands(folder: Path) -> Iterator[list[str]]:
    (folder / "empty").mkdir()
    (folder / "empty.json").touch()
    (folder / "list.json").write_text("[]")
    write_shard(folder / "out", [pair()])
    yield ["missing"]
    yield ["x" * 300]
    yield ["empty"]
    yield ["empty.json"]
    yield ["out", "--loader", "torch"]
    yield ["out", "--image-root", "out"]
    yield ["out", "--world-size", "0"]
    yield ["out", "--processes", "0"]
    yield ["list.json", "--loader", "mmc4"]
    yield ["list.json", "--image-root", "missing"]
    yield ["out", "--loader", "cat"]


def test_a_wrong_command_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What can't be verified is reported in one line, and differs from an output with problems."""
    monkeypatch.chdir(tmp_path)
    for words in _wrong_commands(tmp_path):
        assert main(["verify", *words]) == 2, words
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("datafetch: ")


@pytest.mark.rotating
def test_the_current_folder_can_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path ``.`` works, although it contains no name."""
    write_shard(tmp_path / "out", [pair()])
    monkeypatch.chdir(tmp_path / "out")
    assert verified(Path()).is_sound


@pytest.mark.rotating
def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    """Ctrl-C during a check ends it with 130 and without a traceback, and leaves no process."""
    slow = base64.b64encode(saved(Image.new("RGB", (1500, 1500)), "PNG")).decode()
    write_shard(tmp_path / "out", [pair(image=slow)] * 3000)
    command = [sys.executable, "-m", "datafetch", "verify", str(tmp_path / "out"), "--processes", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    while sum(child.cpu_times().user > 0.1 for child in children) < 2:  # they decode
        assert process.poll() is None, process.communicate()
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
