"""The messages between the processes of a run.

A worker talks to the coordinator, which hands out samples, and to every other worker. Of a pair of workers each has
hosts and URLs whose requests it counts (``owner``), and the other one is its client.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from datafetch.engine.first_outcomes import OutcomeComparison
from datafetch.fetch.hosts import Suspension
from datafetch.fetch.shared_hosts import SlotReport
from datafetch.model.statistics import Waiting


class _Message(msgspec.Struct, array_like=True, gc=False, tag=True):
    pass


# From the coordinator to a worker.


class PeerListens(_Message):
    """Another worker can be reached: for the first time, or again, since it was replaced.

    Attributes:
        worker: Its number.
        address: The abstract address of its socket.
    """

    worker: int
    address: bytes


class ShardFollows(_Message):
    """A shard of which samples follow.

    Attributes:
        shard: The number of the shard in this run.
        name: Its name.
    """

    shard: int
    name: str


class Samples(_Message):
    """Samples to process.

    Attributes:
        pickled: ``SampleToFetch`` of each, as the coordinator has pickled them.
    """

    pickled: bytes


class ShardPublished(_Message):
    """A shard is published, and its spools are about to be deleted."""

    shard: int


class Stop(_Message):
    """There are no more samples."""


class Limit(_Message):
    """Other limits hold from now on.

    Attributes:
        per_host: Number of requests in flight at once to one host.
        max_rate_bytes_per_s: The worker's part of the cap on what is received; None if there is none.
    """

    per_host: int
    max_rate_bytes_per_s: int | None


class TryUrls(_Message):
    """Request URLs, whose results are of no sample.

    Attributes:
        urls: The URLs, encoded so that lone surrogates survive.
    """

    urls: list[bytes]


ToWorker: TypeAlias = PeerListens | ShardFollows | Samples | ShardPublished | Stop | Limit | TryUrls


# From a worker to the coordinator.


class Listens(_Message):
    """The worker waits for other workers.

    Attributes:
        address: The abstract address of its socket.
    """

    address: bytes


class Ready(_Message):
    """The worker is connected to all others, and can process samples.

    Attributes:
        unused_proxy: The environment variable that names a proxy which is not used; empty if there is none.
        used_proxies: The proxies that are used, in words.
    """

    unused_proxy: str
    used_proxies: str


class Wants(_Message):
    """The worker has room for more samples: so many in addition to those that it wanted before."""

    samples: int


class Ended(_Message):
    """Samples have ended; what became of their images is in the worker's spools.

    Attributes:
        samples: Number of the shard and position of each.
        outcomes: What ``ImageCounts`` has of those of their images that had no outcome when they were handed out.
        repeated: The same.
        adopted: The same.
    """

    samples: list[tuple[int, int]]
    outcomes: dict[str, int]
    repeated: int
    adopted: int


class WorkerStatistics(_Message):
    """How a worker stands; counts are since its start.

    Attributes:
        requests: The number of attempts; one with redirects counts once.
        fetched_bytes: Body bytes received.
        connections: How many requests may be open.
        open_requests: How many are open.
        peak_open_requests: The largest number that were open at once.
        transcoding: Images that are being transcoded, or wait for that.
        waiting: What waits for hosts; None if nothing does.
        compared: Whether the images that were requested have failed alike.
        unreached: URLs of the latest requests that no server answered, encoded so that lone surrogates survive.
        per_host: How many requests may be in flight to one host.
        is_within_limits: Whether no host has more than that.
    """

    requests: int
    fetched_bytes: int
    connections: int
    open_requests: int
    peak_open_requests: int
    transcoding: int
    waiting: Waiting | None
    compared: OutcomeComparison
    unreached: list[bytes]
    per_host: int
    is_within_limits: bool


class TriedUrls(_Message):
    """The answer to ``TryUrls``.

    Attributes:
        answers: The number of URLs that a server has answered; None if they could not be requested.
    """

    answers: int | None


class Logged(_Message):
    """A message that the worker has logged."""

    logger: str
    level: int
    text: str


class Failed(_Message):
    """The worker can't go on.

    Attributes:
        kind: The name of the error's class, one of ``datafetch.errors``.
        text: What it says.
    """

    kind: str
    text: str


class Finished(_Message):
    """The worker has ended all of its samples, and closed its spools; it serves others until the connection closes."""


FromWorker: TypeAlias = Listens | Ready | Wants | Ended | WorkerStatistics | TriedUrls | Logged | Failed | Finished


# From a client to the owner of a host or URL. ``id`` distinguishes what one client asks for and has.


class Hello(_Message):
    """Who the client is, behind what it holds of the owner that this one has replaced."""

    worker: int


class WasSuspended(_Message):
    """A host was suspended by the owner that this one has replaced; comes before ``Hello``.

    Attributes:
        host: Host and port.
        suspension: What is left of it.
    """

    host: str
    suspension: Suspension


class AcquireSlot(_Message):
    """Ask for a slot at a host.

    Attributes:
        id: Distinguishes the slot.
        host: Host and port.
        number: The image's number; images with lower ones go first.
        is_held: Whether the owner before had granted it, so that it is to be counted as it is.
    """

    id: int
    host: str
    number: int
    is_held: bool = False


class ReportSlot(_Message):
    """Report what became of the request in a slot."""

    id: int
    what: SlotReport
    reason: str
    pause_s: float | None


class ReleaseSlot(_Message):
    """Give a slot back, or no longer wait for it."""

    id: int


class LockUrl(_Message):
    """Ask for the lock of a URL.

    Attributes:
        id: Distinguishes the lock.
        url: The URL, as published, encoded so that lone surrogates survive.
        is_held: Whether the owner before had granted it.
    """

    id: int
    url: bytes
    is_held: bool = False


class UnlockUrl(_Message):
    """Release the lock of a URL, or no longer wait for it.

    Attributes:
        id: That of the lock.
        location: Where its result is, as ``ResultLocation.pack`` gives it; 0 if there is nothing to remember.
    """

    id: int
    location: int


class ReadSpool(_Message):
    """Ask for a result that this worker has in one of its spools.

    Attributes:
        id: Distinguishes the question.
        location: Where it is.
    """

    id: int
    location: int


ToOwner: TypeAlias = Hello | WasSuspended | AcquireSlot | ReportSlot | ReleaseSlot | LockUrl | UnlockUrl | ReadSpool


# From the owner to its client.


class SlotGranted(_Message):
    """A slot is granted; the rest is ``HostState``."""

    id: int
    was_healthy: bool
    answered_ago_s: float | None
    may_wait: bool


class HostIsDown(_Message):
    """No slot is granted, and why."""

    id: int
    reason: str


class UrlLocked(_Message):
    """A URL is locked.

    Attributes:
        id: That of the lock.
        location: Where its result may be; 0 where none is known.
    """

    id: int
    location: int


class ResultRead(_Message):
    """A result of a spool.

    Attributes:
        id: That of the question.
        payload: The result, as a spool has it; None if it is no longer kept.
    """

    id: int
    payload: bytes | None


class IsSuspended(_Message):
    """Nothing is sent to a host for a while, which the client is to remember for the process that replaces the owner.

    Attributes:
        host: Host and port.
        suspension: Why; None if it is over before its time.
    """

    host: str
    suspension: Suspension | None


Answer: TypeAlias = SlotGranted | HostIsDown | UrlLocked | ResultRead
FromOwner: TypeAlias = Answer | IsSuspended
