"""Warns, at once, when the first images of a run all fail in the same way, and says what helps.

Rules: only images that this run requested count: not those of an earlier run, not those that share the result of
another one, and not files that were in their place. The web at large never fails alike, so a few hundred are enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from datafetch.model.advice import FailedAlike
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permission

_WATCHED_IMAGES = 200
_MAX_REMEMBERED_NETWORKS = 8  # more are not named

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class OutcomeComparison:
    """Whether the images of a run have all failed in the same way.

    Attributes:
        images: The number of images so far; no longer counted once they are not alike.
        not_tried: Of them, those whose host was down, as other images of it had failed.
        kind: How the others failed; None as long as there are none.
        status: Their HTTP status, if that is how.
        networks: The networks to allow for the images so far that were blocked; a few of them, if there are many.
        is_permitted: Whether unverified TLS was permitted for one that failed by TLS.
        is_alike: Whether they have all failed alike.
    """

    images: int = 0
    not_tried: int = 0
    kind: FailureKind | None = None
    status: int | None = None
    networks: list[str] = field(default_factory=list)
    is_permitted: bool = False
    is_alike: bool = True

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of an image that was requested."""
        if isinstance(outcome, Failure):
            self._add_networks(outcome.networks)
        if not self.is_alike:
            return
        self.images += 1
        if isinstance(outcome, Encoded):
            self.is_alike = False
        elif outcome.kind is FailureKind.HOST_DOWN:
            self.not_tried += 1
        else:
            self._compare(outcome.kind, outcome.status if outcome.kind is FailureKind.HTTP_STATUS else None)
            if outcome.kind is FailureKind.TLS:
                self.is_permitted |= Permission.INSECURE in outcome.permitted

    def merge(self, other: OutcomeComparison) -> None:
        """Add the images of another process."""
        self._add_networks(other.networks)
        self.images += other.images
        self.not_tried += other.not_tried
        self.is_permitted |= other.is_permitted
        self.is_alike &= other.is_alike
        if other.kind is not None:
            self._compare(other.kind, other.status)

    def _compare(self, kind: FailureKind, status: int | None) -> None:
        if self.kind is None:
            self.kind, self.status = kind, status
        self.is_alike &= (kind, status) == (self.kind, self.status)

    def _add_networks(self, networks: Iterable[str]) -> None:
        for network in networks:
            if network not in self.networks and len(self.networks) < _MAX_REMEMBERED_NETWORKS:
                self.networks.append(network)


class FirstOutcomes:
    """Watches the outcomes of the images that one run requests.

    Args:
        unused_proxy: The environment variable that names a proxy which is not used; empty if there is none.
        used_proxies: The proxies that are used, in words; empty if there are none.
        is_retry: Whether these images have all failed before; then nothing follows from their failing alike.
        has_others: Whether, by now, the output is known to have images that were not requested by this run.
    """

    def __init__(
        self,
        unused_proxy: str,
        used_proxies: str = "",
        *,
        is_retry: bool = False,
        has_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self._unused_proxy = unused_proxy
        self._used_proxies = used_proxies
        self._has_others = has_others
        self._compared = OutcomeComparison(is_alike=not is_retry)
        self._is_retry = is_retry
        self._is_judged = False

    @property
    def failed_alike(self) -> FailedAlike | None:
        """How all images so far have failed; None if there are none, one has arrived, or they failed differently."""
        compared = self._compared
        if not compared.is_alike or not compared.images:
            return None
        return FailedAlike(
            compared.images,
            compared.kind or FailureKind.HOST_DOWN,
            compared.status,
            self.networks,
            compared.is_permitted,
            self._unused_proxy,
            self._used_proxies,
            compared.not_tried if compared.kind else 0,
            self._has_others(),
        )

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to allow for the images so far that were blocked; a few of them, if there are many."""
        return tuple(self._compared.networks)

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of an image that was requested, and warn when it is the last of the first ones."""
        self._compared.add(outcome)
        self._warn_when_enough()

    def replace(self, compared: OutcomeComparison) -> None:
        """Take what other processes have compared in place of what is known, and warn as ``add`` does."""
        compared.is_alike &= not self._is_retry
        self._compared = compared
        self._warn_when_enough()

    def end(self) -> None:
        """Warn if the run is over before it had as many images."""
        if not self._is_judged:
            self._warn(is_over=True)

    def _warn_when_enough(self) -> None:
        if not self._is_judged and self._compared.images >= _WATCHED_IMAGES:
            self._is_judged = True
            self._warn(is_over=False)

    def _warn(self, *, is_over: bool) -> None:
        failed_alike = self.failed_alike
        if failed_alike is not None:
            _log.warning("%s", failed_alike.sentence(is_over=is_over))
