"""Record: what a benchmark measured, as a typed value with its unit; saved as JSON, shown as a table.

Rules: every run is kept, including warm-ups, which are marked as such. Medians are over the measured runs only.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Self

import orjson
from rich.console import Console
from rich.table import Table

OTHERS_SHARE = "others_cpu_percent"
"""The detail that holds the share of the machine's CPU time that other processes took during a run."""

_NOISY_PERCENT = 10.0
NEW_RESULTS = Path(__file__).resolve().parent / "results" / "new"
"""Where new records go; git ignores it. Those that README.md states are kept in the folder above."""


class RunKind(StrEnum):
    """What a run is for."""

    WARM_UP = "warm-up"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that was measured on."""

    cpu_model: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: Mapping[str, str]

    @classmethod
    def this(cls) -> Self:
        """Describe this machine, with the CPUs that this process may use."""
        try:
            cpu_model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        except OSError:
            cpu_model = None
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpu_model=cpu_model[1] if cpu_model else platform.processor() or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(memory_bytes / 1024**3, 1),
            system=platform.platform(),
            python=platform.python_version(),
            packages={name: version(name) for name in ("vlm-datafetch", "pillow", "pyarrow", "aiohttp", "uvloop")},
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one case.

    Attributes:
        case: The name of the case; a benchmark compares its cases.
        kind: Whether it counts.
        value: What was measured, in the record's unit.
        details: What else was measured; the names carry their units.
        outcomes: The number of images by outcome.
        series: What was sampled during the run, in order; the names carry their units.
    """

    case: str
    kind: RunKind
    value: float
    details: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    series: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """All runs of one benchmark.

    Attributes:
        name: The name of the benchmark.
        measure: What the value of a run is.
        unit: The unit of that value.
        parameters: What decides the workload.
        runs: The runs, in the order in which they were made.
        machine: The machine that was measured on.
        ended_at: When the last run ended, UTC, ISO 8601.
        subject: What was measured in particular, for the table's title; empty if the name says it.
    """

    name: str
    measure: str
    unit: str
    parameters: Mapping[str, object]
    runs: Sequence[Run]
    machine: Machine = field(default_factory=Machine.this)
    ended_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    subject: str = ""

    @property
    def cases(self) -> list[str]:
        """The cases, in the order of their first runs."""
        return list(dict.fromkeys(run.case for run in self.runs))

    def quiet(self) -> Self:
        """The same record, with only the measured runs that other processes did not disturb."""
        quiet = [run for run in self.runs if run.kind is RunKind.MEASURED and not _is_noisy(run)]
        return replace(self, runs=quiet)

    def values(self, case: str) -> list[float]:
        """The value of each measured run of a case."""
        return [run.value for run in self._measured(case)]

    def median(self, case: str) -> float:
        """The median over the measured runs of a case."""
        return statistics.median(self.values(case))

    def ratio(self, case: str, base: str) -> float:
        """The median of a case divided by that of another."""
        return self.median(case) / self.median(base)

    def quiet_percent(self, case: str, base: str) -> str:
        """The ratio of the medians as a percentage, of undisturbed runs if both cases have any."""
        quiet = self.quiet()
        if case in quiet.cases and base in quiet.cases:
            return f"{quiet.ratio(case, base):.1%}"
        return f"{self.ratio(case, base):.1%} (no undisturbed runs)"

    def median_detail(self, case: str, name: str) -> float:
        """The median of one of the details over the measured runs of a case."""
        return statistics.median(run.details.get(name, 0.0) for run in self._measured(case))

    def table(self, details: Sequence[str] = ()) -> Table:
        """Make a table with a line a case: the median and range of the value, and the medians of these details."""
        measured = sum(run.kind is RunKind.MEASURED for run in self.runs)
        title = f"{self.name}, {self.subject}" if self.subject else self.name
        table = Table(title=f"{title}: medians of {measured // len(self.cases)} runs each, cases in turn")
        table.add_column("case")
        for heading in (f"{self.measure} ({self.unit})", "min to max", "outcomes, all runs", *map(_heading, details)):
            table.add_column(heading, justify="right")
        for case in self.cases:
            values = self.values(case)
            table.add_row(
                case,
                _number(self.median(case)),
                f"{_number(min(values))} to {_number(max(values))}",
                self._outcomes(case),
                *(_number(self.median_detail(case, name)) for name in details),
            )
        return table

    def save(self, folder: Path = NEW_RESULTS) -> Path:
        """Write the record as JSON under a name of its own, and return the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}-{re.sub(r'[^0-9T]', '', self.ended_at.partition('+')[0])}.json"
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return path

    def show(self, details: Sequence[str] = (), remarks: Sequence[str] = ()) -> None:
        """Save the record, and print the table, the remarks, the machine and the path of the record."""
        console = Console(width=None if Console().is_terminal else 200)
        console.print(self.table(details))
        machine = self.machine
        versions = f"Python {machine.python}, Pillow {machine.packages['pillow']}"
        for remark in (
            *remarks,
            *self._noise(),
            f"{machine.cores} cores of {machine.cpu_model}, {versions}",
            f"every run: {os.path.relpath(self.save())}",
        ):
            console.print(remark, highlight=False, soft_wrap=True)

    def _noise(self) -> list[str]:
        measured = [run for run in self.runs if run.kind is RunKind.MEASURED]
        if not any(map(_is_noisy, measured)):
            return []
        shares = [run.details[OTHERS_SHARE] for run in measured]
        remark = (
            f"NOISE: other processes took {min(shares):.0f} to {max(shares):.0f} % of the machine's CPU time during "
            "the runs; CPU times and memory are valid, but speeds are too low and their ratios uncertain"
        )
        return [remark]

    def _measured(self, case: str) -> list[Run]:
        return [run for run in self.runs if run.case == case and run.kind is RunKind.MEASURED]

    def _outcomes(self, case: str) -> str:
        outcomes: dict[str, int] = {}
        for run in self._measured(case):
            for outcome, count in run.outcomes.items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
        return ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))


def kinds(warm_ups: int, runs: int) -> list[RunKind]:
    """The kinds of the rounds: first warm-ups, then measured ones."""
    return [RunKind.WARM_UP] * warm_ups + [RunKind.MEASURED] * runs


def _is_noisy(run: Run) -> bool:
    return run.details.get(OTHERS_SHARE, 0.0) >= _NOISY_PERCENT


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
