"""Before a run begins, it logs how much disk space it will need."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from datafetch.cli.dry_run import dry_run_text
from datafetch.engine.disk_estimate import DiskEstimate, disk_needs, log_disk_estimate
from datafetch.engine.dry_run import DryRun
from datafetch.model.kinds import OutputState, Payload
from datafetch.model.ledger_line import ShardCounts
from datafetch.store.layout import OutputLayout
from datafetch.transcode import ImageSpec

PAIRS = DiskEstimate(1_000, ImageSpec(short_side_px=336), Payload.BASE64, is_resharded=True, open_samples=100)


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """An output that does not exist yet."""
    return OutputLayout(tmp_path / "data" / "out")


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_an_estimate_that_fits_is_logged_as_information(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """It states what resharding needs, with its copy of all rows, the size of the shards, and what is free."""
    log_disk_estimate(layout, PAIRS, ShardCounts())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    # 336 × 470 pixels at 0.17 bytes, as base64, and 300 bytes of text
    message = record.getMessage()
    assert message.startswith("estimated disk space: needs about 75.9 MB while it works, 36.1 MB when done; ")
    assert re.fullmatch(r"[0-9.,]+ [kMGTP]B free", message.rpartition("; ")[2])


def test_an_estimate_that_does_not_fit_is_logged_as_a_warning(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning before a run of days is better than a full disk at its end."""
    log_disk_estimate(layout, replace(PAIRS, samples=10**13), ShardCounts())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "while it works (shards lie there twice while they are resharded" in record.getMessage()
    assert "free; the run may stop for lack of space" in record.getMessage()


def test_a_dry_run_says_so_in_the_same_words(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """That the disk is too small, at 80 columns."""
    estimate = replace(PAIRS, samples=10**13)
    log_disk_estimate(layout, estimate, ShardCounts())
    found = DryRun(dataset="coyo", out="出力", state=OutputState.NEW, disk=disk_needs(layout, estimate, ShardCounts()))
    text = dry_run_text(found, 80)
    assert max(map(len, text.splitlines())) <= 80
    shown = " ".join(text.split()).rpartition(" disk ")[2]
    assert shown.endswith("the run may stop for lack of space, and can be resumed once there is enough")
    assert caplog.messages == [f"estimated disk space: {shown}"]


def test_a_part_of_the_shards_needs_its_share(layout: OutputLayout, caplog: pytest.LogCaptureFixture) -> None:
    """A process that fetches a quarter of the shards estimates only those, and no space for resharding."""
    log_disk_estimate(layout, PAIRS.part(0.25), ShardCounts())
    assert (
        "disk space of this part of the output: needs about 12.6 MB while it works, 9.0 MB when done; " in caplog.text
    )


def test_the_size_of_published_rows_predicts_the_remaining_ones(
    layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """If half of the samples took 10 kB per row, so will the other half, and only that is still to be written."""
    need = replace(PAIRS, is_resharded=False, open_samples=0)
    log_disk_estimate(layout, need, ShardCounts(500, 400, {"ok": 400, "http_status": 100}, 4_000_000))
    assert "needs about 5.0 MB more while it works, 9.0 MB when done; " in caplog.text


def test_a_scratch_folder_on_another_filesystem_has_an_estimate_of_its_own(
    tmp_path: Path, layout: OutputLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """A scratch folder on a filesystem of its own has to hold only the spools."""
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:  # noqa: S108 - a filesystem that is always there
        pytest.skip("there is no other filesystem")
    layout = replace(layout, scratch=Path("/dev/shm/datafetch-test"))  # noqa: S108 - nothing is written
    log_disk_estimate(layout, replace(PAIRS, samples=10**13, open_samples=10**12), ShardCounts())
    assert "spools may take up to" in caplog.text
    assert not Path("/dev/shm/datafetch-test").exists()  # noqa: S108
