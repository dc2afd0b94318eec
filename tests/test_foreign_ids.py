"""An id list of which the manifest has none: the command says so before it begins an output, or deletes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datafetch.cli.app import main
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin

Pictures = tuple[Path, list[str]]
_ROOT = Path(__file__).parent


@pytest.mark.parametrize("options", [(), ("--limit", "5"), ("--fresh",)], ids=str)
@pytest.mark.usefixtures("_commands_in_threads")
def test_ids_of_another_dataset_are_refused(
    tmp_path: Path, origin: Origin, pictures: Pictures, options: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 and one line; nothing is created, and an output that is there stays as it is."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", name) for name in pictures[1][:3]], files=2)
    foreign = tmp_path / "他の一覧.txt"
    foreign.write_text("123456789\n987654321\n")
    words = ["prepare", "coyo", "--source", str(source.folder), "--root", str(tmp_path), "--processes", "1"]
    words += ["--allow-net", "127.0.0.0/8", "--no-reshard"]
    out = tmp_path / "coyo-700m" / "pkl03-split"
    if "--fresh" in options:
        assert main([*words, "--ids", str(source.ids)]) == 0
    before = {path: path.read_bytes() for path in out.glob("*")}
    capfd.readouterr()
    assert main([*words, "--ids", str(foreign), *options]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"datafetch: {source.folder} has none of the 2 ids of {foreign}; one of the two is of another dataset\n"
    )
    assert {path: path.read_bytes() for path in out.glob("*")} == before
    assert out.exists() == bool(before)
    assert main([*words, "--ids", str(source.ids), "--json"]) == 0  # nothing is in the way of the right list
    assert json.loads(capfd.readouterr().out)["images"]["ok"] == 3


@pytest.mark.rotating
def test_indices_beyond_the_end_of_their_files_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of interleaved documents, too; those that are left out by a filter have been found."""
    source = _ROOT / "data" / "mmc4-core" / "source"
    ids = tmp_path / "ids.csv"
    words = ["prepare", "mmc4-core", "--source", str(source), "--root", str(tmp_path), "--ids", str(ids)]
    ids.write_text("7,555\n7,999\n")
    assert main(words) == 2
    assert "has none of the 2 ids of" in capfd.readouterr().err
    ids.write_text("7,0\n")
    assert main([*words, "--min-similarity", "0.9", "--processes", "1", "--no-reshard"]) == 0
