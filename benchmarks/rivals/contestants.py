"""The contestants: how each is told to do the work, and how its good images are counted.

Rules: each does the work that the way says, with as many processes for decoding as the others, and writes its result in
the form that suits it best. Settings that help it are set: what is not asked of the others is turned off. Where its
work differs, its docstring says so.
"""

from __future__ import annotations

import pickle
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.bare_codec import PILLOW, PILLOW_SHRINK, bare_codec_command
from benchmarks.fetch.subprocess_client import DATAFETCH, Tally, Workload
from benchmarks.preparation import whole_command
from benchmarks.rivals.work import QUALITY, SHORT_SIDE_PX, Way, Work
from datafetch.fetch import FetchPolicy
from datafetch.model.outcome import OK
from datafetch.process.child import child_command

ITERATION = "benchmarks.fetch.client_fetch_images"
MULTI = "benchmarks.fetch.client_libcurl_select"
MULTI_SOCKET = "benchmarks.fetch.client_libcurl_epoll"
FAILED = "failed"
ELAPSED_S, CPU_S = "elapsed_s", "cpu_s"

_ROOT = str(Path(__file__).resolve().parents[2])
_DAFT_JOB = f"import sys; sys.path.insert(0, {_ROOT!r}); from benchmarks.rivals.daft_job import main; main()"
_CONNECTIONS = 256  # of the clients that need a number


class Contestant(ABC):
    """A tool that does the work in processes of its own."""

    name: str

    @abstractmethod
    def command(self, work: Work, out: Path) -> list[str]:
        """The command line that does the work and writes below a folder, which does not exist yet."""

    @abstractmethod
    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:
        """Count the images by outcome; the good ones are ``ok``."""

    def environment(self) -> Mapping[str, str]:
        """What it needs in its environment."""
        return {}

    def own_clock(self, stdout: bytes, out: Path) -> Mapping[str, float]:  # noqa: ARG002 - of others
        """Its ``elapsed_s`` or ``cpu_s``, where it measures them itself, in place of those of the whole command."""
        return {}


@dataclass(frozen=True, slots=True)
class Datafetch(Contestant):
    """``datafetch prepare``, up to shards that are equal for all ranks.

    Attributes:
        name: Its name in the record.
        options: Further options.
        is_of_documents: Whether the images come in documents of five.
        python: The interpreter of an environment that has it.
    """

    name: str = "datafetch"
    options: tuple[str, ...] = ()
    is_of_documents: bool = False
    python: Path = Path(sys.executable)

    def command(self, work: Work, out: Path) -> list[str]:
        """Make the command line."""
        short_side = str(SHORT_SIDE_PX) if work.way is Way.SHRINK else "none"
        encode = "original" if work.way is Way.ORIGINAL else "recipe"
        source = work.document_source() if self.is_of_documents else work.coyo_source()
        _, *arguments = whole_command(
            source,
            out,
            *("--short-side", short_side, "--encode", encode, "--quality", str(QUALITY)),
            *("--processes", str(work.processes), "--timeout", str(work.timeout_s), "--retries", str(work.retries)),
            *("--per-host", "1024"),  # which matters only where one host has all images
            *self.options,
        )
        return [str(self.python), *arguments]

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        images = orjson.loads(stdout)["images"]
        return {OK: images["ok"], **images["by_kind"]}


@dataclass(frozen=True, slots=True)
class DatafetchGet(Contestant):
    """``datafetch get``, into tar files of WebDataset or into parquet files.

    It checks each body that it keeps as received, at the header and the end.

    Attributes:
        name: Its name in the record.
        format: The format of the output.
        options: Options of the command line besides those that all have.
    """

    name: str = "datafetch get"
    format: str = "webdataset"
    options: tuple[str, ...] = ()

    def command(self, work: Work, out: Path) -> list[str]:
        """Make the command line."""
        kept = ("received", "--check", "header") if work.way is Way.RECEIVED else ("original",)
        return [
            *(sys.executable, "-m", "datafetch", "get", str(work.url_folder), "--out", str(out / "images")),
            *("--format", self.format, "--shard-size", str(work.urls_per_shard), "--encode", *kept),
            *("--processes", str(work.processes), "--timeout", str(work.timeout_s), "--retries", str(work.retries)),
            *("--per-host", "1024", "--allow-net", "127.0.0.0/8", "--json"),
            *self.options,
        ]

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        images = orjson.loads(stdout)["images"]
        return {OK: images["ok"], **images["by_kind"]}


@dataclass(frozen=True, slots=True)
class FetchClient(Contestant):
    """A client of ``benchmarks.fetch``, in one process, which drops the bodies.

    Attributes:
        name: Its name in the record.
        module: Its module.
    """

    name: str = "datafetch"
    module: str = DATAFETCH

    def command(self, work: Work, out: Path) -> list[str]:
        """Make the command line."""
        policy = FetchPolicy(
            connections=_CONNECTIONS,
            per_host=_CONNECTIONS,
            timeout_s=work.timeout_s,
            retries=work.retries,
            allow_net=("127.0.0.0/8",),
        )
        out.mkdir()
        request = out / "workload"
        request.write_bytes(pickle.dumps(Workload(work.urls, policy, work.is_fresh)))
        return [*child_command(self.module), str(request), str(out / "tally")]

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        tally: Tally = pickle.loads((out / "tally").read_bytes())
        return dict(Counter(tally.outcomes))

    def own_clock(self, stdout: bytes, out: Path) -> Mapping[str, float]:  # noqa: ARG002 - of others
        """Leave the start out of the CPU time."""
        tally: Tally = pickle.loads((out / "tally").read_bytes())
        return {CPU_S: tally.cpu_s}


@dataclass(frozen=True, slots=True)
class Img2dataset(Contestant):
    """img2dataset, into tar files of WebDataset.

    It keeps no connection alive, and shrinks with OpenCV's INTER_AREA. To fetch alone it writes nothing (its format
    ``dummy``), and decodes nothing. What it keeps as received it does not check. EXIF data is not extracted; SHA-256 is
    computed by both.

    Attributes:
        python: The interpreter of its environment.
        threads: Threads that fetch, in each process; its default is 256.
    """

    python: Path
    threads: int
    name: str = "img2dataset"

    def command(self, work: Work, out: Path) -> list[str]:
        """Make the command line."""
        options = {
            "url_list": work.url_folder,
            "input_format": "parquet",
            "output_folder": out,
            "output_format": "dummy" if work.way is Way.FETCH else "webdataset",
            "processes_count": work.processes,
            "thread_count": self.threads,
            "number_sample_per_shard": work.urls_per_shard,
            "resize_mode": "keep_ratio" if work.way is Way.SHRINK else "no",
            "resize_only_if_bigger": True,
            "image_size": SHORT_SIDE_PX,
            "encode_quality": QUALITY,
            "skip_reencode": work.way is Way.ORIGINAL,
            "disable_all_reencoding": work.way in (Way.FETCH, Way.RECEIVED),
            "extract_exif": False,
            "timeout": work.timeout_s,
            "retries": work.retries,
        }
        return [str(self.python.with_name("img2dataset")), *(f"--{name}={value}" for name, value in options.items())]

    def environment(self) -> Mapping[str, str]:
        """Keep it from asking the web."""
        return {"NO_ALBUMENTATIONS_UPDATE": "1"}  # it asks for a newer version at every start

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        shards = [orjson.loads(path.read_bytes()) for path in out.glob("*_stats.json")]
        images, good = (sum(shard[name] for shard in shards) for name in ("count", "successes"))
        return dict(+Counter({OK: good, FAILED: images - good}))


@dataclass(frozen=True, slots=True)
class Daft(Contestant):
    """Daft, into parquet files.

    It has no deadline for a whole attempt, and cannot shrink to a ratio. It trusts the authorities that are built into
    it and no others, so over HTTPS it gets nothing from the origin. An original stays even if it is not a JPEG. What it
    keeps as received it does not check.

    Attributes:
        python: The interpreter of its environment.
        connections: Connections a thread.
    """

    python: Path
    connections: int = 32
    name: str = "Daft"

    def command(self, work: Work, out: Path) -> list[str]:
        """Make the command line."""
        numbers = (str(self.connections), str(work.retries + 1))
        return [str(self.python), "-c", _DAFT_JOB, work.way, str(work.url_folder), str(out), *numbers]

    def environment(self) -> Mapping[str, str]:
        """Keep it from asking the web."""
        return {"DAFT_PROGRESS_BAR": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "true"}

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        counts: Mapping[str, int] = orjson.loads(stdout)
        return counts


@dataclass(frozen=True, slots=True)
class PillowAlone(Contestant):
    """The recipe's lines of Python in bare processes that have the bodies in memory: no network, nothing written.

    Attributes:
        pictures: The folder of the pictures.
        python: The interpreter.
    """

    pictures: Path
    python: Path = Path(sys.executable)
    name: str = "Pillow alone"

    def command(self, work: Work, out: Path) -> list[str]:  # noqa: ARG002 - of others
        """Make the command line."""
        way = {Way.RECIPE: PILLOW, Way.SHRINK: PILLOW_SHRINK}[work.way]
        return bare_codec_command(str(self.python), way, len(work.urls), work.processes, self.pictures)

    def outcomes(self, stdout: bytes, out: Path) -> Mapping[str, int]:  # noqa: ARG002 - of others
        """Count the images by outcome."""
        counts: Mapping[str, int] = orjson.loads(stdout)["outcomes"]
        return counts

    def own_clock(self, stdout: bytes, out: Path) -> Mapping[str, float]:  # noqa: ARG002 - of others
        """Leave out starting and loading the bodies."""
        report = orjson.loads(stdout)
        return {name: report[name] for name in (ELAPSED_S, CPU_S)}
