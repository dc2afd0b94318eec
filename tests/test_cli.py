"""The command, as a shell runs it."""

import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datafetch.cli import commands
from datafetch.cli import render as show
from datafetch.cli.app import main
from datafetch.cli.commands.retry import retry
from datafetch.cli.options import PERMISSIONS, GivenOptions, parameters_of, parse_bytes
from datafetch.cli.render import show_report
from datafetch.datasets import registry
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.job import Job
from datafetch.engine.permissions import PERMITTING_OPTIONS, Permitted
from datafetch.engine.pipeline import TASKS_PER_CONNECTION
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import Effect, options_of
from datafetch.model.outcome import FailureKind, Permission
from datafetch.model.report import Report, ReshardedEpoch
from datafetch.output.retry_filter import RetryFilter
from datafetch.transcode import Encoding, ImageSpec, Pixels, Resize

Pictures = tuple[Path, list[str]]
IMAGES = 200
_CONNECTIONS = 24
PATIENCE_S = 120


@pytest.fixture(scope="module")
def slow_origin(pictures: Pictures) -> Iterator[Origin]:
    """A server of our own, for its counts."""
    with Origin(pictures[0]) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path, slow_origin: Origin, pictures: Pictures) -> CoyoSource:
    """A manifest whose images take a second each, in two shards."""
    names = pictures[1]
    urls = [
        slow_origin.url("slow", names[number % len(names)], f"{tmp_path.name}-{number}") for number in range(IMAGES)
    ]
    return write_coyo_source(tmp_path / "source", urls, files=2)


@pytest.fixture
def command(tmp_path: Path, source: CoyoSource) -> list[str]:
    """The command that fetches it, a few images at a time."""
    return [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
        *("--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path / "root")),
        *("--allow-net", "127.0.0.0/8", "--connections", str(_CONNECTIONS), "--per-host", str(_CONNECTIONS)),
        *("--processes", "2"),
    ]


def data_files(tmp_path: Path) -> dict[str, bytes]:
    """What the trainer sees."""
    folder = tmp_path / "root" / "coyo-700m" / "pkl03-split"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def spooled_bytes(tmp_path: Path) -> int:
    """How much has been spooled."""
    return sum(path.stat().st_size for path in tmp_path.glob("root/coyo-700m/*.datafetch/spool/*/*"))


def start_and_wait_for_images(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """Start the command, and return when dozens of images are in its spool."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while spooled_bytes(tmp_path) < 500_000:
        assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on(
    tmp_path: Path, command: list[str], source: CoyoSource, slow_origin: Origin, signal_number: signal.Signals
) -> None:
    """Ctrl-C ends the run with 130 and one line; the next run fetches the rest, and nothing that was there."""
    process = start_and_wait_for_images(command, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "datafetch: interrupted; run the same command again to resume"
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    finish_and_check(command, tmp_path, source, slow_origin)


def test_a_killed_run_goes_on(tmp_path: Path, command: list[str], source: CoyoSource, slow_origin: Origin) -> None:
    """After SIGKILL nothing half-written looks finished, no process is left, and the next run goes on by image."""
    process = start_and_wait_for_images(command, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    finish_and_check(command, tmp_path, source, slow_origin)


def finish_and_check(command: list[str], tmp_path: Path, source: CoyoSource, slow_origin: Origin) -> None:
    """Run to the end, and see that all is there and little was asked for twice."""
    asked_before = slow_origin.requests()
    finished = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    summary = json.loads(finished.stdout)
    assert summary["images"]["ok"] == IMAGES
    assert summary["images"]["reused"] > 0
    mine = {url.split("/", 3)[3] for url in source.urls.values()}
    asked = {path: times for path, times in slow_origin.requests().items() if path[1:] in mine}
    assert len(asked) == IMAGES
    # Only what was in the air, or in the codec, when the run ended is asked for again.
    again = [path for path, times in asked.items() if times > 1]
    assert all(path in asked_before for path in again)
    assert len(again) <= _CONNECTIONS * TASKS_PER_CONNECTION < IMAGES
    rows = [
        row for name, content in data_files(tmp_path).items() if name.endswith(".pkl") for row in pickle.loads(content)
    ]
    assert [row["id"] for row in rows] == list(source.urls)


def test_json_is_all_there_is_on_standard_output(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """``--json`` prints the contract's summary, the report file holds the same, and people get three lines."""
    urls = [origin.url("well", name, tmp_path.name) for name in pictures[1][:10]]
    source = write_coyo_source(tmp_path / "source", [*urls, origin.url("missing", pictures[1][0])])
    arguments = [
        *("prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids)),
        *("--root", str(tmp_path), "--allow-net", "127.0.0.0/8", "--processes", "1"),
    ]
    assert main([*arguments, "--json"]) == 0
    printed = capfd.readouterr()
    assert "the output will take up to about" in printed.err.splitlines()[0]
    summary = json.loads(printed.out)
    assert summary["dataset"] == "coyo"
    assert summary["complete"] is True
    assert summary["samples"] == {"total": 11, "rows": 10, "dropped": 1}
    assert summary["images"] == {"total": 11, "ok": 10, "failed": 1, "reused": 0, "by_kind": {"http_status": 1}}
    assert summary["bytes"]["fetched"] > summary["bytes"]["written"] > 0
    assert (summary["shards"], summary["requests"]) == (1, 11)
    assert summary["ids"] == {"wanted": 16, "duplicates": 3, "not_found": 5}
    assert json.loads((tmp_path / "coyo-700m" / "pkl03-split.datafetch" / "report.json").read_text()) == summary
    assert main([*arguments, "--min-success", "0.95"]) == 3
    printed = capfd.readouterr()
    assert "10 of 11 samples, 1 shard in" in printed.out
    assert "10 ok, 1 failed (http_status 1)" in printed.out
    assert "ids: 16 wanted, 5 not found, 3 duplicate lines" in printed.out
    remarks = printed.err.splitlines()
    assert "10 rows are too few for 64 ranks, which take at least 512" in remarks[0]
    assert remarks[1:] == ["datafetch: 90.9% of the images arrived, but --min-success requires 95.0%"]


RESUME = "interrupted; run the same command again to resume"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "--images", "50", "--out"], "interrupted; the same command starts a new demo in the same folder"),
        (["prepare"], RESUME),
    ],
)
def test_the_command_shows_what_the_library_logs(
    tmp_path: Path,
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A remark made in the midst of a run is one line on standard error."""

    def remark(*_: object, **__: object) -> NoReturn:
        logging.getLogger("datafetch.transcode").warning("a codec process was killed")
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.cli.commands.prepare.run", remark)
    monkeypatch.setattr("datafetch.cli.commands.demo.run_demo", remark)
    options = {"demo": [str(tmp_path)], "prepare": ["coyo", "--source", "x"]}[arguments[0]]
    assert main([*arguments, *options]) == 130
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "datafetch: a codec process was killed",
        f"datafetch: {told}",
    ]


@pytest.mark.parametrize(
    ("command", "works_in", "told"),
    [
        ("retry", "retry_run", RESUME),
        ("reshard", "folder.reshard", RESUME),
        ("verify", "run_check", "interrupted; nothing was changed; run the same command to start over"),
        ("status", "read_status", "interrupted; nothing was changed"),
    ],
)
def test_a_command_that_is_interrupted_says_what_holds_for_it(
    command: str, works_in: str, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only commands that resume say so; commands that only read have changed nothing."""

    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"datafetch.cli.commands.{command}.{works_in}", interrupt)
    assert main([command, *(["out", "new"] if command == "reshard" else ["out"])]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == f"datafetch: {told}"


def test_a_reader_that_left_ends_no_run(tmp_path: Path, origin: Origin, pictures: Pictures) -> None:
    """With nobody reading either stream any more the run still completes."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", pictures[1][0], tmp_path.name)])
    command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)]
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [*command, "--ids", str(source.ids), "--root", str(tmp_path / "root"), "--allow-net", "127.0.0.0/8"],
        stdout=writing,
        stderr=writing,
        check=False,
        timeout=PATIENCE_S,
    )
    os.close(writing)
    assert finished.returncode == 0
    assert sorted(data_files(tmp_path)) == ["part-00000.count", "part-00000.pkl"]


def _empty(folder: Path) -> None:
    folder.mkdir()


def _no_parquet(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.parquet").write_text("not parquet")


def _no_column(folder: Path) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"id": [1], "url": ["http://example.org"]}), folder / "a.parquet")


def _nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "there is no folder"),
        (_empty, "holds no .parquet file"),
        (_no_parquet, "is not parquet: it is text that begins with"),
        (_no_column, "has no column text, clip_similarity_vitb32, clip_similarity_vitl14; it has id, url"),
    ],
)
def test_a_wrong_source_is_one_line_and_exit_2(
    tmp_path: Path, make: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names what is wrong; nothing is written."""
    make(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    assert main(["prepare", "coyo", "--source", str(tmp_path / "source"), "--root", str(tmp_path / "root")]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("datafetch: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "coyo"], "missing option '--source' (see 'datafetch prepare coyo --help')"),
        (["prepare"], "name a dataset: coyo, mmc4-core"),
        (["prepare", "imagenet"], "no dataset 'imagenet'; there are: coyo, mmc4-core"),
        (["prepare", "mmc4"], "no dataset 'mmc4'; did you mean 'mmc4-core'? there are: coyo"),
        (["prepare", "coyo", "mmc4-core", "--source", "x"], "mmc4-core"),
        (["prepare", "coyo", "--url-key", "u"], "coyo does not take --url-key; it takes --ids, --skip-bad-lines"),
        (["prepare", "--root", "coyo", "ocr-vqa", "--ids", "x"], "ocr-vqa does not take --ids; it takes --only-ref"),
        (["prepare", "coyo", "--sorce", "x"], "--sorce (Possible options: --json, --short-side, --source)"),
        (["retry", "x", "--kinds", "timout"], "no failure kind 'timout'; did you mean 'timeout'? there are: bad_url"),
        (["prepare", "coyo", "--source", "x", "--colour"], "--colour"),
        (["prepare", "coyo", "--source", "x", "--connections", "many"], "--connections"),
        (["prepare", "coyo", "--source", "x", "--short-side", "-3"], "--short-side"),
        (["prepare", "coyo", "--source", "x", "--resize", "best"], "'best' is not one of 'exact', 'fast'"),
        (["prepare", "coyo", "--source", "x", "--encode", "webp"], "'webp' is not one of 'recipe', 'original'"),
        (["prepare", "coyo", "--source", "x", "--pixels", "all"], "'all' is not one of 'recipe', 'correct'"),
        (["prepare", "coyo", "--source", "x", "--payload", "raw"], "'raw' is not one of 'base64', 'bytes'"),
        (["prepare", "coyo", "--source", "x", "--max-body", "32Q"], "--max-body"),
        (["prepare", "coyo", "--source", "x", "--memory", "a lot"], "--memory"),
        (["prepare", "coyo", "--source", "x", "--allow-net", "home"], "--allow-net"),
        (["prepare", "coyo", "--source", "x", "--min-success", "90"], "--min-success"),
        (["prepare", "coyo", "--source", "x", "--timeout", "0"], "--timeout"),
        (["demo", "--images", "1"], "--images"),
        (["fly"], "fly"),
        (["prepar"], "'prepare'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_2(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line names the option and what it takes."""
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("datafetch: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_out_of_space_is_exit_4(tmp_path: Path, source: CoyoSource, capfd: pytest.CaptureFixture[str]) -> None:
    """A place that can't be written is this machine's trouble."""
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / "root")
    assert main(["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", root]) == 4
    assert capfd.readouterr().err.startswith("datafetch: cannot write")


def test_a_complaint_that_finds_no_room_changes_no_exit_code() -> None:
    """Standard error may be a file on the very disk that is full."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", "nowhere"]
        assert subprocess.run(command, stderr=full, check=False, timeout=PATIENCE_S).returncode == 2


@pytest.mark.parametrize("arguments", [[], ["--help"], ["prepare", "--help"], ["demo", "--help"], ["--version"]])
def test_help_is_no_error(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Asked for, it goes to standard output."""
    assert main(arguments) == 0
    assert "datafetch" in capfd.readouterr().out


COMMANDS = ("prepare", "retry", "demo", "reshard", "verify", "status")


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), *(["prepare", name] for name in registry.DATASETS)]
)
def test_help_fits_a_terminal_of_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By ``-h`` as by ``--help``, and no line is longer."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "-h"]) == 0
    printed = capfd.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert main([*command, "--help"]) == 0
    assert capfd.readouterr().out == printed


def test_usage_names_arguments_as_manuals_do(capfd: pytest.CaptureFixture[str]) -> None:
    """Required ones stand by their names alone, in the usage line and in the list of arguments."""
    assert main(["reshard", "--help"]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("Usage: datafetch reshard [OPTIONS] SRC DST\n")
    assert re.findall(r"^  ([A-Z]+)  ", printed, re.MULTILINE) == ["SRC", "DST"]


def test_help_lists_the_datasets_and_options_under_titles(capfd: pytest.CaptureFixture[str]) -> None:
    """Each dataset with a line, no option of one dataset among those of all, and the titles in their order."""
    assert main(["prepare", "--help"]) == 0
    printed = capfd.readouterr().out
    titles = re.findall(r"^(\w.*):$", printed, re.MULTILINE)
    assert titles == ["Datasets", "What to fetch", "Network", "Images", "Output", "Behaviour"]
    assert [line.split()[0] for line in printed.partition("Datasets:\n")[2].splitlines()[: len(registry.DATASETS)]] == [
        *registry.DATASETS
    ]
    assert "--keep-at-least" not in printed
    assert "--ids" not in printed


@pytest.mark.parametrize(
    ("dataset", "own", "shown"),
    [
        ("coyo", {"--ids", "--skip-bad-lines"}, {"--payload", "--world-size"}),
        ("ocr-vqa", {"--only-referenced"}, set()),
        ("llm-jp-pairs-step1", {"--url-key", "--text-key", "--skip-bad-lines"}, {"--payload", "--world-size"}),
    ],
)
def test_help_of_a_dataset_has_the_options_that_it_takes(
    dataset: str, own: set[str], shown: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Those of others are not listed, nor what changes nothing for it."""
    assert main(["prepare", dataset, "--help"]) == 0
    listed = set(re.findall(r"^  (--[a-z-]+)", capfd.readouterr().out, re.MULTILINE))
    assert main(["prepare", "--help"]) == 0
    of_all = set(re.findall(r"^  (--[a-z-]+)", capfd.readouterr().out, re.MULTILINE))
    assert listed - of_all == own
    assert listed & {"--payload", "--world-size"} == shown


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["pre"], {"prepare"}),
        (["--ver"], {"--version"}),
        (["prepare", "llm-jp-p"], {"llm-jp-pairs-step0", "llm-jp-pairs-step1"}),
        (["prepare", "ocr-vqa", "--on"], {"--only-referenced"}),
        (["prepare", "coyo", "--on"], set()),
        (["prepare", "coyo", "--pixels", ""], {"recipe", "correct"}),
        (["retry", "out", "--kinds", "tim"], {"timeout"}),
    ],
)
def test_a_shell_completes_what_is_typed(words: list[str], completed: set[str]) -> None:
    """Commands, datasets, the options of the named dataset, and failure kinds."""
    asked = {
        "_DATAFETCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["datafetch", *words]),
        "COMP_CWORD": str(len(words)),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "datafetch"],
        env={**os.environ, **asked},
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert set(answer.stdout.split()) == completed


def test_every_permission_is_an_option_that_permits() -> None:
    """What the ledger calls a permission can be given, and an option that permits is one of them."""
    fields = [one for values in (Job, FetchPolicy, ImageSpec) for one in options_of(values)]
    assert {one.name for one in fields if one.option.effect is Effect.PERMITS} == set(PERMISSIONS)


def test_no_option_hides_another() -> None:
    """Names are told apart whichever part of a job an option is a field of, and mean the same for all datasets."""
    of_runs = [one.name for values in (Job, FetchPolicy, ImageSpec) for one in options_of(values)]
    assert len(of_runs) == len(set(of_runs))
    takes_value: dict[str, bool] = {}
    for dataset in registry.DATASETS.values():
        for one in options_of(type(dataset.options)):
            assert one.name not in of_runs
            assert takes_value.setdefault(one.name, one.default is not False) == (one.default is not False)


def test_help_and_errors_come_without_what_they_do_not_need() -> None:
    """The network stack, Arrow, NumPy and Pillow take most of a second to load, and only their commands wait for it."""
    ask = "import sys; from datafetch.cli.app import main; main([sys.argv[1]]); print(*sys.modules, file=sys.stderr)"
    for word in ("--help", "--version", "fly"):
        loaded = subprocess.run([sys.executable, "-c", ask, word], check=True, capture_output=True, text=True).stderr
        assert "datafetch.cli.app" in loaded
        assert not {"aiohttp", "asyncio", "numpy", "PIL", "pyarrow", "rich.console"} & set(loaded.split())


def test_the_list_of_commands_says_what_they_say_of_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    """Each one's line is the beginning of its own help, and every command has a line."""
    assert main(["--help"]) == 0
    listed = capfd.readouterr().out.partition("Commands:")[2]
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert {line.split()[0] for line in listed.splitlines() if re.match(r"  \w", line)} == modules
    for name in modules:
        line = re.search(rf"^  {name} +(.*\n(?:    .*\n)*)", listed, re.MULTILINE)
        assert line is not None
        assert main([name, "--help"]) == 0
        assert " ".join(line[1].split()) in " ".join(capfd.readouterr().out.split())


def test_the_short_side_can_be_left_alone(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """``--short-side none`` keeps sizes, against the dataset's own rule."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", pictures[1][0], tmp_path.name)])
    arguments = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path)]
    assert main([*arguments, "--allow-net", "127.0.0.0/8", "--short-side", "none", "--processes", "1"]) == 0
    capfd.readouterr()
    ledger = next(tmp_path.glob("coyo-700m/*.datafetch/ledger/*.parquet"))
    assert pq.read_table(ledger).column("height").to_pylist() == [480]


def test_what_decides_the_rows_is_recorded(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The options about images reach the job, and a run with others on the same output is refused by name."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", pictures[1][0], tmp_path.name)])
    arguments = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path)]
    arguments += ["--allow-net", "127.0.0.0/8", "--processes", "1"]
    assert main([*arguments, "--resize", "fast", "--encode", "original", "--payload", "bytes"]) == 0
    job = json.loads(next(tmp_path.glob("coyo-700m/*.datafetch/job.json")).read_text())
    chosen = {"pixels": "recipe", "resize": "fast", "encode": "original", "payload": "bytes"}
    assert {name: job[name] for name in chosen} == chosen
    (row,) = pickle.loads((tmp_path / "coyo-700m" / "pkl03-split" / "part-00000.pkl").read_bytes())
    assert row["rawbytes"].startswith(b"\xff\xd8\xff")
    capfd.readouterr()
    assert main([*arguments, "--resize", "fast", "--encode", "original"]) == 2
    assert "(--payload: bytes, now base64)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1", 1), ("32MiB", 32 << 20), ("32M", 32 << 20), ("1.5 GB", 3 << 29), ("64k", 65536)]
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    """Bytes, or a number with a unit."""
    assert parse_bytes("--memory", text) == size_bytes


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_demo_shows_that_it_works(tmp_path: Path, times: int) -> None:
    """From another folder, once and again: the summary alone on standard output, the table on standard error."""
    command = [sys.executable, "-m", "datafetch", "demo", "--images", "90", "--json"]
    environment = {**os.environ, "COLUMNS": "200"}
    for _ in range(times):
        finished = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE_S
        )
        summary = json.loads(finished.stdout)
        assert summary["images"]["total"] == 90
        assert summary["images"]["failed"] == 12
        assert "all checks passed" in finished.stderr
        assert finished.stderr.count("served ") == 10


def test_each_option_about_images_reaches_the_spec() -> None:
    """What is said on the command line is what the codec is told; what is not said is the contract's default."""
    job = Job("coyo", "source", "out", image=ImageSpec(short_side_px=336))
    assert GivenOptions({}).change(job) == job
    options = GivenOptions(
        {
            "short_side": "100",
            "quality": 90,
            "resize": Resize.EXACT,
            "decode_timeout": 3.5,
            "encode": Encoding.ORIGINAL,
            "pixels": Pixels.CORRECT,
            "max_pixels": 1_000_000,
        }
    )
    assert options.values.keys() == {one.name for one in parameters_of([ImageSpec()])}
    assert options.change(job).image == ImageSpec(
        short_side_px=100,
        quality=90,
        resize=Resize.EXACT,
        decode_timeout_s=3.5,
        encode=Encoding.ORIGINAL,
        pixels=Pixels.CORRECT,
        max_pixels=1_000_000,
    )


def test_each_option_about_fetching_reaches_the_policy() -> None:
    """What is said on the command line is what the fetcher is told; what is not said is the contract's default."""
    options = GivenOptions(
        {
            "connections": "12",
            "per_host": 3,
            "timeout": 4.5,
            "retries": 1,
            "max_body": "1MiB",
            "allow_net": ["10.0.0.0/8"],
            "nameserver": ["10.0.0.53"],
            "opt_out": OptOut.IGNORE,
            "user_agent": "someone@example.org",
            "insecure": True,
            "trust_env": True,
        }
    )
    assert options.values.keys() == {one.name for one in parameters_of([FetchPolicy()])}
    assert options.change(Job("coyo", "source", "out")).fetch == FetchPolicy(
        connections=12,
        per_host=3,
        timeout_s=4.5,
        retries=1,
        max_body_bytes=1 << 20,
        allow_net=("10.0.0.0/8",),
        nameservers=("10.0.0.53",),
        opt_out=OptOut.IGNORE,
        contact="someone@example.org",
        insecure=True,
        trust_env=True,
    )


def test_what_is_permitted_reaches_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """``retry OUT --kinds tls --insecure``, and its like: the job of the run before with that, and else as it was."""
    before = Job("coyo", "source", "out", fetch=FetchPolicy(retries=7), image=ImageSpec(short_side_px=336))
    changed: list[Job] = []

    def look(*_: object, change: Callable[[Job], Job], **__: object) -> NoReturn:
        changed.append(change(before))
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.cli.commands.retry.retry_run", look)
    options = ["--insecure", "--opt-out", "ignore", "--allow-net", "10.0.0.0/8", "--max-body", "1G"]
    assert main(["retry", "out", "--kinds", "tls", *options, "--max-pixels", "200000000"]) == 130
    assert main(["retry", "out"]) == 130
    policy = FetchPolicy(
        retries=7, insecure=True, opt_out=OptOut.IGNORE, allow_net=("10.0.0.0/8",), max_body_bytes=1 << 30
    )
    assert changed == [
        replace(before, fetch=policy, image=ImageSpec(short_side_px=336, max_pixels=200_000_000)),
        before,
    ]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], RetryFilter()),
        (["--insecure"], RetryFilter(also=frozenset({FailureKind.TLS}))),
        (["--allow-net", "10.0.0.0/8"], RetryFilter(also=frozenset({FailureKind.BLOCKED_ADDRESS}))),
        (["--opt-out", "ignore"], RetryFilter(also=frozenset({FailureKind.OPTED_OUT}))),
        (["--opt-out", "obey"], RetryFilter()),
        (
            ["--max-body", "1G", "--max-pixels", "200000000"],
            RetryFilter(also=frozenset({FailureKind.TOO_LARGE, FailureKind.TOO_MANY_PIXELS})),
        ),
        (["--max-sample", "1G"], RetryFilter(also=frozenset({FailureKind.TOO_LARGE}))),
        (["--max-sample", "1G", "--kinds", "tls"], RetryFilter(frozenset({FailureKind.TLS}))),
        (["--insecure", "--all"], RetryFilter.all()),
    ],
)
def test_whoever_permits_something_wants_what_failed_for_want_of_it(
    options: list[str], wanted: RetryFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody needs to know that ``--insecure`` is of use with ``--kinds tls`` alone."""
    asked: list[RetryFilter] = []

    def look(_: str, wanted: RetryFilter, **__: object) -> NoReturn:
        asked.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.cli.commands.retry.retry_run", look)
    assert main(["retry", "out", *options]) == 130
    assert asked == [wanted]


def test_networks_are_added_to_those_of_the_run() -> None:
    """Or what was reached through them would be blocked again."""
    job = Job("coyo", "source", "out", fetch=FetchPolicy(allow_net=("10.0.0.0/8",)))
    changed = GivenOptions({"allow_net": ["127.0.0.0/8", "10.0.0.0/8"]}).change(job)
    assert changed.fetch.allow_net == ("10.0.0.0/8", "127.0.0.0/8")


def test_the_report_says_how_to_have_what_failed(capfd: pytest.CaptureFixture[str]) -> None:
    """By the whole command, where a permission might bring it; and by its kinds, where a retry had nothing to do."""
    report = Report(
        dataset="coyo",
        out="my out",
        totals=ShardCounts(samples=9, rows=1, outcomes={"ok": 1, "tls": 1, "http_status": 2, "opted_out": 5}),
        shards=1,
        reused=1,
        repeated=0,
        fetched_bytes=0,
        written_bytes=0,
        requests=0,
        connections=8,
        elapsed_s=1.0,
        permittable={"tls": 1, "opted_out": 5},
    )
    retry = "datafetch retry 'my out'"
    advice = [
        f"1 image failed as tls: '{retry} --insecure' also accepts invalid certificates and outdated TLS",
        f"5 images failed as opted_out: '{retry} --opt-out ignore' fetches them too",
    ]
    show_report(report, as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == advice
    show_report(replace(report, retried=0), as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == [
        (
            "this retry had nothing to request, because all failures are of other kinds; "
            "--kinds http_status,opted_out,tls (or some of them) requests those as well"
        ),
        *advice,
    ]
    show_report(replace(report, has_open_retry=True), as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == [f"a retry was interrupted: '{retry}' completes it", *advice]


def test_help_says_what_may_be_permitted_later(capfd: pytest.CaptureFixture[str]) -> None:
    """In both commands, with each of these options."""
    assert main(["prepare", "--help"]) == 0
    assert " ".join(capfd.readouterr().out.split()).count("May be given to retry later.") == 6
    assert main(["retry", "--help"]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    for kind in ("tls", "blocked_address", "opted_out", "too_large", "too_many_pixels"):
        assert f"Also retries {kind}, unless --kinds is given." in printed


def test_no_permission_is_forgotten() -> None:
    """Each option that permits something is remembered for later retries, and advised where images lack it."""
    assert {field.name for field in fields(Permitted)} == set(PERMITTING_OPTIONS)
    assert set(show._ADVICE) == {permission.failure_kind for permission in Permission}
    assert all(f"--{permission}" in (retry.__doc__ or "") for permission in Permission)


def test_what_a_sample_may_have_reaches_the_job() -> None:
    """The bound of a sample is taken by runs and retries; unsaid, it is the contract's."""
    job = Job("coyo", "source", "out")
    assert job.max_sample_bytes == 256 << 20
    assert GivenOptions({"max_sample": "1GiB"}).change(job).max_sample_bytes == 1 << 30
    assert GivenOptions({}).change(replace(job, max_sample_bytes=5)).max_sample_bytes == 5
    with pytest.raises(ConfigurationError, match="--max-sample"):
        replace(job, max_sample_bytes=3 << 30)


def test_there_are_words_for_all_that_is_counted() -> None:
    """A person reads no name of the ledger's in a summary."""
    assert set(show._COUNTERS) == set(CounterName)


_HUGE = "1" + "0" * 40


@pytest.mark.parametrize(
    ("option", "value", "most"),
    [
        ("--max-body", "99999999T", "1,125,899,906,842,624"),
        ("--max-body", _HUGE, "1,125,899,906,842,624"),
        ("--memory", "99999999T", "1,125,899,906,842,624"),
        ("--max-sample", "99999999T", "2,147,483,648"),
        ("--connections", _HUGE, "1,000,000"),
        ("--per-host", _HUGE, "1,000,000"),
        ("--retries", _HUGE, "60"),
        ("--processes", "1000000", "1,024"),
        ("--limit", _HUGE, "9,223,372,036,854,775,807"),
        ("--short-side", _HUGE, "2,147,483,647"),
        ("--quality", _HUGE, "95"),
        ("--max-pixels", _HUGE, "4,294,967,296"),
        ("--world-size", _HUGE, "1,000,000"),
        ("--keep-at-least", _HUGE, "2,147,483,647"),
        ("--max-images", _HUGE, "2,147,483,647"),
    ],
)
def test_a_number_that_is_too_large_is_one_line_with_the_greatest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, value: str, most: str
) -> None:
    """Whatever its length: the option is named with what it takes, before anything is read or written."""
    dataset = "mmc4-core" if option in ("--keep-at-least", "--max-images") else "coyo"
    command = ["prepare", dataset, "--source", str(tmp_path), "--root", str(tmp_path / "root"), option, value]
    assert main(command) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"datafetch: {option} must be from ")
    assert f" to {most}, not " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("count", "bad_lines", "images", "rows"),
    [(1, "1 bad line skipped", "1 image skipped", "1 row left"), (8, "8 bad lines", "8 images skipped", "8 rows left")],
)
def test_what_was_counted_is_said_in_the_right_number(
    capfd: pytest.CaptureFixture[str], count: int, bad_lines: str, images: str, rows: str
) -> None:
    """One line, one shard, one rank."""
    notes = {"bad_lines": count, "not_asked": count, "repeated_ids": count}
    report = Report(
        "coyo", "out", ShardCounts(count, count, {"ok": count}, 1, notes), count, 0, 0, 1, 1, count, count, 1.0
    )
    show_report(replace(report, resharded=ReshardedEpoch(count, count, count)), as_json=False)
    printed = capfd.readouterr().out
    for said in (bad_lines, images, rows):
        assert said in printed
    ending = "" if count == 1 else "s"
    for thing in ("sample", "shard", "request"):
        assert re.search(rf"\b{count} {thing}{ending}\b", printed)
    assert f"for {count} rank{ending} of {count} sample{ending} each" in printed
