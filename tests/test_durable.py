"""Files get their names when they are complete, on the same filesystem or another."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from test_commit import spool
from test_spool import make_outcome

from datafetch.commit import commit_shard
from datafetch.durable import make_folder, publish, write_atomically
from datafetch.state import State

OTHER_FILESYSTEM = Path("/dev/shm")  # noqa: S108 - a tmpfs wherever Linux runs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another filesystem."""
    if not OTHER_FILESYSTEM.is_dir() or OTHER_FILESYSTEM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other filesystem to write to")
    folder = Path(mkdtemp(dir=OTHER_FILESYSTEM))
    yield folder
    shutil.rmtree(folder)


def test_a_file_is_published_across_filesystems(tmp_path: Path, elsewhere: Path) -> None:
    """It is there under its name alone, takes an old one's place, and is gone from where it was."""
    for content in (b"first", b"second"):
        (tmp_path / "made").write_bytes(content)
        publish(tmp_path / "made", elsewhere / "shard.pkl")
        assert [path.name for path in elsewhere.iterdir()] == ["shard.pkl"]
        assert (elsewhere / "shard.pkl").read_bytes() == content
        assert not (tmp_path / "made").exists()


def test_a_shard_is_committed_to_another_filesystem(tmp_path: Path, elsewhere: Path) -> None:
    """Where the output is a link to it: the state stays where it is, and the trainer's folder holds the pair alone."""
    (tmp_path / "out").symlink_to(elsewhere)
    here = State(tmp_path / "here")
    state = State(tmp_path / "out")
    for one in (here, state):
        commit_shard(spool(one, [make_outcome(number) for number in range(6)]))
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {
        path.name: path.read_bytes() for path in here.out.iterdir()
    }
    assert not list(state.ready.iterdir())


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    """A file that others look at is replaced as a whole or not at all."""
    path = tmp_path / "new" / "folder" / "job.json"
    write_atomically(path, b"{}")
    (path.parent / "job.json.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"{1}")
    assert path.read_bytes() == b"{}"


def test_a_folder_that_is_there_is_no_fault(tmp_path: Path) -> None:
    """Folders are made as far as they are missing."""
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
