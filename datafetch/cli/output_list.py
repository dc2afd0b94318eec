"""What ``datafetch status`` prints of a folder above outputs: a line for each, or one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from datafetch.cli.render import write_pieces
from datafetch.cli.status_text import last_stop_text, left_out_text
from datafetch.model.untrusted import one_line
from datafetch.monitor.status import StatusBelow, StatusesBelow

_TITLES = ("state", "images", "ok", "failed", "output")
_WIDTHS = (11, 11, 11, 9)


def show_outputs(root: Path, below: StatusesBelow, *, as_json: bool) -> None:
    """Print the status of each output below a folder, as soon as it is read."""
    if as_json:
        outputs = [_summary(one) for one in below.outputs]
        found = {"root": str(root), "is_complete": below.is_complete, "outputs": outputs}
        write_pieces([orjson.dumps(found).decode(), "\n"])
        return
    write_pieces(f"{line}\n" for line in _lines(root, below))


def _summary(one: StatusBelow) -> dict[str, object]:
    return {"out": str(one.out), "problem": one.problem} if one.status is None else one.status.summary()


def _lines(root: Path, below: StatusesBelow) -> Iterator[str]:
    yield _columns(*_TITLES)
    for one in below.outputs:
        path = one_line(str(one.out.relative_to(root.absolute())))
        if one.status is None:
            yield _columns("unreadable", "", "", "", path)
            yield f"    {one_line(one.problem)}"
            continue
        status = one.status
        images = status.ended if status.expected_images is None else status.expected_images
        yield _columns(status.state, f"{images:,}", f"{status.ok:,}", f"{status.failed:,}", path)
        if status.damaged_ledgers:
            yield f"    {one_line(left_out_text(status))}"
        if status.last_stop is not None:
            yield f"    {one_line(last_stop_text(status.last_stop))}"
    if not below.is_complete:
        yield "There may be others: there are too many files below this folder to look at all."


def _columns(state: str, *others: str) -> str:
    numbers = (text.rjust(width) for text, width in zip(others[:-1], _WIDTHS[1:], strict=True))
    return "  ".join([state.ljust(_WIDTHS[0]), *numbers, others[-1]])
