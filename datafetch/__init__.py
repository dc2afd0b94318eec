"""datafetch: the images that vision-language models are trained on, in exactly the files the trainer loads."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafetch.choices import Choices, IdsIndex
    from datafetch.fetch import Fetcher, FetchPolicy, FetchStatistics, OptOut
    from datafetch.job import Job
    from datafetch.model import Body, Encoded, Failure, FailureKind, Loader, Payload
    from datafetch.report import Report
    from datafetch.reshard import Request as ReshardRequest
    from datafetch.reshard import Resharded
    from datafetch.reshard import reshard as make_equal_shards
    from datafetch.runner import fetch_dataset, retry, retry_failed, run
    from datafetch.status import RunState, Status, read_status
    from datafetch.transcode import Encoding, ImageSpec, Pixels, Resize, Transcoder
    from datafetch.verify import Check, Verdict, run_check, verify_output
    from datafetch.wanted import Wanted

__all__ = [
    "Body",
    "Check",
    "Choices",
    "Encoded",
    "Encoding",
    "Failure",
    "FailureKind",
    "FetchPolicy",
    "FetchStatistics",
    "Fetcher",
    "IdsIndex",
    "ImageSpec",
    "Job",
    "Loader",
    "OptOut",
    "Payload",
    "Pixels",
    "Report",
    "ReshardRequest",
    "Resharded",
    "Resize",
    "RunState",
    "Status",
    "Transcoder",
    "Verdict",
    "Wanted",
    "fetch_dataset",
    "make_equal_shards",
    "read_status",
    "retry",
    "retry_failed",
    "run",
    "run_check",
    "verify_output",
]

# A library stays silent until its user configures logging; without this, Python would print warnings by itself.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Lazy, so that a codec process, which imports one submodule, does not load the network stack with it.
_ROOMS = {
    "Body": "model",
    "Check": "verify",
    "Choices": "choices",
    "Encoded": "model",
    "Encoding": "transcode",
    "Failure": "model",
    "FailureKind": "model",
    "FetchPolicy": "fetch",
    "FetchStatistics": "fetch",
    "Fetcher": "fetch",
    "IdsIndex": "choices",
    "ImageSpec": "transcode",
    "Job": "job",
    "Loader": "model",
    "OptOut": "fetch",
    "Payload": "model",
    "Pixels": "transcode",
    "Report": "report",
    "ReshardRequest": "reshard",
    "Resharded": "reshard",
    "Resize": "transcode",
    "RunState": "status",
    "Status": "status",
    "Transcoder": "transcode",
    "Verdict": "verify",
    "Wanted": "wanted",
    "fetch_dataset": "runner",
    "make_equal_shards": "reshard",
    "read_status": "status",
    "retry": "runner",
    "retry_failed": "runner",
    "run": "runner",
    "run_check": "verify",
    "verify_output": "verify",
}

# A function may not be called what a room is called: importing the room would put that in its place.
_NAMES_THERE = {"ReshardRequest": "Request", "make_equal_shards": "reshard"}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'datafetch' has no attribute {name!r}")
    return getattr(import_module(f"datafetch.{_ROOMS[name]}"), _NAMES_THERE.get(name, name))


def __dir__() -> list[str]:
    return __all__
