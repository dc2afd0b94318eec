"""The command line with a shell's limits, closed streams and untrusted names: one clean line, the right exit code."""

import logging
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pytest

from datafetch.cli.app import main
from datafetch.cli.reporter import open_reporter
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.errors import ConfigurationError, ConservationError, DatafetchError, ManifestError, ResourceError
from datafetch.fetch.classify import SocketsExhaustedError
from datafetch.model.untrusted import one_line
from datafetch.output.commit_process import _error_fields

PATIENCE_S = 120
EVIL = "\x1b]0;mine now\x07\x1b[2J\r\u202etxt\u2028"
LONGEST_LINE = len("datafetch: ") + 2001


@pytest.fixture
def source(tmp_path: Path) -> CoyoSource:
    """A manifest whose images fail at once, since their addresses are not public."""
    return write_coyo_source(tmp_path / "source", ["http://127.0.0.1/a.jpg", "http://127.0.0.1/b.jpg"])


@pytest.fixture
def command(tmp_path: Path, source: CoyoSource) -> list[str]:
    """The command that fetches this manifest."""
    return [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)),
        *("--ids", str(source.ids), "--root", str(tmp_path / "root"), "--processes", "1", "--no-reshard"),
    ]


@pytest.mark.rotating
@pytest.mark.parametrize(
    "closed",
    [
        "<&- >&- 2>&-",
        pytest.param("<&-", marks=pytest.mark.slow),
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        pytest.param("<&- 2>&-", marks=pytest.mark.slow),
    ],
)
def test_a_run_with_closed_standard_streams_completes(tmp_path: Path, command: list[str], closed: str) -> None:
    """None of its output goes to a file or socket that got the number of a closed stream."""
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
    finished = subprocess.run(shell, capture_output=True, check=False, timeout=PATIENCE_S)
    assert finished.returncode == 0, finished.stderr
    (report,) = tmp_path.glob("root/*/*.datafetch/report.json")
    assert b'"complete": true' in report.read_bytes()
    assert (b"2 failed" in finished.stdout) == (">&-" not in closed.replace("2>&-", ""))


def _limited(limit_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


@pytest.mark.rotating
@pytest.mark.parametrize(
    "limit_mib",
    [
        100,
        *(pytest.param(mib, marks=pytest.mark.slow) for mib in (20, 30, 50, 120, 180, 250, 350, 450, 600, 800, 1000)),
    ],
)
@pytest.mark.usefixtures("without_coverage")  # which would need more memory
def test_a_small_address_space_is_one_line(command: list[str], limit_mib: int) -> None:
    """With an ``ulimit -v`` far below what libraries need, the exit code is 4 and the error says what to do."""
    limit = _limited(limit_mib << 20)
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        preexec_fn=limit,
    )
    assert finished.returncode == 4, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    line = finished.stderr
    assert line.startswith(("datafetch: the address space is limited to ", "datafetch: out of system resources: "))
    assert "ulimit -v" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceError("a disk"), 4),
        (SocketsExhaustedError("descriptors"), 4),
        (pa.ArrowMemoryError("malloc of size 64 failed"), 4),
        (MemoryError(), 4),
        (RuntimeError("can't start new thread"), 4),
        (ImportError("libarrow.so: failed to map segment from shared object"), 4),
        (pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"), 4),
        (OSError(12, "Cannot allocate memory"), 4),
        (ConfigurationError("an option"), 2),
        (ManifestError("a line"), 2),
        (ConservationError("a bug"), 1),
        (type("OfOurs", (ConservationError,), {})("a bug"), 1),
    ],
    ids=repr,
)
def test_an_error_has_the_exit_code_of_its_kind(
    tmp_path: Path, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A derived class has the exit code of its base class, and a lack of memory that of the machine's errors."""

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("datafetch.cli.commands.status.read_status", fail)
    assert main(["status", str(tmp_path)]) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("datafetch: ")


@pytest.mark.parametrize("options", [[], ["--fresh"]])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (ResourceError.from_disk_error(OSError(28, "No space left on device"), "write"), 4),
        (MemoryError(), 4),
        (OSError(5, "Input/output error"), 4),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("_commands_in_threads")
def test_a_run_with_fresh_is_resumed_without_fresh(
    command: list[str],
    error: BaseException,
    code: int,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Repeating the command with ``--fresh`` would delete what it has fetched, so the message leaves that out."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("datafetch.engine.cluster.choice.run", fail)
    assert main([*command[3:], *options]) == code
    line = capfd.readouterr().err.splitlines()[-1]
    assert ("run the same command without --fresh to resume" in line) is bool(options)
    assert ("run the same command again" in line) is not bool(options)


def test_a_bug_is_not_reported_as_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other exception is raised unchanged."""

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr("datafetch.cli.commands.status.read_status", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["status", str(tmp_path)])


@pytest.mark.parametrize(
    ("error", "kind"), [(SocketsExhaustedError("x"), "ResourceError"), (ManifestError("x"), "ManifestError")]
)
def test_a_commit_process_returns_the_kind_of_its_error(error: DatafetchError, kind: str) -> None:
    """A kind that the parent does not know by name is returned as its base class."""
    assert _error_fields(error) == {"error": kind, "message": "x"}


def write_shard(folder: Path, row: dict[str, object]) -> Path:
    """Write a shard of one row."""
    folder.mkdir()
    (folder / "part-00000.pkl").write_bytes(pickle.dumps([row]))
    (folder / "part-00000.count").write_text("1")
    return folder


@pytest.mark.rotating
@pytest.mark.parametrize("key", [EVIL, EVIL * 100_000])
def test_untrusted_names_do_not_control_the_terminal(
    tmp_path: Path, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Keys and file names are printed to standard error as one printable line of bounded length."""
    folder = write_shard(tmp_path / f"rows{EVIL}", {key: 1})
    assert main(["reshard", str(folder), str(tmp_path / "out")]) == 2
    check_one_clean_line(capfd.readouterr().err)
    assert main(["reshard", str(tmp_path / f"gone{EVIL}"), str(tmp_path / "out")]) == 2
    check_one_clean_line(capfd.readouterr().err)
    assert main(["prepare", f"no{key}", "--source", str(tmp_path)]) == 2
    check_one_clean_line(capfd.readouterr().err)
    assert main([f"no{EVIL}"]) == 2
    check_one_clean_line(capfd.readouterr().err)
    with open_reporter():
        logging.getLogger("datafetch.test").warning("a column %s", key)
    check_one_clean_line(capfd.readouterr().err)


def check_one_clean_line(text: str) -> None:
    """Check that the text is one printable line of bounded length."""
    (line,) = text.splitlines()
    assert line.isprintable(), line
    assert line.startswith("datafetch: ")
    assert len(line) <= LONGEST_LINE


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    """The beginning says what is wrong, and the end what to do."""
    line = one_line(f"the column {'x' * 1_000_000} is missing; write the file again")
    assert line.startswith("the column xxx")
    assert line.endswith("; write the file again")


def test_a_summary_does_not_control_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Names of folders are printable on standard output as well."""
    row: dict[str, object] = {"text": "a cat", "image": "aGk="}
    folder = write_shard(tmp_path / "rows", row)
    for name in ("part-00001", "part-00002", "part-00003"):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps([row]))
        (folder / f"{name}.count").write_text("1")
    arguments = ["--world-size", "2", "--batch", "1", "--group", "1"]
    assert main(["reshard", str(folder), str(tmp_path / f"out{EVIL}"), *arguments]) == 0
    printed = capfd.readouterr().out
    assert "4 rows in" in printed
    assert all(line.isprintable() for line in printed.split("\n"))
