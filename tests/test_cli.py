"""The command line, as a shell runs it."""

import json
import logging
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datafetch.cli import commands, report_text
from datafetch.cli.app import main
from datafetch.cli.commands.retry import retry
from datafetch.cli.options import PERMISSIONS, GivenOptions, parameters_of, parse_bytes, parse_rate
from datafetch.cli.render import show_report
from datafetch.datasets import registry
from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.engine.job import Job
from datafetch.engine.permissions import PERMITTING_OPTIONS, Permitted
from datafetch.engine.sample_tasks import TASKS_PER_CONNECTION
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy, OptOut
from datafetch.model.advice import ADVICE
from datafetch.model.kinds import CounterName
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.options import Effect, options_of
from datafetch.model.outcome import FailureKind, Permission
from datafetch.model.report import FailureCounts, PermittedSince, Report, ReshardedEpoch
from datafetch.model.sample import IdListResult
from datafetch.output.retry_filter import RetryFilter
from datafetch.transcode import BodyCheck, Encoding, ImageFormat, ImageSpec, Pixels, Resize, ResizeMode

Pictures = tuple[Path, list[str]]
IMAGES = 200
_CONNECTIONS = 24
PATIENCE_S = 120


@pytest.fixture
def source(tmp_path: Path, own_origin: Origin, small_pictures: Pictures) -> CoyoSource:
    """A manifest of two shards whose images take a second each."""
    names = small_pictures[1]
    urls = [own_origin.url("slow", names[number % len(names)], f"{tmp_path.name}-{number}") for number in range(IMAGES)]
    return write_coyo_source(tmp_path / "source", urls, files=2)


@pytest.fixture
def command(tmp_path: Path, source: CoyoSource) -> list[str]:
    """The command that fetches this manifest, a few images at a time."""
    return [
        *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
        *("--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path / "root")),
        *("--allow-net", "127.0.0.0/8", "--connections", str(_CONNECTIONS), "--per-host", str(_CONNECTIONS)),
        *("--processes", "2"),
    ]


def data_files(tmp_path: Path) -> dict[str, bytes]:
    """Return the files that the trainer reads."""
    folder = tmp_path / "root" / "coyo-700m" / "pkl03-split"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def spooled_bytes(tmp_path: Path) -> int:
    """Return the size of all spools."""
    return sum(path.stat().st_size for path in tmp_path.glob("root/coyo-700m/*.datafetch/spool/*/*"))


def start_and_wait_for_images(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """Start the command, and return it once dozens of images are in its spool."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while spooled_bytes(tmp_path) < 50_000:
        assert process.poll() is None, process.communicate()
    return process


@pytest.mark.rotating
@pytest.mark.parametrize("signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes(
    tmp_path: Path, command: list[str], source: CoyoSource, own_origin: Origin, signal_number: signal.Signals
) -> None:
    """Ctrl-C ends the run with exit code 130 and one line; the next run fetches only what is missing."""
    process = start_and_wait_for_images(command, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "datafetch: interrupted; run the same command again to resume"
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    finish_and_check(command, tmp_path, source, own_origin)


def test_a_killed_run_resumes(tmp_path: Path, command: list[str], source: CoyoSource, own_origin: Origin) -> None:
    """After SIGKILL no process is left and no partial file looks complete; the next run resumes image by image."""
    process = start_and_wait_for_images(command, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    finish_and_check(command, tmp_path, source, own_origin)


def finish_and_check(command: list[str], tmp_path: Path, source: CoyoSource, own_origin: Origin) -> None:
    """Complete the run, and check that every image is there and few were requested twice."""
    requests_before = own_origin.requests()
    finished = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    summary = json.loads(finished.stdout)
    assert summary["images"]["ok"] == IMAGES
    assert summary["images"]["reused"] > 0
    mine = {url.split("/", 3)[3] for url in source.urls.values()}
    requests = {path: times for path, times in own_origin.requests().items() if path[1:] in mine}
    assert len(requests) == IMAGES
    # Only images that were in flight, or in the codec, when the run ended are requested again.
    again = [path for path, times in requests.items() if times > 1]
    assert all(path in requests_before for path in again)
    assert len(again) <= _CONNECTIONS * TASKS_PER_CONNECTION < IMAGES
    rows = [
        row for name, content in data_files(tmp_path).items() if name.endswith(".pkl") for row in pickle.loads(content)
    ]
    assert [row["id"] for row in rows] == list(source.urls)


@pytest.mark.usefixtures("_commands_in_threads")
def test_json_prints_only_the_summary_on_standard_output(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The report file holds the same summary. Without ``--json``, it is three lines of text."""
    urls = [origin.url("well", name, tmp_path.name) for name in pictures[1][:10]]
    source = write_coyo_source(tmp_path / "source", [*urls, origin.url("missing", pictures[1][0])])
    arguments = [
        *("prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids)),
        *("--root", str(tmp_path), "--allow-net", "127.0.0.0/8", "--processes", "1"),
    ]
    assert main([*arguments, "--json"]) == 0
    printed = capfd.readouterr()
    assert printed.err.splitlines()[0].startswith("datafetch: estimated disk space: needs ")
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
    assert remarks[1:] == [
        "datafetch: 90.9% of the images arrived, but --min-success requires 95.0%; 'datafetch retry' may fetch more"
    ]


RESUME = "interrupted; run the same command again to resume"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--images", "50", "--out"], "interrupted; the same command starts a new demo in the same folder"),
        (["prepare"], RESUME),
    ],
)
def test_the_command_shows_what_the_library_logs(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A warning that is logged during a run is one line on standard error."""

    def warn(*_: object, **__: object) -> NoReturn:
        logging.getLogger("datafetch.transcode").warning("a codec process was killed")
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.engine.cluster.choice.run", warn)
    monkeypatch.setattr("datafetch.cli.commands.demo.run_demo", warn)
    options = {"demo": [str(tmp_path)], "prepare": ["coyo", "--source", "x"]}[arguments[0]]
    assert main([*arguments, *options]) == 130
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "datafetch: a codec process was killed",
        f"datafetch: {message}",
    ]


@pytest.mark.parametrize(
    ("command", "works_in", "message"),
    [
        ("retry", "retry_run", RESUME),
        ("reshard", "folder.reshard", RESUME),
        ("verify", "run_check", "interrupted; nothing was changed; run the same command to start over"),
        ("status", "read_status", "interrupted; nothing was changed"),
    ],
)
def test_an_interrupted_command_says_whether_it_can_be_resumed(
    command: str, works_in: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only commands that can resume say so; those that only read say that nothing was changed."""

    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"datafetch.cli.commands.{command}.{works_in}", interrupt)
    assert main([command, *(["out", "new"] if command == "reshard" else ["out"])]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == f"datafetch: {message}"


@pytest.mark.rotating
def test_a_closed_pipe_does_not_end_a_run(tmp_path: Path, origin: Origin, pictures: Pictures) -> None:
    """A run completes even if nothing reads its standard output and standard error any more."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", pictures[1][0], tmp_path.name)])
    command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", str(source.folder)]
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [*command, "--ids", str(source.ids), "--root", str(tmp_path / "root"), "--allow-net", "127.0.0.0/8"],
        stdout=writing,
        stderr=writing,
        env=_buffered(),
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


def _own_list(folder: Path) -> None:
    folder.write_text("URL,caption\nhttp://example.org/1.jpg,a cat\n")


def _nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "there is no folder"),
        (_empty, "holds no .parquet file"),
        (_no_parquet, "is not parquet: it is text that begins with"),
        (
            _no_column,
            "has no column text, clip_similarity_vitb32, clip_similarity_vitl14; it has id, url; for a list of",
        ),
        (_own_list, "begins with 'URL,caption http://example.org/1.jpg,a c'; for a list of your own, README.md"),
    ],
)
def test_a_wrong_source_is_one_line_and_exit_2(
    tmp_path: Path, make: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names what is wrong, and nothing is written."""
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
        (
            ["prepare", "mmc4-core"],
            "give a --source for mmc4-core (https://github.com/allenai/mmc4), which is no longer",
        ),
        (["prepare"], "name a dataset or a step: step-0, step-1"),
        (["prepare", "imagenet"], "no dataset or step 'imagenet'; there are: coyo, mmc4-core"),
        (["prepare", "mmc4"], "no dataset or step 'mmc4'; did you mean 'mmc4-core'? there are: coyo"),
        (["prepare", "coyo", "mmc4-core", "--source", "x"], "with several datasets --source takes NAME=PATH"),
        (
            ["prepare", "coyo", "--url-key", "u"],
            "coyo does not take --url-key; of the options of single datasets it takes --ids, --skip-bad-lines (",
        ),
        (
            ["prepare", "--root", "coyo", "ocr-vqa", "--ids", "x"],
            "ocr-vqa does not take --ids; of the options of single",
        ),
        (["prepare", "coyo", "--sorce", "x"], "--sorce (Possible options: --check-sources, --short-side, --source)"),
        (["prepare", "coyo", "--out", "x"], "--root, --timeout) (see 'datafetch prepare coyo --help')"),
        (["prepare", "step-0", "coyo", "--out", "x"], "(see 'datafetch prepare step-0 coyo --help')"),
        (["prepare", "coco"], "no dataset or step 'coco'; did you mean 'coco-train2017'? there are: coyo"),
        (["prepare", "COYO"], "no dataset or step 'COYO'; did you mean 'coyo'? there are: coyo"),
        (["prepare", "LLaVA"], "did you mean 'llava-pretrain' or 'llava-v1.5-subset' or 'llava-instruct-ja'? there"),
        (["failures", "x", "--kinds", "http"], "failure kind 'http'; did you mean 'http_status'? there are: bad_url"),
        (
            ["prepare", "coyo", "--source", "x", "--max-rate", "fast"],
            "a second, such as 500000, 500K or 10MB/s, not 'fa",
        ),
        (["retry", "x", "--kinds", "not_requested"], "not_requested alone selects nothing, because such images are"),
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
    """The error names the option and the values that it takes."""
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("datafetch: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_a_root_that_cannot_be_written_is_exit_4(
    tmp_path: Path, source: CoyoSource, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error of this machine has an exit code of its own."""
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / "root")
    assert main(["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", root]) == 4
    assert capfd.readouterr().err.startswith("datafetch: cannot write")


@pytest.mark.rotating
def test_an_error_that_cannot_be_printed_does_not_change_the_exit_code() -> None:
    """Standard error may be a file on the very disk that is full."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "datafetch", "prepare", "coyo", "--source", "nowhere"]
        finished = subprocess.run(command, stderr=full, env=_buffered(), check=False, timeout=PATIENCE_S)
    assert finished.returncode == 2


def _buffered() -> dict[str, str]:
    """Return the environment of a process whose standard streams are buffered, as they are unless this one's aren't."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["prepare", "--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version_go_to_standard_output(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """They end with exit code 0, as does the command without arguments."""
    assert main(arguments) == 0
    assert "datafetch" in capfd.readouterr().out


COMMANDS = ("prepare", "get", "retry", "demo", "reshard", "verify", "status", "failures", "explain")


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), *(["prepare", name] for name in registry.DATASETS)]
)
def test_help_fits_a_terminal_of_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``-h`` and ``--help`` print the same, and no line is longer."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "-h"]) == 0
    printed = capfd.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert main([*command, "--help"]) == 0
    assert capfd.readouterr().out == printed


def test_usage_names_arguments_as_manuals_do(capfd: pytest.CaptureFixture[str]) -> None:
    """Required arguments have no brackets, in the usage line and in the list of arguments."""
    assert main(["reshard", "--help"]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("Usage: datafetch reshard [OPTIONS] SRC DST\n")
    assert re.findall(r"^  ([A-Z]+)  ", printed, re.MULTILINE) == ["SRC", "DST"]
    assert re.findall(r"^(\w+):$", printed, re.MULTILINE) == ["Arguments", "Options"]
    assert main(["get", "--help"]) == 0
    assert capfd.readouterr().out.startswith("Usage: datafetch get [OPTIONS] INPUT...\n")


@pytest.mark.parametrize("command", [[], ["prepare"], ["get"]])
def test_examples_of_help_are_commands(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Their datasets and options exist, and what they do stands behind them."""
    assert main([*command, "--help"]) == 0
    examples = re.findall(r"^  (datafetch .*?) +# \w", capfd.readouterr().out, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        assert main([*shlex.split(example)[1:], "--help"]) == 0
        assert capfd.readouterr().out.startswith("Usage: datafetch ")


def test_help_lists_the_datasets_and_options_under_titles(capfd: pytest.CaptureFixture[str]) -> None:
    """Each dataset has a line, options of single datasets are left out, and the titles are in order."""
    assert main(["prepare", "--help"]) == 0
    printed = capfd.readouterr().out
    titles = re.findall(r"^(\w.*):$", printed, re.MULTILINE)
    assert titles == ["Examples", "Datasets", "Steps", "What to fetch", "Output", "Network", "Images", "Behaviour"]
    assert [line.split()[0] for line in printed.partition("Datasets:\n")[2].splitlines()[: len(registry.DATASETS)]] == [
        *registry.DATASETS
    ]
    assert "--keep-at-least" not in printed
    assert "\n  --ids" not in printed


@pytest.mark.parametrize(
    ("dataset", "own", "shown"),
    [
        ("coyo", {"--ids", "--skip-bad-lines"}, {"--payload", "--world-size"}),
        ("ocr-vqa", {"--only-referenced"}, set()),
        ("llm-jp-pairs-step1", {"--url-key", "--text-key", "--skip-bad-lines"}, {"--payload", "--world-size"}),
    ],
)
def test_help_of_a_dataset_lists_the_options_that_it_takes(
    dataset: str, own: set[str], shown: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Options of other datasets, and options without an effect for this one, are not listed."""
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
        (["prepare", "st"], {"step-0", "step-1", "step-2"}),
        (["prepare", "ocr-vqa", "--on"], {"--only-referenced", "--only-if-bigger"}),
        (["prepare", "coyo", "--only-r"], set()),
        (["prepare", "coyo", "--pixels", ""], {"recipe", "correct"}),
        (["retry", "out", "--kinds", "tim"], {"timeout"}),
        (["fail"], {"failures"}),
        (["failures", "out", "--kinds", "tim"], {"timeout"}),
    ],
)
def test_a_shell_completes_commands_datasets_options_and_values(
    words: list[str], completed: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only options of the named dataset are suggested."""
    for name, value in _asked_by_a_shell(words).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert set(capfd.readouterr().out.split()) == completed


@pytest.mark.rotating
def test_a_shell_completes_by_starting_the_command() -> None:
    """Its environment says what was typed."""
    answer = subprocess.run(
        [sys.executable, "-m", "datafetch"],
        env={**os.environ, **_asked_by_a_shell(["prepare", "llm-jp-p"])},
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert set(answer.stdout.split()) == {"llm-jp-pairs-step0", "llm-jp-pairs-step1"}


def _asked_by_a_shell(words: list[str]) -> dict[str, str]:
    return {
        "_DATAFETCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["datafetch", *words]),
        "COMP_CWORD": str(len(words)),
    }


def test_every_permission_is_an_option_that_permits() -> None:
    """Each permission of the ledger is an option whose effect is to permit, and vice versa."""
    fields = [one for values in (Job, FetchPolicy, ImageSpec) for one in options_of(values)]
    assert {one.name for one in fields if one.option.effect is Effect.PERMITS} == set(PERMISSIONS)


def test_option_names_are_unique() -> None:
    """No two parts of a job have an option of the same name, and datasets that share an option agree on its kind."""
    of_runs = [one.name for values in (Job, FetchPolicy, ImageSpec) for one in options_of(values)]
    assert len(of_runs) == len(set(of_runs))
    takes_value: dict[str, bool] = {}
    for dataset in registry.DATASETS.values():
        for one in options_of(type(dataset.options)):
            assert one.name not in of_runs
            assert takes_value.setdefault(one.name, one.default is not False) == (one.default is not False)


@pytest.mark.rotating
def test_help_and_errors_load_no_heavy_modules() -> None:
    """The network stack, Arrow, NumPy and Pillow take most of a second to load, so only commands that need them do."""
    ask = "import sys; from datafetch.cli.app import main; main([sys.argv[1]]); print(*sys.modules, file=sys.stderr)"
    for word in ("--help", "--version", "fly"):
        loaded = subprocess.run([sys.executable, "-c", ask, word], check=True, capture_output=True, text=True).stderr
        assert "datafetch.cli.app" in loaded
        assert not {"aiohttp", "asyncio", "numpy", "PIL", "pyarrow", "rich.console"} & set(loaded.split())


@pytest.mark.rotating
def test_a_run_loads_no_aiohttp() -> None:
    """It takes a tenth of a second to load, and is needed only where a site sets cookies."""
    ask = "import datafetch.engine.runner, datafetch.cli.commands.prepare, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert "datafetch.fetch.cookies" in loaded.split()
    assert not {"aiohttp", "yarl"} & set(loaded.split())


def test_the_list_of_commands_agrees_with_their_help(capfd: pytest.CaptureFixture[str]) -> None:
    """Each command's line is the beginning of its own help, and every command has a line."""
    assert main(["--help"]) == 0
    listed = capfd.readouterr().out.partition("Commands:")[2]
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert {line.split()[0] for line in listed.splitlines() if re.match(r"  \w", line)} == modules
    for name in modules:
        line = re.search(rf"^  {name} +(.*\n(?:    .*\n)*)", listed, re.MULTILINE)
        assert line is not None
        assert main([name, "--help"]) == 0
        assert " ".join(line[1].split()) in " ".join(capfd.readouterr().out.split())


@pytest.mark.usefixtures("_commands_in_threads")
def test_short_side_none_keeps_sizes(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """``--short-side none`` overrides the dataset's own rule."""
    source = write_coyo_source(tmp_path / "source", [origin.url("well", pictures[1][0], tmp_path.name)])
    arguments = ["prepare", "coyo", "--source", str(source.folder), "--ids", str(source.ids), "--root", str(tmp_path)]
    assert main([*arguments, "--allow-net", "127.0.0.0/8", "--short-side", "none", "--processes", "1"]) == 0
    capfd.readouterr()
    ledger = next(tmp_path.glob("coyo-700m/*.datafetch/ledger/*.parquet"))
    assert pq.read_table(ledger).column("height").to_pylist() == [480]


@pytest.mark.usefixtures("_commands_in_threads")
def test_options_that_decide_the_rows_are_recorded(
    tmp_path: Path, origin: Origin, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are stored in the job, and a run with other values on the same output is refused by name."""
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
def test_sizes_are_parsed(text: str, size_bytes: int) -> None:
    """A size is a number of bytes, or a number with a unit."""
    assert parse_bytes("--memory", text) == size_bytes


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("1", 1), ("10M", 10 << 20), ("1MB/s", 1 << 20), ("2 KiB / S", 2048)]
)
def test_rates_are_parsed(text: str, bytes_per_s: int) -> None:
    """A rate is a size, with or without its second."""
    assert parse_rate("--max-rate", text) == bytes_per_s


@pytest.mark.parametrize(
    "times",
    [pytest.param(1, marks=pytest.mark.rotating), pytest.param(2, marks=[pytest.mark.slow, pytest.mark.measured])],
)
def test_the_demo_passes_its_own_checks(tmp_path: Path, times: int) -> None:
    """It can be run from any folder, and repeated: the summary goes to standard output, the table to standard error."""
    command = [sys.executable, "-m", "datafetch", "demo", "--images", "50", "--json"]
    environment = {**os.environ, "COLUMNS": "200"}
    for _ in range(times):
        finished = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE_S
        )
        summary = json.loads(finished.stdout)
        assert summary["images"]["total"] == 50
        assert summary["images"]["failed"] == 6
        assert "all checks passed" in finished.stderr
        assert finished.stderr.count("served ") == 10


def test_each_option_about_images_reaches_the_spec() -> None:
    """A value that is given reaches the codec, and all others have the contract's default."""
    job = Job("coyo", "source", "out", image=ImageSpec(short_side_px=336))
    assert GivenOptions({}).change(job) == job
    options = GivenOptions(
        {
            "short_side": "none",
            "resize_mode": ResizeMode.BORDER,
            "size": 100,
            "only_if_bigger": True,
            "image_format": ImageFormat.WEBP,
            "quality": 90,
            "resize": Resize.EXACT,
            "check": BodyCheck.FULL,
            "min_size": 10,
            "max_aspect_ratio": 3.5,
            "max_area": 900_000,
            "decode_timeout": 3.5,
            "encode": Encoding.ORIGINAL,
            "pixels": Pixels.CORRECT,
            "max_pixels": 1_000_000,
        }
    )
    assert options.values.keys() == {one.name for one in parameters_of([ImageSpec()])}
    assert options.change(job).image == ImageSpec(
        resize_mode=ResizeMode.BORDER,
        size_px=100,
        only_if_bigger=True,
        image_format=ImageFormat.WEBP,
        quality=90,
        resize=Resize.EXACT,
        min_size_px=10,
        max_aspect_ratio=3.5,
        max_area_px=900_000,
        decode_timeout_s=3.5,
        encode=Encoding.ORIGINAL,
        pixels=Pixels.CORRECT,
        max_pixels=1_000_000,
    )


def test_each_option_about_fetching_reaches_the_policy() -> None:
    """A value that is given reaches the fetcher, and all others have the contract's default."""
    options = GivenOptions(
        {
            "connections": "12",
            "per_host": 3,
            "timeout": 4.5,
            "retries": 1,
            "max_body": "1MiB",
            "max_rate": "10MB",
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
        max_rate_bytes_per_s=10 << 20,
        allow_net=("10.0.0.0/8",),
        nameservers=("10.0.0.53",),
        opt_out=OptOut.IGNORE,
        contact="someone@example.org",
        insecure=True,
        trust_env=True,
    )


@pytest.mark.usefixtures("_commands_in_threads")
def test_permissions_reach_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """``retry OUT --kinds tls --insecure`` changes only the options that are given in the job of the earlier run."""
    before = Job("coyo", "source", "out", fetch=FetchPolicy(retries=7), image=ImageSpec(short_side_px=336))
    changed: list[Job] = []

    def capture(*_: object, change: Callable[[Job], Job], **__: object) -> NoReturn:
        changed.append(change(before))
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.cli.commands.retry.retry_run", capture)
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
    ("options", "expected"),
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
@pytest.mark.usefixtures("_commands_in_threads")
def test_a_permission_also_retries_the_failures_it_can_fix(
    options: list[str], expected: RetryFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator need not know that ``--insecure`` takes effect only together with ``--kinds tls``."""
    filters: list[RetryFilter] = []

    def capture(_: str, retry_filter: RetryFilter, **__: object) -> NoReturn:
        filters.append(retry_filter)
        raise KeyboardInterrupt

    monkeypatch.setattr("datafetch.cli.commands.retry.retry_run", capture)
    assert main(["retry", "out", *options]) == 130
    assert filters == [expected]


def test_allowed_networks_are_added_to_those_of_the_run() -> None:
    """Otherwise, hosts that the run could reach would be blocked in its retry."""
    job = Job("coyo", "source", "out", fetch=FetchPolicy(allow_net=("10.0.0.0/8",)))
    changed = GivenOptions({"allow_net": ["127.0.0.0/8", "10.0.0.0/8"]}).change(job)
    assert changed.fetch.allow_net == ("10.0.0.0/8", "127.0.0.0/8")


def test_the_report_says_how_to_fetch_failed_images(capfd: pytest.CaptureFixture[str]) -> None:
    """It gives the whole command if a permission can help, and the kinds if a retry had nothing to do."""
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
        failures=FailureCounts({"HTTP 404": 1, "HTTP 503": 1, "tls": 1, "opted_out": 5}, {"HTTP 503": 1}),
    )
    retry = "datafetch retry 'my out'"
    advice = [
        f"1 image failed as tls; --insecure also accepts invalid certificates and outdated TLS: {retry} --insecure",
        f"5 images failed as opted_out; --opt-out ignore fetches them too: {retry} --opt-out ignore",
        f"5 images failed as opted_out; to ask whether they still are: {retry} --kinds opted_out",
        "to list all 8 failed images: datafetch failures 'my out'",
    ]
    show_report(report, as_json=False)
    again = f"to request 1 failed image again, which may arrive later (HTTP 503: 1): {retry}"
    assert capfd.readouterr().out.splitlines()[3:] == [*advice[:-1], again, advice[-1]]
    show_report(replace(report, retried=0), as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == [
        (
            "nothing was requested, because this retry leaves alone what failed "
            "(opted_out: 5, HTTP 404: 1, HTTP 503: 1, tls: 1); "
            f"to request it all the same: {retry} --kinds http_status,opted_out,tls"
        ),
        *advice[:-1],
        again,
        advice[-1],
    ]
    since = PermittedSince(("--insecure", "--opt-out ignore"), {FailureKind.TLS: 1, FailureKind.OPTED_OUT: 5})
    show_report(replace(report, permitted_since=since), as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == [
        (
            "6 images had failed before --insecure --opt-out ignore was given; "
            f"to request them again: {retry} --kinds tls,opted_out --insecure --opt-out ignore"
        ),
        again,
        advice[-1],
    ]
    show_report(replace(report, has_open_retry=True), as_json=False)
    assert capfd.readouterr().out.splitlines()[3:] == [f"a retry was interrupted; to complete it: {retry}", *advice]
    show_report(report, as_json=False, is_demo=True)
    assert capfd.readouterr().out.splitlines()[3:] == [advice[-1]]


def test_a_summary_names_no_zero_counts(capfd: pytest.CaptureFixture[str]) -> None:
    """What did not happen is left out, and nothing is said of requests where none was sent."""
    report = Report(
        dataset="coyo",
        out="out",
        totals=ShardCounts(samples=3000, rows=3000, outcomes={"ok": 3000}),
        shards=4,
        reused=0,
        repeated=0,
        fetched_bytes=1,
        written_bytes=1,
        requests=3432,
        connections=259,
        elapsed_s=63.0,
        id_list_result=IdListResult(wanted=3000, duplicates=0, not_found=0),
        peak_open_requests=129,
    )
    show_report(report, as_json=False)
    assert capfd.readouterr().out.splitlines() == [
        "coyo: 3,000 of 3,000 samples, 4 shards in out",
        "images: 3,000 ok",
        "this run: 3,000 images arrived in 1 min 3 s, 47.6 images/s, 3,432 requests, at most 129 open",
        "ids: 3,000 wanted, all found",
    ]
    assert (report.summary()["connections"], report.summary()["peak_open_requests"]) == (259, 129)
    blocked = ShardCounts(samples=20, outcomes={"blocked_address": 20})
    show_report(replace(report, totals=blocked, requests=0, shards=0, id_list_result=None), as_json=False)
    assert capfd.readouterr().out.splitlines()[1:] == [
        "images: 20 failed (blocked_address 20)",
        "this run: no image arrived in 1 min 3 s",
        "to list all 20 failed images: datafetch failures out",
    ]
    show_report(replace(report, reused=3000, requests=0, id_list_result=None), as_json=False)
    assert capfd.readouterr().out.splitlines()[1:] == [
        "images: 3,000 ok",
        "this run: no image arrived in 1 min 3 s, 3,000 images reused",
    ]


def test_help_says_which_options_can_be_given_to_retry_later(capfd: pytest.CaptureFixture[str]) -> None:
    """Both commands say so for each of these options."""
    assert main(["prepare", "--help"]) == 0
    assert " ".join(capfd.readouterr().out.split()).count("May be given to retry later.") == 6
    assert main(["retry", "--help"]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    for kind in ("tls", "blocked_address", "opted_out", "too_large", "too_many_pixels"):
        assert f"Also retries {kind}, unless --kinds is given." in printed
    assert "connect, timeout, disconnected and http_status take along host_down: images that were not tried" in printed


def test_every_permission_is_remembered_and_advised() -> None:
    """Each permitting option is stored for later retries, and suggested if images failed for lack of it."""
    assert {field.name for field in fields(Permitted)} == set(PERMITTING_OPTIONS)
    assert set(ADVICE) == {permission.failure_kind for permission in Permission}
    assert all(f"--{permission}" in (retry.__doc__ or "") for permission in Permission)


def test_max_sample_reaches_the_job() -> None:
    """Runs and retries take the option, and its default is the contract's."""
    job = Job("coyo", "source", "out")
    assert job.max_sample_bytes == 256 << 20
    assert GivenOptions({"max_sample": "1GiB"}).change(job).max_sample_bytes == 1 << 30
    assert GivenOptions({}).change(replace(job, max_sample_bytes=5)).max_sample_bytes == 5
    with pytest.raises(ConfigurationError, match="max_sample_bytes must be"):
        replace(job, max_sample_bytes=3 << 30)


def test_every_counter_has_a_description() -> None:
    """A summary for people shows no internal name of a counter, and one of them not at all."""
    assert set(report_text._COUNTERS) == set(CounterName) - {CounterName.SKIPPED}


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
def test_a_number_that_is_too_large_is_refused_with_the_maximum(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, value: str, most: str
) -> None:
    """Whatever its length, the error names the option and its range, before anything is read or written."""
    dataset = "mmc4-core" if option in ("--keep-at-least", "--max-images") else "coyo"
    command = ["prepare", dataset, "--source", str(tmp_path), "--root", str(tmp_path / "root"), option, value]
    assert main(command) == 2
    message = capfd.readouterr().err
    assert message.startswith(f"datafetch: {option} must be from ")
    assert f" to {most}, not " in message
    assert message.count("\n") == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("count", "bad_lines", "rows"),
    [(1, "1 bad line skipped", "1 row left"), (8, "8 bad lines skipped", "8 rows left")],
)
def test_counts_are_singular_or_plural(
    capfd: pytest.CaptureFixture[str], count: int, bad_lines: str, rows: str
) -> None:
    """A summary prints "1 shard" and "8 shards"; images that were not requested are among the failed ones alone."""
    notes = {"bad_lines": count, "not_asked": count, "repeated_ids": count}
    report = Report(
        "coyo", "out", ShardCounts(count, count, {"ok": count}, 1, notes), count, 0, 0, 1, 1, count, count, 1.0
    )
    show_report(replace(report, resharded=ReshardedEpoch(count, count, count)), as_json=False)
    printed = capfd.readouterr().out
    for message in (bad_lines, rows):
        assert message in printed
    assert "not_asked" not in printed
    assert "not requested" not in printed
    ending = "" if count == 1 else "s"
    for thing in ("sample", "shard", "request"):
        assert re.search(rf"\b{count} {thing}{ending}\b", printed)
    assert f"for {count} rank{ending} of {count} sample{ending} each" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "coyo", "--quality", "high"], "'--quality': a whole number is required, not 'high'"),
        (["prepare", "coyo", "--timeout", "30s"], "'--timeout': a number is required, not '30s'"),
        (["demo", "--images", "10"], "'--images': 10 is less than the minimum, 50"),
        (["retry", "out", "--min-success", "5"], "--min-success is a share from 0 to 1, not 5.0"),
        (["prepare", "coyo", "--source", "s", "--ids", ""], "--ids is empty; give a path, or leave it out"),
    ],
)
def test_invalid_values_are_refused_in_plain_words(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message names the option and what it requires, before anything is done."""
    assert main(arguments) == 2
    assert message in capfd.readouterr().err
