"""What a run will need of the disk is said before it begins."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from datafetch.engine.disk_estimate import Need, say_need
from datafetch.model.kinds import Payload
from datafetch.model.ledger_line import Totals
from datafetch.store.layout import State
from datafetch.transcode import ImageSpec

PAIRS = Need(1_000, ImageSpec(short_side_px=336), Payload.BASE64, is_made_equal=True, open_samples=100)


@pytest.fixture
def state(tmp_path: Path) -> State:
    """An output that is not there yet."""
    return State(tmp_path / "data" / "out")


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_what_fits_is_said(state: State, caplog: pytest.LogCaptureFixture) -> None:
    """How much the shards will have, that they lie there twice for a while, and how much is free."""
    say_need(state, PAIRS, Totals())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    # 336 × 470 pixels at 0.17 bytes, as base64, and 300 bytes of text
    assert "up to about 36.1 MB, and its shards lie there twice" in record.getMessage()
    assert "75.9 MB more are needed" in record.getMessage()


def test_what_does_not_fit_is_warned_of(state: State, caplog: pytest.LogCaptureFixture) -> None:
    """A run of days is better not begun on a disk that can't hold what it leaves."""
    say_need(state, replace(PAIRS, samples=10**13), Totals())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the run may stop for lack of space" in record.getMessage()


def test_published_rows_are_counted_with(state: State, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the samples took 10 kB a row, so the other half will, and only they are still to be written."""
    need = replace(PAIRS, is_made_equal=False, open_samples=0)
    say_need(state, need, Totals(500, 400, {"ok": 400, "http_status": 100}, 4_000_000))
    assert "up to about 9.0 MB; 5.0 MB more are needed" in caplog.text


def test_spools_elsewhere_are_looked_after(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    """A scratch folder on a filesystem of its own has to hold the spools alone."""
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:  # noqa: S108 - a filesystem that is always there
        pytest.skip("there is no other filesystem")
    state = replace(state, scratch=Path("/dev/shm/datafetch-test"))  # noqa: S108 - nothing is written
    say_need(state, replace(PAIRS, samples=10**13, open_samples=10**12), Totals())
    assert "spools may take up to" in caplog.text
    assert not Path("/dev/shm/datafetch-test").exists()  # noqa: S108
