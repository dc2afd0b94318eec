"""Warns, at once, when the first images of a run all fail in the same way, and says what helps.

Rules: only images that this run requested count: not those of an earlier run, not those that share the result of
another one, and not files that were in their place. The web at large never fails alike, so a few hundred are enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from datafetch.model.advice import FailedAlike
from datafetch.model.outcome import Encoded, Failure, FailureKind, Outcome, Permission

_WATCHED_IMAGES = 200
_MAX_REMEMBERED_NETWORKS = 8  # more are not named

_log = logging.getLogger(__name__)


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
        self._images = self._not_tried = 0
        self._kind: FailureKind | None = None  # None as long as all hosts were down
        self._status: int | None = None
        self._networks: dict[str, None] = {}
        self._is_permitted = False
        self._is_alike = not is_retry

    @property
    def failed_alike(self) -> FailedAlike | None:
        """How all images so far have failed; None if there are none, one has arrived, or they failed differently."""
        if not self._is_alike or not self._images:
            return None
        return FailedAlike(
            self._images,
            self._kind or FailureKind.HOST_DOWN,
            self._status,
            self.networks,
            self._is_permitted,
            self._unused_proxy,
            self._used_proxies,
            self._not_tried if self._kind else 0,
            self._has_others(),
        )

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks to allow for the images so far that were blocked; a few of them, if there are many."""
        return tuple(self._networks)

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of an image that was requested, and warn when it is the last of the first ones."""
        if isinstance(outcome, Failure) and outcome.networks and len(self._networks) < _MAX_REMEMBERED_NETWORKS:
            self._networks.update(dict.fromkeys(outcome.networks))
        if not self._is_alike:
            return
        self._images += 1
        self._compare(outcome)
        if self._images == _WATCHED_IMAGES:
            self._warn(is_over=False)

    def end(self) -> None:
        """Warn if the run is over before it had as many images."""
        if self._images < _WATCHED_IMAGES:
            self._warn(is_over=True)

    def _compare(self, outcome: Outcome) -> None:
        if isinstance(outcome, Encoded):
            self._is_alike = False
            return
        if outcome.kind is FailureKind.HOST_DOWN:  # not tried, since other images of the host had failed
            self._not_tried += 1
            return
        status = outcome.status if outcome.kind is FailureKind.HTTP_STATUS else None
        if self._kind is None:
            self._kind, self._status = outcome.kind, status
        self._is_alike = (outcome.kind, status) == (self._kind, self._status)
        if outcome.kind is FailureKind.TLS:
            self._is_permitted |= Permission.INSECURE in outcome.permitted

    def _warn(self, *, is_over: bool) -> None:
        failed_alike = self.failed_alike
        if failed_alike is not None:
            _log.warning("%s", failed_alike.sentence(is_over=is_over))
