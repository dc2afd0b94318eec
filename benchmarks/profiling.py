"""Costs: what the functions of a profiled process cost an image, as a table."""

from __future__ import annotations

import pstats
import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from rich.console import Console
from rich.table import Table

_SHOWN_FUNCTIONS = 40
_SHOWN_ROOMS = 12
_PLACE = re.compile(r"^.*/(site-packages|python3\.\d+)/|^.*/(?=datafetch/)")


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a function costs an image: calls, microseconds of its own, microseconds with all that it calls."""

    room: str
    function: str
    calls: float
    own_us: float
    with_callees_us: float


def show_costs(profile: Path, images: int, title: str) -> None:
    """Print the dearest functions of what ``cProfile`` left, and the sums by package."""
    costs = _costs(pstats.Stats(str(profile)), images)
    rooms: dict[str, float] = {}
    for cost in costs:
        rooms[cost.room] = rooms.get(cost.room, 0.0) + cost.own_us
    table = Table(title=f"{title} over {images:,} images, microseconds an image")
    for heading in ("function", "calls", "own us", "with callees us"):
        table.add_column(heading, justify="left" if heading == "function" else "right")
    for cost in costs[:_SHOWN_FUNCTIONS]:
        table.add_row(cost.function, f"{cost.calls:.2f}", f"{cost.own_us:.1f}", f"{cost.with_callees_us:.1f}")
    console = Console(width=160)
    console.print(table)
    dearest = sorted(rooms.items(), key=itemgetter(1), reverse=True)[:_SHOWN_ROOMS]
    console.print(", ".join(f"{room} {own_us:.0f}" for room, own_us in dearest), highlight=False)


def _costs(stats: pstats.Stats, images: int) -> list[_Cost]:
    """The functions of a profile, the dearest first."""
    costs = []
    for (path, line, name), (_, calls, own_s, all_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        place = _PLACE.sub("", path)
        costs.append(
            _Cost(
                room="built in" if path == "~" else place.partition("/")[0],
                function=name if path == "~" else f"{place}:{line} {name}",
                calls=calls / images,
                own_us=own_s / images * 1e6,
                with_callees_us=all_s / images * 1e6,
            )
        )
    return sorted(costs, key=lambda cost: -cost.own_us)
