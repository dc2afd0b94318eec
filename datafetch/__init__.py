"""datafetch: the images that vision-language models are trained on, in exactly the files the trainer loads."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafetch.fetch import Fetcher, FetchPolicy, FetchStatistics, OptOut
    from datafetch.job import Job
    from datafetch.model import Body, Encoded, Failure, FailureKind, Payload, Report
    from datafetch.runner import fetch_dataset, retry, retry_failed, run
    from datafetch.transcode import Encoding, ImageSpec, Pixels, Resize, Transcoder
    from datafetch.wanted import Wanted

__all__ = [
    "Body",
    "Encoded",
    "Encoding",
    "Failure",
    "FailureKind",
    "FetchPolicy",
    "FetchStatistics",
    "Fetcher",
    "ImageSpec",
    "Job",
    "OptOut",
    "Payload",
    "Pixels",
    "Report",
    "Resize",
    "Transcoder",
    "Wanted",
    "fetch_dataset",
    "retry",
    "retry_failed",
    "run",
]

# A library stays silent until its user configures logging; without this, Python would print warnings by itself.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Lazy, so that a codec process, which imports one submodule, does not load the network stack with it.
_ROOMS = {
    "Body": "model",
    "Encoded": "model",
    "Encoding": "transcode",
    "Failure": "model",
    "FailureKind": "model",
    "FetchPolicy": "fetch",
    "FetchStatistics": "fetch",
    "Fetcher": "fetch",
    "ImageSpec": "transcode",
    "Job": "job",
    "OptOut": "fetch",
    "Payload": "model",
    "Pixels": "transcode",
    "Report": "model",
    "Resize": "transcode",
    "Transcoder": "transcode",
    "Wanted": "wanted",
    "fetch_dataset": "runner",
    "retry": "runner",
    "retry_failed": "runner",
    "run": "runner",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'datafetch' has no attribute {name!r}")
    return getattr(import_module(f"datafetch.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
