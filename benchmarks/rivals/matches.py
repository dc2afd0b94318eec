"""The matches: at which work the contestants are compared, on which web, and who takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.rivals.contestants import (
    ITERATION,
    MULTI,
    MULTI_SOCKET,
    Contestant,
    Daft,
    Datafetch,
    DatafetchGet,
    FetchClient,
    Img2dataset,
    PillowAlone,
)
from benchmarks.rivals.corpus import Corpus
from benchmarks.rivals.origin import Hosts, Scheme
from benchmarks.rivals.webs import WebOf, hostile_web, perfect_web, slow_web
from benchmarks.rivals.work import Way

_FIXED_CONNECTIONS = (32, 64, 128, 256, 512)
_PATIENT_THREADS = 256
_TIMEOUT_S = 30
_SHORT_TIMEOUT_S = 5  # where hosts hang, so that a run takes a minute
_HTTP = perfect_web(Scheme.HTTP, Hosts.FRESH)
_HTTPS = perfect_web(Scheme.HTTPS, Hosts.FRESH)
_KEPT = perfect_web(Scheme.HTTP, Hosts.KEPT)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the contestants need.

    Attributes:
        corpus: The pictures.
        img2dataset: img2dataset, with as many threads as an origin without latency keeps busy.
        daft: Daft.
        simd: The interpreter of an environment with datafetch and Pillow-SIMD; None for none.
    """

    corpus: Corpus
    img2dataset: Img2dataset
    daft: Daft
    simd: Path | None


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison.

    Attributes:
        name: Its name in the record.
        title: What it is called on a page.
        way: What becomes of an image.
        web: Where the images are.
        contestants: Returns who takes part.
        is_quick: Whether it is a part of ``--quick``.
        timeout_s: The deadline of an attempt.
    """

    name: str
    title: str
    way: Way
    web: WebOf
    contestants: Callable[[Tools], Sequence[Contestant]]
    is_quick: bool = False
    timeout_s: int = _TIMEOUT_S


def _fetching(tools: Tools) -> list[Contestant]:
    return [
        FetchClient(),
        FetchClient("libcurl, multi", MULTI),
        FetchClient("libcurl, multi_socket", MULTI_SOCKET),
        tools.img2dataset,
    ]


def _fetching_with_daft(tools: Tools) -> list[Contestant]:
    return [*_fetching(tools), FetchClient("datafetch, fetch_images", ITERATION), tools.daft]


def _encoding(tools: Tools) -> list[Contestant]:
    return [Datafetch(), tools.img2dataset, tools.daft, PillowAlone(tools.corpus.folder)]


def _shrinking(tools: Tools) -> list[Contestant]:
    fast = ("--resize", "fast")
    simd = [Datafetch("datafetch, Pillow-SIMD", python=tools.simd)] if tools.simd else []
    return [
        Datafetch(),
        Datafetch("datafetch, fast", fast),
        *simd,
        tools.img2dataset,
        PillowAlone(tools.corpus.folder),
    ]


def _keeping(tools: Tools) -> list[Contestant]:
    return [Datafetch(), tools.img2dataset, tools.daft]


def _lists(tools: Tools) -> list[Contestant]:
    return [DatafetchGet(), tools.img2dataset]


def _received(tools: Tools) -> list[Contestant]:
    return [
        DatafetchGet(),
        DatafetchGet("datafetch get, --workers 2", options=("--workers", "2")),
        DatafetchGet("datafetch get, parquet", "parquet"),
        tools.img2dataset,
        tools.daft,
    ]


def _pair(tools: Tools) -> list[Contestant]:
    return [Datafetch(), tools.img2dataset]


def _patient_pair(tools: Tools) -> list[Contestant]:
    return [Datafetch(), _patient(tools.img2dataset)]


def _patient(img2dataset: Img2dataset) -> Img2dataset:
    """img2dataset with its default number of threads, for webs on which most of them wait."""
    return replace(img2dataset, threads=_PATIENT_THREADS)


def _documents(tools: Tools) -> list[Contestant]:
    return [Datafetch("datafetch, documents", is_of_documents=True), Datafetch(), tools.img2dataset]


def _connections(tools: Tools) -> list[Contestant]:
    fixed = [
        Datafetch(f"datafetch, {number} connections", ("--connections", str(number))) for number in _FIXED_CONNECTIONS
    ]
    return [Datafetch(), *fixed, _patient(tools.img2dataset)]


def _workers(_: Tools) -> list[Contestant]:
    return [Datafetch(f"datafetch, --workers {number}", ("--workers", str(number))) for number in (1, 2)]


MATCHES = (
    Match("recipe-https", "encode again, HTTPS", Way.RECIPE, _HTTPS, _pair, is_quick=True),
    Match("recipe", "encode again, HTTP", Way.RECIPE, _HTTP, _encoding, is_quick=True),
    Match("336", "shrink to 336 pixels, HTTP", Way.SHRINK, _HTTP, _shrinking, is_quick=True),
    Match("original", "keep the original JPEG, HTTP", Way.ORIGINAL, _HTTP, _keeping, is_quick=True),
    Match("fetch-https", "fetch alone, HTTPS", Way.FETCH, _HTTPS, _fetching, is_quick=True),
    Match("fetch", "fetch alone, HTTP", Way.FETCH, _HTTP, _fetching_with_daft),
    Match("fetch-kept", "fetch alone, HTTP, connections kept alive", Way.FETCH, _KEPT, _fetching_with_daft),
    Match("list-https", "a list of URLs, original images in tar files, HTTPS", Way.ORIGINAL, _HTTPS, _lists),
    Match("list", "a list of URLs, original images in tar files, HTTP", Way.ORIGINAL, _HTTP, _lists),
    Match("list-received", "a list of URLs, images as received, HTTP", Way.RECEIVED, _HTTP, _received),
    Match("documents", "documents of five images, HTTP", Way.RECIPE, _HTTP, _documents),
    Match(
        "latency",
        "encode again, answers after 120 ms in the median, with a heavy tail",
        Way.RECIPE,
        slow_web,
        _connections,
    ),
    Match(
        "faults",
        "encode again, 30 % of the URLs bad",
        Way.RECIPE,
        hostile_web,
        _patient_pair,
        timeout_s=_SHORT_TIMEOUT_S,
    ),
    Match("workers", "encode again, HTTP, by one process and by two workers", Way.RECIPE, _HTTP, _workers),
    Match("workers-https", "encode again, HTTPS, by one process and by two workers", Way.RECIPE, _HTTPS, _workers),
)
"""In the order in which they are run."""
