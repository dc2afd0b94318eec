"""libcurl's multi interface as a client. The two ways to drive it differ in how they learn which sockets are ready.

Rules: the client follows the advice of libcurl's authors for many transfers, and does no more work than datafetch. Easy
handles are reused, a body is collected in memory and joined, and timeouts and limits are those of the policy.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http import HTTPStatus

import pycurl

from benchmarks.fetch.subprocess_client import Stopwatch, Tally, Workload
from datafetch.fetch import FetchPolicy
from datafetch.fetch.request_writer import user_agent
from datafetch.model.outcome import OK, FailureKind

_BUFFER_BYTES = 256 * 1024  # the size of the fetcher's read buffer
_KINDS = {pycurl.E_COULDNT_CONNECT: FailureKind.CONNECT, pycurl.E_OPERATION_TIMEDOUT: FailureKind.TIMEOUT}


class Transfer:
    """An easy handle, which is used for one URL after the other, and the body that it is receiving."""

    def __init__(self, workload: Workload) -> None:
        self.easy = _easy(workload.policy, is_fresh=workload.is_fresh)
        self.easy.setopt(pycurl.WRITEFUNCTION, self._collect)
        self.number = 0
        self._chunks: list[bytes] = []

    def set_url(self, number: int, url: str) -> None:
        """Prepare the handle for the next URL, which has this number in the workload."""
        self.number = number
        self._chunks.clear()
        self.easy.setopt(pycurl.URL, url)

    def outcome(self, error: int) -> str:
        """The outcome of the transfer that ended with this error code of libcurl; 0 is success."""
        if error:
            return _KINDS.get(error, FailureKind.DISCONNECTED).value
        if self.easy.getinfo(pycurl.RESPONSE_CODE) != HTTPStatus.OK:
            return FailureKind.HTTP_STATUS.value
        return OK if b"".join(self._chunks) else FailureKind.EMPTY.value

    def _collect(self, chunk: bytes) -> None:
        self._chunks.append(chunk)


class Multi(ABC):
    """Runs as many transfers at once as the policy has connections; each that ends starts with the next URL."""

    def __init__(self, workload: Workload) -> None:
        connections = workload.policy.connections
        assert connections is not None, "libcurl needs a number"
        self._stopwatch = Stopwatch(len(workload.urls))
        self._urls: Iterator[tuple[int, str]] = iter(enumerate(workload.urls))
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        transfers = [Transfer(workload) for _ in range(min(connections, len(workload.urls)))]
        self._transfers = {transfer.easy: transfer for transfer in transfers}

    def fetch_all(self) -> Tally:
        """Fetch the workload."""
        requests = len(self._stopwatch)
        for transfer in list(self._transfers.values()):
            self._start_next(transfer)
        while self._transfers:
            self.step()
            self._reap()
        return self._stopwatch.tally(requests)

    @abstractmethod
    def step(self) -> None:
        """Wait until a socket or a timer is ready, and let libcurl act on it."""

    def _start_next(self, transfer: Transfer) -> None:
        following = next(self._urls, None)
        if following is None:
            del self._transfers[transfer.easy]
        else:
            transfer.set_url(*following)
            self._multi.add_handle(transfer.easy)

    def _reap(self) -> None:
        left = 1
        while left:
            left, succeeded, failed = self._multi.info_read()
            for easy, error in [(easy, 0) for easy in succeeded] + [(easy, error) for easy, error, _ in failed]:
                transfer = self._transfers[easy]
                self._multi.remove_handle(easy)
                self._stopwatch.record(transfer.number, transfer.outcome(error))
                self._start_next(transfer)


def _easy(policy: FetchPolicy, *, is_fresh: bool) -> pycurl.Curl:
    easy = pycurl.Curl()
    easy.setopt(pycurl.NOSIGNAL, 1)
    easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    easy.setopt(pycurl.PROXY, "")
    easy.setopt(pycurl.USERAGENT, user_agent(policy.contact))
    easy.setopt(pycurl.HTTPHEADER, ["Accept: image/*", "Accept-Encoding: identity"])
    easy.setopt(pycurl.FOLLOWLOCATION, 1)
    easy.setopt(pycurl.MAXREDIRS, policy.max_redirects)
    easy.setopt(pycurl.MAXFILESIZE, policy.max_body_bytes)
    easy.setopt(pycurl.TIMEOUT_MS, int(policy.timeout_s * 1000))
    easy.setopt(pycurl.CONNECTTIMEOUT_MS, int(policy.connect_timeout_s * 1000))
    easy.setopt(pycurl.BUFFERSIZE, _BUFFER_BYTES)
    bundle = os.environ.get("SSL_CERT_FILE")  # which the command curl respects, and libcurl does not
    if bundle:
        easy.setopt(pycurl.CAINFO, bundle)
    if is_fresh:
        easy.setopt(pycurl.FRESH_CONNECT, 1)
        easy.setopt(pycurl.FORBID_REUSE, 1)
    return easy
