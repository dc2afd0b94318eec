"""Counts, sizes and times as people read them, the same in messages, summaries and lines of progress."""

from __future__ import annotations

import shlex

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_MAX_S = 1e9  # thirty years; a time that is left may be any number of them when the pace is close to zero
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_PAIRS = (
    (("d", _DAY_S), ("h", _HOUR_S)),
    (("h", _HOUR_S), ("min", _MINUTE_S)),
    (("min", _MINUTE_S), ("s", 1)),
)
_TENTHS_BELOW_S = 9.95
_TENTHS_BELOW = 99.95  # larger numbers are shown whole: 9.5 MB, 99.9 MB, 100 MB


def command_for(command: str, out: object, *options: str) -> str:
    """A command for an output, as the shell takes it.

    It ends a message, without marks around it that could be taken for those of the shell.
    """
    return " ".join(("datafetch", command, shlex.quote(str(out)), *options))


def command_that_made(out: object) -> str:
    """How the command that made an output is found; it ends a message."""
    return f"to see that command: {command_for('status', out, '--command')}"


def counted(count: int, thing: str) -> str:
    """Format a count with its noun: ``1 shard``, ``2 shards``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def sized(size_bytes: float) -> str:
    """Format a size in decimal units, like those of ``df -H`` and of disk manufacturers: ``325 MB``, ``73.3 GB``."""
    if size_bytes < 999.5:  # noqa: PLR2004 - below, it is shown in bytes
        return counted(round(size_bytes), "byte")
    number, unit = float(size_bytes), 0
    while number >= 999.5 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - would be shown as 1000
        number, unit = number / 1000, unit + 1
    return f"{number:,.{1 if number < _TENTHS_BELOW else 0}f} {_UNITS[unit]}"


def lasting(seconds: float) -> str:
    """Format how long something took: ``0.3 s``, ``21 s``, ``5 min 3 s``, ``3 h 12 min``, ``2 d 4 h``."""
    if seconds < _TENTHS_BELOW_S:
        return f"{max(seconds, 0.1):.1f}".removesuffix(".0") + " s"
    whole_s = round(min(seconds, _MAX_S))
    if whole_s < _MINUTE_S:
        return f"{whole_s} s"
    larger, smaller = next(pair for pair in _PAIRS if whole_s >= pair[0][1])
    count, left_s = divmod(whole_s, larger[1])
    rest = left_s // smaller[1]
    return f"{count:,} {larger[0]}" + (f" {rest} {smaller[0]}" if rest else "")


def clock(seconds: float) -> str:
    """Format a time that is left: ``0:08``, ``5:03:02``, ``3d 4h``."""
    whole_s = round(max(0.0, min(seconds, _MAX_S)))
    minutes, left_s = divmod(whole_s, 60)
    hours, minutes = divmod(minutes, 60)
    if whole_s >= _DAY_S:
        days, hours = divmod(hours, 24)
        return f"{days:,}d {hours}h"
    return f"{hours}:{minutes:02}:{left_s:02}" if hours else f"{minutes}:{left_s:02}"
