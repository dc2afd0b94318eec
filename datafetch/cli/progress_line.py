"""Lines of progress: of which fields they consist, and which of these a terminal has room for.

Rules: a line is fitted into a width by whole fields, the most important first; nothing is cut. Widths are those of
terminals, on which most East Asian characters take two columns. Text from the web, such as the name of a host,
can't control the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum, auto
from typing import TYPE_CHECKING

from rich.cells import cell_len

from datafetch.model.activities import ActivityProgress, ActivityUnit
from datafetch.model.remaining import remaining_s
from datafetch.model.statistics import ReshardProgress, Statistics, Waiting
from datafetch.model.untrusted import to_printable
from datafetch.model.wording import clock, counted, lasting, sized
from datafetch.monitor.throughput import Pace

if TYPE_CHECKING:
    from datafetch.verify import VerifyProgress  # which would load the verification

_GAP = "  "
_WHOLE_FROM_PER_S = 9.95  # a slower pace is shown with a decimal
_LEAST_PER_S = 0.05  # a slower one would be shown as none


class Importance(IntEnum):
    """How important a field, or one of its forms, is, the least first.

    While a run waits and little is sent, what it waits for and its outcomes (``WAITING_…``) come before all others.
    """

    RECEIVED = auto()
    SHARDS = auto()
    OPEN = auto()
    WAITING = auto()
    OK = auto()
    COUNT = auto()
    NEXT_ATTEMPT = auto()
    ALL_TIME_LEFT_IN_WORDS = auto()
    ALL_TIME_LEFT = auto()
    FAILED = auto()
    TITLE = auto()
    PACE = auto()
    TIME_LEFT = auto()
    RUN = auto()
    WAITING_OK = auto()
    WAITING_FAILED = auto()
    WAITED_FOR = auto()
    STAGE = auto()
    SHARE = auto()


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a field."""

    text: str
    importance: Importance


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """A line of progress.

    Attributes:
        fields: The fields in their order, each with its forms: the longest first, and the more important the shorter.
        values: The same for programs.
    """

    fields: tuple[tuple[Form, ...], ...]
    values: Mapping[str, object] = field(default_factory=dict)

    def whole(self) -> str:
        """All fields in their longest forms."""
        return _GAP.join(forms[0].text for forms in self.fields)

    def fitted(self, columns: int) -> str:
        """Those fields and forms that fit into a width; at least one, whatever its width."""
        shown: dict[int, Form] = {}
        candidates = [(form, number) for number, forms in enumerate(self.fields) for form in forms]
        for form, number in sorted(candidates, key=lambda candidate: -candidate[0].importance):
            more = shown | {number: form}
            if not shown or cell_len(_joined(more)) <= columns:
                shown = more
        return _joined(shown)


def run_line(now: Statistics, pace: Pace, *, title: str = "", later_images: int = 0) -> ProgressLine:
    """The progress of a run. What is done to its shards takes the place of everything after the outcomes.

    Args:
        now: The progress.
        pace: The pace. While nothing or little is sent it is that of seconds ago, and not shown.
        title: Which of several runs this is, as in "3 of 14 coyo"; empty if it is the only one.
        later_images: The number of images that other runs will fetch after this one, for the time that all will take;
            0 if that is not known.
    """
    ended = now.ok + now.failed
    fields: list[tuple[Form, ...]] = []
    if title:
        fields.append((Form(title, Importance.TITLE), Form(title.rpartition(" ")[0], Importance.RUN)))
    fields.append(_share(ended, now.expected_images, "image"))
    is_waiting = now.is_stalled and now.waiting is not None and now.resharding is None
    fields.append(_only(f"{now.ok:,} ok", Importance.WAITING_OK if is_waiting else Importance.OK))
    if now.failed:
        importance = Importance.WAITING_FAILED if is_waiting else Importance.FAILED
        fields.append(_only(f"{now.failed:,} failed", importance))
    left_s = None if now.expected_images is None else now.left_s(now.expected_images - ended, pace.images_per_s)
    if now.resharding is not None:
        made = now.resharding
        fields.append(_only(f"{made.stage} {made.rows:,}/{made.total_rows:,} rows", Importance.STAGE))
    elif now.is_writing:
        fields.append(_only(f"writing shards {now.shards_published:,}/{now.shards:,}", Importance.STAGE))
    else:
        if not now.is_stalled:
            fields += _pace(pace.images_per_s)
        if left_s is not None:
            all_s = left_s + later_images / pace.images_per_s
            in_all = [
                Form(f"ETA {clock(left_s)}, all datasets {clock(all_s)}", Importance.ALL_TIME_LEFT_IN_WORDS),
                Form(f"ETA {clock(left_s)}, all {clock(all_s)}", Importance.ALL_TIME_LEFT),
            ]
            fields.append((*(in_all if later_images else []), *_time_left(left_s)))
        if now.waiting is not None:
            fields.append(_waiting(now, now.waiting))
        if now.open_requests:
            fields.append(_only(f"{counted(now.open_requests, 'request')} open", Importance.OPEN))
        fields.append(_only(f"{now.shards_published:,}/{now.shards:,} shards", Importance.SHARDS))
        fields += _speed(pace.received_bytes_per_s)
    values = {**({"run": title} if title else {}), **asdict(now), **_paces(pace.images_per_s, left_s)}
    return ProgressLine(tuple(fields), values)


def activity_line(now: ActivityProgress) -> ProgressLine:
    """The progress of an activity: what is done, how much of it, the pace, and the time that is left."""
    done, total = (
        (sized(now.done), sized(now.total)) if now.unit is ActivityUnit.BYTE else (f"{now.done:,}", f"{now.total:,}")
    )
    share = _percent(now.done / now.total) if now.total else ""
    unit = "" if now.unit is ActivityUnit.BYTE else f" {now.unit}s"
    fields = [
        _only(to_printable(now.what), Importance.STAGE),
        (Form(f"{share} {done}/{total}{unit}".lstrip(), Importance.COUNT), Form(share, Importance.SHARE)),
    ]
    if now.unit is ActivityUnit.BYTE:
        fields += _speed(now.per_s)
    if now.left_s is not None:
        fields.append(_time_left(now.left_s))
    values = {"activity": now.what, "done": now.done, "total": now.total, "unit": str(now.unit), **_times(now.left_s)}
    return ProgressLine(tuple(fields), values)


def with_activity(line: ProgressLine, now: ActivityProgress) -> ProgressLine:
    """A line, with what is done besides: as one field."""
    activity = activity_line(now)
    text = " ".join(forms[0].text for forms in activity.fields)
    short = f"{to_printable(now.what)} {now.done:,}/{now.total:,}"
    field = (Form(text, Importance.WAITING), Form(short, Importance.STAGE))
    return ProgressLine((*line.fields, field), {**line.values, **activity.values})


def verifying_line(now: VerifyProgress) -> ProgressLine:
    """The progress of a verification: the share that is done, what was checked and found, pace, time left."""
    share = now.share
    images_per_s = now.images / now.elapsed_s if now.elapsed_s > 0 else 0.0
    left_s = None
    fields = []
    if share is not None:
        left_s = remaining_s(1 - share, share / now.elapsed_s if now.elapsed_s > 0 else 0.0)
        fields.append(_only(_percent(share), Importance.SHARE))
    fields.append(_only(counted(now.images, "image"), Importance.COUNT))
    if now.problems:
        fields.append(_only(counted(now.problems, "problem"), Importance.FAILED))
    fields += _pace(images_per_s)
    if left_s is not None:
        fields.append(_time_left(left_s))
    fields.append(_only(counted(now.samples, "sample"), Importance.SHARDS))
    return ProgressLine(tuple(fields), asdict(now) | _paces(images_per_s, left_s))


def resharding_line(now: ReshardProgress, elapsed_s: float, rows_before: int = 0) -> ProgressLine:
    """The progress of resharding: the stage, its rows, the speed of copying, and the time that the stage will take.

    Args:
        now: The progress.
        elapsed_s: Time since the stage began.
        rows_before: The rows that the stage had completed when it began, since an interrupted process had copied them.
    """
    rows_per_s = (now.rows - rows_before) / elapsed_s if elapsed_s > 0 else 0.0
    left_s = remaining_s(now.total_rows - now.rows, rows_per_s)
    fields = [_only(str(now.stage), Importance.STAGE), _share(now.rows, now.total_rows, "row")]
    if left_s is not None:
        fields.append(_time_left(left_s))
    if elapsed_s > 0:
        fields += _speed(now.copied_bytes / elapsed_s)
    return ProgressLine(tuple(fields), asdict(now) | _times(left_s))


def _joined(forms: Mapping[int, Form]) -> str:
    return _GAP.join(forms[number].text for number in sorted(forms))


def waiting_text(waiting: Waiting) -> str:
    """Say how many images wait, for which host most of them, why, and until when."""
    next_s = waiting.next_attempt_s
    images = counted(waiting.images, "image")
    return _waited_for(waiting, images) + (
        "" if next_s is None else f"; next attempt in {lasting(max(1, math.ceil(next_s)))}"
    )


def _waiting(now: Statistics, waiting: Waiting) -> tuple[Form, ...]:
    """What is waited for: in place of most other fields if nothing or little is sent, otherwise where there is room."""
    if not now.is_stalled:
        return _only(waiting_text(waiting), Importance.WAITING)
    return (
        Form(waiting_text(waiting), Importance.NEXT_ATTEMPT),
        Form(_waited_for(waiting, f"{waiting.images:,}"), Importance.WAITED_FOR),
        Form(f"{waiting.images:,} waiting", Importance.STAGE),
    )


def _waited_for(waiting: Waiting, images: str) -> str:
    """``73 images waiting for example.org (HTTP 503)``; of several hosts, the one that most of them wait for."""
    most = "" if waiting.host_images == waiting.images else f", {waiting.host_images:,} of them"
    return f"{images} waiting{most} for {to_printable(waiting.host)} ({to_printable(waiting.reason)})"


def _only(text: str, importance: Importance) -> tuple[Form, ...]:
    return (Form(text, importance),)


def _share(done: int, total: int | None, thing: str) -> tuple[Form, ...]:
    """How much is done, of a total that may be unknown."""
    if not total:
        return _only(counted(done, thing), Importance.SHARE)
    share = _percent(done / total)
    return Form(f"{share} {done:,}/{total:,}", Importance.COUNT), Form(share, Importance.SHARE)


def _percent(share: float) -> str:
    """A share, rounded down, so that 100.0% is all."""
    return f"{math.floor(min(share, 1.0) * 1000) / 1000:.1%}"


def _pace(images_per_s: float) -> Sequence[tuple[Form, ...]]:
    if images_per_s < _LEAST_PER_S:
        return []
    digits = 0 if images_per_s >= _WHOLE_FROM_PER_S else 1
    return [_only(f"{images_per_s:,.{digits}f}/s", Importance.PACE)]


def _speed(bytes_per_s: float) -> Sequence[tuple[Form, ...]]:
    return [_only(f"{sized(bytes_per_s)}/s", Importance.RECEIVED)] if bytes_per_s >= 1 else []


def _time_left(left_s: float) -> tuple[Form, ...]:
    return _only(f"ETA {clock(left_s)}", Importance.TIME_LEFT)


def _paces(images_per_s: float, left_s: float | None) -> dict[str, object]:
    return {"images_per_s": round(images_per_s, 1), **_times(left_s)}


def _times(left_s: float | None) -> dict[str, object]:
    return {"left_s": None if left_s is None else round(left_s, 1)}
