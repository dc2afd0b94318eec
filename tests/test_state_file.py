"""State files are read completely and within bounds, or refused with one line that names the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest

from datafetch.engine.permissions import Permitted
from datafetch.engine.retry_state import RetryState, read_retry_state
from datafetch.errors import ConfigurationError
from datafetch.fetch import OptOut
from datafetch.model.bounds import Amount, Count, PathText, PlainName
from datafetch.model.outcome import FailureKind
from datafetch.model.statistics import ReshardProgress, ReshardStage
from datafetch.model.untrusted import is_plain_name
from datafetch.monitor.heartbeat import read_snapshot
from datafetch.output.reshard.ranks import Ranks
from datafetch.output.reshard.record import ReshardedFile, read_reshard_record
from datafetch.store import state_file
from datafetch.store.job_file import JobFile, read_job_file
from datafetch.store.layout import OutputLayout
from datafetch.store.state_file import read_if_sound, read_state_file

DAMAGED = ConfigurationError("value.json is damaged; delete it")


@dataclass(frozen=True, slots=True)
class Value:
    """The value that the file of these tests holds."""

    count: Count
    amount: Amount = 0.0
    name: PlainName = "part-00000"
    path: PathText = ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the file."""
    return tmp_path / "value.json"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"count": 7}', Value(7)),
        (b'{"count": 9223372036854775807, "amount": 3}', Value((1 << 63) - 1, 3.0)),
        (b'{"amount": 0.5, "count": 0, "name": "...", "path": "../a/b"}', Value(0, 0.5, "...", "../a/b")),
        (b'{"count": 7, "of_a_later_version": [{"x": null}]}', Value(7)),
    ],
)
def test_a_valid_file_is_read_as_its_type(path: Path, content: bytes, value: Value) -> None:
    """Keys that the type does not have are skipped."""
    path.write_bytes(content)
    assert read_state_file(path, Value, DAMAGED) == read_if_sound(path, Value) == value


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"garbage", b"[]", b"{}", b"null", b"7", b"\xff", b'{"count": 7', b'{"count": 7} {}'),
        *(b'{"count": %s}' % number for number in (b"-1", b"1.0", b"true", b'"7"', b"null", b"9223372036854775808")),
        *(b'{"count": 7, "amount": %s}' % number for number in (b"-1", b"1e300", b"1e999", b"NaN", b"false", b'"1"')),
        *(b'{"count": 7, "name": "%s"}' % name for name in (b"", b".", b"..", b"a/b", b"/a", b"a\\u0000", b"\\ud800")),
        b'{"count": 7, "path": "a\\u0000"}',
        b'{"count": 7, "later": ' + b"[" * 100_000,
    ],
)
def test_an_invalid_file_is_refused_or_counts_as_missing(path: Path, content: bytes) -> None:
    """``read_state_file`` raises that file's error, and ``read_if_sound`` returns None; neither returns a part."""
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        read_state_file(path, Value, DAMAGED)
    assert raised.value is DAMAGED
    assert read_if_sound(path, Value) is None


def test_a_missing_file_is_not_a_damaged_one(path: Path) -> None:
    """A folder in its place counts as damaged, and a link that leads to itself can't be read."""
    for missing in (path, path.parent / "value.json" / "value.json"):
        assert read_state_file(missing, Value, DAMAGED) is read_if_sound(missing, Value) is None
    path.touch()
    assert read_state_file(path / "value.json", Value, DAMAGED) is None
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ConfigurationError, match=r"^cannot read .*value\.json \(Too many levels of symbolic links\); "):
        read_state_file(path, Value, DAMAGED)
    assert read_if_sound(path, Value) is None
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_state_file(path, Value, DAMAGED)


def test_the_size_of_a_state_file_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger file is refused before it is decoded."""
    path.write_bytes(b'{"count": 7}')
    monkeypatch.setattr(state_file, "_MAX_BYTES", 12)
    assert read_state_file(path, Value, DAMAGED) == Value(7)
    monkeypatch.setattr(state_file, "_MAX_BYTES", 11)
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_state_file(path, Value, DAMAGED)


@pytest.mark.parametrize("name", ["", ".", "..", "...", ".a", "a", "a b\n", "\n", "a/b", "/", "a\0", "ä", "..a"])
def test_reading_agrees_with_is_plain_name(path: Path, name: str) -> None:
    """A file with a name is valid exactly if ``is_plain_name`` accepts the name."""
    path.write_bytes(orjson.dumps({"count": 7, "name": name}))
    assert (read_if_sound(path, Value) is not None) is is_plain_name(name)
    assert is_plain_name(name) is (name not in ("", ".", "..") and not {"/", "\0"} & set(name))


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """The layout of an empty output."""
    layout = OutputLayout(tmp_path / "out")
    layout.state_folder.mkdir()
    return layout


def test_heartbeats_of_earlier_versions_are_read(layout: OutputLayout) -> None:
    """A heartbeat is read with the progress of resharding and without it."""
    statistics = (
        b'"expected_images":null,"ok":1,"failed":2,"earlier":3,"shards":4,"shards_published":1,"fetched_bytes":5,'
        b'"connections":6,"open_requests":7,"elapsed_s":8.5'
    )
    heartbeat = (
        b'{"pid":1,"host":"here","started_unix_s":1e9,"updated_unix_s":1000000002,"is_ended":true,"spools":"/s",'
        b'"images_per_s":0.0,"statistics":{%s}}'
    )
    layout.progress.write_bytes(heartbeat % statistics)
    before = read_snapshot(layout.progress)
    assert before is not None
    assert before.statistics.resharding is None
    resharding = b',"resharding":{"stage":"copying","rows":1,"total_rows":2,"copied_bytes":3}'
    layout.progress.write_bytes(heartbeat % (statistics + resharding))
    now = read_snapshot(layout.progress)
    assert now is not None
    assert now.statistics.resharding == ReshardProgress(ReshardStage.COPY, 1, 2, 3)


def test_retries_of_earlier_versions_are_read(layout: OutputLayout) -> None:
    """The state of a retry is read with permissions and without them."""
    layout.retry.write_text('{"number": 1, "kinds": ["timeout"], "scratch": null, "token": "abc"}')
    state = RetryState(number=1, kinds=(FailureKind.TIMEOUT,), scratch=None, token=f"{0xABC:x}")
    assert read_retry_state(layout) == state
    layout.retry.write_text(
        '{"number": 2, "kinds": null, "also": ["tls"], "scratch": "/s", "token": "abc", "permitted": {"insecure": true,'
        '"opt_out": "ignore", "allow_net": ["10.0.0.0/8"], "max_body_bytes": 9, "max_pixels": 8, "max_sample_bytes": 7}'
        "}"
    )
    permitted = Permitted(True, OptOut.IGNORE, ("10.0.0.0/8",), 9, 8, 7)
    also = (FailureKind.TLS,)
    assert read_retry_state(layout) == replace(
        state, number=2, kinds=None, also=also, scratch="/s", permitted=permitted
    )


def test_reshard_records_of_earlier_versions_are_read(layout: OutputLayout) -> None:
    """Records written by ``reshard`` list its source shards, and those written by a run list its samples."""
    ranks = b'"world_size":2,"batch":3,"group":4,"shuffle":null,"rows":9,"files":{"part-00000":[9,99]},"replaces":[]}'
    layout.reshard_record.write_bytes(b'{"made_from":[["/a/part-00000.pkl",9,1]],' + ranks)
    resharded = read_reshard_record(layout)
    assert resharded is not None
    assert (resharded.plan.ranks, resharded.plan.shuffle) == (Ranks(2, 3, 4), None)
    assert resharded.files == {"part-00000": ReshardedFile(9, 99)}
    assert resharded.made_from == [["/a/part-00000.pkl", 9, 1]]
    layout.reshard_record.write_bytes(b'{"samples":{"a":"00"},' + ranks)
    of_a_run = read_reshard_record(layout)
    assert of_a_run is not None
    assert (of_a_run.samples, of_a_run.made_from) == ({"a": "00"}, [])


JOB = {"format": 1, "dataset": "coyo", "shards": {"a": ["a.parquet", 10, "f"]}, "limit": None, "quality": 75}


def test_a_job_file_is_read_as_fields_and_as_a_typed_value(layout: OutputLayout) -> None:
    """Fields that every job has are typed, and the others are returned as the dataset wrote them."""
    layout.job.write_bytes(orjson.dumps(JOB))
    job = read_job_file(layout)
    assert job is not None
    assert job == JobFile("coyo", {"a": ["a.parquet", 10, "f"]}, None, None, None, JOB)
    assert (job.identity, job.settings) == (JOB, None)
    settings = {"scratch": "/s", "ids": "/i", "source": "/a"}
    layout.job.write_bytes(orjson.dumps({**JOB, "asked": settings}))
    job = read_job_file(layout)
    assert job is not None
    assert job == JobFile("coyo", {"a": ["a.parquet", 10, "f"]}, None, Path("/s"), "/i", {**JOB, "asked": settings})
    assert (job.identity, job.settings) == (JOB, settings)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"dataset": None},
        {"shards": []},
        {"shards": {"a": 7}},
        {"shards": {"../a": []}},
        {"limit": -1},
        {"limit": 1.5},
        {"asked": ["scratch"]},
        {"asked": {"scratch": 7}},
        {"asked": {"scratch": "a\0"}},
    ],
)
def test_an_invalid_job_file_is_refused(layout: OutputLayout, change: dict[str, object]) -> None:
    """Both functions that read job files refuse it with the same error."""
    layout.job.write_bytes(orjson.dumps(JOB | change))
    with pytest.raises(ConfigurationError, match=r"job\.json is not a job of this version of datafetch"):
        read_job_file(layout)
