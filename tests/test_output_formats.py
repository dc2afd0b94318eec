"""Every output format does what the commit and a later run need of it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_spool import make_result, make_sample

from datafetch.errors import DatafetchError
from datafetch.model.ledger_line import ShardCounts
from datafetch.model.outcome import Encoded
from datafetch.model.sample import Row
from datafetch.output.formats import FORMATS, OutputFormat, ShardWriter
from datafetch.output.row import OutputRow, placeholder
from datafetch.store.layout import OutputLayout
from datafetch.store.ledger_writer import LedgerWriter
from datafetch.store.shard_summary import ShardSummary

SHARD = "part-00000"
FILES: list[Row] = [{"name": f"{number}.jpg", "content": placeholder(0), "sample": number} for number in range(3)]
ROWS: list[Row] = [
    {"text": "猫 \ud800", "clip_sim": float("nan"), "rawbytes": placeholder(0)},
    {"text": None, "number": 2**70, "image": b64encode(placeholder(0)).decode()},
    {"image_info": [{"image_base64": b64encode(placeholder(0)).decode()}], "text_list": []},
]
SAMPLES: list[Row] = [
    {"key": "000000", "url": "http://x/0", "caption": "猫 \ud800", "columns": {"clip_sim": float("nan"), "n": 2**70}},
    {"key": "000001", "url": "http://x/1", "caption": None, "columns": {"clip_sim": 0.1, "n": {"a": [1, None]}}},
    {"key": "000002", "url": "http://x/2", "caption": "", "columns": {"clip_sim": None, "n": "text"}},
]
OF_LISTS = ("webdataset", "parquet", "files")
every_format = pytest.mark.parametrize("output_format", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def layout(tmp_path: Path, output_format: OutputFormat) -> OutputLayout:
    """An output that has the format."""
    layout = OutputLayout(tmp_path / "out", output_format=output_format.name)
    for folder in (layout.out, layout.ledgers, layout.ready / SHARD):
        folder.mkdir(parents=True)
    return layout


def rows_for(output_format: OutputFormat) -> list[OutputRow]:
    """Rows of pairs and documents as every payload makes them; or files, or samples of a list, for formats of these."""
    rows = SAMPLES if output_format.name in OF_LISTS else FILES if output_format.allows_other_files else ROWS
    images = (Encoded(bytes([number]) * 1000, 1, 1, "JPEG") for number in range(len(rows)))
    return [OutputRow(row, [make_result(make_sample(0), 0, image)]) for row, image in zip(rows, images, strict=True)]


@contextmanager
def written(output_format: OutputFormat, layout: OutputLayout, rows: list[OutputRow]) -> Iterator[ShardWriter]:
    """A writer that has these rows, until it is to be closed."""
    ready = layout.ready / SHARD
    with closing(output_format.open_writer(layout, SHARD, ready, is_retry=False)) as writer:
        for row in rows:
            writer.write_row(row)
        writer.finish()
        yield writer


def published(output_format: OutputFormat, layout: OutputLayout) -> int:
    """Publish a shard and its ledger; returns its size in bytes."""
    with written(output_format, layout, rows_for(output_format)) as writer:
        writer.check(len(ROWS))
        written_bytes = writer.written_bytes
    output_format.publish(layout, SHARD, layout.ready / SHARD, layout.out)
    has_row = np.ones(len(ROWS), np.bool_)
    with LedgerWriter(layout.ledger(SHARD), SHARD) as ledger:
        ledger.finish(ShardSummary(ShardCounts(len(ROWS), len(ROWS), {}, written_bytes), has_row, has_row))
    return written_bytes


def contents(output_format: OutputFormat, layout: OutputLayout) -> dict[Path, bytes]:
    """The bytes of the files of a shard, but for the statistics, which have times."""
    files = [path for path in output_format.files_of(layout, SHARD) if not path.name.endswith("_stats.json")]
    return {path: path.read_bytes() for path in files}


@every_format
def test_a_published_shard_is_intact_until_a_file_is_cut(output_format: OutputFormat, layout: OutputLayout) -> None:
    """All of its files are where the trainer reads them, with the sizes that were counted."""
    written_bytes = published(output_format, layout)
    files = output_format.files_of(layout, SHARD)
    assert sum(path.stat().st_size for path in files) == written_bytes
    assert all(path.is_relative_to(layout.out) for path in files)
    assert output_format.is_intact(layout, SHARD)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert not output_format.is_intact(layout, SHARD)


@every_format
def test_publishing_can_be_repeated_after_a_kill(output_format: OutputFormat, layout: OutputLayout) -> None:
    """What an interrupted call left is put in place by the next, and there is nothing to do for a third."""
    published(output_format, layout)
    before = {path: path.read_bytes() for path in output_format.files_of(layout, SHARD)}
    for _ in range(2):
        output_format.publish(layout, SHARD, layout.ready / SHARD, layout.out)
    assert {path: path.read_bytes() for path in output_format.files_of(layout, SHARD)} == before
    assert not list((layout.ready / SHARD).iterdir())


@every_format
def test_rows_that_are_read_back_are_written_as_they_were(output_format: OutputFormat, layout: OutputLayout) -> None:
    """A retry copies them; a format whose rows stay in place has none to copy."""
    published(output_format, layout)
    before = contents(output_format, layout)
    rows = 0
    with closing(output_format.open_writer(layout, SHARD, layout.ready / SHARD, is_retry=True)) as writer:
        for row in output_format.read_rows(layout, SHARD):
            writer.copy_row(row)
            rows += 1
        writer.finish()
        writer.check(rows)
    output_format.publish(layout, SHARD, layout.ready / SHARD, layout.out)
    assert rows == (0 if output_format.name == "image_files" else len(ROWS))
    assert contents(output_format, layout) == before


@every_format
def test_a_file_that_the_disk_has_damaged_is_not_published(output_format: OutputFormat, layout: OutputLayout) -> None:
    """Whichever of the files it is, the check before the publication fails."""
    with written(output_format, layout, rows_for(output_format)) as writer:
        for path in sorted((layout.ready / SHARD).iterdir()):
            content = path.read_bytes()
            if not content:  # a caption that is null
                continue
            path.write_bytes(content[: len(content) // 2])
            with pytest.raises(DatafetchError):
                writer.check(len(ROWS))
            path.write_bytes(content)
        writer.check(len(ROWS))


@every_format
def test_a_shard_without_a_row_has_no_file(output_format: OutputFormat, layout: OutputLayout) -> None:
    """The trainer would count it."""
    with written(output_format, layout, []) as writer:
        writer.check(0)
    output_format.publish(layout, SHARD, layout.ready / SHARD, layout.out)
    assert output_format.files_of(layout, SHARD) == [] or list(layout.out.iterdir()) == []
