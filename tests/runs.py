"""A small dataset on an origin of its own, and runs of the command on it that are watched, stopped and gone on with.

Rules: the command is seen from outside: its exit code, what it says, the files it leaves, and what the origin was asked
for. Whatever stopped a run, what it left is looked at before the next one begins.
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
"""What every run here is told besides what to fetch and where to."""

IMAGES = 240
SHARDS = 3
PATIENCE_S = 30.0
_PICTURES = 40
_READING_MS = 1
_MARK = "DATAFETCH_TEST_RUN"
# Of every twenty URLs these fail, and so would be seen to be asked for again.
_FAULTS = {3: "missing", 8: "broken", 13: "html"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run leaves what it makes.

    Attributes:
        root: The trainer's data folder.
        scratch: Where its spools lie; None is the state folder.
    """

    root: Path
    scratch: Path | None = None

    @property
    def layout(self) -> OutputLayout:
        """Where everything lies."""
        return OutputLayout(self.root / "coyo-700m" / "pkl03-split", self.scratch)

    def spools(self) -> list[Path]:
        """All spools of shards in progress."""
        try:
            return [*(self.scratch or self.layout.all_spools).glob("**/*.spool")]
        except FileNotFoundError:  # the folder goes with the last of them
            return []

    def bytes_kept(self) -> int:
        """How much lies in spools and in published files."""
        total = 0
        for path in (*self.spools(), *listed(self.layout.out)):
            with suppress(FileNotFoundError):  # a spool goes when its shard is published
                total += path.stat().st_size
        return total

    def urls_kept(self) -> set[str]:
        """The URLs of all images that a ledger or a spool has."""
        urls: set[str] = set()
        for path in self.layout.ledgers.glob("*.parquet"):
            urls.update(pq.read_table(path, columns=["url"])["url"].to_pylist())
        for path in self.spools():
            if path.stat().st_size >= FILE_HEADER_BYTES:  # or it was only just begun
                urls.update(line.url for line in read_lines(path))
        return urls


def read_lines(path: Path) -> list[LedgerLine]:
    """The ledger lines of a spool's images; the spool may be written to meanwhile."""
    with path.open("rb") as file:
        return [ended.line for ended in scan_records(file, read_marker(file)) if isinstance(ended, ImageResult)]


def listed(folder: Path) -> list[Path]:
    """What is in a folder, which may not be there, or go in this very moment."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True, slots=True)
class Trial:
    """The dataset, and the files that an undisturbed run makes of it.

    Attributes:
        origin: Who serves it.
        source: Its manifest.
        files: Name → content of what the trainer reads.
    """

    origin: Origin
    source: CoyoSource
    files: Mapping[str, bytes] = field(repr=False)

    def command(self, place: Place) -> list[str]:
        """The command that fetches it."""
        scratch = ("--scratch", str(place.scratch)) if place.scratch else ()
        return [
            *(sys.executable, "-m", "datafetch", "prepare", "coyo"),
            *("--source", str(self.source.folder), "--ids", str(self.source.ids), "--root", str(place.root)),
            *OPTIONS,
            *scratch,
        ]

    def check_files(self, place: Place) -> None:
        """The trainer's folder holds whole files alone, and no count whose rows are not there."""
        names = {path.name for path in listed(place.layout.out)}
        for name in names:
            assert (place.layout.out / name).read_bytes() == self.files[name], f"{name} is not what it must become"
        assert {name.replace(".count", ".pkl") for name in names if name.endswith(".count")} <= names

    def check_complete(self, place: Place) -> None:
        """The trainer's folder is that of an undisturbed run, byte for byte, and the ledgers have every image."""
        assert {path.name: path.read_bytes() for path in listed(place.layout.out)} == self.files
        assert place.urls_kept() == set(self.source.urls.values())
        assert not place.spools()

    def requests(self) -> dict[str, int]:
        """URL → how often it was asked for."""
        by_path = self.origin.requests()
        return {url: by_path.get("/" + url.split("/", 3)[3], 0) for url in self.source.urls.values()}


class ShardSummary:
    """What was kept at one place when a run last stopped, and how often the origin had been asked for it."""

    def __init__(self, trial: Trial, place: Place) -> None:
        self._trial = trial
        self._place = place
        self._kept = place.urls_kept()
        self._asked = trial.requests()

    def check(self) -> None:
        """Nothing half-written looks finished; nothing that was kept is lost, or was asked for again."""
        self._trial.check_files(self._place)
        kept, asked = self._place.urls_kept(), self._trial.requests()
        assert self._kept <= kept, f"lost: {self._kept - kept}"
        again = {url for url in self._kept if asked[url] != self._asked[url]}
        assert not again, f"asked for again: {again}"
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
    """The command at work; use it as a context manager, which leaves none of its processes behind."""

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
        """Again and again, until the command has ended; the caller looks at something in between."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        while not poll.poll(_READING_MS):
            yield

    def family(self, role: str = "") -> list[psutil.Process]:
        """All living processes of the command, children of children too, whose command line has this in it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(_MARK) == self._mark and role in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self) -> int:
        """Wait for the command's end and that of all its processes, and return its exit code."""
        code = self.process.wait(PATIENCE_S)
        _, left = psutil.wait_procs(self.family(), timeout=PATIENCE_S)
        assert not left, f"still there: {left}"
        return code

    def abort(self) -> None:
        """Let all its processes say where each of their threads is, if they have faulthandler, and end."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert not left, f"still there: {left}"

    def said(self) -> list[str]:
        """The lines on standard error, those of progress left out."""
        self._said.seek(0)
        return [line for line in self._said.read().splitlines() if " images/s" not in line]


def check_out_of_resources(run: Run, code: int) -> str:
    """The command stopped with exit 4 and one line that says what to do; returns that line."""
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
    """An environment in which a process is killed right before it does the so-manieth thing to a file.

    Args:
        tmp_path: For the hook that does it.
        victim: What the command line of the process has in it.
        step: Before which one, counted from 1.
        folder: Only what is done below it counts.
    """
    (tmp_path / "sitecustomize.py").write_text(_DIES_AT_A_STEP)
    return {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "DATAFETCH_TEST_VICTIM": victim,
        "DATAFETCH_TEST_STEPS": str(step),
        "DATAFETCH_TEST_FOLDER": str(folder),
    }
