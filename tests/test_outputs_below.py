"""Commands that are given a folder above outputs: status shows each of them, and the others say which there are."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from outputs import line, publish, spool, write_job

from datafetch.cli.app import main
from datafetch.monitor import outputs_below
from datafetch.monitor.outputs_below import find_outputs
from datafetch.store.layout import OutputLayout

PATHS = ("写真/pairs", "coyo-700m/pkl03-split", "mmc4-core/pkl-core-limit-tokens")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with three outputs, and much else."""
    made = tmp_path / "データ"
    for path in PATHS:
        layout = OutputLayout(made / path)
        write_job(layout, "a", "b")
        publish(layout, "a", [line(0, "http://x.org/"), line(1, "http://x.org/", "timeout")])
        spool(layout, "b", [line(0, "http://x.org/")])
    (made / ".hidden").mkdir()
    (made / ".hidden" / "link").symlink_to(made / PATHS[1])
    (made / "loop").symlink_to(made)
    (made / "coyo-700m" / "data").mkdir()
    (made / "coyo-700m" / "stray.datafetch").mkdir()
    write_job(OutputLayout(made / PATHS[1] / "inside"), "a")
    write_job(OutputLayout(made / "a" / "b" / "c" / "d" / "e" / "f" / "deep"), "a")
    return made


def test_status_shows_each_output_below_a_folder(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line each, even for one that can't be read; the folder may be relative, and nothing is written."""
    OutputLayout(root / PATHS[1]).ledger("a").write_bytes(b"garbage")
    OutputLayout(root / PATHS[2]).job.write_bytes(b"garbage")
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.chdir(root.parent)
    assert main(["status", root.name]) == 0
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert [one.split() for one in (*lines[:2], lines[3], lines[5])] == [
        ["state", "images", "ok", "failed", "output"],
        ["interrupted", "1", "1", "0", "coyo-700m/pkl03-split"],
        ["unreadable", "mmc4-core/pkl-core-limit-tokens"],
        ["interrupted", "3", "2", "1", "写真/pairs"],
    ]
    assert lines[2] == "    without 1 shard with a damaged ledger, a"
    assert "job.json is not a job of this version" in lines[4]
    assert len(lines) == 6
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before


def test_hosts_are_those_of_one_output(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder above several outputs is refused, with a line for each of them."""
    assert main(["status", str(root), "--hosts"]) == 2
    *below, complaint = capfd.readouterr().err.splitlines()
    assert complaint == f"datafetch: there is no run in {root}; name one of the outputs below it"
    assert {line.rpartition(": ")[2] for line in below} == set(map(str, PATHS))


def test_json_has_the_status_of_each(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """There is one object, with an object as that of a single output for each."""
    assert main(["status", str(root), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["root"], printed["is_complete"]) == (str(root), True)
    outputs = printed["outputs"]
    assert [one["out"] for one in outputs] == sorted(str(root / path) for path in PATHS)
    assert [one["images"]["ok"] for one in outputs] == [2, 2, 2]


def test_an_output_that_is_being_set_aside_is_one(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its job has been moved, and that of the run with ``--reuse`` is not written yet: each command says what to do."""
    layout = OutputLayout(root / PATHS[1])
    earlier = OutputLayout(layout.previous / "1" / layout.out.name)
    earlier.state_folder.mkdir(parents=True)
    layout.job.rename(earlier.job)
    message = f"{layout.out} is being set aside for a run with --reuse; wait for that run, or if it was stopped, run "
    for words in (["status"], ["failures"], ["retry"], ["status", "--command"]):
        assert main([*words, str(layout.out)]) == 2
        assert capfd.readouterr().err.startswith(f"datafetch: {message}the same command again to resume (nothing")
    assert main(["status", str(root)]) == 0
    assert f"unreadable {PATHS[1]} {message}" in re.sub(" +", " ", capfd.readouterr().out.replace("\n", " "))
    assert main(["datasets", "--root", str(root), "--json"]) == 0
    assert {one["name"]: one["state"] for one in json.loads(capfd.readouterr().out)}["coyo"] == "partial"


@pytest.mark.parametrize("words", [["retry"], ["verify"], ["failures"], ["explain", "17"], ["status", "--command"]])
def test_other_commands_say_which_outputs_there_are(
    root: Path, words: Sequence[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A line for each, and the error; nothing is done. A file that belongs to none of them makes no difference."""
    (root / "notes.txt").write_text("mine")
    command, *others = words
    assert main([command, str(root), *others]) == 2
    *listed, complaint = capfd.readouterr().err.splitlines()
    assert listed == [f"datafetch: below {root}: {path}" for path in sorted(PATHS)]
    assert complaint == f"datafetch: there is no run in {root}; name one of the outputs below it"


@pytest.mark.parametrize("words", [["verify"], ["failures"], ["explain", "0"], ["status", "--command"], ["retry"]])
def test_other_commands_take_the_only_output(
    root: Path, words: Sequence[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say so, and name it as the folder was named."""
    monkeypatch.chdir(root)
    command, *others = words
    main([command, "coyo-700m", *others])
    first = capfd.readouterr().err.splitlines()[0]
    assert first == f"datafetch: there is no run in coyo-700m, so the only output below it is taken: {PATHS[1]}"
    main([command, PATHS[1], *others])
    assert "there is no run" not in capfd.readouterr().err


@pytest.mark.rotating
def test_a_folder_with_shards_of_its_own_is_verified(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As it may be any folder of shards or images."""
    (root / "part-00000.pkl").write_bytes(b"garbage")
    assert main(["verify", str(root)]) != 0
    assert "below it" not in capfd.readouterr().err


@pytest.mark.parametrize(("bound", "found"), [("_MAX_OUTPUTS", 2), ("_MAX_ENTRIES", 0)])
def test_the_search_is_bounded(
    root: Path, bound: str, found: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """If a bound ends it, that is said."""
    assert len(find_outputs(root).outputs) == 3
    monkeypatch.setattr(outputs_below, bound, 2)
    below = find_outputs(root)
    assert (len(below.outputs), below.is_complete) == (found, False)
    main(["status", str(root)])
    printed = capfd.readouterr()
    assert ("There may be others" in printed.out) is bool(found)
    assert ("there is no run in" in printed.err) is not bool(found)
