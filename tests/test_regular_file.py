"""A FIFO, a device, a socket or a folder in place of a file: every command refuses it in one line, and none hangs."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from outputs import line, publish, spool, write_job

from datafetch.cli.app import main
from datafetch.demo.manifest import write_coyo_source
from datafetch.model.kinds import Loader
from datafetch.model.regular_file import NotRegularFileError, open_regular, require_regular
from datafetch.output.stored.results import StoredResults
from datafetch.store.layout import OutputLayout


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output with one published shard."""
    made = OutputLayout(tmp_path / "写真")
    write_job(made, "a")
    publish(made, "a", [line(0, "http://x.org/0"), line(1, "http://x.org/1", "timeout")])
    return made


def put_fifo(path: Path) -> None:
    """Put a FIFO that nobody writes to in place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A link to one is one; what is missing is missing."""
    file = tmp_path / "file"
    file.write_bytes(b"content")
    (tmp_path / "link").symlink_to(file)
    for path in (file, tmp_path / "link"):
        require_regular(path)
        with open_regular(path) as opened:
            assert opened.read() == b"content"
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            for check in (open_regular, require_regular):
                with pytest.raises(NotRegularFileError, match="not a regular file"):
                    check(path)
    for check in (open_regular, require_regular):
        with pytest.raises(FileNotFoundError):
            check(tmp_path / "missing")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *((command, name) for command in ("failures", "explain") for name in ("job.json", "ledger/a.parquet")),
        *(("status", name) for name in ("job.json", "ledger/a.parquet")),
        *(("verify", name) for name in ("equal.json", "ledger/a.parquet")),
    ],
)
def test_a_fifo_in_place_of_a_file_that_is_needed_is_refused(
    layout: OutputLayout, command: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names the file."""
    put_fifo(layout.state_folder / name)
    words = {"explain": ["http://x.org/1"], "verify": ["--quick"]}.get(command, [])
    assert main([command, str(layout.out), *words]) in (1, 2)
    printed = capfd.readouterr()
    assert str(layout.state_folder / name) in printed.out + printed.err


@pytest.mark.parametrize("name", ["report.json", "progress.json", "stopped.json", "retry.json", "lock", "shards.lock"])
def test_a_fifo_in_place_of_a_file_that_can_be_done_without_is_passed_over(
    layout: OutputLayout, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It counts as missing."""
    put_fifo(layout.state_folder / name)
    assert main(["status", str(layout.out)]) in (0, 2)
    assert main(["failures", str(layout.out)]) == 0
    assert "http://x.org/1" in capfd.readouterr().out


def test_a_fifo_is_no_job_and_no_id_list(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither that of another output nor one for the manifest."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = write_coyo_source(tmp_path / "source", ["http://x.org/0"])
    words = ["--source", str(source.folder), "--root", str(tmp_path / "root")]
    assert main(["prepare", "coyo", "--ids", str(fifo), *words]) == 2
    assert re.fullmatch(
        r"datafetch: cannot read .*/fifo: not a regular file; fix this, or give a copy that can be read\n",
        capfd.readouterr().err,
    )
    assert main(["prepare", "--job", str(fifo), *words]) == 2
    assert re.fullmatch(r"datafetch: \S+/fifo is not a job of this version of datafetch; .*\n", capfd.readouterr().err)


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_fifo_is_no_manifest_file(tmp_path: Path, has_ids: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a folder of parquet files, each is opened several times."""
    source = write_coyo_source(tmp_path / "source", ["http://x.org/0", "http://x.org/1"], files=2)
    manifest_file = sorted(source.folder.glob("*.parquet"))[1]
    put_fifo(manifest_file)
    ids = ["--ids", str(source.ids)] if has_ids else []
    assert main(["prepare", "coyo", "--source", str(source.folder), *ids, "--root", str(tmp_path / "root")]) == 2
    assert capfd.readouterr().err.endswith(
        f"cannot read {manifest_file} as parquet: not a regular file; fix this, or give a copy that can be read\n"
    )


def test_a_fifo_in_place_of_a_spool_has_no_images_to_reuse(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """All others are still found, also when it takes the place of a spool that was read before."""
    spool(layout, "b", [line(0, "http://x.org/2")])
    folder = next(layout.all_spools.iterdir())
    put_fifo(folder / "c.spool")
    results = StoredResults(layout, ["a"], Loader.COYO, [folder])
    assert "c.spool can be read" in caplog.text
    found = results.find("http://x.org/2", lambda _: True)
    assert found is not None
    assert found.jpeg == b"jpeg"
    put_fifo(folder / "b.spool")
    assert results.find("http://x.org/2", lambda _: True) is None
    assert results.find("http://x.org/1", lambda _: True) is not None
