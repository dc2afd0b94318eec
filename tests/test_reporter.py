"""``--log``, ``--log-json`` and ``--quiet``: where messages and progress go."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from datafetch.cli.app import main
from datafetch.cli.options import parameters_of
from datafetch.cli.reporter import Reporting, open_reporter
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.store.layout import OutputLayout

Pictures = tuple[Path, list[str]]
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d (info|warning|error|progress|summary): (.+)")
WORDS = ("log", "log_json", "quiet")


@pytest.fixture
def command(tmp_path: Path, origin: Origin, small_pictures: Pictures) -> list[str]:
    """A run of ten pictures, of which one is missing, into a folder with a Japanese name."""
    urls = [origin.url("well", name, tmp_path.name) for name in small_pictures[1][:9]]
    source = write_coyo_source(tmp_path / "source", [*urls, origin.url("missing", small_pictures[1][0])])
    return [
        *("prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--processes", "1"),
        *("--root", str(tmp_path / "写真"), "--allow-net", "127.0.0.0/8"),
    ]


def logged(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the text of each line of a log file."""
    matches = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(matches), path.read_text()
    return [(match[1], match[2]) for match in matches if match]


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_is_logged_to_a_file_and_as_json(
    tmp_path: Path, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Each line on standard error is an object, also the one that says what stopped a command; files are appended to.

    With ``--quiet``, only warnings and errors are on standard error, and the summary on standard output. None of the
    options is part of the job, and later runs may have others.
    """
    log = tmp_path / "記録.log"
    assert main([*command, "--log-json", "--log", str(log)]) == 0
    printed = capfd.readouterr()
    objects: list[dict[str, Any]] = [json.loads(line) for line in printed.err.splitlines()]
    assert all("time" in one for one in objects)
    assert objects[0]["level"] == "info"
    assert objects[0]["message"].startswith("estimated disk space: needs ")
    progress = [one["progress"] for one in objects if "progress" in one]
    assert (progress[-1]["ok"], progress[-1]["failed"], progress[-1]["shards_published"]) == (9, 1, 1)
    assert {"images_per_s", "left_s", "waiting", "open_requests"} <= progress[-1].keys()
    (warning,) = [one["message"] for one in objects if one.get("level") == "warning"]
    assert warning.startswith("9 rows are too few")
    assert "9 of 10 samples" in printed.out
    first = logged(log)
    assert first[0][1].startswith("estimated disk space: needs ")
    assert "100.0% 10/10  9 ok  1 failed" in [text for kind, text in first if kind == "progress"][-1]
    assert "warning" in {kind for kind, _ in first}
    summary = [text for kind, text in first if kind == "summary"]
    assert first[-len(summary) :] == [("summary", line) for line in printed.out.splitlines()]

    assert main([*command, "--quiet", "--log", str(log), "--min-success", "0.95"]) == 3
    printed = capfd.readouterr()
    assert "9 of 10 samples" in printed.out
    complaint = "90.0% of the images arrived, but --min-success requires 95.0%; 'datafetch retry' may fetch more"
    warning, error = printed.err.splitlines()
    assert warning.startswith("datafetch: 9 rows are too few")
    assert error == f"datafetch: {complaint}"
    both = logged(log)
    assert both[: len(first)] == first
    assert both[-1] == ("error", complaint)
    assert any(kind == "progress" for kind, _ in both[len(first) :])

    assert main([*command, "--quality", "50", "--log-json", "--log", str(log)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    refused = json.loads(line)
    assert (refused["level"], "--quality" in refused["message"]) == ("error", True)
    assert logged(log)[-1] == ("error", refused["message"])

    job = OutputLayout(tmp_path / "写真" / "coyo-700m" / "pkl03-split").job.read_text()
    assert not set(WORDS) & set(re.findall(r'"(\w+)":', job))


@pytest.mark.rotating
@pytest.mark.usefixtures("_commands_in_threads")
def test_every_command_that_takes_long_has_the_options(
    tmp_path: Path, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """They are declared once; ``verify``, ``retry``, ``reshard`` and ``demo`` report like ``prepare``."""
    assert [one.name for one in parameters_of([Reporting()])] == [*WORDS]
    assert main([*command, "--no-reshard", "--quiet"]) == 0
    assert capfd.readouterr().err == ""
    out = str(tmp_path / "写真" / "coyo-700m" / "pkl03-split")
    log = tmp_path / "log"
    ranks = ("--world-size", "1", "--batch", "1", "--group", "1")
    for words, last in (
        (["verify", out, *ranks, "--processes", "1"], "%  9 images"),
        (["reshard", out, str(tmp_path / "equal"), *ranks], "checking  100.0% 9/9"),
        (["retry", out, "--kinds", "http_status", "--processes", "1"], "100.0% 1/1  0 ok  1 failed"),
    ):
        assert main([*words, "--quiet", "--log", str(log)]) == 0
        printed = capfd.readouterr()
        assert printed.err == ""
        assert printed.out
        assert last in [text for kind, text in logged(log) if kind == "progress"][-1]
        assert logged(log)[-1] == ("summary", printed.out.splitlines()[-1])
    assert main(["demo", "--help"]) == 0
    assert "--log-json" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["", "missing/log"])
def test_a_log_that_cannot_be_written_is_refused(
    tmp_path: Path, command: list[str], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line says why, before anything is fetched or written."""
    assert main([*command, "--log", str(tmp_path / name)]) == 2
    printed = capfd.readouterr().err
    assert re.fullmatch(r"datafetch: cannot write to --log \S+ \(.+\); give the path of another file\n", printed)
    assert not (tmp_path / "写真").exists()


@pytest.mark.rotating
def test_a_log_that_is_not_a_file_of_its_own_is_refused(
    tmp_path: Path, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """A line in a shard would damage it; a FIFO that nobody reads would hang; ``-`` would be a file of that name."""
    out = tmp_path / "写真" / "coyo-700m" / "pkl03-split"
    out.mkdir(parents=True)
    for words in (command, [*command[:1], "coyo", "gqa", *command[-4:]]):
        assert main([*words, "--log", str(out / "log")]) == 2
        assert " lies in the output " in capfd.readouterr().err
    assert not list(out.iterdir())
    assert main([*command, "--quiet", "--no-reshard"]) == 0
    capfd.readouterr()
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "link").symlink_to(out)
    for log in (*before, out / "log", tmp_path / "link" / "log", out.with_name(f"{out.name}.datafetch") / "job.json"):
        assert main(["verify", str(out), "--log", str(log)]) == 2
        refused = f"datafetch: --log {log} lies in the output {out}; give the path of a file elsewhere\n"
        assert capfd.readouterr().err == refused
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    os.mkfifo(tmp_path / "fifo")
    assert main(["verify", str(out), "--log", str(tmp_path / "fifo")]) == 2
    assert "/fifo (No such device or address); give the path of another file" in capfd.readouterr().err
    assert main(["verify", str(out), "--log", "-"]) == 2
    assert capfd.readouterr().err == (
        "datafetch: --log takes the path of a file, not -; standard error has all messages already\n"
    )


def test_a_full_disk_behind_the_log_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    """What can't be written is lost, and ends no run."""
    with open_reporter(Reporting(log="/dev/full", quiet=True)):
        for _ in range(9):
            logging.getLogger("datafetch.x").info("lost")
    assert capfd.readouterr().err == (
        "datafetch: cannot write to --log /dev/full (No space left on device); lines are missing there\n"
    )
    with open_reporter(Reporting(log="/dev/null")):
        logging.getLogger("datafetch.x").info("nobody wants it")
    assert capfd.readouterr().err == "datafetch: nobody wants it\n"


def test_a_log_that_nobody_reads_is_given_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command ends although a FIFO is full."""
    monkeypatch.setattr("datafetch.cli.report_targets._CLOSE_S", 0.1)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open_reporter(Reporting(log=str(fifo), quiet=True)):
        for _ in range(9):
            logging.getLogger("datafetch.x").info("%s", "x" * 100_000)
        for _ in range(99):
            logging.getLogger("datafetch.x").info("%s", "x" * 1000)
    assert capfd.readouterr().err == f"datafetch: --log {fifo} takes no more lines; the last ones are missing there\n"
    os.close(reader)


def test_what_stops_a_command_is_in_the_log(tmp_path: Path) -> None:
    """An interruption, and a bug, as one line each."""
    log = tmp_path / "log"
    for error in (KeyboardInterrupt(), ValueError("a\nbug"), AssertionError()):
        with pytest.raises(type(error)), open_reporter(Reporting(log=str(log))):
            raise error
    assert logged(log) == [("error", "interrupted"), ("error", "a bug"), ("error", "AssertionError()")]


@pytest.mark.usefixtures("_commands_in_threads")
def test_the_log_names_options_as_standard_error_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And not the fields that they set."""
    log = tmp_path / "log"
    command = ["prepare", "ocr-vqa", "--source", str(tmp_path), "--root", str(tmp_path / "root")]
    assert main([*command, "--payload", "bytes", "--log", str(log)]) == 2
    message = "ocr-vqa does not take --payload bytes; leave it out"
    assert logged(log) == [("error", message)]
    assert capfd.readouterr().err == f"datafetch: {message}\n"
