"""Lease: who works on an output in a bucket, for as long as it says so again and again.

Theory of operation. The lease is one object, ``lock``, which is only ever replaced by a put that names the entity tag
of what it replaces, so of two processes one is refused. Each holder has a *fencing token*, a number that grows from
holder to holder: an expired or released lease keeps its number until the next holder takes the next one. A holder
renews the lease in a thread. How old it is, is told by the store's clock: a response has the time at which the object
was written, and the time now. Where a store has no such clock, a process that wants the lease waits until it has not
changed for its time and a tenth, by the process's own monotonic clock. By such a clock a holder judges its own lease,
too, from the moment before the request that renewed it, and a tenth more strictly.

Rules: a lease only keeps others from trying. What makes it safe is the commit log (``commit_log``): a holder that was
paused and has lost its lease without knowing can record nothing there, since the next holder's entry has that number.

A holder of this machine whose process has ended has lost its lease at once; any other one, when it expires. The name of
a machine says little about that: containers may share one. So what counts is where the number of the holder's process
means the same process: in the same PID namespace of the same kernel, since the same boot.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from datafetch.errors import ConfigurationError, DatafetchError, ResourceError
from datafetch.model.bounds import Amount, Count
from datafetch.store.buckets.bucket import IF_NEW, Bucket, Condition, StoppedError
from datafetch.store.lock_holder import LockHolder

LEASE_S = 60.0
"""How long a lease holds without being renewed, at most, whatever the object says that holds it."""
_RENEWALS = 6  # in the time of a lease
_STRICTNESS, _PATIENCE = 0.9, 1.1  # of a holder and of a process that waits, whose clocks may run differently
_POLL_S = 2.0

_log = logging.getLogger(__name__)


class Observed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What observers are to see of a run, which they don't share a disk with.

    Attributes:
        progress: Its last heartbeat; None before the first.
        cluster: The nodes that it steers; None if there are none.
    """

    progress: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None


class LeaseState(msgspec.Struct, frozen=True):
    """The content of the lease.

    Attributes:
        token: The fencing token of its holder.
        nonce: Which process took it; random.
        lease_s: How long it holds without being renewed.
        holder: The process.
        renewal: How often it was renewed.
        is_released: Whether the holder has ended.
        observed: What observers are to see of the holder's run.
        pid_namespace: Where the number of the holder's process means something; empty if that is not known.
    """

    token: Count
    nonce: Annotated[str, Meta(max_length=64)]
    lease_s: Amount
    holder: LockHolder
    renewal: Count = 0
    is_released: bool = False
    observed: Observed = Observed()
    pid_namespace: Annotated[str, Meta(max_length=256)] = ""

    @property
    def is_here(self) -> bool:
        """Whether the holder is surely a process of this machine that could be seen here."""
        return self.holder.is_here and bool(self.pid_namespace) and self.pid_namespace == _pid_namespace()

    @property
    def holds_s(self) -> float:
        """How long it holds without being renewed; not longer than any version of datafetch writes."""
        return min(self.lease_s, LEASE_S)


_states = msgspec.json.Decoder(LeaseState)


@dataclass(frozen=True, slots=True)
class _Found:
    state: LeaseState
    etag: str
    age_s: float

    @property
    def is_free(self) -> bool:
        """Whether another process may take it."""
        is_dead = self.state.is_here and not self.state.holder.exists
        return self.state.is_released or is_dead or self.age_s > self.state.holds_s


def read_lease(bucket: Bucket, key: str) -> LeaseState | None:
    """The lease; None if there is none, or it has expired or was released."""
    found = _read(bucket, key)
    return None if found is None or found.is_free else found.state


class Lease:
    """A lease on an output.

    Args:
        bucket: The bucket.
        key: The key of the lease.
        location: The output, for messages.
        look: Returns what observers are to see of the run, to be stored with the lease.
        lease_s: How long it holds without being renewed.

    Attributes:
        token: The fencing token.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        location: str,
        *,
        look: Callable[[], Observed] = Observed,
        lease_s: float = LEASE_S,
    ) -> None:
        self.token = 0
        self._bucket = bucket
        self._key = key
        self._location = location
        self._look = look
        self._lease_s = lease_s
        self._state: LeaseState | None = None
        self._etag = ""
        self._valid_until_s = 0.0
        self._is_lost = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease, and renew it from now on.

        If its holder is on another machine, it is waited for whether that renews it.

        Raises:
            ConfigurationError: Another process holds it, or the store has no conditional puts.
            ResourceError: The store can't be reached.
        """
        found = self._wait_until_free()
        while not self._take(found):
            found = self._wait_until_free()
        prove_conditions(self._bucket, f"{self._key}-probe")  # by the holder alone, as the object has a fixed key
        self._thread = threading.Thread(target=self._renew_again_and_again, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still has the lease.

        Raises:
            ResourceError: It may have lost it.
        """
        if self._is_lost or time.monotonic() > self._valid_until_s:
            raise ResourceError(
                f"the lock on {self._location} was lost, since the store could not be reached in time or another run "
                "took it; run the same command again to resume (nothing that was recorded is lost)"
            )

    def release(self) -> None:
        """Let others take the lease."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._state is not None and not self._is_lost:
            state = msgspec.structs.replace(self._state, is_released=True, observed=self._look())
            try:
                self._put(state, Condition(self._etag))
            except (DatafetchError, StoppedError) as error:  # it expires
                _log.debug("the lease was not released: %s", error)

    def _wait_until_free(self) -> _Found | None:
        """Wait until there is no lease, or it is free; what there is of it.

        Raises:
            ConfigurationError: Its holder renews it, or is on this machine and exists.
        """
        first = found = _read(self._bucket, self._key)
        if first is None or first.is_free:
            return first
        if first.state.is_here:
            raise self._held(first.state.holder)
        free_at_s = time.monotonic() + _PATIENCE * first.state.holds_s
        _log.info(
            "%s was locked by %s, %.0f seconds ago; waiting up to %.0f seconds for whether it is still at work",
            self._location,
            first.state.holder.name,
            first.age_s,
            _PATIENCE * first.state.holds_s,
        )
        while found is not None and not found.is_free and time.monotonic() < free_at_s:
            if self._bucket.stop.wait(min(_POLL_S, first.state.holds_s)):
                raise StoppedError
            found = _read(self._bucket, self._key)
            if found is not None and found.etag != first.etag and not found.is_free:
                raise self._held(found.state.holder)
        return found

    def _held(self, holder: LockHolder) -> ConfigurationError:
        return ConfigurationError(
            f"another run is working on {self._location} ({holder.name}, for {holder.held_for}); wait for it, or stop "
            "it first"
        )

    def _take(self, found: _Found | None) -> bool:
        state = LeaseState(
            token=1 if found is None else found.state.token + 1,
            nonce=uuid.uuid4().hex,
            lease_s=self._lease_s,
            holder=LockHolder.this_process(is_shared=False),
            pid_namespace=_pid_namespace(),
        )
        if not self._put(state, IF_NEW if found is None else Condition(found.etag)):
            return False
        self.token = state.token
        return True

    def _put(self, state: LeaseState, condition: Condition) -> bool:
        began_s = time.monotonic()
        etag = self._bucket.put(self._key, msgspec.json.encode(state), condition)
        if etag is None:
            return False
        self._state, self._etag = state, etag
        self._valid_until_s = began_s + _STRICTNESS * self._lease_s
        return True

    def _renew_again_and_again(self) -> None:
        while not self._ended.wait(self._lease_s / _RENEWALS):
            state = self._state
            assert state is not None, "it was taken"
            try:
                renewed = msgspec.structs.replace(state, renewal=state.renewal + 1, observed=self._look())
                if not self._put(renewed, Condition(self._etag)):
                    self._is_lost = True
                    return
            except StoppedError:
                return
            except DatafetchError as error:
                _log.debug("the lease was not renewed: %s", error)


def prove_conditions(bucket: Bucket, key: str) -> None:
    """Prove that a store carries out conditional puts.

    Args:
        bucket: The bucket.
        key: The key of an object that is written and deleted for it.

    Raises:
        ConfigurationError: It does not.
    """
    bucket.delete([key])  # left by a killed process
    etag = bucket.put(key, b"1", IF_NEW)
    try:
        is_refused = (
            etag is not None
            and bucket.put(key, b"2", IF_NEW) is None
            and (replaced := bucket.put(key, b"3", Condition(etag))) is not None
            and replaced != etag
            and bucket.put(key, b"4", Condition(etag)) is None
        )
    finally:
        bucket.delete([key])
    if not is_refused:
        raise ConfigurationError(
            f"the store of s3://{bucket.name} does not carry out conditional puts (If-None-Match and If-Match), "
            "without which two runs could spoil an output; choose another store, or a local folder"
        )


def _pid_namespace() -> str:
    """The PID namespace of this process, unlike any other one of any machine; empty where the system does not say."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"
    except (OSError, ValueError):
        return ""


def _read(bucket: Bucket, key: str) -> _Found | None:
    """The lease; None if there is none.

    Raises:
        ConfigurationError: It is something else.
    """
    found = bucket.get(key)
    if found is None:
        return None
    try:
        state = _states.decode(found.body)
    except ValueError as error:
        raise ConfigurationError(
            f"s3://{bucket.name}/{key} is not a lock of this version of datafetch; delete it if no run is at work"
        ) from error
    return _Found(state, found.etag, found.age_s)
