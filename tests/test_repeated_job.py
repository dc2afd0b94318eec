"""``prepare --job``: a colleague's job repeated, with the same rows, of which the file decides nothing else."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LOOPBACK
from in_process import run

from datafetch import Job
from datafetch.cli.app import main
from datafetch.datasets import DATASETS
from datafetch.datasets.documents import DocumentOptions
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.choices import settings_in
from datafetch.engine.job import own_spec
from datafetch.engine.repeated_job import read_repeated_job
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.kinds import Payload
from datafetch.model.options import Effect, options_of
from datafetch.store.job_file import MAX_FOREIGN_BYTES
from datafetch.store.layout import OutputLayout
from datafetch.transcode import ImageSpec

Pictures = tuple[Path, list[str]]
OUT = Path("coyo-700m", "pkl03-split")
SPEC = ImageSpec(short_side_px=100, quality=80)


@dataclass(frozen=True)
class Colleague:
    """What a colleague has made, and hands over."""

    source: CoyoSource
    layout: OutputLayout
    job_file: Path


@pytest.fixture(scope="module")
def colleague(tmp_path_factory: pytest.TempPathFactory, origin: Origin, pictures: Pictures) -> Colleague:
    """An output with rows of its own kind, made with all permissions, and a copy of its job."""
    folder = tmp_path_factory.mktemp("同僚")
    urls = [origin.url("well", pictures[1][number % 20], f"{folder.name}-{number}") for number in range(20)]
    source = write_coyo_source(folder / "source", urls, rows=30)
    policy = FetchPolicy(
        allow_net=(*LOOPBACK, "10.0.0.0/8"), insecure=True, opt_out=OptOut.IGNORE, nameservers=("127.0.0.1:5",)
    )
    out = folder / "out"
    run(
        Job(
            *("coyo", str(source.folder), str(out), str(source.ids)),
            limit=8,
            image=SPEC,
            payload=Payload.BYTES,
            fetch=policy,
            processes=3,
            scratch=str(folder / "scratch"),
            world_size=None,
        )
    )
    job_file = shutil.copy(OutputLayout(out).job, folder / "job.json")
    return Colleague(source, OutputLayout(out), Path(job_file))


def quoted(path: Path) -> str:
    """A path as the shell takes it."""
    return shlex.quote(str(path))


def words_for(colleague: Colleague, root: Path, *options: object) -> list[str]:
    """The command that repeats the job on a copy of the source."""
    source = root.parent / "my source"
    if not source.exists():
        shutil.copytree(colleague.source.folder.parent, source)
    given = ["--job", colleague.job_file, "--source", source / "data", "--ids", source / "ids.txt", "--root", root]
    return ["prepare", *map(str, [*given, *options])]


def changed(colleague: Colleague, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the job's file, changed."""
    fields_of_file = json.loads(colleague.job_file.read_text())
    change(fields_of_file)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(fields_of_file))
    return path


@pytest.mark.usefixtures("_commands_in_threads")
def test_a_repeated_job_makes_the_same_files(
    colleague: Colleague, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte; whom to ask and what to permit are the operator's own, and what the file had of that is listed."""
    own = ["--allow-net", "127.0.0.0/8", "--processes", "1", "--no-reshard", "--json"]
    assert main(words_for(colleague, tmp_path / "root", *own)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"]["rows"] == 8
    mine = OutputLayout(tmp_path / "root" / OUT)
    theirs = {path.name: path.read_bytes() for path in colleague.layout.out.iterdir()}
    assert {path.name: path.read_bytes() for path in mine.out.iterdir()} == theirs
    assert err.splitlines()[0] == (
        f"datafetch: not taken from {colleague.job_file}: --source {quoted(colleague.source.folder)}, "
        f"--ids {quoted(colleague.source.ids)}, --processes 3, "
        f"--scratch {quoted(colleague.layout.out.parent / 'scratch')}, "
        "--no-reshard, --allow-net 127.0.0.0/8, --allow-net 10.0.0.0/8, --nameserver 127.0.0.1:5, --opt-out ignore, "
        "--insecure"
    )
    stored = json.loads(mine.job.read_text())["asked"]
    assert stored["fetch"]["allow_net"] == list(LOOPBACK)
    assert not stored["fetch"]["insecure"]
    assert stored["fetch"]["opt_out"] == "obey"


def test_nothing_but_what_decides_rows_is_taken(
    colleague: Colleague, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even what no job stores, in a file that somebody has made up."""

    def change(job: dict[str, Any]) -> None:
        job["asked"] |= {"fresh": True, "no_lock": True, "out": "/etc", "mirror": "https://evil.example/"}

    path = changed(colleague, tmp_path, change)
    for place in (colleague.layout.out, colleague.layout.state_folder):
        assert main(words_for(colleague, tmp_path / "root", "--job", place, "--dry-run")) == 0
        assert "--short-side 100" in capsys.readouterr().out
    words = words_for(colleague, tmp_path / "root", "--job", path, "--dry-run", "--json")
    assert main(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["out"] == str(tmp_path / "root" / OUT)
    assert found["state"] == "new"
    assert found["settings"]["other"] == []
    assert found["settings"]["rows"][1:] == ["--limit 8", "--payload bytes", "--short-side 100", "--quality 80"]
    assert "--mirror https://evil.example/" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "512"], "--short-side 512 contradicts {job}, which has --short-side 100; leave out"),
        (["--short-side", "none"], "--short-side none contradicts {job}, which has --short-side 100"),
        (["--limit", "9"], "--limit 9 contradicts {job}, which has --limit 8"),
        (["--payload", "base64"], "--payload base64 contradicts {job}, which has --payload bytes"),
        (["--resize", "fast"], "--resize fast contradicts {job}, which has --resize exact; leave out"),
        (["llm-jp-pairs-step1"], "llm-jp-pairs-step1 does not take --ids"),
        (["step-1"], "--job is for single datasets; prepare those one by one"),
        (["coyo", "mmc4-core"], "--job is for single datasets; prepare those one by one"),
        (["mmc4-core"], "{job} is a job of coyo; leave out the dataset, or --job"),
    ],
)
def test_what_contradicts_the_job_is_refused(
    colleague: Colleague, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit 2, and nothing is written; the same value, or the same dataset, contradicts nothing."""
    assert main(words_for(colleague, tmp_path / "root", *options)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "not taken from" not in line)
    assert line.startswith(f"datafetch: {message.format(job=colleague.job_file)}")
    assert not (tmp_path / "root").exists()
    same = ["coyo", "--short-side", "100", "--limit", "8", "--payload", "bytes", "--dry-run"]
    assert main(words_for(colleague, tmp_path / "root", *same)) == 0


def test_other_rows_are_refused_before_anything_is_written(
    colleague: Colleague, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another id list, none, another manifest, or what this version does not know: the difference is named."""
    words = words_for(colleague, tmp_path / "root")
    ids, data = tmp_path / "my source" / "ids.txt", tmp_path / "my source" / "data"

    def refusal(*options: object) -> str:
        assert main([*words, *map(str, options)]) == 2
        assert not (tmp_path / "root").exists()
        return capsys.readouterr().err.splitlines()[-1]

    other_ids = tmp_path / "他.txt"
    other_ids.write_text(ids.read_text() + "17\n")
    expected = f"--ids: {colleague.source.ids} before, now {other_ids}"
    assert expected in refusal("--ids", other_ids)
    unknown = changed(colleague, tmp_path, lambda job: job.update({"later": True}))
    assert "--later: True, now not set" in refusal("--job", unknown)
    (part,) = data.iterdir()
    write_coyo_source(tmp_path / "other", ["https://a.example/"], rows=30)
    shutil.copy(tmp_path / "other" / "data" / part.name, part)
    assert f"manifest files that have changed: {part.name}" in refusal()
    assert main(["prepare", "--job", str(colleague.job_file), "--source", str(data), "--root", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"datafetch: the rows of {colleague.job_file} follow from --ids {quoted(colleague.source.ids)}; "
        "give --ids, with that file or a copy of it"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b'{"format": 2, "dataset": "coyo", "shards": {}, "limit": null}',
        b'{"format": 1, "dataset": "coyo", "shards": {}, "limit": null}',
        b'{"format": 1, "dataset": "\\u001b[2J", "shards": {}, "limit": null, "asked": {}}',
        b'{"format": 1, "dataset": "coyo", "shards": {"../../x": []}, "limit": null, "asked": {}}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"format": 1, "limit": 1' + b"0" * 5_000 + b"}",
        b" " * (MAX_FOREIGN_BYTES + 1),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_a_hostile_file_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it holds, and however large it is: exit 2."""
    path = tmp_path / "仕事.json"
    path.write_bytes(content)
    for named in ([], ["coyo"]):
        assert main(["prepare", *named, "--job", str(path), "--root", str(tmp_path / "root")]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith(f"datafetch: {path} is not a job of this version of datafetch; ")
        assert out == ""
    for other in (tmp_path, tmp_path / "missing"):
        assert main(["prepare", "--job", str(other), "--root", str(tmp_path / "root")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["asked"].update({"limit": -1}),
        lambda job: job["asked"].update({"unknown": 1}),
        lambda job: job["asked"].update({"image": {"quality": "high"}}),
        lambda job: job["asked"].update({"image": None}),
        lambda job: job["asked"]["fetch"].update({"allow_net": ["\x1b[2J"]}),
        lambda job: job["asked"].update({"choices": {"keep_at_least": 2}}),
        lambda job: job["asked"].update({"choices": [1]}),
        lambda job: job["asked"].update({"dataset": "mmc4-core"}),
        lambda job: job.update({"shards": [1]}),
        lambda job: job.update({"quality": 10**30}),
        lambda job: job.pop("asked"),
    ],
)
def test_a_damaged_value_is_one_line(
    colleague: Colleague,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each value is checked as in every file of the state folder."""
    path = changed(colleague, tmp_path, change)
    assert main(words_for(colleague, tmp_path / "root", "--job", path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"datafetch: {path} is ")
    assert "\x1b" not in line


def test_what_is_taken_follows_from_what_an_option_decides(colleague: Colleague) -> None:
    """No option can be forgotten: each that decides rows by its value is taken, and none that names a file."""
    repeated = read_repeated_job(colleague.job_file)
    for dataset in DATASETS.values():
        job = Job(dataset.name, "", "", image=own_spec(dataset), options=dataset.options)
        taken = replace(repeated, job=job).row_values
        for one in settings_in(job):
            is_value = one.effect is Effect.MANIFEST and not one.option.option.is_file
            assert (one.option.name in taken) == (one.effect is Effect.ROWS or is_value)
    assert {"limit", "payload", "short_side", "quality", "pixels", "resize", "encode"} <= repeated.row_values.keys()
    declared = [one for cls in (Job, ImageSpec, FetchPolicy) for one in options_of(cls)]
    declared += [one for dataset in DATASETS.values() for one in options_of(type(dataset.options))]
    for each in declared:
        assert each.option.is_file == (each.option.metavar in {"FILE", "DIR", "PATH|URL"}), each.flag
        assert not (each.option.is_file and each.option.effect is Effect.ROWS)


def test_a_file_that_decides_the_rows_has_to_be_given(
    tmp_path: Path, colleague: Colleague, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer is named by a path, which is not taken; its content is compared."""
    assert {"tokenizer"} <= {one.name for one in fields(DocumentOptions)}
    options = {one.name: one.default for one in fields(type(DATASETS["mmc4-core"].options))}

    def change(job: dict[str, Any]) -> None:
        job["dataset"] = job["asked"]["dataset"] = "mmc4-core"
        job["asked"] |= {"ids": None, "payload": "base64"}
        job["asked"]["choices"] = {**options, "max_tokens": 4096, "tokenizer": "/home/太郎/tokenizer.json"}

    path = changed(colleague, tmp_path, change)
    assert main(["prepare", "--job", str(path), "--source", str(tmp_path), "--root", str(tmp_path / "root")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"datafetch: the rows of {path} follow from --tokenizer '/home/太郎/tokenizer.json'; give --tokenizer, with "
        "that file or a copy of it"
    )
