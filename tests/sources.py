"""The tiny sources in ``data/``, in their published form, whose URLs are changed to those of a running origin.

Rules: a source is in ``data/<dataset>/source`` as it would be published, with an id list next to it if its dataset
takes one; its URLs are on the host ``origin.invalid``.
"""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datafetch.datasets.synthdog_ja import SynthdogJaOptions
from datafetch.demo.origin import Origin
from datafetch.demo.pictures import write_pictures
from datafetch.model.options import DatasetOptions

DATA = Path(__file__).parent / "data"
NOWHERE = "origin.invalid"


@dataclass(frozen=True, slots=True)
class TinySource:
    """A source and, where there is one, its id list."""

    folder: Path
    ids: Path | None


def place_source(dataset: str, folder: Path, authority: str = NOWHERE) -> TinySource:
    """Copy a dataset's tiny source to a new folder, with URLs of this host and port."""
    source = folder / "source"
    published = DATA / dataset / "source"
    for path in sorted(path for path in published.rglob("*") if path.is_file()):
        copy = source / path.relative_to(published)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(_leading_to(authority, path))
    ids = DATA / dataset / "ids"
    return TinySource(source, ids if ids.exists() else None)


@contextmanager
def serve_pictures(folder: Path) -> Iterator[str]:
    """Serve the pictures that the tiny sources name; yields the host and port.

    Args:
        folder: An empty folder for them.
    """
    for number, name in enumerate(write_pictures(folder / "painted", 10)):
        (folder / f"{number:05d}.png").write_bytes((folder / "painted" / name).read_bytes())
    with Origin(folder) as origin:
        yield origin.url("", "").split("/")[2]


def tiny_options(dataset: str) -> DatasetOptions | None:
    """The options that a dataset needs for its tiny source; None for the usual ones."""
    return SynthdogJaOptions(count=2) if dataset == "synthdog-ja" else None


def place_images(dataset: str, root: Path) -> None:
    """Copy the images that a dataset expects in its image root, if there are any."""
    images = DATA / dataset / "images"
    if images.is_dir():
        shutil.copytree(images, root, dirs_exist_ok=True)


def _leading_to(authority: str, path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        if "url" not in table.column_names:
            return content
        urls = [url.replace(NOWHERE, authority) for url in table["url"].to_pylist()]
        buffer = io.BytesIO()
        column = table.schema.get_field_index("url")
        pq.write_table(table.set_column(column, "url", pa.array(urls, pa.string())), buffer)
        return buffer.getvalue()
    if path.suffix == ".gz":
        return gzip.compress(_replaced(gzip.decompress(content), authority), mtime=0)
    if path.suffix == ".zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as after:
            for member in before.infolist():
                after.writestr(member, _replaced(before.read(member), authority))
        return buffer.getvalue()
    return _replaced(content, authority)


def _replaced(content: bytes, authority: str) -> bytes:
    return content.replace(NOWHERE.encode(), authority.encode())
