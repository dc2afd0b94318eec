"""ListJob: the job for any list of URLs, by its inputs and the options of lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypedDict, Unpack

from datafetch.datasets import LIST
from datafetch.datasets.lists.list_dataset import ListOptions
from datafetch.engine.job import Job
from datafetch.errors import ConfigurationError
from datafetch.fetch import FetchPolicy
from datafetch.model.kinds import Payload
from datafetch.transcode import ImageSpec


class JobFields(TypedDict, total=False):
    """The fields of ``Job`` that a list may have, besides those that ``ListJob`` sets."""

    mirror: str
    limit: int | None
    image: ImageSpec | None
    payload: Payload
    fetch: FetchPolicy
    processes: int | None
    workers: int | None
    memory_bytes: int
    max_sample_bytes: int
    scratch: str | None
    world_size: int | None
    fresh: bool
    reuse: bool
    finish_by: datetime | None
    no_lock: bool


def ListJob(  # noqa: N802 - it makes a job as a class would
    inputs: str | Sequence[str], out: str, options: ListOptions | None = None, **fields: Unpack[JobFields]
) -> Job:
    """Make the job that fetches the images of a list of URLs.

    Args:
        inputs: Files, folders, patterns or URLs of txt, csv, tsv, json, jsonl or parquet, in order; or one of them.
        out: The folder of the output, or its place in a bucket.
        options: The columns, conditions, shards and the format; None takes the defaults.
        **fields: Further fields of ``Job``.

    Raises:
        ConfigurationError: There is no input, or a value is not allowed.
    """
    places = [inputs] if isinstance(inputs, str) else list(inputs)
    if not places or "" in places:
        raise ConfigurationError("a list needs an input; give a file, a folder, a pattern or a URL")
    own = replace(options or ListOptions(), more_inputs=tuple(places[1:]))
    return Job(LIST.name, places[0], out, options=own, **fields)
