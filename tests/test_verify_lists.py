"""Verification of shards of a list's samples: every image decodes, and all that is said of a sample agrees."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_samples import FORMATS_OF_LISTS, GONE, SHARD, ListOutput, ListSample, mixed_samples, picture

from datafetch.model.outcome import Encoded, Outcome
from datafetch.verify import Check, Verdict, run_check

COUNT = 10
KEY = f"{SHARD}0000"
Rows = list[dict[str, Any]]


@pytest.fixture(params=FORMATS_OF_LISTS)
def output(tmp_path: Path, request: pytest.FixtureRequest) -> ListOutput:
    """An output of each format."""
    return ListOutput(tmp_path, request.param)


def verified(output: ListOutput) -> Verdict:
    """Verify an output."""
    return run_check(Check(str(output.layout.out), processes=1))


def changed_rows(output: ListOutput, change: Callable[[Rows], object]) -> None:
    """Change the rows of the parquet, behind the back of everything else."""
    path = output.layout.out / f"{SHARD}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def changed_tar(output: ListOutput, change: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> None:
    """Change the members of the tar."""
    path = output.layout.out / f"{SHARD}.tar"
    with tarfile.open(path) as tar:
        members = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            members[member.name] = content.read()
    with tarfile.open(path, "w") as tar:
        for name, changed in change(members).items():
            info = tarfile.TarInfo(name)
            info.size = len(changed)
            tar.addfile(info, io.BytesIO(changed))


def test_an_output_is_sound(output: ListOutput) -> None:
    """Whatever its samples are, and after a retry."""
    odd = ListSample([picture(1)], values={"caption": "\ud800", "columns": {"width": "x"}})
    output.commit([*mixed_samples(COUNT), ListSample([picture(7)], "猫" * 60, values={"caption": None}), odd])
    output.retry({(3, 0): picture(3)})
    verdict = verified(output)
    assert verdict.is_sound, verdict.problems
    assert (verdict.shards, verdict.samples, verdict.images) == (1, COUNT + 2, 9)
    summary = verdict.summary()
    assert (summary["loader"], summary["format"], summary["sound"]) == (None, output.output_format, True)
    assert next(verdict.lines()).startswith(
        f"{output.layout.out} {output.output_format}: 1 shard, 12 samples, 9 images"
    )


def test_an_output_of_several_images_is_sound(output: ListOutput) -> None:
    """Also where some failed, or all."""
    several: list[list[Outcome]] = [[picture(0), GONE, picture(2)], [GONE], [], [picture(3)]]
    output.commit([ListSample(outcomes, are_several=True, values={"caption": "x"}) for outcomes in several])
    verdict = verified(output)
    assert verdict.is_sound, verdict.problems
    assert (verdict.samples, verdict.images) == (4, 3)


def test_an_output_without_an_image_is_sound(output: ListOutput) -> None:
    """Its rows say why."""
    output.commit([ListSample([GONE])] * 3)
    verdict = verified(output)
    assert verdict.is_sound, verdict.problems
    assert (verdict.samples, verdict.images) == (3, 0)


def test_an_image_that_does_not_decode_is_found(output: ListOutput) -> None:
    """With its sample and its place."""
    broken = Encoded(picture(0).jpeg[:100], 8, 6, "JPEG", "ab")
    output.commit([ListSample([picture(1)]), ListSample([broken])])
    (problem,) = verified(output).problems
    assert f"({SHARD}0001)" in problem
    assert "row 1" in problem
    assert "can't be decoded (truncated" in problem


def test_an_image_of_another_size_is_found(output: ListOutput) -> None:
    """Its row is wrong, or it is another image."""
    output.commit([ListSample([replace(picture(0), width_px=80)])])
    (problem,) = verified(output).problems
    assert "the image has 8x6 pixels, and its row says 80x6" in problem


def test_a_status_that_is_wrong_is_found(output: ListOutput) -> None:
    """In both directions; the statistics then differ, too."""
    output.commit(mixed_samples(COUNT))
    changed_rows(output, lambda rows: (rows[0].update(status="failed_to_download"), rows[1].update(status="success")))
    text = "\n".join(verified(output).problems)
    expected = {
        "parquet": ["there is an image, and the status is not success", "the status is success, and there is no image"],
        "webdataset": [f"is not the next sample of the parquet, which has '{SHARD}0001'"],
        "files": ["has files, and no status is success", "the status is success, and there is no image"],
    }[output.output_format]
    assert all(one in text for one in expected), text


CHANGES: dict[str, Callable[[dict[str, bytes]], Mapping[str, bytes]]] = {
    "its caption (.txt) is not that of its metadata": lambda members: members | {f"{KEY}.txt": b"another"},
    "has no caption": lambda members: {name: one for name, one in members.items() if name != f"{KEY}.txt"},
    "has no metadata": lambda members: {name: one for name, one in members.items() if name != f"{KEY}.json"},
    "its metadata is not a JSON object": lambda members: members | {f"{KEY}.json": b"[1"},
    "differ in sha256, url": lambda members: (
        members | {f"{KEY}.json": json.dumps(json.loads(members[f"{KEY}.json"]) | {"url": "x", "sha256": 1}).encode()}
    ),
    "the status is success, and there is no image": lambda members: {
        name: one for name, one in members.items() if name != f"{KEY}.jpg"
    },
    "is not the next sample of the parquet": lambda members: {
        name: one for name, one in members.items() if not name.startswith(KEY)
    },
    "which has no further one": lambda members: members | {"zzz.jpg": members[f"{KEY}.jpg"]},
    "has a member '.exe'": lambda members: {f"{KEY}.exe": b""} | members,
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_tar_that_is_not_its_parquet_is_found(tmp_path: Path, message: str) -> None:
    """Whatever differs, the message says what."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    changed_tar(output, CHANGES[message])
    problems = verified(output).problems
    assert any(message in problem for problem in problems), problems


def test_a_tar_that_ends_early_is_found(tmp_path: Path) -> None:
    """What can be read is read."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.tar"
    path.write_bytes(path.read_bytes()[:5000])
    problems = verified(output).problems
    assert any("is cut short" in problem and "samples could be read" in problem for problem in problems), problems


def test_rows_without_members_are_found(tmp_path: Path) -> None:
    """Each with its key."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    last = f"{SHARD}0009"
    changed_tar(output, lambda members: {name: one for name, one in members.items() if not name.startswith(last)})
    (problem,) = verified(output).problems
    assert last in problem
    assert "is in the parquet, and missing here" in problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_stats.json", b'{"count": 1}', "is not the statistics of a shard"),
        (
            "_stats.json",
            b'{"count": 9, "successes": 6, "failed_to_download": 4, "failed_to_resize": 0}',
            "says count 9",
        ),
        ("_stats.json", None, "is missing"),
        (".parquet", b"PAR1", "0 rows could be read"),
        (".parquet", None, "is missing"),
    ],
)
@pytest.mark.parametrize("output_format", ["webdataset", "files"])
def test_damage_beside_the_images_is_found(
    tmp_path: Path, output_format: str, name: str, content: bytes | None, message: str
) -> None:
    """Files that are missing, that are something else, and counts that are wrong."""
    output = ListOutput(tmp_path, output_format)
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}{name}"
    path.unlink() if content is None else path.write_bytes(content)
    problems = verified(output).problems
    assert any(message in problem for problem in problems), problems


def test_files_that_belong_to_no_sample_are_found(tmp_path: Path) -> None:
    """A reader of the folder would take them for one."""
    output = ListOutput(tmp_path, "files")
    output.commit(mixed_samples(COUNT))
    (output.layout.out / SHARD / "other.jpg").write_bytes(picture(0).jpeg)
    (output.layout.out / SHARD / f"{KEY}.jpg").unlink()
    (output.layout.out / SHARD / f"{KEY}.jpg").symlink_to("/etc/hostname")
    problems = verified(output).problems
    assert any("other.jpg: does not belong to a sample" in problem for problem in problems), problems
    assert any("is a link that leads out of its folder" in problem for problem in problems), problems


def test_samples_may_come_in_another_order(tmp_path: Path) -> None:
    """As in tars of img2dataset, which are in the order in which images arrived; and so are its rows."""
    output = ListOutput(tmp_path, "webdataset")
    output.commit(mixed_samples(COUNT))
    changed_rows(output, lambda rows: rows.reverse())

    def reverse(members: dict[str, bytes]) -> dict[str, bytes]:
        keys = sorted({name.split(".")[0] for name in members}, reverse=True)
        return {name: members[name] for key in keys for name in members if name.startswith(key)}

    changed_tar(output, reverse)
    verdict = verified(output)
    assert verdict.is_sound, verdict.problems


def test_many_rows_that_share_a_large_value_take_little_memory(tmp_path: Path) -> None:
    """A dictionary makes a small file of them; they are read a few at a time."""
    output = ListOutput(tmp_path, "parquet")
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.parquet"
    row = pq.read_table(path).slice(0, 1).drop(["image"])
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * (8 << 20)]))
    table = pa.concat_tables([row] * 300).combine_chunks().append_column("large", large)
    pq.write_table(table, path)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        verdict = verified(output)
    finally:
        pa.set_memory_pool(before)
    assert not verdict.is_sound
    assert pool.max_memory() < 256 << 20


@pytest.mark.parametrize("output_format", ["webdataset", "files"])
def test_values_without_end_are_not_parsed(tmp_path: Path, output_format: str) -> None:
    """Lists of empty lists take thirty times the memory of their text."""
    output = ListOutput(tmp_path, output_format)
    output.commit(mixed_samples(COUNT))
    bomb = b"[" + b"[]," * 6_000_000 + b"[]]"
    (output.layout.out / f"{SHARD}_stats.json").write_bytes(bomb)
    if output_format == "webdataset":
        changed_tar(output, lambda members: members | {f"{KEY}.json": bomb})
    else:
        (output.layout.out / SHARD / f"{KEY}.json").write_bytes(bomb)
    problems = verified(output).problems
    assert any("its metadata has more values than fit into" in problem for problem in problems), problems
    assert any("is not the statistics of a shard" in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["key", "error_message"])
def test_a_parquet_of_something_else_is_found(output: ListOutput, name: str) -> None:
    """One that lacks a column is named."""
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.parquet"
    pq.write_table(pq.read_table(path).drop([name]), path)
    problems = run_check(Check(str(output.layout.out), processes=1)).problems
    assert any(name in problem for problem in problems), problems


def test_values_that_python_has_no_type_for_are_no_problem(output: ListOutput) -> None:
    """A column of somebody else's may have dates beyond its calendar."""
    output.commit(mixed_samples(COUNT))
    path = output.layout.out / f"{SHARD}.parquet"
    table = pq.read_table(path)
    table = table.append_column("day", pa.array([10**8] * COUNT, pa.int32()).cast(pa.date32()))
    table = table.append_column("moment", pa.array([2**50] * COUNT, pa.int64()).cast(pa.timestamp("ms")))
    pq.write_table(table, path)
    verdict = verified(output)
    assert verdict.is_sound, verdict.problems
