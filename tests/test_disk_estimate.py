"""What a run will need of the disk is said before it begins."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from datafetch.engine.disk_estimate import DiskEstimate, log_disk_estimate
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.store.layout import OutputLayout
from datafetch.transcode import ImageSpec

PAIRS = DiskEstimate(1_000, ImageSpec(short_side_px=336), Payload.BASE64, is_resharded=True, open_samples=100)


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output that is not there yet."""
    return OutputLayout(tmp_path / "data" / "out")


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_what_fits_is_said(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """How much the shards will have, that they lie there twice for a while, and how much is free."""
    log_disk_estimate(layout, PAIRS, ShardCounts())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    # 336 × 470 pixels at 0.17 bytes, as base64, and 300 bytes of text
    assert "up to about 36.1 MB, and its shards lie there twice" in record.getMessage()
    assert "75.9 MB more are needed" in record.getMessage()


def test_what_does_not_fit_is_warned_of(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """A run of days is better not begun on a disk that can't hold what it leaves."""
    log_disk_estimate(layout, replace(PAIRS, samples=10**13), ShardCounts())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the run may stop for lack of space" in record.getMessage()


def test_a_part_takes_its_share(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """A process that fetches a quarter of the shards speaks of these alone, and reshards nothing."""
    log_disk_estimate(layout, PAIRS.part(0.25), ShardCounts())
    assert "this part of the output will take up to about 9.0 MB; 12.6 MB more are needed" in caplog.text


def test_published_rows_are_counted_with(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the samples took 10 kB a row, so the other half will, and only they are still to be written."""
    need = replace(PAIRS, is_resharded=False, open_samples=0)
    log_disk_estimate(layout, need, ShardCounts(500, 400, {"ok": 400, "http_status": 100}, 4_000_000))
    assert "up to about 9.0 MB; 5.0 MB more are needed" in caplog.text


def test_spools_elsewhere_are_looked_after(
    tmp_path: Path, layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """A scratch folder on a filesystem of its own has to hold the spools alone."""
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:  # noqa: S108 - a filesystem that is always there
        pytest.skip("there is no other filesystem")
    layout = replace(layout, scratch=Path("/dev/shm/datafetch-test"))  # noqa: S108 - nothing is written
    log_disk_estimate(layout, replace(PAIRS, samples=10**13, open_samples=10**12), ShardCounts())
    assert "spools may take up to" in caplog.text
    assert not Path("/dev/shm/datafetch-test").exists()  # noqa: S108
