"""Links in an output are neither written through nor, by verify, followed out of it."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import orjson
import pytest
from PIL import Image

from datafetch.engine.ownership import locked_output
from datafetch.errors import ConfigurationError, ManifestError
from datafetch.model.kinds import Loader
from datafetch.output.formats.image_files import ImageFilesWriter, publish_image_files
from datafetch.output.reshard.folder import ReshardRequest, reshard
from datafetch.output.row import OutputRow
from datafetch.store.layout import OutputLayout
from datafetch.verify import Check, run_check


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside of the output, with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    return folder


def write_shard(folder: Path, name: str = "part-00000") -> None:
    """Write a shard of four rows."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps([{"text": "a cat", "rawbytes": picture()}] * 4))
    (folder / f"{name}.count").write_text("4")


def picture() -> bytes:
    """Return a small job."""
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


LINKS = [
    *("report.json.tmp", "progress.json.tmp", "unpublished", "ledger", "spool/1234/part-00000.spool"),
    *("failed/part-00000.spool", "quarantine/abc.body", "resharding/shards", "resharding/shards/part-00000.pkl"),
    *("ready/part-00000", "published/list.json"),
]


@pytest.mark.parametrize("link", LINKS)
async def test_a_run_does_not_write_through_links(tmp_path: Path, elsewhere: Path, link: str) -> None:
    """A link anywhere in the state folder stops the run at its beginning; what it leads to stays as it was."""
    layout = OutputLayout(tmp_path / "out")
    put_link(layout.state_folder / link, elsewhere)
    with pytest.raises(ConfigurationError, match="is a symbolic link, and datafetch does not write through links"):
        async with locked_output(layout, lambda: None):
            pass
    check_untouched(elsewhere)


@pytest.mark.parametrize("link", LINKS)
def test_reshard_does_not_write_through_links(tmp_path: Path, elsewhere: Path, link: str) -> None:
    """``reshard`` refuses links in the state folder as well."""
    write_shard(tmp_path / "rows")
    put_link(OutputLayout(tmp_path / "out").state_folder / link, elsewhere)
    with pytest.raises(ConfigurationError, match="is a symbolic link, and datafetch does not write through links"):
        reshard(ReshardRequest(tmp_path / "rows", tmp_path / "out", world_size=2, batch=1, group=1))
    check_untouched(elsewhere)


async def test_links_in_a_scratch_folder_are_not_written_through(tmp_path: Path, elsewhere: Path) -> None:
    """Links in a folder for spools are refused as well."""
    layout = OutputLayout(tmp_path / "out", tmp_path / "scratch", "1234")
    put_link(layout.spool("part-00000"), elsewhere)
    with pytest.raises(ConfigurationError, match=r"part-00000\.spool is a symbolic link"):
        async with locked_output(layout, lambda: None):
            pass
    check_untouched(elsewhere)


def put_link(path: Path, elsewhere: Path) -> None:
    """Create a link to the outside file or folder."""
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere if "." not in path.name else elsewhere / "mine")


def check_untouched(elsewhere: Path) -> None:
    """Check that the outside folder is unchanged."""
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]
    assert (elsewhere / "mine").read_text() == "mine"


def test_images_are_not_written_through_links(tmp_path: Path, elsewhere: Path) -> None:
    """A folder of the output that is a link is refused; a file that is a link is replaced by the image."""
    layout = OutputLayout(tmp_path / "out")
    ready = tmp_path / "ready"
    ready.mkdir()
    sink = ImageFilesWriter(ready, "part-00000")
    for name in ("b/1.jpg", "a/1.jpg"):
        sink.write_row(OutputRow({"name": name, "content": b"an image", "sample": 0}))
    sink.finish()
    sink.close()
    (layout.out / "b").mkdir(parents=True)
    (layout.out / "b" / "1.jpg").symlink_to(elsewhere / "mine")
    (layout.out / "a").symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="a is a symbolic link, and datafetch does not write through links"):
        publish_image_files(layout, ready, ready / "part-00000.files")
    check_untouched(elsewhere)
    (layout.out / "a").unlink()
    publish_image_files(layout, ready, ready / "part-00000.files")
    assert (layout.out / "a" / "1.jpg").read_bytes() == (layout.out / "b" / "1.jpg").read_bytes() == b"an image"
    assert not (layout.out / "b" / "1.jpg").is_symlink()
    check_untouched(elsewhere)


def _in_shards(out: Path, elsewhere: Path) -> Path:
    write_shard(out)
    write_shard(elsewhere, "secret")
    for suffix in (".pkl", ".count"):
        (out / f"part-00001{suffix}").symlink_to(elsewhere / f"secret{suffix}")
    return out


def _in_images(out: Path, elsewhere: Path) -> Path:
    (out / "inner").mkdir(parents=True)
    (out / "inner" / "good.png").write_bytes(picture())
    (out / "same.png").symlink_to("inner/good.png")
    (elsewhere / "secret.png").write_bytes(picture())
    (out / "secret.png").symlink_to(elsewhere / "secret.png")
    (out / "secrets").symlink_to(elsewhere)
    return out


def _in_a_list(out: Path, elsewhere: Path) -> Path:
    _in_images(out, elsewhere)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    names = ["same.png", "secret.png", "secrets/secret.png"]
    path = out / "list.json"
    path.write_bytes(orjson.dumps([{"image": name, "conversations": turns} for name in names]))
    return path


@pytest.mark.parametrize(
    ("make", "loader", "images"),
    [(_in_shards, None, 4), (_in_images, Loader.TORCH, 2), (_in_a_list, None, 1)],
)
def test_verify_does_not_follow_links_out(
    tmp_path: Path, elsewhere: Path, make: Callable[[Path, Path], Path], loader: Loader | None, images: int
) -> None:
    """A link that leads out of the folder is a problem, and its target is not read; links within it are accepted."""
    out = make(tmp_path / "out", elsewhere)
    verdict = run_check(Check(str(out), loader=loader, processes=1, world_size=1, batch=1, group=1))
    assert verdict.problem_count == 2, verdict.problems
    assert all("is a link that leads out of its folder" in problem for problem in verdict.problems)
    assert verdict.images == images


def test_reshard_does_not_follow_links_out(tmp_path: Path, elsewhere: Path) -> None:
    """It is refused before anything is written; a source folder that is itself a link is accepted."""
    out = _in_shards(tmp_path / "rows", elsewhere)
    request = ReshardRequest(out, tmp_path / "out", world_size=2, batch=1, group=1)
    with pytest.raises(ManifestError, match=r"part-00001\.pkl is a link that leads out of its folder.*hard links"):
        reshard(request)
    assert not (tmp_path / "out").exists()
    for suffix in (".pkl", ".count"):
        (out / f"part-00001{suffix}").unlink()
    (tmp_path / "link").symlink_to(out)
    assert reshard(replace(request, source=tmp_path / "link"))
