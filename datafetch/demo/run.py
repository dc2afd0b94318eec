"""run_demo(): paint pictures, serve them, fetch them, and check the result.

Rules: the demo shows the real thing: the same job, over real HTTP, that ``datafetch prepare coyo`` would run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from datafetch.datasets import find_dataset
from datafetch.demo.check import Finding, check_files, check_outcomes
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.engine.job import Job
from datafetch.engine.runner import run
from datafetch.errors import ConfigurationError, ResourceError
from datafetch.fetch import FetchPolicy
from datafetch.model.observers import Observer
from datafetch.model.report import Report
from datafetch.model.statistics import Statistics

DEFAULT_FOLDER = Path("datafetch-demo")
_MARKER = "made-by-datafetch-demo"
_PICTURES = 220  # ten of each kind; with more images, URLs share pictures
_FAULTS = ("missing", "flaky", "slow", "moved", "truncated", "cut", "reset", "html", "inside")
_FAULTY_SHARE = 0.02  # for each fault
_FILES = 2
_UNWANTED_ROWS_PER_IMAGE = 9


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The report of the demo's run, and the results of its checks."""

    report: Report
    findings: tuple[Finding, ...]

    @property
    def is_passed(self) -> bool:
        """Whether all checks passed."""
        return all(finding.is_passed for finding in self.findings)

    def table(self) -> Table:
        """Return the results of the checks as a table for people."""
        table = Table(title=f"demo: {'all checks passed' if self.is_passed else 'SOME CHECKS FAILED'}")
        table.add_column("check")
        table.add_column("number", justify="right")
        table.add_column("expected")
        table.add_column("actual")
        for finding in self.findings:
            table.add_row(
                finding.check,
                f"{finding.number:,}",
                finding.expected,
                finding.actual,
                style=None if finding.is_passed else "bold red",
            )
        return table


def run_demo(images: int, folder: Path = DEFAULT_FOLDER, observers: Iterable[Observer[Statistics]] = ()) -> DemoResult:
    """Paint pictures, serve them with faults, fetch them, and check what came out.

    Args:
        images: The number of images, faulty ones included.
        folder: The output folder: new, empty, or that of an earlier demo, which is replaced.
        observers: Observe the run.

    Raises:
        ConfigurationError: The folder contains something else.
    """
    prepare_folder(folder)
    pictures = write_pictures(folder / "pictures", min(images, _PICTURES))
    dataset = find_dataset("coyo")
    with Origin(folder / "pictures") as origin:
        urls = [_url(origin, number, pictures, images) for number in range(images)]
        source = write_coyo_source(folder / "source", urls, files=_FILES, rows=images * (1 + _UNWANTED_ROWS_PER_IMAGE))
        job = Job(
            dataset=dataset.name,
            source=str(source.folder),
            out=str(folder / "playground" / "data" / dataset.path),
            ids=str(source.ids),
            fetch=FetchPolicy(allow_net=("127.0.0.0/8",), per_host=64, backoff_s=0.2),
            world_size=None,
        )
        report = run(job, observers)
    return DemoResult(report, (*check_outcomes(job, urls), *check_files(job, report, source)))


def _url(origin: Origin, number: int, pictures: list[str], images: int) -> str:
    faulty = max(1, round(images * _FAULTY_SHARE))
    fault, repetition = number % len(_FAULTS), number // len(_FAULTS)
    behaviour = _FAULTS[fault] if repetition < faulty else "well"
    picture = pictures[number % len(pictures)]
    if behaviour == "truncated":
        # A cut-off JPEG still shows half a picture, unlike other formats, and must not be accepted.
        picture = next(name for name in pictures if name.endswith(".jpg"))
    return origin.url(behaviour, picture, number)


def prepare_folder(folder: Path) -> None:
    """Make a demo's output folder, and empty that of an earlier demo.

    Raises:
        ConfigurationError: It contains something else.
        ResourceError: It can't be made.
    """
    try:
        _clear(folder)
    except OSError as error:
        raise ResourceError.from_disk_error(error, f"create the folder {folder}") from error


def _clear(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder; give --out a new one")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise ConfigurationError(f"{folder} holds something other than an earlier demo; give --out a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
