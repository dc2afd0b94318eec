"""Does an image cost more instructions than on record?

Times on a machine that others use are noise; the number of executed instructions is not. valgrind's callgrind counts
those of each part of a run, in one process, with a small and a larger number of images; the difference is divided by
the number of images between them. The parts are the codec with and without shrinking, fetching over HTTPS on fresh
connections, and a whole run of tiny pictures from the manifest to the shards, which is all that is neither codec nor
TLS. The figures hold for the versions and the kind of CPU that are on record with them.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from benchmarks.fetch.subprocess_client import DATAFETCH, Workload
from benchmarks.host_farm import Behaviour, HostFarm
from datafetch import FetchPolicy, Job
from datafetch.demo.manifest import write_coyo_source
from datafetch.demo.pictures import Kind, encode, paint, write_pictures
from datafetch.process.child import child_command

_RECORD = Path(__file__).with_name("instructions.json")
_VALGRIND = "valgrind"
_TOLERANCE = 0.05
_EXIT_MORE, _EXIT_CANNOT = 1, 2
_PACKAGES = ("aiohttp", "kornia-rs", "numpy", "orjson", "pillow", "pyarrow", "simplejpeg", "uvloop", "zlib-ng")
_TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)
_CODEC_IMAGES, _NETWORK_IMAGES = (8, 24), (40, 160)
_TIMEOUT_S = 3600.0  # far beyond what the work takes under valgrind
_CONNECTIONS = 8  # so few that a run has about as many in flight all the time
_BODY_BYTES = 110_000
_TINY_PX, _TINY_PICTURES = 16, 8


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a run.

    Attributes:
        name: Its name in the record.
        images: The two numbers of images.
        command: Returns the command that works on a number of images.
        environment: What to add to the environment.
    """

    name: str
    images: tuple[int, int]
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


def main() -> int:
    """Count and compare; return 1 if a part costs over 5 % more, 2 if it can't be told."""
    arguments = _arguments()
    if shutil.which(_VALGRIND) is None:
        print("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind", file=sys.stderr)
        return _EXIT_CANNOT
    recorded = orjson.loads(_RECORD.read_bytes()) if _RECORD.exists() else None
    machine = _machine()
    if not arguments.record and (recorded is None or recorded["machine"] != machine):
        print(_why_not(recorded, machine), file=sys.stderr)
        return _EXIT_CANNOT
    with TemporaryDirectory(prefix="datafetch-benchmark-") as name, _parts(Path(name)) as parts:
        counted = _count_all(parts, Path(name))
    if recorded is not None and not arguments.record:
        return compare(counted, recorded["instructions_per_image"])
    record = {"machine": machine, "instructions_per_image": counted}
    _RECORD.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    print(f"on record in {os.path.relpath(_RECORD)}")
    return 0


def compare(counted: Mapping[str, int], recorded: Mapping[str, int]) -> int:
    """Print by how much each part has changed, and return 1 if one costs over 5 % more, else 0."""
    changes = {name: instructions / recorded[name] - 1 for name, instructions in counted.items()}
    for name, change in changes.items():
        print(f"{name}: {change:+.1%} {'TOO MUCH' if change > _TOLERANCE else 'ok'}")
    return _EXIT_MORE if max(changes.values()) > _TOLERANCE else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="put the figures of this state on record instead")
    return parser.parse_args()


def _machine() -> dict[str, str]:
    """What decides the number of instructions, besides the code."""
    asked = subprocess.run([_VALGRIND, "--version"], check=True, capture_output=True, text=True)
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "architecture": platform.machine(),
        "avx2": str(bool(re.search(r"^flags\b.*\bavx2\b", flags, re.MULTILINE))),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "valgrind": asked.stdout.strip(),
        **{package: version(package) for package in _PACKAGES},
    }


def _why_not(recorded: Mapping[str, Any] | None, machine: Mapping[str, str]) -> str:
    there = recorded["machine"] if recorded else {}
    different = [
        f"{name} {there.get(name)} (here {value})" for name, value in machine.items() if there.get(name) != value
    ]
    return (
        f"the figures on record do not hold here: {', '.join(different)}; check out the state to compare with, run "
        "scripts/benchmark --check --record there, and copy benchmarks/runs/instructions.json here"
    )


@contextmanager
def _parts(folder: Path) -> Iterator[list[_Part]]:
    pictures = folder / "pictures"
    names = write_pictures(pictures, _CODEC_IMAGES[1])
    tiny = folder / "tiny"
    tiny.mkdir()
    for number in range(_TINY_PICTURES):
        (tiny / f"{number}.jpg").write_bytes(encode(paint((_TINY_PX, _TINY_PX), number), Kind(".jpg", "JPEG", "RGB")))
    authority = folder / "authority.pem"
    with HostFarm(authority=authority) as secure, HostFarm(pictures=tiny) as plain:

        def codec(short_side_px: int, images: int) -> list[str]:
            paths = [str(pictures / name) for name in names[:images]]
            return [*child_command("benchmarks.counted_codec"), str(short_side_px), *paths]

        def fetch(images: int) -> list[str]:
            urls = [secure.url(Behaviour.ONCE, host=n % 250, body=_BODY_BYTES, number=n) for n in range(images)]
            workload = folder / f"workload{images}"
            workload.write_bytes(pickle.dumps(Workload(urls, _policy(), is_fresh=True)))
            return [*child_command(DATAFETCH), str(workload), str(folder / f"tally{images}")]

        def run(images: int) -> list[str]:
            urls = [plain.url(Behaviour.ONCE, host=n, body=n % _TINY_PICTURES, number=n) for n in range(images)]
            source = write_coyo_source(folder / f"source{images}", urls)
            out = str(folder / f"out{images}")
            job = Job("coyo", str(source.folder), out, ids=str(source.ids), fetch=_policy(), world_size=None)
            job_file = folder / f"job{images}"
            job_file.write_bytes(pickle.dumps(job))
            return [*child_command("benchmarks.counted_run"), str(job_file)]

        yield [
            _Part("codec, recipe", _CODEC_IMAGES, partial(codec, 0)),
            _Part("codec, short side 336", _CODEC_IMAGES, partial(codec, 336)),
            _Part("fetch, HTTPS", _NETWORK_IMAGES, fetch, {"SSL_CERT_FILE": str(authority)}),
            _Part("run of tiny pictures", _NETWORK_IMAGES, run),
        ]


def _policy() -> FetchPolicy:
    return FetchPolicy(
        connections=_CONNECTIONS,
        per_host=_CONNECTIONS,
        timeout_s=_TIMEOUT_S,
        connect_timeout_s=_TIMEOUT_S,
        stall_timeout_s=_TIMEOUT_S,
        retries=0,
        allow_net=("127.0.0.0/8",),
    )


def _count_all(parts: Sequence[_Part], folder: Path) -> dict[str, int]:
    """Count the instructions of an image in each part, in as many processes at once as there are CPUs."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        totals = {part.name: [threads.submit(_count, part, images, folder) for images in part.images] for part in parts}
        counted: dict[str, int] = {}
        for part in parts:
            few, many = (total.result() for total in totals[part.name])
            counted[part.name] = (many - few) // (part.images[1] - part.images[0])
            print(f"{part.name}: {counted[part.name]:,} instructions an image", flush=True)
    return counted


def _count(part: _Part, images: int, folder: Path) -> int:
    result = folder / f"callgrind {part.name} {images}"
    command = [
        *(_VALGRIND, "--quiet", "--tool=callgrind", f"--callgrind-out-file={result}"),
        *part.command(images),
    ]
    environment = {**os.environ, **part.environment, "PYTHONHASHSEED": "0"}  # else sets have another order each time
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    match = _TOTAL.search(result.read_text(errors="replace"))
    assert match, "callgrind writes a total"
    return int(match[1])


if __name__ == "__main__":
    sys.exit(main())
