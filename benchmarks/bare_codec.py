"""The codec alone, in processes that have the bodies in memory; a child process of other benchmarks.

The codec is datafetch's, or Pillow alone, as the recipe's few lines of Python use it.

Rules: it runs in any environment that has Pillow and what ``datafetch.transcode`` imports, and prints one JSON object.
Its clock starts when every process has warmed up.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import PIL
from PIL import Image, features

from datafetch.model.outcome import OK, Encoded
from datafetch.process.allocator import keep_freed_memory
from datafetch.transcode.codec import transcode
from datafetch.transcode.spec import Encoding, ImageSpec, Resize

RECIPE, EXACT, FAST, ORIGINAL = "recipe", "short side 336, exact", "short side 336, fast", "original where it can stay"
SPECS: Mapping[str, ImageSpec] = {
    RECIPE: ImageSpec(),
    EXACT: ImageSpec(short_side_px=336, resize=Resize.EXACT),
    FAST: ImageSpec(short_side_px=336, resize=Resize.FAST),
    ORIGINAL: ImageSpec(encode=Encoding.ORIGINAL),
}
PILLOW, PILLOW_SHRINK = "Pillow", "Pillow, short side 336"
SHORT_SIDES_PX: Mapping[str, int | None] = {PILLOW: None, PILLOW_SHRINK: 336}
KEPT = "ok, kept"
"""The outcome of an image that was kept as received."""

_ROOT = str(Path(__file__).resolve().parents[1])
_CHUNK_IMAGES = 4  # handed out one chunk at a time, so that the processes end together
_WARM_UP_IMAGES = 16  # a process

_bodies: list[bytes] = []
"""The pictures, in a bare process."""


def bare_codec_command(python: str, way: str, images: int, processes: int, folder: Path) -> list[str]:
    """Make the command that runs ``main`` on the pictures of a folder; ``way`` is a key of the mappings above."""
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from benchmarks.bare_codec import main; main()"
    return [python, "-c", code, way, str(images), str(processes), str(folder)]


def main() -> None:
    """Transcode as the command line says: a way, the numbers of images and processes, and the folder."""
    way, images, processes, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    work = partial(_transcode, SPECS[way]) if way in SPECS else partial(_use_pillow, SHORT_SIDES_PX[way])
    with multiprocessing.get_context("spawn").Pool(processes, _load, (sorted(folder.iterdir()),)) as pool:
        pool.map(work, range(processes * _WARM_UP_IMAGES), chunksize=_CHUNK_IMAGES)
        started_s = time.perf_counter()
        done = list(pool.imap_unordered(work, range(images), chunksize=_CHUNK_IMAGES))
        elapsed_s = time.perf_counter() - started_s
    report = {
        "elapsed_s": elapsed_s,
        "cpu_s": sum(cpu_s for _, cpu_s in done),
        "outcomes": Counter(outcome for outcome, _ in done),
        "pillow": PIL.__version__,
        "jpeg_library": _jpeg_library(),
        "python": sys.version.split()[0],
    }
    print(json.dumps(report))


def _jpeg_library() -> str:
    turbo = features.version("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"


def _load(paths: Sequence[Path]) -> None:
    keep_freed_memory()  # as the pool's processes do
    _bodies.extend(path.read_bytes() for path in paths)


def _transcode(spec: ImageSpec, number: int) -> tuple[str, float]:
    started_s = time.process_time()
    outcome = transcode(_bodies[number % len(_bodies)], spec)
    cpu_s = time.process_time() - started_s
    if isinstance(outcome, Encoded):
        return (KEPT if outcome.is_original else OK), cpu_s
    return outcome.kind.value, cpu_s


def _use_pillow(short_side_px: int | None, number: int) -> tuple[str, float]:
    started_s = time.process_time()
    image: Image.Image = Image.open(BytesIO(_bodies[number % len(_bodies)])).convert("RGB")
    if short_side_px is not None and min(image.size) > short_side_px:
        scale = short_side_px / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)))
    image.save(BytesIO(), format="JPEG")
    return OK, time.process_time() - started_s
