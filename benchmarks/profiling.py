"""Print a profile as a table of what each function costs for an image."""

from __future__ import annotations

import pstats
import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.table import Table

_SHOWN_FUNCTIONS = 40
_SHOWN_PACKAGES = 12
_PATH_PREFIX = re.compile(r"^.*/(site-packages|python3\.\d+)/|^.*/(?=datafetch/)")


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a function costs for an image: calls, its own microseconds, and microseconds with all that it calls."""

    package: str
    function: str
    calls: float
    own_us: float
    with_callees_us: float


def show_costs(profile: Path, images: int, title: str) -> None:
    """Print the most expensive functions that ``cProfile`` recorded, and the sums by package."""
    costs = _costs(pstats.Stats(str(profile)), images)
    packages: dict[str, float] = {}
    for cost in costs:
        packages[cost.package] = packages.get(cost.package, 0.0) + cost.own_us
    table = Table(title=f"{title} over {images:,} images, microseconds an image")
    for heading in ("function", "calls", "own us", "with callees us"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    for cost in costs[:_SHOWN_FUNCTIONS]:
        table.add_row(cost.function, f"{cost.calls:.2f}", f"{cost.own_us:.1f}", f"{cost.with_callees_us:.1f}")
    console = Console(width=160)
    console.print(table)
    most_expensive = sorted(packages.items(), key=itemgetter(1), reverse=True)[:_SHOWN_PACKAGES]
    console.print(", ".join(f"{package} {own_us:.0f}" for package, own_us in most_expensive), highlight=False)


def _costs(stats: pstats.Stats, images: int) -> list[_Cost]:
    """The functions of a profile, the most expensive first."""
    costs = []
    for (path, line, name), (_, calls, own_s, all_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        path_shown = _PATH_PREFIX.sub("", path)
        costs.append(
            _Cost(
                package="built in" if path == "~" else path_shown.partition("/")[0],
                function=name if path == "~" else f"{path_shown}:{line} {name}",
                calls=calls / images,
                own_us=own_s / images * 1e6,
                with_callees_us=all_s / images * 1e6,
            )
        )
    return sorted(costs, key=lambda cost: -cost.own_us)
