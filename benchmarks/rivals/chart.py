"""A bar chart as SVG, which looks the same on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#2f7ed8", "#8a8f98", "#c58b3a")
_WIDTH_PX, _LABEL_PX, _BARS_PX = 760, 300, 360
_BAR_PX, _GROUP_GAP_PX, _LEGEND_PX = 15, 14, 28


@dataclass(frozen=True, slots=True)
class Group:
    """Bars next to each other.

    Attributes:
        title: What they have in common.
        values: Case → value.
    """

    title: str
    values: Mapping[str, float]


def draw_chart(groups: Sequence[Group]) -> str:
    """Draw the groups below each other; the longest bar of each group fills the width."""
    height_px = _LEGEND_PX + sum(len(group.values) * _BAR_PX + _GROUP_GAP_PX for group in groups)
    colours = dict(zip(dict.fromkeys(case for group in groups for case in group.values), _COLOURS, strict=False))
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_PX} {height_px}" width="{_WIDTH_PX}" '
        f'height="{height_px}" font-family="sans-serif" font-size="12" fill="#808080">'
    )
    return "\n".join([opening, *_legend(colours), *_bars(groups, colours), "</svg>\n"])


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = _LABEL_PX
    for case, colour in colours.items():
        yield f'<rect x="{x}" y="4" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 16}" y="14">{escape(case)}</text>'
        x += 110
    yield f'<text x="{_LABEL_PX - 8}" y="14" text-anchor="end">good images a second</text>'


def _bars(groups: Sequence[Group], colours: Mapping[str, str]) -> Iterator[str]:
    y = _LEGEND_PX
    for group in groups:
        middle = y + len(group.values) * _BAR_PX / 2 + 4
        yield f'<text x="{_LABEL_PX - 8}" y="{middle:g}" text-anchor="end">{escape(group.title)}</text>'
        longest = max(group.values.values()) or 1
        for case, value in group.values.items():
            width = round(value / longest * _BARS_PX, 1)
            yield (
                f'<rect x="{_LABEL_PX}" y="{y}" width="{width:g}" height="{_BAR_PX - 2}" fill="{colours[case]}"/>'
                f'<text x="{_LABEL_PX + width + 6:g}" y="{y + 11}">{value:,}</text>'
            )
            y += _BAR_PX
        y += _GROUP_GAP_PX
