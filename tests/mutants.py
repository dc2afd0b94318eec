"""Would the tests notice? Plants 44 faults, one at a time, and runs the tests that should fail.

Each fault is an edit of one or two lines in a copy of the project: an off-by-one in a bound, a swallowed error, a
skipped fsync, a missing check. The default tests of its package run first, with slice 0, then all tests of its package,
and if they find nothing, the whole default set. This is not a test, because it takes long; test_mutants.py checks that
the faults match the current code.

    .venv/bin/python tests/mutants.py [--jobs 2] [--only WORD]

Prints a line for each fault, and exits with 1 if more than five of them are not known to be caught by the default set,
or if one is caught by none of these.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COPIED = (
    *("datafetch", "tests", "scripts", "docs", "benchmarks"),
    *("pyproject.toml", "README.md", "CONTRIBUTING.md", "constraints.txt"),
)
_PATIENCE_S = 1800
_MAX_MISSED_BY_DEFAULT = 5
_DEFAULT_SET = "--default-set"


class Catch(StrEnum):
    """Which tests noticed a fault."""

    PACKAGE = "default set, its package"
    PACKAGE_ALL = "all tests of its package"
    DEFAULT = "default set"
    NOTHING = "MISSED"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to plant.

    Attributes:
        what: What the fault is.
        path: The file, relative to ``datafetch/``.
        old: The correct code, which occurs there once.
        new: The faulty code.
        tests: The test modules of its package, without ``test_``.
    """

    what: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "a spool's payload is accepted without its checksum",
        "store/spool_format.py",
        "    return payload if crc32(payload) == header.crc else None\n",
        "    return payload\n",
        ("spool",),
    ),
    Fault(
        "entries behind a damaged one are not searched for",
        "store/spool_format.py",
        "            offset = _find_marker(file, marker, offset + 1)\n",
        "            offset = -1\n",
        ("spool",),
    ),
    Fault(
        "a sample whose image is missing from the spool is accepted",
        "store/spool_reader.py",
        "        if found != expected:\n",
        "        if len(found) > len(expected):\n",
        ("spool", "commit"),
    ),
    Fault(
        "a file is published before it is synced",
        "store/atomic.py",
        "    sync(unfinished)\n    move(unfinished, final)\n",
        "    move(unfinished, final)\n",
        ("atomic", "kills", "commit"),
    ),
    Fault(
        "the folder of a published file is not synced",
        "store/atomic.py",
        "    move(unfinished, final)\n    sync(final.parent)\n",
        "    move(unfinished, final)\n",
        ("atomic", "kills", "commit"),
    ),
    Fault(
        "a shard is committed before its files are on disk",
        "output/commit.py",
        "        for path in folder.iterdir():\n            sync(path)\n",
        "",
        ("atomic", "commit"),
    ),
    Fault(
        "the count of a shard is published before its rows",
        "output/formats/output_format.py",
        "        for name in names:\n",
        "        for name in reversed(names):\n",
        ("commit", "kills"),
    ),
    Fault(
        "a ledger with impossible counts is accepted",
        "store/shard_summary.py",
        " or totals.rows > totals.samples",
        "",
        ("ledger",),
    ),
    Fault(
        "a filesystem without locks is treated as one with locks",
        "store/lock.py",
        "            raise NoLocksError.of(path, self._out) from error\n",
        "",
        ("lock",),
    ),
    Fault(
        "a shard that another process fetches is fetched, too",
        "store/lock.py",
        "            if error.errno in _HELD:\n                return False\n",
        "            if error.errno in _HELD:\n                return True\n",
        ("lock", "fetch_shards"),
    ),
    Fault(
        "a process publishes the shards of another one",
        "output/commit.py",
        "            if shards is None or folder.name in shards:\n",
        "            if folder.name:\n",
        ("fetch_shards",),
    ),
    Fault(
        "samples of shards that other processes fetch don't count towards a limit",
        "engine/feed.py",
        "        self._unopened = deque(self._shards.values() if limit is None else self._all_shards)\n",
        "        self._unopened = deque(self._shards.values())\n",
        ("fetch_shards",),
    ),
    Fault(
        "a manifest with one row more is the same job",
        "engine/differences.py",
        '    have_changed = before.get("shards") != now.get("shards")\n',
        "    have_changed = False\n",
        ("job",),
    ),
    Fault(
        "a shard that lost a file counts as published",
        "output/formats/output_format.py",
        "        return read_shard_counts(layout.ledger(shard)).written_bytes == found_bytes\n",
        "        return True\n",
        ("job", "retry"),
    ),
    Fault(
        "an index leads out of the output",
        "output/formats/image_files.py",
        'if not parts or ".." in parts or ',
        "if not parts or ",
        ("image_files",),
    ),
    Fault(
        "the rank with the fewest samples gets the remainder",
        "output/reshard/ranks.py",
        "    takers = max(1, ranks.world_size - 1)  #",
        "    takers = max(1, ranks.world_size)  #",
        ("ranks", "reshard"),
    ),
    Fault(
        "a source that changes while it is copied is not noticed",
        "output/reshard/copy.py",
        '        if fingerprint(source.path) != journal.made_of["sources"][number]:\n',
        "        if False:\n",
        ("reshard",),
    ),
    Fault(
        "two rows at one position of the new shards are not noticed",
        "output/reshard/copy.py",
        "    if not frame_bytes.all():\n",
        "    if not frame_bytes.any():\n",
        ("reshard", "after_run"),
    ),
    Fault(
        "a retry forgets the attempts before it",
        "output/merge.py",
        "min(_MAX_ATTEMPTS, line.attempts + line_before.attempts)",
        "min(_MAX_ATTEMPTS, line.attempts)",
        ("retry", "merge"),
    ),
    Fault(
        "a retry resumes with a spool made from another ledger",
        "engine/retry_source.py",
        "if not has_marker(spool, marker):",
        "if not spool.exists():",
        ("retry",),
    ),
    Fault(
        "an image that was accepted without verification is not marked",
        "fetch/connections.py",
        "connection.permitted |= {Permission.INSECURE}",
        "pass",
        ("tls", "misbehaviours"),
    ),
    Fault(
        "an image that arrived damaged twice, byte for byte, may pass",
        "engine/fetch_image.py",
        "if isinstance(outcome, Failure) and outcome.is_as_damaged_as(before):",
        "if False:",
        ("job", "fetch_sample"),
    ),
    Fault(
        "a URL is fetched again for each sample that has it",
        "engine/dedup.py",
        "    return result if result is not None and result.line.url == url else None\n",
        "    return None\n",
        ("fetch_sample", "conservation"),
    ),
    Fault(
        "two URLs of one hash get the same image",
        "engine/dedup.py",
        "    return result if result is not None and result.line.url == url else None\n",
        "    return result\n",
        ("fetch_sample",),
    ),
    Fault(
        "each worker counts the requests to a host for itself",
        "engine/workers/mesh.py",
        "        return self.peer(owner_of_host(host, self.workers))\n",
        "        return None\n",
        ("worker_mesh", "workers"),
    ),
    Fault(
        "a replaced worker forgets what the one before had granted",
        "engine/workers/peer.py",
        "channel.send(msgspec.structs.replace(question.asked, is_held=True))",
        "pass",
        ("worker_mesh",),
    ),
    Fault(
        "what a killed worker had finished is fetched again",
        "engine/workers/coordinator.py",
        "if results.has_ended and len(now.ended) == len(now.sample.urls):",
        "if False:",
        ("workers",),
    ),
    Fault(
        "a cancelled waiter keeps its bytes",
        "fetch/memory.py",
        "                self._change(-size_bytes)\n            self._grant()\n            raise\n",
        "                pass\n            self._grant()\n            raise\n",
        ("memory",),
    ),
    Fault(
        "a body one byte over the bound is taken",
        "fetch/response.py",
        "        if body.size_bytes > limit_bytes:\n",
        "        if body.size_bytes > limit_bytes + 1:\n",
        ("fetcher",),
    ),
    Fault(
        "a gzip bomb is decompressed completely",
        "fetch/content_encoding.py",
        "            content.write(decompressor.decompress(piece, max_bytes - content.tell() + 1))\n",
        "            content.write(decompressor.decompress(piece, 1 << 30))\n",
        ("content_encoding", "misbehaviours"),
    ),
    Fault(
        "an address inside another one is not judged",
        "fetch/dns/address_guard.py",
        "        embedded = tuple(_embedded(parsed))\n",
        "        embedded = ()\n",
        ("address_guard",),
    ),
    Fault(
        "endless headers are read",
        "fetch/response_parser.py",
        "            if self._head_bytes + length > MAX_HEAD_BYTES:\n",
        "            if self._head_bytes + length > MAX_HEAD_BYTES * 64:\n",
        ("response_parser", "requester"),
    ),
    Fault(
        "surplus bytes become the next response",
        "fetch/response_parser.py",
        "head.keeps_alive and body.is_conformant and not self.has_surplus",
        "head.keeps_alive and body.is_conformant",
        ("response_parser", "misbehaviours"),
    ),
    Fault(
        "a host goes down one failure late",
        "fetch/hosts.py",
        "host.consecutive_failures >= _MAX_CONSECUTIVE_FAILURES",
        "host.consecutive_failures > _MAX_CONSECUTIVE_FAILURES",
        ("hosts",),
    ),
    Fault(
        "an image one pixel over the bound is decoded",
        "transcode/image/fitting.py",
        "    width_px, height_px = size_px\n    if width_px * height_px > spec.max_pixels:\n",
        "    width_px, height_px = size_px\n    if width_px * height_px > spec.max_pixels + 1:\n",
        ("codec", "codec_header"),
    ),
    Fault(
        "an image that crashed its worker once is blamed",
        "transcode/pool/pool.py",
        "            worker = await self._spawn([image for image in crash_report.suspects if not image.is_resolved])\n",
        "            for image in crash_report.suspects:\n"
        "                self._run_in_background(self._blame(image, 'died'))\n"
        "            worker = await self._spawn()\n",
        ("pool", "worker_handle"),
    ),
    Fault(
        "time on the processor is not bounded",
        "transcode/pool/worker.py",
        "        signal.setitimer(signal.ITIMER_PROF, self._spec.decode_timeout_s)\n",
        "",
        ("pool",),
    ),
    Fault(
        "a pickle may call any function",
        "output/formats/pickle_interpreter.py",
        "            raise ValueError("
        """f"it calls {ascii(f'{module:.80}.{name:.80}')[1:-1]}, which is not allowed")\n""",
        "            return cls(lambda arguments: getattr(__import__(module), name)(*arguments))\n",
        ("reshard", "formats", "verify"),
    ),
    Fault(
        "a line one byte too long is taken",
        "datasets/readers/jsonl.py",
        "                if len(line) > MAX_LINE_BYTES:\n",
        "                if len(line) > MAX_LINE_BYTES + 1:\n",
        ("jsonl",),
    ),
    Fault(
        "an image keeps its row of the matrix when an earlier image is dropped",
        "datasets/documents.py",
        '        "similarity_matrix": [similarities[position] for position, _ in arrived],\n',
        '        "similarity_matrix": similarities[: len(arrived)],\n',
        ("documents",),
    ),
    Fault(
        "a text index may point behind the last text",
        "datasets/documents.py",
        "not 0 <= index < len(texts)",
        "not 0 <= index <= len(texts)",
        ("documents",),
    ),
    Fault(
        "names that differ in case alone do not clash",
        "datasets/filenames.py",
        'unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())',
        'unicodedata.normalize("NFC", name)',
        ("filenames",),
    ),
    Fault(
        "verify reads an image outside of its root",
        "verify/record_list.py",
        '            raise ValueError("leads out of the image root")\n',
        "            pass\n",
        ("verify",),
    ),
    Fault(
        "what the library logs is not shown",
        "cli/reporter.py",
        "                with suppress(Exception):\n                    target.log(record)\n",
        "                pass\n",
        ("progress", "reporter", "cli"),
    ),
    Fault(
        "a full disk is a wrong command",
        "cli/exit_code.py",
        "        case ResourceError():\n            return ExitCode.OUT_OF_RESOURCES\n",
        "",
        ("shell",),
    ),
    Fault(
        "a folder behind a link is not locked",
        "store/lock.py",
        "            self._acquire_folder(kind)\n",
        "",
        ("lock",),
    ),
    Fault(
        "a worker can still open files",
        "transcode/pool/sandbox.py",
        "        _deny_files_and_tcp()\n",
        "",
        ("sandbox",),
    ),
)


def plant(fault: Fault, project: Path) -> None:
    """Plant a fault in a copy of the project.

    Raises:
        ValueError: The code is not what the fault was written for.
    """
    path = project / "datafetch" / fault.path
    code = path.read_text()
    if code.count(fault.old) != 1:
        raise ValueError(f"{fault.path} has the code of {fault.what!r} {code.count(fault.old)} times")
    path.write_text(code.replace(fault.old, fault.new))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which tests noticed a fault, the first of them, and after how long."""

    caught: Catch
    test: str
    took_s: float


def catch(fault: Fault) -> Verdict:
    """Plant a fault, and find the tests that notice it."""
    began_s = time.monotonic()
    modules = [f"tests/test_{name}.py" for name in fault.tests]
    with _copied_project() as project:
        plant(fault, project)
        for caught, arguments in (
            (Catch.PACKAGE, (_DEFAULT_SET, *modules)),
            (Catch.PACKAGE_ALL, modules),
            (Catch.DEFAULT, (_DEFAULT_SET,)),
        ):
            test = _first_failure(project, arguments)
            if test:
                return Verdict(caught, test, time.monotonic() - began_s)
    return Verdict(Catch.NOTHING, "", time.monotonic() - began_s)


@contextmanager
def _copied_project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="datafetch-mutant-") as folder:
        project = Path(folder)
        for name in _COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, project / name)
        yield project


def _first_failure(project: Path, arguments: Sequence[str]) -> str:
    """Return the first test or fixture that failed; empty if none did."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--slice=0"),
        "--ignore=tests/test_mutants.py",  # which fails with every fault
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONPYCACHEPREFIX": str(project / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        finished = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"(not done after {_PATIENCE_S} s)"
    if finished.returncode in (0, 5):  # 5: there is no such test
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+)", finished.stdout, re.MULTILINE)
    return failed[1] if failed else f"(exit {finished.returncode}: {finished.stdout.strip()[-200:]!r})"


def main() -> int:
    """Plant all faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at once")
    parser.add_argument("--only", default="", help="only faults whose path or text contains this")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.only in fault.path or options.only in fault.what]
    if not faults:
        parser.error(f"no fault has {options.only!r} in its path or text")
    with _copied_project() as project:  # otherwise any other failure would count as noticing a fault
        failure = _first_failure(project, (_DEFAULT_SET, "--numprocesses", str(options.jobs)))
    if failure:
        parser.error(f"without any fault the tests fail: {failure}")
    counts = dict.fromkeys(Catch, 0)
    with ThreadPoolExecutor(options.jobs) as threads:
        for fault, verdict in zip(faults, threads.map(catch, faults), strict=True):
            counts[verdict.caught] += 1
            took = f"{verdict.caught:<24} {verdict.took_s:4.0f} s"
            print(f"{took}  {fault.path}: {fault.what}\n{'':33}{verdict.test}", flush=True)  # noqa: T201 - its table
    by_default = counts[Catch.PACKAGE] + counts[Catch.DEFAULT]
    print(f"{len(faults)} faults, at least {by_default} caught by the default set, {counts[Catch.NOTHING]} by nothing")  # noqa: T201
    return int(counts[Catch.NOTHING] > 0 or len(faults) - by_default > _MAX_MISSED_BY_DEFAULT)


if __name__ == "__main__":
    sys.exit(main())
