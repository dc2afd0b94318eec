"""Bodies that crashed a worker are kept for inspection."""

import hashlib
import logging
from pathlib import Path

import pytest

from datafetch.transcode.pool.quarantine import Quarantine


def keep(quarantine: Quarantine, body: bytes) -> Path | None:
    """Keep a body under its own hash."""
    return quarantine.keep(body, hashlib.sha256(body).hexdigest())


def test_a_body_is_kept_under_its_hash(tmp_path: Path) -> None:
    """A ledger line leads to the body; a body that comes again is there already."""
    folder = tmp_path / "a" / "quarantine"
    quarantine = Quarantine(folder)
    path = folder / f"{hashlib.sha256(b'bad').hexdigest()}.body"
    assert [keep(quarantine, b"bad") for _ in range(2)] == [path, None]
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == b"bad"


def test_the_number_of_bodies_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many hostile images don't fill the disk; the first ones stay, and that the folder is full is logged once."""
    quarantine = Quarantine(tmp_path)
    kept = [keep(quarantine, b"%d" % number) for number in range(103)]
    assert None not in kept[:100]
    assert kept[100:] == [None] * 3
    assert len(list(tmp_path.iterdir())) == 100
    (record,) = caplog.records
    assert "is full" in record.getMessage()


def test_the_size_of_the_bodies_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that would exceed the bound is not kept; smaller ones still are."""
    monkeypatch.setattr("datafetch.transcode.pool.quarantine._MAX_BYTES", 10)
    quarantine = Quarantine(tmp_path)
    assert keep(quarantine, b"seven77") is not None
    assert keep(quarantine, b"four") is None
    assert keep(quarantine, b"333") is not None


def test_a_disk_that_refuses_a_body_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning is logged, and nothing is raised."""
    (tmp_path / "file").touch()
    assert keep(Quarantine(tmp_path / "file" / "quarantine"), b"bad") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no longer kept" in record.getMessage()
