"""The work, as a program for Daft; it runs in Daft's own environment, so it imports nothing else.

The command line gives the way, the folder of the parquet files with a column ``url``, the folder to write to, the
number of connections and the number of attempts. It prints the numbers of images and of good ones as JSON.
"""

from __future__ import annotations

import json
import sys

import daft
from daft import col
from daft.functions import decode_image, download, encode_image, when
from daft.io import HTTPConfig, IOConfig


def main() -> None:
    """Do the work."""
    way, source, out, connections, attempts = sys.argv[1:]
    web = IOConfig(http=HTTPConfig(num_tries=int(attempts)))
    images = daft.read_parquet(f"{source}/*.parquet").with_column(
        "body", download(col("url"), max_connections=int(connections), on_error="null", io_config=web)
    )
    if way == "fetch":
        sizes = images.select(col("body").length().alias("size")).to_pydict()["size"]
        _report(len(sizes), sum(1 for size in sizes if size))
        return
    if way == "received":
        images = images.with_column("jpeg", col("body"))
    elif way == "recipe":
        images = _decoded(images).with_column("jpeg", encode_image(col("image"), "jpeg"))
    else:  # decoding is the check that the original is an image
        images = _decoded(images).with_column("jpeg", when(col("image").not_null(), col("body")))
    images.select("url", "jpeg").write_parquet(out)
    done = daft.read_parquet(f"{out}/*.parquet").select(col("jpeg").is_null().alias("is_missing"))
    missing = done.to_pydict()["is_missing"]
    _report(len(missing), missing.count(False))


def _decoded(images: daft.DataFrame) -> daft.DataFrame:
    return images.with_column("image", decode_image(col("body"), on_error="null"))


def _report(images: int, good: int) -> None:
    failed = {"failed": images - good} if good < images else {}
    print(json.dumps({"ok": good, **failed}))
