"""What every sink must do, and what the trainer's loader reads."""

import pickle
import pickletools
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafetch.sinks import PickleSink

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "text", "image", "image_info"]), VALUES), max_size=12)


def write(folder: Path, rows: list[dict[str, object]]) -> tuple[Path, Path]:
    """Write rows as a pickle shard."""
    with closing(PickleSink(folder, "part-00000")) as sink:
        for row in rows:
            sink.write(row)
        sink.finish()
    data, count = sink.files
    return data, count


@settings(deadline=None)
@given(rows=ROWS)
def test_the_shard_is_the_pickled_list(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    """``pickle.load`` gives exactly the rows, though they were never together in memory."""
    data, count = write(tmp_path_factory.mktemp("sink"), rows)
    assert pickle.loads(data.read_bytes()) == rows
    assert count.read_text() == str(len(rows))


@pytest.mark.parametrize("rows", [0, 1, 999, 1000, 1001, 2500])
def test_rows_are_appended_in_batches(tmp_path: Path, rows: int) -> None:
    """No batch of the stream, however the rows fall into them, loses or repeats a row."""
    expected = [{"id": number, "text": f"text {number}", "same": "same"} for number in range(rows)]
    data, count = write(tmp_path, list(expected))
    assert pickle.loads(data.read_bytes()) == expected
    assert int(count.read_text().strip()) == rows
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(data.read_bytes())]
    assert opcodes.count("APPENDS") == -(-rows // 1000)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """A shard written again is the same file."""
    rows: list[dict[str, object]] = [{"id": number, "image": "…" * number} for number in range(50)]
    first = [path.read_bytes() for path in write(tmp_path, rows)]
    assert [path.read_bytes() for path in write(tmp_path, rows)] == first


def test_an_unfinished_sink_can_be_closed(tmp_path: Path) -> None:
    """Letting go of a shard that was not finished raises nothing, twice."""
    sink = PickleSink(tmp_path, "part-00000")
    sink.write({"id": 1})
    sink.close()
    sink.close()
