"""datafetch: the images that vision-language models are trained on, in exactly the files the trainer loads.

``run(Job(dataset=…, source=…, out=…))`` builds a dataset, and ``retry(out)`` fetches again what failed. Inside a
running event loop, as in a notebook, these are ``await fetch_dataset(job)`` and ``await retry_failed(out)``.
``fetch_images(urls)`` iterates over the images of any list of URLs; ``Fetcher`` and ``Transcoder`` fetch and encode
single ones.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datafetch.datasets.id_pairs import IdsIndex
    from datafetch.datasets.lists.list_dataset import ListFormat, ListOptions
    from datafetch.datasets.lists.table import InputFormat
    from datafetch.engine.fetch_images import FetchedImage, fetch_images
    from datafetch.engine.job import Job
    from datafetch.engine.list_job import ListJob
    from datafetch.engine.retry import retry_failed
    from datafetch.engine.runner import (
        fetch_dataset,
        fetch_dataset_shards,
        fetch_shards,
        finish,
        finish_dataset,
        retry,
        run,
        shard_names,
    )
    from datafetch.errors import (
        ConfigurationError,
        ConservationError,
        DatafetchError,
        InvalidFieldError,
        ManifestError,
        ResourceError,
    )
    from datafetch.fetch import Fetcher, FetchPolicy, FetchStatistics, OptOut
    from datafetch.model.kinds import Loader, Payload
    from datafetch.model.observers import Observer
    from datafetch.model.outcome import Body, Encoded, Failure, FailureKind, Fetched, Outcome
    from datafetch.model.report import FetchedShards, Report
    from datafetch.model.request import ByteRange, Request
    from datafetch.model.statistics import Statistics
    from datafetch.monitor.status import RunState, Status, read_status
    from datafetch.output.reshard.folder import Resharded, ReshardRequest, reshard
    from datafetch.output.retry_filter import RetryFilter
    from datafetch.transcode import (
        BodyCheck,
        Encoding,
        ImageFormat,
        ImageSpec,
        Pixels,
        Resize,
        ResizeMode,
        Transcoder,
    )
    from datafetch.verify import Check, Verdict, run_check, verify_output

    __version__: str

__all__ = [
    "Body",
    "BodyCheck",
    "ByteRange",
    "Check",
    "ConfigurationError",
    "ConservationError",
    "DatafetchError",
    "Encoded",
    "Encoding",
    "Failure",
    "FailureKind",
    "FetchPolicy",
    "FetchStatistics",
    "Fetched",
    "FetchedImage",
    "FetchedShards",
    "Fetcher",
    "IdsIndex",
    "ImageFormat",
    "ImageSpec",
    "InputFormat",
    "InvalidFieldError",
    "Job",
    "ListFormat",
    "ListJob",
    "ListOptions",
    "Loader",
    "ManifestError",
    "Observer",
    "OptOut",
    "Outcome",
    "Payload",
    "Pixels",
    "Report",
    "Request",
    "ReshardRequest",
    "Resharded",
    "Resize",
    "ResizeMode",
    "ResourceError",
    "RetryFilter",
    "RunState",
    "Statistics",
    "Status",
    "Transcoder",
    "Verdict",
    "fetch_dataset",
    "fetch_dataset_shards",
    "fetch_images",
    "fetch_shards",
    "finish",
    "finish_dataset",
    "read_status",
    "reshard",
    "retry",
    "retry_failed",
    "run",
    "run_check",
    "shard_names",
    "verify_output",
]

# A library stays silent until its user configures logging; without this, Python would print warnings by itself.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_DISTRIBUTION = "vlm-datafetch"  # the name of the project, which differs from that of the package
# Lazy, so that a codec process, which imports one submodule, does not load the network stack with it.
_MODULES = {
    "Body": "model.outcome",
    "BodyCheck": "transcode",
    "ByteRange": "model.request",
    "Check": "verify",
    "ConfigurationError": "errors",
    "ConservationError": "errors",
    "DatafetchError": "errors",
    "Encoded": "model.outcome",
    "Encoding": "transcode",
    "Failure": "model.outcome",
    "FailureKind": "model.outcome",
    "FetchPolicy": "fetch",
    "FetchStatistics": "fetch",
    "Fetched": "model.outcome",
    "FetchedImage": "engine.fetch_images",
    "FetchedShards": "model.report",
    "Fetcher": "fetch",
    "IdsIndex": "datasets.id_pairs",
    "ImageFormat": "transcode",
    "ImageSpec": "transcode",
    "InputFormat": "datasets.lists.table",
    "InvalidFieldError": "errors",
    "Job": "engine.job",
    "ListFormat": "datasets.lists.list_dataset",
    "ListJob": "engine.list_job",
    "ListOptions": "datasets.lists.list_dataset",
    "Loader": "model.kinds",
    "ManifestError": "errors",
    "Observer": "model.observers",
    "OptOut": "fetch",
    "Outcome": "model.outcome",
    "Payload": "model.kinds",
    "Pixels": "transcode",
    "Report": "model.report",
    "Request": "model.request",
    "ReshardRequest": "output.reshard.folder",
    "Resharded": "output.reshard.folder",
    "Resize": "transcode",
    "ResizeMode": "transcode",
    "ResourceError": "errors",
    "RetryFilter": "output.retry_filter",
    "RunState": "monitor.status",
    "Statistics": "model.statistics",
    "Status": "monitor.status",
    "Transcoder": "transcode",
    "Verdict": "verify",
    "fetch_dataset": "engine.runner",
    "fetch_dataset_shards": "engine.runner",
    "fetch_images": "engine.fetch_images",
    "fetch_shards": "engine.runner",
    "finish": "engine.runner",
    "finish_dataset": "engine.runner",
    "read_status": "monitor.status",
    "reshard": "output.reshard.folder",
    "retry": "engine.runner",
    "retry_failed": "engine.retry",
    "run": "engine.runner",
    "run_check": "verify",
    "shard_names": "engine.runner",
    "verify_output": "verify",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version(_DISTRIBUTION)
    if name not in _MODULES:
        raise AttributeError(f"module 'datafetch' has no attribute {name!r}")
    return getattr(import_module(f"datafetch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
