"""A small dataset with its own origin, and runs of the command on it that are observed, stopped and resumed.

Rules: the command is observed from outside: its exit code, its messages, its files, and the requests that the origin
received. After a run was stopped, its files are checked before the next run starts.
"""

from __future__ import annotations

import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import psutil
import pyarrow.parquet as pq
from PIL import Image
from preloaded import ForkedProcess, PreloadedCommand

from datafetch.demo.manifest import CoyoSource, write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import paint
from datafetch.model.ledger_line import LedgerLine
from datafetch.store.layout import OutputLayout
from datafetch.store.spool_format import FILE_HEADER_BYTES, ImageResult, read_marker, scan_records

OPTIONS = (
    *("--allow-net", "127.0.0.0/8", "--connections", "8", "--per-host", "8"),
    *("--processes", "1", "--retries", "0", "--no-reshard"),
)
"""The options of every run, besides the source and the output."""

IMAGES = 240
SHARDS = 3
PATIENCE_S = 150.0
_PICTURES = 40
_READING_MS = 1
_MARK = "DATAFETCH_TEST_RUN"
_KILL_HOOK = Path(__file__).with_name("kill_hook")
_PROGRESS = re.compile(r"([0-9.]+% )?[0-9,]+(/[0-9,]+)?( images)?  [0-9,]+ ok")
# Of every twenty URLs these fail, so that repeated requests for failures would be noticed, too.
_FAULTS = {3: "missing", 8: "broken", 13: "html"}


@dataclass(frozen=True, slots=True)
class RunFolders:
    """The folders that a run writes to.

    Attributes:
        root: The trainer's data folder.
        scratch: The folder for its spools; None is the state folder.
        path: The output, relative to the root.
    """

    root: Path
    scratch: Path | None = None
    path: Path = Path("coyo-700m", "pkl03-split")

    @property
    def layout(self) -> OutputLayout:
        """The paths of the output."""
        return OutputLayout(self.root / self.path, self.scratch)

    def spools(self) -> list[Path]:
        """Return the spools of all shards in progress."""
        try:
            return [*(self.scratch or self.layout.all_spools).glob("**/*.spool")]
        except FileNotFoundError:  # the folder is removed with the last spool
            return []

    def stored_bytes(self) -> int:
        """Return the size of all spools and published files."""
        total = 0
        for path in (*self.spools(), *listed(self.layout.out)):
            with suppress(FileNotFoundError):  # a spool is deleted when its shard is published
                total += path.stat().st_size
        return total

    def stored_urls(self) -> set[str]:
        """Return the URLs of all images in spools and ledgers, also while shards are published."""
        urls: set[str] = set()
        for path in self.spools():
            with suppress(FileNotFoundError):  # the shard has been published since
                if path.stat().st_size >= FILE_HEADER_BYTES:  # otherwise it has only just been created
                    urls.update(line.url for line in read_lines(path))
        for path in self.layout.ledgers.glob("*.parquet"):  # behind the spools, which are deleted when there is one
            urls.update(pq.read_table(path, columns=["url"])["url"].to_pylist())
        return urls


def read_lines(path: Path) -> list[LedgerLine]:
    """Read the ledger lines of a spool's images; the spool may be written to at the same time."""
    with path.open("rb") as file:
        return [record.line for record in scan_records(file, read_marker(file)) if isinstance(record, ImageResult)]


def listed(folder: Path) -> list[Path]:
    """List the entries of a folder, which may be missing, or be removed at this moment."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, slots=True)
class Trial:
    """A dataset, and the files that an undisturbed run writes.

    Attributes:
        origin: The server of its images.
        source: Its manifest.
        files: Name → content of the output's files.
    """

    origin: Origin
    source: CoyoSource
    files: Mapping[str, bytes] = field(repr=False)

    def command(self, folders: RunFolders) -> list[str]:
        """Return the command that fetches the dataset into these folders."""
        scratch = ("--scratch", str(folders.scratch)) if folders.scratch else ()
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
            *("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(folders.root)),
            *OPTIONS,
            *scratch,
        ]

    def check_files(self, folders: RunFolders) -> None:
        """Check that the output holds only complete files, and no count without its rows."""
        names = {path.name for path in listed(folders.layout.out)}
        for name in names:
            assert (folders.layout.out / name).read_bytes() == self.files[name], (
                f"{name} differs from that of an undisturbed run"
            )
        assert {name.replace(".count", ".pkl") for name in names if name.endswith(".count")} <= names

    def check_complete(self, folders: RunFolders) -> None:
        """Check that the output equals that of an undisturbed run, and that the ledgers have every image."""
        assert {path.name: path.read_bytes() for path in listed(folders.layout.out)} == self.files
        assert folders.stored_urls() == set(self.source.urls.values())
        assert not folders.spools()

    def requests(self) -> dict[str, int]:
        """Return the number of requests for each URL."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


class Observed(Protocol):
    """A dataset with an origin of its own."""

    def check_files(self, folders: RunFolders) -> None:
        """Check that the output holds only complete files."""
        ...

    def requests(self) -> Mapping[str, int]:
        """Return the number of requests for each URL."""
        ...


class StoredImages:
    """The images stored when a run last stopped, and how often each URL had been requested by then."""

    def __init__(self, trial: Observed, folders: RunFolders) -> None:
        self._trial = trial
        self._folders = folders
        self._urls = folders.stored_urls()
        self._requests = trial.requests()

    def check(self) -> None:
        """Check that no incomplete file looks complete, and that no stored image was lost or requested again."""
        self._trial.check_files(self._folders)
        urls, requests = self._folders.stored_urls(), self._trial.requests()
        assert self._urls <= urls, f"lost: {self._urls - urls}"
        again = {url for url in self._urls if requests[url] != self._requests[url]}
        assert not again, f"requested again: {again}"
        self._urls, self._requests = urls, requests


@contextmanager
def serve_trial(folder: Path, *, side_px: int = 48, hosts: int = 1) -> Iterator[Trial]:
    """Write a dataset, serve it under the addresses of so many hosts, and fetch it once without disturbance."""
    names = [f"{number:05d}.png" for number in range(_PICTURES)]
    (folder / "pictures").mkdir()
    for number, name in enumerate(names):
        image: Image.Image = paint((side_px, side_px), number)
        image.save(folder / "pictures" / name)
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url(
                _FAULTS.get(number % 20, "well"),
                names[number % _PICTURES],
                number,
                host=f"127.0.0.{number % hosts + 1}",
            )
            for number in range(IMAGES)
        ]
        source = write_coyo_source(folder / "source", urls, files=SHARDS)
        undisturbed = RunFolders(folder / "undisturbed")
        trial = Trial(origin, source, {})
        subprocess.run(trial.command(undisturbed), check=True, capture_output=True, timeout=PATIENCE_S)
        assert set(trial.requests().values()) == {1}
        files = {path.name: path.read_bytes() for path in listed(undisturbed.layout.out)}
        shards = {name.partition(".")[0] for name in files}
        assert set(files) == {f"{shard}{suffix}" for shard in shards for suffix in (".pkl", ".count")}
        assert len(shards) == SHARDS
        for shard in shards:
            assert len(pickle.loads(files[f"{shard}.pkl"])) == int(files[f"{shard}.count"])
        yield Trial(origin, source, files)


class Run:
    """A running command, as a context manager that leaves none of its processes behind.

    Args:
        command: The command.
        environment: What it has in its environment besides that of the test.
        preloaded: Where the command is forked, which must be datafetch; otherwise it is started afresh.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        preloaded: PreloadedCommand | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the run
        variables = {**os.environ, **(environment or {}), _MARK: self._mark}
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if preloaded is None:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._stderr, env=variables)
        else:
            self.process = preloaded.start(command, variables, self._stderr.fileno())
        self._ended = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        os.close(self._ended)
        self._stderr.close()

    def readings(self) -> Iterator[None]:
        """Yield repeatedly until the command has ended, so that the caller can check something in between."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        while not poll.poll(_READING_MS):
            yield

    def family(self, role: str = "") -> list[psutil.Process]:
        """Return all running processes of the command, descendants included, whose command line contains ``role``.

        The command line of a command that was forked is that of the server of ``preloaded``.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                is_forked = process.pid == self.process.pid and self.process.returncode is None
                is_ours = is_forked or process.environ().get(_MARK) == self._mark
                if is_ours and role in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the command and all of its processes to end, and return its exit code."""
        code = self.process.wait(patience_s)
        _, left = psutil.wait_procs(self.family(), timeout=PATIENCE_S)
        assert not left, f"still there: {left}"
        return code

    def abort(self) -> None:
        """Abort all processes; those with faulthandler print the stacks of their threads.

        The command itself is the first, and the others wait for its end: stacks that are printed at once get mixed.
        """
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(PATIENCE_S)
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert not left, f"still there: {left}"

    def messages(self) -> list[str]:
        """Return the lines on standard error, without those of progress."""
        self._stderr.seek(0)
        return [line for line in self._stderr.read().splitlines() if not _PROGRESS.match(line)]


def run_undisturbed(command: Sequence[str], preloaded: PreloadedCommand) -> None:
    """Run a command that must complete."""
    with Run(command, preloaded=preloaded) as run:
        assert run.end() == 0, run.messages()


def check_out_of_resources(run: Run, code: int) -> str:
    """Check that the command stopped with exit code 4 and one line that says what to do; returns that line."""
    messages = run.messages()
    assert code == 4, messages
    assert "Traceback" not in "\n".join(messages), messages
    complaints = [line for line in messages if line.startswith("datafetch: ") and "run the same command again" in line]
    assert complaints == messages[-1:], messages
    return complaints[0]


def dying_at_a_step(victim: str, step: int, folder: Path) -> dict[str, str]:
    """Return an environment in which a process is killed right before a given file operation.

    Args:
        victim: A part of the command line of the process.
        step: The number of the file operation, counted from 1.
        folder: Only file operations below this folder are counted.
    """
    return {
        "PYTHONPATH": os.pathsep.join([str(_KILL_HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "DATAFETCH_TEST_VICTIM": victim,
        "DATAFETCH_TEST_STEPS": str(step),
        "DATAFETCH_TEST_FOLDER": str(folder),
    }
