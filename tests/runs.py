"""A small dataset with its own origin, and runs of the command on it that are observed, stopped and resumed.

Rules: the command is observed from outside: its exit code, its messages, its files, and the requests that the origin
received. After a run was stopped, its files are checked before the next run starts.
"""

from __future__ import annotations

import os
import pickle
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
from typing import Self

import psutil
import pyarrow.parquet as pq
from PIL import Image

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
# Of every twenty URLs these fail, so that repeated requests for failures would be noticed, too.
_FAULTS = {3: "missing", 8: "broken", 13: "html"}


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of a run.

    Attributes:
        root: The trainer's data folder.
        scratch: The folder for its spools; None is the state folder.
    """

    root: Path
    scratch: Path | None = None

    @property
    def layout(self) -> OutputLayout:
        """The paths of the output."""
        return OutputLayout(self.root / "coyo-700m" / "pkl03-split", self.scratch)

    def spools(self) -> list[Path]:
        """All spools of shards in progress."""
        try:
            return [*(self.scratch or self.layout.all_spools).glob("**/*.spool")]
        except FileNotFoundError:  # the folder is removed with the last spool
            return []

    def bytes_kept(self) -> int:
        """The size of all spools and published files."""
        total = 0
        for path in (*self.spools(), *listed(self.layout.out)):
            with suppress(FileNotFoundError):  # a spool is deleted when its shard is published
                total += path.stat().st_size
        return total

    def urls_kept(self) -> set[str]:
        """The URLs of all images in ledgers and spools."""
        urls: set[str] = set()
        for path in self.layout.ledgers.glob("*.parquet"):
            urls.update(pq.read_table(path, columns=["url"])["url"].to_pylist())
        for path in self.spools():
            if path.stat().st_size >= FILE_HEADER_BYTES:  # otherwise it has only just been created
                urls.update(line.url for line in read_lines(path))
        return urls


def read_lines(path: Path) -> list[LedgerLine]:
    """The ledger lines of a spool's images; the spool may be written to at the same time."""
    with path.open("rb") as file:
        return [record.line for record in scan_records(file, read_marker(file)) if isinstance(record, ImageResult)]


def listed(folder: Path) -> list[Path]:
    """The entries of a folder, which may not exist, or may be removed at this moment."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, slots=True)
class Trial:
    """The dataset, and the files that an undisturbed run writes.

    Attributes:
        origin: The server of its images.
        source: Its manifest.
        files: Name → content of the output's files.
    """

    origin: Origin
    source: CoyoSource
    files: Mapping[str, bytes] = field(repr=False)

    def command(self, place: Place) -> list[str]:
        """The command that fetches the dataset."""
        scratch = ("--scratch", str(place.scratch)) if place.scratch else ()
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
            *("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(place.root)),
            *OPTIONS,
            *scratch,
        ]

    def check_files(self, place: Place) -> None:
        """The output holds complete files alone, and no count without its rows."""
        names = {path.name for path in listed(place.layout.out)}
        for name in names:
            assert (place.layout.out / name).read_bytes() == self.files[name], f"{name} is not as undisturbed"
        assert {name.replace(".count", ".pkl") for name in names if name.endswith(".count")} <= names

    def check_complete(self, place: Place) -> None:
        """The output is that of an undisturbed run, byte for byte, and the ledgers have every image."""
        assert {path.name: path.read_bytes() for path in listed(place.layout.out)} == self.files
        assert place.urls_kept() == set(self.source.urls.values())
        assert not place.spools()

    def requests(self) -> dict[str, int]:
        """URL → the number of requests for it."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


class ShardSummary:
    """What was stored when a run last stopped, and how often each URL had been requested by then."""

    def __init__(self, trial: Trial, place: Place) -> None:
        self._trial = trial
        self._place = place
        self._kept = place.urls_kept()
        self._asked = trial.requests()

    def check(self) -> None:
        """No incomplete file looks complete; nothing that was stored is lost, or was requested again."""
        self._trial.check_files(self._place)
        kept, asked = self._place.urls_kept(), self._trial.requests()
        assert self._kept <= kept, f"lost: {self._kept - kept}"
        again = {url for url in self._kept if asked[url] != self._asked[url]}
        assert not again, f"requested again: {again}"
        self._kept, self._asked = kept, asked


@contextmanager
def serve_trial(folder: Path, *, side_px: int = 48) -> Iterator[Trial]:
    """Make the dataset, serve it, and fetch it undisturbed."""
    names = [f"{number:05d}.png" for number in range(_PICTURES)]
    (folder / "pictures").mkdir()
    for number, name in enumerate(names):
        image: Image.Image = paint((side_px, side_px), number)
        image.save(folder / "pictures" / name)
    with Origin(folder / "pictures") as origin:
        urls = [
            origin.url(_FAULTS.get(number % 20, "well"), names[number % _PICTURES], number) for number in range(IMAGES)
        ]
        source = write_coyo_source(folder / "source", urls, files=SHARDS)
        undisturbed = Place(folder / "undisturbed")
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
    """A running command; a context manager that leaves none of its processes behind."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the run
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env={**os.environ, **(environment or {}), _MARK: self._mark},
        )
        self._ended = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        os.close(self._ended)
        self._said.close()

    def readings(self) -> Iterator[None]:
        """Yield repeatedly until the command has ended, so that the caller can check something in between."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        while not poll.poll(_READING_MS):
            yield

    def family(self, role: str = "") -> list[psutil.Process]:
        """All running processes of the command, descendants included, whose command line contains ``role``."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(_MARK) == self._mark and role in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for the command and all of its processes to end, and return its exit code."""
        code = self.process.wait(patience_s)
        _, left = psutil.wait_procs(self.family(), timeout=PATIENCE_S)
        assert not left, f"still there: {left}"
        return code

    def abort(self) -> None:
        """Abort all processes; those with faulthandler print the stacks of their threads."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert not left, f"still there: {left}"

    def said(self) -> list[str]:
        """The lines on standard error, without those of progress."""
        self._said.seek(0)
        return [line for line in self._said.read().splitlines() if " images/s" not in line]


def check_out_of_resources(run: Run, code: int) -> str:
    """Check that the command stopped with exit code 4 and one line that says what to do; returns that line."""
    said = run.said()
    assert code == 4, said
    assert "Traceback" not in "\n".join(said), said
    complaints = [line for line in said if line.startswith("datafetch: ") and "run the same command again" in line]
    assert complaints == said[-1:], said
    return complaints[0]


_DIES_AT_A_STEP = """
import os, signal, sys

def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree"):
        if isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

left, folder = int(os.environ["DATAFETCH_TEST_STEPS"]), os.environ["DATAFETCH_TEST_FOLDER"]
if os.environ["DATAFETCH_TEST_VICTIM"] in " ".join(sys.orig_argv) + " ":
    sys.addaudithook(count)
"""


def dying_at_a_step(tmp_path: Path, victim: str, step: int, folder: Path) -> dict[str, str]:
    """An environment in which a process is killed right before a given file operation.

    Args:
        tmp_path: A folder for the hook that kills it.
        victim: A part of the command line of the process.
        step: The number of the file operation, counted from 1.
        folder: Only file operations below this folder are counted.
    """
    (tmp_path / "sitecustomize.py").write_text(_DIES_AT_A_STEP)
    return {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "DATAFETCH_TEST_VICTIM": victim,
        "DATAFETCH_TEST_STEPS": str(step),
        "DATAFETCH_TEST_FOLDER": str(folder),
    }
