"""A client for ``subprocess_client``: libcurl's multi interface, driven by ``socket_action`` and epoll."""

from __future__ import annotations

import select
import time

import pycurl

from benchmarks.fetch.client_libcurl import Multi
from benchmarks.fetch.subprocess_client import Workload, client_main

_EVENTS_AT_ONCE = 256
_WATCHED = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


def main() -> None:
    """Fetch the workload."""
    client_main(lambda workload: _EventDriven(workload).fetch_all())


class _EventDriven(Multi):
    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._epoll = select.epoll()
        self._watched: set[int] = set()
        self._deadline_s: float | None = None
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    def step(self) -> None:
        for descriptor, events in self._epoll.poll(self._patience_s(), _EVENTS_AT_ONCE):
            self._multi.socket_action(descriptor, _actions(events))
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            self._deadline_s = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def _patience_s(self) -> float:
        return -1 if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def _set_timer(self, timeout_ms: int) -> None:
        self._deadline_s = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000

    def _watch(self, what: int, descriptor: int, _: pycurl.CurlMulti, __: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self._watched.remove(descriptor)
            self._epoll.unregister(descriptor)
        elif descriptor in self._watched:
            self._epoll.modify(descriptor, _WATCHED[what])
        else:
            self._watched.add(descriptor)
            self._epoll.register(descriptor, _WATCHED[what])


def _actions(events: int) -> int:
    actions = pycurl.CSELECT_IN if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) else 0
    return actions | (pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0)
