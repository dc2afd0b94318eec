"""What ``datafetch explain`` prints: lines for people, or one JSON object.

Rules: nothing is computed here. Text from the web can't control the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

from datafetch.cli.failure_list import columns_of, to_json_text
from datafetch.cli.render import write_pieces
from datafetch.model.ledger_line import LedgerLine
from datafetch.model.outcome import OK, Source
from datafetch.model.untrusted import one_line
from datafetch.model.wording import counted
from datafetch.monitor.explanation import ExplainedSample, Explanation, outcome_text

_MS_OF_SECOND = 1000


def show_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """Print what is known of samples."""
    if as_json:
        write_pieces([to_json_text(_summary(explanation)), "\n"])
        return
    write_pieces(f"{line}\n" for line in _lines(explanation))


def _summary(explanation: Explanation) -> dict[str, object]:
    samples = [
        {
            "shard": sample.shard,
            "sample": sample.position,
            "key": sample.key,
            "row": sample.has_row,
            "why_lost": sample.why_lost or None,
            "file": sample.place.file if sample.place else None,
            "row_number": sample.place.number if sample.place else None,
            "images": [columns_of(sample.shard, line) for line in sample.lines],
        }
        for sample in explanation.samples
    ]
    dropped = [{"record": one.record, "key": one.key, "reason": one.reason} for one in explanation.dropped]
    return {"found": explanation.found, "samples": samples, "dropped": dropped}


def _lines(explanation: Explanation) -> Iterator[str]:
    for number, sample in enumerate(explanation.samples):
        if number:
            yield ""
        yield from _sample_lines(sample)
    others = explanation.found - len(explanation.samples)
    if others:
        yield ""
        yield f"and {counted(others, 'other sample')}"
    for record in explanation.dropped:
        yield one_line(f"record {record.record:,} of the published list, key {record.key}")
        yield one_line(f"is not in the trainer's list: {record.reason}")


def _sample_lines(sample: ExplainedSample) -> Iterator[str]:
    yield one_line(f"key {sample.key}: sample {sample.position:,} of shard {sample.shard}")
    yield one_line(_row_text(sample))
    for line in sample.lines:
        attempts = f", {counted(line.attempts, 'attempt')}" if line.attempts else ""
        took = f", the last in {line.fetch_ms / _MS_OF_SECOND:.1f} s" if line.fetch_ms else ""
        yield f"  image {line.image}: {outcome_text(line)}{attempts}{took}"
        yield from (f"    {name:<9}  {one_line(text)}" for name, text in _facts(line))


def _row_text(sample: ExplainedSample) -> str:
    if sample.has_row is None:
        return "its shard is in progress, so whether it becomes a row is open"
    if not sample.has_row:
        return f"it is lost: {sample.why_lost}"
    return f"it is row {sample.place.number:,} of {sample.place.file}" if sample.place else "it is in the output"


def _facts(line: LedgerLine) -> Iterator[tuple[str, str]]:
    """What is recorded of an image beyond its outcome, by name."""
    yield "URL", line.url
    if line.final_url not in ("", line.url):
        yield "final URL", line.final_url
    if line.status is not None:
        yield "status", str(line.status)
    if line.body_bytes:
        yield "received", f"{line.body_bytes:,} bytes{f' of {line.format}' if line.format else ''}"
    if line.sha256:
        yield "sha256", line.sha256
    if line.outcome == OK and line.width and line.height:
        yield "written", f"{line.width:,} × {line.height:,}{', as received' if line.is_original else ''}"
    if line.source is not Source.WEB:
        yield "source", line.source.value
    if line.permitted:
        yield "permitted", " ".join(f"--{one}" for one in line.permitted)
    if line.detail:
        yield "reason", line.detail
